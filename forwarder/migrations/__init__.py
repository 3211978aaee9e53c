"""From the tables of any earlier release to those of this one, with everything in them; Alembic keeps the count.

The versions in `versions/` are never changed once released: an outbox of any of them must open. A new one also changes
`schema.py`, and a test compares the two.
"""

from enum import Enum
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from forwarder.errors import StartError

UNVERSIONED: Final = "1"
"""Version of an outbox that has tables and does not say which: the first release kept no count."""
_LOCK: Final = 0x63616C6C  # any number that nobody else locks
_VERSION: Final = sa.table("alembic_version", sa.column("version_num"))


def upgrade(connection: sa.Connection) -> None:
    """Bring the tables behind `connection`, a transaction of its own, to this release's version.

    Raises StartError if a newer release made them, or if the database cannot hold every character.
    """
    if connection.dialect.name == "postgresql":
        _check_encoding(connection)
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))  # two forwarders may start at once
    config = _config(connection)
    tables = sa.inspect(connection).get_table_names()
    if "alembic_version" in tables and connection.scalar(sa.select(_VERSION)) == _head(config):
        return
    if "text" in tables and "alembic_version" not in tables:
        command.stamp(config, UNVERSIONED)
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StartError(
            f"the outbox cannot be brought to this release's version: {error}; if a newer release has used it, "
            "run that one, or restore the backup from before"
        ) from error


class Version(Enum):
    """Whose tables a database has."""

    NONE = "none"
    """There are none yet."""
    EARLIER = "earlier"
    """An earlier release's: `upgrade` brings them to this one's."""
    CURRENT = "current"
    """This release's."""
    UNKNOWN = "unknown"
    """A release's that is newer than this one."""


def version(connection: sa.Connection) -> Version:
    """Whose tables are behind `connection`; nothing is changed."""
    tables = sa.inspect(connection).get_table_names()
    if "alembic_version" not in tables:
        return Version.EARLIER if "text" in tables else Version.NONE
    script = ScriptDirectory.from_config(_config(connection))
    found = connection.scalar(sa.select(_VERSION))
    if found == script.get_current_head():
        return Version.CURRENT
    return Version.EARLIER if found in {each.revision for each in script.walk_revisions()} else Version.UNKNOWN


def _config(connection: sa.Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    return config


def _head(config: Config) -> str | None:
    return ScriptDirectory.from_config(config).get_current_head()


def _check_encoding(connection: sa.Connection) -> None:
    encoding = connection.scalar(sa.text("SHOW server_encoding"))
    if encoding != "UTF8":
        raise StartError(f"the database's encoding is {encoding}; make one with: CREATE DATABASE … ENCODING 'UTF8'")
