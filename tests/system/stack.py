"""The whole stack as a user starts it: `modelyard up` as a process with a state directory of its own.

Owns: starting, killing, restarting and finding what a stack left behind. Never: reaching into its processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
from components import ROOT
from prometheus_client.parser import text_string_to_metric_families

QUICKSTART = (ROOT / "configs" / "quickstart.yaml").read_text()
MODELYARD = [sys.executable, "-c", "import sys; sys.argv[0] = 'modelyard'; from serving.cli import main; main()"]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, none of which is given to a client before somebody does."""
    clients_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(12_000, max(clients_from, 20_000))
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            found += [port] if port not in found else []
    return found


def files_in(folder: Path) -> dict[Path, bytes]:
    """What every file below a folder holds; one that goes away meanwhile is none of them."""
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                found[path] = path.read_bytes()
    return found


def until(condition: Any, timeout_s: float = 60.0, what: str = "the condition") -> Any:
    """The first true value of `condition()`."""
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(httpx.HTTPError, OSError):
            value = condition()
            if value:
                return value
        assert time.monotonic() < deadline, f"{what} did not come within {timeout_s} s"
        time.sleep(0.05)


class Stack:
    """One yard: its configuration, its state directory, and the process of its control plane."""

    def __init__(self, folder: Path, config: str) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.config = folder / "yard.yaml"
        self.config.write_text(config)
        self.port, self.admin_port = free_ports(2)
        self.log = folder / "up.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    @property
    def credential(self) -> dict[str, str]:
        """The header that changes through the admin API need."""
        return {"authorization": f"Bearer {(self.state / 'admin.token').read_text().strip()}"}

    @property
    def env(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "MODELYARD_STATE_DIR": str(self.state),
            "COLUMNS": "160",
            "NO_COLOR": "1",
        }

    def spawn(self, *options: str) -> subprocess.Popen[bytes]:
        """Start `modelyard up` without waiting for anything."""
        ports = ["--port", str(self.port), "--admin-port", str(self.admin_port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*MODELYARD, "up", str(self.config), *ports, *options],
                cwd=ROOT,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.process

    def up(self, *options: str, timeout_s: float = 180.0) -> Stack:
        """Start, and wait until every model answers and the admin API does too."""
        process = self.spawn(*options)

        def ready() -> bool:
            assert process.poll() is None, f"up ended with {process.returncode}: {self.log.read_text()[-3000:]}"
            return (
                httpx.get(f"{self.url}/health/ready", trust_env=False).json()["status"] == "ready"
                and httpx.get(f"{self.admin_url}/health", trust_env=False).status_code == 200
            )

        until(ready, timeout_s, "a ready stack")
        return self

    def kill_control(self) -> None:
        """`kill -9` of the control plane alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self, number: int = signal.SIGINT, timeout_s: float = 90.0) -> int:
        """Ctrl-C, and the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def cli(
        self, *arguments: str, check: int | None = 0, timeout_s: float = 120.0, cwd: Path = ROOT
    ) -> subprocess.CompletedProcess[str]:
        """Run `modelyard ARGUMENTS`; asserts its exit status unless `check` is None."""
        result = subprocess.run(
            [*MODELYARD, *arguments],
            check=False,
            cwd=cwd,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if check is not None:
            assert result.returncode == check, f"exit {result.returncode}: {result.stdout}\n{result.stderr}"
        return result

    def json(self, *arguments: str) -> Any:
        """What `modelyard ARGUMENTS --json` prints."""
        return json.loads(self.cli(*arguments, "--json").stdout)

    def admin(self, path: str) -> Any:
        """A GET on the admin API."""
        response = httpx.get(f"{self.admin_url}/admin/v1{path}", trust_env=False, timeout=60)
        response.raise_for_status()
        return response.json()

    def engine_tokens(self) -> dict[str, tuple[int, int]]:
        """Prompt and completion tokens by the engines' own counters, as our metrics show them, by version."""
        text = httpx.get(f"{self.admin_url}/metrics", trust_env=False, timeout=60).text
        found: dict[str, dict[str, int]] = {}
        for family in text_string_to_metric_families(text):
            for name in ("prompt", "completion"):
                if family.name == f"modelyard_engine_{name}_tokens":
                    for sample in family.samples:
                        version = sample.labels["replica"].partition("/")[0]
                        found.setdefault(version, {})[name] = int(sample.value)
        return {version: (counts.get("prompt", -1), counts.get("completion", -1)) for version, counts in found.items()}

    def processes(self) -> list[psutil.Process]:
        """Every process that works for this yard: those that name its state directory or configuration."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                command = " ".join(process.cmdline())
                if str(self.folder) in command and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def pid_of(self, needle: str) -> int:
        """The process of this yard whose command line holds `needle`; 0 where there is none."""
        matches = [process.pid for process in self.processes() if needle in " ".join(process.cmdline())]
        assert len(matches) <= 1, f"{len(matches)} processes with {needle!r}"
        return matches[0] if matches else 0

    def clean_up(self) -> None:
        """End everything, however it stands."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        if self.process is not None:
            self.process.wait()


@contextlib.contextmanager
def stack(folder: Path, config: str) -> Iterator[Stack]:
    """A stack that has not been started; whatever runs at the end is killed."""
    yard = Stack(folder, config)
    try:
        yield yard
    finally:
        yard.clean_up()


def external(urls: dict[str, str], route: dict[str, int], *, fallback: Sequence[str] = (), server: str = "{}") -> str:
    """A configuration of `assistant` with external engines."""
    versions = {label: {"engine": "external", "url": url} for label, url in urls.items()}
    model = {"versions": versions, "route": route, "fallback": list(fallback)}
    return f"server: {server}\nprices: {{cpu_hour: 0.12}}\nmodels: {json.dumps({'assistant': model})}\n"
