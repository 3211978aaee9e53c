"""Who gets a text, and how the mail looks: an ordered list of routes, of which the first that matches wins.

Routes come from a TOML file. Everything in it is checked when it is read, and everything that is wrong is reported at
once. What a sender writes is matched by an engine without backtracking, so that no text can make it slow.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import tzinfo
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Self, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import SchemaError, SchemaValidator, core_schema

from forwarder.addresses import MailAddress, address_list
from forwarder.numbers import is_number, to_e164
from forwarder.postback import InboundText
from forwarder.templates import Template, compile_template

DEFAULT: Final = "default"
"""Name of the route of all texts that no other route matches."""
NO_RECIPIENTS_SHOWN: Final = "undisclosed-recipients:;"
"""What stands in To when all recipients are blind copies (RFC 5322, A.1.3)."""

_PUNCTUATION: Final = re.compile(r"[\s()./-]")
_PATTERN: Final = re.compile(r"\+?[0-9*]+")

Condition = Callable[[InboundText], bool]


@dataclass(frozen=True)
class Recipients:
    """Who gets a mail, and how they are named in it."""

    to: tuple[str, ...] = ()
    cc: tuple[str, ...] = ()
    bcc: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anybody."""
        return bool(self.to or self.cc or self.bcc)

    @cached_property
    def everyone(self) -> tuple[str, ...]:
        """All of them, each once."""
        found: dict[str, str] = {}
        for address in (*self.to, *self.cc, *self.bcc):
            found.setdefault(address.lower(), address)
        return tuple(found.values())

    @cached_property
    def to_header(self) -> str:
        """What stands in To."""
        return address_list(self.to) or NO_RECIPIENTS_SHOWN

    @cached_property
    def cc_header(self) -> str:
        """What stands in Cc, if anything."""
        return address_list(self.cc)


@dataclass(frozen=True)
class Route:
    """What becomes of the texts that it matches."""

    name: str
    conditions: tuple[Condition, ...] = ()
    recipients: Recipients = Recipients()
    """Nobody, if the texts are dropped."""
    subject: Template | None = None
    """None is the tutorial's."""
    body: Template | None = None
    zone: tzinfo | None = None
    drop: bool = False
    redact: bool = False

    def matches(self, text: InboundText) -> bool:
        """Whether all its conditions hold."""
        return all(holds(text) for holds in self.conditions)


@dataclass(frozen=True)
class Routes:
    """All routes in their order, the default last."""

    ordered: tuple[Route, ...]

    def pick(self, text: InboundText) -> Route:
        """The first route that matches `text`."""
        return next((route for route in self.ordered[:-1] if route.matches(text)), self.ordered[-1])

    def named(self, name: str) -> Route:
        """The route of that name; the default, if it is there no more."""
        return self._by_name.get(name, self.ordered[-1])

    @cached_property
    def _by_name(self) -> dict[str, Route]:
        return {route.name: route for route in self.ordered}


def _listed(value: Any) -> Any:
    """One thing is as good as a list of it."""
    return [value] if isinstance(value, str) else value


def _number_pattern(value: str) -> str:
    """The digits of a number, with `*` for any; raises ValueError if it is neither number nor pattern."""
    compact = _PUNCTUATION.sub("", value)
    if "*" in compact and _PATTERN.fullmatch(compact):
        return compact.lstrip("+")
    if "*" in compact or not is_number(value):
        raise ValueError(f"{value!r} is neither a phone number such as +18186469991 nor a pattern such as +1818*")
    return to_e164(value).lstrip("+")


def regular_expression(pattern: Any) -> SchemaValidator:
    """`pattern`, compiled by an engine whose time grows with the text alone (Rust's regex, inside pydantic).

    Raises ValueError with what is wrong, also for what only backtracking can do: look-around and backreferences.
    """
    try:
        return SchemaValidator(core_schema.str_schema(pattern=pattern))
    except SchemaError as error:
        reason = str(error).rpartition("error: ")[2].rpartition("SchemaError: ")[2].strip().rstrip(".")
        raise ValueError(f"{pattern!r} is not a regular expression: {reason}") from error


