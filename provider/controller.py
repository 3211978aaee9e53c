"""The dynamic provider: what Pulumi calls, and the wall that keeps everything but this project's errors inside.

**The import path `provider.controller.SubscriptionProvider` is frozen.** Every state of every stack names it (Pulumi
stores the class by reference), so it must be importable from here for ever, without arguments, and without instance
attributes before `configure`. A test loads a recorded reference.

It must never show a secret, let a traceback or SystemExit through (one would drown the message, the other hang the
CLI), or import what only a call needs: programs import this module to name the class.
"""

import os
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from pulumi import dynamic

from provider.errors import InvalidSettings, ProviderError
from provider.redaction import describe_endpoint, endpoint_secrets, redact
from provider.server import end_with_the_engine, show_errors_without_traceback

if TYPE_CHECKING:
    from provider.lifecycle import Lifecycle

T = TypeVar("T")
Properties = dict[str, Any]

NAME = "__name"
"""Hidden input: the resource's name, for messages and to tell two resources apart. Pulumi shows no `__` property."""


class SubscriptionProvider(dynamic.ResourceProvider):
    """Check, diff, create, read, update and delete one kind of resource: a CallFire subscription."""

    serialize_as_secret_always = False
    """It holds nothing, so it is stored in plain text: 40 bytes that name this class."""

    _lookup: Callable[[str], str | None] | None = None

    def configure(self, req: dynamic.ConfigureRequest) -> None:
        """Keep the stack's configuration; it is read when the first method needs it, where errors can be shown."""
        self._lookup = req.config.get
        show_errors_without_traceback()
        end_with_the_engine()

    def check(self, _olds: Properties, news: Properties) -> dynamic.CheckResult:
        """Normalise the arguments and report all mistakes at once."""
        return self._guard("Checking", news, lambda life: life.check(news))

    def diff(self, id_: str, olds: Properties, news: Properties) -> dynamic.DiffResult:
        """Say whether what is declared differs from what is, and whether an update can cure it."""
        return self._guard("Comparing", news, lambda life: life.diff(id_, olds, news), id_, olds)

    def create(self, props: Properties) -> dynamic.CreateResult:
        """Adopt the identical subscription that an interrupted `up` left, or create one."""
        return self._guard("Creating", props, lambda life: life.create(props))

    def read(self, id_: str, props: Properties) -> dynamic.ReadResult:
        """Compare with the account: from the shared listing, or on its own for `Subscription.get`."""
        return self._guard("Reading", props, lambda life: life.read(id_, props), id_)

    def update(self, id_: str, olds: Properties, news: Properties) -> dynamic.UpdateResult:
        """Send what changed."""
        return self._guard("Updating", news, lambda life: life.update(id_, olds, news), id_, olds)

    def delete(self, id_: str, props: Properties) -> None:
        """Delete the subscription; one that is already gone is as good."""
        self._guard("Deleting", props, lambda life: life.delete(id_, props), id_)

    def _guard(
        self, doing: str, props: Properties, work: "Callable[[Lifecycle], T]", id_: str = "", *others: Properties
    ) -> T:
        """Let nothing out but one short paragraph, without the secrets of `props` and of `others`."""
        try:
            from provider.lifecycle import Lifecycle  # noqa: PLC0415 - 0.15 s that programs need not pay

            return work(Lifecycle(self._configured))
        except InvalidSettings as error:
            raise ProviderError(self._redact(str(error), props, *others)) from None
        except ProviderError as error:
            text = f"{doing} {_describe(props, id_)} failed. {error}"
            raise type(error)(self._redact(text, props, *others), "") from None
        except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt would hang the engine for ever
            text = f"{doing} {_describe(props, id_)} failed because of a mistake in this provider: {_where(error)}."
            raise ProviderError(self._redact(text, props, *others), "Please report it.") from None

    def _configured(self, name: str) -> str | None:
        return self._lookup(name) if self._lookup else None

    def _redact(self, text: str, *held: Properties) -> str:
        password = os.environ.get("CALLFIRE_PASSWORD") or self._configured("callfire:password") or ""
        return redact(text, password, *(s for props in held for s in endpoint_secrets(props.get("endpoint"))))


def _describe(props: Properties, id_: str) -> str:
    name = props.get(NAME)
    words = ["subscription", *([name] if isinstance(name, str) else []), *([f"({id_})"] if id_ else [])]
    if props.get("endpoint") is not None:
        words.append(f"for {describe_endpoint(props['endpoint'])}")
    return " ".join(words)


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""  # noqa: PTH119 - a name
    return f"{type(error).__name__}{place}"
