"""Reports in the format that was asked for, on standard output or in a file.

Owns: the formats, their suffixes, writing in one step. Never: what is in a report.
"""

from __future__ import annotations

import io
import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from eval.assessment import Assessment
from eval.reports.gather import ComparisonReport, RunReport, Settings
from registry.terminal import UserError

if TYPE_CHECKING:
    import pandas as pd

Report = ComparisonReport | RunReport

SUFFIXES: Final[Mapping[str, str]] = MappingProxyType(
    {
        ".html": "html",
        ".htm": "html",
        ".md": "markdown",
        ".xml": "junit",
        ".json": "json",
        ".csv": "csv",
        ".parquet": "parquet",
    }
)
"""A file's suffix -> its format."""
FORMATS: Final = tuple(dict.fromkeys(SUFFIXES.values()))
ITEMS: Final = 100
"""Cases on an HTML page, each way, unless the user says otherwise."""


def format_of(path: Path, chosen: str | None = None) -> str:
    """The format chosen, else the one of the file's suffix. Raises UserError naming the choices."""
    if chosen is not None:
        if chosen not in FORMATS:
            raise UserError(f"{chosen!r} is not a format of reports: take one of {', '.join(FORMATS)}")
        return chosen
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} tells no format: let it end in {', '.join(SUFFIXES)}, or name one with --format")
    return SUFFIXES[path.suffix.lower()]


def content(report: Report, form: str, *, items: int = ITEMS) -> bytes:
    """The report as bytes; `items` cases at most on an HTML page, each way."""
    made: str | bytes = _WRITERS[form](report, items)
    return made.encode() if isinstance(made, str) else made


def write(report: Report, path: Path, *, form: str | None = None, items: int = ITEMS) -> None:
    """Write the report to a file in one step: whoever looks sees the old one or the whole new one."""
    data = content(report, format_of(path, form), items=items)
    temporary = path.with_name(f".{path.name[-100:]}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def write_all(found: Sequence[Assessment], path: Path, *, settings: Settings, items: int = ITEMS) -> list[Path]:
    """Write the report of each candidate: into `path`, or where there are several, beside it with their names."""
    paths = []
    for one in found:
        name = re.sub(r"[^A-Za-z0-9@._-]+", "-", one.candidate.subject.ref).strip("-")
        paths.append(path if len(found) == 1 else path.with_name(f"{path.stem}-{name[-80:]}{path.suffix}"))
        write(ComparisonReport(one, settings), paths[-1], items=items)
    return paths


def _html(report: Report, items: int) -> str:
    from eval.reports import page  # noqa: PLC0415 - heavy

    if isinstance(report, RunReport):
        return page.run(report, cases=items)
    return page.comparison(report, flips=items)


def _markdown(report: Report, _: int) -> str:
    from eval.reports import markdown  # noqa: PLC0415 - only here

    return markdown.run(report) if isinstance(report, RunReport) else markdown.comparison(report)


def _junit(report: Report, _: int) -> str:
    from eval.reports import junit  # noqa: PLC0415 - only here

    return junit.run(report) if isinstance(report, RunReport) else junit.comparison(report)


def _json(report: Report, _: int) -> str:
    from eval.reports import document  # noqa: PLC0415 - only here

    if isinstance(report, RunReport):
        value: Any = document.of_summary(report.run, report.groups, report.speed, "")
    else:
        value = document.of_report(report)
    return json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"


def _frame(report: Report) -> pd.DataFrame:
    from eval.reports import tables  # noqa: PLC0415 - heavy

    return report.run.frame() if isinstance(report, RunReport) else tables.paired(report)


def _csv(report: Report, _: int) -> str:
    return _frame(report).to_csv(index=False)


def _parquet(report: Report, _: int) -> bytes:
    target = io.BytesIO()
    _frame(report).to_parquet(target, index=False)
    return target.getvalue()


_WRITERS: Final[Mapping[str, Callable[[Report, int], str | bytes]]] = MappingProxyType(
    {"html": _html, "markdown": _markdown, "junit": _junit, "json": _json, "csv": _csv, "parquet": _parquet}
)
