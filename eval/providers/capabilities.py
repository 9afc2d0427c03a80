"""What an engine gives to an evaluation, found out by asking it. What does not come back is not there.

Owns: the questions, and what counts as a yes. Never: scoring.

An engine may accept `echo` or `prompt_logprobs` and ignore it, as llama.cpp's server does: then log-probabilities come
back, of the one generated token. A task that took them for the prompt's would score by chance. So what counts is a
log-probability for each of the prompt's own tokens, in their order.
"""

from __future__ import annotations

import math
import ssl
from typing import Any, Final

from eval.providers.base import EvalCapabilities
from eval.providers.prompt_logprobs import AbsentError, RefusedError, Wire
from eval.providers.worker.probes import TEXTS, digest_of_ids, digest_of_pieces
from eval.results import Subject

PROBE: Final = "The quick brown fox jumps over the lazy dog."
FULL_FROM: Final = 1_000
"""Tokens of one position from which on they are taken for the whole vocabulary: no engine's top k is that large."""
TOP_K: Final = (20, 10, 5, 1)
"""What is asked for, from the most that vLLM gives unless told otherwise."""


def capabilities(subject: Subject, verify: ssl.SSLContext | bool = True) -> EvalCapabilities:
    """Ask the subject's server. Raises ServerGoneError where nothing answers."""
    wire = Wire(subject, verify)
    try:
        return probe(wire)
    finally:
        wire.close()


def probe(wire: Wire) -> EvalCapabilities:
    """1. The tokenizer, by fixed texts. 2. Log-probabilities of a prompt, with as many tokens a position as come.
    3. The context. The first thing that is lacking is said in `lacking`, and nothing is asked that needs it."""
    context = _context(wire)
    ids, why = _tokenized(wire)
    if not ids:
        return _by_text(wire, context, why)
    digest = digest_of_ids(ids[1:])
    top_k, full, why = _top_k(wire, ids[0])
    return EvalCapabilities(
        prompt_logprobs=top_k > 0,
        top_k=top_k,
        full_vocabulary=full,
        context_tokens=context,
        tokenizer_digest=digest,
        lacking=why,
    )


def _tokenized(wire: Wire) -> tuple[list[list[int]], str]:
    """Tokens of PROBE and of each of TEXTS, or why there are none."""
    try:
        return [wire.tokenize(text, special=False) for text in (PROBE, *TEXTS)], ""
    except RefusedError as error:
        return [], f"{wire.subject.ref} does not tokenise over HTTP ({error})"


def _top_k(wire: Wire, tokens: list[int]) -> tuple[int, bool, str]:
    """How many tokens come with each position of a prompt, whether that is all of them, and why none does."""
    why = ""
    for asked in (-1, *TOP_K):
        try:
            rows = wire.prompt_logprobs(tokens if asked > 0 else tokens[:2], asked)
        except AbsentError as error:
            return 0, False, f"{wire.subject.ref} gives none ({error})"
        except RefusedError as error:
            why = why if asked == -1 else f"{wire.subject.ref} gives no log-probabilities of a prompt ({error})"
            continue
        expected = tokens[1:] if asked > 0 else tokens[1:2]
        if any(token not in row or not _probable(row.values()) for token, row in zip(expected, rows, strict=True)):
            return (
                0,
                False,
                f"{wire.subject.ref} gives numbers for a prompt that are no log-probabilities of it",
            )
        count = min(map(len, rows))
        if asked > 0 or count >= FULL_FROM:
            return (min(count, asked) if asked > 0 else count), count >= FULL_FROM, ""
    return 0, False, why


def _by_text(wire: Wire, context: int, why: str) -> EvalCapabilities:
    """Where no tokenizer is to be had: `echo`, and the tokens' texts that come with it."""
    pieces = []
    for text in (PROBE, *TEXTS):
        body = {"prompt": text, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        try:
            found = _echoed(wire.post("/v1/completions", body), text)
        except RefusedError as error:
            return EvalCapabilities(context_tokens=context, lacking=f"{wire.subject.ref} refuses `echo` ({error})")
        if not found:
            lacking = f"{wire.subject.ref} ignores `echo`: no log-probabilities of the prompt come back"
            return EvalCapabilities(context_tokens=context, lacking=lacking)
        pieces.append(found)
    # Without the ids of tokens a conversation cannot be scored: the tokenizer is known, and that is all.
    return EvalCapabilities(context_tokens=context, tokenizer_digest=digest_of_pieces(pieces[1:]), lacking=why)


def _echoed(answer: Any, text: str) -> list[str]:
    """The texts of the prompt's tokens, where each but the first came with a log-probability; [] otherwise."""
    logprobs = (answer.get("choices") or [{}])[0].get("logprobs") or {}
    tokens, values = logprobs.get("tokens") or [], logprobs.get("token_logprobs") or []
    if len(tokens) != len(values) or not "".join(map(str, tokens)).startswith(text):
        return []
    length, count = 0, 0
    while length < len(text):
        length += len(str(tokens[count]))
        count += 1
    numbers = values[1:count]
    return [str(token) for token in tokens[:count]] if numbers and _probable(numbers) else []


def _probable(values: Any) -> bool:
    """Whether these can be log-probabilities: finite or -inf, none above 0, together no more than certain each."""
    return all(isinstance(value, int | float) and not math.isnan(value) and value <= 1e-3 for value in values)


def _context(wire: Wire) -> int:
    """vLLM says it with its models, llama.cpp in /props; 0 where neither does."""
    try:
        listed = [one for one in wire.get("/v1/models").get("data", []) if isinstance(one, dict)]
    except (RefusedError, AttributeError):
        listed = []
    mine = [one for one in listed if one.get("id") == wire.subject.model] or listed
    for one in mine:
        meta = one.get("meta") or {}
        for value in (one.get("max_model_len"), meta.get("n_ctx") if isinstance(meta, dict) else None):
            if isinstance(value, int) and value > 0:
                return value
    try:
        value = wire.get("/props").get("default_generation_settings", {}).get("n_ctx", 0)
    except (RefusedError, AttributeError):
        return 0
    return value if isinstance(value, int) else 0
