"""BoolQ: yes or no about a passage. JSONL of question, passage and answer (true or false; on the hub also a label)."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from eval.adapters.base import Adapter, FormatError, Way, identity, text, wanted
from eval.records import Record
from eval.suite import Sampling


def _row(record: Record) -> tuple[dict[str, Any], str]:
    question, passage = text(record, "question").strip().rstrip("?"), text(record, "passage")
    name = "answer" if "answer" in record.fields or "label" not in record.fields else "label"
    answer = wanted(record, name)
    if answer not in (True, False):  # 1 and 0 too
        raise FormatError(f"`{name}` is {answer!r}: true or false is expected")
    row = {
        "id": identity(record),
        "question": question,
        "passage": passage,
        "cluster": hashlib.sha256(passage.encode()).hexdigest()[:12],
    }
    return row, "yes" if answer else "no"


def generate(record: Record) -> dict[str, Any]:
    """Asked for yes or no."""
    row, right = _row(record)
    return row | {"prompt": f"{row['passage']}\n\nQuestion: {row['question']}?", "target": right}


def choose(record: Record) -> dict[str, Any]:
    """Yes or no by log-likelihood."""
    row, right = _row(record)
    prompt = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    return row | {"prompt": prompt, "choices": [" no", " yes"], "target": f" {right}"}


ADAPTER: Final = Adapter(
    name="boolq",
    summary="JSONL: question, passage, answer (true or false)",
    ways={
        "generate": Way(
            generate,
            scorer={"name": "choice", "choices": ["yes", "no"]},
            sampling=Sampling(max_tokens=16),
            system="Answer the question about the text with yes or no, nothing else.",
        ),
        "choose": Way(choose, chat=False),
    },
)
