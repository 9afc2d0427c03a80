"""Runs a suite on one version: what is missing is asked, each answer is scored and on disk within a second.

Owns: which samples are still to do, bounded concurrency, and when a run gives up. Never: statistics, printing.

Asking and scoring are apart: whoever has an answer sends the next request before the answer is scored, so that the
engine has `concurrency` requests at any time, whatever a scorer takes.

A run gives up (ServerGoneError) where FAILURES_MAX samples in a row failed for a passing reason although each was
retried: the server is gone. What is done stays; the same command goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import httpx

from eval import cache, scoring
from eval.cache import ResponseCache
from eval.client import TIMEOUT, Client, FinalError
from eval.endpoint import headers, trusts_environment
from eval.errors import RequestRefusedError, ServerGoneError
from eval.results import Journal, Run, RunKey, Sample, Subject
from eval.scorers import Likelihood, Tools
from eval.stream import Completion, PassingError
from eval.suite import Case, Suite

FAILURES_MAX: Final = 3
SCORED_AT_ONCE: Final = 4
"""Answers with a judge, a sandbox or an embedder at a time."""
UNSCORED_PER_REQUEST: Final = 4
"""Answers that may wait for their score, per request in flight: then asking waits too, and memory stays bounded."""
SYNC_EVERY_S: Final = 0.5
"""So that at most a second's samples are lost with the machine (none with the process)."""
Z: Final = 1.959964

Likelihoods = Callable[[Case], Mapping[str, Likelihood]]
"""Case -> each of its choices (for `perplexity`: its target) with its likelihood. Blocks; called in a thread."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One run, ready to go."""

    suite: Suite
    subject: Subject
    key: RunKey
    run: Run
    concurrency: int
    verify: ssl.SSLContext | bool = True
    """How the server is recognised where it speaks HTTPS."""
    cache: ResponseCache | None = None
    """Where answers are kept; None: everything is asked, and nothing is kept."""
    likelihoods: Likelihoods | None = None
    """Of a suite with cases that are scored by likelihood."""

    @property
    def wanted(self) -> Iterator[tuple[Case, int]]:
        for repeat in range(self.key.repeats):
            for case in self.suite.cases:
                yield case, repeat

    @property
    def total(self) -> int:
        return len(self.suite.cases) * self.key.repeats


@dataclass(slots=True)
class Tally:
    """How far a run is, for progress displays."""

    total: int
    done: int = 0
    """With a score, or finally failed."""
    kept: int = 0
    """Of these, taken from before."""
    cached: int = 0
    """Of these, answered by the response cache."""
    failed: int = 0
    weight: float = 0.0
    weight_squares: float = 0.0
    score_sum: float = 0.0
    """Of score x weight."""
    on_change: Callable[[Tally], None] = field(default=lambda tally: None)

    @property
    def mean(self) -> float | None:
        """The running mean score."""
        return self.score_sum / self.weight if self.weight else None

    @property
    def half_width(self) -> float | None:
        """Half of Wilson's interval at 95%, by Kish's number of samples: an upper bound for graded scores. A display
        while it runs; clusters are not looked at."""
        mean = self.mean
        if mean is None:
            return None
        n = self.weight**2 / self.weight_squares
        return Z / (1 + Z**2 / n) * math.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n * n))

    def count(self, sample: Sample) -> None:
        self.done += 1
        self.cached += sample.cached
        if sample.score is None:
            self.failed += 1
        else:
            self.weight += sample.weight
            self.weight_squares += sample.weight**2
            self.score_sum += sample.weight * sample.score
        self.on_change(self)


def key_of(suite: Suite, subject: Subject, *, seed: int, repeats: int | None, twin: bool = False) -> RunKey:
    """The key of running `suite` on `subject`."""
    return RunKey(
        suite_digest=suite.digest,
        identity=subject.identity,
        sampling=suite.sampling,
        seed=seed,
        repeats=repeats or suite.repeats,
        twin=twin,
    )


def execute(plan: Plan, tally: Tally, *, tools: Tools, transport: httpx.AsyncBaseTransport | None = None) -> None:
    """Do what is missing of the run; a finished one is left as it is.

    Raises KeyboardInterrupt after Ctrl-C, ServerGoneError, RequestRefusedError; what is done is kept in each case.
    """
    if plan.run.finished:
        _keep(plan, tally)
        return
    with plan.run.lock():
        kept = _keep(plan, tally)
        if plan.run.finished:  # by another process, meanwhile
            return
        todo = [(case, repeat) for case, repeat in plan.wanted if (case.id, repeat) not in kept]
        journal = Journal(plan.run.journal)
        try:
            passing = asyncio.run(_Session(plan, journal, tally, tools, transport).run(todo))
        finally:
            journal.close()
        if not passing:
            plan.run.compact(time.time())


def _keep(plan: Plan, tally: Tally) -> set[tuple[str, int]]:
    """Count what the run has already; the ids that need not be asked again."""
    kept = {sample_id: sample for sample_id, sample in plan.run.samples().items() if sample.final}
    for case, repeat in plan.wanted:
        if (case.id, repeat) in kept:
            tally.kept += 1
            tally.count(kept[case.id, repeat])
    return set(kept)


@dataclass(slots=True)
class _Answer:
    """A sample whose answer is there and whose score is not."""

    sample: Sample
    case: Case
    completion: Completion
    choices: Mapping[str, Likelihood] | None = None


