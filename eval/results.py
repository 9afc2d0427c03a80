"""Runs on disk: one sample after another in a journal, then a Parquet file.

Owns: a run's folder, its key, what makes it finished, and reading it back. Never: sending requests, statistics.

    runs/<suite>-<subject>-<key>[.N]/
      run.json          what was run: suite and version digests, sampling, seed, repeats (the key is a hash of these)
      samples.jsonl     the journal: a line per sample as it finishes, on disk within a second
      samples.parquet   the finished run; replaces the journal in one rename
      lock              held by the process that writes

A kill leaves whole lines and at most one torn one, which the next reader cuts off. A sample that failed for a passing
reason is tried again when the run is resumed; the last line of a (case, repeat) counts.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import msgspec

from eval.errors import RunError, StateDirError, need
from eval.scorers.judge import Judging
from eval.suite import Sampling, Suite

if TYPE_CHECKING:
    import pandas as pd

KEY_CHARACTERS: Final = 10


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What is evaluated, and how surely it is known."""

    ref: str
    """As the user named it: `assistant@v2`, or `URL#MODEL`."""
    model: str
    """What goes into a request's `model`."""
    url: str
    """Base URL, without `/v1`."""
    digest: str = ""
    """The version's digest; "" where no admin API told it: then URL and model name stand for the version."""
    note: str = ""
    """What the user should know about this identity; "" where it is certain."""
    engine: str = ""
    """The kind of engine, as the manifest names it; "" where no admin API told it."""

    @property
    def identity(self) -> str:
        return self.digest or f"{self.url}#{self.model}"


