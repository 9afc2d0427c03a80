"""What is measured of one request for live drift: numbers and categories, never the text itself.

Owns: the features' names, which kind of drift each belongs to, and their definitions. Never: I/O, clocks, deciding
whether anything drifted (live_drift), a language model. Pure and light: it runs in the control plane when a sample is
ingested, over at most CHARACTERS_MAX characters of each side.

Inputs, outputs and quality are apart (data drift, output drift, concept drift). Shares of characters are of the last
user turn: a long system prompt would drown it. A feature that cannot be known of a sample is left out of its dict.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import msgspec

from monitoring.refusal import is_refusal

Kind = Literal["data", "output", "concept"]
"""data: what users send; output: what the version answers; concept: whether they are content with it."""
Scale = Literal["number", "category"]
Features = dict[str, float | str]


class Message(Protocol):
    """One message of a conversation, as `registry.samples.Turn` has it."""

    @property
    def role(self) -> str: ...

    @property
    def content(self) -> str: ...


Prompt = str | Sequence[Message | Mapping[str, Any]]
"""A text by itself, or a conversation: messages as objects or as the JSON objects of a request."""
Language = Callable[[str], str]
"""The language of a text as its ISO 639-1 code, `und` where it cannot be told."""

CHARACTERS_MAX: Final = 20_000
REPEAT_WORDS: Final = 4
"""Length in words of the n-grams whose repetition counts."""


@dataclass(frozen=True, slots=True)
class Feature:
    """What a feature belongs to and how its values compare."""

    kind: Kind
    scale: Scale
    meaning: str


FEATURES: Final[Mapping[str, Feature]] = {
    "input_characters": Feature("data", "number", "characters of all turns"),
    "input_tokens": Feature("data", "number", "prompt tokens, as the engine counts them"),
    "input_turns": Feature("data", "number", "messages of the conversation"),
    "input_language": Feature("data", "category", "language of the last user turn"),
    "input_digits": Feature("data", "number", "share of digits in the last user turn"),
    "input_code": Feature("data", "number", "share of characters on lines of code"),
    "input_punctuation": Feature("data", "number", "share of punctuation and symbols"),
    "input_uppercase": Feature("data", "number", "share of capitals among letters"),
    "input_non_ascii": Feature("data", "number", "share of characters beyond ASCII"),
    "input_topic": Feature("data", "category", "nearest cluster of the reference's embeddings"),
    "output_characters": Feature("output", "number", "characters of the answer"),
    "output_tokens": Feature("output", "number", "completion tokens, as the engine counts them"),
    "output_language": Feature("output", "category", "language of the answer"),
    "output_refusal": Feature("output", "category", "whether the answer opens with a refusal"),
    "output_finish": Feature("output", "category", "finish reason"),
    "output_json": Feature("output", "category", "JSON that parses, JSON that does not, or no JSON"),
    "output_tools": Feature("output", "category", "whether tools were called"),
    "output_repetition": Feature("output", "number", "share of word 4-grams that stood before in the answer"),
    "output_compression": Feature("output", "number", "bytes after deflate over bytes before: low is repetitive"),
    "output_logprob": Feature("output", "number", "mean log-probability of the answer's tokens, in nats"),
    "feedback": Feature("concept", "number", "users' feedback, from -1 to 1"),
}
"""Every feature there is: the label values of `feature` in metrics are these, and EMBEDDINGS."""

EMBEDDINGS: Final[Mapping[str, Feature]] = {
    "input_embedding": Feature("data", "number", "meaning of the last user turn: AUC of a domain classifier, MMD"),
    "output_embedding": Feature("output", "number", "meaning of the answer: AUC of a domain classifier, MMD"),
}

_FENCED: Final = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_CODE_LINE: Final = re.compile(
    r"""
      ^\s*(?:def|class|import|from|return|if|for|while|func|fn|let|const|var|public|private|static|SELECT|INSERT|UPDATE
         |CREATE|\#include|package|use|try|except|catch|else|elif)\b.*[;:{}()=]
    | [;{}]\s*$
    | ^\s*(?://|/\*|\#!)
    | \w+\([^)]*\)\s*(?:;|\{|->|=>)
    | ^\s*\w[\w.\[\]]*\s*(?:[-+*/|&]?=|:=)\s*\S
    | ^\s*</?\w[^>]*>
    """,
    re.VERBOSE,
)
_JSON_FENCE: Final = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\s*\Z", re.DOTALL)


def features(
    prompt: Prompt | None,
    output: str | None,
    *,
    finish_reason: str = "",
    prompt_tokens: int = 0,
    completion_tokens: int = 0,
    tool_calls: int | None = None,
    mean_logprob: float | None = None,
    language: Language | None = None,
) -> Features:
    """The features of one request. `prompt` is a text or a conversation; None, as for `output`: it is not known.

    Token counts of 0, an empty finish reason and None count as not known. `language` is left out where none is given:
    telling languages apart needs a model, which whoever calls decides to load.
    """
    found: Features = {}
    if prompt is not None:
        found |= _of_input(prompt, language)
    if prompt_tokens > 0:
        found["input_tokens"] = float(prompt_tokens)
    if output is not None:
        found |= _of_output(output, language)
    if completion_tokens > 0:
        found["output_tokens"] = float(completion_tokens)
    if finish_reason:
        found["output_finish"] = finish_reason
    if tool_calls is not None:
        found["output_tools"] = "called" if tool_calls else "none"
    if mean_logprob is not None:
        found["output_logprob"] = float(mean_logprob)
    return found


def text_of(content: Any) -> str:
    """The text of a message's `content`: a string, or a list of parts of which those of text count."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        texts = (part.get("text", "") for part in content if isinstance(part, Mapping))
        return "\n".join(text for text in texts if isinstance(text, str) and text)
    return ""


def last_user_turn(prompt: Prompt) -> str:
    """What the user said last; a text by itself is that. "" where no user spoke."""
    if isinstance(prompt, str):
        return prompt
    return next((text for role, text in map(_turn, reversed(prompt)) if role == "user"), "")


def _turn(message: Message | Mapping[str, Any]) -> tuple[str, str]:
    """Role and text of a message."""
    if isinstance(message, Mapping):
        return str(message.get("role", "")), text_of(message.get("content"))
    return message.role, message.content


def _of_input(prompt: Prompt, language: Language | None) -> Features:
    last = last_user_turn(prompt)[:CHARACTERS_MAX]
    if isinstance(prompt, str):
        characters, turns = len(prompt), 1
    else:
        characters, turns = sum(len(text) for _, text in map(_turn, prompt)), len(prompt)
    found: Features = {"input_characters": float(characters), "input_turns": float(turns)}
    if last.strip():
        found |= {f"input_{name}": share for name, share in token_classes(last).items()}
        if language is not None:
            found["input_language"] = language(last)
    return found


def _of_output(output: str, language: Language | None) -> Features:
    seen = output[:CHARACTERS_MAX]
    found: Features = {
        "output_characters": float(len(output)),
        "output_refusal": "refused" if is_refusal(seen) else "answered",
        "output_json": json_state(output),
    }
    if seen.strip():
        found["output_repetition"] = repetition(seen)
        found["output_compression"] = compression(seen)
        if language is not None:
            found["output_language"] = language(seen)
    return found


def token_classes(text: str) -> dict[str, float]:
    """Shares between 0 and 1 of digits, code, punctuation, capitals (among letters) and characters beyond ASCII."""
    visible = [char for char in text if not char.isspace()]
    total = max(1, len(visible))
    letters = [char for char in visible if char.isalpha()]
    return {
        "digits": sum(char.isdigit() for char in visible) / total,
        "code": code_share(text),
        "punctuation": sum(unicodedata.category(char)[0] in "PS" for char in visible) / total,
        "uppercase": sum(char.isupper() for char in letters) / max(1, len(letters)),
        "non_ascii": sum(not char.isascii() for char in visible) / total,
    }


def code_share(text: str) -> float:
    """The share of characters in fenced blocks or on lines that look like code in a common language."""
    fenced = sum(len(block) for block in _FENCED.findall(text))
    rest = _FENCED.sub("", text)
    lines = sum(len(line) for line in rest.splitlines() if _CODE_LINE.search(line[:500]))
    return min(1.0, (fenced + lines) / max(1, len(text)))


def json_state(text: str) -> str:
    """`valid` or `invalid` for an answer that begins as a JSON object or array, perhaps fenced; else `none`."""
    inner = text.strip()
    if fence := _JSON_FENCE.match(inner):
        inner = fence[1].strip()
    if not inner.startswith(("{", "[")):
        return "none"
    try:
        msgspec.json.decode(inner)
    except (msgspec.DecodeError, RecursionError):
        return "invalid"
    return "valid"


def repetition(text: str) -> float:
    """The share of the word n-grams (n = REPEAT_WORDS) that occurred before in the same text; 0 for a short one."""
    words = text.casefold().split()
    grams = [tuple(words[at : at + REPEAT_WORDS]) for at in range(len(words) - REPEAT_WORDS + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def compression(text: str) -> float:
    """Deflated size over plain size, at most 1; a text that repeats itself is near 0."""
    data = text.encode("utf-8", errors="surrogatepass")
    return min(1.0, len(zlib.compress(data, 6)) / max(1, len(data)))
