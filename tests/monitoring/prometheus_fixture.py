"""A real Prometheus for tests, and what a dashboard and a rule file ask of it. Import it into a conftest or a test.

    from prometheus_fixture import run_prometheus, dashboard_queries, rule_expressions

Owns: starting Prometheus on the shipped rules with its own folder and port, and ending it. Never: pretending.
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

CONFIG = ROOT / "configs" / "prometheus" / "prometheus.yml"
RULES = ROOT / "configs" / "prometheus" / "rules" / "modelyard.yml"
DASHBOARD = ROOT / "configs" / "grafana" / "dashboards" / "overview.json"
SELECTOR = re.compile(r"(?:[a-z_]+:)?modelyard_[a-z0-9_]+(?::[a-z0-9_]+)?(?:\{[^}]*\})?")


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The result of an instant query; raises where Prometheus refuses it."""
        answer = httpx.post(f"{self.url}/api/v1/query", data={"query": expr}, timeout=10).json()
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
    def gpu_only(self) -> bool:
        """It has no data on a machine without a GPU."""
        return "modelyard_gpu_" in self.expr


@contextlib.contextmanager
def run_prometheus(
    folder: Path, target: str, *, interval_s: float = 1.0, timeout_s: float = 30.0
) -> Iterator[Prometheus]:
    """A Prometheus with the shipped configuration and rules, but scraping `target` (host:port), every `interval_s`."""
    program = shutil.which("prometheus")
    if program is None:
        missing("prometheus", "apt-get install prometheus")
    config = yaml.safe_load(CONFIG.read_text())
    config["global"] = {"scrape_interval": f"{interval_s:g}s", "evaluation_interval": f"{interval_s:g}s"}
    config["rule_files"] = [str(RULES)]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    log = folder / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                str(program),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + timeout_s
            while not _ready(url):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield Prometheus(url)
        finally:
            process.kill()
            process.wait()


def dashboard_queries(path: Path = DASHBOARD, *, rate_interval: str = "30s") -> list[Question]:
    """Every query of a dashboard, with its variables as Grafana fills them in for "All"."""
    replaced = {"$__rate_interval": rate_interval, "$__range": "5m", "$model": ".*", "$version": ".*"}
    questions = []
    dashboard = json.loads(path.read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            expr = target["expr"]
            for name, value in replaced.items():
                expr = expr.replace(name, value)
            assert "$" not in expr, f"{panel['title']}: an unknown variable in {expr}"
            questions.append(Question(f"{panel['title']} {target['refId']}", expr))
    return questions


def rule_expressions(path: Path = RULES) -> tuple[list[Question], list[Question]]:
    """The recording rules' expressions (each has data) and the alerts' (each is valid, silent on a healthy yard)."""
    rules = [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]
    recording = [Question(rule["record"], rule["expr"]) for rule in rules if "record" in rule]
    alerts = [Question(rule["alert"], rule["expr"]) for rule in rules if "alert" in rule]
    return recording, alerts


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
