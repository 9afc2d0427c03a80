"""BIG-Bench Hard: a JSON file per task, `{"examples": [{"input", "target"}]}`.

The tasks' answers are a letter in brackets, one of the options listed in the question, a truth value, a number, or
free text; each is scored as what it is.
"""

from __future__ import annotations

import re
from typing import Any, Final

from eval.adapters.base import ANSWER, Adapter, Way, text
from eval.records import Record
from eval.suite import FewShot, Sampling

_LETTERED: Final = re.compile(r"^\(([A-Z])\) (.+)$", re.MULTILINE)
_DASHED: Final = re.compile(r"^- (.+)$", re.MULTILINE)
_PAIRS: Final = (("True", "False"), ("Yes", "No"), ("yes", "no"), ("valid", "invalid"))
_NUMBER: Final = re.compile(r"-?\d+(\.\d+)?")


def convert(record: Record) -> dict[str, Any]:
    """The slice is the task, from the file's name."""
    question, target = text(record, "input"), text(record, "target").strip()
    task = record.stem.removeprefix("bbh_")
    row = {"id": f"{task}-{record.number:03d}", "slice": task, "prompt": question, "question": question}
    return row | _target(question, target) | {ANSWER: target}


def _target(question: str, target: str) -> dict[str, Any]:
    options = question.rpartition("Options:")[2] if "Options:" in question else ""
    lettered = dict(_LETTERED.findall(options))
    if len(lettered) > 1 and target.strip("()") in lettered:
        return {"target": target.strip("()"), "scorer": {"name": "choice", "choices": lettered}}
    named = tuple(dict.fromkeys(found.strip() for found in _DASHED.findall(options)))
    for choices in (named, *_PAIRS):
        if len(choices) > 1 and target in choices:
            return {"target": target, "scorer": {"name": "choice", "choices": list(choices)}}
    if _NUMBER.fullmatch(target):
        number = float(target)
        value = int(number) if number.is_integer() else number
        return {"target": value, "scorer": {"name": "numeric", "pick": "last"}}
    return {"target": target, "scorer": {"name": "contains", "case_sensitive": True}}


ADAPTER: Final = Adapter(
    name="bbh",
    summary="JSON: examples of input and target, a file per task",
    ways={
        "generate": Way(
            convert,
            sampling=Sampling(max_tokens=32),
            system="Answer with the answer alone.",
            few_shot=FewShot(k=3),
        )
    },
)
