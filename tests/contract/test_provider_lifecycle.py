"""The life of a subscription, through the SDK's own server and zeep, against the sandbox."""

from collections.abc import Iterator

import pytest

from sandbox import Sandbox
from tests.provider_kit import BLOB, ProviderFailure, ProviderServer, config_for, serving

ENDPOINT = "https://mail.example.com/postback/0123456789abcdef"
DECLARED = {"endpoint": ENDPOINT, "trigger_event": "INBOUND_TEXT_FINISHED", "filter": {"to_number": "+1 818 646 9991"}}


@pytest.fixture
def server(sandbox: Sandbox) -> Iterator[ProviderServer]:
    """The provider, with the sandbox's credentials."""
    with serving(sandbox, timeout="5") as running:
        yield running


def test_create_makes_what_is_declared(sandbox: Sandbox, server: ProviderServer) -> None:
    """One listing and one create; the id is a string, the outputs are the canonical inputs."""
    id_, outputs = server.declare(DECLARED)
    held = sandbox.subscriptions()[0]
    assert held["id"] == id_
    assert held["endpoint"] == outputs["endpoint"] == ENDPOINT
    assert held["filter"]["to_number"] == outputs["filter"]["to_number"] == "18186469991"
    assert held["trigger_event"] == outputs["trigger_event"] == "INBOUND_TEXT_FINISHED"
    assert sandbox.requests() == {"QuerySubscriptions": 1, "CreateSubscription": 1}


def test_check_and_diff_make_no_call(sandbox: Sandbox, server: ProviderServer) -> None:
    """What a preview and a second `up` do costs CallFire nothing."""
    id_, outputs = server.declare(DECLARED)
    before = sandbox.requests()
    assert server.diff(id_, outputs, server.inputs(DECLARED)) == "same"
    assert sandbox.requests() == before


def test_diff_ignores_the_stored_provider(server: ProviderServer) -> None:
    """A new SDK may store the class in other bytes; that is no difference."""
    id_, outputs = server.declare(DECLARED)
    news = server.inputs(DECLARED)
    assert server.diff(id_, {**outputs, "__provider": BLOB[:-4] + "AAAA"}, news) == "same"


def test_update_is_one_call_with_what_changed(sandbox: Sandbox, server: ProviderServer) -> None:
    """Nothing else is sent, so nothing else can be overwritten."""
    id_, outputs = server.declare(DECLARED)
    before = sandbox.requests()
    news = server.inputs({**DECLARED, "enabled": False})
    assert server.diff(id_, outputs, news) == "update"
    outputs = server.update(id_, outputs, news)
    assert sandbox.subscriptions()[0]["enabled"] is False
    assert sandbox.requests() == {**before, "UpdateSubscription": 1}
    assert server.diff(id_, outputs, news) == "same"


@pytest.mark.parametrize("replaces_filter", [False, True])
def test_an_update_of_a_filter_cures_whatever_callfire_does_with_it(
    sandbox: Sandbox,
    server: ProviderServer,
    replaces_filter: bool,  # noqa: FBT001 - a value of the table
) -> None:
    """Whether an update's filter replaces the whole or changes its fields is unknown; both end as declared."""
    sandbox.set_quirks(update_replaces_filter=replaces_filter)
    id_, outputs = server.declare({**DECLARED, "filter": {"to_number": "18186469991", "from_number": "67076"}})
    news = server.inputs({**DECLARED, "filter": {"to_number": "18186469992", "from_number": "67076"}})
    assert server.diff(id_, outputs, news) == "update"
    outputs = server.update(id_, outputs, news)
    with serving(sandbox) as later:
        assert later.read(id_, outputs)[:2] == (id_, outputs)
    assert sandbox.subscriptions()[0]["filter"]["from_number"] == "67076"


def test_taking_a_filter_field_away_replaces(server: ProviderServer) -> None:
    """Whether CallFire would clear it is unknown."""
    id_, outputs = server.declare(DECLARED)
    assert server.diff(id_, outputs, server.inputs({**DECLARED, "filter": {}})) == "replace filter"


def test_read_brings_drift_into_the_inputs(sandbox: Sandbox, server: ProviderServer) -> None:
    """Drift then reads as a normal diff, which an `up` cures."""
    id_, outputs = server.declare(DECLARED)
    with serving(sandbox) as another:
        another.update(id_, outputs, another.inputs({**DECLARED, "enabled": False}))
    with serving(sandbox) as later:
        found, drifted, inputs = later.read(id_, outputs)
        assert found == id_
        assert drifted["enabled"] is False
        assert inputs["enabled"] is False
        assert later.diff(id_, drifted, later.inputs(DECLARED)) == "update"


def test_read_of_an_unchanged_one_returns_what_the_state_holds(sandbox: Sandbox, server: ProviderServer) -> None:
    """A refresh without drift changes no byte of the state."""
    id_, outputs = server.declare(DECLARED)
    with serving(sandbox) as later:
        assert later.read(id_, outputs)[:2] == (id_, outputs)


def test_read_of_a_missing_one_says_gone(sandbox: Sandbox, server: ProviderServer) -> None:
    """Deleted behind Pulumi's back: a refresh takes it out of the state."""
    id_, outputs = server.declare(DECLARED)
    with serving(sandbox) as another:
        another.delete(id_, outputs)
    with serving(sandbox) as later:
        assert later.read(id_, outputs)[0] == ""


