"""Token-level drift of two models: both read the same tokens, and their distributions are compared as they come.

Owns: which positions count, and that both models mean the same tokens. Never: the formulas (drift_tokens.py).

A text is measured at all its positions; a prompt that is to be answered, at the positions of the baseline's own greedy
answer. The baseline's tokens and chat template are given to both (teacher forcing). Distributions are compared chunk by
chunk and dropped, so memory does not grow with the texts' length or number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Protocol

from eval import drift_tokens
from eval.drift_tokens import Bound, Collected, Positions
from eval.providers.base import CapabilityError, EvalCapabilities
from eval.providers.in_process import InProcess
from eval.providers.prompt_logprobs import IN_FLIGHT, PromptLogprobs
from eval.providers.texts import Text

TOP_K: Final = 20
ANSWER_TOKENS: Final = 32

OnPrompt = Callable[[], None]


class TokenizerMismatchError(CapabilityError):
    """Two models' tokens do not mean the same."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A prompt as tokens, and from which position on it counts."""

    name: str
    tokens: list[int]
    first: int


@dataclass(slots=True)
class Measured:
    """What came of it."""

    collected: Collected
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Prompts that could not be measured, and why: nothing is cut short to fit."""
    readings: dict[str, Reading] = field(default_factory=dict)
    top_k: int = 0
    """Tokens a position; 0: all."""


def check(a: EvalCapabilities, b: EvalCapabilities) -> None:
    """Raise TokenizerMismatchError unless both models' tokens are the same, as far as is known."""
    as_text = "compare them as text (--level text)"
    if not a.tokenizer_digest or not b.tokenizer_digest:
        raise TokenizerMismatchError(f"it is not known how both tokenise, so tokens cannot be compared: {as_text}")
    if a.tokenizer_digest != b.tokenizer_digest:
        raise TokenizerMismatchError(
            f"the two models' tokenizers differ ({a.tokenizer_digest} and {b.tokenizer_digest}), so their "
            f"distributions are over different tokens: {as_text}"
        )
    if a.vocabulary != b.vocabulary:
        raise TokenizerMismatchError(
            f"the two models' vocabularies have {a.vocabulary} and {b.vocabulary} tokens: {as_text}"
        )


def measure(
    baseline: InProcess | PromptLogprobs,
    candidate: InProcess | PromptLogprobs,
    texts: Sequence[Text],
    *,
    answer_tokens: int = ANSWER_TOKENS,
    top_k: int = TOP_K,
    on_prompt: OnPrompt = lambda: None,
) -> Measured:
    """Read everything with both. Raises TokenizerMismatchError, CapabilityError, and what asking raises."""
    if isinstance(baseline, InProcess) != isinstance(candidate, InProcess):
        raise CapabilityError("one model is in process and the other a server: name both in one way")
    check(baseline.capabilities, candidate.capabilities)
    if isinstance(baseline, InProcess) and isinstance(candidate, InProcess):
        found = Measured(Collected("exact"))
        pair = _InProcess(baseline, candidate)
        for text in texts:
            _one(found, pair, text, answer_tokens)
            on_prompt()
        return found
    assert isinstance(baseline, PromptLogprobs)
    assert isinstance(candidate, PromptLogprobs)
    whole = baseline.capabilities.full_vocabulary and candidate.capabilities.full_vocabulary
    most = min(baseline.capabilities.top_k, candidate.capabilities.top_k)
    k = -1 if whole else min(top_k, most)
    bound: Bound = "exact" if whole else "lower bound"
    found = Measured(Collected(bound), top_k=0 if whole else k)
    served = _Served(baseline, candidate, k)
    with ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="token-drift") as pool:
        for part in pool.map(lambda text: _alone(served, text, bound, answer_tokens), texts):
            found.refused += part.refused
            found.readings |= part.readings
            for name, positions in zip(part.collected.names, part.collected.parts, strict=True):
                found.collected.add(name, positions)
            on_prompt()
    return found


class _Pair(Protocol):
    @property
    def baseline(self) -> InProcess | PromptLogprobs: ...

    @property
    def context(self) -> int: ...

    def positions(self, reading: Reading) -> Positions: ...


@dataclass(frozen=True, slots=True)
class _InProcess:
    baseline: InProcess
    candidate: InProcess

    @property
    def context(self) -> int:
        return min(self.baseline.capabilities.context_tokens, self.candidate.capabilities.context_tokens)

    def positions(self, reading: Reading) -> Positions:
        """Both compute while the other's chunk is compared."""
        read, first = reading.tokens[:-1], reading.first
        chunks = zip(self.baseline.distributions(read, first), self.candidate.distributions(read, first), strict=True)
        parts, at = [], first + 1
        for log_p, log_q in chunks:
            parts.append(drift_tokens.compare_rows(log_p, log_q, reading.tokens[at : at + len(log_p)]))
            at += len(log_p)
        return drift_tokens.joined(parts)


@dataclass(frozen=True, slots=True)
class _Served:
    baseline: PromptLogprobs
    candidate: PromptLogprobs
    k: int

    @property
    def context(self) -> int:
        """One less than the smaller one: a server answers with one token at least."""
        known = [one.capabilities.context_tokens for one in (self.baseline, self.candidate)]
        return min((size for size in known if size), default=1 << 30) - 1

    def positions(self, reading: Reading) -> Positions:
        p, q = (one.top_k(reading.tokens, self.k)[reading.first :] for one in (self.baseline, self.candidate))
        return drift_tokens.compare_top_k(p, q, reading.tokens[reading.first + 1 :])


def _alone(pair: _Pair, text: Text, bound: Bound, answer_tokens: int) -> Measured:
    found = Measured(Collected(bound))
    _one(found, pair, text, answer_tokens)
    return found


def _one(found: Measured, pair: _Pair, text: Text, answer_tokens: int) -> None:
    """Measure one prompt into `found`, or say there why it is refused."""
    (encoded,) = pair.baseline.encode([text.prompt])
    if isinstance(encoded, str):
        found.refused.append((text.name, encoded))
        return
    answering = answer_tokens if text.answered else 0
    if len(encoded) + answering > pair.context:
        asked = f" with {answering} to answer" if answering else ""
        found.refused.append((text.name, f"it has {len(encoded)} tokens{asked} and the context holds {pair.context}"))
        return
    answer = pair.baseline.greedy(encoded, answering) if answering else []
    reading = Reading(text.name, [*encoded, *answer], max(len(encoded) - 1, 0) if answering else 0)
    if len(reading.tokens) - reading.first < 2:
        found.refused.append((text.name, "the baseline's answer is empty" if answering else "it has a single token"))
        return
    found.readings[text.name] = reading
    found.collected.add(text.name, pair.positions(reading))


def around(source: InProcess, reading: Reading, position: int, before: int = 12) -> tuple[str, str]:
    """The text before a position that was measured, and the token that stands there."""
    at = reading.first + 1 + position
    pieces = source.texts(reading.tokens[max(0, at - before) : at + 1])
    return "".join(pieces[:-1]), pieces[-1]
