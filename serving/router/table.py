"""The routing table: everything a worker knows, as one immutable value with a generation number.

Owns: the table's shape and its bytes on the wire. Never: I/O, clocks, changing in place. The control plane builds a new
table and a worker swaps one reference.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

ReplicaState = Literal["ready", "draining", "down"]
ANY_NAME: Final = "*"


class Replica(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One engine process of a version, or one external URL."""

    id: str
    """`assistant@v1/0`"""
    host: str
    port: int
    state: ReplicaState = "ready"
    base_path: str = ""
    """What stands before `/v1/…` in an external URL, without a trailing slash."""
    tls: bool = False
    host_header: str = ""
    authorization: str = ""
    """The whole value of the Authorization header for this engine; never a client's, never sent to one."""


class Version(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One version of a model as the router sees it."""

    label: str
    replicas: tuple[Replica, ...] = ()
    served_names: tuple[str, ...] = (ANY_NAME,)
    """The `model` values that its engine understands; `*` for an engine that ignores them. A request that carries
    another one has it rewritten to the first."""
    stream_usage: bool = True
    """Its engine understands `stream_options.include_usage`."""


class Arm(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Buckets below `upto` (and not below the arm before) belong to the version `label`."""

    upto: int
    label: str


class Timeouts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Seconds. Each is a deadline for one wait of the router; 0 switches one off."""

    connect_s: float = 2.0
    first_byte_s: float = 300.0
    between_bytes_s: float = 120.0
    total_s: float = 1800.0


class Model(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One public model: its versions and the route in force."""

    name: str
    versions: dict[str, Version] = {}
    aliases: dict[str, str] = {}
    arms: tuple[Arm, ...] = ()
    salt: str = ""
    sticky: tuple[str, ...] = ()
    fallback: tuple[str, ...] = ()
    timeouts: Timeouts = Timeouts()
    created: int = 0
    """Unix seconds, for `/v1/models`."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Bounds on what a client may send and how long it may take over it."""

    head_bytes_max: int = 32 * 1024
    body_bytes_max: int = 32 * 1024 * 1024
    head_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    keepalive_s: float = 75.0
    connections_max: int = 10_000
    attempts_max: int = 3


class Table(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A snapshot of every model, with the generation that `x-modelyard-generation` reports."""

    generation: int
    models: dict[str, Model] = {}
    limits: Limits = Limits()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Table)


def encode(table: Table) -> bytes:
    """The table as MessagePack."""
    return _encoder.encode(table)


def decode(data: bytes) -> Table:
    """The table of `encode`d bytes. Raises msgspec.ValidationError where they are none."""
    return _decoder.decode(data)