def test_get_asks_for_one_and_a_missing_one_is_an_error(sandbox: Sandbox, server: ProviderServer) -> None:
    """A program that names an id means it; the words say where ids are found."""
    id_, outputs = server.declare(DECLARED)
    before = sandbox.requests()
    found, got = server.get(id_)
    assert found == id_
    assert {name: got[name] for name in ("endpoint", "filter", "enabled")} == {
        name: outputs[name] for name in ("endpoint", "filter", "enabled")
    }
    assert sandbox.requests() == {**before, "GetSubscription": 1}
    with pytest.raises(ProviderFailure, match=r"NOT_FOUND.*`python -m provider list` shows the ids"):
        server.get("99")


def test_delete_twice_is_fine(sandbox: Sandbox, server: ProviderServer) -> None:
    """`not found` is what delete is for."""
    id_, outputs = server.declare(DECLARED)
    server.delete(id_, outputs)
    server.delete(id_, outputs)
    assert sandbox.subscriptions() == []


def test_a_refused_password_is_an_error_and_changes_nothing(sandbox: Sandbox, server: ProviderServer) -> None:
    """Above all, a refresh does not conclude that the subscription is gone."""
    id_, outputs = server.declare(DECLARED)
    with ProviderServer({**config_for(sandbox), "callfire:password": "an old password"}) as locked_out:
        for work in (
            lambda: locked_out.read(id_, outputs),
            lambda: locked_out.delete(id_, outputs),
            lambda: locked_out.declare({**DECLARED, "enabled": False}),
        ):
            with pytest.raises(ProviderFailure, match=r"refused the login or the password \(HTTP 401\)") as failure:
                work()
            assert "Traceback" not in str(failure.value)
            assert "an old password" not in str(failure.value)
            assert ENDPOINT not in str(failure.value)
    assert [held["id"] for held in sandbox.subscriptions()] == [id_]


def test_api_1_0_has_its_own_address_and_no_trigger(sandbox: Sandbox) -> None:
    """With `callfire:apiVersion` 1.0 a subscription gets every kind of event; the filter says inbound or not."""
    declared = {"endpoint": ENDPOINT, "filter": {"inbound": True}}
    with serving(sandbox, apiVersion="1.0") as server:
        id_, outputs = server.declare(declared)
        assert "trigger_event" not in outputs
        assert server.check(DECLARED)[1][0].startswith("trigger_event does not exist in CallFire API 1.0")
        news = server.inputs({**declared, "enabled": False})
        outputs = server.update(id_, outputs, news)
    with serving(sandbox, apiVersion="1.0") as later:
        assert later.read(id_, outputs)[:2] == (id_, outputs)
        assert later.diff(id_, outputs, news) == "same"
        later.delete(id_, outputs)
    assert {call["version"] for call in sandbox.request_log()} == {"1.0"}
    assert sandbox.subscriptions() == []


def test_the_environment_wins_over_the_configuration(sandbox: Sandbox) -> None:
    """After a rotation the stack still holds the old password when Pulumi destroys it."""
    stale = {"callfire:url": "http://127.0.0.1:9", "callfire:login": "old", "callfire:password": "old"}
    fresh = {
        "CALLFIRE_URL": sandbox.url,
        "CALLFIRE_LOGIN": sandbox.login,
        "CALLFIRE_PASSWORD": sandbox.password,
    }
    with ProviderServer(stale, fresh) as server:
        server.declare(DECLARED)
    assert len(sandbox.subscriptions()) == 1


def test_the_same_subscription_twice_is_refused_before_any_call(sandbox: Sandbox, server: ProviderServer) -> None:
    """However it is spelled; another trigger or filter makes another subscription."""
    server.inputs(DECLARED, "one")
    again = {**DECLARED, "endpoint": ENDPOINT.replace("https", "HTTPS"), "enabled": False}
    assert len(server.check(again, "two")[1]) == 1
    assert "those of the resource 'one' too" in server.check(again, "two")[1][0]
    assert server.check({**DECLARED, "trigger_event": "INBOUND_CALL_FINISHED"}, "three")[1] == []
    assert server.check({**DECLARED, "filter": {}}, "four")[1] == []
    assert sandbox.requests() == {}


def test_the_same_subscription_twice_is_refused_when_it_shows_late(sandbox: Sandbox, server: ProviderServer) -> None:
    """Two resources of one name, in two components, pass the check; the second create does not."""
    inputs = server.inputs(DECLARED)
    server.create(inputs)
    with pytest.raises(ProviderFailure, match="Another resource of this program declares the same subscription"):
        server.create(inputs)
    assert len(sandbox.subscriptions()) == 1


def test_all_mistakes_are_reported_at_once(server: ProviderServer) -> None:
    """Nobody should have to run `up` five times to find five mistakes."""
    wrong = {
        "endpoint": "ftp://mail.example.com/0123456789abcdef",
        "notification_format": "YAML",
        "enabled": "perhaps",
        "filter": {"to_number": "1 2", "colour": "red"},
    }
    _, failures = server.check(wrong)
    assert [failure.partition(" ")[0] for failure in failures] == [
        "endpoint",
        "notification_format",
        "enabled",
        "filter.to_number",
        "filter.colour",
        "trigger_event",
    ]
    assert "0123456789abcdef" not in str(failures)
    assert server.failing(wrong) == ["", "notification_format", "enabled", "", "", "trigger_event"]
