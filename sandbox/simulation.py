"""Everything that a sandbox holds and the things that can be made to happen in it; no HTTP, no SMTP.

Owned by one event loop. The emulated API, the control API, the page and the Python object are views of it. What comes
in from people and programs are JSON documents, and so is what goes out to them.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from sandbox import inputs
from sandbox.accounts import Account, Accounts, Quirks
from sandbox.calls import CallLog
from sandbox.errors import BusyError, InvalidInputError, NotFoundError, WaitTimeoutError
from sandbox.events import Call, CallResult, Campaign, CampaignChange, Event, Text, compose_email, timestamp
from sandbox.inputs import Field, read_document
from sandbox.journal import BoundedLog, Feed, Topic
from sandbox.mailbox import Mail, Mailbox, threads
from sandbox.postbacks import PostbackSender
from sandbox.soap import SoapFault, SubscriptionFields
from sandbox.subscriptions import NotificationFormat, Subscription, TriggerEvent
from sandbox.trouble import Troubles

LOGIN = "sandbox"
PASSWORD = "sandbox-password"  # noqa: S105 - fixed and printed: it protects nothing
MAX_ACCOUNTS = 100

CALLFIRE_MAIL = "notifications@callfire.example"
"""Sender of EMAIL notifications; CallFire's own is not known."""

Document = dict[str, Any]

