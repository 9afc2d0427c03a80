"""Runs a suite on one version: what is missing is asked, each answer is scored and on disk within a second.

Owns: which samples are still to do, bounded concurrency, and when a run gives up. Never: statistics, printing.

A run gives up (ServerGoneError) where FAILURES_MAX samples in a row failed for a passing reason although each was
retried: the server is gone. What is done stays; the same command goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import httpx
import msgspec

from eval import scorers
from eval.client import TIMEOUT, Client, Completion, FinalError, PassingError
from eval.endpoint import headers, trusts_environment
from eval.errors import RequestRefusedError, RunError, ServerGoneError
from eval.results import Journal, Run, RunKey, Sample, Subject
from eval.scorers import Answered, Tools
from eval.suite import Case, Suite

FAILURES_MAX: Final = 3
SCORING_MAX_S: Final = 2.0
SYNC_EVERY_S: Final = 0.5
"""So that at most a second's samples are lost with the machine (none with the process)."""

_json = msgspec.json.Encoder(order="deterministic")


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
    failed: int = 0
    score_sum: float = 0.0
    scored: int = 0
    on_change: Callable[[Tally], None] = field(default=lambda tally: None)

    @property
    def mean(self) -> float | None:
        """The running mean score."""
        return self.score_sum / self.scored if self.scored else None

    def count(self, sample: Sample) -> None:
        self.done += 1
        if sample.score is None:
            self.failed += 1
        else:
            self.scored += 1
            self.score_sum += sample.score
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
            queue = iter(todo)
            syncing = asyncio.create_task(self._sync())
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(plan.concurrency, len(todo))):
                        group.create_task(self._worker(client, queue))
            except* (RequestRefusedError, ServerGoneError, RunError) as errors:
                raise errors.exceptions[0] from None
            finally:
                syncing.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await syncing
        return self._passing

    async def _sync(self) -> None:
        while True:
            await asyncio.sleep(SYNC_EVERY_S)
            await asyncio.to_thread(self._journal.sync)

    async def _worker(self, client: Client, queue: Iterator[tuple[Case, int]]) -> None:
        for case, repeat in queue:
            sample = await self._sample(client, case, repeat)
            self._journal.append(sample)
            self._tally.count(sample)
            if sample.final:
                self._failures_in_row = 0
                continue
            self._passing += 1
            self._failures_in_row += 1
            if self._failures_in_row >= FAILURES_MAX:
                raise ServerGoneError(
                    f"{self._failures_in_row} requests in a row failed at {self._plan.subject.url} ({sample.error}); "
                    "what is done is kept: the same command goes on from there"
                )

    async def _sample(self, client: Client, case: Case, repeat: int) -> Sample:
        sample = blank(case, repeat)
        try:
            completion = await client.complete(case, self._plan.key.seed + repeat)
        except PassingError as error:
            sample.error, sample.final = str(error), False
            return sample
        except FinalError as error:
            sample.error = str(error)
            return sample
        _fill(sample, completion)
        if wrong := _other_version(self._plan.subject, completion):
            sample.error, sample.final = wrong, False
            return sample
        scorer = scorers.build(case.scorer.name, case.scorer.options, case.target)
        answered = Answered(
            text=completion.text, finish_reason=completion.finish_reason, prompt=case.messages[-1].content
        )
        if scorer.needs:
            scored = await asyncio.to_thread(scorer.score, answered, case.target, self._tools)
            sample.score = scored.value
            return sample
        try:
            with _at_most(SCORING_MAX_S):
                sample.score = scorer.score(answered, case.target, self._tools).value
        except _ScoringTimeoutError:
            sample.error = (
                f"the scorer {case.scorer.name!r} was stopped after {SCORING_MAX_S:g} s on this answer: simplify its "
                "pattern"
            )
        return sample


class _ScoringTimeoutError(Exception):
    """A scorer took too long."""


@contextlib.contextmanager
def _at_most(limit_s: float) -> Iterator[None]:
    """Raise _ScoringTimeoutError in the block after `limit_s`.

    A suite's regular expression may need time exponential in the answer's length, and no thread can stop it; a signal
    can, which reaches the main thread only: elsewhere nothing is bounded.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(*_: object) -> None:
        raise _ScoringTimeoutError

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def blank(case: Case, repeat: int) -> Sample:
    """The sample of a case before it is asked."""
    return Sample(
        case=case.id,
        repeat=repeat,
        slice=case.slice,
        cluster=case.cluster,
        scorer=case.scorer.name,
        prompt=case.messages[-1].content,
        prompt_digest=case.prompt_digest,
        target=_json.encode(case.target).decode(),
        target_digest=case.target_digest,
    )


def _fill(sample: Sample, completion: Completion) -> None:
    sample.output = completion.text
    sample.finish_reason = completion.finish_reason
    sample.prompt_tokens = completion.prompt_tokens
    sample.completion_tokens = completion.completion_tokens
    sample.ttft_s = completion.ttft_s
    sample.latency_s = completion.latency_s
    sample.started_at = completion.started_at
    sample.attempts = completion.attempts
    sample.answered_by = completion.answered_by


def _other_version(subject: Subject, completion: Completion) -> str:
    """Why the answer does not count where another version than the pinned one gave it (a fallback); "" otherwise."""
    if not subject.digest or not completion.answered_by:
        return ""
    pinned, answered = subject.model.rpartition("@")[2], completion.answered_by.rpartition("@")[2]
    return "" if pinned == answered else f"{completion.answered_by} answered in place of {subject.model}"
