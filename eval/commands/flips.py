"""`modelyard eval flips`: the answers of two runs that were worth differently, one after another.

Owns: the command's options. Never: which samples flipped (assessment.py), the layout (reports).
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from eval.commands.options import Json, RunName, StateDirectory, plainly, run_store
from eval.errors import RunError
from registry import terminal


def flips(
    baseline: RunName,
    candidate: RunName,
    case: Annotated[str | None, typer.Option(metavar="ID", help="Only this case, flipped or not.")] = None,
    lost: Annotated[bool, typer.Option("--lost", help="Only where the candidate is worse.")] = False,
    gained: Annotated[bool, typer.Option("--gained", help="Only where the candidate is better.")] = False,
    state_dir: StateDirectory = None,
    json: Json = False,
) -> None:
    """Page through the flips of two runs: prompt, target, both outputs, and the scorer's reasons.

    Example: modelyard eval flips quickstart-assistant@v1 quickstart-assistant@v2 --lost
    """
    with plainly():
        from dataclasses import asdict  # noqa: PLC0415 - with the heavy ones

        from eval import assessment  # noqa: PLC0415 - heavy
        from eval.reports import terminal as tables  # noqa: PLC0415 - heavy

        store = run_store(state_dir)
        left, right = store.get(baseline), store.get(candidate)
        samples = left.samples(), right.samples()
        if case is None:
            found = assessment.flips(*samples)
        else:
            found = assessment.side_by_side(*samples, case)
            if not found:
                raise RunError(f"{left.name} and {right.name} have no scored case {case!r} in common")
        if lost or gained:
            found = [flip for flip in found if (gained and flip.gained) or (lost and not flip.gained)]
        if json:
            terminal.print_json([asdict(flip) | {"gained": flip.gained} for flip in found])
        elif not found:
            sys.stderr.write(f"no flip between {left.name} and {right.name}\n")
        else:
            tables.browse(terminal.console(), left.name, right.name, found, one=case is not None)
