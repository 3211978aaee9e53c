"""From the tables of any earlier release to those of this one, with everything in them; Alembic keeps the count.

The versions in `versions/` are never changed once released: an outbox of any of them must open. A new one also changes
`schema.py`, and a test compares the two.

A release that fails after it has brought the tables to its version is taken back, and other servers may still run the
release before it. Nothing that was accepted may be lost by that, so the tables stay as they are, and the earlier
release goes on with them. A version says in its name who can: releases of version 2 can use `3_from_2`, a plain `3`
only those that know it. So that they can, a version only adds: tables, indexes, and columns that may be NULL or have a
`server_default`. What takes something away comes a release later, as `4_from_3`.
"""

import re
import sys
import time
from enum import Enum
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from forwarder.errors import StartError
from forwarder.schema import metadata

UNVERSIONED: Final = "1"
"""Version of an outbox that has tables and does not say which: the first release kept no count."""
_LOCK: Final = 0x63616C6C  # any number that nobody else locks
_LOCKED_WITHIN: Final = 30.0
"""How many seconds to try for the tables."""
_LOCK_MILLISECONDS: Final = 300
"""How long to wait for one; less than the second after which PostgreSQL looks for knots."""
_LOCK_NOT_AVAILABLE: Final = "55P03"
_VERSION: Final = sa.table("alembic_version", sa.column("version_num"))
_NAME: Final = re.compile(r"(\d+)(?:_from_(\d+))?")


class Version(Enum):
    """Whose tables a database has."""

    NONE = "none"
    """There are none yet."""
    EARLIER = "earlier"
    """An earlier release's: `upgrade` brings them to this one's."""
    CURRENT = "current"
    """This release's."""
    NEWER = "newer"
    """A newer release's, which left them so that this one can use them."""
    UNUSABLE = "unusable"
    """A newer release's, which this one cannot use."""


def upgrade(connection: sa.Connection) -> None:
    """Bring the tables behind `connection`, a transaction of its own, to this release's version, if they are not newer.

    Raises StartError if this release cannot use them, or if the database cannot hold every character.
    """
    if connection.dialect.name == "postgresql":
        _check_encoding(connection)
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))  # two forwarders may start at once
    found = version(connection)
    if found is Version.UNUSABLE:
        raise StartError(unusable(connection))
    if found in {Version.NONE, Version.EARLIER}:
        if connection.dialect.name == "postgresql":
            _lock_tables(connection)
        config = _config(connection)
        if found is Version.EARLIER and _named(connection) is None:
            command.stamp(config, UNVERSIONED)
        command.upgrade(config, "head")


def version(connection: sa.Connection) -> Version:
    """Whose tables are behind `connection`; nothing is changed."""
    name, script = _named(connection), _script(connection)
    if name is None:
        return Version.EARLIER if "text" in sa.inspect(connection).get_table_names() else Version.NONE
    if name == script.get_current_head():
        return Version.CURRENT
    if name in {each.revision for each in script.walk_revisions()}:
        return Version.EARLIER
    return Version.NEWER if _oldest(name) <= _number(script.get_current_head()) else Version.UNUSABLE


def unusable(connection: sa.Connection) -> str:
    """What to do about tables that this release cannot use, as a sentence."""
    return (
        f"a newer release has used the outbox and left it in version {_named(connection)}, which this one does not "
        "know: run that one, or restore the backup from before"
    )


def has_way_back(connection: sa.Connection, known: int) -> bool:
    """Whether a release that knows the tables up to version `known` could still use them after `upgrade`.

    The tables themselves don't tell: a release may run on those of a newer one that was taken back.
    """
    own = min(known, _number(_named(connection) or UNVERSIONED))
    names = [each.revision for each in _script(connection).walk_revisions()]
    return all(_oldest(name) <= own for name in names if _number(name) > own)


def _number(name: str | None) -> int:
    found = _NAME.fullmatch(name or "")
    return int(found[1]) if found else 0


def _oldest(name: str) -> int:
    """The oldest version whose releases can use the tables of the version of this name."""
    found = _NAME.fullmatch(name)
    return int(found[2] or found[1]) if found else sys.maxsize


def _named(connection: sa.Connection) -> str | None:
    """The version that the tables say they have."""
    if "alembic_version" not in sa.inspect(connection).get_table_names():
        return None
    return str(connection.scalar(sa.select(_VERSION)))


def _script(connection: sa.Connection) -> ScriptDirectory:
    return ScriptDirectory.from_config(_config(connection))


def _config(connection: sa.Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    return config


def _lock_tables(connection: sa.Connection) -> None:
    """Have all of the outbox's tables before one is changed; what else is in the database is another application's.

    Other forwarders are at work on them. None is to be in a knot with this one, which PostgreSQL would cut by failing
    either of them; so this one lets go of all when it has to wait for long.
    """
    own = set(sa.inspect(connection).get_table_names()) & {*metadata.tables, _VERSION.name}
    names = ", ".join(map(connection.dialect.identifier_preparer.quote, sorted(own)))
    deadline = time.monotonic() + _LOCKED_WITHIN
    while names:
        try:
            with connection.begin_nested():
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = {_LOCK_MILLISECONDS}")
                connection.exec_driver_sql(f"LOCK TABLE {names}")
        except sa.exc.OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE or time.monotonic() > deadline:
                raise
        else:
            return


def _check_encoding(connection: sa.Connection) -> None:
    encoding = connection.scalar(sa.text("SHOW server_encoding"))
    if encoding != "UTF8":
        raise StartError(f"the database's encoding is {encoding}; make one with: CREATE DATABASE … ENCODING 'UTF8'")
