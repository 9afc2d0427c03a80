"""The help of every command: there, quick, with examples, and as docs/cli.md has it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest
from components import ROOT

from serving.cli import COMMANDS, help_for
from serving.commands.reference import commands, page

CALL = [sys.executable, "-c", "import sys; sys.argv[0] = 'modelyard'; from serving.cli import main; main()"]
HELP_S = 0.150
TRIES = 12
EVERY = [" ".join(words) for words in commands()]


def call(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CALL, *arguments],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_contract_has_all_its_commands() -> None:
    lacking = {"up", "apply", "status", "versions", "alias", "route", "rollback", "eval", "cost", "doctor", "config"}
    assert lacking <= set(COMMANDS)
    assert {"versions register", "versions list", "versions show", "versions retire"} <= set(EVERY)
    assert {"alias set", "route set", "eval run", "eval compare", "config check", "config schema"} <= set(EVERY)


def processor_seconds(arguments: list[str]) -> tuple[float, subprocess.CompletedProcess[str]]:
    """What a process takes of a processor, and what it said."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done


@pytest.mark.parametrize("command", EVERY)
def test_help_is_quick(command: str) -> None:
    """In processor time: 150 ms, or, where the machine has less to give, little more than its command line library
    takes to be imported, which is measured beside it."""
    best = library = float("inf")
    for _ in range(TRIES):
        used, result = processor_seconds([*CALL, *command.split(), "--help"])
        best = min(best, used)
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith("Usage: modelyard")
        if best < HELP_S:
            return
        library = min(library, processor_seconds([sys.executable, "-c", "import typer"])[0])
        if best < 2 * library:
            return
    pytest.fail(f"--help of {command or 'modelyard'} takes {best * 1000:.0f} ms, importing typer {library * 1000:.0f}")


@pytest.mark.parametrize("command", [name for name in EVERY if name and not name.startswith("eval")])
def test_every_command_has_an_example(command: str) -> None:
    text = help_for([*command.split(), "--help"]) or ""
    assert f"modelyard {command}" in text.replace("Usage: modelyard", "", 1) or "Commands:" in text


@pytest.mark.parametrize("command", [name for name in EVERY if name.split()[:1] not in ([], ["up"], ["eval"])])
def test_data_comes_as_json_too(command: str) -> None:
    text = help_for([*command.split(), "--help"]) or ""
    assert "--json" in text or "Commands:" in text or command == "config schema"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from serving.cli import help_for; help_for(['status', '--help']); "
        "print([m for m in ('rich', 'pydantic', 'httpx', 'eval', 'fastapi', 'sqlalchemy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_page_of_commands_is_fresh() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == page(), "docs/cli.md is stale: run `make docs`"


def test_no_arguments_show_the_help() -> None:
    result = call()
    assert result.returncode == 2
    assert "Commands:" in result.stdout + result.stderr


@pytest.mark.parametrize(("word", "near"), [("versoin", "version"), ("stauts", "status"), ("rolback", "rollback")])
def test_an_unknown_command_is_answered_with_the_nearest(word: str, near: str) -> None:
    result = call(word)
    assert result.returncode == 2
    assert result.stderr == f"modelyard: there is no command {word!r}: did you mean {near!r}?\n"


def test_help_for_what_is_not_there_is_no_help() -> None:
    assert help_for(["nothing", "--help"]) is None
    assert help_for(["status"]) is None
    assert help_for(["status", "--", "--help"]) is None
    assert call("nothing", "--help").returncode == 2
