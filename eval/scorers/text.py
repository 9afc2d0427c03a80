"""Scorers over plain text: exact, normalised, contains, regex, numeric, choice.

Owns: how an answer is read out of a text. Never: I/O.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from typing import Any, Final, Literal

from eval.scorers.base import NO_TOOLS, Answered, Score, Scorer, ScorerError, Tools, need_text, texts_of

_ARTICLES: Final = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)
_NUMBER: Final = re.compile(
    r"([-+\N{MINUS SIGN}]?)[$\u20ac\u00a3]?((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|\.\d+)"
)


def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and extra spaces (the normalisation of SQuAD's own script)."""
    plain = unicodedata.normalize("NFKC", text).casefold().translate(_PUNCTUATION)
    plain = unicodedata.normalize("NFKC", plain)  # folding, and what stood between two characters, leave them unordered
    return " ".join(_ARTICLES.sub(" ", plain).split())


def numbers(text: str) -> list[float]:
    """Every number in the text, thousands commas understood, a currency's sign between minus and digits too; a hyphen
    after a digit or letter is no sign."""
    found = []
    for match in _NUMBER.finditer(text):
        sign, digits = match.groups()
        value = float(digits.replace(",", ""))
        before = text[match.start() - 1] if match.start() else " "
        found.append(-value if sign in ("-", "\N{MINUS SIGN}") and not before.isalnum() else value)
    return found


class Exact(Scorer, frozen=True):
    """1 where the answer is the target, character by character, outer white space aside."""

    def check(self, target: Any) -> None:
        need_text(target, "exact")

    def score(self, answered: Answered, target: Any, tools: Tools = NO_TOOLS) -> Score:
        return Score(float(answered.text.strip() in [text.strip() for text in texts_of(target)]))


class Normalized(Scorer, frozen=True):
    """1 where answer and target agree after `normalize`."""

    def check(self, target: Any) -> None:
        need_text(target, "normalized")
        for text in texts_of(target):
            if not normalize(text):
                raise ScorerError(f"nothing is left of the target {text!r} once normalised: use `exact` or `choice`")

    def score(self, answered: Answered, target: Any, tools: Tools = NO_TOOLS) -> Score:
        return Score(float(normalize(answered.text) in [normalize(text) for text in texts_of(target)]))


class Contains(Scorer, frozen=True):
    """1 where the answer contains one of the accepted texts as whole words."""

    any_of: tuple[str, ...] = ()
    """Accepted beside the target."""
    case_sensitive: bool = False

    def check(self, target: Any) -> None:
        if not (self.any_of and target is None):
            need_text(target, "contains")

    def score(self, answered: Answered, target: Any, tools: Tools = NO_TOOLS) -> Score:
        flags = 0 if self.case_sensitive else re.IGNORECASE
        accepted = [*self.any_of, *(texts_of(target) if target is not None else [])]
        found = (text for text in accepted if re.search(rf"(?<!\w){re.escape(text)}(?!\w)", answered.text, flags))
        return Score(float(next(found, None) is not None))


class Regex(Scorer, frozen=True):
    """1 where the pattern (the option, else the target) is found in the answer."""

    pattern: str = ""

    def check(self, target: Any) -> None:
        pattern = self.pattern or target
        if not isinstance(pattern, str) or not pattern:
            raise ScorerError("the scorer 'regex' needs a pattern, as its option or as the target")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ScorerError(f"the pattern {pattern!r} is no regular expression: {error}") from error

    def score(self, answered: Answered, target: Any, tools: Tools = NO_TOOLS) -> Score:
        return Score(float(re.search(self.pattern or str(target), answered.text) is not None))


class Numeric(Scorer, frozen=True):
    """1 where the answer's last (or first) number is the target, within the tolerance."""

    tolerance: float = 1e-9
    relative: bool = False
    """Read `tolerance` as a share of the target."""
    pick: Literal["last", "first"] = "last"

    def check(self, target: Any) -> None:
        if isinstance(target, bool) or not isinstance(target, int | float) or not math.isfinite(target):
            raise ScorerError("the scorer 'numeric' needs a number as its target")

    def score(self, answered: Answered, target: Any, tools: Tools = NO_TOOLS) -> Score:
        found = numbers(answered.text)
        if not found:
            return Score(0.0, "no number in the answer")
        value = found[-1] if self.pick == "last" else found[0]
        allowed = self.tolerance * abs(target) if self.relative else self.tolerance
        return Score.of(abs(value - target) <= allowed, f"read as {value:g}")


class Choice(Scorer, frozen=True, kw_only=True):
    """1 where the choice that the answer names first is the target.

    A choice is named by its text (whole words, any case), or by its label where the label stands apart: alone, in
    brackets, before `)`, `.` or `:`, or after "answer" ("The answer is B"). An article "A cow" names no choice.
    """

    choices: tuple[str, ...] | dict[str, str]
    """Texts, or label -> text."""

    def check(self, target: Any) -> None:
        if len(self.choices) < 2:
            raise ScorerError("the scorer 'choice' needs at least two choices")
        if target not in tuple(self.choices):
            raise ScorerError(f"the target {target!r} is none of the choices {', '.join(map(repr, self.choices))}")

    def score(self, answered: Answered, target: Any, tools: Tools = NO_TOOLS) -> Score:
        chosen = self.chosen(answered.text)
        return Score.of(chosen == target, "no choice is named" if chosen is None else f"read as {chosen!r}")

    def chosen(self, output: str) -> str | None:
        """The choice named first (its label where it has one); of two that start together, the longer."""
        labelled = isinstance(self.choices, dict)
        pairs = self.choices.items() if isinstance(self.choices, dict) else [(text, text) for text in self.choices]
        named: list[tuple[int, int, str]] = []
        for label, text in pairs:
            found = re.search(rf"(?<!\w){re.escape(text)}(?!\w)", output, re.IGNORECASE)
            if found:
                named.append((found.start(), -len(text), label))
            if labelled and (found := _label_pattern(label).search(output)):
                named.append((found.start(), -len(label), label))
        return min(named)[2] if named else None


def _label_pattern(label: str) -> re.Pattern[str]:
    name = re.escape(label)
    apart = rf"(?m:^[^\w\n]*{name}[^\w\n]*$)|\({name}\)|(?<!\w){name}(?=[).:])"
    answer = rf"(?i:answer)\W+(?:(?i:is)\W+)?{name}(?!\w)"
    return re.compile(f"{apart}|{answer}")
