"""Trouble on demand: rules that say which of the next calls, postbacks or mails go wrong, and how.

Pure and deterministic: the same rules with the same seeds, asked in the same order, strike the same ones. What a kind
of trouble means is carried out where it strikes - in the emulated API, the postback sender and the mailbox.
"""

import random
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from sandbox import inputs
from sandbox.errors import BusyError, InvalidInputError, NotFoundError
from sandbox.inputs import Field, read_document
from sandbox.soap import FaultCode, Operation

MAX_RULES = 100


class Trouble(StrEnum):
    """What can go wrong; the first part says where."""

    SOAP_UNAUTHORIZED = "soap-401"
    """The credentials are refused: HTTP 401, nothing done."""
    SOAP_FAULT = "soap-fault"
    """A fault, nothing done: `fault` is its code (none with `detail` false), `message` its text."""
    SOAP_UNAVAILABLE = "soap-503"
    """HTTP 503 with an HTML body, nothing done."""
    SOAP_SLOW = "soap-slow"
    """Carried out after `seconds`."""
    SOAP_HANG = "soap-hang"
    """No answer for `seconds` (for ever if left out), then the connection is dropped; nothing done."""
    SOAP_DROP = "soap-drop"
    """Carried out, then the connection is dropped without an answer."""
    POSTBACK_TWICE = "postback-twice"
    """Posted twice in a row."""
    POSTBACK_LATE = "postback-late"
    """Posted after `seconds`; later ones overtake it."""
    POSTBACK_SWAPPED = "postback-swapped"
    """Held back until the next one to the same subscription has been posted."""
    POSTBACK_MALFORMED = "postback-malformed"
    """The XML has `</Modified` without `>`, as in CallFire's own documentation; JSON lacks its last character."""
    POSTBACK_CUT = "postback-cut"
    """The connection is dropped in the middle of the body."""
    POSTBACK_LOST = "postback-lost"
    """Never posted."""
    MAIL_TEMPORARY = "mail-4xx"
    """DATA is answered 451."""
    MAIL_PERMANENT = "mail-5xx"
    """DATA is answered 550."""
    MAIL_GREYLIST = "mail-greylist"
    """The first try of a sender and recipient is answered 450; one after `seconds` is accepted."""
    MAIL_HANG = "mail-hang"
    """No answer to DATA for `seconds` (for ever if left out), then the connection is dropped; nothing kept."""
    MAIL_DROP = "mail-drop"
    """The mail is kept, then the connection is dropped instead of the 250."""


_NEEDS_SECONDS = {Trouble.SOAP_SLOW, Trouble.POSTBACK_LATE, Trouble.MAIL_GREYLIST}
_MAX_SECONDS = 24 * 3600.0


@dataclass(slots=True)
class Rule:
    """One kind of trouble and how often it strikes.

    Args:
        id: given by the sandbox.
        kind: what goes wrong.
        operation: for SOAP trouble, the one operation that it strikes; None is all of them.
        times: how often it strikes before it is used up; None is for ever.
        probability: how likely it strikes each one it could, 0 to 1.
        skip: how many it lets pass first.
        seconds: for kinds that take time.
        fault: the code of a `soap-fault`.
        detail: whether a `soap-fault` carries ServiceFaultInfo.
        message: the text of a `soap-fault`.
        seed: of its own random numbers.
        struck: how often it has struck.
    """

    id: int
    kind: Trouble
    operation: Operation | None = None
    times: int | None = None
    probability: float = 1.0
    skip: int = 0
    seconds: float | None = None
    fault: FaultCode = FaultCode.BAD_REQUEST
    detail: bool = True
    message: str = "trouble on demand"
    seed: int = 0
    struck: int = 0
    _random: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - the numbers must repeat, not surprise

    @property
    def used_up(self) -> bool:
        """Whether it will never strike again."""
        return self.times is not None and self.struck >= self.times

    def strikes(self) -> bool:
        """Decide over the next one; counts, and advances the random numbers whatever the outcome."""
        drawn = self._random.random()
        if self.used_up:
            return False
        if self.skip:
            self.skip -= 1
            return False
        hit = drawn < self.probability
        self.struck += hit
        return hit

    def as_json(self) -> dict[str, object]:
        """The rule as the control API shows and takes it."""
        return {
            "id": self.id,
            "kind": self.kind,
            "operation": self.operation,
            "times": self.times,
            "probability": self.probability,
            "skip": self.skip,
            "seconds": self.seconds,
            "fault": self.fault,
            "detail": self.detail,
            "message": self.message,
            "seed": self.seed,
            "struck": self.struck,
            "used_up": self.used_up,
        }


