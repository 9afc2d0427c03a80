"""What watches a yard in earnest, around a real one: GPUs from a script, a pager, clients, and faults on demand.

Owns: the scripted GPUs, the receiver of alerts, the traffic, the yard's configuration. Never: what is expected of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml
from components import ROOT
from engines.fixtures import FakeEngine
from stack import QUICKSTART, Stack

GPUS = ("GPU-0a", "GPU-1b")
GPU_HOUR = 2.5
GIB = 1024**3
WELL = {
    "name": "Scripted GPU",
    "utilization": 70,
    "memory_total": 80 * GIB,
    "memory_used": 40 * GIB,
    "power": 400_000,
    "power_limit": 700_000,
    "temperature": 60,
    "sm_clock": 1755,
    "memory_clock": 2619,
    "throttle": 4,
    "ecc_corrected": 1,
    "ecc_uncorrected": 0,
    "mig": 0,
    "mps": "",
}
HOT = WELL | {"throttle": 64, "memory_used": 79 * GIB}


class Gpus:
    """Two GPUs of a driver that reads `scenario`, written anew four times a second: energy grows, engines work.

    `hot` slows the first one down and fills its memory, `lost` takes the second one off the bus.
    """

    def __init__(self, folder: Path) -> None:
        self.scenario = folder / "nvml.scenario"
        self.engines: list[int] = []
        """The pid of the engine on each GPU."""
        self.hot = self.lost = False
        self._stopped = threading.Event()
        self._began = time.time()
        self._write()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(0.25):
            self._write()

    def _write(self) -> None:
        lines = {"count": len(GPUS), "xids": "0:31"}
        for index, uuid in enumerate(GPUS):
            state: dict[str, Any] = {"uuid": uuid, **(HOT if index == 0 and self.hot else WELL)}
            state["energy"] = int((time.time() - self._began) * 400_000)
            if index == 1:
                del state["memory_clock"]  # an older board does not give everything
            for pid in self.engines[index : index + 1]:
                state |= {"processes": f"{pid}:{GIB}", "samples": f"{pid}:50:{int(time.time() * 1e6)}"}
            if index == 1 and self.lost:
                state = dict.fromkeys(["handle", *state], "!15")
            lines |= {f"{index}.{name}": value for name, value in state.items()}
        partial = self.scenario.with_suffix(".partial")
        partial.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        partial.replace(self.scenario)


class GpuStack(Stack):
    """A stack whose control plane finds the scripted driver."""

    driver: Path
    scenario: Path

    @property
    def env(self) -> dict[str, str]:
        return {**super().env, "LD_LIBRARY_PATH": str(self.driver), "FAKE_NVML": str(self.scenario)}


@dataclass(frozen=True)
class Pager:
    """A webhook that wrote down what it was told."""

    url: str
    log: Path

    def told(self, status: str) -> set[tuple[str, str, str]]:
        """(receiver, alert, version or device or model) of every alert that came with this status."""
        found = set()
        for line in self.log.read_text().splitlines() if self.log.exists() else ():
            said = json.loads(line)
            for alert in json.loads(said["body"])["alerts"]:
                labels = alert["labels"]
                whose = next((labels[name] for name in ("replica", "version", "device", "model") if name in labels), "")
                if alert["status"] == status:
                    assert alert["annotations"]["runbook"] == f"docs/runbooks/{labels['alertname']}.md"
                    found.add((said["path"].removeprefix("/"), labels["alertname"], whose))
        return found


@contextlib.contextmanager
def pager(folder: Path) -> Iterator[Pager]:
    log = folder / "pager.jsonl"
    program = ROOT / "tests" / "monitoring" / "webhook_receiver.py"
    process = subprocess.Popen([sys.executable, str(program), str(log), "200"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield Pager(f"http://127.0.0.1:{int(process.stdout.readline())}", log)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@dataclass
class Engines:
    """External engines that do as they are told."""

    steady: FakeEngine
    """`remote@v1`."""
    other: FakeEngine
    """`remote@v2`, and `remote@spare`, which has no weight."""
    slow: FakeEngine
    """`slow@v1`."""


def configuration(engines: Engines) -> str:
    """The quickstart's two llama.cpp versions, each half of the traffic, beside two models with external engines."""
    config: dict[str, Any] = yaml.safe_load(QUICKSTART)
    config["prices"] |= {"gpu_hour": GPU_HOUR, "storage_gb_month": 0.02}
    config["budgets"] = [{"name": "all", "amount": 1000}]
    config["drift"] = {"every_s": 5, "samples_min": 20}
    config["monitoring"] = {"sample_hz": 5}
    objective = {"first_token_s": 20, "total_s": 60, "target": 0.99}
    config["models"]["assistant"] |= {"route": {"v1": 5000, "v2": 5000}, "fallback": [], "slo": objective}
    config["models"]["assistant"]["shadow"] = {"v2": {"sample": 5000}}
    remote = {"v1": engines.steady, "v2": engines.other, "spare": engines.other}
    config["models"]["remote"] = {
        "versions": {label: {"engine": "external", "url": engine.url} for label, engine in remote.items()},
        "route": {"v1": 5000, "v2": 5000, "spare": 0},
        "slo": objective,
        "samples": {"rate": 1.0},
    }
    config["models"]["slow"] = {
        "versions": {"v1": {"engine": "external", "url": engines.slow.url}},
        "admission": {"inflight_max": 6, "queue_max": 1},
    }
    return yaml.safe_dump(config)


