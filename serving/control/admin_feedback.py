"""The admin API's calls about samples of traffic and feedback.

Owns: these paths and their shapes. Never: joining feedback (`feedback`), what is kept (`samples`). They show what
clients wrote, so even reading needs a credential (`access`).
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query
from pydantic import Field

from registry import samples
from registry.capture import COMMENT_BYTES_MAX, LABEL, LABEL_CHARS_MAX, TARGET_BYTES_MAX, FeedbackGiven
from registry.samples import Given
from serving.control.admin_api import Control, actor_of
from serving.control.admin_live import parse_since
from serving.control.admin_models import Shape
from serving.errors import ApiError
from serving.router.feedback import score_of

Actor = Annotated[str, Depends(actor_of)]
Since = Annotated[str | None, Query(description="`24h`, `30m`, `7d`, or Unix seconds.")]


class GiveFeedback(Shape):
    request_id: str = Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$", description="The `x-request-id` of an answer.")
    score: float | str = Field(description='-1 to 1, or "up" or "down".')
    label: str = Field(default="", max_length=LABEL_CHARS_MAX, pattern=LABEL.pattern)
    comment: str = Field(default="", description=f"At most {COMMENT_BYTES_MAX} bytes.")
    target: str = Field(default="", description=f"What the answer should have been; at most {TARGET_BYTES_MAX} bytes.")

    def given(self, at: float) -> FeedbackGiven:
        """Raises ApiError (400)."""
        for name, limit in (("comment", COMMENT_BYTES_MAX), ("target", TARGET_BYTES_MAX)):
            if len(getattr(self, name).encode("utf-8", errors="surrogatepass")) > limit:
                raise ApiError(400, f"{name} is longer than {limit} bytes", code="invalid_feedback", param=name)
        return FeedbackGiven(self.request_id, at, score_of(self.score), self.label, self.comment, self.target)


class FeedbackView(Shape):
    """Feedback on one request."""

    request_id: str
    model: str
    version: str
    started_at: float
    at: float
    score: float
    label: str
    comment: str | None
    """Redacted; null where the configuration keeps no texts."""
    target: str | None
    segment: str
    key: str

    @classmethod
    def of(cls, one: samples.Feedback) -> FeedbackView:
        return cls(**msgspec.structs.asdict(one))


class SampleList(Shape):
    """Samples, newest first."""

    total: int
    """How many there are, whatever the limit."""
    samples: list[dict[str, Any]]


def feedback_routes(control: Control) -> APIRouter:
    """The routes, over one control plane."""
    router = APIRouter()

    @router.get("/samples", tags=["samples"], summary="Samples of real traffic, newest first")
    async def list_samples(
        model: str = "",
        version: str = "",
        since: Since = None,
        until: float | None = None,
        feedback: Given = "",
        texts: bool = True,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    ) -> SampleList:
        """`feedback` is `any`, `negative`, `positive` or `none`; texts are redacted, and missing where the
        configuration keeps none."""
        wanted = samples.Query(
            model=model,
            version=version,
            since=parse_since(since, time.time()) or 0.0,
            until=math.inf if until is None else until,
            feedback=feedback,
            texts=texts,
            limit=limit,
        )
        store = control.samples.store
        found = await asyncio.to_thread(store.query, wanted)
        total = await asyncio.to_thread(store.count, wanted)
        return SampleList(total=total, samples=[msgspec.to_builtins(one) for one in found])

    @router.get("/feedback", tags=["samples"], summary="Feedback, on requests that were not sampled too, newest first")
    async def list_feedback(
        model: str = "", version: str = "", since: Since = None, limit: Annotated[int, Query(ge=1, le=10_000)] = 1000
    ) -> list[FeedbackView]:
        store, from_when = control.samples.store, parse_since(since, time.time()) or 0.0
        found = await asyncio.to_thread(store.feedback, model, version=version, since=from_when, limit=limit)
        return [FeedbackView.of(one) for one in found]

    @router.post("/feedback", tags=["samples"], summary="Say how good an answer was")
    async def give_feedback(body: GiveFeedback, actor: Actor) -> FeedbackView:
        """It takes the place of what was said of the same request before, by whomever."""
        return FeedbackView.of(await asyncio.to_thread(control.samples.feedback.give, body.given(time.time())))

    return router
