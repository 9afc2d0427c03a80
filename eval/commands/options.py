"""What the commands of `modelyard eval` share: options, how they open a session, how a mistake is told.

Owns: the options that several commands take, and the checks of their values. Never: a command, what a command computes.
Everything heavy is imported inside a function, so that `--help` stays quick.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eval.errors import need_extra
from registry import terminal

if TYPE_CHECKING:
    from eval.results import Run, RunStore
    from eval.session import Session, Settings

SuiteName = Annotated[
    str, typer.Argument(metavar="SUITE", help="A suite's name or suite.yaml, or a format with --path.")
]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's name or a part of it that fits one run (eval report list).")
]
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
Limit = Annotated[
    int | None,
    typer.Option("--sample", "--limit", metavar="N", help="Only N cases, every slice with its share of them."),
]
SampleSeed = Annotated[int, typer.Option(help="Which N cases --sample draws.")]
DataPath = Annotated[
    Path | None,
    typer.Option("--path", metavar="FILE", help="A data set's published file or folder, where SUITE names its format."),
]
Slices = Annotated[list[str] | None, typer.Option("--slice", metavar="NAME", help="Only this slice; repeat for more.")]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Run anew, even where a run or answers are there to reuse or resume.")
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Take no kept answer, and keep none.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Provider = Annotated[
    str,
    typer.Option(help="Who gives log-likelihoods, where a suite needs them: auto, transformers, llama-cpp or vllm."),
]
Price = Annotated[
    str | None,
    typer.Option(
        metavar="PRICE",
        help="Of an hour of the engine's device, e.g. 0.5EUR, where no admin API tells what a run cost.",
    ),
]
JudgeRef = Annotated[
    str | None,
    typer.Option(
        "--judge", metavar="REF", help="Who judges where the suite's scorers name nobody [default: $MODELYARD_JUDGE]."
    ),
]
Alpha = Annotated[float, typer.Option(help="Two-sided error rate of intervals and tests.")]


@contextmanager
def plainly() -> Iterator[None]:
    """A user's mistake becomes one sentence and its exit code, wherever the command was called from."""
    try:
        need_extra()
        yield
    except terminal.UserError as error:
        terminal.fail(error)


def open_session(settings: Settings) -> Session:
    with terminal.busy("Reading the suite"):
        from eval.session import Session  # noqa: PLC0415 - heavy

        session = Session(settings)
    for note in session.suite.notes:
        sys.stderr.write(f"{note}\n")
    return session


def run_store(state_dir: Path | None) -> RunStore:
    from eval.results import RunStore  # noqa: PLC0415 - heavy
    from registry.state import StateDir  # noqa: PLC0415 - heavy

    return RunStore(StateDir.find(state_dir).runs)


def settings_of(
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
    slices: list[str] | None = None,
    no_cache: bool = False,
    price: str | None = None,
    provider: str = "auto",
    judge: str | None = None,
    path: Path | None = None,
    sample_seed: int = 0,
    models: tuple[str, ...] = (),
) -> Settings:
    with terminal.busy("Loading the evaluation tools"):
        from eval.session import Settings  # noqa: PLC0415 - heavy

    for name, value in (("concurrency", concurrency), ("repeats", repeats), ("sample", limit)):
        if value is not None and value < 1:
            raise terminal.UserError(f"--{name} is {value}: it must be at least 1")
    for name, value in (("seed", seed), ("sample-seed", sample_seed)):
        if value < 0:
            raise terminal.UserError(f"--{name} is {value}: it must be 0 or more")
    check_alpha(alpha)
    chosen = tuple(slices or ())
    return Settings(
        suite,
        url,
        admin_url,
        state_dir,
        concurrency,
        seed,
        repeats,
        limit,
        fresh,
        chosen,
        use_cache=not no_cache,
        provider=provider,
        price=_price(price),
        judge=judge,
        path=path,
        sample_seed=sample_seed,
        models=models,
    )


def _price(text: str | None) -> tuple[float, str] | None:
    """`0.5EUR` as amount and currency."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]{3})", text.strip())
    if found is None:
        raise terminal.UserError(f"--price is {text!r}: give an amount and a currency, e.g. 0.5EUR")
    return float(found[1]), found[2].upper()


def check_alpha(alpha: float) -> None:
    if not 0 < alpha < 0.5:
        raise terminal.UserError(f"--alpha is {alpha}: it must lie between 0 and 0.5, e.g. 0.05")


def show_run(found: Run, alpha: float, json: bool, state: str = "") -> None:
    import numpy as np  # noqa: PLC0415 - heavy

    from eval import judge_labels, performance, summary  # noqa: PLC0415 - heavy
    from eval.reports import document  # noqa: PLC0415 - heavy
    from eval.reports import terminal as tables  # noqa: PLC0415 - heavy

    samples = list(found.samples().values())
    judges = judge_labels.of_run(found, samples)
    speed = performance.measure(samples)
    groups = summary.groups(samples, alpha=alpha, rng=np.random.default_rng(found.info().key.seed))
    if json:
        terminal.print_json(document.of_summary(found, groups, speed, state) | ({"judges": judges} if judges else {}))
        return
    title = f"{found.name}  {state}".rstrip()
    tables.run_summary(terminal.console(), title, groups, speed, failed=[one for one in samples if one.error])
    for line in judges:
        terminal.console().print(line, markup=False)
