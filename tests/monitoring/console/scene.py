"""A plausible past of a small yard, written into a state directory before a control plane starts on it.

Everything is read by the real code: the registry, segments of requests, samples with feedback, the drift watch's files,
an evaluation's folder, and rows of the ledger. `assistant` moved from v1 to v2 in three steps; v2 is a little faster,
and what users ask of it became longer.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from monitoring import live_drift
from monitoring.drift_watch_board import Board
from monitoring.drift_watch_board import write as write_board
from monitoring.drift_watch_episodes import follow
from monitoring.windows import Policy, Reference, References, Row
from registry.entries import CostSeconds, HeldSeconds, MemorySeconds, UsageHour
from registry.ledger import Ledger
from registry.manifest import Artifact, Lineage, Manifest
from registry.models import BUCKETS, Span
from registry.sample_store import SampleStore
from registry.samples import Feedback, TrafficSample, Turn
from registry.state import StateDir
from registry.store import Registry
from registry.usage import MAGIC, RequestRecord, frame
from registry.verdicts import GateVerdict, Verdicts

MODEL = "assistant"
ANSWER = "Paris is the capital of France. It lies on the Seine and has about two million inhabitants."
CONFIG = """
server: {{port: 0, admin_port: 0, workers: 1, drain_s: 2}}
prices: {{currency: USD, gpu_hour: 2.4, cpu_hour: 0.05, kwh: 0.31, pue: 1.2, compare: [gpt-4o-mini, no-such-model]}}
budgets: [{{name: assistant, model: assistant, amount: 105, period: week}}]
models:
  assistant:
    versions:
      v1: {{engine: external, url: "{first}", licence: apache-2.0}}
      v2:
        engine: external
        url: "{second}"
        licence: apache-2.0
        lineage: {{parent: assistant@v1, git_commit: 4f2c91d, hyperparameters: {{epochs: 2, learning_rate: 0.0002}}}}
    route: {{v1: 5000, v2: 5000}}
    require_gate: release
    samples: {{rate: 1.0, store: text}}
  embedder:
    versions:
      e1: {{engine: external, url: "{first}"}}
    route: {{e1: 10000}}
drift: {{every_s: 0}}
"""
LOCAL = """  local:
    versions: {{v1: {{engine: llama.cpp, artifact: "file:{model}"}}}}
    route: {{v1: 10000}}
"""
WEIGHTS = ((72.0, 10_000), (20.0, 9_900), (6.0, 9_000), (0.75, 5_000))
"""Hours ago, and basis points of v1 from then on."""


def config(first: str, second: str, model: Path | None = None) -> str:
    """The yard's file, with the addresses of its engines; `local` has a real one where there is a model file."""
    text = CONFIG.format(first=first, second=second)
    if model is not None:
        text = text.replace("  embedder:\n", f"{LOCAL.format(model=model)}  embedder:\n")
    return text


def fill(state: StateDir, now: float, first: str, second: str, *, requests: int = 1500) -> None:
    """Write the past that ends at `now`, Unix seconds."""
    state.create()
    rng = random.Random(7)
    registry = Registry.open(state.database)
    try:
        register(registry, now, first, second)
        spend(Ledger(registry.engine), now, rng)
    finally:
        registry.close()
    past = sorted(records(now, rng, requests), key=lambda one: one.ended_at)
    write_segment(state.requests, past, now)
    sample(state, past, rng)
    drift(state, now)
    evaluate(state.runs, now)


