"""Whole answers at temperature 0, kept to be given where no engine can answer. Pure: time comes in as an argument.

Owns: which requests qualify, what makes two requests the same one, a bound in bytes, age. Never: I/O, clocks, deciding
that an answer is needed (the exchange does), answers that an engine could give.

Two requests are the same where their bodies are, byte for byte, and so are endpoint and API key: nothing is normalised,
so nothing that a field could mean is overlooked, and nobody is given what another key's holder asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import Any, Final

import msgspec

from serving.router.openai_wire import GENERATING

ENDPOINTS: Final = GENERATING | {"/v1/messages"}
"""Endpoints that take a temperature and answer out of the request alone."""
ENTRY_BYTES: Final = 512
"""What an entry takes beside its body."""


class _Sampling(msgspec.Struct, gc=False):
    temperature: Any = None
    n: Any = None


_sampling: Final = msgspec.json.Decoder(_Sampling)


class Kept(msgspec.Struct, frozen=True, gc=False):
    """One answer with status 200, as it went to the client."""

    content_type: bytes
    body: bytes
    """Of a stream: all of its events."""
    version: str
    """The label of the version that gave it."""
    at: float
    """When it was complete, on the router's clock."""


def key_of(endpoint: str, body: bytes, key_id: str) -> bytes | None:
    """What names this request among kept answers; None where it does not qualify: `temperature` must stand in the body
    and be 0, and it must ask for one answer."""
    if endpoint not in ENDPOINTS or b'"temperature"' not in body:
        return None
    try:
        seen = _sampling.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if type(seen.temperature) not in (int, float) or seen.temperature != 0 or seen.n not in (None, 1):
        return None
    digest = blake2b(f"{key_id}\0{endpoint}\0".encode(), digest_size=32)
    digest.update(body)
    return digest.digest()


class AnswerCache:
    """The answers of one model that were used last, up to a number of bytes and an age."""

    __slots__ = ("_bytes", "_kept", "bytes_max", "ttl_s")

    def __init__(self, bytes_max: int, ttl_s: float) -> None:
        self.bytes_max = bytes_max
        self.ttl_s = ttl_s
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self._bytes = 0

    @property
    def size_bytes(self) -> int:
        """What the entries take; never more than `bytes_max`."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, key: bytes, kept: Kept) -> None:
        """Keep an answer, in place of an older one; the least recently used ones go. One that is too large is not kept,
        and neither is the older one then."""
        self._drop(key)
        size = _size(kept)
        if size > self.bytes_max:
            return
        while self._bytes + size > self.bytes_max:
            self._drop(next(iter(self._kept)))
        self._kept[key] = kept
        self._bytes += size

    def get(self, key: bytes, now: float) -> Kept | None:
        """The answer, unless it is older than `ttl_s`."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        if now - kept.at > self.ttl_s:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return kept

    def limit(self, bytes_max: int, ttl_s: float) -> None:
        """Go by other bounds from now on."""
        self.bytes_max = bytes_max
        self.ttl_s = ttl_s
        while self._bytes > bytes_max:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: bytes) -> None:
        gone = self._kept.pop(key, None)
        if gone is not None:
            self._bytes -= _size(gone)


def _size(kept: Kept) -> int:
    return ENTRY_BYTES + len(kept.body) + len(kept.content_type)
