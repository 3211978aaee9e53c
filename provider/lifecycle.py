"""What happens to a subscription resource, step by step: from Pulumi's properties to the account and back.

It may raise anything of `errors.py`; `controller.py` puts the resource's name and the redaction around it.
"""

import os
from collections.abc import Callable
from typing import Any

from pulumi import dynamic
from pulumi.runtime import rpc

from provider.account import Account, account_of
from provider.controller import NAME
from provider.declaration import Problem, check, is_known
from provider.difference import compare
from provider.errors import NotFound
from provider.remote import RemoteSubscription, identity, new_request_id
from provider.settings import Settings, collect_settings, read_settings

Properties = dict[str, Any]

RECORD = "__record"
"""Hidden output: which record of a state holds the subscription. A renamed resource is two records with one id."""

HIDDEN = (NAME, RECORD, "__provider")


class Lifecycle:
    """The steps of one resource.

    Args:
        lookup: the stack's configuration.
    """

    def __init__(self, lookup: Callable[[str], str | None]) -> None:
        self._lookup = lookup

    def check(self, news: Properties) -> dynamic.CheckResult:
        """Return the canonical inputs, or every mistake in them and in the settings."""
        settings, problems = collect_settings(self._lookup, os.environ)
        failures = [dynamic.CheckFailure("", problem) for problem in problems]
        checked = check(_visible(news), settings.api_version if settings else "1.1")
        failures += [_failure(problem) for problem in checked.problems]
        if failures or settings is None:
            return dynamic.CheckResult(_without_provider(news), failures)
        for warning in checked.warnings:
            say(f"warning: subscription {news.get(NAME)}: {warning}")
        inputs = {**checked.properties, **({NAME: news[NAME]} if NAME in news else {})}
        return dynamic.CheckResult(inputs, _other_declaration(settings, inputs))

    def diff(self, id_: str, olds: Properties, news: Properties) -> dynamic.DiffResult:
        """Compare the state with what is declared.

        A subscription that another resource of this program has adopted meanwhile is left to it: what would have been
        an update of this one becomes a replacement.
        """
        difference = compare(olds, news)
        replaces = list(difference.replaces)
        if not replaces and not self._account().hold(id_, olds.get(RECORD)):
            replaces = list(difference.updates)
        return dynamic.DiffResult(
            changes=bool(difference),
            replaces=sorted({name.partition(".")[0] for name in replaces}),
            delete_before_replace=False,
        )

    def create(self, props: Properties) -> dynamic.CreateResult:
        """Adopt or create; the outputs are ready before the call, so that nothing can fail after it."""
        request_id = new_request_id()
        outs = {**_without_provider(props), RECORD: request_id}
        claim = self._account().create(_visible(props), request_id, adopt=props.get("adopt", True))
        if claim.adopted:
            say(f"Subscription {props.get(NAME)}: adopted {claim.id}, which was on the account and is identical.")
        if claim.others:
            say(f"warning: subscription {props.get(NAME)}: also identical, and nobody's: {', '.join(claim.others)}.")
        return dynamic.CreateResult(claim.id, outs)

    def read(self, id_: str, props: Properties) -> dynamic.ReadResult:
        """Return the properties as CallFire holds them, as outputs and as inputs, or an empty id when it is gone.

        Without drift the state stays as it is, to the byte, and its inputs need not travel again.
        """
        refresh = "endpoint" in props  # `Subscription.get` knows the id alone
        found = self._account().find(id_) if refresh else self._get(id_)
        if found is None:
            return dynamic.ReadResult("", {})
        if refresh and not compare(props, found.properties):
            return dynamic.ReadResult(id_, _without_provider(props))
        hidden = {name: props[name] for name in (NAME, RECORD) if name in props}
        outs = {**found.properties, "adopt": props.get("adopt", True), **hidden}
        inputs = {name: value for name, value in outs.items() if name != RECORD}
        return dynamic.ReadResult(id_, outs, {**inputs, "endpoint": _secret(outs["endpoint"])})

    def update(self, id_: str, olds: Properties, news: Properties) -> dynamic.UpdateResult:
        """Send what changed, in one call."""
        outs = _without_provider(news)
        if RECORD in olds:
            outs[RECORD] = olds[RECORD]
        changes = compare(olds, news).changes
        if changes:
            self._account().update(id_, changes)
        return dynamic.UpdateResult(outs)

    def delete(self, id_: str, props: Properties) -> None:
        """Delete, unless another resource holds the subscription now."""
        if not self._account().delete(id_, props.get(RECORD)):
            say(f"Subscription {props.get(NAME)}: {id_} stays, because another resource of this program holds it now.")

    def _get(self, id_: str) -> RemoteSubscription:
        try:
            return self._account().get(id_)
        except NotFound as error:
            raise NotFound(error.said, "`python -m provider list` shows the ids of the account.") from None

    def _account(self) -> Account:
        return account_of(read_settings(self._lookup))


def say(text: str) -> None:
    """Show a line in the CLI's output, which passes on what a provider writes."""
    print(f"{text}\n", end="", flush=True)  # noqa: T201 - how a dynamic provider speaks; in one piece, as in retrying.py


def _secret(value: str) -> dict[str, str]:
    """Mark an input as a secret on the wire: the engine knows by itself only what the program marked."""
    return {rpc._special_sig_key: rpc._special_secret_sig, "value": value}  # noqa: SLF001 - the SDK has no other name


def _other_declaration(settings: Settings, inputs: Properties) -> list[dynamic.CheckFailure]:
    if not is_known(inputs) or NAME not in inputs:
        return []
    other = account_of(settings).declare(identity(inputs), inputs[NAME])
    if other is None:
        return []
    reason = f"endpoint, trigger_event and filter are those of the resource {other!r} too: "
    remedy = "CallFire would post each event twice. Keep one of the two, or give them different filters"
    return [dynamic.CheckFailure("", reason + remedy)]


def _failure(problem: Problem) -> dynamic.CheckFailure:
    """Name the property in the reason alone where the engine would print its value, secret or not, beside its name."""
    if problem.property == "endpoint" or "." in problem.property:
        return dynamic.CheckFailure("", f"{problem.property} {problem.reason}")
    return dynamic.CheckFailure(problem.property, problem.reason)


def _visible(props: Properties) -> Properties:
    return {name: value for name, value in props.items() if name not in HIDDEN}


def _without_provider(props: Properties) -> Properties:
    return {name: value for name, value in props.items() if name != "__provider"}