def register(registry: Registry, now: float, first: str, second: str) -> None:
    """Versions, the route as it moved, a gate's verdicts."""
    lineage = Lineage(
        parent="assistant@v1", git_commit="4f2c91d", hyperparameters={"epochs": 2, "learning_rate": 0.0002}
    )
    manifests = {
        "v1": Manifest(engine="external", url=first, licence="apache-2.0"),
        "v2": Manifest(engine="external", url=second, licence="apache-2.0", lineage=lineage),
        "v3": candidate("Q4_1", "a3"),
        "v4": candidate("Q4_0", "b7"),
    }
    made = {
        label: registry.register(MODEL, label, manifest, author="anna", at=now - 96 * 3600 + 60 * place)
        for place, (label, manifest) in enumerate(manifests.items())
    }
    registry.set_alias(MODEL, "champion", "v1", actor="anna", at=now - 95 * 3600)
    verdicts = Verdicts(registry.engine)
    for ago, outcome, text in (
        (30, "inconclusive", "inconclusive: regression-core needs about 120 more cases"),
        (22, "pass", "pass: v2 is not worse than v1 by more than 0.02 on regression-core"),
    ):
        suite = {
            "suite": "regression-core",
            "margin": 0.02,
            "n": 80 if outcome == "inconclusive" else 400,
            "baseline": 0.81,
            "candidate": 0.82,
            "difference": 0.01,
            "interval": [-0.031, 0.052] if outcome == "inconclusive" else [-0.008, 0.028],
            "p": 0.4,
        }
        verdicts.record(
            GateVerdict(
                model=MODEL,
                policy="release",
                policy_digest="sha256:" + "1" * 64,
                baseline="v1",
                baseline_digest=made["v1"].digest,
                candidate="v2",
                candidate_digest=made["v2"].digest,
                verdict=outcome,  # type: ignore[arg-type]
                text=text,
                suites={"regression-core": "sha256:" + "2" * 64},
                evidence={"alpha": 0.05, "suites": [suite], "checks": []},
                author="ci",
                created_at=now - ago * 3600,
            )
        )
    for hours, weight in WEIGHTS:
        weights = {"v1": weight, "v2": BUCKETS - weight}
        spans = [Span(0, weight, "v1")] + ([Span(weight, BUCKETS, "v2")] if weight < BUCKETS else [])
        registry.set_route(MODEL, weights, tuple(spans), actor="anna", at=now - hours * 3600)


def candidate(quantisation: str, digest: str) -> Manifest:
    """A version of our own that is registered and not started."""
    artifact = Artifact(
        sha256=digest * 32,
        size_bytes=91_700_000 if quantisation == "Q4_0" else 98_900_000,
        source=f"file:models/{quantisation}.gguf",
        filename=f"SmolLM2-135M-Instruct.{quantisation}.gguf",
    )
    return Manifest(
        engine="llama.cpp",
        artifacts=(artifact,),
        engine_args={"context_tokens": 4096 if quantisation == "Q4_1" else 8192, "parallel": 4},
        chat_template="{{ system }}\n{% for m in messages %}{{ m }}\n{% endfor %}" if quantisation == "Q4_0" else "",
        lineage=Lineage(parent="assistant@v3", derivation="requantize Q4_0") if quantisation == "Q4_0" else Lineage(),
        environment={"xllamacpp": "2026.10.11549"},
        licence="apache-2.0",
    )


def records(now: float, rng: random.Random, count: int) -> Iterator[RequestRecord]:
    """Requests of the last hour and a half; the newest ended two seconds ago."""
    for index in range(count):
        at = now - 4.0 - 5400.0 * (index / count)
        arm = "v1" if rng.random() < 0.5 else "v2"
        quick = 1.0 if arm == "v1" else 0.8
        first = quick * rng.lognormvariate(math.log(0.18), 0.5)
        tokens = max(2, int(rng.gauss(90, 40)))
        speed = rng.gauss(46, 5) / quick
        queued = rng.expovariate(20) if rng.random() < 0.2 else 0.0
        last = queued + first + tokens / speed
        fate = rng.random()
        values = {
            "request_id": f"req-{index:05d}",
            "started_at": at - last,
            "duration_s": last + 0.002,
            "endpoint": "/v1/chat/completions",
            "model": MODEL,
            "version": arm,
            "replica": f"{MODEL}@{arm}/0",
            "outcome": "completed",
            "status": 200,
            "streamed": True,
            "attempts": 1,
            "generation": 7,
            "assigned": arm,
            "bucket": rng.randrange(BUCKETS),
            "sticky": rng.randrange(1, 400),
            "prompt_tokens": max(5, int(rng.gauss(160, 60))),
            "cached_tokens": 24 if rng.random() < 0.4 else 0,
            "completion_tokens": tokens,
            "usage_source": "engine",
            "dispatched_s": queued + 0.0002,
            "first_token_s": queued + first,
            "last_token_s": last,
            "events": tokens,
            "gap_max_s": 3 / speed,
            "overhead_s": 0.00006,
            "finish_reason": "stop",
            "request_bytes": 900,
            "response_bytes": 9000,
            "key_id": "mk_app" if rng.random() < 0.7 else "mk_batch",
            "worker": "w9",
            "queued_s": queued,
            "priority": "interactive",
        }
        yield RequestRecord(**(values | fated(fate, arm, queued, last)))  # type: ignore[arg-type]


