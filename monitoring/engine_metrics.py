"""What an engine says of itself, in one vocabulary: vLLM's and llama.cpp's own metrics, read from their text.

Owns: the vocabulary, which of an engine's names it comes from (renamed ones too), and how series are put together.
Never: I/O, clocks, inventing: a reading that an engine does not give is absent, and said to be.

Counters are the engine's own and begin at 0 with its process; `rate` and `increase` see that as the reset that it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

Reading = Literal[
    "requests_running",
    "requests_waiting",
    "kv_cache_usage_ratio",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "preemptions",
    "prompt_tokens",
    "completion_tokens",
]

COUNTERS: Final[Mapping[Reading, str]] = {
    "prefix_cache_queries": "Prompt tokens that the engine looked up in its prefix cache, since its process began.",
    "prefix_cache_hits": "Of these, tokens that it found there.",
    "preemptions": "Times that the engine put a running request back, for want of room in its KV cache.",
    "prompt_tokens": "Prompt tokens by the engine's own count, cached ones included; probes and warm-up are in it.",
    "completion_tokens": "Completion tokens by the engine's own count; probes and warm-up are in it.",
}
"""Reading -> its help text. They only rise while the engine's process lives."""

GAUGES: Final[Mapping[Reading, str]] = {
    "requests_running": "Requests that the engine says it works on.",
    "requests_waiting": "Requests that wait inside the engine.",
    "kv_cache_usage_ratio": "Share of the engine's KV cache in use, 0 to 1.",
}

READINGS: Final[tuple[Reading, ...]] = (*GAUGES, *COUNTERS)

_NAMES: Final[Mapping[str, Mapping[Reading, tuple[tuple[str, ...], ...]]]] = {
    "vllm:": {
        "requests_running": (("num_requests_running",),),
        "requests_waiting": (("num_requests_waiting",),),
        "kv_cache_usage_ratio": (("kv_cache_usage_perc",), ("gpu_cache_usage_perc",)),
        "prefix_cache_queries": (("prefix_cache_queries_total",), ("gpu_prefix_cache_queries_total",)),
        "prefix_cache_hits": (("prefix_cache_hits_total",), ("gpu_prefix_cache_hits_total",)),
        "preemptions": (("num_preemptions_total",), ("num_preemption_total",)),
        "prompt_tokens": (("prompt_tokens_total",),),
        "completion_tokens": (("generation_tokens_total",),),
    },
    "llamacpp:": {
        "requests_running": (("requests_processing",),),
        "requests_waiting": (("requests_deferred",),),
        "kv_cache_usage_ratio": (("kv_cache_usage_ratio",),),
        "prefix_cache_queries": (("prompt_tokens_total", "prompt_tokens_cached_total"),),
        "prefix_cache_hits": (("prompt_tokens_cached_total",),),
        "prompt_tokens": (("prompt_tokens_total", "prompt_tokens_cached_total"),),
        "completion_tokens": (("tokens_predicted_total",),),
    },
}
"""Prefix of an engine -> reading -> its names, newest first; a name of several parts is their sum, and is only there
where every part is: llama.cpp's `prompt_tokens_total` leaves out cached tokens, which older builds do not count."""

_TOGETHER: Final[Mapping[Reading, Callable[[Iterable[float]], float]]] = {"kv_cache_usage_ratio": max}
"""How several series of one name (vLLM has one per data-parallel core) become one; all others are summed. The fullest
cache is the one that preempts."""


@dataclass(frozen=True, slots=True)
class EngineReadings:
    """One look at an engine."""

    values: Mapping[Reading, float]
    absent: tuple[Reading, ...]
    """Readings that it does not give, in the order of READINGS."""


def read(text: str) -> EngineReadings | None:
    """The readings in the text of an engine's `/metrics` (Prometheus' text format); None where it is no known engine's.

    Values that are no finite number are absent.
    """
    found: dict[str, list[float]] = {}
    for line in text.splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name in _WANTED and (value := _value(line, len(name))) is not None:
            found.setdefault(name, []).append(value)
    prefix = next((prefix for prefix in _NAMES if any(name.startswith(prefix) for name in found)), None)
    if prefix is None:
        return None
    values: dict[Reading, float] = {}
    for reading, names in _NAMES[prefix].items():
        together = _TOGETHER.get(reading, sum)
        for parts in names:
            if all(prefix + part in found for part in parts):
                values[reading] = sum(together(found[prefix + part]) for part in parts)
                break
    return EngineReadings(values, tuple(one for one in READINGS if one not in values))


_WANTED: Final = frozenset(
    prefix + part
    for prefix, readings in _NAMES.items()
    for names in readings.values()
    for name in names
    for part in name
)


def _value(line: str, start: int) -> float | None:
    """The value of a sample whose name ends at `start`; a timestamp may follow it."""
    rest = line[line.rfind("}") + 1 :] if line[start : start + 1] == "{" else line[start:]
    words = rest.split()
    try:
        value = float(words[0])
    except (IndexError, ValueError):
        return None
    return value if math.isfinite(value) else None