class RunKey(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides what a run's samples mean. Equal keys: the same run."""

    suite_digest: str
    identity: str
    sampling: Sampling
    seed: int
    repeats: int
    twin: bool = False
    """The second run of an A/A comparison."""
    provider: str = ""
    """Who gave the log-likelihoods, where it was not the running engine."""

    @property
    def short(self) -> str:
        return hashlib.sha256(_encoder.encode(self)).hexdigest()[:KEY_CHARACTERS]


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What a run's requests cost, on one basis. Bases must not be added up."""

    basis: str
    """`allocated`, `busy`, `energy`, or `engine-seconds` where the price is the user's."""
    method: str
    """How the amount was found, in words."""
    currency: str
    amount: float
    answered: int
    """The answers that it paid for; those of the response cache are not among them."""

    @property
    def per_1k_requests(self) -> float | None:
        return 1000 * self.amount / self.answered if self.answered else None


class RunInfo(msgspec.Struct, kw_only=True):
    """`run.json`."""

    key: RunKey
    suite: str
    suite_version: int
    suite_source: str
    planned: int
    """Samples of the whole run: cases x repeats."""
    subject: Subject
    started_at: float
    """Unix seconds."""
    finished_at: float | None = None
    costs: list[Spent] = []
    """Of all sittings; empty where nothing told it."""
    judges: list[Judging] = []
    """Who judged by what, where the suite is scored by models."""
    schema: int = 1


class Sample(msgspec.Struct, kw_only=True):
    """One answer and its score, or why there is none. Times are seconds."""

    case: str
    repeat: int
    slice: str = ""
    cluster: str = ""
    scorer: str
    prompt: str
    """The last user turn, for reading; the digest below covers the whole conversation."""
    prompt_digest: str
    target: str
    """The target as JSON."""
    target_digest: str
    output: str = ""
    score: float | None = None
    error: str = ""
    final: bool = True
    """False where the failure may pass: a resumed run tries again."""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft_s: float | None = None
    latency_s: float = 0.0
    started_at: float = 0.0
    """Unix seconds."""
    attempts: int = 1
    answered_by: str = ""
    """The version that the router named in its response; "" where there is no router."""
    detail: str = ""
    """Why this score, in a line; the scorer's words."""
    weight: float = 1.0
    """How much the case counts in a mean."""
    tool_calls: str = ""
    """The calls that the answer holds, as a JSON array; "" for none."""
    turns: str = ""
    """The answers to the turns before the last, as a JSON array; "" where there is one turn."""
    scoring_tokens: int = 0
    """Spent on a judge for the score."""
    scoring_s: float = 0.0
    """Waited for a judge."""
    logprobs: str = ""
    """Of a case scored by likelihood: what each choice got, as JSON."""
    cached: bool = False
    """Taken from the response cache: its times are those of the first asking and count in no latency."""

    @property
    def id(self) -> tuple[str, int]:
        return (self.case, self.repeat)


_encoder = msgspec.json.Encoder(order="deterministic")
_samples = msgspec.json.Decoder(Sample)


@dataclass(frozen=True, slots=True)
class Run:
    """A run's folder."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def journal(self) -> Path:
        return self.folder / "samples.jsonl"

    @property
    def parquet(self) -> Path:
        return self.folder / "samples.parquet"

    @property
    def finished(self) -> bool:
        return self.parquet.exists()

    def info(self) -> RunInfo:
        """`run.json`; RunError where it is damaged."""
        try:
            return msgspec.json.decode((self.folder / "run.json").read_bytes(), type=RunInfo)
        except (OSError, msgspec.DecodeError) as error:
            raise RunError(f"{self.folder} holds no readable run.json ({error}): remove the folder") from error

    def write_info(self, info: RunInfo) -> None:
        write_whole(self.folder / "run.json", msgspec.json.format(_encoder.encode(info)))

    def samples(self) -> dict[tuple[str, int], Sample]:
        """Every sample so far, the last one of each (case, repeat)."""
        if not self.finished:
            try:
                return {sample.id: sample for sample in _read_journal(self.journal)}
            except FileNotFoundError:
                if not self.finished:  # else a writer finished it in between
                    return {}
        return {sample.id: sample for sample in _from_frame(self.frame())}

    def frame(self) -> pd.DataFrame:
        """The samples as a data frame; of an unfinished run, those so far."""
        pandas = need("pandas")
        if self.finished:
            frame: pd.DataFrame = pandas.read_parquet(self.parquet)
            return frame
        rows = [msgspec.to_builtins(sample) for sample in self.samples().values()]
        so_far: pd.DataFrame = pandas.DataFrame(rows, columns=list(Sample.__struct_fields__))
        return so_far

    def compact(self, finished_at: float) -> None:
        """Write the Parquet file in one rename, note the end, and remove the journal. Raises RunError."""
        try:
            self._compact(finished_at)
        except OSError as error:
            raise _unwritten(self.parquet, error) from error

    def _compact(self, finished_at: float) -> None:
        pandas = need("pandas")
        ordered = sorted(self.samples().values(), key=lambda sample: sample.id)
        frame = pandas.DataFrame([msgspec.to_builtins(sample) for sample in ordered])
        frame["score"] = frame["score"].astype("float64")
        frame["ttft_s"] = frame["ttft_s"].astype("float64")
        temporary = self.parquet.with_suffix(".tmp")
        frame.to_parquet(temporary, index=False)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        info = self.info()
        info.finished_at = finished_at
        self.write_info(info)
        temporary.replace(self.parquet)
        _sync_folder(self.folder)
        self.journal.unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for writing; RunError where another process does, StateDirError where it cannot be written."""
        try:
            held = (self.folder / "lock").open("w")
        except OSError as error:
            raise StateDirError(self.folder, "written", error) from error
        with held as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"another process is writing the run {self.name}: wait for it, or stop it") from error
            yield

    def discard_empty(self) -> None:
        """Remove the run where it has no sample; one that another process is writing stays. Raises RunError."""
        with self.lock():
            if not self.samples():
                shutil.rmtree(self.folder)


class Journal:
    """Appends samples. A line is with the operating system at once, and on disk by the next `sync`."""

    def __init__(self, path: Path) -> None:
        _cut_torn_line(path)
        self._path = path
        self._file: IO[bytes] = path.open("ab", buffering=0)
        self._dirty = False

    def append(self, sample: Sample) -> None:
        """Raises RunError where the line cannot be written; nothing of it stays."""
        line = _encoder.encode(sample) + b"\n"
        start = self._file.seek(0, os.SEEK_END)
        try:
            while line:  # a disk that is nearly full takes a part
                line = line[self._file.write(line) :]
        except OSError as error:
            self._file.truncate(start)
            raise _unwritten(self._path, error) from error
        self._dirty = True

    def sync(self) -> None:
        """Blocks until what was appended is on disk; call it off the event loop, once a second. Raises RunError."""
        if self._dirty:
            self._dirty = False
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise _unwritten(self._path, error) from error

    def close(self) -> None:
        try:
            self.sync()
        finally:
            self._file.close()


