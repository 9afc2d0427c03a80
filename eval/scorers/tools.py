"""Did the model call the right tools with the right arguments?

Owns: reading calls, and matching them with those expected. Never: calling a tool.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from eval.scorers.base import NO_TOOLS, Answered, Score, Scorer, ScorerError, Tools
from eval.scorers.structured import NoJsonError, find_json, same

_FENCE: Final = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


class Call(msgspec.Struct, frozen=True):
    """One call, as a target has it: `{"name": "weather", "arguments": {"city": "Berlin"}}`."""

    name: str
    arguments: dict[str, Any] = {}


class ToolCall(Scorer, frozen=True):
    """1 where the answer's tool calls are those of the target: one call, a list of them, or [] for none at all."""

    arguments: Literal["equal", "subset", "ignore"] = "equal"
    """`subset`: arguments beside the target's are allowed."""
    in_order: bool = False
    """The calls must come in the target's order."""
    extra: bool = False
    """Further calls are allowed."""
    unordered_lists: bool = False
    """Lists inside arguments are compared without regard to order."""
    partial: bool = False
    """The share of expected calls that were made, in place of all or nothing."""
    in_text: bool = False
    """Where there is no call, read one from the text: JSON with `name` and `arguments`, in <tool_call> or alone."""

    def check(self, target: Any) -> None:
        try:
            _expected(target)
        except msgspec.ValidationError as error:
            raise ScorerError(
                "the scorer 'tool_call' needs a call (or a list of calls) as its target, e.g. "
                f'{{"name": "weather", "arguments": {{"city": "Berlin"}}}} ({error})'
            ) from error

    def score(self, answered: Answered, target: Any, tools: Tools = NO_TOOLS) -> Score:
        expected = _expected(target)
        try:
            calls = [_call(call) for call in answered.tool_calls]
            if not calls and self.in_text:
                calls = _calls_in(answered.text)
        except NoJsonError as error:
            return Score(0.0, str(error))
        fits = [[self._fits(want, call) for call in calls] for want in expected]
        matched = _in_order(fits) if self.in_order else _matched(fits)
        surplus = len(calls) - matched if not self.extra else 0
        if matched == len(expected) and surplus <= 0:
            return Score(1.0)
        made = ", ".join(call.name for call in calls) or "none"
        detail = f"{matched} of {len(expected)} expected calls were made; the calls: {made}"
        if not self.partial or not expected:
            return Score(0.0, detail)
        return Score(matched / (len(expected) + max(0, len(calls) - len(expected)) * (not self.extra)), detail)

    def _fits(self, want: Call, call: Call) -> bool:
        if want.name != call.name:
            return False
        if self.arguments == "ignore":
            return True
        given, wanted = call.arguments, want.arguments
        if self.arguments == "subset":
            given = {key: value for key, value in given.items() if key in wanted}
        if self.unordered_lists:
            given, wanted = _sorted(given), _sorted(wanted)
        return same(given, wanted)


def _expected(target: Any) -> list[Call]:
    return msgspec.convert(target if isinstance(target, list) else [target], list[Call])


def _call(call: Mapping[str, Any]) -> Call:
    """A call as OpenAI has it, or as a target has it. Raises NoJsonError where its arguments are no JSON object."""
    function = call.get("function", call)
    if not isinstance(function, Mapping):
        raise NoJsonError("a tool call without a function")
    name, arguments = function.get("name"), function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = find_json(arguments, strict=True) if arguments.strip() else {}
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise NoJsonError(f"the arguments of the call to {name!r} are no JSON object")
    return Call(name, arguments)


def _calls_in(text: str) -> list[Call]:
    """The calls written out in a text. A text without JSON has none."""
    calls: list[Call] = []
    for part in _FENCE.findall(text) or [text]:
        try:
            value = find_json(part, strict=False)
        except NoJsonError:
            continue
        items = value if isinstance(value, list) else [value]
        calls.extend(_call(item) for item in items if isinstance(item, dict) and isinstance(item.get("name"), str))
    return calls


def _in_order(fits: Sequence[Sequence[bool]]) -> int:
    """The longest run of expected calls that were made in this order, others between them."""
    best = [0] * (len(fits[0]) + 1 if fits else 1)
    for row in fits:
        before = best
        best = [0]
        for column, fit in enumerate(row, start=1):
            best.append(before[column - 1] + 1 if fit else max(before[column], best[column - 1]))
    return best[-1]


def _matched(fits: Sequence[Sequence[bool]]) -> int:
    """How many expected calls find a call of their own at most (bipartite matching by augmenting paths)."""
    owner: dict[int, int] = {}

    def place(row: int, seen: set[int]) -> bool:
        for column, fit in enumerate(fits[row]):
            if fit and column not in seen:
                seen.add(column)
                if column not in owner or place(owner[column], seen):
                    owner[column] = row
                    return True
        return False

    return sum(place(row, set()) for row in range(len(fits)))


def _sorted(value: Any) -> Any:
    """The value with every list in one order: numbers that are equal stay equal."""
    if isinstance(value, dict):
        return {key: _sorted(item) for key, item in value.items()}
    if isinstance(value, list):
        return sorted((_sorted(item) for item in value), key=_sort_key)
    return value


def _sort_key(value: Any) -> str:
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    return msgspec.json.encode(whole, order="sorted").decode()
