"""What the data pages ask of whoever runs the yard: single requests, arms, distributions, evaluations.

Owns: these calls' names and what they answer. Never: how an answer comes about; serving.control implements it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from monitoring.request_log import RequestPage, RequestQuery, Traffic
from registry.entries import HistogramDelta, HistogramKey
from registry.samples import Feedback, TrafficSample
from registry.usage import RequestRecord


@dataclass(frozen=True, slots=True)
class Seen:
    """One request, with everything that is kept of it."""

    record: RequestRecord
    copies: tuple[RequestRecord, ...] = ()
    """What shadow arms made of it."""
    others: tuple[RequestRecord, ...] = ()
    """Further requests whose client gave the same id."""
    sample: TrafficSample | None = None
    """Its texts are redacted, and None where none are kept."""
    feedback: Feedback | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A run of an evaluation in the state directory."""

    name: str
    suite: str
    subject: str
    """`model@version`, as it was named."""
    digest: str
    """Of the version; "" where it was not known."""
    planned: int
    started_at: float
    finished_at: float | None


class DataSource(Protocol):
    """The yard as the data pages see it."""

    async def requests(self, wanted: RequestQuery) -> RequestPage:
        """Finished requests, newest first: in memory, then from the segments as far as they are searched."""

    async def request(self, request_id: str) -> Seen | None:
        """One of them; None where nothing is known of it."""

    async def traffic(self, model: str, since: float) -> Traffic:
        """The model's requests that arrived at `since` or later."""

    async def histograms(self) -> Mapping[HistogramKey, HistogramDelta]:
        """The ledger's totals since it began."""

    async def evaluations(self, model: str) -> list[Evaluation]:
        """Runs of evaluations of the model's versions, the latest first."""

    async def required_gate(self, model: str) -> str:
        """The policy that a version must have passed before it gets more traffic; "" for none."""

    async def bill(self, since: float | None, by: Sequence[str]) -> dict[str, Any]:
        """The cost statement (`monitoring.statement.Statement.as_json`) with lines told apart by these dimensions:
        `version`, `model`, `key`, `segment`, `hour`, `outcome`."""
