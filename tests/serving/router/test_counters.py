"""Counters that workers share: columns that belong to the living, and limits that hold over several real workers."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from engines.fixtures import FakeEngine
from router_harness import PATIENCE_S, ROOT, RouterProcess, model, running_router, standstill, until, version
from shared_counters import shared

from serving.router.counters import KEYS, MODELS, Counters
from serving.router.quota import Charge, KeyLimits
from serving.router.table import Admission, Key

Start = Callable[..., FakeEngine]
SECRET = "mya_shared"


def key(**limits: int) -> Key:
    return Key(id="key_1", digest=hashlib.sha256(SECRET.encode()).digest(), slot=7, **limits)  # type: ignore[arg-type]


@contextlib.contextmanager
def workers(folder: Path, count: int, first: int = 0) -> Iterator[list[RouterProcess]]:
    """Workers of one machine that share counters."""
    with contextlib.ExitStack() as stack:
        options = ("--counters", str(folder / "counters"))
        names = [f"w{first + number}" for number in range(count)]
        yield [stack.enter_context(running_router(folder, name=name, options=options)) for name in names]


BODY = b'{"model":"assistant","messages":[{"role":"user","content":"one"}]}'
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\nauthorization: Bearer %b\r\ncontent-length: %d\r\n\r\n%b"
    % (
        SECRET.encode(),
        len(BODY),
        BODY,
    )
)


REFUSALS_MIN = 50


class Offered:
    """What became of all requests so far."""

    def __init__(self, until: float) -> None:
        self.until = until
        self.statuses: Counter[bytes] = Counter()
        self.refused_at = 0.0
        """When the last request that was refused was asked: the bucket was empty then."""

    def is_enough(self) -> bool:
        return time.monotonic() > self.until and self.statuses[b"429"] > REFUSALS_MIN


async def hammer(port: int, offered: Offered, pause_s: float) -> None:
    """Ask again and again on one connection; count the answers by their status."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while not offered.is_enough():
        asked_at = time.monotonic()
        writer.write(REQUEST)
        head = await reader.readuntil(b"\r\n\r\n")
        lines = dict(line.split(b": ") for line in head.split(b"\r\n")[1:] if line)
        if b"content-length" in lines:
            await reader.readexactly(int(lines[b"content-length"]))
        else:
            await reader.readuntil(b"0\r\n\r\n")
        status = head[9:12]
        offered.statuses[status] += 1
        if status == b"429":
            offered.refused_at = max(offered.refused_at, asked_at)
        await asyncio.sleep(pause_s)
    writer.close()
    await writer.wait_closed()


TOKENS = 2
"""What a request uses: the one word of its message, and the one event of its answer."""
ESTIMATE = len(BODY) // 4


@pytest.mark.parametrize(
    ("terms", "each", "slack", "count", "seconds", "share"),
    [
        ({"requests_per_minute": 300}, 1, 1, 1, 3.0, 0.0),
        ({"requests_per_minute": 300}, 1, 1, 3, 10.0, 0.01),
        ({"tokens_per_minute": 900}, TOKENS, ESTIMATE, 4, 6.0, 0.01),
    ],
)
def test_over_ten_seconds_workers_together_let_in_what_one_bucket_would(
    tmp_path: Path,
    fake_engine: Start,
    terms: dict[str, int],
    each: int,
    slack: int,
    count: int,
    seconds: float,
    share: float,
) -> None:
    """Exact with one worker, within 1% with several: the limit at once, and 1/60 of it a second. `slack`: what must be
    in the bucket for one more request."""
    (limit,) = terms.values()
    engine = fake_engine("--events", "1")
    with workers(tmp_path, count) as routers:
        for router in routers:
            router.publish(model([version("v1", [engine.port])], {"v1": 10_000}), keys=[key(**terms)])

        async def offer() -> tuple[Offered, float, float]:
            start = time.monotonic()
            offered = Offered(start + seconds)
            # Each worker is offered something else, so that their views of the bucket could part.
            await asyncio.gather(
                *(
                    hammer(router.port, offered, 0.005 * 3**place)
                    for place, router in enumerate(routers)
                    for _ in range(3)
                )
            )
            return offered, start, time.monotonic()

        offered, start, end = asyncio.run(offer())
    assert set(offered.statuses) == {b"200", b"429"}
    admitted = each * offered.statuses[b"200"]
    # What the bucket held at first, and what flowed in until the end, or at least until the last refusal.
    most = limit + limit / 60 * (end - start)
    least = limit + limit / 60 * (offered.refused_at - start) - slack
    assert least * (1 - share) - each <= admitted <= most * (1 + share)