_ACTION_FIELDS = {
    "account": Field(inputs.string),
    "id": Field(inputs.ident),
    "from": Field(inputs.number, required=True),
    "to": Field(inputs.number, required=True),
    "inbound": Field(inputs.boolean, default=True),
    "created": Field(inputs.moment),
    "batch_id": Field(inputs.ident),
    "broadcast_id": Field(inputs.ident),
}
_TEXT_FIELDS = {**_ACTION_FIELDS, "message": Field(inputs.message, required=True)}
_CALL_FIELDS = {
    **_ACTION_FIELDS,
    "duration": Field(inputs.seconds(24 * 3600), default=3),
    "result": Field(inputs.one_of(CallResult), default=CallResult.LA),
}
_CAMPAIGN_FIELDS = {
    "account": Field(inputs.string),
    "id": Field(inputs.ident),
    "name": Field(inputs.string, default="Sandbox campaign"),
    "change": Field(inputs.one_of(CampaignChange), default=CampaignChange.FINISHED),
    "from": Field(inputs.number, default="67076"),
    "message": Field(inputs.message, default="Hello, CallFire!"),
    "created": Field(inputs.moment),
}
_ACCOUNT_FIELDS = {
    "login": Field(inputs.login, required=True),
    "password": Field(inputs.string, required=True),
}
_FILTER_FIELDS = {
    "broadcast_id": Field(inputs.ident),
    "batch_id": Field(inputs.ident),
    "from_number": Field(inputs.number),
    "to_number": Field(inputs.number),
    "inbound": Field(inputs.boolean),
}
_SUBSCRIPTION_FIELDS = {
    "account": Field(inputs.string),
    "id": Field(inputs.ident),
    "enabled": Field(inputs.boolean),
    "endpoint": Field(inputs.endpoint),
    "notification_format": Field(inputs.one_of(NotificationFormat)),
    "trigger_event": Field(inputs.one_of(TriggerEvent)),
    "non_strict_ssl": Field(inputs.boolean),
    "expires_at": Field(inputs.count),
    "filter": Field(lambda given: read_document(given, _FILTER_FIELDS, "a filter")),
}
_ID_FIELDS = {
    kind: Field(inputs.first_id) for kind in ("text", "call", "campaign", "record", "subscription", "contact")
}
_QUIRK_FIELDS = {"dedupe_request_ids": Field(inputs.boolean), "update_replaces_filter": Field(inputs.boolean)}
_SEED_FIELDS = {
    "quirks": Field(inputs.mapping, default={}),
    "accounts": Field(inputs.documents, default=[]),
    "subscriptions": Field(inputs.documents, default=[]),
    "texts": Field(inputs.documents, default=[]),
    "ids": Field(lambda given: read_document(given, _ID_FIELDS, "ids"), default={}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """One event of an account, in the order in which they happened. The same event may happen again."""

    id: int
    account: str
    event: Event

    def size(self) -> int:
        """Roughly its bytes in memory."""
        return 2000 + len(getattr(self.event, "message", ""))

    def as_json(self) -> Document:
        """The event as the control API shows it; ids are strings, as JavaScript cannot hold every xs:long."""
        shown = {field.name: _shown(field.name, getattr(self.event, field.name)) for field in fields(self.event)}
        return {"sequence": self.id, "account": self.account, "trigger": self.event.facts().trigger, **shown}


def _shown(name: str, value: object) -> object:
    if isinstance(value, datetime):
        return timestamp(value)
    return str(value) if value is not None and (name == "id" or name.endswith("_id")) else value


class Ids:
    """Draws ids in CallFire's look.

    Subscriptions get the same ids after every reset. Events never do, not even in the next sandbox, unless a seed says
    so: a receiver that outlives it knows a text by its id, and would take a new text with an old id for a repetition.
    """

    def __init__(self) -> None:
        self.next: dict[str, int] = {}
        self.reset()

    def draw(self, kind: str) -> int:
        """The next id of a kind of thing."""
        ident = self.next[kind]
        self.next[kind] = ident + (1000 if kind in {"subscription", "contact"} else 1)
        return ident

    def reset(self) -> None:
        """Start over."""
        now = time.time_ns() // 1_000_000 * 1000 + 1
        events = dict.fromkeys(("text", "call", "campaign", "record"), now)
        self.next = {"subscription": 19001, "contact": 1418291001} | events


class Simulation:
    """One sandbox's accounts, events, postbacks and mailbox.

    Args:
        login: of the default account.
        password: of the default account.
        postback_timeout: seconds that an endpoint has to answer.
        seed: what there is at the beginning and after a reset, as `POST /control/seed` takes it.
    """

    def __init__(
        self, login: str, password: str, postback_timeout: float = 30.0, seed: Mapping[str, object] | None = None
    ) -> None:
        self.login = login
        self.feed = Feed()
        self.ids = Ids()
        self.accounts = Accounts()
        self.quirks = Quirks()
        self.troubles = Troubles()
        self.calls = CallLog(self.feed)
        self.mailbox = Mailbox(self.feed)
        self.sender = PostbackSender(self.feed, self._mail_notification, self.troubles, postback_timeout)
        self.events: BoundedLog[Happening] = BoundedLog(max_entries=5000, max_bytes=64 * 1024 * 1024)
        self._password = password
        self._seed = seed or {}
        self._sequence = count(1)
        self._ending = asyncio.Event()
        self._begin()

    # Accounts and subscriptions

    def account(self, login: str | None = None) -> Account:
        """The account with that login; None is the default account.

        Raises:
            NotFoundError: there is none.
        """
        account = self.accounts.get(login or self.login)
        if account is None:
            raise NotFoundError(f"no account {login!r} in the sandbox")
        return account

    def add_account(self, document: Mapping[str, object]) -> Document:
        """A further account, or a new password for one that there is.

        Raises:
            InvalidInputError: lists what is wrong with the document.
            BusyError: there are too many accounts.
        """
        given = read_document(document, _ACCOUNT_FIELDS, "an account")
        if self.accounts.get(given["login"]) is None and len(self.accounts) >= MAX_ACCOUNTS:
            raise BusyError(f"there are {MAX_ACCOUNTS} accounts already; a reset removes them")
        account = self.accounts.add(**given)
        self.feed.publish(Topic.ACCOUNTS)
        return {"login": account.login, "password": account.password}

    def subscriptions(self, login: str | None = None) -> list[Document]:
        """All fields of the subscriptions of one account, or of all of them."""
        accounts = [self.account(login)] if login else self.accounts
        return [
            {"account": account.login, **subscription.as_json()}
            for account in accounts
            for subscription in account.subscriptions.values()
        ]

    def create_subscription(self, document: Mapping[str, object]) -> Document:
        """A subscription that no client of the emulated API made.

        Raises:
            InvalidInputError: lists what is wrong with the document.
        """
        account, asked = self._read_subscription(document)
        ident = asked.id
        if ident is not None and self._holder(ident):
            raise InvalidInputError(f"a subscription: there is one with id {ident} already")
        draw = self.new_subscription_id if ident is None else lambda: ident
        subscription = _unsoaped(lambda: account.create(asked, draw, "1.1"))
        self.feed.publish(Topic.SUBSCRIPTIONS)
        return {"account": account.login, **subscription.as_json()}

    def change_subscription(self, ident: int, document: Mapping[str, object]) -> Document:
        """Change fields behind the back of the emulated API's clients. A filter is replaced as a whole.

        Raises:
            NotFoundError: there is no such subscription.
            InvalidInputError: lists what is wrong with the document.
        """
        account = self._holder(ident)
        if account is None:
            raise NotFoundError(f"no subscription {ident} in any account")
        _, asked = self._read_subscription({**document, "id": ident})
        subscription = _unsoaped(lambda: account.update(asked, replace_filter=True))
        self.feed.publish(Topic.SUBSCRIPTIONS)
        return {"account": account.login, **subscription.as_json()}

    def delete_subscription(self, ident: int) -> Document:
        """Remove a subscription behind the back of the emulated API's clients.

        Raises:
            NotFoundError: there is no such subscription.
        """
        account = self._holder(ident)
        if account is None:
            raise NotFoundError(f"no subscription {ident} in any account")
        subscription = account.delete(ident)
        self.feed.publish(Topic.SUBSCRIPTIONS)
        return {"account": account.login, **subscription.as_json()}

    def new_subscription_id(self) -> int:
        """The id of the next subscription."""
        while self._holder(ident := self.ids.draw("subscription")):
            pass
        return ident

    def set_quirks(self, document: Mapping[str, object]) -> Document:
        """Switch what is not known about CallFire.

        Raises:
            InvalidInputError: lists what is wrong with the document.
        """
        for name, value in read_document(document, _QUIRK_FIELDS, "quirks").items():
            if value is not None:
                setattr(self.quirks, name, value)
        self.feed.publish(Topic.ACCOUNTS)
        return asdict(self.quirks)

    # Events

    def send_text(self, document: Mapping[str, object]) -> Document:
        """A text is received or sent, as `POST /control/texts` has it.

        Raises:
            InvalidInputError: lists what is wrong with the document.
            BusyError: too many postbacks wait; nothing happened.
        """
        account, text = self._read_text(document)
        return self._happen(account, text)

    def make_call(self, document: Mapping[str, object]) -> Document:
        """A phone call has ended, as `POST /control/calls` has it. Raises as `send_text` does."""
        given = read_document(document, _CALL_FIELDS, "a call")
        account = self.account(given["account"])
        duration = int(given["duration"])
        call = Call(**self._action(given, "call", duration), duration=duration, result=given["result"])
        return self._happen(account, call)

    def run_campaign(self, document: Mapping[str, object]) -> Document:
        """A campaign has started, stopped or finished, as `POST /control/campaigns` has it. Raises as `send_text`."""
        given = read_document(document, _CAMPAIGN_FIELDS, "a campaign")
        account = self.account(given["account"])
        created = given["created"] or _now()
        campaign = Campaign(
            id=given["id"] or self.ids.draw("campaign"),
            name=given["name"],
            change=given["change"],
            from_number=given["from"],
            message=given["message"],
            created=created,
            modified=created,
        )
        return self._happen(account, campaign)

    def resend(self, ident: int) -> Document:
        """Post once more what a postback said.

        Raises:
            NotFoundError: the log has no such postback.
            BusyError: too many postbacks wait.
        """
        return self.sender.resend(ident).as_json()

    async def postback(self, ident: int, timeout: float) -> Document:  # noqa: ASYNC109
        """One postback, as soon as it is over; as it stands where it is not in time.

        Raises:
            NotFoundError: the log has no such postback.
        """
        found = self.sender.log.get(ident)
        if found is None:
            raise NotFoundError(f"no postback {ident} in the log")
        with suppress(WaitTimeoutError):
            await self.feed.wait_for(lambda: found if found.state.over else None, timeout, f"postback {ident}")
        return found.as_json()

    async def wait_for_postback(self, after: int, timeout: float) -> Document:  # noqa: ASYNC109
        """The oldest postback with a greater id that is over: answered, failed or lost.

        Raises:
            WaitTimeoutError: none was, in time.
        """
        log = self.sender.log
        found = await self.feed.wait_for(
            lambda: log.after(after, lambda postback: postback.state.over), timeout, f"a postback after id {after}"
        )
        return found.as_json()

    # Mail

    def thread_list(self, limit: int | None = None) -> list[Document]:
        """The newest mails by conversation, the newest conversation first."""
        return [
            {"subject": mails[0].subject, "messages": [mail.as_json() for mail in mails]}
            for mails in threads(self.mailbox.mails.newest(limit))
        ]

    def mail(self, ident: int) -> Mail:
        """One mail.

        Raises:
            NotFoundError: the mailbox has none with that id.
        """
        mail = self.mailbox.mails.get(ident)
        if mail is None:
            raise NotFoundError(f"no mail {ident} in the mailbox")
        return mail

    async def wait_for_mail(self, after: int, timeout: float) -> Document:  # noqa: ASYNC109
        """The oldest mail with a greater id.

        Raises:
            WaitTimeoutError: none came in time.
        """
        mails = self.mailbox.mails
        found = await self.feed.wait_for(lambda: mails.after(after), timeout, f"a mail after id {after}")
        return found.as_json()

    # The sandbox as a whole

    def add_trouble(self, document: Mapping[str, object]) -> Document:
        """A rule for what is to go wrong, as `POST /control/trouble` has it.

        Raises:
            InvalidInputError: lists what is wrong with the document.
            BusyError: there are too many rules.
        """
        rule = self.troubles.add(document)
        self.feed.publish(Topic.TROUBLE)
        return rule.as_json()

    def remove_trouble(self, ident: int | None = None) -> None:
        """Take back one rule, or all of them.

        Raises:
            NotFoundError: there is no such rule.
        """
        if ident is None:
            self.troubles.clear()
        else:
            self.troubles.remove(ident)
        self.feed.publish(Topic.TROUBLE)

    def plant(self, document: Mapping[str, object]) -> Document:
        """Add accounts, subscriptions and past texts; a seed's texts are history and cause no postback.

        Returns:
            How many of each were added.

        Raises:
            InvalidInputError: lists what is wrong; what stands before the mistake has been added.
        """
        seed = read_document(document, _SEED_FIELDS, "a seed")
        self.set_quirks(seed["quirks"])
        for account in seed["accounts"]:
            self.add_account(account)
        for subscription in seed["subscriptions"]:
            self.create_subscription(subscription)
        for text in seed["texts"]:
            self._record(*self._read_text(text))
        self.ids.next.update({kind: first for kind, first in seed["ids"].items() if first is not None})
        return {name: len(seed[name]) for name in ("accounts", "subscriptions", "texts")}

    def state(self) -> Document:
        """What a state file keeps - accounts, subscriptions, quirks, ids - in the form of a seed."""
        return {
            "quirks": asdict(self.quirks),
            "accounts": [{"login": account.login, "password": account.password} for account in self.accounts],
            "subscriptions": self.subscriptions(),
            "ids": dict(self.ids.next),
        }

    def restore(self, document: Mapping[str, object]) -> None:
        """Put what `state` gave in the place of the seed. Raises as `plant` does."""
        self.accounts.clear()
        self.events.clear()
        self.accounts.add(self.login, self._password)
        self.plant(document)

    async def reset(self) -> None:
        """Back to the beginning: the default account and the seed, nothing else, nothing logged, ids from the start."""
        await self.sender.abandon()
        self.sender.reset()
        self.accounts.clear()
        self.quirks.reset()
        self.troubles.clear()
        self.ids.reset()
        self.calls.clear()
        self.mailbox.clear()
        self.events.clear()
        self._sequence = count(1)
        self._begin()
        self.feed.publish(*Topic)

    async def pause(self, seconds: float | None) -> None:
        """Wait so many seconds, or for ever; not beyond the end of the sandbox."""
        try:
            async with asyncio.timeout(seconds):
                await self._ending.wait()
        except TimeoutError:
            pass

    async def end(self) -> None:
        """Stop everything that is under way."""
        self._ending.set()
        self.feed.close()
        await self.sender.stop()

    def _begin(self) -> None:
        self.accounts.add(self.login, self._password)
        self.plant(self._seed)

    def _holder(self, ident: int) -> Account | None:
        return next((account for account in self.accounts if ident in account.subscriptions), None)

    def _read_subscription(self, document: Mapping[str, object]) -> tuple[Account, SubscriptionFields]:
        given = read_document(document, _SUBSCRIPTION_FIELDS, "a subscription")
        account, ident, filters = self.account(given.pop("account")), given.pop("id"), given.pop("filter")
        fields = {name: value for name, value in given.items() if value is not None}
        return account, SubscriptionFields(ident, fields, filters)

    def _read_text(self, document: Mapping[str, object]) -> tuple[Account, Text]:
        given = read_document(document, _TEXT_FIELDS, "a text")
        return self.account(given["account"]), Text(**self._action(given, "text"), message=given["message"])

    def _action(self, given: Mapping[str, Any], kind: str, seconds: int = 0) -> Document:
        created = given["created"] or _now()
        return {
            "id": given["id"] or self.ids.draw(kind),
            "from_number": given["from"],
            "to_number": given["to"],
            "inbound": given["inbound"],
            "created": created,
            "modified": created + timedelta(seconds=seconds),
            "contact_id": self.ids.draw("contact"),
            "record_id": self.ids.draw("record"),
            "batch_id": given["batch_id"],
            "broadcast_id": given["broadcast_id"],
        }

    def _happen(self, account: Account, event: Event) -> Document:
        """Announce an event to the subscriptions, record it, and tell both."""
        postbacks = self.sender.announce(account, event)
        happening = self._record(account, event)
        return {**happening.as_json(), "postbacks": [postback.id for postback in postbacks]}

    def _record(self, account: Account, event: Event) -> Happening:
        happening = Happening(id=next(self._sequence), account=account.login, event=event)
        self.events.add(happening)
        self.feed.publish(Topic.EVENTS)
        return happening

    def _mail_notification(self, address: str, event: Event, subscription_id: int) -> None:
        self.mailbox.add(CALLFIRE_MAIL, [address], compose_email(event, subscription_id, CALLFIRE_MAIL, address))


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _unsoaped(work: Callable[[], Subscription]) -> Subscription:
    """What goes wrong in an account is a fault to SOAP clients and bad input to everybody else."""
    try:
        return work()
    except SoapFault as fault:
        raise InvalidInputError(f"a subscription: {fault.message}") from fault
