"""Which of the choices does the model find likeliest?

Owns: how log-likelihoods become a choice. Never: asking for them (eval/providers does).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from eval.scorers.base import (
    LIKELIHOOD,
    NO_TOOLS,
    Answered,
    Likelihood,
    NoScoreError,
    Score,
    Scorer,
    ScorerError,
    Tools,
)

Norm = Literal["none", "tokens", "characters", "bytes"]


class LikelihoodChoice(Scorer, frozen=True):
    """1 where the target is the choice with the largest log-likelihood after the prompt, alone at the top.

    `length: none` compares sums (lm-evaluation-harness's `acc`), `bytes` sums per byte (`acc_norm`); also per token and
    per character. The detail names the choice by both the plain and the normalised reading.
    """

    needs: ClassVar[frozenset[str]] = frozenset({LIKELIHOOD})

    length: Norm = "none"
    """What each log-likelihood is divided by."""

    def check(self, target: Any) -> None:
        if isinstance(target, bool) or not isinstance(target, str | int):
            raise ScorerError("the scorer 'likelihood' needs one of the choices, or its index, as its target")

    def score(self, answered: Answered, target: Any, tools: Tools = NO_TOOLS) -> Score:
        if len(answered.choices) < 2:
            raise NoScoreError("there are no log-likelihoods of two choices or more to compare")
        names = list(answered.choices)
        wanted = names[target] if isinstance(target, int) and 0 <= target < len(names) else target
        if wanted not in answered.choices:
            raise NoScoreError(f"the target {target!r} is none of the choices")
        chosen = likeliest(answered.choices, self.length)
        other: Norm = "bytes" if self.length == "none" else "none"
        beside = likeliest(answered.choices, other)
        plain, normalised = (chosen, beside) if self.length == "none" else (beside, chosen)
        detail = f"likeliest: {_shown(plain)}; by length: {_shown(normalised)}"
        return Score(float(chosen == wanted), detail)


def likeliest(choices: dict[str, Likelihood] | Any, length: Norm) -> str | None:
    """The choice with the largest log-likelihood, divided as `length` says; None where two share the top."""
    values = {text: found.log_probability / _length(text, found, length) for text, found in choices.items()}
    top = max(values.values())
    best = [text for text, value in values.items() if value == top]
    return best[0] if len(best) == 1 else None


def _length(text: str, found: Likelihood, length: Norm) -> int:
    lengths = {"none": 1, "tokens": found.tokens, "characters": len(text), "bytes": len(text.encode())}
    return max(1, lengths[length])


def _shown(choice: str | None) -> str:
    return "a tie" if choice is None else repr(choice)
