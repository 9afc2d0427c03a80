"""`modelyard feedback`: an operator's word on one answer.

Owns: the options and what is shown. Never: finding the request, keeping what was said.
"""

from __future__ import annotations

from typing import Annotated

import typer

from registry import terminal
from registry.terminal import UserError
from serving.commands import render
from serving.commands.client import AdminClient
from serving.commands.options import AdminUrl, Json, StateDirectory, application

app = application()
THUMBS = ("up", "down")


@app.command()
def feedback(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="The `x-request-id` of the answer.")],
    score: Annotated[str, typer.Option(metavar="SCORE", help="-1 to 1, or up or down.")],
    label: Annotated[
        str, typer.Option(metavar="WORD", show_default=False, help="A category, e.g. wrong, refusal, unsafe [none].")
    ] = "",
    comment: Annotated[str, typer.Option(metavar="TEXT", show_default=False, help="Why; at most 2 KiB [none].")] = "",
    target: Annotated[
        str, typer.Option(metavar="TEXT", show_default=False, help="What the answer should have been [none].")
    ] = "",
    as_json: Json = False,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
) -> None:
    """Say how good an answer was. It takes the place of what was said of the same request before.

    Clients say it with POST /v1/feedback. The request may be one that was not sampled; it is known about a second
    after its answer has ended, and for seven days.

    \b
    Examples:
      modelyard feedback req-4f1d2c3b5a697881-2a --score down --comment "the capital is Canberra" --target Canberra
      modelyard feedback req-4f1d2c3b5a697881-2b --score 1
    """
    body = {"request_id": request_id, "score": _score(score), "label": label, "comment": comment, "target": target}
    found = AdminClient.find(admin_url, state_dir).send("POST", "feedback", body=body)
    if as_json:
        terminal.print_json(found)
        return
    version = render.escaped(f"{found['model']}@{found['version']}")
    lost = (comment and found["comment"] is None) or (target and found["target"] is None)
    kept = "; the configuration keeps no texts" if lost else ""
    render.show(f"{render.escaped(found['request_id'])} by {version} has the score {found['score']:g}{kept}")


def _score(text: str) -> float | str:
    """A number, or thumbs. Raises UserError."""
    if text.strip().lower() in THUMBS:
        return text.strip().lower()
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--score {text!r} is neither a number from -1 to 1 nor `up` or `down`") from None
