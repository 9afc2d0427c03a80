"""MMLU: four choices, 57 subjects. CSV of question, A, B, C, D, answer without a header (a file per subject); or the
hub's JSON and Parquet with `choices` and the answer's index."""

from __future__ import annotations

import re
from typing import Any, Final

from eval.adapters.base import Adapter, FormatError, Way, identity, lettered, text, texts, wanted
from eval.records import Record
from eval.suite import Sampling

LETTERS: Final = "ABCDEFGHIJ"
_SPLIT: Final = re.compile(r"_(test|dev|val|validation|train)$")


def read(record: Record) -> tuple[str, dict[str, str], str, str]:
    """Question, letter -> choice, the right letter, subject."""
    question = text(record, "question")
    if "choices" in record.fields:
        listed = texts(record.fields["choices"], "choices")
        if not 2 <= len(listed) <= len(LETTERS):
            raise FormatError(f"`choices` has {len(listed)} entries: 2 to {len(LETTERS)} are expected")
        choices = dict(zip(LETTERS, listed, strict=False))
    else:
        choices = {letter: text(record, letter) for letter in "ABCD"}
    answer = wanted(record, "answer")
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        answer = LETTERS[answer]
    right = answer.strip().upper() if isinstance(answer, str) else answer
    if right not in choices:
        raise FormatError(f"`answer` is {answer!r}: one of {', '.join(choices)}, or the choice's index, is expected")
    subject = str(record.fields.get("subject") or "") or _SPLIT.sub("", record.stem)
    return question, choices, right, subject


def _row(record: Record) -> tuple[dict[str, Any], dict[str, str], str]:
    question, choices, right, subject = read(record)
    row = {"id": identity(record), "slice": subject, "question": question, "options": choices, "subject": subject}
    return row, choices, right


def generate(record: Record) -> dict[str, Any]:
    """Asked for the letter."""
    row, choices, right = _row(record)
    return row | {
        "prompt": f"{row['question']}\n{lettered(choices)}",
        "target": right,
        "scorer": {"name": "choice", "choices": choices},
    }


def choose(record: Record) -> dict[str, Any]:
    """The letter by log-likelihood, worded as the data set's authors did."""
    row, choices, right = _row(record)
    about = row["subject"].replace("_", " ")
    preface = f"The following are multiple choice questions (with answers) about {about}."
    question = f"{row['question'].strip()}\n{lettered(choices)}\nAnswer:"
    messages = [{"role": "system", "content": preface}, {"role": "user", "content": question}]
    return row | {"messages": messages, "choices": [f" {letter}" for letter in choices], "target": f" {right}"}


ADAPTER: Final = Adapter(
    name="mmlu",
    summary="CSV: question, A, B, C, D, answer, without a header; or question, choices, answer (index)",
    ways={
        "generate": Way(
            generate,
            sampling=Sampling(max_tokens=16),
            system="Answer the multiple choice question with the letter of the right choice, nothing else.",
        ),
        "choose": Way(choose, chat=False),
    },
    header=("question", "A", "B", "C", "D", "answer"),
)
