"""ARC: school science, three to five choices. JSONL of question.stem and question.choices; or the hub's `choices` of
`text` and `label`."""

from __future__ import annotations

from typing import Any, Final

from eval.adapters.base import Adapter, FormatError, Way, identity, lettered, text, texts, wanted
from eval.records import Record
from eval.suite import Sampling


def read(record: Record) -> tuple[str, dict[str, str], str]:
    """Question, label -> choice, the right label."""
    question = wanted(record, "question")
    if isinstance(question, dict):
        stem, listed = question.get("stem"), question.get("choices")
        if not isinstance(stem, str) or not isinstance(listed, list):
            raise FormatError("`question` needs a `stem` and a list of `choices`")
        pairs = [(one.get("label"), one.get("text")) for one in listed if isinstance(one, dict)]
    else:
        stem, options = text(record, "question"), wanted(record, "choices")
        if not isinstance(options, dict):
            raise FormatError(f"`choices` is {options!r}: an object of `text` and `label` is expected")
        labels, choices = texts(options.get("label"), "choices.label"), texts(options.get("text"), "choices.text")
        if len(labels) != len(choices):
            raise FormatError(f"`choices` has {len(labels)} labels for {len(choices)} texts")
        pairs = list(zip(labels, choices, strict=True))
    labelled = {label: choice for label, choice in pairs if isinstance(label, str) and isinstance(choice, str)}
    if len(labelled) < max(2, len(pairs)):
        raise FormatError("`choices` needs two or more entries, each with a `text` and a `label` of its own")
    right = str(wanted(record, "answerKey")).strip()
    if right not in labelled:
        raise FormatError(f"`answerKey` is {right!r}: one of {', '.join(labelled)} is expected")
    return stem, labelled, right


def generate(record: Record) -> dict[str, Any]:
    """Asked for the label."""
    question, choices, right = read(record)
    return {
        "id": identity(record),
        "prompt": f"{question}\n{lettered(choices)}",
        "question": question,
        "options": choices,
        "target": right,
        "scorer": {"name": "choice", "choices": choices},
    }


def choose(record: Record) -> dict[str, Any]:
    """The choice's text by log-likelihood."""
    question, choices, right = read(record)
    return {
        "id": identity(record),
        "prompt": f"Question: {question}\nAnswer:",
        "question": question,
        "options": choices,
        "choices": [f" {choice}" for choice in choices.values()],
        "target": f" {choices[right]}",
    }


ADAPTER: Final = Adapter(
    name="arc",
    summary="JSONL: question.stem, question.choices, answerKey; or question, choices {text, label}, answerKey",
    ways={
        "generate": Way(
            generate,
            sampling=Sampling(max_tokens=16),
            system="Answer the multiple choice question with the letter of the right choice, nothing else.",
        ),
        "choose": Way(choose, chat=False),
    },
)
