"""Which language a text is in.

Owns: the identifier (py3langid) and when its word counts. Never: I/O beyond reading its model once.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from eval.scorers.base import ScorerError

SURE = 0.5
"""From this probability on, an identification speaks against another language."""
TOLD_FROM_CHARACTERS = 24
"""A shorter text's language is a guess."""


@cache
def identifier() -> Any:
    """The identifier, read once (about half a second). Raises ScorerError where py3langid is not installed."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]  # noqa: PLC0415
    except ImportError as error:
        raise ScorerError(f"telling languages apart needs py3langid ({error}): pip install '.[eval]'") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def identify(text: str) -> tuple[str, float]:
    """ISO 639 code and probability of the text's language; ("", 0) where it has no letter."""
    if not any(character.isalpha() for character in text):
        return "", 0.0
    code, probability = identifier().classify(text.lower())
    return str(code), float(probability)


def is_in(text: str, language: str) -> bool:
    """Whether `language` (`de`, `zh-cn`) is the likeliest. True where the text has no letter."""
    code, _ = identify(text)
    return not code or code == language.lower().partition("-")[0]


def may_be_english(text: str) -> bool:
    """False where the text is surely in another language; a word or two tell no identifier anything."""
    code, probability = identify(text)
    return code in {"", "en"} or probability < SURE


def language_of(text: str) -> str:
    """ISO 639 code of a text of some length; "" where it is too short, or the identifier is not sure."""
    if len(text) < TOLD_FROM_CHARACTERS:
        return ""
    code, probability = identify(text)
    return code if probability >= SURE else ""
