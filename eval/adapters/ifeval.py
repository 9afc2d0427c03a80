"""IFEval: instructions that a program can verify. JSONL of key, prompt, instruction_id_list and kwargs."""

from __future__ import annotations

from typing import Any, Final

from eval.adapters.base import Adapter, FormatError, Way, identity, text, texts, wanted
from eval.records import Record
from eval.suite import Sampling


def convert(record: Record) -> dict[str, Any]:
    """The slice is the instructions' group, `mixed` where there are several."""
    names = texts(wanted(record, "instruction_id_list"), "instruction_id_list")
    options = wanted(record, "kwargs")
    if not isinstance(options, list) or not all(isinstance(one, dict) for one in options):
        raise FormatError(f"`kwargs` is {options!r}: a list of objects is expected")
    if len(options) != len(names):
        raise FormatError(f"`kwargs` has {len(options)} entries for {len(names)} of `instruction_id_list`")
    groups = {name.partition(":")[0] for name in names}
    given = [{key: value for key, value in one.items() if value is not None} for one in options]
    return {
        "id": identity(record, "key"),
        "prompt": text(record, "prompt"),
        "slice": groups.pop() if len(groups) == 1 else "mixed",
        "target": {"instruction_id_list": names, "kwargs": given},
    }


ADAPTER: Final = Adapter(
    name="ifeval",
    summary="JSONL: key, prompt, instruction_id_list, kwargs",
    ways={"generate": Way(convert, scorer="instructions", sampling=Sampling(max_tokens=1280))},
)
