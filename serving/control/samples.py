"""Samples and feedback, from the workers' spool into the store: read, redacted, measured, kept, and the bytes deleted.

Owns: taking each file of the spool in once, and what of a sample may be kept. Never: sampling (the workers do), the
store's tables, joining feedback (`feedback`), what a feature is (`monitoring.features`).

Exactly once: a file's name is written in the transaction that adds what it holds, and the file is deleted after it.
Texts are redacted before anything is written, and dropped unless the configuration says `store: text`. A file holds
what clients wrote; it lives until the next step, a second as a rule.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from monitoring.features import Language, features
from monitoring.metrics import SampleCounts
from registry.capture import SUFFIX, Captured, FeedbackGiven, unpack
from registry.config import SamplesConfig
from registry.redact import Redactor
from registry.sample_store import SampleStore
from registry.samples import Retention, TrafficSample, Turn
from registry.usage import RequestRecord
from serving.control import transcripts
from serving.control.feedback import DEFAULT, FeedbackJoin

log = logging.getLogger("modelyard.samples")

STEP_BYTES_MAX: Final = 8 * 1024 * 1024
"""Read in one step; the rest waits for the next one."""
STEP_S: Final = 0.5
PRUNE_S: Final = 60.0
STALE_S: Final = 60.0
"""A hidden file older than this belongs to a worker that was killed while it wrote it."""


@dataclass(slots=True)
class Report:
    """What one step did."""

    files: int = 0
    samples: list[TrafficSample] = field(default_factory=list)
    """With their texts, also those that are kept without."""
    feedback: int = 0
    more: bool = False


class Samples:
    """One yard's. Blocking: `step`, `give` and the store's methods run in threads; steps wait for each other.

    `models` gives the configuration in force, `digest_of` a version's digest ("" where it is not known); `requests` is
    the folder of the records' segments; `language` tells a text's language, where the yard wants that at once.
    """

    def __init__(
        self,
        folder: Path,
        store: SampleStore,
        *,
        models: Callable[[], Mapping[str, SamplesConfig]],
        digest_of: Callable[[str, str], str] = lambda model, label: "",
        requests: Path | None = None,
        language: Language | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self._language = language
        self.feedback = FeedbackJoin(store, models=models, requests=requests, clock=clock)
        self._folder = folder
        self._models = models
        self._digest_of = digest_of
        self._clock = clock
        self._stepping = threading.Lock()
        self._taken = store.taken()
        self._pruned_at = 0.0

    def collect(self, records: Sequence[RequestRecord]) -> None:
        """Requests that were counted: feedback on them may come. Called in the ingest's thread."""
        self.feedback.collect(records)

    def counts(self) -> SampleCounts:
        """The totals that metrics show."""
        return SampleCounts(
            samples={(model, version): value for (model, version, _), value in self.store.counts("samples").items()},
            feedback=self.store.counts("feedback"),
            ignored={reason: value for (_, _, reason), value in self.store.counts("feedback_ignored").items()},
        )

    # --- a step ---

    def step(self) -> Report:
        """Take in what the spool holds, within bounds. Raises DatabaseError; nothing is taken in twice for it."""
        with self._stepping:
            report = Report()
            self._sweep()
            names = self._waiting()
            if names or self.feedback.waits:
                self._take(names, report)
            now = self._clock()
            if abs(now - self._pruned_at) >= PRUNE_S:
                self._pruned_at = now
                self.prune(now)
        return report

    def prune(self, now: float) -> int:
        """Delete what is too old or too much. Returns how many samples went."""
        rules = {name: _retention(one) for name, one in self._models().items()}
        return self.store.prune(now, rules, _retention(DEFAULT))

    def _waiting(self) -> list[str]:
        """The spool's files that are not taken in, oldest first; what a killed worker left half written is deleted."""
        found: list[tuple[int, str]] = []
        for path in self._folder.iterdir():
            name = path.name
            if name.startswith("."):
                with contextlib.suppress(OSError):
                    if self._clock() - path.stat().st_mtime > STALE_S:
                        path.unlink(missing_ok=True)
            elif name.endswith(SUFFIX) and name not in self._taken:
                began = name.removesuffix(SUFFIX).rpartition("-")[2]
                found.append((int(began) if began.isdecimal() else 0, name))
        return [name for _, name in sorted(found)]

    def _take(self, names: Sequence[str], report: Report) -> None:
        took: list[str] = []
        given: list[FeedbackGiven] = []
        size, until = 0, time.monotonic() + STEP_S
        for name in names:
            if took and (size > STEP_BYTES_MAX or time.monotonic() > until):
                report.more = True
                break
            data = (self._folder / name).read_bytes()
            size += len(data)
            entries, damage = unpack(data)
            if damage:
                log.error("the spool's file %s: %s; what stands before that is kept", name, damage)
            took.append(name)
            for entry in entries:
                if isinstance(entry, FeedbackGiven):
                    given.append(entry)
                elif (sample := self._read(entry)) is not None:
                    report.samples.append(sample)
        try:
            with self.store.transaction() as tx:
                tx.take(took)
                for sample in report.samples:
                    tx.append([self._allowed(sample)])
                    tx.add("samples", sample.model, sample.version)
                report.feedback = self.feedback.join(tx, given)
        except BaseException:
            self._taken = self.store.taken()  # whether it was kept is not known: go on from what the store says
            self.feedback.reload()
            raise
        self._taken.update(took)
        report.files = len(took)
        self._sweep()

    def _sweep(self) -> None:
        """Delete the files that are taken in, then forget their names: in the other order a crash between would take
        one in again."""
        if not self._taken:
            return
        for name in self._taken:
            (self._folder / name).unlink(missing_ok=True)
        with self.store.transaction() as tx:
            tx.forget(self._taken)
        self._taken = set()

    # --- one sample ---

    def _read(self, entry: Captured) -> TrafficSample | None:
        """The sample; None where there is to be none, or where its bytes are such that nobody can read them."""
        try:
            return self._sample(entry)
        except Exception as error:  # one client's bytes hold up nobody else's; what they say is in no log
            log.error("the sample of request %s cannot be read: %s", entry.record.request_id, type(error).__name__)
            return None

    def _sample(self, entry: Captured) -> TrafficSample | None:
        """The sample of a captured request, redacted; None where the configuration has changed its mind, or the client
        wants none kept."""
        record = entry.record
        config = self._models().get(record.model, DEFAULT)
        if config.store == "none" or not config.rate:
            return None
        asked = transcripts.asked(record.endpoint, entry.body) if entry.body else None
        if asked is not None and asked.is_private:
            return None
        said = transcripts.said(record.endpoint, entry.content_type, entry.answer)
        redactor = Redactor(config.redact, self._placed(asked, said))
        messages = None
        if asked is not None:
            messages = tuple(Turn(turn.role, redactor.text(turn.content)) for turn in asked.messages)
        output = None if said.output is None else redactor.text(said.output)
        calls = tuple({"name": call["name"], "arguments": redactor.text(call["arguments"])} for call in said.tool_calls)
        return TrafficSample(
            request_id=record.request_id,
            model=record.model,
            version=record.version,
            digest=self._digest_of(record.model, record.version),
            arm=record.assigned,
            segment=record.segment,
            key=record.key_id,
            sticky=record.sticky,
            started_at=record.started_at,
            duration_s=record.duration_s,
            endpoint=record.endpoint,
            streamed=record.streamed,
            outcome=record.outcome,
            finish_reason=record.finish_reason,
            prompt_tokens=record.prompt_tokens,
            completion_tokens=record.completion_tokens,
            messages=messages,
            output=output,
            tool_calls=calls,
            request=redactor.value(asked.request) if asked is not None else {},
            cut="input" if entry.input_cut else "output" if entry.output_cut else "",
            redacted=redactor.counts,
            features=features(
                [{"role": turn.role, "content": turn.content} for turn in messages] if messages is not None else None,
                output,
                finish_reason=record.finish_reason,
                prompt_tokens=record.prompt_tokens,
                completion_tokens=record.completion_tokens,
                tool_calls=len(calls) if output is not None else None,
                mean_logprob=said.mean_logprob,
                language=self._language,
            ),
        )

    @staticmethod
    def _placed(asked: transcripts.Asked | None, said: transcripts.Said) -> list[str]:
        """Texts that may have placeholders already: a client may send a redacted conversation."""
        return [*(turn.content for turn in asked.messages), said.output or ""] if asked is not None else []

    def _allowed(self, sample: TrafficSample) -> TrafficSample:
        """The sample as the configuration lets it be kept."""
        if self._models().get(sample.model, DEFAULT).store == "text":
            return sample
        return msgspec.structs.replace(sample, messages=None, output=None, tool_calls=(), request={})


def _retention(config: SamplesConfig) -> Retention:
    return Retention(age_s=config.keep_days * 86400.0, bytes_max=config.keep_bytes)