def fated(fate: float, arm: str, queued: float, last: float) -> dict[str, object]:
    """What went wrong with some of them."""
    nothing = {"first_token_s": 0.0, "last_token_s": 0.0, "completion_tokens": 0, "finish_reason": "", "gap_max_s": 0.0}
    if fate < 0.012:
        broken = {"outcome": "failed", "status": 502, "error": "engine_reset", "streamed": False, "attempts": 2}
        return nothing | broken | {"dispatched_s": queued + 0.04}
    if fate < 0.02:
        unseen = {"version": "", "replica": "", "attempts": 0, "dispatched_s": 0.0, "duration_s": 0.0004}
        refused = {"outcome": "rejected", "status": 429, "error": "queue_full", "queued_s": 0.0, "usage_source": "none"}
        return nothing | unseen | refused | {"prompt_tokens": 0, "cached_tokens": 0}
    if fate < 0.035:
        return {"outcome": "cancelled", "status": 200, "usage_source": "counted", "finish_reason": ""}
    if fate < 0.05 and arm == "v2":
        return {"version": "v1", "replica": f"{MODEL}@v1/0", "attempts": 2, "dispatched_s": queued + 0.06}
    return {}


def write_segment(folder: Path, past: list[RequestRecord], now: float) -> None:
    """A segment of a worker that is gone."""
    data = b"".join(frame(*past[start : start + 50]) for start in range(0, len(past), 50))
    (folder / f"w9-{int((now - 9000) * 1e9)}.seg").write_bytes(MAGIC + data)


def sample(state: StateDir, past: list[RequestRecord], rng: random.Random) -> None:
    """Texts of the newest requests, with feedback on some."""
    store = SampleStore.open(state.samples_database)
    try:
        with store.transaction() as tx:
            for record in past[-60:]:
                if record.outcome != "completed":
                    continue
                said = {name: getattr(record, name) for name in ("request_id", "model", "version", "started_at")}
                tx.append(
                    [
                        TrafficSample(
                            **said,
                            key=record.key_id,
                            arm=record.assigned,
                            duration_s=record.duration_s,
                            endpoint=record.endpoint,
                            messages=(
                                Turn("system", "You answer in one or two sentences."),
                                Turn("user", "What is the capital of France? Write to [EMAIL]."),
                            ),
                            output=ANSWER,
                            redacted={"email": 1},
                        )
                    ]
                )
                if rng.random() < 0.3:
                    score = rng.choice((1.0, 1.0, -1.0))
                    comment = "Too long for me." if score < 0 else None
                    tx.give(Feedback(**said, key=record.key_id, at=record.ended_at + 9, score=score, comment=comment))
    finally:
        store.close()


