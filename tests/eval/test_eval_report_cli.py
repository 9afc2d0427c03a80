"""`modelyard eval report`: what goes to the terminal, into a file, into the browser."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eval_support import Cli, write_suite
from report_support import make


@pytest.fixture
def cli(cli: Cli) -> Cli:
    make(cli.state / "runs", 24, lost=8, gained=1)
    return cli


@pytest.fixture
def names(cli: Cli) -> tuple[str, str]:
    """Baseline and candidate; the baseline's name fits two runs, so it has to be whole."""
    listed = json.loads(cli.call("report", "list", "--json").stdout)
    first = [one["run"] for one in listed if not one["twin"]]
    return next(name for name in first if "v1" in name), next(name for name in first if "v2" in name)


def test_a_comparison_goes_to_the_terminal_or_into_a_file_by_its_suffix(
    cli: Cli, names: tuple[str, str], tmp_path: Path
) -> None:
    shown = cli.call("report", "compare", *names)
    assert shown.returncode == 0
    assert "worse: the difference lies below 0" in shown.stdout
    piped = cli.call("report", "compare", *names, "--format", "junit")
    assert piped.stdout.startswith("<?xml")
    assert piped.stderr == ""
    file = tmp_path / "report.md"
    written = cli.call("report", "compare", *names, "--output", str(file), "--margin", "0.6")
    assert (written.stdout, written.stderr) == ("", f"{file}\n")
    assert file.read_text().startswith("### ✓ Good enough: ")
    again = next(line for line in file.read_text().splitlines() if line.startswith("- again"))
    assert "&#45;&#45;margin 0&#46;6" in again, "the command that makes it again is told"


def test_a_run_goes_into_a_file_too(cli: Cli, names: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "run.xml"
    assert cli.call("report", "show", names[1], "--output", str(file)).returncode == 0
    assert 'tests="24"' in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "v2", "v2", "--output", "report.pdf"], "let it end in .html"),
        (["compare", "v2", "v2", "--format", "pdf"], "take one of html"),
        (["compare", "v2", "v2", "--margin", "7"], "--margin is 7"),
        (["compare", "v2", "v2", "--seed", "-1"], "--seed is -1"),
        (["compare", "v2", "v2", "--alpha", "0"], "--alpha is 0"),
        (["compare", "v2", "v2", "--flips", "-1"], "--flips is -1"),
        (["compare", "v2", "v3"], "there is no run 'v3'"),
        (["open", "v1", "v2", "v3"], "name one run, or two"),
        (["open", "nothing"], "there is no run 'nothing'"),
    ],
)
def test_a_mistake_is_one_sentence(cli: Cli, arguments: list[str], message: str) -> None:
    found = cli.call("report", *arguments)
    assert found.returncode == 2
    assert message in found.stderr
    assert found.stderr.count("\n") == 1


def test_a_page_is_opened_where_there_is_a_browser_and_its_path_printed_always(
    cli: Cli, names: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    alone = cli.call("report", "open", names[1])
    page = cli.state / "reports" / f"{names[1]}.html"
    assert (alone.returncode, alone.stdout) == (0, f"{page}\n")
    assert "no browser" in alone.stderr
    assert page.read_text().startswith("<!DOCTYPE html>")
    opened = tmp_path / "opened"
    script = tmp_path / "browser"
    script.write_text(f'#!/bin/sh\nprintf %s "$1" > {opened}\n')
    script.chmod(0o755)
    with cli.start("report", "open", *names, BROWSER=f"{script} %s") as process:
        out, err = process.communicate(timeout=200)
    assert (process.returncode, err) == (0, "")
    assert opened.read_text() == Path(out.strip()).as_uri()
    assert Path(out.strip()).name == f"{names[0]}--{names[1]}.html"


def test_open_alone_takes_the_latest_run(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    found = cli.call("report", "--open")
    assert found.returncode == 0
    assert Path(found.stdout.strip()).is_file()


def test_eval_compare_writes_a_report_and_refuses_a_strange_file_before_it_runs(
    cli: Cli, tmp_path: Path, fake_engine: Callable[..., Any]
) -> None:
    suite = str(write_suite(tmp_path / "s", cases=40))
    good, bad = fake_engine(), fake_engine("--word", "u")
    arguments = ("compare", suite, "--baseline", f"{good.url}#m", "--candidate", f"{bad.url}#m", "--price", "3EUR")
    strange = cli.call(*arguments, "--report", "report.pdf")
    assert (strange.returncode, list((cli.state / "runs").glob("small*"))) == (2, [])
    file = tmp_path / "report.html"
    found = cli.call(*arguments, "--report", str(file))
    assert found.returncode == 1, "the report changes nothing of the exit code"
    assert f"report in {file}" in found.stderr
    page = file.read_text()
    assert "is worse than" in page
    assert "cost of a right answer" in page
    assert "EUR per 1,000 requests" in page