def _keyword(value: str) -> str:
    if not value.strip():
        raise ValueError("a keyword is empty")
    return value.strip()


def _template(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("a template is a string")  # noqa: TRY004 - pydantic reports ValueErrors
    return compile_template(value)


def _time_zone(value: Any) -> ZoneInfo:
    try:
        return ZoneInfo(value)
    except (ZoneInfoNotFoundError, OSError, ValueError, TypeError) as error:
        raise ValueError(f"{value!r} is no time zone, such as America/Los_Angeles or Europe/Berlin") from error


Listed = BeforeValidator(_listed)
Addresses = Annotated[tuple[MailAddress, ...], Listed]
Numbers = Annotated[tuple[Annotated[str, AfterValidator(_number_pattern)], ...], Listed]
Keywords = Annotated[tuple[Annotated[str, AfterValidator(_keyword)], ...], Listed]
Expression = Annotated[SchemaValidator, BeforeValidator(regular_expression)]
Written = Annotated[Template, BeforeValidator(_template)]
Zone = Annotated[ZoneInfo, BeforeValidator(_time_zone)]


class _Default(BaseModel):
    """The table [default]: what becomes of all other texts, and what a route leaves out."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    to: Addresses = ()
    cc: Addresses = ()
    bcc: Addresses = ()
    subject: Written | None = None
    body: Written | None = None
    time_zone: Zone | None = None
    redact: bool | None = None
    drop: bool = False

    @property
    def recipients(self) -> Recipients:
        """Who is named."""
        return Recipients(self.to, self.cc, self.bcc)

    @model_validator(mode="after")
    def _drop_is_drop(self) -> Self:
        if self.drop and self.recipients:
            raise ValueError("drop = true sends nothing, so it can have no recipients; leave out one of them")
        return self


class _Entry(_Default):
    """One table [[route]]."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    to_number: Numbers = ()
    from_number: Numbers = ()
    keyword: Keywords = ()
    matches: Expression | None = None

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What must hold for a text to take this route; the cheap ones first."""
        found: list[Condition] = []
        if self.to_number:
            found.append(_number_condition("to_number", self.to_number))
        if self.from_number:
            found.append(_number_condition("from_number", self.from_number))
        if self.keyword:
            found.append(_message_condition(regular_expression(_any_word(self.keyword))))
        if self.matches is not None:
            found.append(_message_condition(self.matches))
        return tuple(found)


_Table = TypeVar("_Table", bound=_Default)


def _number_condition(which: str, patterns: Iterable[str]) -> Condition:
    alternatives = "|".join(pattern.replace("*", ".*") for pattern in patterns)
    wanted = re.compile(f"(?:{alternatives})")

    def holds(text: InboundText) -> bool:
        return wanted.fullmatch(to_e164(getattr(text, which)).lstrip("+")) is not None

    return holds


def _any_word(keywords: Iterable[str]) -> str:
    """A regular expression for any of `keywords` as a whole word, in capitals or not."""
    return rf"(?i)(?:^|\W)(?:{'|'.join(re.escape(keyword) for keyword in keywords)})(?:\W|$)"


def _message_condition(expression: SchemaValidator) -> Condition:
    def holds(text: InboundText) -> bool:
        return bool(expression.isinstance_python(text.message))

    return holds


@dataclass(frozen=True)
class RouteFile:
    """What a file of routes says; together with FORWARDER_MAIL_TO it makes the routes."""

    path: Path | None = None
    entries: tuple[_Entry, ...] = ()
    default: _Default = field(default_factory=_Default)

    def wanting(self) -> list[str]:
        """Which texts nobody would get unless FORWARDER_MAIL_TO names somebody."""
        if self.default.recipients:
            return []
        found = [f'the texts of [[route]] "{entry.name}"' for entry in self.entries if _inherits(entry)]
        return found if self.default.drop else [*found, "the texts that no route matches"]

    def routes(self, mail_to: tuple[str, ...]) -> Routes:
        """The routes, where `mail_to` gets what the file gives to nobody else."""
        default = self.default
        recipients = default.recipients or Recipients(mail_to)
        routes = [
            Route(
                entry.name,
                entry.conditions,
                recipients if _inherits(entry) else entry.recipients,
                subject=entry.subject or default.subject,
                body=entry.body or default.body,
                zone=entry.time_zone or default.time_zone,
                drop=entry.drop,
                redact=bool(default.redact if entry.redact is None else entry.redact),
            )
            for entry in self.entries
        ]
        last = Route(
            DEFAULT,
            recipients=Recipients() if default.drop else recipients,
            subject=default.subject,
            body=default.body,
            zone=default.time_zone,
            drop=default.drop,
            redact=bool(default.redact),
        )
        return Routes((*routes, last))


def _inherits(entry: _Entry) -> bool:
    return not entry.drop and not entry.recipients


def read_routes(path: Path) -> RouteFile:
    """The routes in the TOML file `path`. Raises ValueError with all problems, one per line."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    problems = [_unknown(name, ["route", DEFAULT], "table") for name in document if name not in {"route", DEFAULT}]
    default = _read(_Default, f"[{DEFAULT}]", document.get(DEFAULT, {}), problems)
    tables = document.get("route", [])
    if not isinstance(tables, list):
        problems.append("[route]: write [[route]], in two brackets: there may be several")
        tables = []
    entries = [_read(_Entry, _title(place, table), table, problems) for place, table in enumerate(tables, start=1)]
    read = [entry for entry in entries if entry]
    if len(read) == len(entries):
        problems += _shadowed(read)
    if problems or default is None:
        raise ValueError("\n".join(f"{path}, {problem}" for problem in problems))
    return RouteFile(path, tuple(read), default)


def _title(place: int, table: Any) -> str:
    name = table.get("name") if isinstance(table, dict) else None
    return f"[[route]] {place}" + (f' "{name}"' if isinstance(name, str) else "")


def _read(kind: type[_Table], title: str, table: Any, problems: list[str]) -> _Table | None:
    """The table as `kind`; what is wrong with it is added to `problems`."""
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        problems += [f"{title}{_explain(finding, kind)}" for finding in error.errors()]
        return None


_PLAINER: Final = {
    "tuple_type": "a string or a list of strings",
    "string_type": "a string",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
}


def _explain(finding: Any, kind: type[BaseModel]) -> str:
    message: str = finding["msg"].removeprefix("Value error, ")
    if not finding["loc"]:
        return f": {message[:1].lower()}{message[1:]}"
    name = str(finding["loc"][0])
    if finding["type"] == "extra_forbidden":
        return ": " + _unknown(name, list(kind.model_fields), "key")
    if finding["type"] == "missing":
        message = "is required: letters, digits, - _ and . by which logs and lists call the route"
    elif finding["type"] == "string_pattern_mismatch":
        message = f"{finding['input']!r} is not 1 to 64 letters, digits, - _ and ."
    elif finding["type"] in _PLAINER:
        message = f"{finding['input']!r} is not {_PLAINER[finding['type']]}"
    elif finding["type"] != "value_error":
        message = f"{finding['input']!r}: {message[:1].lower()}{message[1:]}"
    return f", {name}: {message}"


def _unknown(name: str, known: list[str], what: str) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"{name}: no such {what}; " + (f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}")


def _shadowed(entries: list[_Entry]) -> list[str]:
    """Routes that can never be reached, or not be told apart."""
    problems = []
    names: set[str] = {DEFAULT}
    for place, entry in enumerate(entries, start=1):
        title = f'[[route]] {place} "{entry.name}"'
        if entry.name in names:
            problems.append(f"{title}, name: is taken; every route needs a name of its own, and not {DEFAULT!r}")
        names.add(entry.name)
        if not entry.conditions:
            problems.append(
                f"{title}: matches every text; give it to_number, from_number, keyword or matches, "
                f"or write its lines into [{DEFAULT}]"
            )
    return problems
