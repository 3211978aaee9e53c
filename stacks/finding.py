"""What was looked at of a stack, and what came of it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: its name.
        wrong: what is wrong with it, a sentence each.
        right: what was found, where nothing is; in further lines, what else is worth knowing.
        untried: why it could not be looked at.
    """

    what: str
    wrong: tuple[str, ...] = ()
    right: str = ""
    untried: str = ""

    def __str__(self) -> str:
        """What a person reads of it."""
        if self.wrong:
            said = "\n".join([f"WRONG  {self.what}", *self.wrong])
        elif self.untried:
            said = f"-      {self.what}: not looked at, {self.untried}"
        else:
            said = f"ok     {self.what}: {self.right}"
        return said.replace("\n", "\n         ")
