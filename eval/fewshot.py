"""Worked examples before a case: which, and where they stand. Pure.

Owns: drawing by seed, and that a case is never among its own examples. Never: reading files.

A draw depends on the seed and the case's id alone: a sample or a slice of a suite asks the same questions as the whole.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from eval.suite import Message


@dataclass(frozen=True, slots=True)
class Example:
    """A question with its answer."""

    messages: tuple[Message, ...]
    """Without a system prompt."""
    answer: str
    slice: str = ""

    @property
    def question(self) -> str:
        """What is asked, letter case and spacing aside: by this a case is told from its examples."""
        return question_of(self.messages)


def question_of(messages: Sequence[Message]) -> str:
    """The user turns, folded; system prompts do not make a question another one."""
    return " ".join(" ".join(turn.content for turn in messages if turn.role == "user").split()).casefold()


class Pool:
    """Examples to draw from."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._all = list(examples)
        self._of_slice: dict[str, list[Example]] = {}
        for one in examples:
            self._of_slice.setdefault(one.slice, []).append(one)
        self._times = Counter(one.question for one in examples)

    def draw(self, k: int, *, seed: int, case: str, slice_: str, messages: Sequence[Message]) -> list[Example]:
        """`k` examples for a case, of its slice where the pool has that; none asks the case's own question.

        Raises ValueError where there are too few.
        """
        question = question_of(messages)
        known = self._of_slice.get(slice_) or self._all
        spare = min(len(known), k + self._times[question])  # so many that k are left without the case itself
        drawn = random.Random(f"{seed}:{case}").sample(known, spare)  # noqa: S311 - reproducible, not secret
        found = [one for one in drawn if one.question != question][:k]
        if len(found) < k:
            among = f" of the slice {slice_!r}" if slice_ and known is not self._all else ""
            raise ValueError(f"few_shot wants {k} examples, and there are {len(found)}{among} beside the case itself")
        return found

    def fixed(self, k: int | None, messages: Sequence[Message]) -> list[Example]:
        """The first `k` (None: all) in order, without the case itself."""
        question = question_of(messages)
        return [one for one in self._all if one.question != question][:k]


def placed(
    examples: Sequence[Example], messages: tuple[Message, ...], style: Literal["turns", "text"], separator: str
) -> tuple[Message, ...]:
    """The case's messages with the examples after its system prompt."""
    if not examples:
        return messages
    start = next((index for index, turn in enumerate(messages) if turn.role != "system"), len(messages))
    if style == "turns":
        shown = [turn for one in examples for turn in (*one.messages, Message("assistant", one.answer))]
        return (*messages[:start], *shown, *messages[start:])
    texts = [_joined(one) for one in examples]
    first = messages[start]
    opening = Message(first.role, separator.join([*texts, first.content]))
    return (*messages[:start], opening, *messages[start + 1 :])


def _joined(example: Example) -> str:
    """Question and answer as one text, a space between them where neither brings one."""
    question = "\n\n".join(turn.content for turn in example.messages)
    gap = "" if question[-1:].isspace() or example.answer[:1].isspace() else " "
    return f"{question}{gap}{example.answer}"
