"""What every generator of cases is given, and what it gives back.

Owns: the interface, the reading of options, the estimate of a text's tokens. Never: I/O, a global random generator.

A generator is a pure function of its options (the seed among them) and of the context that it is handed. The prompts
depend on the options alone: the server's limit decides only which of the cases are left out, never what one says, so
that two versions are asked the same questions.
"""

from __future__ import annotations

import difflib
import math
import random
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec

CHARACTERS_PER_TOKEN: Final = 4.0
"""For an estimate that errs to too many tokens: English filler prose takes 4.6 characters a token under SmolLM2."""
MESSAGE_TOKENS: Final = 12
"""What a chat template puts around one message, at most, in the usual templates (ChatML: 5 to 7)."""
SYSTEM_TOKENS: Final = 32
"""What a chat template may put before the first message: some add a system prompt of their own."""


class GenerateError(ValueError):
    """Options that a generator cannot use; the message is one clause with the remedy."""


class GenerateContext(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the server that will be asked. Everything may be unknown."""

    context_tokens: int | None = None
    """The smallest context window, prompt and answer together, of the versions to be asked."""
    count_tokens: Callable[[str], int] | None = None
    """The server's own tokenizer (/tokenize); None: estimated from characters."""


class Generated(msgspec.Struct, frozen=True, kw_only=True):
    """The cases, as rows like those of a JSONL file, and what was left out."""

    rows: tuple[dict[str, Any], ...]
    left_out: tuple[str, ...] = ()
    """One sentence for each group of cases that was left out: which, how many, why."""


Generator = Callable[[Mapping[str, Any], GenerateContext], Generated]
"""Raises GenerateError where an option cannot be used."""

_Options = TypeVar("_Options", bound=msgspec.Struct)


def read_options(options: Mapping[str, Any], kind: type[_Options], generator: str) -> _Options:
    """The options as `kind`. Raises GenerateError naming the nearest option for an unknown one."""
    known = [field.encode_name for field in msgspec.structs.fields(kind)]
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=1, cutoff=0.5)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise GenerateError(
                f"the generator {generator!r} has no option {option!r}{hint}; it takes: {', '.join(known)}"
            )
    try:
        return msgspec.convert(dict(options), kind)
    except msgspec.ValidationError as error:
        raise GenerateError(f"the generator {generator!r}: {error}") from error


def seeded(*parts: object) -> random.Random:
    """A random generator of its own for what these parts name, the same on every machine."""
    return random.Random("/".join(map(str, parts)))  # noqa: S311 - filler text, no secrets


def estimated_tokens(text: str) -> int:
    """About how many tokens an English text is, from its characters, rounded up: rather too many than too few."""
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


def needed_tokens(text: str, answer_tokens: int, context: GenerateContext) -> int:
    """The window that one user message and its answer need, the chat template's tokens included: by the server's
    tokenizer where it is there, else estimated."""
    prompt = context.count_tokens(text) if context.count_tokens else estimated_tokens(text)
    return prompt + MESSAGE_TOKENS + SYSTEM_TOKENS + answer_tokens
