"""Makes ready what a suite's scorers need: an embedding model, the sandbox, a judge.

Owns: which tool a need stands for, and refusing before anything is asked where one is not to be had. Never: a score.
"""

from __future__ import annotations

from eval import embeddings
from eval.scorers import EMBED, SANDBOX, Judge, Tools


def prepare(needs: frozenset[str], judge: Judge | None = None) -> Tools:
    """What the scorers with these `needs` are handed. Raises a UserError with the remedy where one is missing."""
    from eval import sandbox_trial  # noqa: PLC0415 - for suites that need it

    return Tools(
        embed=embeddings.require().embed if EMBED in needs else None,
        sandbox=sandbox_trial.require() if SANDBOX in needs else None,
        judge=judge,
    )