class _Session:
    """One sitting of a run."""

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        tally: Tally,
        tools: Tools,
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        self._plan = plan
        self._journal = journal
        self._tally = tally
        self._tools = tools
        self._transport = transport
        self._failures_in_row = 0
        self._passing = 0
        self._asking: list[asyncio.Task[None]] = []
        self._end: RequestRefusedError | ServerGoneError | None = None

    async def run(self, todo: list[tuple[Case, int]]) -> int:
        """Ask everything in `todo`; how many failed for a passing reason."""
        plan = self._plan
        limits = httpx.Limits(max_connections=plan.concurrency, max_keepalive_connections=plan.concurrency)
        async with httpx.AsyncClient(
            transport=self._transport,
            limits=limits,
            timeout=TIMEOUT,
            headers=headers(),
            trust_env=trusts_environment(plan.subject.url),
            verify=plan.verify,
        ) as http:
            client = Client(
                http,
                plan.subject.url,
                plan.subject.model,
                sampling=plan.key.sampling,
                jitter=random.Random(plan.key.seed),  # noqa: S311 - jitter of retries
            )
            syncing = asyncio.create_task(self._sync())
            try:
                await self._all(client, todo)
            except* Exception as errors:
                raise errors.exceptions[0] from None
            finally:
                syncing.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await syncing
        if self._end is not None:
            raise self._end
        return self._passing

    async def _all(self, client: Client, todo: list[tuple[Case, int]]) -> None:
        """Askers put answers into the queue, scorers take them out; what was answered is scored before this ends."""
        queue = iter(todo)
        answers: asyncio.Queue[_Answer | None] = asyncio.Queue(UNSCORED_PER_REQUEST * self._plan.concurrency)
        async with asyncio.TaskGroup() as group:
            for _ in range(SCORED_AT_ONCE):
                group.create_task(self._score(answers))
            count = min(self._plan.concurrency, len(todo))
            self._asking = [group.create_task(self._ask(client, queue, answers)) for _ in range(count)]
            if self._asking:
                await asyncio.wait(self._asking)
            for _ in range(SCORED_AT_ONCE):
                await answers.put(None)

    async def _sync(self) -> None:
        while True:
            await asyncio.sleep(SYNC_EVERY_S)
            await asyncio.to_thread(self._journal.sync)
            if self._plan.cache is not None:
                await asyncio.to_thread(self._plan.cache.flush)

    async def _ask(
        self, client: Client, queue: Iterator[tuple[Case, int]], answers: asyncio.Queue[_Answer | None]
    ) -> None:
        """Ask one case after another until there is none, or the run has to end."""
        for case, repeat in queue:
            sample = scoring.blank(case, repeat)
            try:
                await answers.put(await self._answer(client, sample, case))
            except FinalError as error:
                sample.error = str(error)
                self._record(sample)
            except PassingError as error:
                sample.error, sample.final = str(error), False
                self._record(sample)
                self._failed(sample)
            except RequestRefusedError as error:
                self._give_up(error)

    async def _answer(self, client: Client, sample: Sample, case: Case) -> _Answer:
        plan = self._plan
        if case.kind != "generate":
            return await self._likelihood(sample, case)
        key = cache.key_of(plan.subject, plan.key, case, sample.repeat) if plan.cache is not None else ""
        kept = plan.cache.get(key) if plan.cache is not None and key else None
        completion = kept or await client.complete(case, plan.key.seed + sample.repeat)
        scoring.fill(sample, completion)
        sample.cached = kept is not None
        if kept is None:
            if wrong := _other_version(plan.subject, completion):
                raise PassingError(wrong)
            self._failures_in_row = 0
            if plan.cache is not None and key:
                plan.cache.put(key, completion)
        return _Answer(sample, case, completion)

    async def _likelihood(self, sample: Sample, case: Case) -> _Answer:
        assert self._plan.likelihoods is not None, "a suite with such a case has a provider"
        completion, began = Completion(started_at=time.time()), time.perf_counter()
        choices = await asyncio.to_thread(self._plan.likelihoods, case)
        completion.latency_s = time.perf_counter() - began
        scoring.fill(sample, completion)
        scoring.fill_choices(sample, choices)
        return _Answer(sample, case, completion, choices)

    async def _score(self, answers: asyncio.Queue[_Answer | None]) -> None:
        while (answer := await answers.get()) is not None:
            sample = answer.sample
            await scoring.score(sample, answer.case, answer.completion, self._tools, answer.choices)
            self._record(sample)
            if not sample.final:
                self._passing += 1

    def _record(self, sample: Sample) -> None:
        self._journal.append(sample)
        self._tally.count(sample)

    def _failed(self, sample: Sample) -> None:
        self._passing += 1
        self._failures_in_row += 1
        if self._failures_in_row >= FAILURES_MAX:
            self._give_up(
                ServerGoneError(
                    f"{self._failures_in_row} requests in a row failed at {self._plan.subject.url} ({sample.error}); "
                    "what is done is kept: the same command goes on from there"
                )
            )

    def _give_up(self, error: RequestRefusedError | ServerGoneError) -> None:
        """Ask nothing more. What is answered already is scored and kept."""
        self._end = self._end or error
        for task in self._asking:
            task.cancel()


def _other_version(subject: Subject, completion: Completion) -> str:
    """Why the answer does not count where another version than the pinned one gave it (a fallback); "" otherwise."""
    if not subject.digest or not completion.answered_by:
        return ""
    pinned, answered = subject.model.rpartition("@")[2], completion.answered_by.rpartition("@")[2]
    return "" if pinned == answered else f"{completion.answered_by} answered in place of {subject.model}"
