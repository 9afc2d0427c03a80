"""The tables of the registry and of the ledger, in column types that SQLite and PostgreSQL share.

Owns: the tables as they are at the newest migration. Never: queries, changes of an existing database (migrations do).
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
    }
)

_NAME: Final = String(64)
_KEY: Final = String(64)
_SERIAL: Final = BigInteger().with_variant(Integer, "sqlite")

models: Final = Table(
    "models",
    metadata,
    Column("name", _NAME, primary_key=True),
    Column("salt", String(64), nullable=False),
    Column("created_at", Double, nullable=False),
)

versions: Final = Table(
    "versions",
    metadata,
    Column("model", _NAME, ForeignKey("models.name"), primary_key=True),
    Column("label", _NAME, primary_key=True),
    Column("digest", String(80), nullable=False, index=True),
    Column("manifest", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("retired_at", Double),
)

aliases: Final = Table(
    "aliases",
    metadata,
    Column("model", _NAME, primary_key=True),
    Column("name", _NAME, primary_key=True),
    Column("label", _NAME, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("updated_by", Text, nullable=False),
    ForeignKeyConstraint(["model", "label"], ["versions.model", "versions.label"]),
)

routes: Final = Table(
    "routes",
    metadata,
    Column("model", _NAME, ForeignKey("models.name"), primary_key=True),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("weights", JSON, nullable=False),
    Column("allocation", JSON, nullable=False),
    Column("sticky", JSON, nullable=False),
    Column("fallback", JSON, nullable=False),
    Column("segments", JSON, nullable=False, server_default="[]"),
    Column("shadows", JSON, nullable=False, server_default="[]"),
    Column("restores", Integer),
    Column("created_at", Double, nullable=False),
    Column("created_by", Text, nullable=False),
)

route_pauses: Final = Table(
    "route_pauses",
    metadata,
    Column("model", _NAME, ForeignKey("models.name"), primary_key=True),
    Column("reason", Text, nullable=False),
    Column("paused_at", Double, nullable=False),
    Column("paused_by", Text, nullable=False),
)

audit: Final = Table(
    "audit",
    metadata,
    Column("id", _SERIAL, primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", _NAME, nullable=False),
    Column("subject", String(200), nullable=False, index=True),
    Column("before", JSON),
    Column("after", JSON),
)

api_keys: Final = Table(
    "api_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("last4", String(4), nullable=False),
    Column("slot", Integer, nullable=False),
    Column("name", _NAME, nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("models", JSON, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("priority", String(16), nullable=False),
    Column("requests_per_minute", BigInteger, nullable=False),
    Column("tokens_per_minute", BigInteger, nullable=False),
    Column("concurrency_max", Integer, nullable=False),
    Column("budget_tokens", BigInteger, nullable=False),
    Column("budget_engine_s", Double, nullable=False),
    Column("budget_period", String(8), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("revoked_at", Double),
)

gate_verdicts: Final = Table(
    "gate_verdicts",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("model", _NAME, ForeignKey("models.name"), nullable=False, index=True),
    Column("policy", _NAME, nullable=False),
    Column("policy_digest", String(80), nullable=False),
    Column("baseline", _NAME, nullable=False),
    Column("baseline_digest", String(80), nullable=False),
    Column("candidate", _NAME, nullable=False),
    Column("candidate_digest", String(80), nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("text", Text, nullable=False),
    Column("suites", JSON, nullable=False),
    Column("evidence", JSON, nullable=False),
    Column("author", Text, nullable=False),
    Column("created_at", Double, nullable=False),
)

segments: Final = Table(
    "segments",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("offset", BigInteger, nullable=False),
    Column("sealed", Boolean, nullable=False),
)

counters: Final = Table(
    "counters",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("labels", String(1024), primary_key=True),
    Column("value", Double, nullable=False),
)

histograms: Final = Table(
    "histograms",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("labels", String(1024), primary_key=True),
    Column("bounds", String(64), primary_key=True),
    Column("counts", JSON, nullable=False),
    Column("sum", Double, nullable=False),
)

intervals: Final = Table(
    "intervals",
    metadata,
    Column("id", _SERIAL, primary_key=True, autoincrement=True),
    Column("device", String(128), nullable=False),
    Column("version", String(160), nullable=False),
    Column("outcome", String(32), nullable=False),
    Column("start", Double, nullable=False),
    Column("stop", Double, nullable=False),
    Column("key_id", _KEY, nullable=False, server_default=""),
    Column("segment", _NAME, nullable=False, server_default=""),
)

cost_seconds: Final = Table(
    "cost_seconds",
    metadata,
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("device", String(128), primary_key=True),
    Column("version", String(160), primary_key=True),
    Column("outcome", String(32), primary_key=True),
    Column("busy_share_s", Double, nullable=False),
    Column("inflight_s", Double, nullable=False),
    Column("key_id", _KEY, primary_key=True, server_default=""),
    Column("segment", _NAME, primary_key=True, server_default=""),
)

held_seconds: Final = Table(
    "held_seconds",
    metadata,
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("device", String(128), primary_key=True),
    Column("held_s", Double, nullable=False),
    Column("energy_j", Double, nullable=False),
    Column("metered_s", Double, nullable=False),
)

cpu_seconds: Final = Table(
    "cpu_seconds",
    metadata,
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("device", String(128), primary_key=True),
    Column("version", String(160), primary_key=True),
    Column("cpu_s", Double, nullable=False),
)

sm_seconds: Final = Table(
    "sm_seconds",
    metadata,
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("device", String(128), primary_key=True),
    Column("version", String(160), primary_key=True),
    Column("sm_s", Double, nullable=False),
)

memory_seconds: Final = Table(
    "memory_seconds",
    metadata,
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("device", String(128), primary_key=True),
    Column("version", String(160), primary_key=True),
    Column("byte_s", Double, nullable=False),
)

storage_seconds: Final = Table(
    "storage_seconds",
    metadata,
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("version", String(160), primary_key=True),
    Column("byte_s", Double, nullable=False),
)

usage_hours: Final = Table(
    "usage_hours",
    metadata,
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("device", String(128), primary_key=True),
    Column("version", String(160), primary_key=True),
    Column("outcome", String(32), primary_key=True),
    Column("key_id", _KEY, primary_key=True),
    Column("segment", _NAME, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("judged", BigInteger, nullable=False),
    Column("good", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("prefill_s", Double, nullable=False),
    Column("prefill_tokens", BigInteger, nullable=False),
    Column("decode_s", Double, nullable=False),
    Column("decode_tokens", BigInteger, nullable=False),
)

price_changes: Final = Table(
    "price_changes",
    metadata,
    Column("at", BigInteger, primary_key=True, autoincrement=False),
    Column("prices", JSON, nullable=False),
)

cursors: Final = Table(
    "cursors",
    metadata,
    Column("name", _NAME, primary_key=True),
    Column("value", Double, nullable=False),
)
