"""Generators of cases: suites that are computed from a seed instead of being written down.

Owns: the registry of generators. Never: reading suite files (loaders.py does, and hands over their options).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Final

from eval.generated import latency_mix, long_context
from eval.generated.base import GenerateContext, Generated, GenerateError, Generator

GENERATORS: Final[Mapping[str, Generator]] = {
    "long-context": long_context.generate,
    "latency-mix": latency_mix.generate,
}


def generate(name: str, options: Mapping[str, Any], context: GenerateContext | None = None) -> Generated:
    """The cases of the generator `name`. Raises GenerateError where name or options cannot be used."""
    generator = GENERATORS.get(name)
    if generator is None:
        close = difflib.get_close_matches(name, GENERATORS, n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise GenerateError(f"unknown generator {name!r}{hint}; known: {', '.join(GENERATORS)}")
    return generator(options, context or GenerateContext())


__all__ = ["GENERATORS", "GenerateContext", "GenerateError", "Generated", "Generator", "generate"]
