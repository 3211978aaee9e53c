"""Names for numbers, from a CSV file, so that a mail says who wrote and not only from where."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from forwarder.mail import one_line
from forwarder.numbers import is_number, to_e164

MAX_NAME: Final = 100
"""Longest name, in characters."""

_HEADING: Final = ["number", "name"]


@dataclass(frozen=True, slots=True)
class Contacts:
    """Who the numbers belong to."""

    names: Mapping[str, str] = field(default_factory=dict)
    """E.164 number → name."""

    def name(self, number: str) -> str | None:
        """The name for `number`, however it is written, if there is one."""
        return self.names.get(to_e164(number)) if self.names else None


def read_contacts(path: Path) -> Contacts:
    """The contacts in the CSV file `path`: `number,name` per line. Raises ValueError with every problem, one a line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [(number, row) for number, row in enumerate(csv.reader(file, strict=True), start=1) if any(row)]
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8; save it as CSV UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{path} is not CSV: {error}") from error
    names: dict[str, str] = {}
    problems: list[str] = []
    for line, row in rows:
        if line == 1 and [cell.strip().lower() for cell in row] == _HEADING:
            continue
        problem = _add(names, row)
        if problem:
            problems.append(f"{path}, line {line}: {problem}")
    if problems:
        raise ValueError("\n".join(problems))
    return Contacts(names)


def _add(names: dict[str, str], row: list[str]) -> str | None:
    """Add one contact; returns what is wrong with it."""
    if len(row) != len(_HEADING):
        hint = "; separate them by a comma" if len(row) == 1 else '; put a name with a comma in "quotes"'
        return f"has {len(row)} column{'s' * (len(row) != 1)}, not a number and a name{hint}"
    number, name = (one_line(cell.strip()) for cell in row)
    if not is_number(number):
        return f"{number!r} is not a phone number such as +18185551212"
    if not 0 < len(name) <= MAX_NAME:
        return f"the name has {len(name)} characters, not 1 to {MAX_NAME}"
    if names.setdefault(to_e164(number), name) != name:
        return f"{number} is {names[to_e164(number)]!r} further up already"
    return None
