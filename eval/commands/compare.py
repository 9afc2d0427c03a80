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
    slices: Slices = None,
    fresh: Fresh = False,
    no_cache: NoCache = False,
    json: Json = False,
) -> None:
    """Compare two versions on a suite: scores, paired difference, verdict, flips, drift, speed, cost.

    Example: modelyard eval compare quickstart --baseline assistant@v1 --candidate assistant@v2
    """
    with plainly():
        settings = settings_of(
            suite, url, admin_url, state_dir, concurrency, seed, repeats, limit, fresh, alpha, slices, no_cache
        )
        if margin is not None and not 0 <= margin < 1:
            raise terminal.UserError(f"--margin is {margin}: it is a share of the score, between 0 and 1")
        if flips < 0:
            raise terminal.UserError(f"--flips is {flips}: it must be 0 or more")
        code = _compare(open_session(settings), baseline, candidate, margin=margin, alpha=alpha, flips=flips, json=json)
    raise SystemExit(int(code))


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
