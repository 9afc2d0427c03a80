"""How figures are written, and the verdict in sentences that need no statistics.

Owns: rounding, units, the plain words. Never: computing a figure, layout, escaping.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from eval.compare import Result
from eval.verdict import Kind

_NOT_IN_XML: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
_REORDERING: Final = re.compile("[\u202a-\u202e\u2066-\u2069]")
"""Characters that make a text read in another order than it has (bidirectional overrides and isolates)."""


def clean(text: str) -> str:
    """The text without control characters, lone surrogates and overrides of direction; each leaves a U+FFFD."""
    return _REORDERING.sub("\ufffd", _NOT_IN_XML.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n")))


def line(text: str, characters: int = 160) -> str:
    """The text on one line, cut to a length."""
    flat = " ".join(clean(text).split())
    return flat if len(flat) <= characters else flat[: characters - 1] + "…"


def cut(text: str, characters: int) -> tuple[str, int]:
    """The text's beginning, cleaned, and how many characters were left out."""
    whole = clean(text)
    return whole[:characters], max(0, len(whole) - characters)


def signed(share: float) -> str:
    """A difference of shares in points, with its sign; zero has none."""
    text = f"{100 * share:+.1f}"
    return "0.0" if text in {"+0.0", "-0.0"} else text.replace("-", "−")


def points(share: float) -> str:
    """A share's size in points: `7.4 points`."""
    text = f"{100 * abs(share):.1f}".removesuffix(".0")
    return f"{text} point" if text == "1" else f"{text} points"


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f}%"


def level(share: float) -> str:
    """An interval's level: `95%`, `97.5%`."""
    return f"{100 * share:.4g}%"


def seconds(value: float | None) -> str:
    """A duration in the unit that reads best."""
    if value is None:
        return "–"
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:,.1f} s"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def short(digest: str) -> str:
    """`sha256:` and the first twelve characters."""
    return digest[:19]


def when(unix_s: float | None) -> str:
    """A time in UTC: reports are read in other places than they were made."""
    if unix_s is None:
        return "not finished"
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M UTC")


def count(number: int, one: str, many: str = "") -> str:
    """`1 case`, `1,024 cases`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


WORD: Final[Mapping[Kind, str]] = {
    "better": "Better",
    "non-inferior": "Good enough",
    "worse": "Worse",
    "inconclusive": "Not decided",
}
"""The verdict in a word or two, for a banner."""

SIGN: Final[Mapping[Kind, str]] = {"better": "▲", "non-inferior": "✓", "worse": "▼", "inconclusive": "?"}
"""The same as a sign, so that colour is never all that tells."""


def headline(kind: Kind, baseline: str, candidate: str, margin: float) -> str:
    """The verdict in one sentence."""
    sentences: Mapping[Kind, str] = {
        "better": f"{candidate} is better than {baseline}.",
        "non-inferior": f"{candidate} is good enough: it is not worse than {baseline} by {points(margin)} or more.",
        "worse": f"{candidate} is worse than {baseline}.",
        "inconclusive": f"It is not decided whether {candidate} is as good as {baseline}.",
    }
    return sentences[kind]


def measured(result: Result, share: float) -> str:
    """What was measured overall, in two sentences."""
    overall = result.overall
    way = "the same" if signed(overall.difference) == "0.0" else points(overall.difference)
    if way != "the same":
        way += " higher" if overall.difference > 0 else " lower"
    low, high = signed(overall.interval.low), signed(overall.interval.high)
    return (
        f"On {count(overall.n, 'case')} it scores {100 * overall.candidate.mean:.1f} of 100 on average, "
        f"against {100 * overall.baseline.mean:.1f}: {way}. "
        f"With so many cases the true difference may lie anywhere from {low} to {high} points "
        f"({level(share)} interval)."
    )


def meaning(result: Result) -> str:
    """What one may do with the verdict."""
    verdict = result.verdict
    match verdict.kind:
        case "better" | "non-inferior":
            return "As far as this suite can tell, it can take the baseline's place."
        case "worse":
            return "It should not take the baseline's place."
    needed = f"About {count(verdict.more_samples, 'more case')} would decide." if verdict.more_samples else ""
    return f"This is neither a pass nor a failure: the evidence is too thin either way. {needed}".rstrip()
