"""CallFire in trouble: what is repeated, what is looked up first, and what a person reads in the end."""

import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from provider.account import LISTINGS, Account
from provider.errors import (
    BadRequest,
    LimitReached,
    NotFound,
    PasswordRefused,
    ProviderError,
    TimedOut,
    TlsRefused,
    Unavailable,
    UnexpectedAnswer,
    UnknownHost,
    Unreachable,
    Unsettled,
)
from provider.lifecycle import say
from provider.redaction import Secret
from provider.remote import Page, new_request_id
from provider.retrying import repeat
from provider.settings import Settings, read_settings
from provider.soap import CallFire
from sandbox import Sandbox
from tests.ports import free_ports
from tests.provider_kit import ProviderFailure, ProviderServer
from tests.trouble import Trouble, TroubledCallFire, When

TOKEN = "0123456789abcdef"
DECLARED: dict[str, Any] = {
    "endpoint": f"https://mail.example.com/postback/{TOKEN}",
    "notification_format": "XML",
    "trigger_event": "INBOUND_TEXT_FINISHED",
    "enabled": True,
}


@pytest.fixture
def callfire(sandbox: Sandbox) -> Iterator[TroubledCallFire]:
    """A CallFire that can be troubled."""
    with TroubledCallFire(sandbox) as troubled:
        yield troubled


def account_at(url: str, sandbox: Sandbox, timeout: float = 6.0, api_version: str = "1.1") -> Account:
    """The account as a new Pulumi operation sees it."""
    settings = Settings(sandbox.login, Secret(sandbox.password), url, api_version, timeout)
    return Account(lambda: CallFire(settings), timeout)


@pytest.mark.parametrize("trouble", [Trouble.DROP, Trouble.UNAVAILABLE, Trouble.WEB_PAGE])
@pytest.mark.parametrize("when", list(When))
def test_a_create_whose_answer_is_lost_makes_one(
    sandbox: Sandbox, callfire: TroubledCallFire, when: When, trouble: Trouble
) -> None:
    """Committed or not, it is looked up before it is tried again."""
    callfire.strike("CreateSubscription", when, trouble)
    claim = account_at(callfire.url, sandbox).create(DECLARED, new_request_id())
    assert [held["id"] for held in sandbox.subscriptions()] == [claim.id]
    assert callfire.counts["CreateSubscription"] == 1
    assert callfire.counts["QuerySubscriptions"] == 2


def test_the_request_id_is_kept_over_the_tries(sandbox: Sandbox, callfire: TroubledCallFire) -> None:
    """So that CallFire can see the repetition, should the look-up come too early."""
    seen: list[str] = []
    original = CallFire.create

    class Recording(CallFire):
        def create(self, properties: Mapping[str, Any], request_id: str) -> str:
            seen.append(request_id)
            return original(self, properties, request_id)

    callfire.strike("CreateSubscription", When.BEFORE, Trouble.UNAVAILABLE, times=2)
    settings = Settings(sandbox.login, Secret(sandbox.password), callfire.url, timeout=6.0)
    Account(lambda: Recording(settings), 6.0).create(DECLARED, "urn:one")
    assert seen == ["urn:one"] * 3


@pytest.mark.parametrize("when", list(When))
@pytest.mark.parametrize("trouble", [Trouble.DROP, Trouble.UNAVAILABLE])
def test_updates_and_deletes_are_repeated(
    sandbox: Sandbox, callfire: TroubledCallFire, when: When, trouble: Trouble
) -> None:
    """Both may be: a second update changes nothing, and `not found` is what a delete wants."""
    account = account_at(callfire.url, sandbox)
    id_ = account.create(DECLARED, "urn:one").id
    callfire.strike("UpdateSubscription", when, trouble)
    account.update(id_, {"enabled": False})
    assert sandbox.subscriptions()[0]["enabled"] is False
    callfire.strike("DeleteSubscription", when, trouble)
    assert account.delete(id_, "urn:one")
    assert sandbox.subscriptions() == []


def test_a_late_answer_is_a_time_out_and_the_create_is_found(sandbox: Sandbox, callfire: TroubledCallFire) -> None:
    """The first try waits a third of the time limit."""
    callfire.strike("CreateSubscription", When.AFTER, Trouble.LATE, seconds=2.0)
    claim = account_at(callfire.url, sandbox, timeout=3.0).create(DECLARED, new_request_id())
    assert [held["id"] for held in sandbox.subscriptions()] == [claim.id]