def test_workers_together_keep_a_models_bound_and_serve_everybody(tmp_path: Path, fake_engine: Start) -> None:
    engine = fake_engine("--first-byte-delay-s", "0.05")
    bounds = Admission(inflight_max=2, queue_max=100)
    with workers(tmp_path, 3) as routers:
        for router in routers:
            router.publish(model([version("v1", [engine.port])], {"v1": 10_000}, admission=bounds))
        with ThreadPoolExecutor(45) as pool:
            answers = list(pool.map(lambda number: routers[number % 3].chat(), range(45)))
        assert {answer.status_code for answer in answers} == {200}
        requests = engine.stats()["requests"]
        edges = sorted([(one["at"], 1) for one in requests] + [(one["ended_at"], -1) for one in requests])
        running = [0]
        for _, change in edges:
            running.append(running[-1] + change)
        assert max(running) == 2
        assert all(router.control.stats().waiting == {} for router in routers)
        assert max(record.queued_s for record in routers[0].records(45)) > 0


def test_what_a_killed_worker_held_is_free_again(tmp_path: Path, fake_engine: Start) -> None:
    engine = fake_engine("--first-byte-delay-s", "600")
    bounds = Admission(inflight_max=1)
    with workers(tmp_path, 2) as (dies, lives), ThreadPoolExecutor(2) as pool:
        for router in (dies, lives):
            router.publish(model([version("v1", [engine.port])], {"v1": 10_000}, admission=bounds))
        held = pool.submit(dies.chat)
        until(lambda: dies.control.stats().inflight)
        engine.behave(first_byte_delay_s=0.0)
        waits = pool.submit(lives.chat)
        until(lambda: lives.control.stats().waiting)
        dies.process.kill()
        assert waits.result(PATIENCE_S).status_code == 200
        with pytest.raises(httpx.HTTPError):
            held.result(PATIENCE_S)


def test_a_worker_that_is_stopped_does_not_hold_up_the_others(tmp_path: Path, fake_engine: Start) -> None:
    engine = fake_engine()
    with workers(tmp_path, 2) as (hangs, lives), ThreadPoolExecutor(3) as pool:
        for router in (hangs, lives):
            admission = Admission(inflight_max=1)
            router.publish(model([version("v1", [engine.port])], {"v1": 10_000}, admission=admission))
        answers = []
        with standstill(engine):
            for router, held in ((lives, "inflight"), (hangs, "waiting"), (lives, "waiting")):
                url = f"{router.url}/v1/chat/completions"
                answers.append(pool.submit(httpx.post, url, content=BODY, timeout=120, trust_env=False))
                until(lambda router=router, held=held: getattr(router.control.stats(), held))  # type: ignore[misc]
            hangs.process.send_signal(signal.SIGSTOP)
        assert answers[0].result(PATIENCE_S).status_code == 200
        # The other one's came first, and it did not take the place.
        assert answers[2].result(PATIENCE_S).status_code == 200
        assert not answers[1].done()
        hangs.process.send_signal(signal.SIGCONT)
        assert answers[1].result(PATIENCE_S).status_code == 200


def test_a_budget_outlives_its_workers(tmp_path: Path, fake_engine: Start) -> None:
    engine = fake_engine()
    table = (model([version("v1", [engine.port])], {"v1": 10_000}),)
    terms = key(budget_tokens=60)
    headers = {"authorization": f"Bearer {SECRET}"}
    used = []
    for _ in range(2):  # the first one is killed, the second one finds what it used
        with workers(tmp_path, 1) as (router,):
            router.publish(*table, keys=[terms])
            while (answer := router.chat(headers=headers)).status_code == 200:
                used.append(answer.json()["usage"]["total_tokens"])
            assert answer.json()["error"]["code"] == "insufficient_quota"
            router.process.kill()
    assert used
    assert sum(used) <= 60
    with workers(tmp_path, 2, first=1) as routers:  # and so do others, however many there are
        for router in routers:
            router.publish(*table, keys=[terms])
            assert router.chat(headers=headers).status_code == 429


def test_a_worker_that_cannot_have_the_file_counts_alone_and_says_so(tmp_path: Path, fake_engine: Start) -> None:
    (tmp_path / "counters").mkdir()
    with workers(tmp_path, 1) as (router,):
        router.publish(model([version("v1", [fake_engine().port])], {"v1": 10_000}), keys=[key(requests_per_minute=1)])
        headers = {"authorization": f"Bearer {SECRET}"}
        assert [router.chat(headers=headers).status_code for _ in range(2)] == [200, 429]


