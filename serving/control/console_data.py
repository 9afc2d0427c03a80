"""What the console's data pages read of a running yard.

Owns: putting together the answers of `monitoring.console.data.DataSource`. Never: HTML, HTTP, changing anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from monitoring.console.data import DriftPolicy, Evaluation, Seen, Settings
from monitoring.cost_report import Hosted
from monitoring.request_log import RequestPage, RequestQuery, Traffic
from monitoring.sample_ratio import Split
from monitoring.statement import Dimension
from registry.entries import HistogramDelta, HistogramKey
from registry.sample_store import SampleStore
from registry.samples import Feedback, Query, TrafficSample
from registry.usage import RequestRecord
from serving.control.accounts import Accounts
from serving.control.desk import Parts

NEAR_S = 1e-3
"""Samples and feedback carry the time of their request, as a number that may be rounded."""
SAME_TIME_MAX = 1000
RUNS_MAX = 200


class ConsoleData:
    """Answers for one yard; `runs` is the folder of evaluation runs."""

    def __init__(self, parts: Parts, runs: Path) -> None:
        self._parts = parts
        self._runs = runs

    @property
    def _accounts(self) -> Accounts:
        return self._parts.accounts

    async def requests(self, wanted: RequestQuery) -> RequestPage:
        await self._accounts.fresh()
        return await self._accounts.requests(wanted)

    async def request(self, request_id: str) -> Seen | None:
        await self._accounts.fresh()
        found = await self._accounts.request(request_id)
        own = [one for one in found if one.request_id == request_id and not one.shadow_of]
        if not own:
            return None
        sample, feedback = await asyncio.to_thread(kept_of, self._parts.samples.store, own[0])
        copies = tuple(one for one in found if one.shadow_of)
        return Seen(own[0], copies, tuple(own[1:]), sample, feedback)

    async def traffic(self, model: str, since: float) -> Traffic:
        await self._accounts.fresh()
        return self._accounts.traffic(model, since)

    async def split(self, model: str) -> Split | None:
        return next((one for one in self._parts.splits.state() if one.model == model), None)

    async def histograms(self) -> Mapping[HistogramKey, HistogramDelta]:
        return (await self._accounts.fresh()).histograms

    async def evaluations(self, model: str) -> list[Evaluation]:
        return await asyncio.to_thread(evaluations, self._runs, model)

    async def settings(self, model: str) -> Settings:
        found = self._parts.config.models.get(model)
        return (
            Settings(found.require_gate, found.samples.rate, found.samples.store) if found is not None else Settings()
        )

    async def drift_policy(self) -> DriftPolicy:
        said = self._parts.config.drift
        return DriftPolicy(said.watch, said.act, said.samples_min, said.alpha)

    async def bill(self, since: float | None, by: Sequence[Dimension]) -> dict[str, Any]:
        return (await self._accounts.cost(since, None, by)).as_json()

    async def outlook(self) -> dict[str, Any] | None:
        await self._parts.costs.refresh()
        latest = self._parts.costs.latest
        return latest.as_json() if latest is not None else None

    async def hosted(self, since: float | None) -> Hosted | None:
        return await self._parts.costs.hosted(await self._accounts.cost(since, None, ("version",)), ())


def kept_of(store: SampleStore, record: RequestRecord) -> tuple[TrafficSample | None, Feedback | None]:
    """The sample and the feedback of a request, by its time and its id. Raises DatabaseError."""
    since, until = record.started_at - NEAR_S, record.started_at + NEAR_S
    wanted = Query(model=record.model, since=since, until=until, limit=SAME_TIME_MAX)
    samples = (one for one in store.query(wanted) if (one.request_id, one.key) == (record.request_id, record.key_id))
    said = store.feedback(record.model, since=since, until=until, limit=SAME_TIME_MAX)
    given = (one for one in said if (one.request_id, one.key) == (record.request_id, record.key_id))
    return next(samples, None), next(given, None)


class _Subject(msgspec.Struct):
    ref: str
    model: str = ""
    digest: str = ""


class _Run(msgspec.Struct):
    """What of an evaluation's `run.json` is shown."""

    suite: str
    planned: int
    subject: _Subject
    started_at: float
    finished_at: float | None = None


def evaluations(folder: Path, model: str) -> list[Evaluation]:
    """Runs of the model's versions under `folder`, the latest first. What is no run, or a damaged one, is left out."""
    found: list[Evaluation] = []
    for path in folder.glob("*/run.json"):
        try:
            run = msgspec.json.decode(path.read_bytes(), type=_Run)
        except (OSError, msgspec.DecodeError):
            continue
        if run.subject.model.partition("@")[0] == model:
            found.append(
                Evaluation(
                    path.parent.name,
                    run.suite,
                    run.subject.model,
                    run.subject.digest,
                    run.planned,
                    run.started_at,
                    run.finished_at,
                )
            )
    return sorted(found, key=lambda one: -one.started_at)[:RUNS_MAX]
