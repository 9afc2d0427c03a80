"""Adapters: data sets as they are published, by the name that `format:` gives.

Owns: the registry. Never: opening files, scoring.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from eval.adapters import arc, bbh, boolq, gsm8k, humaneval, ifeval, mmlu
from eval.adapters.base import ANSWER, Adapter, FormatError, Way

ADAPTERS: Final[Mapping[str, Adapter]] = {
    module.ADAPTER.name: module.ADAPTER for module in (gsm8k, mmlu, arc, boolq, ifeval, bbh, humaneval)
}

__all__ = ["ADAPTERS", "ANSWER", "Adapter", "FormatError", "Way"]
