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
    slots: int = 0
    """Requests that it decodes at a time; 0 where it does not say."""


class Version(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One version of a model as the router sees it."""

    label: str
    replicas: tuple[Replica, ...] = ()
    served_names: tuple[str, ...] = (ANY_NAME,)
    """The `model` values that its engine understands; `*` for an engine that ignores them. A request that carries
    another one has it rewritten to the first."""
    stream_usage: bool = True
    """Its engine understands `stream_options.include_usage`."""
    prefill: bool = False
    """Its engine continues a last message that is the assistant's: a cut stream can go on."""
    context_tokens: int = 0
    """Of one request; 0 where the engine does not say."""


class Arm(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Buckets below `upto` (and not below the arm before) belong to the version `label`."""

    upto: int
    label: str


class Timeouts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Seconds. Each is a deadline for one wait of the router; 0 switches one off."""

    connect_s: float = 2.0
    first_byte_s: float = 300.0
    """From the request's dispatch to the head of the answer."""
    first_token_s: float = 300.0
    """From the request's dispatch to the first content of a stream."""
    between_tokens_s: float = 120.0
    """Between two pieces of an answer that has begun."""
    total_s: float = 1800.0
    """From the request's arrival to its end, over all attempts."""


class Retry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """How far failed attempts are made again: on the same replica after a wait, or on another one."""

    attempts_max: int = 3
    budget: float = 0.2
    """Further attempts, as a share of requests, over the last seconds: what failures may add to the load."""
    backoff_s: float = 0.05
    """The first wait; doubled each time, drawn at random from its upper half."""
    backoff_max_s: float = 1.0
    retry_after_max_s: float = 2.0
    """An engine that asks for a longer wait (Retry-After) is not waited for: its answer goes to the client."""


class Admission(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """How many requests of a model are with engines at a time, over all workers, and how many may wait for that."""

    inflight_max: int = 0
    """0: no bound of the router's; engines queue."""
    queue_max: int = 256
    queue_timeout_s: float = 30.0


class Match(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One condition on a request: `kind` is `header`, `key` (its id), `user` or `metadata`; any of `values` does."""

    kind: str
    name: str
    values: tuple[str, ...]


class Segment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Requests that meet every condition go by these arms in place of the model's (a feature flag, an experiment)."""

    name: str
    when: tuple[Match, ...] = ()
    arms: tuple[Arm, ...] = ()


class Shadow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A version that gets copies of requests; nobody sees its answers, and it delays and fails nobody."""

    label: str
    sample: int = 0
    """Basis points of the model's requests."""
    inflight_max: int = 4
    """Per worker."""
    engine_seconds_per_hour: float = 0.0
    """In-flight seconds per hour and worker, an upper bound of GPU seconds; 0 for no bound."""


class Cache(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Whole answers at temperature 0 that are kept to be given, marked, where no engine can answer."""

    bytes_max: int = 0
    """Per worker; 0 keeps none."""
    ttl_s: float = 3600.0


class Samples(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Requests that the control plane gets to see with their bodies and answers."""

    share: int = 0
    """Basis points of the model's requests, less those that name a version."""
    bytes_max: int = 65536
    """Of a body and its answer together."""


class Model(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One public model: its versions and the route in force."""

    name: str
    versions: dict[str, Version] = {}
    aliases: dict[str, str] = {}
    arms: tuple[Arm, ...] = ()
    salt: str = ""
    sticky: tuple[str, ...] = ()
    fallback: tuple[str, ...] = ()
    larger_context: tuple[str, ...] = ()
    """Labels that take over where the context of the assigned version is too short for a request."""
    equivalent: tuple[tuple[str, ...], ...] = ()
    """Groups of labels whose versions may continue each other's streams."""
    segments: tuple[Segment, ...] = ()
    """The first that matches decides."""
    shadows: tuple[Shadow, ...] = ()
    affinity: bool = True
    """Requests that share a long prefix go to the replica that has it cached."""
    timeouts: Timeouts = Timeouts()
    retry: Retry = Retry()
    admission: Admission = Admission()
    cache: Cache = Cache()
    samples: Samples = Samples()
    created: int = 0
    """Unix seconds, for `/v1/models`."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Bounds on what a client may send and how long it may take over it."""

    head_bytes_max: int = 32 * 1024
    body_bytes_max: int = 32 * 1024 * 1024
    head_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    keepalive_s: float = 75.0
    unread_timeout_s: float = 60.0
    """A client that takes nothing of a waiting answer for so long is gone."""
    connections_max: int = 10_000


class Key(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An API key as a worker knows it: never the key itself."""

    id: str
    """`key_…`: what logs and accounts show."""
    digest: bytes
    """SHA-256 of the key."""
    slot: int = 0
    """Its place in the counters that workers share."""
    scopes: tuple[str, ...] = ("inference",)
    models: tuple[str, ...] = ()
    """Models that it may use; empty for all."""
    expires_at: float = 0.0
    """Unix time; 0 for never."""
    priority: str = "interactive"
    """The best class that its requests may have."""
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrency_max: int = 0
    budget_tokens: int = 0
    """Per `budget_period`; 0, as above, for no limit."""
    budget_engine_s: float = 0.0
    """In-flight seconds at engines per `budget_period`: an upper bound of what its requests cost in GPU time."""
    budget_period: Literal["day", "month", "total"] = "month"


class Tracing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Which requests are traced; their spans are made from their records, by the control plane."""

    sample: int = 10_000
    """Basis points of requests that come without a decision of their own."""


class Table(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A snapshot of every model, with the generation that `x-modelyard-generation` reports."""

    generation: int
    models: dict[str, Model] = {}
    limits: Limits = Limits()
    keys: tuple[Key, ...] = ()
    keys_required: bool = False
    """Requests without a valid key are refused, even where there are no keys."""
    tracing: Tracing | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Table)


def encode(table: Table) -> bytes:
    """The table as MessagePack."""
    return _encoder.encode(table)


def decode(data: bytes) -> Table:
    """The table of `encode`d bytes. Raises msgspec.ValidationError where they are none."""
    return _decoder.decode(data)
