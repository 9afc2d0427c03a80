"""A whole yard in a thread of the test process: real registry, workers and admin server, fake engines."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from registry.state import StateDir, YardInfo
from serving.config import parse
from serving.control.ui import EngineState, Options, Ready, SilentUi
from serving.control.yard import Yard

CONFIG = """
server: {{port: 0, admin_port: 0, workers: {workers}, drain_s: 5}}
models:
  m:
    versions:
      v1: {{engine: external, url: "{first}"}}
      v2: {{engine: external, url: "{second}"}}
    route: {{v1: 9000, v2: 1000}}
    aliases: {{champion: v1}}
    fallback: [v1]
"""


class NotingUi(SilentUi):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.is_ready: Ready | None = None

    def say(self, text: str) -> None:
        self.said.append(text)

    def engines(self, states: Any) -> None:
        assert all(isinstance(state, EngineState) for state in states)

    def ready(self, ready: Ready) -> None:
        self.is_ready = ready


class RunningYard:
    """`with RunningYard(folder, text) as yard`: started on entry, stopped on exit."""

    def __init__(self, folder: Path, text: str, options: Options | None = None) -> None:
        self.state = StateDir(folder / "state")
        self.path = folder / "yard.yaml"
        self.path.write_text(text)
        self.ui = NotingUi()
        self._options = options or Options()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> RunningYard:
        self._thread.start()
        config = parse(self.path.read_text())
        try:
            self.yard = Yard(config, self.path, self.state, self._options, self.ui, rng=random.Random(1))
            self.wait(self.yard.start())
        except BaseException:
            self._end()
            raise
        info = self.state.read_yard()
        assert info is not None
        self.info: YardInfo = info
        self.token = self.state.admin_token.read_text().strip()
        headers = {"authorization": f"Bearer {self.token}"}
        self.admin = httpx.Client(base_url=f"{info.admin_url}/admin/v1", headers=headers, trust_env=False, timeout=60)
        self.api = httpx.Client(base_url=info.url, trust_env=False, timeout=60)
        return self

    def __exit__(self, *_: object) -> None:
        self.admin.close()
        self.api.close()
        try:
            self.wait(self.yard.stop())
        finally:
            self._end()

    def wait(self, work: Any) -> Any:
        """Run a coroutine in the yard's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)

    def chat(self, model: str = "m", **changes: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "one two three"}]} | changes
        return self.api.post("/v1/chat/completions", json=body)

    def get(self, *path: str, **query: Any) -> Any:
        answer = self.admin.get("/" + "/".join(path), params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


def files_in(folder: Path) -> dict[Path, bytes]:
    """What every file below a folder holds; one that goes away meanwhile is none of them."""
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                found[path] = path.read_bytes()
    return found


def until(condition: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    limit = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < limit, "it did not come true"
        time.sleep(0.05)
    return value
