"""Workers that are replaced under load: no request fails, every stream is whole, every request is counted once."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from certificates import make
from engines.fixtures import FakeEngine
from steady_load import Load
from yard_harness import RunningYard, until

from registry.certificates import trusting

Engines = Callable[..., FakeEngine]
CONFIG = """
server: {{port: 0, admin_port: 0, workers: {workers}, drain_s: {drain_s}}}
models:
  m:
    versions:
      v1: {{engine: external, url: "{url}"}}
    route: {{v1: 10000}}
"""


def config(engine: FakeEngine, *, workers: int = 1, drain_s: float = 20) -> str:
    return CONFIG.format(workers=workers, drain_s=drain_s, url=engine.url)


class Connections:
    """Clients that open a connection for each request, as fast as they can: some are always in the accept queue."""

    def __init__(self, port: int, clients: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        self.failures: list[str] = []
        self.completed = 0

    def __enter__(self) -> Connections:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                answer = ask(socket.create_connection(("127.0.0.1", self._port), 60), close=True)
            except OSError as error:
                self.failures.append(repr(error))
                continue
            if answer.startswith(b"HTTP/1.1 200"):
                self.completed += 1
            else:
                self.failures.append(repr(answer[:200]))


def ask(connection: socket.socket, *, close: bool = False) -> bytes:
    """One short request over a connection; the whole answer. Closes the connection where it says so."""
    body = json.dumps({"model": "m", "messages": [], "max_tokens": 1}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    connection.settimeout(60)
    connection.sendall((head + ("connection: close\r\n" if close else "") + "\r\n").encode() + body)
    answer = b""
    while True:
        top, blank, rest = answer.partition(b"\r\n\r\n")
        lengths = [line for line in top.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if blank and lengths and len(rest) >= int(lengths[0].split(b":")[1]):
            break
        data = connection.recv(65536)
        if not data:
            break
        answer += data
    if close or b"\r\nconnection: close" in answer.lower():
        connection.close()
    return answer


def requests_of(yard: RunningYard) -> int:
    version: dict[str, Any] = yard.get("status")["models"][0]["versions"][0]
    return int(version["requests"])


def pids(yard: RunningYard) -> dict[str, int]:
    return {one["id"]: one["pid"] for one in yard.get("status")["workers"]}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_replacement_under_load_fails_no_request_and_counts_each_once(
    fake_engine: Engines, tmp_path: Path, workers: int
) -> None:
    engine = fake_engine("--events", "60", "--gap-s", "0.02")
    with RunningYard(tmp_path, config(engine, workers=workers)) as yard:
        before, port = pids(yard), int(yard.info.url.rpartition(":")[2])
        kept = [socket.create_connection(("127.0.0.1", port)) for _ in range(12)]
        assert all(ask(one).startswith(b"HTTP/1.1 200") for one in kept)
        with (
            Load(yard.info.url, clients=4, stream=True, max_tokens=60, model="m") as streams,
            Load(yard.info.url, clients=4, stream=False, max_tokens=1, model="m") as short,
            Connections(port, 3) as fresh,
        ):
            time.sleep(0.5)
            idle: list[bytes] = []
            user = threading.Thread(target=lambda: idle.extend(use(kept)))
            user.start()
            for _ in range(2):
                done = yard.admin.post("/workers/restart", timeout=120)
                assert done.status_code == 200, done.text
                assert [one["cut_off"] for one in done.json()["replacements"]] == [0] * workers
            user.join(120)
        assert (streams.failures, short.failures, fresh.failures) == ([], [], [])
        assert min(streams.completed, short.completed, fresh.completed) > 10
        assert len(idle) == len(kept)
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in idle)
        total = streams.completed + short.completed + fresh.completed + 2 * len(kept)
        assert until(lambda: requests_of(yard) == total or None), (requests_of(yard), total)
        after = pids(yard)
        assert list(after) == list(before)  # the names take turns: after two replacements the first ones are back
        assert not set(after.values()) & set(before.values())
        assert not any(psutil.pid_exists(pid) for pid in before.values())
        assert engine.stats()["cancelled"] == 0
        assert any(entry["action"] == "workers.restart" for entry in yard.get("audit"))


def use(connections: list[socket.socket]) -> list[bytes]:
    """A request on each connection, spread over the time in which workers change."""
    answers = []
    for one in connections:
        time.sleep(0.15)
        answers.append(ask(one))
        one.close()
    return answers


def test_a_stream_beyond_the_drains_deadline_ends_with_an_error_event(fake_engine: Engines, tmp_path: Path) -> None:
    engine = fake_engine("--events", "2000", "--gap-s", "0.05")
    with RunningYard(tmp_path, config(engine, drain_s=0.5)) as yard:
        body = {"model": "m", "messages": [], "stream": True}
        with yard.api.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            restarting: list[httpx.Response] = []
            asking = threading.Thread(target=lambda: restarting.append(yard.admin.post("/workers/restart")))
            asking.start()
            events = [line for line in lines if line.startswith("data: ")]
            asking.join(60)
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "router_stopping"
        assert "data: [DONE]" not in events
        (one,) = restarting[0].json()["replacements"]
        assert one["cut_off"] == 1
        assert one["drained_s"] < 50, "half of what the stream would have taken"
        usage = until(lambda: [row for row in yard.get("cost")["usage"] if row["requests"].get("truncated")] or None)
        assert usage[0]["requests"]["truncated"] == 1
        assert yard.chat(max_tokens=1).status_code == 200


def test_an_idle_connection_is_told_to_leave_and_not_shut_in_its_clients_face(
    fake_engine: Engines, tmp_path: Path
) -> None:
    engine = fake_engine("--events", "40", "--gap-s", "0.05")
    with RunningYard(tmp_path, config(engine)) as yard:
        port = int(yard.info.url.rpartition(":")[2])
        kept = socket.create_connection(("127.0.0.1", port))
        assert b"connection: close" not in ask(kept)
        asking = threading.Thread(target=lambda: yard.admin.post("/workers/restart"))
        asking.start()
        until(lambda: yard.get("workers", "restart")["step"].endswith("finishes what it has"))
        answer = ask(kept)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer
        asking.join(60)
        assert not asking.is_alive()


def test_a_worker_that_does_not_come_up_leaves_the_old_one_serving(fake_engine: Engines, tmp_path: Path) -> None:
    engine = fake_engine("--events", "2")
    with RunningYard(tmp_path, config(engine, workers=2)) as yard:
        before = pids(yard)
        away = yard.state.requests.rename(tmp_path / "away")
        refused = yard.admin.post("/workers/restart")
        away.rename(yard.state.requests)
        assert refused.status_code == 400
        assert "w0b exited" in refused.json()["error"]["message"]
        assert pids(yard) == before
        assert yard.chat().status_code == 200
        assert yard.admin.post("/workers/restart").status_code == 200
        assert set(pids(yard)) == {"w0b", "w1b"}


def test_a_second_replacement_at_the_same_time_is_refused(fake_engine: Engines, tmp_path: Path) -> None:
    engine = fake_engine("--events", "300", "--gap-s", "0.05")
    with RunningYard(tmp_path, config(engine)) as yard:
        first: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: first.append(yard.admin.post("/workers/restart")))
        body = {"model": "m", "messages": [], "stream": True}
        with yard.api.stream("POST", "/v1/chat/completions", json=body) as response:  # the old worker waits for it
            next(response.iter_bytes())
            asking.start()
            until(lambda: yard.get("workers", "restart")["running"])
            assert yard.admin.post("/workers/restart").status_code == 409
        asking.join(60)
        assert first[0].status_code == 200


def test_fewer_and_more_workers_under_load_fail_no_request(fake_engine: Engines, tmp_path: Path) -> None:
    engine = fake_engine("--events", "20", "--gap-s", "0.02")
    with RunningYard(tmp_path, config(engine, workers=2)) as yard:
        port = int(yard.info.url.rpartition(":")[2])
        with (
            Load(yard.info.url, clients=4, model="m") as streams,
            Connections(port, 3) as fresh,
        ):
            for count in (1, 3, 1):
                text = config(engine, workers=count)
                done = yard.admin.post("/apply", json={"config": text, "path": str(yard.path)})
                assert done.status_code == 200, done.text
                time.sleep(0.3)
        assert (streams.failures, fresh.failures) == ([], [])
        total = streams.completed + fresh.completed
        assert until(lambda: requests_of(yard) == total or None), (requests_of(yard), total)


def test_an_apply_that_names_another_certificate_replaces_the_workers_by_itself(
    fake_engine: Engines, tmp_path: Path, program: Callable[[str], str]
) -> None:
    openssl = program("openssl")
    first, second = (make(openssl, tmp_path, name) for name in ("first", "second"))
    engine = fake_engine("--events", "30", "--gap-s", "0.03")

    def with_pair(pair: tuple[Path, Path]) -> str:
        tls = f"server: {{tls: {{certificate: {pair[0]}, key: {pair[1]}}}, "
        return config(engine).replace("server: {", tls)

    with RunningYard(tmp_path, with_pair(first)) as yard:
        before = pids(yard)
        streamed: list[bytes] = []

        def stream() -> None:
            body = {"model": "m", "messages": [], "stream": True}
            streamed.append(post(yard.info.url, first[0], body).content)

        running = threading.Thread(target=stream)
        running.start()
        until(lambda: sum(one["connections"] for one in yard.get("status")["workers"]) or None)
        done = yard.admin.post("/apply", json={"config": with_pair(second), "path": str(yard.path)})
        assert done.status_code == 200, done.text
        running.join(60)
        assert streamed[0].endswith(b"data: [DONE]\n\n")
        assert not set(pids(yard).values()) & set(before.values())
        assert post(yard.info.url, second[0], {"model": "m", "messages": [], "max_tokens": 1}).status_code == 200
        info = yard.state.read_yard()
        assert info is not None
        assert info.certificate == str(second[0])


def post(url: str, certificate: Path, body: dict[str, Any]) -> httpx.Response:
    with httpx.Client(verify=trusting(certificate, url), trust_env=False, timeout=60) as client:
        return client.post(f"{url}/v1/chat/completions", json=body)


def test_a_worker_that_hangs_takes_no_new_clients(fake_engine: Engines, tmp_path: Path) -> None:
    engine = fake_engine("--events", "2")
    with RunningYard(tmp_path, config(engine, workers=2)) as yard:
        port, hanging = int(yard.info.url.rpartition(":")[2]), pids(yard)["w0"]
        os.kill(hanging, signal.SIGSTOP)
        try:
            for _ in range(40):
                assert ask(socket.create_connection(("127.0.0.1", port), 30), close=True).startswith(b"HTTP/1.1 200")
        finally:
            os.kill(hanging, signal.SIGCONT)


def test_clients_that_wait_to_be_accepted_by_a_worker_that_is_killed_are_accepted_by_another(
    fake_engine: Engines, tmp_path: Path
) -> None:
    engine = fake_engine("--events", "2")
    with RunningYard(tmp_path, config(engine, workers=2)) as yard:
        port, both = int(yard.info.url.rpartition(":")[2]), pids(yard)
        for pid in both.values():
            os.kill(pid, signal.SIGSTOP)
        waiting = [socket.create_connection(("127.0.0.1", port), 30) for _ in range(40)]  # in the accept queue
        os.kill(both["w0"], signal.SIGKILL)
        os.kill(both["w1"], signal.SIGCONT)
        assert all(ask(one, close=True).startswith(b"HTTP/1.1 200") for one in waiting)
        until(lambda: pids(yard)["w0"] != both["w0"])
