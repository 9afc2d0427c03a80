"""Writes docs/cli.md from the commands' own help: `python -m serving.commands.reference > docs/cli.md`.

Owns: the order of the page. Never: any text of its own about a command.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import typer
from typer.core import TyperGroup

from serving.cli import app, help_for

WIDTH = 80
HEAD = """# Commands

Written by `make docs` from `modelyard COMMAND --help`; a test fails when it is stale.

"""


def commands() -> Iterator[list[str]]:
    """Every command as the words that call it, groups before their commands."""
    yield []
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    yield from _below(root, [])


def _below(group: TyperGroup, words: list[str]) -> Iterator[list[str]]:
    context = group.context_class(group, info_name="modelyard")
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield [*words, name]
        if isinstance(command, TyperGroup):
            yield from _below(command, [*words, name])


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for words in commands():
        name = " ".join(["modelyard", *words])
        level = "#" * min(4, 2 + len(words) - (len(words) > 0))
        text = "\n".join(line.rstrip() for line in str(help_for([*words, "--help"], WIDTH)).splitlines())
        parts.append(f"{level} `{name}`\n\n```\n{text}\n```\n\n")
    return "".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