class Troubles:
    """The rules of a sandbox, oldest first; of several that apply, the oldest that strikes wins."""

    def __init__(self) -> None:
        self.greylisted: OrderedDict[tuple[str, str], float] = OrderedDict()
        """Until when a sender and recipient of mail are put off, in monotonic seconds."""
        self._rules: dict[int, Rule] = {}
        self._next_id = 1

    def add(self, asked: Mapping[str, object]) -> Rule:
        """A new rule from its JSON form.

        Raises:
            InvalidInputError: names the field and what would be right.
            BusyError: there are too many rules.
        """
        if len(self._rules) >= MAX_RULES:
            raise BusyError(f"there are {MAX_RULES} trouble rules already; remove some first")
        rule = _read_rule(self._next_id, asked)
        self._next_id += 1
        self._rules[rule.id] = rule
        return rule

    def remove(self, ident: int) -> None:
        """Take a rule back.

        Raises:
            NotFoundError: there is none with that id.
        """
        if self._rules.pop(ident, None) is None:
            raise NotFoundError(f"no trouble rule {ident}")

    def clear(self) -> None:
        """Take all rules back, and forget who was greylisted."""
        self.greylisted.clear()
        self._rules.clear()
        self._next_id = 1

    def strike(
        self, scope: str, operation: Operation | None = None, *, among: Iterable[Trouble] | None = None
    ) -> Rule | None:
        """The rule that strikes the next call, postback or mail; None if it goes well.

        Args:
            scope: `soap`, `postback` or `mail`.
            operation: of a SOAP call.
            among: only these kinds are asked.
        """
        for rule in self._rules.values():
            if not rule.kind.startswith(f"{scope}-") or (among is not None and rule.kind not in among):
                continue
            if rule.operation in {None, operation} and rule.strikes():
                return rule
        return None

    def __iter__(self) -> Iterator[Rule]:
        return iter(list(self._rules.values()))


_FIELDS = {
    "kind": Field(inputs.one_of(Trouble), required=True),
    "operation": Field(inputs.one_of(Operation)),
    "times": Field(inputs.ident),
    "probability": Field(inputs.fraction),
    "skip": Field(inputs.count, default=0),
    "seconds": Field(inputs.seconds(_MAX_SECONDS)),
    "fault": Field(inputs.one_of(FaultCode), default=FaultCode.BAD_REQUEST),
    "detail": Field(inputs.boolean, default=True),
    "message": Field(inputs.string, default="trouble on demand"),
    "seed": Field(inputs.count, default=0),
}


def _read_rule(ident: int, document: Mapping[str, object]) -> Rule:
    """A rule from its JSON form. It strikes once unless `times` or `probability` say otherwise."""
    given = read_document(document, _FIELDS, "trouble")
    kind = given["kind"]
    if kind in _NEEDS_SECONDS and given["seconds"] is None:
        raise InvalidInputError(f"trouble: {kind} needs seconds")
    if given["operation"] and not kind.startswith("soap-"):
        raise InvalidInputError(f"trouble: operation is for SOAP trouble, not for {kind}")
    if given["times"] is None and given["probability"] is None:
        given["times"] = 1
    if given["probability"] is None:
        given["probability"] = 1.0
    return Rule(id=ident, **given)
