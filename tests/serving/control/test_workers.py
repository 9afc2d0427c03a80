"""Workers as they really are: processes of the router's own program, killed, adopted and drained."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from certificates import make as make_certificate

from registry.terminal import NotThereError
from serving.control.worker_process import PortInUseError, WorkerStartError, check_port_free, read_record, socket_path
from serving.control.workers import Workers
from serving.router.protocol import Failure
from serving.router.table import Table


def make(root: Path, failures: list[Failure] | None = None) -> Workers:
    segments = root / "requests"
    segments.mkdir(exist_ok=True)
    noted = failures if failures is not None else []
    return Workers(root / "workers", segments, on_failure=noted.append, rng=random.Random(1))


async def until(condition: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    limit = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < limit, "it did not come true"
        await asyncio.sleep(0.02)
    return value


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def pids(workers: Workers) -> dict[str, int]:
    return {one.id: one.pid for one in workers.statuses()}


def live(port: int) -> int:
    return httpx.get(f"http://127.0.0.1:{port}/health/live", trust_env=False, timeout=30).status_code


def test_every_worker_serves_by_a_published_table_and_nothing_is_left_after_a_stop(tmp_path: Path) -> None:
    async def body() -> None:
        workers = make(tmp_path)
        await workers.start("127.0.0.1", 0, 2)
        assert workers.port > 0
        published = await workers.publish(Table(generation=4))
        assert (published.generation, published.waiting_for) == (4, ())
        assert 0 < published.applied_ms < 30_000
        await workers.ask()
        statuses = workers.statuses()
        assert [(one.id, one.state, one.generation) for one in statuses] == [("w0", "ready", 4), ("w1", "ready", 4)]
        assert all(one.stats is not None and one.stats.segment == one.segment for one in statuses)
        assert await asyncio.to_thread(live, workers.port) == 200
        running = pids(workers).values()
        await workers.stop(5.0)
        assert not any(psutil.pid_exists(pid) for pid in running)
        assert not list((tmp_path / "workers").glob("*/worker.json"))

    run(body)


def test_a_killed_worker_is_started_again_and_gets_the_table(tmp_path: Path) -> None:
    async def body() -> None:
        workers = make(tmp_path)
        await workers.start("127.0.0.1", 0, 2)
        await workers.publish(Table(generation=1))
        before = pids(workers)
        os.kill(before["w0"], signal.SIGKILL)
        await until(lambda: pids(workers)["w0"] != before["w0"] and workers.statuses()[0].generation == 1)
        after = workers.statuses()
        assert (after[0].state, after[0].restarts) == ("ready", 1)
        assert (after[1].pid, after[1].restarts) == (before["w1"], 0)
        assert not (await workers.publish(Table(generation=2))).waiting_for
        await workers.stop(5.0)

    run(body)


def test_a_stuck_worker_does_not_hold_up_a_publication(tmp_path: Path) -> None:
    async def body() -> None:
        workers = make(tmp_path)
        await workers.start("127.0.0.1", 0, 2)
        os.kill(pids(workers)["w1"], signal.SIGSTOP)
        published = await workers.publish(Table(generation=3), timeout_s=3.0)
        assert published.waiting_for == ("w1",)
        assert 3000 <= published.applied_ms < 30_000
        os.kill(pids(workers)["w1"], signal.SIGCONT)
        await until(lambda: workers.statuses()[1].generation == 3)
        await workers.stop(5.0)

    run(body)


def test_a_new_control_plane_adopts_the_workers_that_run(tmp_path: Path) -> None:
    async def body() -> None:
        first = make(tmp_path)
        await first.start("127.0.0.1", 0, 2)
        await first.publish(Table(generation=9))
        before, port = pids(first), first.port
        children = await first.abandon()
        second = make(tmp_path)
        assert second.left_running()
        assert await second.start("127.0.0.1", port, 2) == 2
        assert pids(second) == before
        assert second.generation_seen == 9
        assert not (await second.publish(Table(generation=10))).waiting_for
        os.kill(before["w0"], signal.SIGKILL)
        await until(lambda: pids(second)["w0"] != before["w0"] and second.statuses()[0].generation == 10)
        await second.stop(5.0)
        assert not any(_runs(pid) for pid in before.values())
        assert [child.wait(30) for child in children]

    run(body)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_workers_that_listen_elsewhere_are_not_adopted_but_ended(tmp_path: Path) -> None:
    async def body() -> None:
        first = make(tmp_path)
        await first.start("127.0.0.1", 0, 2)
        before = pids(first)
        children = await first.abandon()
        second = make(tmp_path)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        assert await second.start("127.0.0.1", port, 1) == 0
        assert not any(_runs(pid) for pid in before.values())
        assert list(pids(second)) == ["w0"]
        await second.stop(5.0)
        assert [child.wait(30) for child in children]

    run(body)


def test_workers_are_adopted_with_the_certificate_that_is_wanted_only(
    tmp_path: Path, program: Callable[[str], str]
) -> None:
    certificate, key = make_certificate(program("openssl"), tmp_path / "tls", "yard")

    async def body() -> None:
        first = make(tmp_path)
        first.tls = (str(certificate), str(key))
        await first.start("127.0.0.1", 0, 1)
        before, port = pids(first), first.port
        children = await first.abandon()
        second = make(tmp_path)
        second.tls = first.tls
        assert await second.start("127.0.0.1", port, 1) == 1
        assert pids(second) == before
        await second.abandon()
        plain = make(tmp_path)
        assert await plain.start("127.0.0.1", port, 1) == 0
        await plain.publish(Table(generation=2))
        assert live(port) == 200
        await plain.stop(5.0)
        assert [child.wait(30) for child in children] == [0]

    run(body)


def test_a_pid_that_belongs_to_another_process_by_now_is_not_adopted(tmp_path: Path) -> None:
    async def body() -> None:
        first = make(tmp_path)
        await first.start("127.0.0.1", 0, 1)
        port = first.port
        path = tmp_path / "workers" / "w0" / "worker.json"
        text = path.read_text()
        await first.stop(5.0)
        record = text.replace(f'"pid": {text.split(chr(34) + "pid" + chr(34) + ": ")[1].split(",")[0]}', '"pid": 1')
        path.write_text(record)
        found = read_record(path.parent)
        assert found is not None
        assert (found.pid, found.process()) == (1, None)
        second = make(tmp_path)
        assert await second.start("127.0.0.1", port, 1) == 0
        await second.stop(5.0)
        assert psutil.pid_exists(1)

    run(body)


def test_a_port_in_use_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            workers = make(tmp_path)
            with pytest.raises(PortInUseError, match=f"port {port} on 127.0.0.1 is in use"):
                await workers.start("127.0.0.1", port, 2)
            assert workers.statuses() == []
        check_port_free("127.0.0.1", port, "--port")

    run(body)


def test_workers_can_become_more_and_fewer(tmp_path: Path) -> None:
    async def body() -> None:
        workers = make(tmp_path)
        await workers.start("127.0.0.1", 0, 1)
        await workers.publish(Table(generation=2))
        await workers.resize(3)
        await until(lambda: [one.generation for one in workers.statuses()] == [2, 2, 2])
        first = pids(workers)
        await workers.resize(1)
        assert list(pids(workers)) == ["w0"]
        assert pids(workers)["w0"] == first["w0"]
        assert not psutil.pid_exists(first["w2"])
        await workers.stop(5.0)

    run(body)


def test_a_state_directory_with_a_long_path_has_its_sockets_elsewhere(tmp_path: Path) -> None:
    long = tmp_path / ("long" * 25)

    async def body() -> None:
        long.mkdir()
        workers = make(long)
        await workers.start("127.0.0.1", 0, 1)
        path = socket_path(long / "workers" / "w0")
        assert len(os.fsencode(path)) <= 100
        assert path.exists()
        await workers.stop(5.0)
        assert not path.exists()

    run(body)


def test_a_worker_whose_control_plane_was_killed_before_it_was_written_down_is_ended(tmp_path: Path) -> None:
    async def body() -> None:
        first = make(tmp_path)
        await first.start("127.0.0.1", 0, 1)
        before = pids(first)["w0"]
        children = await first.abandon()
        (tmp_path / "workers" / "w0" / "worker.json").unlink()
        second = make(tmp_path)
        assert await second.start("127.0.0.1", 0, 1) == 0
        assert not _runs(before)
        await second.stop(5.0)
        assert [child.wait(30) for child in children] == [0]

    run(body)


def test_a_resize_that_a_stop_overtakes_leaves_nothing(tmp_path: Path) -> None:
    async def body(before: int, after: int, pause_s: float) -> None:
        workers = make(tmp_path)
        await workers.start("127.0.0.1", 0, before)
        resizing = asyncio.create_task(workers.resize(after))
        await asyncio.sleep(pause_s)
        await workers.stop(1.0)
        with contextlib.suppress(WorkerStartError):
            await resizing
        assert workers.statuses() == []
        found = psutil.process_iter(["cmdline"])  # None of a process that is a zombie, or gone by now
        assert not [one for one in found if str(tmp_path / "requests") in (one.info["cmdline"] or ())]

    for change in ((1, 3, 0.05), (2, 1, 0.0), (1, 3, 0.4)):
        run(lambda change=change: body(*change))  # type: ignore[misc]


def test_a_worker_that_cannot_be_started_is_tried_again_by_the_next_resize(tmp_path: Path) -> None:
    async def body() -> None:
        workers = make(tmp_path)
        await workers.start("127.0.0.1", 0, 1)
        away = (tmp_path / "requests").rename(tmp_path / "away")
        with pytest.raises(NotThereError, match="No such file"):
            await workers.resize(2)
        assert list(pids(workers)) == ["w0"]
        away.rename(tmp_path / "requests")
        await workers.resize(2)
        assert list(pids(workers)) == ["w0", "w1"]
        await workers.stop(5.0)

    run(body)


def test_a_worker_that_lost_its_connection_is_waited_for_by_a_publication(tmp_path: Path) -> None:
    async def body() -> None:
        workers = make(tmp_path)
        await workers.start("127.0.0.1", 0, 2)
        await workers.publish(Table(generation=1))
        (tmp_path / "workers" / "w0" / "control.sock").rename(tmp_path / "away")
        _, other = await asyncio.open_unix_connection(str(tmp_path / "away"))  # the newest connection wins
        await until(lambda: workers.statuses()[0].generation == 0)
        published = await workers.publish(Table(generation=2), timeout_s=3.0)
        assert published.waiting_for == ("w0",)
        (tmp_path / "away").rename(tmp_path / "workers" / "w0" / "control.sock")
        assert (await workers.publish(Table(generation=3))).waiting_for == ()
        other.close()
        await workers.stop(5.0)

    run(body)


def test_a_stop_does_not_take_an_end_for_a_death(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        workers = make(tmp_path)
        await workers.start("127.0.0.1", 0, 1)
        (worker,) = workers._workers.values()
        worker.stopping = True
        worker.signal(signal.SIGTERM)
        await asyncio.sleep(0.8)
        await workers.stop(0.0)

    run(body)
    assert "died" not in caplog.text
