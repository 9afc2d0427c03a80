"""`modelyard eval drift`: how far the outputs of two runs lie apart.

Owns: the command's options. Never: what it computes.
"""

from __future__ import annotations

from typing import Annotated

import typer

from eval.commands.options import Alpha, Json, Seed, StateDirectory, check_alpha, plainly, run_store
from eval.errors import RunError
from registry import terminal


def drift(
    baseline: Annotated[str, typer.Argument(metavar="RUN", help="A run's name or a part of it (eval report list).")],
    candidate: Annotated[str, typer.Argument(metavar="RUN", help="The run to measure against it.")],
    state_dir: StateDirectory = None,
    alpha: Alpha = 0.05,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Output drift between two runs, at the level of text."""
    with plainly():
        from dataclasses import asdict  # noqa: PLC0415 - with the heavy ones

        import numpy as np  # noqa: PLC0415 - heavy

        from eval import assessment, embeddings  # noqa: PLC0415 - heavy
        from eval.reports import document  # noqa: PLC0415 - heavy
        from eval.reports import terminal as tables  # noqa: PLC0415 - heavy

        check_alpha(alpha)
        left, right = run_store(state_dir).get(baseline), run_store(state_dir).get(candidate)
        embedder = embeddings.load() or embeddings.FALLBACK
        rng = np.random.default_rng(seed)
        found = assessment.measure_drift(left.samples(), right.samples(), embedder, alpha, rng)
        if found is None:
            raise RunError(f"{left.name} and {right.name} share no answered sample: were they runs of one suite?")
        if json:
            terminal.print_json(document.finite({"baseline": left.name, "candidate": right.name} | asdict(found)))
        else:
            tables.drift(terminal.console(), found, None)
