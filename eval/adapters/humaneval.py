"""HumanEval: Python functions from their docstrings, checked by running tests. JSONL (also gzipped) of task_id, prompt,
entry_point, canonical_solution and test."""

from __future__ import annotations

from typing import Any, Final

from eval.adapters.base import ANSWER, Adapter, FormatError, Way, identity, text
from eval.records import Record
from eval.suite import Sampling


def convert(record: Record) -> dict[str, Any]:
    """Asked for the whole function; the target is what the tests need."""
    prompt, name = text(record, "prompt"), text(record, "entry_point")
    if f"def {name}" not in prompt:
        raise FormatError(f"`prompt` does not define {name!r}, which `entry_point` names")
    row = {
        "id": identity(record, "task_id"),
        "prompt": f"Complete this Python function.\n\n```python\n{prompt.rstrip()}\n```",
        "code": prompt,
        "target": {"test": text(record, "test"), "entry_point": name, "prompt": prompt},
    }
    if record.fields.get("canonical_solution"):
        row[ANSWER] = f"```python\n{prompt.rstrip()}\n{text(record, 'canonical_solution').rstrip()}\n```"
    return row


ADAPTER: Final = Adapter(
    name="humaneval",
    summary="JSONL: task_id, prompt, entry_point, canonical_solution, test",
    ways={
        "generate": Way(
            convert,
            scorer="python_tests",
            sampling=Sampling(max_tokens=768),
            system="Answer with the whole function, its imports included, in one Python code block.",
        )
    },
)