def spend(ledger: Ledger, now: float, rng: random.Random) -> None:
    """A day and a half on one GPU: busy by day, idle by night."""
    hours = [int(now // 3600) * 3600 - 3600 * back for back in range(36, 0, -1)]
    with ledger.transaction() as tx:
        for hour in hours:
            busy = 3600 * max(0.05, 0.5 + 0.4 * math.sin((hour / 3600 % 24 - 8) / 24 * 2 * math.pi))
            share = 0.1 if hour < now - 6 * 3600 else 0.3
            parts = {("v1", "completed"): 1 - share, ("v2", "completed"): share, ("v1", "failed"): 0.012}
            parts["v2", "shadow"] = 0.03
            tx.add_cost_seconds(
                CostSeconds(hour, "GPU-4c1f", f"{MODEL}@{label}", outcome, busy * part * rng.uniform(0.9, 1.0), busy)
                for (label, outcome), part in parts.items()
            )
            tx.add_usage(
                UsageHour(
                    *(hour, "GPU-4c1f", f"{MODEL}@{label}", "completed", "mk_app", ""),
                    requests=int(2400 * part),
                    prompt_tokens=int(2400 * part * 160),
                    cached_tokens=int(2400 * part * 20),
                    completion_tokens=int(2400 * part * 90),
                    prefill_s=2400 * part * 0.18,
                    prefill_tokens=int(2400 * part * 140),
                    decode_s=2400 * part * 1.9,
                    decode_tokens=int(2400 * part * 89),
                )
                for label, part in (("v1", 1 - share), ("v2", share))
            )
            tx.add_memory_seconds(
                MemorySeconds(hour, "GPU-4c1f", f"{MODEL}@{label}", held * 3600.0)
                for label, held in (("v1", 6e9), ("v2", 4e9))
            )
            tx.add_held_seconds([HeldSeconds(hour, "GPU-4c1f", 3600.0, 3600 * (90 + 180 * busy / 3600), 3600.0)])


def rows(version: str, count: int, rng: random.Random, *, since: float, longer: float = 1.0) -> list[Row]:
    """Samples as a window holds them."""
    return [
        Row(
            id=f"{version}-{since:.0f}-{index}",
            version=version,
            at=since + 120 * index,
            unit=f"u{rng.randrange(count)}",
            features={
                "input_tokens": float(max(3, int(rng.gauss(140 * longer, 45)))),
                "input_characters": float(max(10, int(rng.gauss(560 * longer, 180)))),
                "input_turns": float(rng.choice((1, 1, 1, 3, 5))),
                "input_code": rng.random() * (0.05 if longer < 1.1 else 0.058),
                "output_tokens": float(max(2, int(rng.gauss(95, 35)))),
                "output_finish": rng.choices(("stop", "length"), (0.93, 0.07))[0],
                "output_refusal": rng.choices(("no", "yes"), (0.97, 0.03))[0],
            },
            feedback=rng.choice((1.0, 1.0, -1.0)) if rng.random() < 0.3 else None,
            text="" if longer == 1 else "Explain this stack trace and say which line is at fault: …",
        )
        for index in range(count)
    ]


def drift(state: StateDir, now: float) -> None:
    """A reference of last week, and what a check of today found."""
    rng = random.Random(3)
    week = now - 7 * 86400
    pinned = [row for version in ("v1", "v2") for row in rows(version, 300, rng, since=week)]
    name = "the day of the pin"
    References(state.drift / "references").write(
        Reference(
            model=MODEL, source="window", name=name, since=week, until=week + 86400, pinned_at=week + 86400,
            pinned_by="anna", found=600, rows=[row_without_text(row) for row in pinned],
        )
    )  # fmt: skip
    board = Board()
    policy = Policy(resamples=99)
    for back, longer in ((7200.0, 1.05), (600.0, 1.22)):
        found = []
        for version, grown, count in (("v1", 1.0, 240), ("v2", longer, 240)):
            current = rows(version, count, rng, since=now - 30_000 - back, longer=grown)
            own = [row for row in pinned if row.version == version]
            generator = np.random.default_rng(1)
            checked = live_drift.check(
                MODEL, version, own, current, policy, generator, at=now - back, name=name, against=f"{MODEL}@{version}"
            )
            found.append(checked)
            board.episodes, _ = follow(board.episodes, checked, episode_id=f"ep-{version}", link="", has_webhook=False)
        board.keep(found, [MODEL], now - back)
    write_board(state.drift / "board.json", board)


def row_without_text(row: Row) -> Row:
    return Row(id=row.id, version=row.version, at=row.at, unit=row.unit, features=row.features, feedback=row.feedback)


def evaluate(runs: Path, now: float) -> None:
    """Folders of two runs, one of them not finished."""
    for label, finished in (("v1", now - 23 * 3600), ("v2", None)):
        folder = runs / f"regression-core-{MODEL}@{label}-0123456789"
        folder.mkdir(parents=True)
        run = {
            "suite": "regression-core",
            "planned": 400,
            "subject": {"ref": f"{MODEL}@{label}", "model": f"{MODEL}@{label}", "url": "http://127.0.0.1:8000"},
            "started_at": now - 24 * 3600,
            "finished_at": finished,
        }
        (folder / "run.json").write_text(json.dumps(run))
