"""The rules of trouble: how often they strike, and that they do so again in the same way."""

import pytest

from sandbox.errors import BusyError, InvalidInputError, NotFoundError
from sandbox.soap import Operation
from sandbox.trouble import MAX_RULES, Trouble, Troubles


def strikes(troubles: Troubles, calls: int, scope: str = "soap", operation: Operation = Operation.GET) -> list[bool]:
    """Which of so many calls meet with trouble."""
    return [troubles.strike(scope, operation) is not None for _ in range(calls)]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, [True, False, False, False]),
        ({"times": 2}, [True, True, False, False]),
        ({"skip": 1}, [False, True, False, False]),
        ({"skip": 2, "times": 2}, [False, False, True, True]),
        ({"probability": 1}, [True, True, True, True]),
        ({"probability": 0}, [False, False, False, False]),
        ({"operation": "GetSubscription", "times": 1}, [True, False, False, False]),
        ({"operation": "CreateSubscription", "probability": 1}, [False, False, False, False]),
    ],
)
def test_a_rule_strikes_as_often_as_it_says(rule: dict[str, object], expected: list[bool]) -> None:
    """Once, unless `times` or `probability` say otherwise."""
    troubles = Troubles()
    troubles.add({"kind": "soap-503", **rule})
    assert strikes(troubles, 4) == expected


def test_the_same_seed_strikes_the_same_calls() -> None:
    """And another seed other ones; about as many as the probability says."""

    def run(seed: int) -> list[bool]:
        troubles = Troubles()
        troubles.add({"kind": "soap-401", "probability": 0.3, "seed": seed})
        return strikes(troubles, 500)

    assert run(7) == run(7)
    assert run(7) != run(8)
    assert 100 < sum(run(7)) < 200


def test_rules_strike_only_where_they_belong() -> None:
    """Trouble with mail leaves calls and postbacks alone; of several rules the oldest strikes first."""
    troubles = Troubles()
    troubles.add({"kind": "mail-4xx", "probability": 1})
    assert not any(strikes(troubles, 3))
    assert troubles.strike("mail", among={Trouble.MAIL_GREYLIST}) is None
    troubles.add({"kind": "mail-5xx"})
    struck = troubles.strike("mail")
    assert struck is not None
    assert struck.kind is Trouble.MAIL_TEMPORARY
    assert [(rule.kind, rule.struck) for rule in troubles] == [("mail-4xx", 1), ("mail-5xx", 0)]


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ({}, "kind is missing"),
        ({"kind": "soap-402"}, "kind must be one of soap-401, soap-fault"),
        ({"kind": "soap-401", "times": 0}, "times must be a whole number above 0, not 0"),
        ({"kind": "soap-401", "probability": 2}, "probability must be a number from 0 to 1, not 2"),
        ({"kind": "soap-401", "operation": "Get"}, "operation must be one of CreateSubscription"),
        ({"kind": "mail-4xx", "operation": "GetSubscription"}, "operation is for SOAP trouble, not for mail-4xx"),
        ({"kind": "soap-slow"}, "soap-slow needs seconds"),
        ({"kind": "soap-slow", "seconds": float("nan")}, "seconds must be a number of seconds"),
        ({"kind": "soap-401", "tmies": 1}, "'tmies' is not a field"),
    ],
)
def test_a_wrong_rule_is_refused_with_what_would_be_right(rule: dict[str, object], problem: str) -> None:
    """Named by field and value."""
    with pytest.raises(InvalidInputError, match=problem):
        Troubles().add(rule)


def test_rules_can_be_taken_back_and_their_number_is_bounded() -> None:
    """One by one or all."""
    troubles = Troubles()
    rules = [troubles.add({"kind": "soap-503"}) for _ in range(MAX_RULES)]
    with pytest.raises(BusyError, match="remove some first"):
        troubles.add({"kind": "soap-503"})
    troubles.remove(rules[0].id)
    with pytest.raises(NotFoundError, match="no trouble rule 1"):
        troubles.remove(rules[0].id)
    troubles.clear()
    assert list(troubles) == []
