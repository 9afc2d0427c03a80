"""`modelyard eval report`: what was run, listed, shown, compared, opened in a browser, exported.

Owns: the commands' options, and where an opened page lies. Never: the layout of reports.
"""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eval.commands.options import Alpha, Json, RunName, Seed, StateDirectory, check_alpha, plainly, run_store, show_run
from eval.errors import RunError
from registry import terminal

if TYPE_CHECKING:
    from eval.reports.files import Report
    from eval.reports.gather import ComparisonReport
    from eval.results import Run, RunStore

app = typer.Typer(
    help="What was run: list, show, compare, open, export.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
)

Format = Annotated[
    str | None,
    typer.Option(
        "--format", metavar="FORMAT", help="html, markdown, junit, json, csv or parquet [default: --output's]."
    ),
]
Output = Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write it; its suffix tells the format.")]
Margin = Annotated[
    float | None, typer.Option(help="δ: how much lower the mean score may be [default: the suite's, else 0.05].")
]
Gates = Annotated[
    list[str] | None,
    typer.Option(
        "--gate", metavar="NAME", help="What decides: overall or a scorer; repeat for more [default: the suite's]."
    ),
]
Items = Annotated[int, typer.Option("--flips", metavar="N", help="Cases to show, each way.")]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    open_page: Annotated[bool, typer.Option("--open", help="The same as `open`: the latest run, as a page.")] = False,
) -> None:
    """What was run: list, show, compare, open, export."""
    if context.invoked_subcommand is None and open_page:
        report_open()


@app.command("list")
def report_list(state_dir: StateDirectory = None, json: Json = False) -> None:
    """Every run, the oldest first."""
    with plainly():
        from eval.reports import document  # noqa: PLC0415 - heavy
        from eval.reports import terminal as tables  # noqa: PLC0415 - heavy

        rows = [document.of_run(run) for run in run_store(state_dir).all()]
        if json:
            terminal.print_json(rows)
        elif rows:
            tables.runs(terminal.console(), rows)
        else:
            sys.stderr.write("no run yet: modelyard eval run quickstart --model assistant@v1 makes one\n")


@app.command("show")
def report_show(
    name: RunName,
    form: Format = None,
    output: Output = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open it as a page in the browser.")] = False,
    items: Items = 100,
    state_dir: StateDirectory = None,
    alpha: Alpha = 0.05,
    json: Json = False,
) -> None:
    """The scores and the speed of one run: on the terminal, or as a file.

    Example: modelyard eval report show v2 --output v2.html
    """
    with plainly():
        check_alpha(alpha)
        _check(form, output, items)
        found = run_store(state_dir).get(name)
        if form is None and output is None and not open_page:
            show_run(found, alpha, json)
            return
        from eval.reports import gather  # noqa: PLC0415 - heavy

        with terminal.busy("Gathering"):
            made = gather.of_run(found, alpha=alpha)
        _hand_over(made, form, output, items)
        if open_page:
            _open(made, found.name, state_dir, items)


@app.command("compare")
def report_compare(
    baseline: RunName,
    candidate: RunName,
    form: Format = None,
    output: Output = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open it as a page in the browser.")] = False,
    items: Items = 100,
    margin: Margin = None,
    gates: Gates = None,
    tokens: Annotated[
        Path | None,
        typer.Option(
            "--token-drift", metavar="FILE", help="What `eval drift --level tokens --json` wrote, for a page."
        ),
    ] = None,
    seed: Seed = 0,
    state_dir: StateDirectory = None,
    alpha: Alpha = 0.05,
    json: Json = False,
) -> None:
    """Two finished runs of one suite put side by side: on the terminal, or as a file. Asks no server anything.

    Example: modelyard eval report compare v1 v2 --output report.html
    """
    with plainly():
        form = "json" if json else form
        _check(form, output, items)
        made = _comparison(run_store(state_dir), baseline, candidate, margin, gates, alpha, seed, tokens)
        _hand_over(made, form, output, items, wanted=not open_page)
        if open_page:
            _open(made, f"{made.found.baseline.run.name}--{made.found.candidate.run.name}", state_dir, items)


@app.command("open")
def report_open(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN] [RUN]", help="One run, or baseline and candidate.")
    ] = None,
    items: Items = 100,
    margin: Margin = None,
    gates: Gates = None,
    seed: Seed = 0,
    state_dir: StateDirectory = None,
    alpha: Alpha = 0.05,
) -> None:
    """Open a report as a page in the browser: of one run, of two compared, or of the latest run.

    The page is written into the state directory, and its path is printed.
    """
    with plainly():
        check_alpha(alpha)
        _check(None, None, items)
        store, chosen = run_store(state_dir), names or []
        if len(chosen) > 2:
            raise terminal.UserError("name one run, or two to compare")
        if len(chosen) == 2:
            compared = _comparison(store, chosen[0], chosen[1], margin, gates, alpha, seed)
            runs = (compared.found.baseline.run.name, compared.found.candidate.run.name)
            _open(compared, "--".join(runs), state_dir, items)
            return
        from eval.reports import gather  # noqa: PLC0415 - heavy

        found = store.get(chosen[0]) if chosen else _latest(store)
        _open(gather.of_run(found, alpha=alpha), found.name, state_dir, items)


