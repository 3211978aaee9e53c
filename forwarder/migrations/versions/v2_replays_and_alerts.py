"""The days of a replayed delivery count anew; what is known of tokens and alerts outlives a restart."""

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    """Let the days of what is there count from its arrival, as they did."""
    op.add_column("delivery", sa.Column("queued_at", sa.Float, nullable=False, server_default="0"))
    op.execute(
        "UPDATE delivery SET queued_at = (SELECT received_at FROM text WHERE text.id = delivery.text_id)"
        " WHERE EXISTS (SELECT 1 FROM text WHERE text.id = delivery.text_id)"
    )
    op.create_table(
        "token_use",
        sa.Column("token", sa.String(64), primary_key=True),
        sa.Column("used_at", sa.Float, nullable=False),
    )
    op.create_table(
        "alert",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("sent_at", sa.Float, nullable=False),
        sa.Column("told_until", sa.Float, nullable=False),
    )