def test_a_hanging_callfire_ends_in_a_time_out(sandbox: Sandbox, callfire: TroubledCallFire) -> None:
    """Within the time limit, and the words say what to do."""
    callfire.strike("QuerySubscriptions", When.BEFORE, Trouble.LATE, seconds=5.0, times=3)
    with pytest.raises(TimedOut, match=r"did not answer in time.*callfire:timeout"):
        account_at(callfire.url, sandbox, timeout=1.0).find("1")


def test_an_unavailable_callfire_ends_in_words(sandbox: Sandbox, callfire: TroubledCallFire) -> None:
    """503 until the time limit is over."""
    callfire.strike("DeleteSubscription", When.BEFORE, Trouble.UNAVAILABLE, times=99)
    with pytest.raises(Unavailable, match=r"not available \(HTTP 503\).*Run the command again"):
        account_at(callfire.url, sandbox, timeout=1.0).delete("1", None)


def test_after_one_vain_repetition_the_others_try_once(sandbox: Sandbox, callfire: TroubledCallFire) -> None:
    """Five hundred resources must not wait for five hundred time limits."""
    account = account_at(callfire.url, sandbox, timeout=1.0)
    callfire.strike("QuerySubscriptions", When.BEFORE, Trouble.UNAVAILABLE, times=999)
    with pytest.raises(Unavailable):
        account.find("1")
    left = len(callfire._strikes)
    with pytest.raises(Unavailable):
        account.find("2")
    assert len(callfire._strikes) == left - 1
    callfire.forget()
    assert account.find("3") is None


def test_threads_that_wait_for_one_listing_share_its_failure(sandbox: Sandbox, callfire: TroubledCallFire) -> None:
    """One after the other, each would wait for its own time-out."""
    account = account_at(callfire.url, sandbox, timeout=1.0)
    for _ in range(9):
        callfire.strike("QuerySubscriptions", When.BEFORE, Trouble.LATE, seconds=5.0)
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(account.find, str(number)) for number in range(1, 5)]
        assert {type(found.exception()) for found in asked} == {TimedOut}
    assert len(callfire._strikes) >= 9 - 2


def test_an_identical_one_is_adopted_and_aligned(sandbox: Sandbox, callfire: TroubledCallFire) -> None:
    """What an interrupted `up` left is taken over; what else differs is put right in one call."""
    made = account_at(callfire.url, sandbox).create({**DECLARED, "enabled": False}, new_request_id())
    claim = account_at(callfire.url, sandbox).create(DECLARED, new_request_id())
    assert claim.adopted
    assert claim.id == made.id
    assert sandbox.subscriptions()[0]["enabled"] is True
    assert callfire.counts["CreateSubscription"] == callfire.counts["UpdateSubscription"] == 1


def test_adoption_can_be_refused(sandbox: Sandbox, callfire: TroubledCallFire) -> None:
    """The error names the id, which an import needs."""
    made = account_at(callfire.url, sandbox).create(DECLARED, new_request_id())
    with pytest.raises(ProviderError, match=rf"Subscription {made.id} on the account is identical, and adopt=False"):
        account_at(callfire.url, sandbox).create(DECLARED, new_request_id(), adopt=False)
    assert callfire.counts["CreateSubscription"] == 1


def test_different_ones_are_not_adopted(sandbox: Sandbox, callfire: TroubledCallFire) -> None:
    """Another application's subscription is another endpoint, trigger or filter."""
    account = account_at(callfire.url, sandbox)
    account.create(DECLARED, new_request_id())
    for other in (
        {**DECLARED, "endpoint": DECLARED["endpoint"] + "0"},
        {**DECLARED, "trigger_event": "INBOUND_CALL_FINISHED"},
        {**DECLARED, "filter": {"to_number": "18186469991"}},
    ):
        assert not account_at(callfire.url, sandbox).create(other, new_request_id()).adopted
    assert len(sandbox.subscriptions()) == 4


