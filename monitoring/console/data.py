"""What the data pages ask of whoever runs the yard: single requests, arms, distributions, evaluations.

Owns: these calls' names and what they answer. Never: how an answer comes about; serving.control implements it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from monitoring.cost_report import Hosted
from monitoring.request_log import RequestPage, RequestQuery, Traffic
from monitoring.sample_ratio import Split
from monitoring.statement import Dimension
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


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration says of a model, as far as the data pages need it."""

    required_gate: str = ""
    """The policy that a version must have passed before it gets more traffic; "" for none."""
    sample_rate: float = 0.0
    """The share of requests that is sampled."""
    sample_store: str = "features"
    """`none`, `features` or `text`."""


@dataclass(frozen=True, slots=True)
class DriftPolicy:
    """The thresholds of live drift."""

    watch: float
    act: float
    samples_min: int
    alpha: float


class DataSource(Protocol):
    """The yard as the data pages see it."""

    async def requests(self, wanted: RequestQuery) -> RequestPage:
        """Finished requests, newest first: in memory, then from the segments as far as they are searched."""

    async def request(self, request_id: str) -> Seen | None:
        """One of them; None where nothing is known of it."""

    async def traffic(self, model: str, since: float) -> Traffic:
        """The model's requests that arrived at `since` or later."""

    async def split(self, model: str) -> Split | None:
        """Whether users and conversations are divided as the route says, since it last changed; None without a
        route."""

    async def histograms(self) -> Mapping[HistogramKey, HistogramDelta]:
        """The ledger's totals since it began."""

    async def evaluations(self, model: str) -> list[Evaluation]:
        """Runs of evaluations of the model's versions, the latest first."""

    async def settings(self, model: str) -> Settings:
        """What the configuration in force says of the model."""

    async def drift_policy(self) -> DriftPolicy:
        """How windows are judged."""

    async def bill(self, since: float | None, by: Sequence[Dimension]) -> dict[str, Any]:
        """The cost statement (`monitoring.statement.Statement.as_json`) with lines told apart by these dimensions:
        `version`, `model`, `key`, `segment`, `hour`, `outcome`."""

    async def outlook(self) -> dict[str, Any] | None:
        """The month's forecast, budgets, and versions whose requests became dearer (`monitoring.outlook`), not older
        than a minute; None where it is not known yet."""

    async def hosted(self, since: float | None) -> Hosted | None:
        """What the window's tokens would have cost at hosted models' prices; None where none is to be compared."""
