"""What gives log-probabilities: the questions, the answers, and what is known of who answers.

Owns: these types, and how a case becomes questions. Never: asking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from eval.client import FinalError
from eval.errors import RequestRefusedError
from eval.scorers.base import Likelihood
from eval.suite import Case, Message


class CapabilityError(RequestRefusedError):
    """What is wanted is more than the engine gives; the message has the remedy."""


class EvalCapabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine gives to an evaluation, as found by asking it. 0 and "" mean: not known."""

    prompt_logprobs: bool = False
    """Log-probabilities of the prompt's own tokens."""
    top_k: int = 0
    """How many of the likeliest tokens come with each position, at most."""
    full_vocabulary: bool = False
    """Whether all of them do."""
    context_tokens: int = 0
    tokenizer_digest: str = ""
    """What the tokenizer makes of fixed texts: `ids:…`, or `pieces:…` where only texts of tokens are known."""
    vocabulary: int = 0
    library: str = ""
    """What computes, with its version, where that is known."""
    lacking: str = ""
    """What was asked for first and did not come, in one sentence; "" where everything came."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What comes before: a conversation, or a plain text where there are no messages."""

    messages: tuple[Message, ...] = ()
    text: str = ""

    @classmethod
    def of(cls, case: Case) -> Prompt:
        """The case's messages, or their text where it goes without the chat template."""
        return cls(messages=case.messages) if case.chat and case.messages else cls(text=case.text)


@dataclass(frozen=True, slots=True)
class Question:
    """How likely is this continuation?"""

    prompt: Prompt
    continuation: str


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer, or why there is none."""

    likelihood: Likelihood | None = None
    error: str = ""


class LikelihoodProvider(Protocol):
    """Who can say how likely a model finds a text. Threads may ask at the same time."""

    name: str
    capabilities: EvalCapabilities

    def score(self, questions: Sequence[Question]) -> list[Reply]:
        """A reply per question, in their order. Raises UserError where no more answers are to be had."""
        ...

    def likelihoods(self, case: Case) -> Mapping[str, Likelihood]:
        """Each of the case's choices with its likelihood. Raises FinalError where one cannot be told."""
        ...

    def close(self) -> None:
        """End what was started for it."""
        ...


def questions_of(case: Case) -> list[Question]:
    """One per choice; of `perplexity`, one about the target."""
    prompt = Prompt.of(case)
    texts = case.choices if case.kind == "choose" else (str(case.target),)
    return [Question(prompt, text) for text in texts]


def by_choice(case: Case, replies: Sequence[Reply]) -> Mapping[str, Likelihood]:
    """The replies under their choices. Raises FinalError for the first that has no likelihood: a case is whole."""
    found: dict[str, Likelihood] = {}
    for question, reply in zip(questions_of(case), replies, strict=True):
        if reply.likelihood is None:
            raise FinalError(f"no log-likelihood of {_shown(question.continuation)}: {reply.error}")
        found[question.continuation] = reply.likelihood
    return found


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
