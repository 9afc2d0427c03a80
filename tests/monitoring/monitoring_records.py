"""Request records for tests, with sensible values where a test does not care."""

from __future__ import annotations

from typing import Any

from registry.usage import RequestRecord


def record(**changes: Any) -> RequestRecord:
    """A completed streamed chat of `assistant@v1`: 100 prompt tokens, 21 events in two seconds."""
    values: dict[str, Any] = {
        "request_id": "r",
        "started_at": 1_700_000_000.0,
        "duration_s": 2.5,
        "endpoint": "/v1/chat/completions",
        "model": "assistant",
        "version": "v1",
        "replica": "assistant@v1/0",
        "outcome": "completed",
        "status": 200,
        "streamed": True,
        "attempts": 1,
        "assigned": "v1",
        "prompt_tokens": 100,
        "cached_tokens": 20,
        "completion_tokens": 21,
        "usage_source": "engine",
        "dispatched_s": 0.001,
        "first_token_s": 0.4,
        "last_token_s": 2.4,
        "events": 21,
        "gap_max_s": 0.3,
        "overhead_s": 0.00004,
    }
    return RequestRecord(**(values | changes))
