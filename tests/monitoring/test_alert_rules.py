"""Alerts: the tools accept them, each is tested both ways, and each has a page that says what to do."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from components import ROOT
from prometheus_fixture import ALERTMANAGER, CONFIG, RULES, shortened
from typer.main import get_command

from serving.cli import app

TESTS = sorted((CONFIG.parent / "tests").glob("*.yml"))
RUNBOOKS = ROOT / "docs" / "runbooks"
PAGES = sorted(RUNBOOKS.glob("*.md"))
SECTIONS = ["What it means", "Who notices", "First look", "Likely causes", "Remedies", "When to silence"]
FENCE = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
METRIC = re.compile(r"\b(?:[a-z_]+:)?modelyard_[a-z0-9_]+(?::[a-z0-9_]+)?")


def rules() -> list[dict[str, Any]]:
    files = [yaml.safe_load(path.read_text()) for path in RULES]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def documented() -> set[str]:
    """Metrics that the exposition has (a test of theirs compares the document with it), and recorded ones."""
    families = re.findall(r"^\| `(modelyard_\w+)`", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    parts = {f"{name}_{part}" for name in families if name.endswith("_seconds") for part in ("bucket", "sum", "count")}
    return {*families, *parts, *(rule["record"] for rule in rules() if "record" in rule)}


def fences(page: Path, language: str) -> list[str]:
    found = [text for kind, text in FENCE.findall(page.read_text()) if kind == language]
    return [line.strip() for text in found for line in text.splitlines() if line.strip()]


@pytest.mark.prometheus
def test_the_tools_accept_configuration_rules_and_their_tests(program: Callable[[str], str]) -> None:
    assert len(TESTS) > 1
    for name, *arguments in (
        ("promtool", "check", "config", CONFIG),
        ("promtool", "check", "rules", *RULES),
        ("promtool", "test", "rules", *TESTS),
        ("amtool", "check-config", ALERTMANAGER),
    ):
        done = subprocess.run([program(name), *map(str, arguments)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_case_that_fires_and_one_that_is_silent() -> None:
    cases = [case for path in TESTS for case in yaml.safe_load(path.read_text())["tests"]]
    checks = [check for case in cases for check in case["alert_rule_test"]]
    fires = {check["alertname"] for check in checks if check.get("exp_alerts")}
    silent = {check["alertname"] for check in checks if not check.get("exp_alerts")}
    assert set(alerts()) == fires == silent


def test_each_alert_says_what_to_do_and_has_a_page() -> None:
    assert {page.stem for page in PAGES} == set(alerts())
    for name, alert in alerts().items():
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert set(alert["annotations"]) == {"summary", "description", "runbook"}
        assert alert["annotations"]["runbook"] == f"docs/runbooks/{name}.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_its_sections_and_nothing_that_does_not_exist(page: Path) -> None:
    text = page.read_text()
    assert re.findall(r"^# (\w+)$", text, re.MULTILINE) == [page.stem]
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    severity = alerts()[page.stem]["labels"]["severity"]
    assert text.splitlines()[2].startswith(f"{severity.capitalize()}: ")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / link).is_file(), link
    commands = [line for line in fences(page, "sh") if line.startswith("modelyard ")]
    commands += [inline for inline in re.findall(r"`(modelyard [^`]+)`", text) if "…" not in inline]
    assert any(command.startswith("modelyard ") for command in fences(page, "sh"))
    for command in commands:
        check_command(shlex.split(command.split(" | ")[0])[1:])
    queries = fences(page, "promql")
    assert queries
    unknown = {metric for query in queries for metric in METRIC.findall(query)} - documented()
    assert unknown == set()


@cache
def command_line() -> click.Command:
    command: click.Command = get_command(app)
    return command


def check_command(words: list[str]) -> None:
    """The command exists, with these options and as many arguments; nothing is run."""
    command = command_line()
    context = click.Context(command, info_name="modelyard")
    while isinstance(command, click.Group) and words and (found := command.get_command(context, words[0])) is not None:
        command, words = found, words[1:]
        context = click.Context(command, info_name=command.name, parent=context)
    if not isinstance(command, click.Group) and words:
        command.make_context(command.name, list(words), parent=context.parent)


def test_every_rule_reads_metrics_that_there_are() -> None:
    for rule in rules():
        assert set(METRIC.findall(rule["expr"])) <= documented(), rule


def test_shortening_divides_times_and_nothing_else() -> None:
    text = 'expr: rate(a:b_rate5m{c="1h"}[5m]) > 60\nfor: 2m\nlabels: {for: 1h, group_wait: 30s}\nrepeat: 12h\n'
    short = shortened(text, 60)
    assert short == (
        'expr: rate(a:b_rate5m{c="1h"}[5000ms]) > 60\nfor: 2000ms\nlabels: {for: 60000ms, group_wait: 500ms}\n'
        "repeat: 720000ms\n"
    )
    assert shortened(text, 1) == text
    assert shortened("[1m]", 60) == "[4000ms]"


def test_the_configuration_scrapes_the_default_admin_port_and_tells_the_alertmanager() -> None:
    config = yaml.safe_load(CONFIG.read_text())
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["127.0.0.1:8001"]}]
    assert config["alerting"]["alertmanagers"] == [{"static_configs": [{"targets": ["127.0.0.1:9093"]}]}]