class RunStore:
    """The runs of one state directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(
        self,
        suite: Suite,
        subject: Subject,
        key: RunKey,
        *,
        fresh: bool,
        now: float,
        judges: Sequence[Judging] = (),
    ) -> Run:
        """The latest run of this key, or a new one where there is none (or `fresh`). Raises StateDirError."""
        stem = f"{_slug(suite.name)}-{_slug(subject.ref.rpartition('/')[2])}-{key.short}"
        attempts = self._attempts(stem)
        if attempts and not fresh:
            return attempts[-1][1]
        run = Run(self.root / (f"{stem}.{attempts[-1][0] + 1}" if attempts else stem))
        info = RunInfo(
            key=key,
            suite=suite.name,
            suite_version=suite.version,
            suite_source=suite.source,
            planned=len(suite.cases) * key.repeats,
            subject=subject,
            started_at=now,
            judges=list(judges),
        )
        try:
            run.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            run.write_info(info)
        except OSError as error:
            raise StateDirError(run.folder, "written", error) from error
        return run

    def latest(self, suite: Suite, subject: Subject, key: RunKey) -> Run | None:
        """The latest run of this key, if there is one."""
        attempts = self._attempts(f"{_slug(suite.name)}-{_slug(subject.ref.rpartition('/')[2])}-{key.short}")
        return attempts[-1][1] if attempts else None

    def _attempts(self, stem: str) -> list[tuple[int, Run]]:
        """The runs of a key with their numbers, the latest last."""
        pattern = re.compile(re.escape(stem) + r"(?:\.(\d+))?")
        found = [(int(match[1] or 1), run) for run in self.all() if (match := pattern.fullmatch(run.name))]
        return sorted(found, key=lambda one: one[0])

    def all(self) -> list[Run]:
        """Every run, the oldest first. Raises StateDirError where the folder cannot be read."""
        begun: dict[Path, float] = {}
        try:
            folders = list(self.root.iterdir()) if self.root.exists() else []
            for folder in folders:
                with suppress(FileNotFoundError, NotADirectoryError):  # not a run, or removed meanwhile
                    begun[folder] = (folder / "run.json").stat().st_ctime
        except OSError as error:
            raise StateDirError(self.root, "read", error) from error
        return [Run(folder) for folder in sorted(begun, key=begun.__getitem__)]

    def get(self, name: str) -> Run:
        """The run of that name, or of which it is the only beginning or part; RunError naming the choices.

        Where a part fits, the second runs of A/A comparisons are left out if there are others, and of one run that was
        made several times it is the latest.
        """
        runs = self.all()
        exact = [run for run in runs if run.name == name]
        matching = exact or [run for run in runs if name in run.name]
        if len(matching) > 1:
            matching = [run for run in matching if not run.info().key.twin] or matching
            latest = {run.info().key.short: run for run in sorted(matching, key=lambda one: one.info().started_at)}
            matching = list(latest.values())
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise RunError(f"{name!r} fits several runs: {', '.join(run.name for run in matching)}")
        known = ", ".join(run.name for run in runs[-5:]) or "none yet (modelyard eval run makes one)"
        raise RunError(f"there is no run {name!r}; the latest: {known}")


def _read_journal(path: Path) -> Iterator[Sample]:
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            yield _samples.decode(line)
        except msgspec.DecodeError as error:
            raise RunError(f"{path} line {number} is damaged ({error}): run again with --fresh") from error


def _from_frame(frame: pd.DataFrame) -> Iterable[Sample]:
    for row in frame.to_dict("records"):
        yield msgspec.convert({str(name): _missing_to_none(value) for name, value in row.items()}, Sample)


def _missing_to_none(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value  # noqa: PLR0124 - the test for NaN


def _cut_torn_line(path: Path) -> None:
    """A kill may leave half a line at the end: cut it, so that the next line starts on its own."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)


def _unwritten(path: Path, error: OSError) -> RunError:
    cause = error.strerror or str(error)
    return RunError(f"{path} cannot be written ({cause}): make room there; the same command goes on from what is kept")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, whole, even after a crash."""
    temporary = path.with_suffix(f".{secrets.token_hex(4)}.tmp")  # two processes may begin one run at once
    with temporary.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9@._-]+", "-", text).strip("-") or "run"
