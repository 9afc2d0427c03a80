"""`modelyard eval suites`: which suites there are, what one holds, and whether it is right.

Owns: the commands' options and tables. Never: reading suite files (eval.loaders does).
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eval.commands import traffic
from eval.commands.options import DataPath, Json, StateDirectory, SuiteName, plainly
from registry import terminal

if TYPE_CHECKING:
    from eval.suite import Case, Suite

app = typer.Typer(
    help="Which suites there are: list, show, check.", add_completion=False, no_args_is_help=True, rich_markup_mode=None
)

app.command("from-traffic")(traffic.from_traffic)


@dataclass(frozen=True, slots=True)
class Summary:
    """A suite in a line."""

    name: str
    version: int
    cases: int
    slices: int
    clusters: int
    scorers: list[str]
    digest: str
    description: str
    source: str
    error: str = ""
    """Why it cannot be used; "" where it can."""


@app.command("list")
def suites_list(state_dir: StateDirectory = None, json: Json = False) -> None:
    """Every suite that can be found by name, and the published formats that are read."""
    with plainly():
        from eval import loaders  # noqa: PLC0415 - heavy
        from eval.adapters import ADAPTERS  # noqa: PLC0415 - heavy

        found = [_summary_of(name, state_dir) for name in loaders.known()]
        if json:
            formats = {name: adapter.summary for name, adapter in ADAPTERS.items()}
            terminal.print_json({"suites": [asdict(one) for one in found], "formats": formats})
            return
        _table(["suite", "version", "cases", "slices", "scorers", "what it is for"], [_line(one) for one in found])
        _table(
            ["format", "asked by", "what its files look like"],
            [[name, ", ".join(adapter.ways), adapter.summary] for name, adapter in ADAPTERS.items()],
        )


@app.command("show")
def suites_show(
    suite: SuiteName,
    path: DataPath = None,
    case: Annotated[
        str | None, typer.Option(metavar="ID", help="One case, as it will be asked [default: the first of each slice].")
    ] = None,
    state_dir: StateDirectory = None,
    json: Json = False,
) -> None:
    """What a suite holds, and cases as they will be asked: templates filled, worked examples in place."""
    with plainly():
        found = _load(suite, path, state_dir)
        shown = _picked(found, case)
        if json:
            import msgspec  # noqa: PLC0415 - with the heavy ones

            value = asdict(_summary(found)) | {
                "sampling": msgspec.to_builtins(found.sampling),
                "slices": found.slices,
                "shown": [msgspec.to_builtins(one) for one in shown],
            }
            terminal.print_json(value)
            return
        _show(found, shown)


@app.command("check")
def suites_check(suite: SuiteName, path: DataPath = None, state_dir: StateDirectory = None, json: Json = False) -> None:
    """Read a suite through and say what is wrong with it, by file and line; exit 0 where nothing is."""
    with plainly():
        found = _summary(_load(suite, path, state_dir))
        if json:
            terminal.print_json(asdict(found))
        else:
            sys.stdout.write(f"{found.source}: {found.cases} cases, {found.digest}\n")


def _load(name: str, path: Path | None, state_dir: Path | None) -> Suite:
    with terminal.busy("Reading the suite"):
        from eval import loaders  # noqa: PLC0415 - heavy
        from registry.state import StateDir  # noqa: PLC0415 - heavy

        return loaders.load(name, StateDir.find(state_dir).root / "cache" / "datasets", path=path)


def _summary_of(name: str, state_dir: Path | None) -> Summary:
    try:
        return _summary(_load(name, None, state_dir))
    except terminal.UserError as error:
        return Summary(name, 0, 0, 0, 0, [], "", "", "", error=str(error))


def _summary(suite: Suite) -> Summary:
    return Summary(
        name=suite.name,
        version=suite.version,
        cases=len(suite.cases),
        slices=len(suite.slices),
        clusters=len({case.cluster for case in suite.cases if case.cluster}),
        scorers=sorted({case.scorer.name for case in suite.cases}),
        digest=suite.digest,
        description=suite.description,
        source=suite.source,
    )


def _line(one: Summary) -> list[str]:
    if one.error:
        return [one.name, "", "", "", "", one.error]
    return [one.name, str(one.version), str(one.cases), str(one.slices), ", ".join(one.scorers), one.description]


def _picked(suite: Suite, case: str | None) -> list[Case]:
    if case is None:
        first = {one.slice: one for one in reversed(suite.cases)}
        return [first[name] for name in suite.slices][:3]
    found = [one for one in suite.cases if one.id == case]
    if not found:
        import difflib  # noqa: PLC0415 - for this only

        close = difflib.get_close_matches(case, [one.id for one in suite.cases], n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise terminal.UserError(f"the suite {suite.name!r} has no case {case!r}{hint}")
    return found


def _show(suite: Suite, shown: list[Case]) -> None:
    out, about = terminal.console(), _summary(suite)
    out.print(f"{suite.name} {suite.version}: {len(suite.cases)} cases", style="bold")
    for text in (suite.description, suite.source, suite.digest, *suite.notes):
        if text:
            out.print(text, markup=False)
    out.print(f"scorers: {', '.join(about.scorers)}; clusters: {about.clusters or 'none'}", markup=False)
    _table(["slice", "cases"], [[name or "(none)", str(count)] for name, count in suite.slices.items()])
    for case in shown:
        out.print(f"\ncase {case.id}", style="bold", markup=False)
        for turn in case.messages:
            out.print(f"{turn.role}: {turn.content}", markup=False)
        for text in case.then:
            out.print(f"then user: {text}", markup=False)
        if case.choices:
            out.print(f"choices: {list(case.choices)}", markup=False)
        limit = case.max_tokens or suite.sampling.max_tokens
        out.print(f"-> {case.target!r} by {case.scorer.name}, at most {limit} tokens", markup=False)


def _table(columns: list[str], rows: list[list[str]]) -> None:
    from rich.markup import escape  # noqa: PLC0415 - only where something is drawn
    from rich.table import Table  # noqa: PLC0415 - as above

    table: Any = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    terminal.console().print(table)
