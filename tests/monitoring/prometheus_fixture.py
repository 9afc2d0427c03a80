"""A real Prometheus for tests, and what a dashboard and a rule file ask of it. Import it into a conftest or a test.

    from prometheus_fixture import run_prometheus, run_alertmanager, dashboard_queries, rule_expressions

Owns: starting Prometheus and Alertmanager as shipped with folders and ports of their own, and ending them; making their
waits shorter (`shortened`). Never: pretending.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from components import ROOT, missing

from monitoring.dashboards import needs, queries

CONFIG = ROOT / "configs" / "prometheus" / "prometheus.yml"
RULES = sorted((CONFIG.parent / "rules").glob("*.yml"))
ALERTMANAGER = ROOT / "configs" / "alertmanager" / "alertmanager.yml"
DASHBOARDS = sorted((ROOT / "configs" / "grafana" / "dashboards").glob("*.json"))
SELECTOR = re.compile(r"(?:[a-z_]+:)?modelyard_[a-z0-9_]+(?::[a-z0-9_]+)?(?:\{[^}]*\})?")


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The result of an instant query; raises where Prometheus refuses it."""
        answer = httpx.post(f"{self.url}/api/v1/query", data={"query": expr}, timeout=30).json()
        assert answer["status"] == "success", f"{expr}: {answer.get('error')}"
        return answer["data"]["result"]

    def lately(self, expr: str, seconds: float = 60.0) -> list[dict[str, Any]]:
        """The result over the last `seconds`, as a panel asks for it: a late scrape leaves a short gap."""
        stop = time.time()
        asked = {"query": expr, "start": stop - seconds, "end": stop, "step": 5}
        answer = httpx.post(f"{self.url}/api/v1/query_range", data=asked, timeout=30).json()
        assert answer["status"] == "success", f"{expr}: {answer.get('error')}"
        return answer["data"]["result"]

    def until(self, expr: str, timeout_s: float = 60.0) -> list[dict[str, Any]]:
        """The first non-empty result of `expr`."""
        deadline = time.monotonic() + timeout_s
        while not (result := self.query(expr)):
            assert time.monotonic() < deadline, f"no data within {timeout_s} s: {expr}"
            time.sleep(0.25)
        return result


@dataclass(frozen=True)
class Question:
    """One expression and where it comes from."""

    where: str
    expr: str

    @property
    def needs(self) -> str:
        """What a yard must have beyond traffic for this to have data; "" for nothing."""
        return needs(self.expr)


@contextlib.contextmanager
def run_prometheus(
    folder: Path, target: str, *, interval_s: float = 1.0, divisor: float = 1.0, alertmanager: str = ""
) -> Iterator[Prometheus]:
    """A Prometheus with the shipped configuration and rules, but scraping `target` (host:port) and looking at rules
    every `interval_s`, with every time in its rules divided by `divisor` (`shortened`). It tells `alertmanager`
    (host:port) of alerts, or nobody."""
    config = yaml.safe_load(CONFIG.read_text())
    config["global"] = {"scrape_interval": f"{interval_s:g}s", "evaluation_interval": f"{interval_s:g}s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [alertmanager] if alertmanager else []
    folder.mkdir(parents=True, exist_ok=True)
    config["rule_files"] = []
    for path in RULES:
        (folder / path.name).write_text(shortened(path.read_text(), divisor))
        config["rule_files"].append(str(folder / path.name))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    options = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with _running("prometheus", folder, options) as url:
        yield Prometheus(url)


@contextlib.contextmanager
def run_alertmanager(folder: Path, receiver: str, *, divisor: float = 1.0) -> Iterator[str]:
    """An Alertmanager with the shipped routes, groups and inhibitions, every time divided by `divisor`; all receivers
    tell the webhook at `receiver` (a URL) under their own names. Yields its host:port."""
    config = yaml.safe_load(shortened(ALERTMANAGER.read_text(), divisor))
    config["receivers"] = [
        {"name": one["name"], "webhook_configs": [{"url": f"{receiver}/{one['name']}", "send_resolved": True}]}
        for one in config["receivers"]
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(config))
    options = [f"--config.file={folder / 'alertmanager.yml'}", f"--storage.path={folder / 'data'}"]
    with _running("prometheus-alertmanager", folder, [*options, "--cluster.listen-address="]) as url:
        yield url.removeprefix("http://")


DURATION = re.compile(r"(?<=[\[ ])(\d+)(ms|s|m|h|d)(?=[\],}\n])")
UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def shortened(text: str, divisor: float) -> str:
    """Rules or routes with every time divided by `divisor`: ranges (`[5m]`) and waits (`for: 2m`, `group_wait: 30s`),
    of at least 4 s for ranges (two scrapes must lie in one) and 0.1 s for waits. Names, thresholds, expressions and
    labels stay as shipped."""

    def shorter(match: re.Match[str]) -> str:
        if divisor == 1.0:
            return match[0]
        seconds = int(match[1]) * UNIT_S[match[2]] / divisor
        least = 4.0 if match.string[match.start() - 1] == "[" else 0.1
        return f"{round(max(least, seconds) * 1000)}ms"

    return DURATION.sub(shorter, text)


@contextlib.contextmanager
def _running(name: str, folder: Path, options: list[str], timeout_s: float = 60.0) -> Iterator[str]:
    """The URL of a program of the Prometheus family that is ready."""
    program = shutil.which(name)
    if program is None:
        missing(name, f"apt-get install {name}")
    url = f"http://127.0.0.1:{free_port()}"
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(program), *options, f"--web.listen-address={url.removeprefix('http://')}"],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            deadline = time.monotonic() + timeout_s
            while not _ready(url):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield url
        finally:
            process.kill()
            process.wait()


def dashboard_queries() -> list[Question]:
    """Every query of every dashboard, with its variables as Grafana fills them in for "All"."""
    return [
        Question(f"{path.stem}: {title}", expr)
        for path in DASHBOARDS
        for title, expr in queries(json.loads(path.read_text()))
    ]


def rule_expressions() -> tuple[list[Question], list[Question]]:
    """The recording rules' expressions (each has data) and the alerts' (each is valid, silent on a healthy yard)."""
    files = [yaml.safe_load(path.read_text()) for path in RULES]
    rules = [rule for file in files for group in file["groups"] for rule in group["rules"]]
    recording = [Question(rule["record"], rule["expr"]) for rule in rules if "record" in rule]
    alerts = [Question(rule["alert"], rule["expr"]) for rule in rules if "alert" in rule]
    return recording, alerts


def runbook_queries() -> list[Question]:
    """Every query that a runbook tells to ask, one a line of its `promql` blocks."""
    found = []
    for page in sorted((ROOT / "docs" / "runbooks").glob("*.md")):
        for block in re.findall(r"^```promql\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
            found += [Question(page.stem, line) for line in block.splitlines() if line]
    return found


def selectors(expr: str) -> list[str]:
    """The series that an expression reads: each must exist for an alert ever to fire."""
    return SELECTOR.findall(expr)


def without_data(prometheus: Prometheus, questions: list[Question]) -> list[str]:
    """Where a question has no answer."""
    return [f"{question.where}: {question.expr}" for question in questions if not prometheus.query(question.expr)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", timeout=2).status_code == 200
    except httpx.TransportError:
        return False
