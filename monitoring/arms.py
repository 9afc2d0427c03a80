"""A model's arms side by side, from the requests that each was assigned: counts, errors, first tokens, speed.

Owns: these figures and their intervals. Never: I/O, clocks, a verdict: few requests are said to be few.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from monitoring.observe import outcome_class
from monitoring.recent import FAULTS, quantile
from monitoring.request_log import tokens_per_second
from registry.usage import RequestRecord

Z: float = 1.959964
"""Of a two-sided interval of 95%."""


@dataclass(frozen=True, slots=True)
class Arm:
    """What became of the requests that the split gave to one version, whichever answered in the end."""

    version: str
    requests: int
    served: int
    """Those that were not refused by the router itself."""
    failures: int
    """Failed and truncated: the service's fault."""
    error_rate: float | None
    """failures / served."""
    error_low: float | None
    """Wilson's interval of 95%."""
    error_high: float | None
    fallbacks: int
    """Answered by another version."""
    units: int
    """Different conversations or users, where requests carry a key for it."""
    streams: int
    """Requests with a first token, on which the next two are based."""
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    speeds: int
    """Streams that say how fast they were."""
    tokens_per_s: float | None
    """The median over streams of the tokens per second after the first."""
    duration_p50_s: float | None
    """Of completed requests."""
    prompt_tokens: int
    completion_tokens: int


def arms(records: Iterable[RequestRecord], *, since: float = 0.0) -> dict[str, Arm]:
    """Version -> its arm, of requests that arrived at `since` or later. Left out are copies for shadow arms and
    requests whose client named the version itself: neither went by the split."""
    found: defaultdict[str, list[RequestRecord]] = defaultdict(list)
    for record in records:
        if record.started_at >= since and record.assigned and not record.shadow_of and not record.pinned:
            found[record.assigned].append(record)
    return {version: _arm(version, found[version]) for version in sorted(found)}


def wilson(hits: int, of: int) -> tuple[float, float] | None:
    """The interval of 95% of a share; None of nothing. Source: Wilson (1927), the score interval."""
    if not of:
        return None
    share, z2 = hits / of, Z * Z
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = Z / (1 + z2 / of) * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of))
    return (middle - half if hits else 0.0), (middle + half if hits < of else 1.0)  # exact where rounding is not


def _arm(version: str, records: Sequence[RequestRecord]) -> Arm:
    served = [one for one in records if one.outcome != "rejected"]
    failures = sum(one.outcome in FAULTS for one in records)
    first = [one.first_token_s for one in records if one.streamed and one.first_token_s > 0]
    speeds = [speed for one in records if (speed := tokens_per_second(one)) is not None]
    interval = wilson(failures, len(served)) or (None, None)
    return Arm(
        version=version,
        requests=len(records),
        served=len(served),
        failures=failures,
        error_rate=failures / len(served) if served else None,
        error_low=interval[0],
        error_high=interval[1],
        fallbacks=sum(bool(one.version) and one.version != version for one in records),
        units=len({one.sticky for one in records if one.sticky}),
        streams=len(first),
        ttft_p50_s=quantile(first, 0.5),
        ttft_p95_s=quantile(first, 0.95),
        speeds=len(speeds),
        tokens_per_s=quantile(speeds, 0.5),
        duration_p50_s=quantile([one.duration_s for one in records if outcome_class(one) == "completed"], 0.5),
        prompt_tokens=sum(one.prompt_tokens for one in records),
        completion_tokens=sum(one.completion_tokens for one in records),
    )
