"""Did an answer come at all?

Owns: what counts as a finished answer. Never: what the answer says: suites that measure speed use it.
"""

from __future__ import annotations

from typing import Any, Final

from eval.scorers.base import NO_TOOLS, Answered, Score, Scorer, Tools

FINISHED: Final = frozenset(("stop", "length", "tool_calls"))
"""Ended by the model, at the limit that was set, or with a call; not by a filter or an error."""


class Finished(Scorer, frozen=True):
    """1 where there is text (or a tool call) and it ended as it should. The target is not looked at."""

    def score(self, answered: Answered, target: Any, tools: Tools = NO_TOOLS) -> Score:
        if answered.finish_reason not in FINISHED:
            return Score(0.0, f"finish reason {answered.finish_reason!r}")
        return Score.of(bool(answered.text.strip() or answered.tool_calls), "the answer is empty")
