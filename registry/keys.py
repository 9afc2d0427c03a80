"""API keys: what a key may do, how one is made, and its rows.

Owns: the key's text and digest, its table, the place (`slot`) that it has in the counters that router workers share.
Never: keeping or returning a key after it was made; checking a request (serving.router.keys does).

A key is 32 random bytes. That is why its SHA-256 alone is stored, without salt or a slow hash: those protect secrets
that can be guessed, and 2^256 values cannot. A lookup by digest costs a microsecond where bcrypt would cost 100 ms.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from sqlalchemy import Connection, Row, insert, or_, select, update

from registry import schema
from registry.errors import ConflictError, NotFoundError
from registry.models import check_name

PREFIX: Final = "mya_"
"""Keys begin with it, so that people and secret scanners recognise one."""
SECRET_BYTES: Final = 32
SLOTS: Final = 4096
SLOT_REST_S: Final = 86_400.0
"""How long after a revocation a slot is not given to another key: by then no table, and no request that began under
one, has the old key any more."""
NAME_LENGTH_MAX: Final = 64
SCOPES: Final = ("inference", "admin")
PRIORITIES: Final = ("interactive", "batch")
PERIODS: Final = ("day", "month", "total")

Period = Literal["day", "month", "total"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyTerms:
    """What a key may do. 0 stands for no limit."""

    name: str = ""
    """Whose it is or what it is for, in the operator's words."""
    scopes: tuple[str, ...] = ("inference",)
    models: tuple[str, ...] = ()
    """Models that it may use; empty for all."""
    expires_at: float = 0.0
    """Unix seconds; 0 for never."""
    priority: str = "interactive"
    """The best class that its requests may have."""
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrency_max: int = 0
    budget_tokens: int = 0
    budget_engine_s: float = 0.0
    budget_period: Period = "month"

    def check(self) -> KeyTerms:
        """Itself, where it can be used; raises ValueError naming what cannot."""
        if len(self.name) > NAME_LENGTH_MAX or not self.name.isprintable():
            raise ValueError(f"a key's name is at most {NAME_LENGTH_MAX} printable characters")
        if not self.scopes or len(set(self.scopes)) != len(self.scopes):
            raise ValueError("a key needs at least one scope, and none twice")
        for what, given, known in (
            *(("scope", scope, SCOPES) for scope in self.scopes),
            ("priority", self.priority, PRIORITIES),
            ("budget period", self.budget_period, PERIODS),
        ):
            if given not in known:
                raise ValueError(f"there is no {what} {given!r}: known are {', '.join(known)}")
        for model in self.models:
            check_name("model", model)
        limits = {name: value for name, value in asdict(self).items() if isinstance(value, int | float)}
        for name, value in limits.items():
            if value < 0:
                raise ValueError(f"{name.replace('_', ' ')} is {value}: it cannot be negative (0 is no limit)")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One key as it is kept: everything but the key itself."""

    id: str
    """`key_…`: what logs, accounts and the audit show."""
    digest: bytes
    """SHA-256 of the key."""
    last4: str
    """The key's last characters, for telling keys apart by eye."""
    slot: int
    """Its place in the counters that workers share, 0 to SLOTS - 1."""
    terms: KeyTerms
    created_at: float
    created_by: str
    revoked_at: float | None = None

    @property
    def shown(self) -> str:
        """The key as far as it may be shown: `mya_…xY3z`."""
        return f"{PREFIX}…{self.last4}"

    def state(self, now: float) -> Literal["active", "expired", "revoked"]:
        """Whether it opens anything at `now` (Unix seconds)."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if 0 < self.terms.expires_at <= now else "active"


def terms_of(terms: KeyTerms) -> dict[str, Any]:
    """What a router has to know of a key's terms: all but its name."""
    return {name: value for name, value in asdict(terms).items() if name != "name"}


def new_secret() -> str:
    """A key that nobody has seen before."""
    return PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def digest_of(secret: str) -> bytes:
    """What is stored of a key."""
    return hashlib.sha256(secret.encode()).digest()


def create(connection: Connection, secret: str, terms: KeyTerms, *, actor: str, at: float) -> ApiKey:
    """Write the row of a new key. Raises ConflictError where every slot is taken."""
    key = ApiKey(
        id=f"key_{secrets.token_hex(6)}",
        digest=digest_of(secret),
        last4=secret[-4:],
        slot=free_slot(_taken(connection, at)),
        terms=terms,
        created_at=at,
        created_by=actor,
    )
    connection.execute(insert(schema.api_keys).values(_values(key)))
    return key


def every(connection: Connection, *, revoked: bool = True) -> list[ApiKey]:
    """All keys ever made, oldest first; without those that are revoked where `revoked` is False."""
    table = schema.api_keys
    query = select(table).order_by(table.c.created_at, table.c.id)
    if not revoked:
        query = query.where(table.c.revoked_at.is_(None))
    return [_to_key(row) for row in connection.execute(query)]


def any_made(connection: Connection) -> bool:
    return connection.scalar(select(schema.api_keys.c.id).limit(1)) is not None


def find(connection: Connection, key_id: str) -> ApiKey:
    """The key with this id. Raises NotFoundError."""
    table = schema.api_keys
    row = connection.execute(select(table).where(table.c.id == key_id)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no key {key_id!r}", remedy="`modelyard keys list` shows their ids")
    return _to_key(row)


def revoke(connection: Connection, key: ApiKey, at: float) -> ApiKey:
    """Note that a key opens nothing any more."""
    table = schema.api_keys
    connection.execute(update(table).where(table.c.id == key.id).values(revoked_at=at))
    return replace(key, revoked_at=at)


def summary(key: ApiKey) -> dict[str, Any]:
    """A key as its audit row shows it: terms that differ from the usual ones, never the key."""
    usual = asdict(KeyTerms())
    terms = {name: value for name, value in asdict(key.terms).items() if value != usual[name]}
    return terms | {"scopes": key.terms.scopes}


def free_slot(taken: Collection[int]) -> int:
    """The smallest slot that is not taken. Raises ConflictError where all are."""
    slot = next((slot for slot in range(SLOTS) if slot not in taken), None)
    if slot is None:
        raise ConflictError(
            f"all {SLOTS} keys are in use or were revoked within the last day",
            remedy="revoke keys that have expired or that nobody uses, and try again a day later",
        )
    return slot


def _taken(connection: Connection, at: float) -> set[int]:
    """Slots of keys that are not revoked, or were so recently that a worker may still count by them."""
    table = schema.api_keys
    held = or_(table.c.revoked_at.is_(None), table.c.revoked_at > at - SLOT_REST_S)
    return set(connection.scalars(select(table.c.slot).where(held)))


def _values(key: ApiKey) -> dict[str, Any]:
    terms = asdict(key.terms)
    lists = {"scopes": list(key.terms.scopes), "models": list(key.terms.models)}
    row = {"id": key.id, "digest": key.digest.hex(), "last4": key.last4, "slot": key.slot}
    return {**row, **terms, **lists, "created_at": key.created_at, "created_by": key.created_by}


def _to_key(row: Row[Any]) -> ApiKey:
    values = dict(row._mapping)
    terms = {name: values[name] for name in KeyTerms.__dataclass_fields__}
    terms |= {"scopes": tuple(values["scopes"]), "models": tuple(values["models"])}
    return ApiKey(
        id=row.id,
        digest=bytes.fromhex(row.digest),
        last4=row.last4,
        slot=row.slot,
        terms=KeyTerms(**terms),
        created_at=row.created_at,
        created_by=row.created_by,
        revoked_at=row.revoked_at,
    )