@app.command("export")
def report_export(
    name: RunName,
    to: Annotated[Path, typer.Argument(metavar="FILE", help="A .parquet, .csv, .jsonl or .json file.")],
    state_dir: StateDirectory = None,
) -> None:
    """Write a run's samples to a file."""
    with plainly():
        found = run_store(state_dir).get(name)
        frame = found.frame()
        if frame.empty:
            raise RunError(f"the run {found.name} has no sample yet: there is nothing to export")
        writers: dict[str, Any] = {
            ".parquet": lambda: frame.to_parquet(to, index=False),
            ".csv": lambda: frame.to_csv(to, index=False),
            ".jsonl": lambda: frame.to_json(to, orient="records", lines=True, force_ascii=False),
            ".json": lambda: frame.to_json(to, orient="records", force_ascii=False),
        }
        if to.suffix not in writers:
            raise terminal.UserError(f"{to} cannot be written: its name must end in {', '.join(writers)}")
        try:
            writers[to.suffix]()
        except OSError as error:
            raise terminal.UserError(f"{to} cannot be written: {error.strerror or error}") from error
        sys.stderr.write(f"{len(frame)} samples in {to}\n")


def _comparison(
    store: RunStore,
    baseline: str,
    candidate: str,
    margin: float | None,
    gates: list[str] | None,
    alpha: float,
    seed: int,
    tokens: Path | None = None,
) -> ComparisonReport:
    check_alpha(alpha)
    if margin is not None and not 0 <= margin < 1:
        raise terminal.UserError(f"--margin is {margin}: it is a share of the score, between 0 and 1")
    if seed < 0:
        raise terminal.UserError(f"--seed is {seed}: it must be 0 or more")
    left, right = store.get(baseline), store.get(candidate)
    with terminal.busy("Comparing"):
        from eval.reports import gather  # noqa: PLC0415 - heavy

        settings = gather.settings_of(left.info(), store, margin=margin, gates=gates, alpha=alpha, seed=seed)
        drift = gather.token_drift_of(tokens) if tokens is not None else None
        return gather.of_runs(left, right, store=store, settings=settings, token_drift=drift)


def _check(form: str | None, output: Path | None, items: int) -> None:
    """What can be known to be wrong before anything is computed. Raises UserError."""
    from eval.reports import files  # noqa: PLC0415 - heavy

    if items < 0:
        raise terminal.UserError(f"--flips is {items}: it must be 0 or more")
    if form is not None or output is not None:
        files.format_of(output or Path(), form)
    if form == "parquet" and output is None and sys.stdout.isatty():
        raise terminal.UserError("Parquet is not for a terminal: name a file with --output")


def _hand_over(made: Report, form: str | None, output: Path | None, items: int, *, wanted: bool = True) -> None:
    """Into the file, or to standard output; of a comparison without a format, the tables."""
    from eval.reports import files, gather  # noqa: PLC0415 - heavy

    if output is not None:
        with terminal.busy("Writing"):
            files.write(made, output, form=form, items=items)
        sys.stderr.write(f"{output}\n")
    elif form is not None:
        data = files.content(made, files.format_of(Path(), form), items=items)
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
    elif wanted and isinstance(made, gather.ComparisonReport):
        from eval.reports import terminal as tables  # noqa: PLC0415 - heavy

        tables.comparison(terminal.console(), made.found, alpha=made.settings.alpha, flips=min(items, 5))


def _open(made: Report, name: str, state_dir: Path | None, items: int) -> None:
    from eval.errors import StateDirError  # noqa: PLC0415 - with the others
    from eval.reports import files  # noqa: PLC0415 - heavy
    from registry.state import StateDir  # noqa: PLC0415 - heavy

    folder = StateDir.find(state_dir).root / "reports"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StateDirError(folder, "written", error) from error
    page = folder / f"{name[:200]}.html"
    with terminal.busy("Drawing"):
        files.write(made, page, items=items)
    sys.stdout.write(f"{page}\n")
    sys.stdout.flush()
    if not _has_browser() or not webbrowser.open(page.as_uri()):
        sys.stderr.write("no browser to open it with was found here\n")


def _has_browser() -> bool:
    """Whether a browser with windows can be expected: one in the terminal would take the terminal."""
    if sys.platform in {"darwin", "win32"}:
        return True
    return any(os.environ.get(name) for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"))


def _latest(store: RunStore) -> Run:
    finished = [run for run in store.all() if run.finished]
    if not finished:
        raise RunError("no run is finished yet: modelyard eval run quickstart --model assistant@v1 makes one")
    return finished[-1]
