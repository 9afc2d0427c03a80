"""GSM8K: grade-school arithmetic in words. JSONL of question and answer; the number stands after `####`.

The worked examples are this project's own.
"""

from __future__ import annotations

import re
from typing import Any, Final

from eval.adapters.base import ANSWER, Adapter, FormatError, Way, identity, text
from eval.records import Record
from eval.suite import FewShot, Sampling

_CALCULATOR: Final = re.compile(r"<<[^<>]*>>")
_EXAMPLES: Final = (
    {
        "question": "A baker fills 4 trays with 12 rolls each and sells 30 of the rolls. How many rolls are left?",
        "answer": "The baker makes 4 * 12 = 48 rolls.\nAfter selling 30 there are 48 - 30 = 18 left.\n#### 18",
    },
    {
        "question": "A train ticket costs $14, and a child pays half. What do 2 adults and 3 children pay together?",
        "answer": "A child pays 14 / 2 = $7.\nThe adults pay 2 * 14 = $28 and the children 3 * 7 = $21.\n"
        "Together that is 28 + 21 = $49.\n#### 49",
    },
    {
        "question": "Mira reads 20 pages a day on weekdays and twice as many on each day of the weekend. How many "
        "pages does she read in a week?",
        "answer": "On five weekdays she reads 5 * 20 = 100 pages.\nOn each day of the weekend she reads 2 * 20 = 40.\n"
        "Two days make 2 * 40 = 80, so the week has 100 + 80 = 180 pages.\n#### 180",
    },
)


def convert(record: Record) -> dict[str, Any]:
    """The target is the number after `####`; calculator marks are left out of worked answers."""
    answer = text(record, "answer")
    reasoning, mark, last = answer.rpartition("####")
    try:
        number = float(last.strip().replace(",", "").removeprefix("$"))
    except ValueError:
        number = float("nan")
    if not mark or number != number:  # noqa: PLR0124 - the test for NaN
        raise FormatError("`answer` does not end in `#### ` and a number")
    return {
        "id": identity(record),
        "prompt": text(record, "question"),
        "question": record.fields["question"],
        "target": int(number) if number.is_integer() else number,
        ANSWER: f"{_CALCULATOR.sub('', reasoning).strip()}\n#### {last.strip()}",
    }


ADAPTER: Final = Adapter(
    name="gsm8k",
    summary="JSONL: question, answer ending in `#### number`",
    ways={
        "generate": Way(
            convert,
            scorer={"name": "numeric", "pick": "last"},
            sampling=Sampling(max_tokens=400),
            system="Solve the problem step by step. End with a line that has #### and the number, nothing else.",
            few_shot=FewShot(examples=_EXAMPLES),
        )
    },
)
