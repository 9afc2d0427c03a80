"""`modelyard eval compare`: two versions on one suite, and the verdict.

Owns: the command's options and exit codes. Never: what it computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from eval.commands.options import (
    AdminUrl,
    Alpha,
    Concurrency,
    Fresh,
    Json,
    Limit,
    NoCache,
    Price,
    Provider,
    Repeats,
    Seed,
    Slices,
    StateDirectory,
    SuiteName,
    Url,
    open_session,
    plainly,
    settings_of,
)
from registry import terminal
from registry.terminal import ExitCode

if TYPE_CHECKING:
    from eval.session import Session

EXIT_CODES = (
    "Exit codes: 0 better or non-inferior; 1 worse; 2 usage or configuration; 3 inconclusive; "
    "4 a server or file is not there."
)


def compare(
    suite: SuiteName,
    baseline: Annotated[str, typer.Option(metavar="REF", help="assistant@v1, or URL#MODEL.")],
    candidate: Annotated[
        list[str],
        typer.Option(metavar="REF", help="assistant@v2, or URL#MODEL; the baseline again for A/A; repeat for more."),
    ],
    margin: Annotated[
        float | None,
        typer.Option(
            help="δ: how much lower the mean score may be [default: the suite's, else 0.05 or the noise floor]."
        ),
    ] = None,
    with_floor: Annotated[
        bool, typer.Option("--aa", help="Run the baseline against itself too: the noise floor, kept for later.")
    ] = False,
    alpha: Alpha = 0.05,
    flips: Annotated[int, typer.Option(metavar="N", help="Flips to show each way.")] = 5,
    url: Url = None,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
    concurrency: Concurrency = 4,
    seed: Seed = 0,
    repeats: Repeats = None,
    limit: Limit = None,
    slices: Slices = None,
    fresh: Fresh = False,
    no_cache: NoCache = False,
    price: Price = None,
    provider: Provider = "auto",
    json: Json = False,
) -> None:
    """Compare versions on a suite: scores, paired difference, verdict, flips, drift, speed, cost.

    Several candidates are decided as one family (Holm); then the exit code is 0 where all pass, 1 where one is worse.

    Example: modelyard eval compare quickstart --baseline assistant@v1 --candidate assistant@v2
    """
    with plainly():
        settings = settings_of(
            suite,
            url,
            admin_url,
            state_dir,
            concurrency,
            seed,
            repeats,
            limit,
            fresh,
            alpha,
            slices,
            no_cache,
            price,
            provider,
        )
        if margin is not None and not 0 <= margin < 1:
            raise terminal.UserError(f"--margin is {margin}: it is a share of the score, between 0 and 1")
        if flips < 0:
            raise terminal.UserError(f"--flips is {flips}: it must be 0 or more")
        code = _compare(
            open_session(settings),
            baseline,
            candidate,
            margin=margin,
            alpha=alpha,
            flips=flips,
            with_floor=with_floor,
            json=json,
        )
    raise SystemExit(int(code))


def _compare(
    session: Session,
    baseline: str,
    candidates: list[str],
    *,
    margin: float | None,
    alpha: float,
    flips: int,
    with_floor: bool,
    json: bool,
) -> ExitCode:
    from eval import contest, verdict  # noqa: PLC0415 - heavy
    from eval.reports import document  # noqa: PLC0415 - heavy
    from eval.reports import terminal as tables  # noqa: PLC0415 - heavy

    suite = session.suite
    planned = contest.plan(session, baseline, candidates, margin=margin, alpha=alpha, with_floor=with_floor)
    out = terminal.console()
    if not json:
        jobs = [planned.baseline, *planned.candidates]
        names = ["baseline", *["candidate"] * len(planned.candidates)]
        tables.plan(
            out,
            suite,
            [(name, job.plan.subject, state) for name, job, state in zip(names, jobs, planned.states, strict=True)],
            repeats=planned.baseline.plan.key.repeats,
            margin=planned.margin,
            alpha=alpha,
            planned=planned.planned,
        )
    found = contest.decide(session, planned, gates=suite.gates, alpha=alpha)
    overall = verdict.of_candidates([one.result.verdict for one in found])
    if json:
        terminal.print_json(
            document.of_comparisons(
                found,
                suite,
                margin=planned.margin,
                alpha=alpha,
                seed=session.settings.seed,
                planned=planned.planned,
                states=planned.states,
                exit_code=int(document.EXIT[overall]),
            )
        )
        return document.EXIT[overall]
    for one in found:
        tables.comparison(out, one, alpha=alpha, flips=flips)
    if len(found) > 1:
        tables.family(out, found, alpha=alpha)
    return document.EXIT[overall]
