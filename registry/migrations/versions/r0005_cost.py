"""Cost by key, segment and hour: usage by hour, multiprocessor, memory and storage seconds, the history of prices."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

HOUR_S = 3600


def upgrade() -> None:
    with op.batch_alter_table("intervals") as table:
        table.add_column(sa.Column("key_id", sa.String(64), nullable=False, server_default=""))
        table.add_column(sa.Column("segment", sa.String(64), nullable=False, server_default=""))
    _widen_cost_seconds()
    _create_seconds()
    _create_usage()
    op.create_table(
        "price_changes",
        sa.Column("at", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("prices", sa.JSON, nullable=False),
    )
    _carry_usage_over()


def _widen_cost_seconds() -> None:
    """Key and segment belong to the primary key, which SQLite cannot change in place."""
    bind = op.get_bind()
    if bind.dialect.name == "sqlite":
        op.create_table("cost_seconds_0005", *_cost_columns())
        op.execute(
            "INSERT INTO cost_seconds_0005 (hour, device, version, outcome, busy_share_s, inflight_s)"
            " SELECT hour, device, version, outcome, busy_share_s, inflight_s FROM cost_seconds"
        )
        op.drop_table("cost_seconds")
        op.rename_table("cost_seconds_0005", "cost_seconds")
        return
    primary = sa.inspect(bind).get_pk_constraint("cost_seconds")["name"]
    op.add_column("cost_seconds", sa.Column("key_id", sa.String(64), nullable=False, server_default=""))
    op.add_column("cost_seconds", sa.Column("segment", sa.String(64), nullable=False, server_default=""))
    op.drop_constraint(str(primary), "cost_seconds", type_="primary")
    columns = ["hour", "device", "version", "outcome", "key_id", "segment"]
    op.create_primary_key("pk_cost_seconds", "cost_seconds", columns)


def _cost_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("device", sa.String(128), primary_key=True),
        sa.Column("version", sa.String(160), primary_key=True),
        sa.Column("outcome", sa.String(32), primary_key=True),
        sa.Column("busy_share_s", sa.Double, nullable=False),
        sa.Column("inflight_s", sa.Double, nullable=False),
        sa.Column("key_id", sa.String(64), primary_key=True, server_default=""),
        sa.Column("segment", sa.String(64), primary_key=True, server_default=""),
    ]


def _create_seconds() -> None:
    for name, value in (("sm_seconds", "sm_s"), ("memory_seconds", "byte_s")):
        op.create_table(
            name,
            sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
            sa.Column("device", sa.String(128), primary_key=True),
            sa.Column("version", sa.String(160), primary_key=True),
            sa.Column(value, sa.Double, nullable=False),
        )
    op.create_table(
        "storage_seconds",
        sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("version", sa.String(160), primary_key=True),
        sa.Column("byte_s", sa.Double, nullable=False),
    )


def _create_usage() -> None:
    counts = ("requests", "judged", "good", "prompt_tokens", "cached_tokens", "completion_tokens")
    op.create_table(
        "usage_hours",
        sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("device", sa.String(128), primary_key=True),
        sa.Column("version", sa.String(160), primary_key=True),
        sa.Column("outcome", sa.String(32), primary_key=True),
        sa.Column("key_id", sa.String(64), primary_key=True),
        sa.Column("segment", sa.String(64), primary_key=True),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in counts),
        sa.Column("prefill_s", sa.Double, nullable=False),
        sa.Column("prefill_tokens", sa.BigInteger, nullable=False),
        sa.Column("decode_s", sa.Double, nullable=False),
        sa.Column("decode_tokens", sa.BigInteger, nullable=False),
    )


TOKENS = {
    "modelyard_prompt_tokens_total": "prompt_tokens",
    "modelyard_prompt_cached_tokens_total": "cached_tokens",
    "modelyard_completion_tokens_total": "completion_tokens",
}
COPIES = {
    "modelyard_shadow_prompt_tokens_total": "prompt_tokens",
    "modelyard_shadow_completion_tokens_total": "completion_tokens",
}
PHASES = {
    ("modelyard_phase_seconds_total", "prefill"): "prefill_s",
    ("modelyard_phase_tokens_total", "prefill"): "prefill_tokens",
    ("modelyard_phase_seconds_total", "decode"): "decode_s",
    ("modelyard_phase_tokens_total", "decode"): "decode_tokens",
}


def _carry_usage_over() -> None:
    """What counters say of the time before becomes usage of the ledger's first hour, so that totals go on; from which
    hour on usage is known by hour is the cursor `usage_from`. Counters do not tell tokens of one outcome from those of
    another: all of a version's are with its completed requests."""
    bind = op.get_bind()
    counters = sa.table("counters", sa.column("name"), sa.column("labels"), sa.column("value"))
    found: defaultdict[tuple[str, str], defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for name, labels, value in bind.execute(sa.select(counters)):
        values: list[str] = [*json.loads(labels), "", ""]
        model, version, rest = values[0], values[1], values[2:]
        if not (model and version):
            continue
        own, copies = (f"{model}@{version}", "completed"), (f"{model}@{version}", "shadow")
        if name == "modelyard_requests_total":
            found[own[0], rest[1]]["requests"] += value
        elif name == "modelyard_shadow_requests_total":
            found[copies]["requests"] += value if rest[0] == "completed" else 0
        elif name in TOKENS:
            found[own][TOKENS[name]] += value
        elif name in COPIES:
            found[copies][COPIES[name]] += value
        elif (name, rest[0]) in PHASES:
            found[own][PHASES[name, rest[0]]] += value
    if not found:
        return
    now_hour = int(time.time() // HOUR_S) * HOUR_S
    tables = [sa.table(name, sa.column("hour")) for name in ("cost_seconds", "held_seconds")]
    first = [bind.execute(sa.select(sa.func.min(table.c.hour))).scalar() for table in tables]
    hour = min([one for one in first if one is not None], default=now_hour)
    columns = [
        "hour",
        "device",
        "version",
        "outcome",
        "key_id",
        "segment",
        "requests",
        "judged",
        "good",
        *TOKENS.values(),
    ]
    usage = sa.table("usage_hours", *(sa.column(name) for name in [*columns, *PHASES.values()]))
    bind.execute(
        sa.insert(usage),
        [
            dict.fromkeys(("device", "key_id", "segment"), "")
            | dict.fromkeys(("requests", "judged", "good", *TOKENS.values(), *PHASES.values()), 0)
            | {"hour": hour, "version": version, "outcome": outcome}
            | {name: value if name.endswith("_s") else round(value) for name, value in values.items()}
            for (version, outcome), values in found.items()
        ],
    )
    cursors = sa.table("cursors", sa.column("name"), sa.column("value"))
    bind.execute(sa.insert(cursors), [{"name": "usage_from", "value": float(now_hour + HOUR_S)}])
