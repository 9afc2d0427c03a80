"""The weekly report as a file: Markdown, or one HTML page that needs nothing else and sends nothing anywhere.

Owns: markup, the chart, the page's content policy. Never: what is said (`cost_report_text`), figures.

Names of versions, keys and budgets go through Jinja's escaping on the page and through `_cell` in Markdown.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from importlib import resources
from typing import TYPE_CHECKING, Final

from monitoring.cost_report import HOUR_S, Report
from monitoring.cost_report_text import NANO, Table, document, moment, money

if TYPE_CHECKING:
    from jinja2 import Environment

WIDTH: Final = 840
HEIGHT: Final = 180
HOURS: Final = 168
CLOSED: Final = "base-uri 'none'; form-action 'none'"
_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]<>|#])")


def markdown(report: Report) -> str:
    """The report in Markdown; without the chart."""
    made = document(report)
    parts = [f"# {made.title}", made.subtitle, " ".join(made.lead)]
    for section in made.sections:
        if section.has_chart:
            continue
        parts.append(f"## {section.title}")
        parts += [_cell(sentence) for sentence in section.sentences]
        if section.table is not None:
            parts.append(_table(section.table))
        parts += [_cell(note) for note in section.notes]
    return "\n\n".join(parts) + "\n"


def html(report: Report) -> str:
    """The report as a page."""
    style = _style()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        _environment()
        .get_template("cost_report.html")
        .render(
            document=document(report),
            chart=Chart(report),
            style=style,
            policy=f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; {CLOSED}",
        )
    )


class Chart:
    """Cost by hour as stacked bars, for the template: plain numbers in the drawing's own units."""

    def __init__(self, report: Report) -> None:
        self.width, self.height = WIDTH, HEIGHT
        self.top_nano = max((row.busy_nano + row.idle_nano for row in report.hours), default=0) or 1
        self.top = money(self.top_nano / NANO, report.currency)
        self.step = WIDTH / HOURS
        self.bars = [
            (
                round((row.hour - report.week.start) / HOUR_S * self.step, 2),
                round(row.busy_nano / self.top_nano * HEIGHT, 2),
                round(row.idle_nano / self.top_nano * HEIGHT, 2),
            )
            for row in report.hours
        ]
        self.days = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
        dearest = max(report.hours, key=lambda row: row.busy_nano + row.idle_nano, default=None)
        spans = "" if dearest is None else f"; the dearest hour, {self.top}, began {moment(dearest.hour)}"
        self.description = f"Cost of {len(report.hours)} hours{spans}."


def _table(table: Table) -> str:
    rules = ["---:" if heading.startswith(">") else "---" for heading in table.headings]
    rows = [[heading.removeprefix(">") for heading in table.headings], rules, *table.rows]
    return "\n".join(
        f"| {' | '.join(cell if index == 1 else _cell(cell) for cell in row)} |" for index, row in enumerate(rows)
    )


def _cell(text: str) -> str:
    """Text that stays text in Markdown."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined  # noqa: PLC0415 - wanted only when a page is made

    return Environment(
        loader=FunctionLoader(_read),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _style() -> str:
    return _read("cost_report.css")


def _read(name: str) -> str:
    return (resources.files("monitoring") / "templates" / name).read_text(encoding="utf-8")
