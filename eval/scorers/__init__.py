"""Scorers: what an answer is worth against its target, between 0 and 1.

Owns: the registry of scorers and the reading of their options. Never: I/O, clocks, randomness, state. A scorer that
needs a model (embeddings) is handed it in Tools.

A scorer is a frozen struct whose fields are its options; adding one is a struct with `score`, listed in SCORERS, or
named by an installed package's entry point in the group `modelyard.scorers`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from eval.scorers import plugins
from eval.scorers.answered import Finished
from eval.scorers.base import (
    EMBED,
    JUDGE,
    LIKELIHOOD,
    NO_TOOLS,
    SANDBOX,
    Answered,
    Embed,
    Execution,
    Judge,
    Likelihood,
    NoScoreError,
    Reply,
    Sandbox,
    Score,
    Scorer,
    ScorerError,
    Tools,
)
from eval.scorers.code import PythonTests
from eval.scorers.embedding import EmbeddingSimilarity
from eval.scorers.instructions import Instructions
from eval.scorers.judge import LlmJudge
from eval.scorers.likelihood import LikelihoodChoice
from eval.scorers.overlap import Bleu, Chrf, Rouge
from eval.scorers.perplexity import Perplexity
from eval.scorers.refusal import Refusal
from eval.scorers.structured import Json, JsonSchema
from eval.scorers.text import Choice, Contains, Exact, Normalized, Numeric, Regex
from eval.scorers.tools import ToolCall

SCORERS: Final[Mapping[str, type[Scorer]]] = {
    "exact": Exact,
    "normalized": Normalized,
    "contains": Contains,
    "regex": Regex,
    "numeric": Numeric,
    "choice": Choice,
    "json": Json,
    "json_schema": JsonSchema,
    "refusal": Refusal,
    "answered": Finished,
    "embedding": EmbeddingSimilarity,
    "instructions": Instructions,
    "tool_call": ToolCall,
    "likelihood": LikelihoodChoice,
    "rouge": Rouge,
    "bleu": Bleu,
    "chrf": Chrf,
    "python_tests": PythonTests,
    "perplexity": Perplexity,
    "judge": LlmJudge,
}


def build(name: str, options: Mapping[str, Any], target: Any) -> Scorer:
    """The scorer `name` with `options`, checked against the target that it will be given.

    Raises ScorerError naming the nearest scorer or option where one is unknown, or what is wrong with the target.
    """
    kind = kind_of(name)
    fields = {field.encode_name for field in msgspec.structs.fields(kind)}
    for option in options:
        if option not in fields:
            known = f"; it takes: {', '.join(sorted(fields))}" if fields else "; it takes none"
            raise ScorerError(f"scorer {name!r} has no option {option!r}{_nearest(option, fields)}{known}")
    try:
        scorer = msgspec.convert(dict(options), kind)
    except msgspec.ValidationError as error:
        raise ScorerError(f"scorer {name!r}: {error}") from error
    scorer.check(target)
    return scorer


def needs(names: Iterable[str]) -> frozenset[str]:
    """What the scorers of these names need: EMBED, SANDBOX, JUDGE, LIKELIHOOD."""
    return frozenset().union(*(kind_of(name).needs for name in names))


def kind_of(name: str) -> type[Scorer]:
    """The scorer of that name: one of SCORERS, or an installed package's. Raises ScorerError naming the nearest."""
    kind = SCORERS.get(name)
    if kind is not None:
        return kind
    plugin = plugins.load(name)
    if plugin is not None:
        return plugin.kind
    known = [*SCORERS, *plugins.names()]
    raise ScorerError(f"unknown scorer {name!r}{_nearest(name, known)}; known: {', '.join(known)}")


def revision_of(name: str) -> str:
    """What else than its name and options decides the scorer's verdicts: the package that brings it, its prompts.

    "" for most: SCORING_REVISION of eval/suite.py counts their changes.
    """
    plugin = None if name in SCORERS else plugins.load(name)
    return " ".join(part for part in (plugin.origin if plugin else "", kind_of(name).revision) if part)


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


__all__ = [
    "EMBED",
    "JUDGE",
    "LIKELIHOOD",
    "NO_TOOLS",
    "SANDBOX",
    "SCORERS",
    "Answered",
    "Embed",
    "Execution",
    "Judge",
    "Likelihood",
    "NoScoreError",
    "Reply",
    "Sandbox",
    "Score",
    "Scorer",
    "ScorerError",
    "Tools",
    "build",
    "kind_of",
    "needs",
    "revision_of",
]
