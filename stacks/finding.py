"""What was looked at of a stack, and what came of it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: its name.
        wrong: what is wrong with it, a sentence each.
        right: what was found, where nothing is.
        untried: why it could not be looked at.
    """

    what: str
    wrong: tuple[str, ...] = ()
    right: str = ""
    untried: str = ""

    def __str__(self) -> str:
        """What a person reads of it."""
        if self.wrong:
            lines = [f"         {line}" for said in self.wrong for line in said.splitlines()]
            return "\n".join([f"WRONG  {self.what}", *lines])
        return (
            f"-      {self.what}: not looked at, {self.untried}"
            if self.untried
            else f"ok     {self.what}: {self.right}"
        )
