"""Whether a forwarder could run with these settings, here and now: everything is looked at, everything is told."""

import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forwarder.errors import ForwarderError, SettingsError, StartError
from forwarder.handover import log_in
from forwarder.migrations import Version, has_way_back, unusable, version
from forwarder.outbox import Outbox, connect
from forwarder.settings import OutboxPlace, Settings, load_settings


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    problems: tuple[str, ...] = ()
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Nothing is wrong with it."""
        return not self.problems


async def check_everything(
    place: Callable[[], OutboxPlace], settings: Callable[[], Settings] = load_settings
) -> list[Finding]:
    """All findings: settings with routes, templates and contacts; the database; the mail server."""
    told, found = None, []
    try:
        told = settings()
        found.append(Finding("settings", detail=_summary(told)))
    except SettingsError as error:
        found.append(Finding("settings", tuple(str(error).splitlines())))
    try:
        found.append(_look("database", lambda: check_database(told or place())))
    except SettingsError:
        found.append(Finding("database", ("not looked at: its own settings are wrong",)))
    if told is None:
        found.append(Finding("mail server", ("not looked at: the settings are wrong",)))
    else:
        found.append(await _try("mail server", lambda: _log_in(told)))
    return found


def _summary(settings: Settings) -> str:
    routes, contacts = len(settings.routes.entries), len(settings.contacts.names)
    return f"{routes} route{'s' * (routes != 1)} and the default, {contacts} contact{'s' * (contacts != 1)}"


async def _log_in(settings: Settings) -> str:
    server = settings.mail_server
    await log_in(server, settings.mail_tls)
    how = f"logged in as {server.username}" if server.username else "it takes mail without a log-in"
    return f"{server.host}:{server.port}, {server.security}, {how}"


def check_only_database(place: Callable[[], OutboxPlace], *, way_back: int | None) -> list[Finding]:
    """The finding about the database; also whether a release that knows it up to version `way_back` could go on."""
    try:
        return [_look("database", lambda: check_database(place(), way_back=way_back))]
    except SettingsError as error:
        return [Finding("database", tuple(str(error).splitlines()))]


def check_database(place: OutboxPlace, *, way_back: int | None = None) -> str:
    """Where the outbox is, if it could be written; raises ForwarderError. Nothing is made."""
    file = place.sqlite_file
    if file is not None and not file.exists():
        _could_be_made(file.parent)
        return f"{file} will be made at the first start"
    with closing(Outbox(connect(place.outbox_url))) as outbox:
        with outbox.reading() as connection:
            found = version(connection)
            if found is Version.UNUSABLE:
                raise StartError(unusable(connection))
            if way_back is not None and found is Version.EARLIER and not has_way_back(connection, way_back):
                raise StartError(
                    "the release that has used the outbox until now could not use it any more after this one, so there "
                    "would be no way back: upgrade to a release in between first"
                )
        if found is Version.NONE:
            outbox.try_to_migrate()
        else:
            outbox.check_writable()
    return f"{file or 'PostgreSQL'}{_STATES[found]}"


_STATES: Final = {
    Version.NONE: ", empty; its tables will be made at the first start",
    Version.EARLIER: ", an earlier release's; the next start brings it to this one's",
    Version.CURRENT: "",
    Version.NEWER: ", a newer release's, which this one can use",
}


def _could_be_made(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=next(parent for parent in (folder, *folder.parents) if parent.exists())):
            pass
    except OSError as error:
        raise StartError(
            f"the state folder {folder} cannot be written ({error.strerror}); "
            "create it for this user or set FORWARDER_STATE_DIR to another"
        ) from error


def _look(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, detail=look())
    except SettingsError:
        raise
    except ForwarderError as error:
        return Finding(what, (str(error),))


async def _try(what: str, attempt: Callable[[], Awaitable[str]]) -> Finding:
    try:
        return Finding(what, detail=await attempt())
    except ForwarderError as error:
        return Finding(what, (str(error),))


def problems(findings: list[Finding]) -> Iterator[str]:
    """Everything that is wrong, one sentence each."""
    for finding in findings:
        yield from finding.problems