def elsewhere(code: str, path: Path) -> str:
    """What a process of its own prints that has opened the counters as `counters`."""
    script = (
        f"from pathlib import Path\nfrom serving.router.counters import *\ncounters = Counters.open(Path('{path}'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script + code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_columns_belong_to_processes_that_live(tmp_path: Path) -> None:
    path = tmp_path / "counters"
    first = Counters.open(path)
    assert first.column == 0
    assert elsewhere("print(counters.column, len(counters.others), len(counters.running))", path) == "1 1 1"
    assert first.is_fresh is False
    first.refresh()
    assert (len(first.others), len(first.running)) == (1, 0)  # it was there, and is gone
    assert elsewhere("print(counters.column)", path) == "1"
    assert path.stat().st_blocks * 512 < 2_000_000  # the rest of the file is a hole


def test_what_a_process_counted_is_there_for_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "counters"
    first = Counters.open(path)
    mine = first.key("key_1", 3)
    mine.add(1, 5)
    mine.add(2, 10)
    assert (
        elsewhere("row = counters.key('key_1', 3); row.add(1, 1); row.add(2, 7); print(row.total(2))", path) == "17.0"
    )
    first.refresh()
    assert (mine.total(2), mine.running(1)) == (17, 5)  # what it had in flight is not
    assert elsewhere("row = counters.key('key_1', 3); print(row.own(1), row.own(2))", path) == "0.0 7.0"
    assert elsewhere("row = counters.key('key_9', 3); print(row.total(2))", path) == "0.0"


def test_models_have_the_same_place_in_every_process(tmp_path: Path) -> None:
    path = tmp_path / "counters"
    first = Counters.open(path)
    for number in range(5):
        first.model(f"m{number}")
    code = "counters.model('new'); row = counters.model('m3'); row.add(1, 2); print(counters.model('m3').running(1))"
    assert elsewhere(code, path) == "2.0"
    first.refresh()
    first.model("m3").add(1, 1)
    assert first.model("m3").total(1) == 3
    assert first.model("m4").total(1) == 0


def test_after_the_machine_has_started_anew_rates_are_full_and_budgets_are_not(tmp_path: Path) -> None:
    path = tmp_path / "counters"
    use = (
        "from serving.router.quota import *\nfrom serving.router.table import Key\n"
        "key = Key(id='key_1', digest=b'', slot=0, requests_per_minute=1, budget_tokens=10)\n"
        "limits = KeyLimits(key, counters.key('key_1', 0), {now})\n"
        "print([isinstance(limits.enter({now}, 0.0, {tokens}), Charge) for _ in range(2)])"
    )
    assert elsewhere(use.format(now=1e6, tokens=6), path) == "[True, False]"
    assert elsewhere("counters.cells[BOOT_CELL] = 5.0", path) == ""
    assert elsewhere(use.format(now=10.0, tokens=4), path) == "[True, False]"
    assert elsewhere("counters.cells[BOOT_CELL] = 5.0", path) == ""
    assert elsewhere(use.format(now=10.0, tokens=1), path) == "[False, False]"


def test_a_file_of_another_version_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "counters"
    elsewhere("counters.cells[MAGIC_CELL] = 1.5", path)
    before = path.stat().st_size
    with pytest.raises(subprocess.CalledProcessError) as error:
        elsewhere("", path)
    assert "another version" in error.value.stderr
    assert path.stat().st_size == before


def test_keys_and_models_beyond_the_file_are_counted_by_each_worker() -> None:
    one, other = shared(2)
    far = one.key("key_1", KEYS + 3)
    far.add(1, 2.0)
    assert one.key("key_1", KEYS + 3).total(1) == 2.0
    assert other.key("key_1", KEYS + 3).total(1) == 0.0
    for number in range(MODELS + 2):
        one.model(f"m{number}").add(1, 1.0)
    assert one.model(f"m{MODELS + 1}").total(1) == 1.0
    assert one.model(f"m{MODELS}").total(1) == 1.0


def test_a_place_given_to_another_key_begins_with_nothing() -> None:
    one, other = shared(2)
    terms = Key(id="key_1", digest=b"", slot=1, requests_per_minute=1)
    old = KeyLimits(terms, one.key("key_1", 1), 10.0)
    assert isinstance(old.enter(10.0, 0.0, 0), Charge)
    new = KeyLimits(terms, other.key("key_2", 1), 10.0)
    assert isinstance(new.enter(10.0, 0.0, 0), Charge)
