"""Telling a text's language by py3langid, where it is installed.

Owns: loading its model (75 MB) and when an answer counts. Never: being loaded where nobody asks for languages.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, Final

from monitoring.features import Language

SURE: Final = 0.35
"""Probability under which a language is `und`: three words could be anything."""
CHARACTERS_MAX: Final = 2000


def languages() -> Language | None:
    """The language of a text as its ISO 639-1 code; None where py3langid is not installed (extra `eval`)."""
    if importlib.util.find_spec("py3langid") is None:
        return None
    module: Any = importlib.import_module("py3langid.langid")
    identifier = module.LanguageIdentifier.from_model_file(module.MODEL_FILE, norm_probs=True)

    def language(text: str) -> str:
        code, sure = identifier.classify(text[:CHARACTERS_MAX])
        return str(code) if sure >= SURE else "und"

    return language
