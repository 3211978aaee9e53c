"""The tables of the first release."""

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None

_BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "text",
        sa.Column("id", _BIG_ID, primary_key=True, autoincrement=False),
        sa.Column("subscription_id", sa.String(64), nullable=False),
        sa.Column("from_number", sa.String(64), nullable=False),
        sa.Column("to_number", sa.String(64), nullable=False),
        sa.Column("created", sa.String(64), nullable=False),
        sa.Column("message", sa.Text),
        sa.Column("raw", sa.LargeBinary),
        sa.Column("recovered", sa.Boolean, nullable=False),
        sa.Column("route", sa.String(64), nullable=False),
        sa.Column("redact", sa.Boolean, nullable=False),
        sa.Column("received_at", sa.Float, nullable=False),
    )
    op.create_index("text_received_at", "text", ["received_at"])
    op.create_table(
        "delivery",
        sa.Column("text_id", _BIG_ID, primary_key=True, autoincrement=False),
        sa.Column("recipient", sa.String(320), primary_key=True),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_at", sa.Float, nullable=False),
        sa.Column("owner", sa.String(32)),
        sa.Column("answer", sa.Text),
    )
    open_only = sa.text("state <> 'sent'")
    op.create_index(
        "delivery_open", "delivery", ["state", "next_at"], sqlite_where=open_only, postgresql_where=open_only
    )
    op.create_table(
        "quarantine",
        sa.Column("id", _BIG_ID, primary_key=True),
        sa.Column("received_at", sa.Float, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("content_type", sa.Text, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "worker",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("alive_until", sa.Float, nullable=False),
    )
    op.create_table(
        "flow",
        sa.Column("minute", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("worker", sa.String(32), primary_key=True),
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("count", sa.Integer, nullable=False),
    )
    op.create_table(
        "secret",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
    )
