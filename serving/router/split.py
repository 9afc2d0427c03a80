"""Who gets which version: sticky keys to buckets, buckets to versions, and new weights to as few moved keys as can be.

Owns: the bucket of a key and the allocation of buckets. Never: I/O, clocks, a random generator of its own.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence

from registry.models import BUCKETS, Allocation, Span, check_weights
from serving.router.table import Arm


def sticky_hash(key: bytes, salt: bytes) -> int:
    """A keyed 63-bit hash of a sticky key, never 0. BLAKE2b with the route's salt as its key."""
    value = int.from_bytes(hashlib.blake2b(key, digest_size=8, key=salt).digest(), "big") >> 1
    return value or 1


def bucket_of(sticky: int) -> int:
    """The bucket, 0 to BUCKETS - 1, of a sticky hash."""
    return sticky % BUCKETS


def arm_of(arms: Sequence[Arm], bucket: int) -> str:
    """The label whose arm holds `bucket`; "" where there are no arms."""
    index = bisect_right(arms, bucket, key=_upto)
    return arms[index].label if index < len(arms) else ""


def _upto(arm: Arm) -> int:
    return arm.upto


def arms_of(allocation: Allocation) -> tuple[Arm, ...]:
    """The allocation in the form that `arm_of` searches."""
    return tuple(Arm(span.stop, span.label) for span in allocation)


def allocate(weights: Mapping[str, int], previous: Allocation = ()) -> Allocation:
    """Give every version as many buckets as its weight, moving as few of `previous` as can be.

    Buckets move only from versions whose weight fell to versions whose weight rose. The first version of `weights`
    (the stable one) holds on to low buckets and the others to high ones, so that between two versions the allocation
    depends on the weights alone: 10 -> 25 -> 10 gives every key back where it was.

    Raises ValueError where the weights do not sum to BUCKETS.
    """
    check_weights(weights)
    stable = next(iter(weights))
    owned: dict[str, list[int]] = {label: [] for label in weights}
    free: list[int] = []
    covered = 0
    for span in previous:
        owned.get(span.label, free).extend(range(span.start, span.stop))
        covered = span.stop
    free.extend(range(covered, BUCKETS))
    for label, buckets in owned.items():
        excess = len(buckets) - weights[label]
        if excess > 0:
            buckets.sort(reverse=label == stable)
            free.extend(buckets[:excess])
            del buckets[:excess]
    free.sort()
    for label, buckets in owned.items():
        missing = weights[label] - len(buckets)
        if missing <= 0:
            continue
        if label == stable:
            buckets.extend(free[:missing])
            del free[:missing]
        else:
            buckets.extend(free[-missing:])
            del free[-missing:]
    return _spans(owned)


def _spans(owned: Mapping[str, Sequence[int]]) -> Allocation:
    owner = [""] * BUCKETS
    for label, buckets in owned.items():
        for bucket in buckets:
            owner[bucket] = label
    spans: list[Span] = []
    start = 0
    for bucket in range(1, BUCKETS + 1):
        if bucket == BUCKETS or owner[bucket] != owner[start]:
            spans.append(Span(start, bucket, owner[start]))
            start = bucket
    return tuple(spans)
