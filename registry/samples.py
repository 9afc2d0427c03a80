"""Samples of real traffic: what a sampled request asked and got, and what people said of it.

Owns: the shapes `TrafficSample`, `Feedback` and `Query`. Never: keeping them (`registry.sample_store`), capturing a
request, redacting a text, computing a feature.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

Given = Literal["", "any", "negative", "positive", "none"]
"""Which samples by their feedback: all of them, those with any, below 0, above 0, or with none."""


class Turn(msgspec.Struct, frozen=True, gc=False):
    """One message of a request. Parts that are no text stand in it as `[image]`, `[audio]`, …"""

    role: str
    content: str


class TrafficSample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One sampled request of a client, with its answer. Texts are redacted, and None where none are kept."""

    request_id: str
    model: str
    version: str
    """The label of the version that answered."""
    digest: str = ""
    """That version's digest; "" where it was not known."""
    arm: str = ""
    """The version that the split assigned."""
    segment: str = ""
    key: str = ""
    """The id of the API key; "" where none was needed."""
    sticky: int = 0
    """The keyed hash of the conversation or user, 0 where the request carried none: samples of one are not
    independent."""
    started_at: float
    """Unix time."""
    duration_s: float = 0.0
    endpoint: str
    streamed: bool = False
    outcome: str = "completed"
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    messages: tuple[Turn, ...] | None = None
    """What was asked, for every endpoint: a plain prompt is one message of the user."""
    output: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    """What the answer called: each with `name` and `arguments` (text). Only where texts are kept."""
    request: dict[str, Any] = {}
    """Fields of the request that shape its answer (tools, response_format, temperature, …). Only where texts are."""
    cut: str = ""
    """What of it was too large to be kept: `input`, `output`, or ""."""
    redacted: dict[str, int] = {}
    """Kind -> how many different ones were replaced."""
    features: dict[str, float | str] = {}
    """As `monitoring.features` computes them."""
    feedback: float | None = None
    """-1 to 1."""
    label: str = ""
    comment: str | None = None
    target: str | None = None
    """The answer that it should have been, where somebody gave one."""
    feedback_at: float = 0.0

    @property
    def prompt(self) -> str | None:
        """All that was asked, as one text."""
        return None if self.messages is None else "\n".join(turn.content for turn in self.messages)


class Feedback(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What somebody said of one request, sampled or not. A later one takes the place of an earlier one."""

    request_id: str
    model: str
    version: str
    started_at: float
    """When the request began, Unix time."""
    at: float
    """When the feedback came."""
    score: float
    """-1 to 1."""
    label: str = ""
    comment: str | None = None
    """Redacted; None where the configuration keeps no texts."""
    target: str | None = None
    segment: str = ""
    key: str = ""
    """Of the request."""


class Pending(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Feedback that came before the record of its request."""

    request_id: str
    at: float
    score: float
    label: str = ""
    comment: str | None = None
    target: str | None = None
    key: str = ""
    """Of whoever gave it."""
    is_admin: bool = False


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Which samples. Times are Unix seconds of a request's start: `since` is in it, `until` is not."""

    model: str = ""
    version: str = ""
    since: float = 0.0
    until: float = math.inf
    feedback: Given = ""
    texts: bool = True
    """False leaves out messages, outputs and comments, and is quicker."""
    limit: int = 1000
    newest_first: bool = True


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How much of one model's samples is kept."""

    age_s: float = 30 * 86400.0
    bytes_max: int = 256 * 1024 * 1024
    count_max: int = 1_000_000
