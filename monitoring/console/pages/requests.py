"""Requests: what came in, who answered, and where a request's time went.

Owns: the list and one request's page. Never: which requests are kept (`monitoring.request_log`), redacting a text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from monitoring.console.data import Seen
from monitoring.console.shell import Page, Shell
from monitoring.observe import outcome_class
from monitoring.request_log import FAULTY, RequestPage, RequestQuery, phases, tokens_per_second
from registry.errors import NotFoundError
from registry.usage import RequestRecord

PAGE: Final = Page(
    "/requests", "Requests", "What came in, who answered it, and where did the time go?", order=40, private=True
)
PER_PAGE: Final = 50
NAME_MAX: Final = 128
OUTCOMES: Final = {
    "completed": "Answered",
    "client_error": "Refused by the engine",
    "failed": "Failed",
    "cancelled": "Client went away",
    "truncated": "Cut off",
    "rejected": "Refused here",
    FAULTY: "Anything but answered",
}
KINDS: Final = {"completed": "good", "failed": "bad", "truncated": "bad", "client_error": "wait", "rejected": "wait"}
MEANING: Final = {
    "completed": "The engine's whole answer reached the client.",
    "client_error": "The engine itself refused the request: the client asked for something that it does not do.",
    "failed": "Every attempt failed before the first content.",
    "cancelled": "The client went away before the answer was complete.",
    "truncated": "The answer was cut after its first content; the client was told so.",
    "rejected": "The router refused it: bad input, an unknown model, a key or a limit. No engine saw it.",
}
Name = Annotated[str, Query(max_length=NAME_MAX)]


@dataclass(frozen=True, slots=True)
class Line:
    """One request as both pages show it."""

    record: RequestRecord
    outcome: str
    kind: str
    words: str
    speed: float | None
    phases: tuple[Any, ...]

    @classmethod
    def of(cls, record: RequestRecord) -> Line:
        outcome = outcome_class(record)
        return cls(
            record,
            outcome,
            KINDS.get(outcome, "off"),
            OUTCOMES[outcome],
            tokens_per_second(record),
            phases(record),
        )

    @property
    def detour(self) -> str:
        """Why another version answered than the split assigned; "" where none did."""
        record = self.record
        if not record.version or record.version == record.assigned or not record.assigned:
            return ""
        return "named by the client" if record.pinned else "took over"


def routes(shell: Shell) -> APIRouter:
    router = APIRouter()

    @router.get(PAGE.path)
    async def requests(
        request: Request,
        model: Name = "",
        version: Name = "",
        arm: Name = "",
        outcome: Name = "",
        key: Name = "",
        segment: Name = "",
        order: Annotated[str, Query(pattern="^(newest|slowest|)$")] = "newest",
        copies: bool = False,
        before: float = 0.0,
    ) -> Response:
        wanted = RequestQuery(
            *(model, version, arm, outcome, key, segment),
            copies=copies,
            slowest=order == "slowest",
            before=before or math.inf,
            limit=PER_PAGE,
        )
        found = await shell.source.requests(wanted)
        status = await shell.source.status()
        page = PAGE if not before else replace(PAGE, live=False)  # what is past does not change
        return shell.render(
            request,
            page,
            "requests.html",
            wanted=wanted,
            found=found,
            lines=[Line.of(one) for one in found.records],
            models=choices(status, found),
            hello=hello(status, model),
            outcomes=OUTCOMES,
            longest=max((one.duration_s for one in found.records), default=0.0),
            older=older(wanted, found),
        )

    @router.get(PAGE.path + "/{request_id:path}")
    async def one(request: Request, request_id: str) -> Response:
        seen = await shell.source.request(request_id)
        if seen is None:
            raise NotFoundError(
                f"nothing is known of the request {request_id}",
                remedy="its record may be older than what is searched, or not counted yet: try again in a second",
            )
        page = replace(PAGE, live=False)
        return shell.render(
            request, page, "request.html", line=Line.of(seen.record), seen=seen, why=why_no_text(seen), meaning=MEANING
        )

    return router


def hello(status: Mapping[str, Any], model: str) -> str:
    """A command that sends a model its first request."""
    name = model or next((one["model"] for one in status["models"]), "MODEL")
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "Say hello."}}]}}'
    return f"curl {status['url']}/v1/chat/completions -H 'content-type: application/json' -d '{body}'"


def choices(status: dict[str, Any], found: RequestPage) -> dict[str, list[str]]:
    """Model -> its versions, for the lists to choose from: those that are served, and those of the requests shown."""
    names: dict[str, list[str]] = {}
    for model in status["models"]:
        names[model["model"]] = [one["label"] for one in model["versions"]]
    for record in found.records:
        if record.model:
            known = names.setdefault(record.model, [])
            known.extend(label for label in (record.version, record.assigned) if label and label not in known)
    return names


def older(wanted: RequestQuery, found: RequestPage) -> str:
    """The query of the next page; "" where there is none. The slowest have one page."""
    if not found.more or wanted.slowest:
        return ""
    said = {
        name: getattr(wanted, name)
        for name in ("model", "version", "arm", "outcome", "key", "segment")
        if getattr(wanted, name)
    }
    if wanted.copies:
        said["copies"] = "true"
    return urlencode({**said, "before": repr(found.records[-1].ended_at)})


def why_no_text(seen: Seen) -> str:
    """Why the page shows no text; "" where it does."""
    if seen.sample is None:
        return "It was not among the requests that are sampled."
    if seen.sample.messages is None and seen.sample.output is None:
        return "It was sampled, and the model keeps figures only (samples.store: features)."
    return ""
