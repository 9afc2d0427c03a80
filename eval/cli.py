"""`modelyard eval`: run, compare, drift, report.

Owns: the commands' options and exit codes. Never: what they compute. Everything heavy is imported inside a command,
so that `--help` stays quick.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eval.errors import RunError, need_extra
from registry import terminal
from registry.terminal import ExitCode

if TYPE_CHECKING:
    from eval.results import Run, RunStore
    from eval.session import Session, Settings

app = typer.Typer(
    help="Run suites, compare two versions, report drift.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
)
report = typer.Typer(
    help="What was run: list, show, export.", add_completion=False, no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(report, name="report")

SuiteName = Annotated[str, typer.Argument(metavar="SUITE", help="A shipped suite's name, or the path of a suite.yaml.")]
Url = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Any OpenAI server [default: $MODELYARD_URL, the running yard's, http://127.0.0.1:8000]."
    ),
]
AdminUrl = Annotated[
    str | None, typer.Option(metavar="URL", help="The admin API, for digests and cost [default: the running yard's].")
]
StateDirectory = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Where runs are kept [default: $MODELYARD_STATE_DIR, else .modelyard]."),
]
Concurrency = Annotated[int, typer.Option(help="Requests in flight.")]
Seed = Annotated[int, typer.Option(help="Seed of sampling, resampling and permutation.")]
Repeats = Annotated[int | None, typer.Option(help="Times each case is asked [default: the suite's].")]
Limit = Annotated[int | None, typer.Option(metavar="N", help="Only N cases, spread over the suite.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Run anew, even where a run is there to reuse or resume.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Alpha = Annotated[float, typer.Option(help="Two-sided error rate of intervals and tests.")]

EXIT_CODES = (
    "Exit codes: 0 better or non-inferior; 1 worse; 2 usage or configuration; 3 inconclusive; "
    "4 a server or file is not there."
)


@app.callback()
def root() -> None:
    """Run suites, compare two versions, report drift."""


@app.command()
def run(
    suite: SuiteName,
    model: Annotated[str, typer.Option(metavar="REF", help="What to evaluate: assistant@v2, or URL#MODEL.")],
    url: Url = None,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
    concurrency: Concurrency = 4,
    seed: Seed = 0,
    repeats: Repeats = None,
    limit: Limit = None,
    fresh: Fresh = False,
    alpha: Alpha = 0.05,
    json: Json = False,
) -> None:
    """Run a suite on one version. Killed or stopped, the same command goes on; finished, it is reused.

    Example: modelyard eval run quickstart --model assistant@v1
    """
    with _plainly():
        from eval.session import state_of  # noqa: PLC0415 - heavy

        settings = _settings(suite, url, admin_url, state_dir, concurrency, seed, repeats, limit, fresh, alpha)
        session = _session(settings)
        job = session.job(session.subject(model))
        note = job.plan.subject.note
        if note:
            sys.stderr.write(f"{note}\n")
        session.execute([job])
        _show(job.run, alpha, json, state=state_of(job))


@app.command(epilog=EXIT_CODES)
def compare(
    suite: SuiteName,
    baseline: Annotated[str, typer.Option(metavar="REF", help="assistant@v1, or URL#MODEL.")],
    candidate: Annotated[
        str, typer.Option(metavar="REF", help="assistant@v2, or URL#MODEL; the baseline again for A/A.")
    ],
    margin: Annotated[
        float | None, typer.Option(help="δ: how much lower the mean score may be [default: the suite's, else 0.05].")
    ] = None,
    alpha: Alpha = 0.05,
    flips: Annotated[int, typer.Option(metavar="N", help="Flips to show each way.")] = 5,
    url: Url = None,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
    concurrency: Concurrency = 4,
    seed: Seed = 0,
    repeats: Repeats = None,
    limit: Limit = None,
    fresh: Fresh = False,
    json: Json = False,
) -> None:
    """Compare two versions on a suite: scores, paired difference, verdict, flips, drift, speed, cost.

    Example: modelyard eval compare quickstart --baseline assistant@v1 --candidate assistant@v2
    """
    with _plainly():
        settings = _settings(suite, url, admin_url, state_dir, concurrency, seed, repeats, limit, fresh, alpha)
        if margin is not None and not 0 <= margin < 1:
            raise terminal.UserError(f"--margin is {margin}: it is a share of the score, between 0 and 1")
        if flips < 0:
            raise terminal.UserError(f"--flips is {flips}: it must be 0 or more")
        code = _compare(_session(settings), baseline, candidate, margin=margin, alpha=alpha, flips=flips, json=json)
    raise SystemExit(int(code))


@app.command()
def drift(
    baseline: Annotated[str, typer.Argument(metavar="RUN", help="A run's name or a part of it (eval report list).")],
    candidate: Annotated[str, typer.Argument(metavar="RUN", help="The run to measure against it.")],
    state_dir: StateDirectory = None,
    alpha: Alpha = 0.05,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Output drift between two runs, at the level of text."""
    with _plainly():
        from dataclasses import asdict  # noqa: PLC0415 - with the heavy ones

        import numpy as np  # noqa: PLC0415 - heavy

        from eval import assessment, embeddings  # noqa: PLC0415 - heavy
        from eval.reports import document  # noqa: PLC0415 - heavy
        from eval.reports import terminal as tables  # noqa: PLC0415 - heavy

        _check_alpha(alpha)
        left, right = _runs(state_dir).get(baseline), _runs(state_dir).get(candidate)
        embedder = embeddings.load() or embeddings.FALLBACK
        rng = np.random.default_rng(seed)
        found = assessment.measure_drift(left.samples(), right.samples(), embedder, alpha, rng)
        if found is None:
            raise RunError(f"{left.name} and {right.name} share no answered sample: were they runs of one suite?")
        if json:
            terminal.print_json(document.finite({"baseline": left.name, "candidate": right.name} | asdict(found)))
        else:
            tables.drift(terminal.console(), found, None)