def test_what_another_resource_holds_is_not_adopted(sandbox: Sandbox, callfire: TroubledCallFire) -> None:
    """A resource that keeps its subscription, or moves it away by an update, has said so in its diff."""
    made = account_at(callfire.url, sandbox).create(DECLARED, "urn:first")
    account = account_at(callfire.url, sandbox)
    assert account.hold(made.id, "urn:first")
    assert account.create(DECLARED, "urn:second").id != made.id


def test_what_was_adopted_is_not_deleted_for_its_former_resource(sandbox: Sandbox, callfire: TroubledCallFire) -> None:
    """A resource under a new name is created, then deleted under the old one; CallFire must not lose it."""
    made = account_at(callfire.url, sandbox).create(DECLARED, "urn:old name")
    account = account_at(callfire.url, sandbox)
    assert account.create(DECLARED, "urn:new name").id == made.id
    assert account.delete(made.id, "urn:old name") is False
    assert len(sandbox.subscriptions()) == 1
    assert account.hold(made.id, "urn:old name") is False


def test_two_creates_of_the_same_at_once_are_refused(sandbox: Sandbox, callfire: TroubledCallFire) -> None:
    """The check cannot see values that are known late; the account sees them all."""
    account = account_at(callfire.url, sandbox)
    account.find("1")
    held = callfire.strike("CreateSubscription", When.BEFORE, Trouble.HOLD)
    first = threading.Thread(target=account.create, args=(DECLARED, new_request_id()))
    first.start()
    held.wait()
    with pytest.raises(ProviderError, match="Another resource of this program declares the same"):
        account.create(DECLARED, new_request_id())
    held.release()
    first.join()
    assert len(sandbox.subscriptions()) == 1


def test_each_refusal_has_its_own_words(sandbox: Sandbox) -> None:
    """A person reads one paragraph and knows what to do."""
    account = account_at(sandbox.url, sandbox)
    with pytest.raises(NotFound, match=r"NOT_FOUND.*pulumi refresh"):
        account.get("99")
    with pytest.raises(NotFound):
        account.update("99", {"enabled": False})
    with pytest.raises(BadRequest, match=r"BAD_REQUEST.*TriggerEvent is required"):
        account.create({"endpoint": DECLARED["endpoint"]}, new_request_id())
    with pytest.raises(UnexpectedAnswer, match=r"HTTP 404.*callfire:url"):
        account_at(sandbox.url + "/elsewhere", sandbox).find("1")
    wrong = Settings(sandbox.login, Secret("wrong"), sandbox.url)
    with pytest.raises(PasswordRefused, match=r"HTTP 401.*last `up`.*CALLFIRE_PASSWORD.*--run-program"):
        Account(lambda: CallFire(wrong), 1.0).find("1")


def test_a_refused_password_is_named_where_it_came_from(sandbox: Sandbox) -> None:
    """Who left an old one in the environment would correct the stack's in vain."""
    stack = {"callfire:login": sandbox.login, "callfire:password": sandbox.password, "callfire:url": sandbox.url}
    wrong = read_settings(stack.get, {"CALLFIRE_PASSWORD": "wrong"})
    with pytest.raises(PasswordRefused, match=r"HTTP 401.* CALLFIRE_PASSWORD in the environment won over the stack"):
        CallFire(wrong).query(0)


def test_another_answer_is_not_taken_for_an_empty_account(sandbox: Sandbox, callfire: TroubledCallFire) -> None:
    """A refresh would give up everything, and an `up` make it all again."""
    callfire.strike("QuerySubscriptions", When.BEFORE, Trouble.OTHER_ANSWER)
    with pytest.raises(UnexpectedAnswer, match="without its list of subscriptions"):
        account_at(callfire.url, sandbox).find("1")
    callfire.strike("CreateSubscription", When.BEFORE, Trouble.OTHER_ANSWER)
    with pytest.raises(UnexpectedAnswer, match="without the id"):
        account_at(callfire.url, sandbox).create(DECLARED, new_request_id())
    callfire.strike("GetSubscription", When.BEFORE, Trouble.OTHER_ANSWER)
    with pytest.raises(UnexpectedAnswer, match="without subscription 7"):
        account_at(callfire.url, sandbox).get("7")


