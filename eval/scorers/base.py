"""What every scorer is, what it is given, and what it gives.

Owns: the interface. Never: a scorer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

Embed = Callable[[Sequence[str]], NDArray[np.float64]]
"""Texts -> one unit vector a row."""

EMBED: Final = "embed"
SANDBOX: Final = "sandbox"
JUDGE: Final = "judge"
LIKELIHOOD: Final = "likelihood"
"""What a scorer may need: the first three are fields of Tools, the last stands for `Answered.choices`."""


class ScorerError(ValueError):
    """A scorer, option or target that cannot be used; the message is one clause with the remedy."""


class NoScoreError(Exception):
    """There is no score for this answer (which is not the same as 0): the message says why."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing
        """Whether there may be one next time: a judge that does not answer, as opposed to one that talks nonsense."""


class Likelihood(msgspec.Struct, frozen=True):
    """How likely a model finds a continuation."""

    log_probability: float
    """Natural logarithm, summed over the continuation's tokens."""
    tokens: int
    is_greedy: bool = False
    """Whether each token was the likeliest at its place."""


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """What a model gave back, as far as a scorer may look at it."""

    text: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    """As OpenAI has them: `{"type": "function", "function": {"name": …, "arguments": "<JSON>"}}`."""
    finish_reason: str = ""
    prompt: str = ""
    """The last user turn."""
    choices: Mapping[str, Likelihood] = {}
    """Of a case of the kind `choose`: each choice's text with its likelihood after the prompt."""


class Execution(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a program in the sandbox."""

    passed: bool
    """It ran to its end without an exception, within its limits."""
    reason: str = ""
    """Why not, in one line."""
    wall_s: float = 0.0


class Sandbox(Protocol):
    """Runs Python that nobody has read, so that it can do no harm."""

    def run(self, program: str, *, wall_s: float, memory_bytes: int) -> Execution:
        """Run it to its end or its limits."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A judge's answer, and what it took."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_s: float = 0.0
    cached: bool = False
    """Taken from an earlier call with the same question: it cost nothing now."""


class Judge(Protocol):
    """Puts a question to a model at temperature 0."""

    def ask(self, ref: str, messages: Sequence[Mapping[str, str]], *, max_tokens: int, attempt: int = 0) -> Reply:
        """The reply of the model that `ref` names; another `attempt` is another seed. Raises NoScoreError."""


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """What scorers may need beside the answer; None where it is not there."""

    embed: Embed | None = None
    sandbox: Sandbox | None = None
    judge: Judge | None = None


NO_TOOLS: Final = Tools()


class Score(msgspec.Struct, frozen=True):
    """What an answer is worth."""

    value: float
    """Between 0 (wrong) and 1 (right)."""
    detail: str = ""
    """Why, in one line; "" where the value says it all."""
    prompt_tokens: int = 0
    """Spent on a judge for this score, as the next ones."""
    completion_tokens: int = 0
    latency_s: float = 0.0

    @classmethod
    def of(cls, right: bool, otherwise: str = "") -> Score:
        """1, or 0 with the reason."""
        return cls(1.0) if right else cls(0.0, otherwise)


class Scorer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options as fields; pure: the same answer, target and tools always give the same score."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """What there must be beside the answer's text: EMBED, SANDBOX, JUDGE, LIKELIHOOD."""

    revision: ClassVar[str] = ""
    """Changed with whatever else than options decides a score, such as a judge's prompts; part of a suite's digest."""

    def check(self, target: Any) -> None:
        """Raise ScorerError where `target` is nothing that this scorer can compare with."""

    def score(self, answered: Answered, target: Any, tools: Tools = NO_TOOLS) -> Score:
        """Between 0 (wrong) and 1 (right), and why. Raises NoScoreError where a tool gives no score."""
        raise NotImplementedError


def need_text(target: Any, name: str) -> None:
    """Raise ScorerError unless `target` is a non-empty text or a list of them."""
    texts = target if isinstance(target, list | tuple) else [target]
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise ScorerError(f"the scorer {name!r} needs a text, or a list of texts, as its target")


def texts_of(target: Any) -> Sequence[str]:
    """The accepted answers: a list as it is, one text as a list of one."""
    return list(target) if isinstance(target, list | tuple) else [target]