@report.command("list")
def report_list(state_dir: StateDirectory = None, json: Json = False) -> None:
    """Every run, the oldest first."""
    with _plainly():
        from eval.reports import document  # noqa: PLC0415 - heavy
        from eval.reports import terminal as tables  # noqa: PLC0415 - heavy

        rows = [document.of_run(run) for run in _runs(state_dir).all()]
        if json:
            terminal.print_json(rows)
        elif rows:
            tables.runs(terminal.console(), rows)
        else:
            sys.stderr.write("no run yet: modelyard eval run quickstart --model assistant@v1 makes one\n")


@report.command("show")
def report_show(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or a part of it that fits one run.")],
    state_dir: StateDirectory = None,
    alpha: Alpha = 0.05,
    json: Json = False,
) -> None:
    """The scores and the speed of one run."""
    with _plainly():
        _check_alpha(alpha)
        _show(_runs(state_dir).get(name), alpha, json)


@report.command("export")
def report_export(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or a part of it that fits one run.")],
    to: Annotated[Path, typer.Argument(metavar="FILE", help="A .parquet, .csv, .jsonl or .json file.")],
    state_dir: StateDirectory = None,
) -> None:
    """Write a run's samples to a file."""
    with _plainly():
        found = _runs(state_dir).get(name)
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


def _compare(
    session: Session, baseline: str, candidate: str, *, margin: float | None, alpha: float, flips: int, json: bool
) -> ExitCode:
    from eval import assessment, compare  # noqa: PLC0415 - heavy
    from eval.reports import document  # noqa: PLC0415 - heavy
    from eval.reports import terminal as tables  # noqa: PLC0415 - heavy
    from eval.session import MARGIN, state_of  # noqa: PLC0415 - heavy

    suite = session.suite
    delta = next(value for value in (margin, suite.margin, MARGIN) if value is not None)
    left, right = session.pair(baseline, candidate)
    states = state_of(left), state_of(right)
    planned = compare.planned_effects(len(suite.cases), alpha, (compare.TYPICAL_DISCORDANCE, 0.2))
    out = terminal.console()
    if not json:
        sides = [("baseline", left.plan.subject, states[0]), ("candidate", right.plan.subject, states[1])]
        repeats = left.plan.key.repeats
        tables.plan(out, suite, sides, repeats=repeats, margin=delta, alpha=alpha, planned=planned)
    session.execute([left, right])
    with terminal.busy("Comparing"):
        found = assessment.assess(
            assessment.party(left.plan.subject, left.run, session.endpoint),
            assessment.party(right.plan.subject, right.run, session.endpoint),
            twin=session.twin(left),
            gates=suite.gates,
            margin=delta,
            alpha=alpha,
            seed=session.settings.seed,
        )
    if json:
        terminal.print_json(
            document.of_comparison(
                found, suite, margin=delta, alpha=alpha, seed=session.settings.seed, planned=planned, states=states
            )
        )
    else:
        tables.comparison(out, found, alpha=alpha, flips=flips)
    return document.EXIT[found.result.verdict.kind]


def _show(found: Run, alpha: float, json: bool, state: str = "") -> None:
    import numpy as np  # noqa: PLC0415 - heavy

    from eval import performance, summary  # noqa: PLC0415 - heavy
    from eval.reports import document  # noqa: PLC0415 - heavy
    from eval.reports import terminal as tables  # noqa: PLC0415 - heavy

    samples = list(found.samples().values())
    speed = performance.measure(samples)
    groups = summary.groups(samples, alpha=alpha, rng=np.random.default_rng(found.info().key.seed))
    if json:
        terminal.print_json(document.of_summary(found, groups, speed, state))
        return
    title = f"{found.name}  {state}".rstrip()
    tables.run_summary(terminal.console(), title, groups, speed, failed=[one for one in samples if one.error])


def _session(settings: Settings) -> Session:
    with terminal.busy("Reading the suite"):
        from eval.session import Session  # noqa: PLC0415 - heavy

        return Session(settings)


def _runs(state_dir: Path | None) -> RunStore:
    from eval.results import RunStore  # noqa: PLC0415 - heavy
    from registry.state import StateDir  # noqa: PLC0415 - heavy

    return RunStore(StateDir.find(state_dir).runs)


def _settings(
    suite: str,
    url: str | None,
    admin_url: str | None,
    state_dir: Path | None,
    concurrency: int,
    seed: int,
    repeats: int | None,
    limit: int | None,
    fresh: bool,
    alpha: float,
) -> Settings:
    with terminal.busy("Loading the evaluation tools"):
        from eval.session import Settings  # noqa: PLC0415 - heavy

    for name, value in (("concurrency", concurrency), ("repeats", repeats), ("limit", limit)):
        if value is not None and value < 1:
            raise terminal.UserError(f"--{name} is {value}: it must be at least 1")
    if seed < 0:
        raise terminal.UserError(f"--seed is {seed}: it must be 0 or more")
    _check_alpha(alpha)
    return Settings(suite, url, admin_url, state_dir, concurrency, seed, repeats, limit, fresh)


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 0.5:
        raise terminal.UserError(f"--alpha is {alpha}: it must lie between 0 and 0.5, e.g. 0.05")


@contextmanager
def _plainly() -> Iterator[None]:
    """A user's mistake becomes one sentence and its exit code, wherever the command was called from."""
    try:
        need_extra()
        yield
    except terminal.UserError as error:
        terminal.fail(error)
