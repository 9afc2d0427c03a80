"""Routes have segments and shadows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("routes") as table:
        table.add_column(sa.Column("segments", sa.JSON, nullable=False, server_default="[]"))
        table.add_column(sa.Column("shadows", sa.JSON, nullable=False, server_default="[]"))
