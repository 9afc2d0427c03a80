"""The process in which windows are read and compared: numpy, scipy and torch live here, for seconds, and nowhere near
the control plane.

    python -m monitoring.live_drift_child FOLDER < job.json > said.json

Owns: its limits (CPU seconds, priority), reading samples and runs, telling languages apart. Never: deciding when it is
run, keeping a text: references hold measured features and vectors.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec

from monitoring.features import CHARACTERS_MAX, Language, features, last_user_turn
from monitoring.live_drift_job import Job, Pin, Said
from monitoring.live_drift_languages import languages
from monitoring.windows import ROWS_MAX, Drift, Reference, References, Row, thinned
from registry.errors import RegistryError
from registry.samples import Query, TrafficSample
from registry.terminal import NotThereError, UserError

NICE: Final = 10
TEXT_SHOWN: Final = 160
PAGE: Final = 500
BATCH: Final = 32
"""Texts that are embedded at a time."""
ROUGH: Final = ("input_characters", "input_turns")
"""Not comparable with a run's: it keeps a conversation's last turn."""
RUN_COLUMNS: Final = (
    *("case", "cluster", "prompt", "output", "error", "finish_reason"),
    *("prompt_tokens", "completion_tokens", "started_at"),
)


class Sampled(msgspec.Struct):
    """A row and its texts, for as long as this process lives."""

    row: Row
    texts: dict[str, str]
    """`input_embedding` and `output_embedding` -> the text that is embedded."""


def row_of(sample: TrafficSample, language: Callable[[], Language | None]) -> Sampled:
    """A sample as a window holds it. What was measured when it came in stands; a language is added to it."""
    found = dict(sample.features)
    texts: dict[str, str] = {}
    asked = last_user_turn(sample.messages)[:CHARACTERS_MAX] if sample.messages is not None else ""
    answered = (sample.output or "")[:CHARACTERS_MAX]
    if not found:
        found = features(
            sample.messages,
            sample.output,
            finish_reason=sample.finish_reason,
            prompt_tokens=sample.prompt_tokens,
            completion_tokens=sample.completion_tokens,
        )
    for text, name, vector in (
        (asked, "input_language", "input_embedding"),
        (answered, "output_language", "output_embedding"),
    ):
        if text.strip():
            texts[vector] = text
            if name not in found and (tell := language()) is not None:
                found[name] = tell(text)
    row = Row(
        id=sample.request_id,
        version=sample.version,
        at=sample.started_at,
        unit=str(sample.sticky) if sample.sticky else "",
        features=found,
        feedback=sample.feedback,
        text=asked[:TEXT_SHOWN],
    )
    return Sampled(row, texts)


class Worker:
    """One job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.references = References(Path(job.folder) / "references")
        self.embedded = 0
        self._encode: Any = None

    @cached_property
    def language(self) -> Language | None:
        """Loaded with the first text that there is."""
        return languages()

    def run(self) -> Said:
        if self.job.pin is not None:
            reference = self.pin(self.job.pin)
            self.references.write(reference)
            return Said(pinned=reference.summary(), embedded=self.embedded)
        drifts = [drift for model, labels in self.job.versions.items() for drift in self.check(model, labels)]
        return Said(drifts=drifts, embedded=self.embedded)

    # Checks

    def check(self, model: str, labels: Sequence[str]) -> Iterator[Drift]:
        """Every version's window against the model's reference."""
        reference = self.references.read(model)
        if reference is None:
            return
        job = self.job
        for label in labels:
            since = job.now - job.window_s
            if reference.source == "window":
                since = max(since, reference.until)  # a window is not compared with itself
            sampled = self.sampled(model, label, since)
            if not sampled:
                continue
            import numpy as np  # noqa: PLC0415 - with scipy 2 s, for those who have something to compare

            from monitoring.live_drift import check  # noqa: PLC0415

            remarks = self.embed(sampled, reference.embedder)
            own = [row for row in reference.rows if row.version == label]
            against = f"{model}@{label}" if len(own) >= job.policy.samples_min else "all versions"
            rows = own if len(own) >= job.policy.samples_min else reference.rows
            window = [one.row for one in sampled]
            rng = np.random.default_rng(job.policy.seed)
            self.topics([*rows, *window], rng)
            drift = check(
                model,
                label,
                rows,
                window,
                job.policy,
                rng,
                at=job.now,
                name=reference.name,
                against=against,
            )
            drift.remarks += remarks
            yield drift

    def topics(self, rows: Sequence[Row], rng: Any) -> None:
        """Name every row's topic by the sample in the middle of its cluster, where rows have embeddings."""
        known = [row for row in rows if "input_embedding" in row.vectors]
        if len(known) < self.job.policy.samples_min:
            return
        import numpy as np  # noqa: PLC0415

        from monitoring.distances_vectors import topics  # noqa: PLC0415

        clusters, middles = topics(np.asarray([row.vectors["input_embedding"] for row in known]), rng)
        for row, cluster in zip(known, clusters.tolist(), strict=True):
            row.features["input_topic"] = f"like {known[middles[cluster]].id}"

    def sampled(self, model: str, version: str, since: float) -> list[Sampled]:
        """The newest samples of a version, oldest first."""
        store = self.store()
        try:
            limit = self.job.window_samples_max
            found = store.query(Query(model=model, version=version, since=since, until=self.job.now, limit=limit))
        finally:
            store.close()
        return [row_of(sample, lambda: self.language) for sample in reversed(found) if sample.outcome == "completed"]

    def store(self) -> Any:
        if not Path(self.job.samples).exists():
            raise NotThereError("no request was sampled yet: give the model a `samples: {rate: …}` and apply it")
        return importlib.import_module("registry.sample_store").SampleStore.open(Path(self.job.samples))

    # References

    def pin(self, pin: Pin) -> Reference:
        """Read the window or the run. Raises UserError where it is too small to say anything."""
        reference = self.of_run(pin) if pin.run else self.of_window(pin)
        least = self.job.policy.samples_min
        if len(reference.rows) < least:
            raise UserError(
                f"there are {len(reference.rows)} samples in {reference.name}, a reference needs {least}: take a longer"
                " window, sample more requests, or lower drift.samples_min"
            )
        return reference

    def of_window(self, pin: Pin) -> Reference:
        kept: list[Sampled] = []
        found = 0
        store = self.store()
        try:
            for page in pages(store, pin):
                found += len(page)
                kept += [row_of(sample, lambda: self.language) for sample in page if sample.outcome == "completed"]
                if len(kept) > 2 * ROWS_MAX:
                    kept = self.part(kept)
        finally:
            store.close()
        kept = self.part(kept)
        chosen = {row.id for row in thinned([one.row for one in kept], self.job.policy.vectors_max, seed=1)}
        name = self.embedder()
        if name:
            self.embed([one for one in kept if one.row.id in chosen and one.texts], name, all_of_them=True)
        for one in kept:
            one.row.text = ""
        return Reference(
            model=pin.model,
            source="window",
            name=f"window {moment(pin.since)} to {moment(pin.until)}",
            since=pin.since,
            until=pin.until,
            pinned_at=self.job.now,
            pinned_by=pin.by,
            found=found,
            rows=[one.row for one in kept],
            embedder=name,
        )

    def part(self, sampled: list[Sampled]) -> list[Sampled]:
        kept = {id(row) for row in thinned([one.row for one in sampled], ROWS_MAX, seed=0)}
        return [one for one in sampled if id(one.row) in kept]

    def of_run(self, pin: Pin) -> Reference:
        """The prompts and answers of a finished evaluation run; a case asked several times is one unit."""
        folder = Path(pin.run)
        path = folder / "samples.parquet"
        if not path.exists():
            raise NotThereError(f"{folder} holds no finished run: `modelyard eval report list` shows which there are")
        if importlib.util.find_spec("pyarrow") is None:
            raise NotThereError("reading a run needs pyarrow: pip install '.[eval]'")
        parquet: Any = importlib.import_module("pyarrow.parquet")
        columns = [name for name in RUN_COLUMNS if name in parquet.read_schema(path).names]
        ref = msgspec.json.decode((folder / "run.json").read_bytes()).get("subject", {}).get("ref", "")
        version = ref.rpartition("@")[2] if "@" in ref else ""
        sampled = [
            self.of_case(case, version, index)
            for index, case in enumerate(parquet.read_table(path, columns=columns).to_pylist())
            if not case.get("error")
        ]
        kept = self.part(sampled)
        name = self.embedder()
        if name:
            chosen = {row.id for row in thinned([one.row for one in kept], self.job.policy.vectors_max, seed=1)}
            self.embed([one for one in kept if one.row.id in chosen], name, all_of_them=True)
        return Reference(
            model=pin.model,
            source="run",
            name=f"run {folder.name}",
            pinned_at=self.job.now,
            pinned_by=pin.by,
            found=len(sampled),
            rows=[one.row for one in kept],
            embedder=name,
        )

    def of_case(self, case: dict[str, Any], version: str, index: int) -> Sampled:
        prompt, output = str(case.get("prompt") or ""), str(case.get("output") or "")
        found = features(
            prompt,
            output,
            finish_reason=str(case.get("finish_reason") or ""),
            prompt_tokens=int(case.get("prompt_tokens") or 0),
            completion_tokens=int(case.get("completion_tokens") or 0),
            language=self.language,
        )
        row = Row(
            id=f"{case['case']}#{index}",
            version=version,
            at=float(case.get("started_at") or 0.0),
            unit=str(case.get("cluster") or case["case"]),
            features={key: value for key, value in found.items() if key not in ROUGH},
        )
        texts = {"input_embedding": prompt[:CHARACTERS_MAX], "output_embedding": output[:CHARACTERS_MAX]}
        return Sampled(row, {key: text for key, text in texts.items() if text.strip()})

    # Embeddings

    def embedder(self) -> str:
        """The name of the embedding model; "" where none is asked for."""
        if self.job.embedding is None:
            return ""
        from monitoring import live_drift_embed  # noqa: PLC0415

        return live_drift_embed.find(self.job.embedding.model)[0]

    def embed(self, sampled: Sequence[Sampled], reference: str, *, all_of_them: bool = False) -> list[str]:
        """Give rows their vectors: kept ones, and new ones within the budget, newest first. Returns remarks."""
        asked = self.job.embedding
        if asked is None:
            return []
        name = self.embedder()
        if reference != name:
            return ["the reference has no embeddings of this model: pin it again to compare meanings"]
        from monitoring import live_drift_embed  # noqa: PLC0415

        cache = live_drift_embed.VectorCache(Path(self.job.folder) / "vectors.db", name)
        try:
            new: list[tuple[Sampled, str]] = []
            for one in reversed(sampled):
                for feature in one.texts:
                    vector = cache.get(one.row.id, feature)
                    if vector is not None:
                        one.row.vectors[feature] = vector
                    elif all_of_them or self.embedded + len(new) < asked.texts_max:
                        new.append((one, feature))
            done = self.encode(new, cache)
            self.embedded += done
            if not all_of_them:
                cache.prune(self.job.now - 2 * self.job.window_s)
        finally:
            cache.close()
        late = len(new) - done
        return [f"{late} texts are not embedded yet: half of drift.cpu_s went into the others"] if late else []

    def encode(self, new: Sequence[tuple[Sampled, str]], cache: Any) -> int:
        """Embed texts, batch by batch, until half of the job's CPU seconds are gone. Returns how many were."""
        from monitoring import live_drift_embed  # noqa: PLC0415

        asked = self.job.embedding
        for start in range(0, len(new), BATCH):
            if asked is None or time.process_time() > self.job.cpu_s / 2:
                return start
            self._encode = self._encode or live_drift_embed.encoder(live_drift_embed.find(asked.model)[1])
            batch = new[start : start + BATCH]
            vectors = self._encode([one.texts[feature] for one, feature in batch])
            cache.put([(one.row.id, feature, one.row.at or self.job.now) for one, feature in batch], vectors)
            for (one, feature), vector in zip(batch, vectors, strict=True):
                one.row.vectors[feature] = [round(float(value), 5) for value in vector]
        return len(new)


def pages(store: Any, pin: Pin) -> Iterator[list[TrafficSample]]:
    """A model's samples in a window, oldest first, some at a time."""
    since, seen = pin.since, set[str]()
    while True:
        query = Query(model=pin.model, since=since, until=pin.until, limit=PAGE + len(seen), newest_first=False)
        page = store.query(query)
        new = [sample for sample in page if sample.request_id not in seen]
        if not new:
            return
        yield new
        last = new[-1].started_at
        seen = {sample.request_id for sample in page if sample.started_at == last}
        since = last


def moment(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))


def main() -> None:
    """Read a job, do it within its limits, say what was found."""
    logging.disable(logging.CRITICAL)  # libraries' remarks; what fails is in the answer
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    seconds = int(job.cpu_s)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    os.nice(NICE)
    try:
        said = Worker(job).run()
    except NotThereError as error:
        said = Said(error=str(error), missing=True)
    except (UserError, RegistryError) as error:
        said = Said(error=str(error))
    except ModuleNotFoundError as error:
        said = Said(error=f"live drift needs {error.name}: pip install '.[eval]'", missing=True)
    sys.stdout.buffer.write(msgspec.json.encode(said))


if __name__ == "__main__":
    main()
