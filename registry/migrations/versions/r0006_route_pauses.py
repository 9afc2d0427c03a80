"""Routes that are held where they are."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "route_pauses",
        sa.Column("model", sa.String(64), sa.ForeignKey("models.name"), primary_key=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("paused_at", sa.Double, nullable=False),
        sa.Column("paused_by", sa.Text, nullable=False),
    )
