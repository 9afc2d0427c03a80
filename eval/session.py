"""What `run` and `compare` do around a run: find suite and server, keep what is there, show progress.

Owns: the order of those steps and the progress display. Never: statistics, the layout of reports.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from eval import assessment, costs, endpoint, loaders, runner, scorers, tools
from eval import judge as judges
from eval.cache import ResponseCache
from eval.errors import RequestRefusedError, RunError
from eval.floors import Floor, Floors
from eval.judge import HttpJudge
from eval.results import Run, RunKey, RunStore, Spent, Subject
from eval.scorers.judge import Judging
from eval.suite import Suite
from registry.state import StateDir
from registry.terminal import UserError, progress

MARGIN = 0.05
"""δ where neither the command nor the suite gives one."""

if TYPE_CHECKING:
    from rich.progress import Progress

    from eval.generated import GenerateContext


@dataclass(frozen=True, slots=True)
class Settings:
    """The options that decide a run."""

    suite: str
    url: str | None = None
    admin_url: str | None = None
    state_dir: Path | None = None
    concurrency: int = 4
    seed: int = 0
    repeats: int | None = None
    limit: int | None = None
    fresh: bool = False
    slices: tuple[str, ...] = ()
    use_cache: bool = True
    provider: str = "auto"
    """Who gives log-likelihoods, for suites that need them (eval.providers)."""
    price: tuple[float, str] | None = None
    """Per hour of the engine's device, and its currency; where no admin API tells what a run cost."""
    judge: str | None = None
    """Who judges where a scorer names nobody; else $MODELYARD_JUDGE."""
    path: Path | None = None
    """A published data set, where `suite` names its format."""
    sample_seed: int = 0
    """Draws the `limit` cases."""
    models: tuple[str, ...] = ()
    """Who will be asked: a generated suite fits their context."""


@dataclass(frozen=True, slots=True)
class Job:
    """A run that is planned, and what happened to it."""

    plan: runner.Plan
    was_finished: bool
    was_begun: int
    """Samples that it had already."""

    @property
    def run(self) -> Run:
        return self.plan.run


