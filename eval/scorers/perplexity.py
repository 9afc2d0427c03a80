"""How likely does the model find a text?

Owns: how a text's log-likelihood becomes a score. Never: asking for it (eval/providers does).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from eval.scorers.base import LIKELIHOOD, NO_TOOLS, Answered, NoScoreError, Score, Scorer, ScorerError, Tools


class Perplexity(Scorer, frozen=True):
    """1 / perplexity of the target after the prompt: the geometric mean of its tokens' probabilities."""

    needs: ClassVar[frozenset[str]] = frozenset({LIKELIHOOD})

    def check(self, target: Any) -> None:
        if not isinstance(target, str) or not target:
            raise ScorerError("the scorer 'perplexity' needs the text whose likelihood is wanted as its target")

    def score(self, answered: Answered, target: Any, tools: Tools = NO_TOOLS) -> Score:
        found = answered.choices.get(target)
        if found is None or found.tokens < 1:
            raise NoScoreError("there is no log-likelihood of the text")
        per_token = found.log_probability / found.tokens
        return Score(min(1.0, math.exp(per_token)), f"perplexity {math.exp(-per_token):.4g} over {found.tokens} tokens")
