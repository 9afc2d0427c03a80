"""Which segment of a route a request falls into: by its headers, its key, its user, the metadata in its body.

Owns: a model's segments made ready for matching, and reading `metadata`. Never: I/O, dividing a segment's requests
among its arms (`split`), changing after it was built.

The first segment whose conditions all hold decides; of a condition's values any does. Values are compared whole, byte
by byte. Metadata that is a number or a truth is compared as JSON writes it (`3`, `true`). The body is read for its
metadata only once every other condition of a segment that asks for some has held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from serving.router.table import Match, Segment

_ORDER: Final = ("key", "user", "header", "metadata")
"""What is cheapest to look at comes first."""


class _Body(msgspec.Struct, gc=False):
    metadata: object = None


_decode: Final = msgspec.json.Decoder(_Body).decode


class _Condition:
    """One condition in the form that requests have."""

    __slots__ = ("header", "kind", "metadata", "texts", "values")

    def __init__(self, match: Match) -> None:
        self.kind = match.kind
        self.header = match.name.lower().encode("utf-8")
        self.metadata = match.name
        self.texts = frozenset(match.values)
        self.values = frozenset(value.encode("utf-8") for value in match.values)


class Rules:
    """The segments of one model, in order."""

    __slots__ = ("_segments",)

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = tuple(
            (segment, tuple(sorted(map(_Condition, segment.when), key=lambda one: _ORDER.index(one.kind))))
            for segment in segments
            if all(match.kind in _ORDER for match in segment.when)  # one of a newer release: rather nobody than anybody
        )

    def match(self, headers: Mapping[bytes, bytes], *, key: str, user: str, body: bytes) -> Segment | None:
        """The segment that a request falls into; None where it goes by the route's own arms.

        `key` is the id of its API key and `user` what its body says of one, "" where there is none.
        """
        metadata: Mapping[str, str] | None = None
        for segment, conditions in self._segments:
            for one in conditions:
                if one.kind == "header":
                    holds = headers.get(one.header) in one.values
                elif one.kind == "metadata":
                    if metadata is None:
                        metadata = metadata_of(body)
                    holds = metadata.get(one.metadata) in one.texts
                else:
                    holds = (key if one.kind == "key" else user) in one.texts
                if not holds:
                    break
            else:
                return segment
        return None


def metadata_of(body: bytes) -> dict[str, str]:
    """The texts, numbers and truths of the body's `metadata` object, as text; empty where it has none to use."""
    try:
        found = _decode(body).metadata
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        name: value if isinstance(value, str) else msgspec.json.encode(value).decode()
        for name, value in found.items()
        if isinstance(value, str | int | float)
    }
