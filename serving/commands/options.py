"""Options that several commands have, and how help is laid out.

Owns: their names and help. Never: what they do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
StateDirectory = Annotated[
    Path | None,
    typer.Option(
        "--state-dir", metavar="DIR", help="The state directory [default: $MODELYARD_STATE_DIR, else .modelyard]."
    ),
]
AdminUrl = Annotated[
    str | None,
    typer.Option(
        "--admin-url", metavar="URL", help="The admin API [default: $MODELYARD_ADMIN_URL, else the state directory's]."
    ),
]


def application(help_text: str = "", **settings: Any) -> typer.Typer:
    """A Typer application in this program's manner: plain, quick help without shell completion options."""
    return typer.Typer(help=help_text or None, add_completion=False, rich_markup_mode=None, **settings)


def group(help_text: str) -> typer.Typer:
    """An application of several commands that shows its help when none is given."""
    made = application(help_text, no_args_is_help=True)
    made.callback()(lambda: None)
    return made
