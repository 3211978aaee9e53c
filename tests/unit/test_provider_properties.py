"""What holds for any arguments, found by trying many odd ones."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pulumi.dynamic import ConfigureRequest
from pulumi.dynamic.config import Config

from provider import canonical
from provider.controller import SubscriptionProvider
from provider.declaration import check
from provider.difference import compare
from provider.errors import ProviderError

odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True)
    | st.text(max_size=40)
    | st.sampled_from(
        ["", " ", "XML", "https://", "http://[", "1" * 400, "a@b.c", "67076:X", "\ud800", "https://a:b@c"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    [
        "endpoint",
        "notification_format",
        "trigger_event",
        "enabled",
        "non_strict_ssl",
        "filter",
        "adopt",
        "__name",
        "__record",
        "x",
    ]
)

numbers = st.from_regex(r"\+?1? ?\(?[2-9][0-9]{2}\)?[ -]?[2-9][0-9]{2}[ -]?[0-9]{4}", fullmatch=True) | st.from_regex(
    r"[0-9]{3,6}(:[A-Z]{1,8})?|[a-zA-Z_]{1,12}|\+49[1-9][0-9]{6,10}|\+44[1-9][0-9]{8,9}", fullmatch=True
)
impossible = st.from_regex(
    r"(\+1|1)? ?([01][0-9]{2}[ -]?[0-9]{3}|[2-9][0-9]{2}[ -]?[01][0-9]{2})[ -]?[0-9]{4}", fullmatch=True
)
ids = st.integers(1, 2**53) | st.integers(1, 2**63 - 1).map(str)
hosts = st.from_regex(r"[a-zA-Z][a-zA-Z0-9]{0,8}(\.[a-zA-Z][a-zA-Z0-9]{0,8}){1,2}", fullmatch=True)
urls = st.builds(
    lambda scheme, host, port, path: f"{scheme}://{host}{port}{path}",
    st.sampled_from(["http", "https", "HTTPS"]),
    hosts,
    st.sampled_from(["", ":443", ":80", ":8710"]),
    st.from_regex(r"(/[a-zA-Z0-9%~._ é-]{0,12}){0,3}(\?[a-z]=[A-Z]{0,5})?", fullmatch=True),
)


def cased(values: tuple[str, ...]) -> st.SearchStrategy[str]:
    """Either case."""
    return st.sampled_from(values).flatmap(lambda v: st.sampled_from([v, v.lower(), v.title()]))


valid = st.fixed_dictionaries(
    {"endpoint": urls, "trigger_event": cased(canonical.TRIGGER_EVENTS)},
    optional={
        "notification_format": cased(("XML", "JSON", "SOAP", "LEGACY")),
        "enabled": st.booleans(),
        "non_strict_ssl": st.just(False),  # noqa: FBT003 - the value
        "filter": st.fixed_dictionaries(
            {},
            optional={
                "from_number": numbers,
                "to_number": numbers,
                "broadcast_id": ids,
                "batch_id": ids,
                "inbound": st.booleans(),
            },
        ),
    },
)


@given(impossible)
@settings(deadline=None)
def test_a_number_that_north_america_cannot_have_is_refused(number: str) -> None:
    """However it is spelled; an account that holds it all the same shows it as it is."""
    with pytest.raises(ValueError, match="must be a phone number"):
        canonical.number(number)
    assert canonical.lenient(canonical.number, number) == number


@given(valid)
@settings(deadline=None)
def test_check_is_idempotent(arguments: dict[str, Any]) -> None:
    """The canonical form of a canonical form is itself."""
    once = check(arguments, "1.1")
    if once.problems:
        assert {p.property for p in once.problems} <= {"filter.from_number", "filter.to_number", "endpoint"}
        return
    twice = check(once.properties, "1.1")
    assert twice.problems == []
    assert twice.properties == once.properties


@given(valid)
@settings(deadline=None)
def test_the_canonical_form_is_no_difference(arguments: dict[str, Any]) -> None:
    """Nor is what CallFire would hold after the create."""
    once = check(arguments, "1.1")
    if not once.problems:
        assert not compare(arguments, once.properties)
        assert not compare(once.properties, once.properties)


@given(valid, valid)
@settings(deadline=None)
def test_an_update_cures_every_difference_but_a_replacement(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Never a difference that an `up` does not cure."""
    olds, news = check(before, "1.1"), check(after, "1.1")
    if olds.problems or news.problems:
        return
    difference = compare(olds.properties, news.properties)
    if not difference.replaces:
        assert not compare({**olds.properties, **difference.changes}, news.properties)


@given(st.dictionaries(names, odd, max_size=6), st.dictionaries(names, odd, max_size=6))
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_no_argument_raises_anything_but_this_projects_errors(olds: dict[str, Any], news: dict[str, Any]) -> None:
    """However odd; a method that needs CallFire finds nobody there."""
    provider = SubscriptionProvider()
    config = {
        "callfire:login": "login",
        "callfire:password": "hunter2hunter2",
        "callfire:url": "http://127.0.0.1:9",
        "callfire:timeout": "1",
    }
    provider.configure(ConfigureRequest(Config(config, "test")))
    work: Callable[[], object]
    for work in (
        lambda: provider.check(olds, news),
        lambda: provider.diff("1", olds, news),
        lambda: provider.update("1", olds, olds),
        lambda: check(news, "1.0"),
    ):
        try:
            work()
        except ProviderError as error:
            assert "hunter2" not in str(error)  # noqa: PT017 - both outcomes are right
            assert "mistake in this provider" not in str(error)  # noqa: PT017 - as above
    for work in (  # which get what `check` let through, or what a state holds that somebody edited
        lambda: provider.create(news),
        lambda: provider.read("one", news),
        lambda: provider.delete("1", olds),
    ):
        with contextlib.suppress(ProviderError):
            work()
