"""Samples as data frames, for CSV and Parquet.

Owns: the columns. Never: writing files, cutting or escaping texts: this is data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eval.errors import need
from eval.reports.gather import ComparisonReport, Paired

if TYPE_CHECKING:
    import pandas as pd

_SIDE = (
    "score", "output", "tool_calls", "detail", "error", "finish_reason", "prompt_tokens", "completion_tokens", "ttft_s",
    "latency_s", "answered_by",
)  # fmt: skip
_NUMBERS = ("baseline_score", "candidate_score", "difference", "baseline_ttft_s", "candidate_ttft_s")


def paired(report: ComparisonReport) -> pd.DataFrame:
    """A row per sample of either run: what was asked, both answers and scores, their difference, why unpaired."""
    pandas = need("pandas")
    frame: pd.DataFrame = pandas.DataFrame([_row(pair) for pair in report.pairs])
    return frame.astype(dict.fromkeys(_NUMBERS, "float64"))


def _row(pair: Paired) -> dict[str, Any]:
    known = pair.any
    row: dict[str, Any] = {
        "case": pair.case,
        "repeat": pair.repeat,
        "slice": known.slice,
        "cluster": known.cluster,
        "scorer": known.scorer,
        "weight": known.weight,
        "prompt": known.prompt,
        "target": known.target,
        "change": pair.change,
        "unpaired_reason": pair.reason,
        "difference": pair.difference,
    }
    for name, side in (("baseline", pair.baseline), ("candidate", pair.candidate)):
        row |= {f"{name}_{field}": getattr(side, field) if side else None for field in _SIDE}
    return row