@dataclass
class Traffic:
    """Clients in the background until left: streams of every model, each with a session of its own, and feedback."""

    url: str
    completed: dict[str, int] = field(default_factory=dict)
    """`model@version` -> streams that ended as they should."""
    failed: dict[str, int] = field(default_factory=dict)
    """model -> those that did not, refused ones too."""

    def __enter__(self) -> Traffic:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    async def _run(self) -> None:
        clients = [("assistant", 0.0)] * 2 + [("remote", 0.0)] * 3 + [("slow", n * 1.0) for n in range(9)]
        async with httpx.AsyncClient(base_url=self.url, timeout=60, trust_env=False) as client:
            await asyncio.gather(
                self._leaver(client), *(self._client(client, n, *one) for n, one in enumerate(clients))
            )

    async def _leaver(self, client: httpx.AsyncClient) -> None:
        """Goes away after the first token, so that there is work without an answer."""
        body = {"model": "assistant@v2", "messages": [{"role": "user", "content": "Count."}], "stream": True}
        while not self._stop.is_set():
            with contextlib.suppress(httpx.HTTPError):
                async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                    async for _ in answer.aiter_lines():
                        break
            await asyncio.sleep(1)

    async def _client(self, client: httpx.AsyncClient, number: int, model: str, start_s: float) -> None:
        await asyncio.sleep(start_s)
        count = 0
        while not self._stop.is_set():
            count += 1
            body = {
                "model": model,
                "messages": [{"role": "user", "content": f"Count to {count}."}],
                "stream": True,
                "max_tokens": 12,
            }
            headers = {"x-session-id": f"{model}-{number}-{count}"}
            try:
                answer = await client.post("/v1/chat/completions", json=body, headers=headers)
            except httpx.HTTPError:
                self.failed[model] = self.failed.get(model, 0) + 1
                continue
            if answer.status_code != 200 or "data: [DONE]" not in answer.text:
                self.failed[model] = self.failed.get(model, 0) + 1
                await asyncio.sleep(0.3)
                continue
            version = answer.headers["x-modelyard-version"]
            self.completed[version] = self.completed.get(version, 0) + 1
            if count % 5 == 0:
                score = {"request_id": answer.headers["x-request-id"], "score": 1 if count % 2 else -1}
                (await client.post("/v1/feedback", json=score)).raise_for_status()
            await asyncio.sleep(0.1)
