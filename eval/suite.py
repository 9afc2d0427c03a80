"""Suites and cases as immutable values, and the digest of what a suite asks.

Owns: the fields of `suite.yaml` and of a case, and the digest. Never: reading files (loaders.py), scoring.

The digest covers what decides a score: the system prompt, and each case's id, messages, target, scorer, token limit,
slice and cluster, in order. Description, margin and sampling are left out: they do not change what is asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

SCORING_REVISION = 2
"""Counted up when a scorer's verdict on the same text changes, so that stored scores are not mixed."""

OVERALL = "overall"
"""The gate that stands for the mean score over all cases."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class ScorerSpec(msgspec.Struct, frozen=True):
    """A scorer by name, with its options as written; scorers.build makes the scorer and checks them."""

    name: str
    options: dict[str, Any] = {}

    @classmethod
    def parse(cls, value: str | dict[str, Any]) -> ScorerSpec:
        """`"exact"`, or `{"name": "numeric", "tolerance": 0.1}`. Raises ValueError where the name is missing."""
        if isinstance(value, str):
            return cls(value)
        name = value.get("name")
        if not isinstance(name, str):
            raise ValueError("a scorer is a name, or a mapping with `name` and its options")
        return cls(name, {key: option for key, option in value.items() if key != "name"})


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How answers are drawn. The defaults make a run as repeatable as the engine allows."""

    temperature: float = 0.0
    max_tokens: int = 64
    """For cases that set no limit of their own."""
    top_p: float | None = None
    stop: tuple[str, ...] = ()


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One question with what counts as right."""

    id: str
    messages: tuple[Message, ...]
    target: Any = None
    scorer: ScorerSpec
    slice: str = ""
    cluster: str = ""
    """Cases that share a document or conversation share a cluster: they are not independent."""
    max_tokens: int | None = None

    @property
    def prompt_digest(self) -> str:
        return _digest(self.messages)

    @property
    def target_digest(self) -> str:
        return _digest([self.target, self.scorer])


class DatasetSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A data set on a hub, as `datasets.load_dataset` takes it."""

    hub: str
    split: str = "test"
    config: str | None = None
    revision: str | None = None


class SuiteFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`suite.yaml` as written."""

    name: str
    version: int = 1
    description: str = ""
    cases: str | None = None
    """A JSONL, CSV or Parquet file beside `suite.yaml`."""
    dataset: DatasetSpec | None = None
    columns: dict[str, str] = {}
    """Field of a case -> column of the file or data set, where their names differ, e.g. `{prompt: question}`."""
    system: str = ""
    scorer: str | dict[str, Any] | None = None
    """For cases that name none."""
    sampling: Sampling = Sampling()
    repeats: int = 1
    margin: float | None = None
    """δ: how much lower the mean score may be and still count as non-inferior."""
    gates: tuple[str, ...] = (OVERALL,)
    """What decides a comparison: `overall`, or names of scorers (then Holm-adjusted)."""


class Suite(msgspec.Struct, frozen=True, kw_only=True):
    """A suite that has been read and checked."""

    name: str
    version: int
    description: str
    cases: tuple[Case, ...]
    sampling: Sampling
    repeats: int = 1
    margin: float | None = None
    gates: tuple[str, ...] = (OVERALL,)
    source: str = ""
    """The path that it was read from."""

    @property
    def digest(self) -> str:
        return "sha256:" + _digest([SCORING_REVISION, self.cases])

    @property
    def slices(self) -> dict[str, int]:
        """Slice -> number of its cases, in order of appearance."""
        counts: dict[str, int] = {}
        for case in self.cases:
            counts[case.slice] = counts.get(case.slice, 0) + 1
        return counts

    def limited(self, count: int | None) -> Suite:
        """The suite with `count` of its cases, spread evenly over its order so that every slice keeps its share."""
        if count is None or count >= len(self.cases):
            return self
        total = len(self.cases)
        picked = tuple(self.cases[index * total // count] for index in range(count))
        return msgspec.structs.replace(self, cases=picked)


_encoder = msgspec.json.Encoder(order="deterministic")


def _digest(value: Any) -> str:
    return hashlib.sha256(_encoder.encode(value)).hexdigest()


def duplicates(ids: Iterable[str]) -> list[str]:
    """The ids that occur more than once, in order."""
    seen: set[str] = set()
    twice: dict[str, None] = {}
    for name in ids:
        if name in seen:
            twice[name] = None
        seen.add(name)
    return list(twice)
