"""A router worker as a real process, and a control plane's end of its socket, for tests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
from engines.fixtures import FakeEngine

from registry.usage import RequestRecord, scan
from serving.router.protocol import Applied, Ask, Down, Framer, Hello, Publish, Stats, Up, decode_up, encode
from serving.router.split import allocate, arms_of
from serving.router.table import ANY_NAME, Key, Limits, Model, Replica, Table, Timeouts, Version

ROOT = Path(__file__).resolve().parents[3]
Message = TypeVar("Message", Hello, Applied, Stats)
PATIENCE_S = 30.0
"""How long a test waits for what takes milliseconds on an idle machine."""


def until(condition: Callable[[], Any], timeout_s: float = PATIENCE_S) -> Any:
    """The first true value of `condition()`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)
    return value


@contextlib.contextmanager
def standstill(*engines: FakeEngine) -> Iterator[None]:
    """Engines that take no step: what is sent to them waits, so that nothing here depends on how quickly it is sent."""
    for engine in engines:
        os.kill(engine.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for engine in engines:
            os.kill(engine.process.pid, signal.SIGCONT)


class ControlPlane:
    """A blocking control plane of one worker."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self.received: list[Up] = []
        self._framer = Framer()
        self.hello = self.wait(Hello)

    def send(self, message: Down) -> None:
        self.socket.sendall(encode(message))

    def wait(self, kind: type[Message]) -> Message:
        """The next message of a kind; others stay in `received`."""
        while True:
            for index, message in enumerate(self.received):
                if isinstance(message, kind):
                    del self.received[index]
                    return message
            data = self.socket.recv(65536)
            assert data, "the worker closed its control socket"
            self.received += [decode_up(payload) for payload in self._framer.feed(data)]

    def stats(self) -> Stats:
        """Stats of now, not one of those that have piled up unread."""
        asked_at = time.time()
        self.send(Ask())
        while (stats := self.wait(Stats)).at < asked_at:
            pass
        return stats


def version(label: str, ports: Sequence[int], *, names: tuple[str, ...] = (ANY_NAME,), usage: bool = True) -> Version:
    """A version with one ready replica per port."""
    replicas = tuple(Replica(id=f"assistant@{label}/{i}", host="127.0.0.1", port=p) for i, p in enumerate(ports))
    return Version(label=label, replicas=replicas, served_names=names, stream_usage=usage)


def model(versions: Sequence[Version], weights: dict[str, int], **options: Any) -> Model:
    """`assistant` with these versions and weights."""
    options = {"salt": "5a17", "sticky": ("header:x-session-id", "body:user"), **options}
    return Model(
        name="assistant",
        versions={version.label: version for version in versions},
        arms=arms_of(allocate(weights)),
        **options,
    )


@dataclass
class RouterProcess:
    """One running worker."""

    process: subprocess.Popen[bytes]
    folder: Path
    control: ControlPlane
    generation: int = 0
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx.Client(base_url=self.url, trust_env=False, timeout=60)

    @property
    def port(self) -> int:
        return self.control.hello.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def publish(self, *models: Model, limits: Limits | None = None, keys: Sequence[Key] = ()) -> int:
        """Publish a table of these models; returns its generation once the worker serves by it."""
        self.generation += 1
        names = {m.name: m for m in models}
        table = Table(generation=self.generation, models=names, limits=limits or Limits(), keys=tuple(keys))
        self.control.send(Publish(table))
        assert self.control.wait(Applied).generation == self.generation
        return self.generation

    def serve(self, *ports: int, timeouts: Timeouts | None = None, limits: Limits | None = None) -> int:
        """The simplest table: version v1 of `assistant`, a replica at each port."""
        extra = {"timeouts": timeouts} if timeouts else {}
        return self.publish(model([version("v1", ports)], {"v1": 10_000}, **extra), limits=limits)

    def chat(self, *, stream: bool = False, **body: Any) -> httpx.Response:
        """One chat request."""
        headers = body.pop("headers", {})
        message = {"model": "assistant", "messages": [{"role": "user", "content": "one two three"}], "stream": stream}
        return self.client.post("/v1/chat/completions", json={**message, **body}, headers=headers)

    def records(self, count: int = 0, *, timeout_s: float = PATIENCE_S) -> list[RequestRecord]:
        """Every record so far; waits until there are `count`."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = read_segments(self.folder / "requests")
            if len(found) >= count or time.monotonic() > deadline:
                assert len(found) >= count, f"{len(found)} records of {count} after {timeout_s} s"
                return found
            time.sleep(0.02)

    def stop(self) -> int:
        """SIGTERM; the exit status once the worker has drained."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def read_segments(folder: Path) -> list[RequestRecord]:
    """Every record in the segments of a folder, oldest segment first."""
    records: list[RequestRecord] = []
    for path in sorted(folder.glob("*.seg")):
        records += scan(path.read_bytes(), from_start=True)[0]
    return records


@contextlib.contextmanager
def running_router(
    folder: Path, *, port: int = 0, name: str = "w0", options: Sequence[str] = (), log: Path | None = None
) -> Iterator[RouterProcess]:
    """A worker in a folder of its own; killed at the end if it still runs. `options` go on its command line; what it
    prints goes to `log` where one is given."""
    segments = folder / "requests"
    segments.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.sock"
    command = [sys.executable, "-m", "serving.router.worker", "--id", name, "--port", str(port), *options]
    command += ["--socket", str(path), "--segments", str(segments)]
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("wb")) if log is not None else None
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not path.exists():
            assert process.poll() is None, "the worker ended"
            assert time.monotonic() < deadline, "the worker made no control socket"
            time.sleep(0.01)
        while True:
            try:
                control = ControlPlane(path)
                break
            except ConnectionRefusedError:
                time.sleep(0.01)
        router = RouterProcess(process, folder, control)
        yield router
        router.client.close()
        control.socket.close()
    finally:
        process.kill()
        process.wait()
