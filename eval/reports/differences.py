"""What differs between two answers, word by word.

Owns: the split into words and the marks. Never: cutting texts, where they are shown.
"""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import Final

from markupsafe import Markup, escape

_WORD: Final = re.compile(r"\s+|\w+|[^\w\s]")
WORDS_MAX: Final = 1_500
"""Longer answers are shown without marks: the comparison takes quadratic time."""
LIKENESS_MIN: Final = 0.2
"""Below this the answers have too little in common for marks to mean anything."""


def marked(baseline: str, candidate: str) -> tuple[Markup, Markup]:
    """Both texts, escaped; what only the baseline has in `<del>`, what only the candidate has in `<ins>`."""
    a, b = _WORD.findall(baseline), _WORD.findall(candidate)
    plain = escape(baseline), escape(candidate)
    if baseline == candidate or not a or not b or len(a) > WORDS_MAX or len(b) > WORDS_MAX:
        return plain
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    if matcher.ratio() < LIKENESS_MIN:
        return plain
    left, right = Markup(), Markup()
    for kind, a_from, a_to, b_from, b_to in matcher.get_opcodes():
        old, new = escape("".join(a[a_from:a_to])), escape("".join(b[b_from:b_to]))
        if kind == "equal":
            left, right = left + old, right + new
            continue
        left += Markup("<del>{}</del>").format(old) if old else ""
        right += Markup("<ins>{}</ins>").format(new) if new else ""
    return left, right
