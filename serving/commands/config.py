"""`modelyard config`: check a configuration file, print its schema."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from registry import terminal
from serving.commands.options import Json, group

app = group("Check a configuration file; print its schema.")


@app.command("check")
def check(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration file.")], as_json: Json = False
) -> None:
    """Check a configuration to its last key. Nothing is started or fetched; errors name the line.

    \b
    Example:
      modelyard config check configs/quickstart.yaml
    """
    from serving.config import load  # noqa: PLC0415 - pydantic takes 300 ms

    found = load(config)
    if as_json:
        terminal.print_json(found.model_dump(mode="json"))
        return
    names = [f"{name}@{label}" for name, model in found.models.items() for label in model.versions]
    sys.stdout.write(f"{config} is valid: {', '.join(names)}\n")


@app.command("schema")
def schema() -> None:
    """Print the JSON schema of configuration files, for editors.

    \b
    Example:
      modelyard config schema > .modelyard/schema.json
    """
    from serving.config import json_schema  # noqa: PLC0415 - pydantic takes 300 ms

    sys.stdout.write(json_schema() + "\n")
