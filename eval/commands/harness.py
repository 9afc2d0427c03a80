"""`modelyard eval harness`: tasks of lm-evaluation-harness against the router.

Owns: the command's options. Never: what it computes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eval.commands.options import (
    AdminUrl,
    Alpha,
    Concurrency,
    Fresh,
    Json,
    Seed,
    StateDirectory,
    Url,
    check_alpha,
    plainly,
    run_store,
    show_run,
)
from registry import terminal

if TYPE_CHECKING:
    from eval import harness as lm_eval
    from eval.endpoint import Endpoint
    from eval.results import Run, Subject


def harness(
    task: Annotated[list[str], typer.Argument(metavar="TASK...", help="Tasks or groups as lm-eval names them.")],
    model: Annotated[str, typer.Option(metavar="REF", help="What to evaluate: assistant@v2, or URL#MODEL.")],
    baseline: Annotated[
        str | None, typer.Option(metavar="REF", help="Run this one too, and compare the model with it.")
    ] = None,
    margin: Annotated[float, typer.Option(help="δ of a comparison: how much lower the mean score may be.")] = 0.05,
    tasks: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A folder with tasks of your own (lm-eval's YAML).")
    ] = None,
    few_shot: Annotated[int | None, typer.Option(metavar="K", help="Worked examples [default: the task's].")] = None,
    sample: Annotated[int | None, typer.Option(metavar="N", help="Only the first N documents of each task.")] = None,
    metric: Annotated[
        str | None,
        typer.Option(metavar="NAME[,FILTER]", help="The score [default: exact_match, acc, or the task's first]."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The model's tokenizer; log-likelihood tasks need it.")
    ] = None,
    completions: Annotated[
        bool, typer.Option("--completions", help="Send plain prompts, without the chat template.")
    ] = False,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system prompt.")] = None,
    python: Annotated[
        str | None, typer.Option(metavar="PATH", help="The Python that has lm-eval [default: this one].")
    ] = None,
    url: Url = None,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
    concurrency: Concurrency = 4,
    seed: Seed = 0,
    fresh: Fresh = False,
    alpha: Alpha = 0.05,
    json: Json = False,
) -> None:
    """Run lm-evaluation-harness tasks on one version, kept as a run like any other; or compare two on them.

    Example: modelyard eval harness gsm8k --model assistant@v1 --sample 100
    """
    with plainly():
        for name, value in (("sample", sample), ("concurrency", concurrency)):
            if value is not None and value < 1:
                raise terminal.UserError(f"--{name} is {value}: it must be at least 1")
        if not 0 <= margin < 1:
            raise terminal.UserError(f"--margin is {margin}: it is a share of the score, between 0 and 1")
        check_alpha(alpha)
        with terminal.busy("Starting lm-eval"):
            from eval.harness import Settings, check_installed  # noqa: PLC0415 - heavy

            check_installed(python or sys.executable)
        settings = Settings(
            tasks=tuple(task),
            include_path=tasks,
            few_shot=few_shot,
            limit=sample,
            seed=seed,
            concurrency=concurrency,
            tokenizer=tokenizer,
            metric=metric,
            chat=not completions,
            system=system,
            python=python or sys.executable,
        )
        code = _perform(settings, model, baseline, url, admin_url, state_dir, margin, fresh, alpha, json)
    raise SystemExit(code)


def _perform(
    settings: lm_eval.Settings,
    model: str,
    baseline: str | None,
    url: str | None,
    admin_url: str | None,
    state_dir: Path | None,
    margin: float,
    fresh: bool,
    alpha: float,
    json: bool,
) -> int:
    from eval import endpoint  # noqa: PLC0415 - heavy
    from eval.harness import perform, started  # noqa: PLC0415 - heavy
    from registry.state import StateDir  # noqa: PLC0415 - heavy

    store = run_store(state_dir)
    where = endpoint.find(url, admin_url, StateDir.find(state_dir))
    subjects = [endpoint.resolve(where, ref) for ref in (baseline, model) if ref is not None]
    runs: list[Run] = []
    for subject in subjects:
        if subject.note:
            sys.stderr.write(f"{subject.note}\n")
        twin = bool(runs) and subject.identity == subjects[0].identity
        with started(settings) as harness:
            runs.append(perform(harness, subject, where, store, fresh=fresh, twin=twin))
    if baseline is None:
        show_run(runs[0], alpha, json)
        return int(terminal.ExitCode.DONE)
    return _compare(settings, subjects, runs, where, margin, alpha, json)


def _compare(
    settings: lm_eval.Settings,
    subjects: list[Subject],
    runs: list[Run],
    where: Endpoint,
    margin: float,
    alpha: float,
    json: bool,
) -> int:
    from eval import assessment, compare  # noqa: PLC0415 - heavy
    from eval.reports import document  # noqa: PLC0415 - heavy
    from eval.reports import terminal as tables  # noqa: PLC0415 - heavy
    from eval.suite import OVERALL, Sampling, Suite  # noqa: PLC0415 - heavy

    left, right = (assessment.party(subject, run, where) for subject, run in zip(subjects, runs, strict=True))
    found = assessment.assess(left, right, floor=None, gates=(OVERALL,), margin=margin, alpha=alpha, seed=settings.seed)
    if json:
        suite = Suite(name=settings.name, version=1, description="", cases=(), sampling=Sampling())
        planned = compare.planned_effects(runs[0].info().planned, alpha, (compare.TYPICAL_DISCORDANCE, 0.2))
        states = (runs[0].name, runs[1].name)
        terminal.print_json(
            document.of_comparison(
                found, suite, margin=margin, alpha=alpha, seed=settings.seed, planned=planned, states=states
            )
        )
    else:
        tables.comparison(terminal.console(), found, alpha=alpha, flips=5)
    return int(document.EXIT[found.result.verdict.kind])
