"""The watch over live drift: when windows are compared, what became of it, and whom to tell.

Owns: the rhythm, the child process and its bounds, `drift/` in the state directory, deliveries to the webhook. Never:
computing anything on the event loop or in this process (live_drift_child does), deciding what a distance means.

A round costs nothing where nothing came in since the last one; else one child process at low priority, whose CPU
seconds are limited.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from monitoring import drift_watch_board
from monitoring.drift_watch_episodes import Episode, after_attempt, follow
from monitoring.drift_watch_metrics import DriftState
from monitoring.live_drift_job import CHILD, Embedding, Job, Pin, Said
from monitoring.windows import Drift, Policy, References
from registry.config import DriftConfig
from registry.terminal import NotThereError, UserError

log = logging.getLogger("modelyard.drift")

TICK_S: Final = 1.0
PIN_CPU_S: Final = 300.0
"""A person waits for a pin: it may take longer than a round."""
WALL_FACTOR: Final = 6.0
"""A child at low priority gets its CPU seconds within so many times as long, or is killed."""
SAID_BYTES_MAX: Final = 32 * 1024 * 1024
PASSED_ON: Final = ("PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "TZ")
Versions = Callable[[], Mapping[str, Sequence[str]]]


class DriftError(UserError):
    """A check could not be made; one sentence says why."""


class DriftWatch:
    """One yard's watch. `run` until cancelled; the other calls are the admin API's.

    `folder` is the watch's own, `samples` the store's path, `runs` the folder of evaluation runs; `config` is the
    configuration in force, `versions` the labels of every served model, `link` where a person reads about a model's
    drift.
    """

    def __init__(
        self,
        folder: Path,
        samples: Path,
        runs: Path,
        *,
        config: Callable[[], DriftConfig],
        versions: Versions,
        link: Callable[[str], str],
        rng: random.Random,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder = folder
        self.references = References(folder / "references")
        self._samples = samples
        self._runs = runs
        self._config = config
        self._versions = versions
        self._link = link
        self._rng = rng
        self._clock = clock
        self._lock = asyncio.Lock()
        self._told = asyncio.Event()
        self._seen: tuple[object, ...] = ()
        self._looked_at = 0.0
        self._summaries: dict[str, tuple[int, dict[str, Any]]] = {}
        self.board = drift_watch_board.read(self._board)
        self.problem = ""
        """Why the last round failed; "" where it did not."""

    @property
    def _board(self) -> Path:
        return self.folder / "board.json"

    @property
    def every_s(self) -> float:
        return self._config().every_s

    # The rhythm

    async def run(self) -> None:
        """Check every `every_s`, and deliver what is to be told, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._rounds())
            group.create_task(self._deliveries())

    async def _rounds(self) -> None:
        self._looked_at = self.board.checked_at
        while True:
            await asyncio.sleep(TICK_S)
            every_s = self._config().every_s
            if not every_s or abs(self._clock() - self._looked_at) < every_s:
                continue
            self._looked_at = self._clock()
            try:
                if await asyncio.to_thread(self._changed):
                    await self.check()
            except UserError as error:
                log.warning("drift: %s", error)
            except Exception:
                log.exception("a round of drift checks failed; the next one tries again")

    def _changed(self) -> bool:
        """Whether anything came in since the last round, or so long ago that samples have left the window."""
        models = self.references.models()
        if not models:
            return False
        if self._clock() - self.board.checked_at > self._config().window_s / 4:
            return True
        return self._stamp(models) != self._seen

    def _stamp(self, models: Sequence[str]) -> tuple[object, ...]:
        files = [
            self._samples,
            self._samples.with_name(f"{self._samples.name}-wal"),
            *map(self.references.path, models),
        ]
        return tuple(_written(path) for path in files)

    async def check(self, model: str = "") -> list[Drift]:
        """Compare the windows of one model or all that have a reference, now. Raises UserError."""
        async with self._lock:
            models = await asyncio.to_thread(self.references.models)
            served = self._versions()
            if model and model not in models:
                raise UserError(f"{model} has no reference: pin one with `modelyard drift pin {model} --since 24h`")
            wanted = {name: list(served[name]) for name in models if name in served and model in ("", name)}
            if not wanted:
                return []
            seen = await asyncio.to_thread(self._stamp, models)
            try:
                said = await self._ask(self._job(versions=wanted))
            except UserError as error:
                self.problem = str(error)
                self.board.failures += 1
                raise
            self.problem = ""
            if not model:
                self._seen = seen
            await self._keep(said.drifts, wanted, served)
            return said.drifts

    async def _keep(
        self, drifts: Sequence[Drift], models: Collection[str], served: Mapping[str, Sequence[str]]
    ) -> None:
        board, config = self.board, self._config()
        board.keep(drifts, models, self._clock())
        board.only({(name, label) for name, labels in served.items() for label in labels}, self._clock())
        for drift in drifts:
            board.episodes, begun = follow(
                board.episodes,
                drift,
                episode_id=f"drift-{secrets.token_hex(8)}",
                link=self._link(drift.model),
                has_webhook=config.webhook is not None,
            )
            if begun is not None:
                moved = ", ".join(one.feature for one in drift.features if one.verdict == "act")
                log.warning("drift of %s@%s is act: %s", drift.model, drift.version, moved)
        board.trim()
        await self._save()
        self._told.set()

    async def _save(self) -> None:
        try:
            await asyncio.to_thread(drift_watch_board.write, self._board, self.board)
        except OSError as error:
            log.warning("what was found of drift is not on disk (%s)", error.strerror)

    # References

    async def pin(self, pin: Pin) -> dict[str, Any]:
        """Make a reference, in place of the model's present one. Returns its summary. Raises UserError."""
        if pin.model not in self._versions():
            known = ", ".join(self._versions()) or "none"
            raise UserError(f"there is no model {pin.model!r}: there are {known}")
        async with self._lock:
            said = await self._ask(self._job(pin=pin))
            self.board.forget(pin.model, self._clock())
            self._seen = ()
            await self._save()
        return said.pinned or {}

    async def unpin(self, model: str) -> bool:
        """Remove the model's reference. Returns whether there was one."""
        async with self._lock:
            found = model in await asyncio.to_thread(self.references.models)
            if found:
                await asyncio.to_thread(self.references.remove, model)
            self.board.forget(model, self._clock())
            await self._save()
        return found

    def pinned(self) -> dict[str, dict[str, Any]]:
        """The summary of every reference. Blocking; a file is read once."""
        found: dict[str, dict[str, Any]] = {}
        for model in self.references.models():
            stamp = _written(self.references.path(model))
            if self._summaries.get(model, (0, {}))[0] != stamp:
                with suppress(UserError):
                    reference = self.references.read(model)
                    if reference is not None:
                        self._summaries[model] = (stamp, reference.summary())
            if model in self._summaries:
                found[model] = self._summaries[model][1]
        return found

    def state(self) -> DriftState:
        """For the metrics."""
        board = self.board
        return DriftState(
            drifts=board.drifts,
            checked_at=board.checked_at,
            checks=board.checks,
            failures=board.failures,
            failing=bool(self.problem),
            delivered=board.delivered,
            undelivered=board.undelivered,
            episodes=[(one.model, one.version) for one in board.episodes if one.open],
        )

    def run_folder(self, name: str) -> Path:
        """The folder of the run of that name, or of which it is the only part. Raises UserError."""
        names = sorted(path.name for path in self._runs.glob("*") if (path / "run.json").exists())
        found = [name] if name in names else [one for one in names if name and name in one]
        if len(found) == 1:
            return self._runs / found[0]
        if found:
            raise UserError(f"{name!r} fits several runs: {', '.join(found)}")
        known = ", ".join(names[-5:]) or "none yet (`modelyard eval run` makes one)"
        raise UserError(f"there is no run {name!r}; there are {known}")

    # The child

    def _job(self, versions: dict[str, list[str]] | None = None, pin: Pin | None = None) -> Job:
        config = self._config()
        embedding = None
        if config.embeddings is not None:
            round_s = config.every_s or 60.0
            texts = max(1, int(config.embeddings.texts_per_minute * round_s / 60))
            embedding = Embedding(texts_max=texts, model=config.embeddings.model)
        return Job(
            samples=str(self._samples),
            folder=str(self.folder),
            now=self._clock(),
            cpu_s=max(config.cpu_s, PIN_CPU_S) if pin is not None else config.cpu_s,
            window_s=config.window_s,
            window_samples_max=config.window_samples_max,
            policy=Policy(
                samples_min=config.samples_min,
                feedback_min=config.feedback_min,
                alpha=config.alpha,
                watch=config.watch,
                act=config.act,
                vectors_max=max(Policy().vectors_max, config.samples_min),
            ),
            versions=versions or {},
            embedding=embedding,
            pin=pin,
        )

    async def _ask(self, job: Job) -> Said:
        """Run a child and wait for what it says. It is killed where it takes too long, or where nobody waits."""
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", CHILD, str(self.folder)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={name: os.environ[name] for name in PASSED_ON if name in os.environ} | threads,
            limit=SAID_BYTES_MAX,
        )
        try:
            async with asyncio.timeout(WALL_FACTOR * job.cpu_s):
                out, err = await process.communicate(msgspec.json.encode(job))
        except TimeoutError:
            raise DriftError(
                f"a check took more than {WALL_FACTOR * job.cpu_s:g} s: the machine is overloaded"
            ) from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode:
            raise DriftError(_why(process.returncode, err, job.cpu_s))
        said = msgspec.json.decode(out, type=Said)
        if said.error:
            raise (NotThereError if said.missing else DriftError)(said.error)
        return said

    # Whom to tell

    async def _deliveries(self) -> None:
        """Try every event that is due, one after the other; sleep until the next is, or until there is a new one."""
        while True:
            self._told.clear()
            waiting = [one for one in self.board.episodes if one.delivery == "pending"]
            due = min((one.next_at for one in waiting), default=None)
            if due is None or due > self._clock():
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._told.wait(), None if due is None else max(0.05, due - self._clock()))
                continue
            for episode in waiting:
                if episode.next_at <= self._clock():
                    await self._deliver(episode)
                    await self._save()

    async def _deliver(self, episode: Episode) -> None:
        webhook = self._config().webhook
        if webhook is None:
            episode.delivery = "off"
            return
        from monitoring.drift_watch_webhook import post  # noqa: PLC0415 - for those who have a webhook

        secret = os.environ.get(webhook.secret_env, "") if webhook.secret_env else ""
        if webhook.secret_env and not secret:
            error = f"the environment variable {webhook.secret_env} is empty: nothing is sent unsigned"
        else:
            error = await post(
                webhook.url, episode.event, secret=secret, now=self._clock(), timeout_s=webhook.timeout_s
            )
        after_attempt(
            episode,
            error,
            now=self._clock(),
            attempts_max=webhook.attempts_max,
            backoff_s=webhook.backoff_s,
            jitter=self._rng.random(),
        )
        match episode.delivery:
            case "delivered":
                self.board.delivered += 1
                log.info("the webhook was told of %s", episode.id)
            case "failed":
                self.board.undelivered += 1
                log.error("the webhook was not told of %s after %d attempts: %s", episode.id, episode.attempts, error)
            case _:
                log.warning("the webhook did not take %s (%s), attempt %d", episode.id, error, episode.attempts)


def _written(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _why(status: int, err: bytes, cpu_s: float) -> str:
    if status < 0 and -status in (9, 24):  # SIGKILL, SIGXCPU
        return f"a check took more than its {cpu_s:g} CPU seconds: raise drift.cpu_s or lower window_samples_max"
    last = (err.decode(errors="replace").strip().splitlines() or [""])[-1]
    return f"the process that compares windows ended with status {status}: {last[:200]}"
