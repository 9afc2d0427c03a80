"""W3C trace context: this router's own span in a client's trace, or the first of a trace that begins here.

Owns: reading `traceparent`, drawing ids, the decision to sample. Never: spans (the control plane makes and exports them
from the records of finished requests), clocks, I/O. Only asked where tracing is configured.
"""

from __future__ import annotations

import random
import re
from typing import Final

from registry.models import BUCKETS
from registry.usage import RequestRecord

TRACEPARENT: Final = b"traceparent"
TRACESTATE: Final = b"tracestate"
SAMPLED: Final = 0x01
_VALID: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE: Final = b"0" * 32
_NO_SPAN: Final = b"0" * 16


def read(value: bytes) -> tuple[bytes, bytes, int] | None:
    """Trace id, span id and flags of a `traceparent`; None where it is not valid.

    W3C Trace Context, 3.2: lower-case hexadecimal, no id of zeros only, no version ff; a later version than 00 may say
    more behind the flags, version 00 may not.
    """
    found = _VALID.fullmatch(value.strip(b" \t"))
    if found is None or found[1] == b"ff" or found[2] == _NO_TRACE or found[3] == _NO_SPAN:
        return None
    if found[1] == b"00" and found[5]:
        return None
    return found[2], found[3], int(found[4], 16)


class Tracer:
    """Begins spans. `sample` is in basis points, of requests that come without a decision of their own."""

    __slots__ = ("_rng", "_sample")

    def __init__(self, sample: int, rng: random.Random) -> None:
        self._sample = sample
        self._rng = rng

    def begin(self, record: RequestRecord, headers: dict[bytes, bytes]) -> None:
        """Give the request a span of ours and have `headers` name it as the engine's parent.

        1. A client's valid context that is sampled: the same trace, a new span.
        2. One that is not sampled: forwarded as it came, and no span; the decision was the client's.
        3. None, or an invalid one (which goes no further, as the recommendation asks): a new trace, by the sample rate.
        """
        value = headers.get(TRACEPARENT)
        if value is not None:
            context = read(value)
            if context is not None:
                trace, parent, flags = context
                if flags & SAMPLED:
                    span = self._draw(64)
                    record.trace_id, record.parent_span_id, record.span_id = trace.decode(), parent.decode(), span
                    headers[TRACEPARENT] = b"00-%b-%b-%02x" % (trace, span.encode(), flags & 0x03)
                return
            del headers[TRACEPARENT]
        headers.pop(TRACESTATE, None)
        if self._sample < BUCKETS and self._rng.randrange(BUCKETS) >= self._sample:
            return
        record.trace_id, record.span_id = self._draw(128), self._draw(64)
        headers[TRACEPARENT] = b"00-%b-%b-01" % (record.trace_id.encode(), record.span_id.encode())

    def _draw(self, bits: int) -> str:
        """A random id, never zero."""
        return f"{self._rng.getrandbits(bits) or 1:0{bits // 4}x}"
