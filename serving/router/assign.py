"""Which version a request belongs to, and which may take over.

Owns: pins, sticky keys, segments and arms in their order, and what the record keeps of them. Never: I/O, knowing which
replicas are up: a key keeps its arm through every outage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from registry.usage import RequestRecord
from serving.router import split
from serving.router.snapshot import HEADER, Target, VersionState

if TYPE_CHECKING:
    from serving.router.http1 import Request
    from serving.router.openai_wire import Peek


def assign(target: Target, request: Request, seen: Peek, record: RequestRecord, draw: Callable[[], int]) -> str:
    """The label of the pinned version, or of the arm that holds the request's bucket, in its segment or in the route.
    `draw` gives a bucket to requests without a sticky key."""
    if target.pinned is not None:
        record.pinned = True
        return target.pinned.label
    model = target.model
    for kind, name in model.sticky:
        key = request.headers.get(name) if kind == HEADER else (seen.user or "").encode()
        if key:
            record.sticky = split.sticky_hash(key, model.salt)
            record.bucket = split.bucket_of(record.sticky)
            break
    else:
        record.bucket = draw()
    arms = model.config.arms
    if model.rules is not None:
        segment = model.rules.match(request.headers, key=record.key_id, user=seen.user or "", body=request.body)
        if segment is not None:
            record.segment = segment.name
            arms = segment.arms
    return split.arm_of(arms, record.bucket)


def chain(target: Target, label: str) -> list[VersionState]:
    """The versions that may answer, in order. A pinned one has no fallback: the client asked for that one."""
    model = target.model
    versions = [model.versions[label]] if label in model.versions else []
    if target.pinned is None:
        versions += [version for version in model.fallback if version not in versions]
    return versions
