"""The registry and the ledger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _registry()
    _audit()
    _totals()
    _seconds()


def _serial() -> sa.Column[int]:
    kind = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    return sa.Column("id", kind, primary_key=True, autoincrement=True)


def _registry() -> None:
    name = sa.String(64)
    op.create_table(
        "models",
        sa.Column("name", name, primary_key=True),
        sa.Column("salt", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("model", name, sa.ForeignKey("models.name"), primary_key=True),
        sa.Column("label", name, primary_key=True),
        sa.Column("digest", sa.String(80), nullable=False),
        sa.Column("manifest", sa.Text, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("retired_at", sa.Double),
    )
    op.create_index("ix_versions_digest", "versions", ["digest"])
    op.create_table(
        "aliases",
        sa.Column("model", name, primary_key=True),
        sa.Column("name", name, primary_key=True),
        sa.Column("label", name, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.Column("updated_by", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(["model", "label"], ["versions.model", "versions.label"]),
    )
    op.create_table(
        "routes",
        sa.Column("model", name, sa.ForeignKey("models.name"), primary_key=True),
        sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("weights", sa.JSON, nullable=False),
        sa.Column("allocation", sa.JSON, nullable=False),
        sa.Column("sticky", sa.JSON, nullable=False),
        sa.Column("fallback", sa.JSON, nullable=False),
        sa.Column("restores", sa.Integer),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
    )


def _audit() -> None:
    op.create_table(
        "audit",
        _serial(),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(200), nullable=False),
        sa.Column("before", sa.JSON),
        sa.Column("after", sa.JSON),
    )
    op.create_index("ix_audit_subject", "audit", ["subject"])


def _totals() -> None:
    op.create_table(
        "segments",
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("offset", sa.BigInteger, nullable=False),
        sa.Column("sealed", sa.Boolean, nullable=False),
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("labels", sa.String(1024), primary_key=True),
        sa.Column("value", sa.Double, nullable=False),
    )
    op.create_table(
        "histograms",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("labels", sa.String(1024), primary_key=True),
        sa.Column("bounds", sa.String(64), primary_key=True),
        sa.Column("counts", sa.JSON, nullable=False),
        sa.Column("sum", sa.Double, nullable=False),
    )
    op.create_table(
        "cursors",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.Double, nullable=False),
    )


def _seconds() -> None:
    device, version = sa.String(128), sa.String(160)
    op.create_table(
        "intervals",
        _serial(),
        sa.Column("device", device, nullable=False),
        sa.Column("version", version, nullable=False),
        sa.Column("outcome", sa.String(32), nullable=False),
        sa.Column("start", sa.Double, nullable=False),
        sa.Column("stop", sa.Double, nullable=False),
    )
    op.create_table(
        "cost_seconds",
        sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("device", device, primary_key=True),
        sa.Column("version", version, primary_key=True),
        sa.Column("outcome", sa.String(32), primary_key=True),
        sa.Column("busy_share_s", sa.Double, nullable=False),
        sa.Column("inflight_s", sa.Double, nullable=False),
    )
    op.create_table(
        "held_seconds",
        sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("device", device, primary_key=True),
        sa.Column("held_s", sa.Double, nullable=False),
        sa.Column("energy_j", sa.Double, nullable=False),
        sa.Column("metered_s", sa.Double, nullable=False),
    )
    op.create_table(
        "cpu_seconds",
        sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("device", device, primary_key=True),
        sa.Column("version", version, primary_key=True),
        sa.Column("cpu_s", sa.Double, nullable=False),
    )