def test_a_certificate_authority_that_is_not_there_is_named(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words of TLS, with the path."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent")
    with pytest.raises(TlsRefused, match=r"/nonexistent.*REQUESTS_CA_BUNDLE"):
        account_at(sandbox.url.replace("http://", "https://"), sandbox, timeout=1.0).find("1")


def test_no_connection_has_its_own_words(sandbox: Sandbox, free_port: int) -> None:
    """Refused, without TLS where TLS was asked, and a name that does not exist."""
    with pytest.raises(Unreachable, match=r"Connection refused.*callfire:url"):
        account_at(f"http://127.0.0.1:{free_port}", sandbox, timeout=1.0).find("1")
    with pytest.raises(TlsRefused, match=r"no trusted TLS.*REQUESTS_CA_BUNDLE"):
        account_at(sandbox.url.replace("http://", "https://"), sandbox, timeout=1.0).find("1")
    with pytest.raises((UnknownHost, Unreachable), match="callfire:url"):
        account_at("https://callfire.invalid", sandbox, timeout=1.0).find("1")


def test_a_host_name_that_does_not_resolve_is_named(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """CallFire's; that of a proxy in between is not taken for it."""
    too_long = ".".join(["callfire"] * 32)  # no name server is asked for it
    with pytest.raises(UnknownHost, match=f"CallFire's host name {too_long} does not resolve"):
        account_at(f"https://{too_long}", sandbox, timeout=1.0).find("1")
    monkeypatch.setenv("HTTPS_PROXY", f"http://{too_long}:3128")
    with pytest.raises(Unreachable, match="a proxy in between"):
        account_at("https://callfire.invalid", sandbox, timeout=1.0).find("1")


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on."""
    return free_ports(1)[0]


def test_the_limit_has_its_own_words(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """CallFire's 10,000, which is lowered here because filling an account takes long."""
    monkeypatch.setattr("sandbox.accounts.MAX_SUBSCRIPTIONS", 1)
    account = account_at(sandbox.url, sandbox)
    account.create(DECLARED, new_request_id())
    with pytest.raises(LimitReached, match=r"limit.*10,000 subscriptions.*provider sweep"):
        account.create({**DECLARED, "trigger_event": "INBOUND_CALL_FINISHED"}, new_request_id())


@pytest.mark.parametrize("fault", ["UNAVAILABLE", "TIMEOUT"])
def test_a_rate_limit_is_not_the_limit_of_the_account(sandbox: Sandbox, fault: str) -> None:
    """What will do in a moment is repeated, whatever its message speaks of."""
    message = "Rate limit of the subscription service reached"
    sandbox.trouble("soap-fault", operation="QuerySubscriptions", fault=fault, message=message, times=1)
    assert account_at(sandbox.url, sandbox).all() == []
    assert sandbox.requests()["QuerySubscriptions"] == 2


def test_http_429_is_repeated_whatever_it_holds(sandbox: Sandbox, callfire: TroubledCallFire) -> None:
    """A fault without CallFire's code is judged by the HTTP status."""
    callfire.strike("QuerySubscriptions", When.BEFORE, Trouble.TOO_MANY)
    assert account_at(callfire.url, sandbox).all() == []


def test_what_callfire_does_not_have_is_not_the_limit_of_the_account(sandbox: Sandbox) -> None:
    """Or a delete would fail for good."""
    message = "no subscription within the limit of your account"
    sandbox.trouble("soap-fault", operation="DeleteSubscription", fault="NOT_FOUND", message=message)
    assert account_at(sandbox.url, sandbox).delete("7", None)


def test_a_listing_that_changes_while_it_is_read_is_read_again(sandbox: Sandbox, callfire: TroubledCallFire) -> None:
    """One that moves between the pages would be missed: given up by a refresh, made twice by an `up`."""
    fill(sandbox, 1001)
    first, *_, last = sandbox.subscriptions()
    passed = callfire.strike("QuerySubscriptions", When.BEFORE, Trouble.HOLD)
    passed.release()
    held = callfire.strike("QuerySubscriptions", When.BEFORE, Trouble.HOLD)
    account = account_at(callfire.url, sandbox)
    with ThreadPoolExecutor(1) as threads:
        found = threads.submit(account.find, last["id"])
        held.wait()
        sandbox.delete_subscription(first["id"])
        held.release()
        assert found.result() is not None
    assert len(account.all()) == 1000
    assert callfire.counts["GetSubscription"] == 0


def test_an_account_that_never_settles_has_its_own_words(sandbox: Sandbox, callfire: TroubledCallFire) -> None:
    """Nothing is concluded from such a listing."""
    fill(sandbox, 1000 + 2 * LISTINGS)
    strikes = [callfire.strike("QuerySubscriptions", When.BEFORE, Trouble.HOLD) for _ in range(2 * LISTINGS)]
    with ThreadPoolExecutor(1) as threads:
        found = threads.submit(account_at(callfire.url, sandbox).find, "1")
        for number, strike in enumerate(strikes):
            strike.wait()
            if number % 2:
                sandbox.delete_subscription(sandbox.subscriptions()[0]["id"])
            strike.release()
        with pytest.raises(Unsettled, match="Another program is creating or deleting"):
            found.result()


def test_what_a_listing_lacks_is_asked_for(sandbox: Sandbox, callfire: TroubledCallFire) -> None:
    """Only CallFire's own word that it is gone counts, and a listing that lags behind is not that."""

    class Lagging(CallFire):
        def query(self, first: int) -> Page:
            page = super().query(first)
            return Page(page.total - 1, page.subscriptions[:-1])

    fill(sandbox, 2)
    listed, lacking = (held["id"] for held in sandbox.subscriptions())
    settings = Settings(sandbox.login, Secret(sandbox.password), callfire.url, timeout=6.0)
    account = Account(lambda: Lagging(settings), 6.0)
    for id_ in (listed, lacking):
        found = account.find(id_)
        assert found is not None
        assert found.id == id_
    assert callfire.counts == {"QuerySubscriptions": 1, "GetSubscription": 1}
    assert account.find("7") is None


def fill(sandbox: Sandbox, count: int) -> None:
    """Put subscriptions of some other application on the account."""
    hooks = [{"endpoint": f"https://crm.example.com/{n}", "trigger_event": "CAMPAIGN_FINISHED"} for n in range(count)]
    sandbox.plant({"subscriptions": hooks})


def test_api_1_0_has_no_trigger(sandbox: Sandbox) -> None:
    """At the 1.0 address, with the inbound filter instead."""
    account = account_at(sandbox.url, sandbox, api_version="1.0")
    properties = {"endpoint": DECLARED["endpoint"], "enabled": True, "filter": {"inbound": True}}
    id_ = account.create({**properties, "notification_format": "XML"}, new_request_id()).id
    held = account_at(sandbox.url, sandbox, api_version="1.0").find(id_)
    assert held is not None
    assert "trigger_event" not in held.properties
    assert held.properties["filter"] == {"inbound": True}
    assert sandbox.subscriptions()[0]["filter"]["inbound"] is True


def test_errors_reach_the_engine_without_secrets_and_without_a_traceback(
    sandbox: Sandbox, callfire: TroubledCallFire
) -> None:
    """Whatever CallFire echoes."""
    config = {
        "callfire:url": callfire.url,
        "callfire:login": sandbox.login,
        "callfire:password": sandbox.password,
        "callfire:timeout": "1",
    }
    with ProviderServer(config) as server:
        inputs = server.inputs(DECLARED)
        callfire.strike("CreateSubscription", When.BEFORE, Trouble.UNAVAILABLE, times=99)
        with pytest.raises(ProviderFailure) as failure:
            server.create(inputs)
    text = str(failure.value)
    assert text.startswith("Creating subscription texts for https://mail.example.com/… failed. CallFire is not")
    assert "The next `pulumi up` looks for it first." in text
    assert "Traceback" not in text
    assert TOKEN not in text
    assert TOKEN not in "".join(server.lines())


def test_a_line_is_written_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread of the provider writes its own: of two pieces, another's line could stand between."""
    written: list[str] = []
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, SimpleNamespace(write=written.append, flush=lambda: None))

    def call(number: int) -> None:
        if number == 1:
            raise Unavailable("CallFire is not available (HTTP 503).")

    say("Subscription texts: adopted.")
    repeat(call, 60)
    assert list(filter(None, written)) == [
        "Subscription texts: adopted.\n",
        "CallFire is not available (HTTP 503). Trying again for up to 60 s.\n",
    ]
