"""What tells two tokenizers apart: fixed texts, and a digest of what a tokenizer makes of them.

Owns: the texts and the digest. Never: asking for tokens. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Final

TEXTS: Final = (
    "The quick brown fox jumps over the lazy dog.",
    "  two leading spaces, a\ttab,\n\na blank line and a trailing space ",
    "1234567890 3.14159 -273.15 1e-9 0x7f 1,000,000",
    "don't we'll I'm they've SHOUTING camelCase snake_case kebab-case",
    'def f(x: int) -> int:\n    return x ** 2  # comment\n\nprint(f"{f(3)!r}")\n',
    '{"name": "Zoë", "tags": ["a", "b"], "n": null}',
    "https://example.org/a/b?c=d&e=f#g user@example.org",
    "Grüße aus Köln, l'été à Paris, mañana será otro día",
    "Привет, мир! Καλημέρα κόσμε. שלום עולם. مرحبا بالعالم",
    "你好世界。こんにちは世界。안녕하세요 세계",
    "नमस्ते दुनिया สวัสดีชาวโลก",
    "😀👩‍👩‍👧‍👦🇪🇺 ∑∫√π ≠ ≤ “quoted” — dash…",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "aaaaaaaaaaaaaaaa !!!!!!!! ........ --------",
)
"""Words, spaces, numbers, code, markup and scripts: where tokenizers differ."""


def digest_of_ids(tokens: Sequence[Sequence[int]]) -> str:
    """The digest where token ids are known: `ids:` and 24 hexadecimal characters."""
    return "ids:" + _hash([[int(token) for token in row] for row in tokens])


def digest_of_pieces(pieces: Sequence[Sequence[str]]) -> str:
    """The digest where only the tokens' texts are known: `pieces:` and 24 hexadecimal characters."""
    return "pieces:" + _hash([list(row) for row in pieces])


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:24]
