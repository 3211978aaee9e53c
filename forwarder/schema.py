"""The tables of the outbox, the same on SQLite and PostgreSQL; `migrations/` changes them from release to release."""

from enum import StrEnum
from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

metadata: Final = MetaData()

BigId = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite numbers rows by themselves only in a column declared INTEGER."""


class State(StrEnum):
    """What has become of a delivery."""

    QUEUED = "queued"
    """Waits for its time."""
    SENDING = "sending"
    """A forwarder that is alive has it in hand."""
    SENT = "sent"
    """The mail server took it: 250."""
    DEAD = "dead"
    """Given up; a person looks at the reason and replays or drops it."""


texts: Final = Table(
    "text",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=False),  # Text/@id: the key by which a text is accepted once
    Column("subscription_id", String(64), nullable=False),
    Column("from_number", String(64), nullable=False),
    Column("to_number", String(64), nullable=False),
    Column("created", String(64), nullable=False),
    Column("message", Text),  # NULL once redacted
    Column("raw", LargeBinary),  # NULL once redacted
    Column("recovered", Boolean, nullable=False),
    Column("route", String(64), nullable=False),
    Column("redact", Boolean, nullable=False),
    Column("received_at", Float, nullable=False),
    Index("text_received_at", "received_at"),
)

deliveries: Final = Table(
    "delivery",
    metadata,
    Column("text_id", BigId, primary_key=True, autoincrement=False),
    Column("recipient", String(320), primary_key=True),
    Column("state", String(8), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_at", Float, nullable=False),  # queued: when it is due; sent, dead: when that happened
    Column("owner", String(32)),  # sending: the worker that has it
    Column("answer", Text),  # what the mail server, or we, said last
    Column("queued_at", Float, nullable=False),  # when it came, or was replayed: the days until it is dead count anew
    Index(
        "delivery_open",
        "state",
        "next_at",
        sqlite_where=text("state <> 'sent'"),
        postgresql_where=text("state <> 'sent'"),
    ),
)

quarantine: Final = Table(
    "quarantine",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("received_at", Float, nullable=False),
    Column("reason", Text, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

workers: Final = Table(
    "worker",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("alive_until", Float, nullable=False),  # by the database's clock; past it, others take over its deliveries
)

flow: Final = Table(
    "flow",
    metadata,
    Column("minute", Integer, primary_key=True, autoincrement=False),  # minutes since the epoch
    Column("worker", String(32), primary_key=True),  # so that two forwarders never wait for one row
    Column("kind", String(16), primary_key=True),
    Column("count", Integer, nullable=False),
)

secrets: Final = Table(
    "secret",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", LargeBinary, nullable=False),
)

token_use: Final = Table(
    "token_use",
    metadata,
    Column("token", String(64), primary_key=True),  # a keyed hash
    Column("used_at", Float, nullable=False),
)

alert: Final = Table(
    "alert",
    metadata,
    Column("name", String(32), primary_key=True),  # "operator", or what has been told
    Column("sent_at", Float, nullable=False),  # operator: the next one waits from here; who moves it sends the mail
    Column("told_until", Float, nullable=False),  # of earlier releases
)
