"""From one database to another: all that an outbox holds, for the day when one machine becomes several."""

from collections import Counter
from typing import Final

import sqlalchemy as sa

from forwarder.errors import StartError
from forwarder.outbox import Outbox
from forwarder.schema import alert, deliveries, flow, quarantine, secrets, texts, token_use, workers

BATCH: Final = 1000
"""Rows that are on their way at once."""

MOVED: Final = (texts, deliveries, quarantine, flow, secrets, token_use, alert)
"""Everything but who is at work."""


def move(source: Outbox, target: Outbox) -> Counter[str]:
    """Copy all of `source` into `target`, in one transaction, and return how many rows each table had.

    Both are brought to this release's version first. The source stays, with its deliveries queued. Raises StartError if
    a forwarder is at work on it, or if the target holds something already.
    """
    source.migrate()
    target.migrate()
    source.register()
    try:
        with source.reading() as reader, target.transaction() as writer:
            if reader.scalar(sa.select(sa.func.count()).where(workers.c.id != source.worker)):
                raise StartError("a forwarder is at work on the outbox that is to be moved: stop it first")
            if writer.scalar(sa.select(sa.exists().where(texts.c.id.is_not(None)))):
                raise StartError("the database to move to holds texts already: move into an empty one")
            writer.execute(sa.delete(secrets))  # the conversations keep the key they have
            return Counter({table.name: _copy(reader, writer, table) for table in MOVED})
    finally:
        source.unregister()


def _copy(reader: sa.Connection, writer: sa.Connection, table: sa.Table) -> int:
    # numbers that a database gives by itself are given anew, so that it goes on from there
    columns = [column for column in table.columns if column is not quarantine.c.id]
    count = 0
    rows = reader.execute(sa.select(*columns).order_by(*table.primary_key.columns).execution_options(yield_per=BATCH))
    for part in rows.mappings().partitions(BATCH):
        writer.execute(sa.insert(table), [dict(row) for row in part])
        count += len(part)
    return count