class Session:
    """One command's suite, server and runs."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.state = StateDir.find(settings.state_dir)
        self.endpoint = endpoint.find(settings.url, settings.admin_url, self.state)
        cache = self.state.root / "cache" / "datasets"
        whole: Suite = loaders.load(settings.suite, cache, path=settings.path, context=self._context)
        self.suite = whole.sliced(settings.slices).limited(settings.limit, settings.sample_seed)
        self.store = RunStore(self.state.runs)
        self.floors = Floors(self.state.root / "floors")
        needs = scorers.needs({case.scorer.name for case in self.suite.cases})
        self._cache = (
            ResponseCache(self.state.root / "cache" / "answers.sqlite", reading=not settings.fresh)
            if settings.use_cache
            else None
        )
        self._judge: HttpJudge | None = None
        self.judgings: tuple[Judging, ...] = ()
        if scorers.JUDGE in needs:
            self._judge, self.judgings = self._bind_judge()
        self._tools = tools.prepare(needs, self._judge)

    def _context(self) -> GenerateContext:
        """The smallest window of those who will be asked, as their servers tell it."""
        from eval import providers  # noqa: PLC0415 - for generated suites
        from eval.generated import GenerateContext  # noqa: PLC0415 - as above

        subjects = [endpoint.resolve(self.endpoint, ref) for ref in self.settings.models]
        at = self.endpoint
        known = [providers.capabilities(one, at.verify if one.url == at.url else True) for one in subjects]
        return GenerateContext(
            context_tokens=min((one.context_tokens for one in known if one.context_tokens), default=None)
        )

    def subject(self, ref: str) -> Subject:
        """What `ref` stands for at the server; in process, where all of the suite goes there, among the files."""
        if self._likelihood and all(case.kind != "generate" for case in self.suite.cases):
            from eval import providers  # noqa: PLC0415 - for suites that need one

            wanted = providers.Wanted(self.settings.provider)
            if providers.is_in_process(wanted, ref):
                return providers.locate(ref, self.state, self.endpoint)[0]
        return endpoint.resolve(self.endpoint, ref)

    def key(self, subject: Subject, *, twin: bool = False) -> RunKey:
        """The key of this suite on `subject` with these settings."""
        provider = self.settings.provider if self._likelihood and self.settings.provider != "auto" else ""
        repeats = self.settings.repeats
        key = runner.key_of(self.suite, subject, seed=self.settings.seed, repeats=repeats, twin=twin)
        return msgspec.structs.replace(key, provider=provider)

    def job(self, subject: Subject, *, twin: bool = False) -> Job:
        """Open the run of `subject`: a finished one, a begun one, or a new one."""
        key = self.key(subject, twin=twin)
        run = self.store.open(
            self.suite, subject, key, fresh=self.settings.fresh, now=time.time(), judges=self.judgings
        )
        begun = sum(1 for sample in run.samples().values() if sample.final)
        verify = self.endpoint.verify if subject.url == self.endpoint.url else True
        plan = runner.Plan(self.suite, subject, key, run, self.settings.concurrency, verify, self._cache)
        return Job(plan, run.finished, begun)

    def contest(self, baseline: str, candidates: Sequence[str]) -> tuple[Job, list[Job]]:
        """The runs of a comparison. Of a version with itself (A/A), the second is a run of its own.

        Raises UserError where two candidates are one version.
        """
        left, rights = self.subject(baseline), [self.subject(ref) for ref in candidates]
        seen: dict[str, str] = {}
        for right in rights:
            if right.identity in seen:
                twice = f"{seen[right.identity]} and {right.ref} are the same version"
                raise UserError(f"{twice}: name each candidate once")
            seen[right.identity] = right.ref
        return self.job(left), [self.job(right, twin=left.identity == right.identity) for right in rights]

    def floor(self, job: Job, alpha: float) -> Floor | None:
        """The noise floor of the job's version on this suite: measured where its second run is finished, else the one
        that is kept. Call it when the job is finished."""
        subject = job.plan.subject
        kept = self.floors.get(self.suite.digest, subject.identity)
        twin = self.store.latest(self.suite, subject, self.key(subject, twin=True))
        if twin is None or not twin.finished or (kept is not None and kept.run == twin.name):
            return kept
        found = assessment.measure_floor(job.run, twin, alpha=alpha, seed=self.settings.seed)
        if found is None:
            return kept
        found = replace(found, measured_at=time.time())
        self.floors.put(self.suite.digest, subject.identity, found)
        return found

    def margin(self, given: float | None, subject: Subject) -> float:
        """δ: the command's, else the suite's, else MARGIN, or the baseline's noise where that is larger."""
        for value in (given, self.suite.margin):
            if value is not None:
                return value
        floor = self.floors.get(self.suite.digest, subject.identity)
        return max(MARGIN, floor.bound) if floor is not None else MARGIN

    def execute(self, jobs: list[Job]) -> None:
        """Do what is missing, one run after another, with one bar each where a terminal shows it. Once per session:
        the cache is closed at the end.

        Where the server refuses a run altogether, those that have no sample are removed: nothing was run.
        """
        try:
            with progress() as display, self._cache or nullcontext(), self._judge or nullcontext():
                for job in jobs:
                    self._one(job, display)
        except RequestRefusedError:
            for job in jobs:
                with suppress(RunError):  # another process is writing it
                    job.run.discard_empty()
            raise

    def _one(self, job: Job, display: Progress) -> None:
        ref = job.plan.subject.ref
        bar = display.add_task(ref, total=job.plan.total)

        def show(tally: runner.Tally) -> None:
            score = f"  score {tally.mean:.3f} ± {tally.half_width:.3f}" if tally.mean is not None else ""
            cached = f"  {tally.cached} cached" if tally.cached else ""
            failed = f"  {tally.failed} failed" if tally.failed else ""
            display.update(bar, completed=tally.done, description=f"{ref}{score}{cached}{failed}")

        tally = runner.Tally(job.plan.total, on_change=show)
        began = time.time()
        before = None if job.was_finished else self._books(job)
        try:
            with self._likelihoods(job) as likelihoods:
                runner.execute(replace(job.plan, likelihoods=likelihoods), tally, tools=self._tools)
        except KeyboardInterrupt:
            display.stop()
            sys.stderr.write(
                f"stopped: {tally.done} of {tally.total} samples of {ref} are kept in {job.run.folder}; "
                "the same command goes on from there\n"
            )
            raise
        if not job.was_finished:
            self._account(job, before, began)

    def _bind_judge(self) -> tuple[HttpJudge, tuple[Judging, ...]]:
        """The judge that the suite's scorers ask, named in the suite from here on: its digest says who judges."""
        kept = ResponseCache(self.state.root / "cache" / "judgements.sqlite", reading=not self.settings.fresh)
        found = HttpJudge(self.endpoint, kept if self.settings.use_cache else None)
        self.suite = judges.bind(self.suite, found, self.settings.judge)
        return found, judges.judgings(self.suite, found)

    @property
    def _likelihood(self) -> bool:
        return any(case.kind != "generate" for case in self.suite.cases)

    @contextmanager
    def _likelihoods(self, job: Job) -> Iterator[runner.Likelihoods | None]:
        """Who gives the log-likelihoods that the suite needs; refused before anything is asked where nobody does."""
        if job.was_finished or not self._likelihood:
            yield None
            return
        from eval import providers  # noqa: PLC0415 - for suites that need one

        wanted = providers.Wanted(self.settings.provider)
        with closing(
            providers.find(job.plan.subject, wanted=wanted, server=self.endpoint, state=self.state)
        ) as provider:
            yield provider.likelihoods

    def _books(self, job: Job) -> costs.Books | None:
        """The yard's books, where the run's requests will be in them."""
        subject = job.plan.subject
        return costs.read(self.endpoint) if subject.digest and subject.url == self.endpoint.url else None

    def _account(self, job: Job, before: costs.Books | None, began: float) -> None:
        """Note what the sitting cost."""
        samples = job.run.samples().values()
        requests, answered = costs.asked(samples, began)
        spent: list[Spent] = []
        if before is not None:
            version = job.plan.subject.model
            after = costs.read_after(lambda: costs.read(self.endpoint), version, before, requests)
            if after is not None:
                spent = costs.of_sitting(before, after, version, requests=requests, answered=answered)
                spent = costs.added(job.run.info().costs, spent)
        elif self.settings.price is not None:
            spent = costs.at_price(samples, *self.settings.price)
        if spent:
            with job.run.lock():
                info = job.run.info()
                info.costs = spent
                job.run.write_info(info)


def state_of(job: Job) -> str:
    """What became of the run, in a phrase."""
    if job.was_finished:
        return "reused: it was finished before (--fresh runs it anew)"
    if job.was_begun:
        return f"resumed: {job.was_begun} of {job.plan.total} samples were there"
    return "new"
