"""`modelyard eval compare`: two versions on one suite, and the verdict.

Owns: the command's options and exit codes. Never: what it computes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eval.commands.gate import conclude
from eval.commands.options import (
    AdminUrl,
    Alpha,
    Concurrency,
    DataPath,
    Fresh,
    Json,
    JudgeRef,
    Limit,
    NoCache,
    Price,
    Provider,
    Repeats,
    SampleSeed,
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
    from collections.abc import Sequence

    from eval.assessment import Assessment
    from eval.policy import Policy
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
    gate: Annotated[
        Path | None,
        typer.Option(metavar="POLICY", help="Decide by a policy about this suite; its figures go before options."),
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
    sample_seed: SampleSeed = 0,
    slices: Slices = None,
    path: DataPath = None,
    fresh: Fresh = False,
    no_cache: NoCache = False,
    price: Price = None,
    provider: Provider = "auto",
    judge: JudgeRef = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a report too: .html, .md, .xml (JUnit), .json, .csv or .parquet."),
    ] = None,
    json: Json = False,
) -> None:
    """Compare versions on a suite: scores, paired difference, verdict, flips, drift, speed, cost.

    Several candidates are decided as one family (Holm); then the exit code is 0 where all pass, 1 where one is worse.

    Example: modelyard eval compare quickstart --baseline assistant@v1 --candidate assistant@v2
    """
    with plainly():
        from eval import policy as policies  # noqa: PLC0415 - heavy

        if report is not None:
            _known_format(report)
        declared = None
        if gate is not None:
            declared, entry = policies.load_for(gate, suite)
            alpha, seed, margin = declared.alpha, declared.seed, entry.margin
            repeats, limit, slices = entry.repeats, entry.sample, list(entry.slices)
            if len(candidate) > 1:
                raise terminal.UserError("--gate decides on one candidate: name one, or leave --gate out")
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
            judge,
            path,
            sample_seed,
            (baseline, *candidate),
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
            policy=declared,
            report=report,
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
    policy: Policy | None,
    report: Path | None,
) -> ExitCode:
    from eval import contest, judge_labels, verdict  # noqa: PLC0415 - heavy
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
    gates = policy.suites[0].gates or suite.gates if policy is not None else suite.gates
    found = contest.decide(session, planned, gates=gates, alpha=alpha)
    code = document.EXIT[verdict.of_candidates([one.result.verdict for one in found])]
    if report is not None:
        _write(found, report, tuple(gates), planned.margin, alpha, session.settings.seed)
    judges = judge_labels.told(session.judgings, session.state.root / "judges")
    if json:
        value = document.of_comparisons(
            found,
            suite,
            margin=planned.margin,
            alpha=alpha,
            seed=session.settings.seed,
            planned=planned.planned,
            states=planned.states,
            exit_code=int(code),
        )
        if policy is not None:
            code, value["gate"] = _gated(session, policy, planned.margin, found[0], gates, quiet=True)
        terminal.print_json(value | ({"judges": judges} if judges else {}))
        return code
    for one in found:
        tables.comparison(out, one, alpha=alpha, flips=flips)
    for line in judges:
        out.print(line, markup=False)
    if len(found) > 1:
        tables.family(out, found, alpha=alpha)
    return code if policy is None else _gated(session, policy, planned.margin, found[0], gates, quiet=False)[0]


def _known_format(path: Path) -> None:
    """Raises UserError before anything runs, not after."""
    from eval.reports import files  # noqa: PLC0415 - heavy

    files.format_of(path)


def _write(
    found: Sequence[Assessment], path: Path, gates: tuple[str, ...], margin: float, alpha: float, seed: int
) -> None:
    from eval.reports import files, gather  # noqa: PLC0415 - heavy

    with terminal.busy("Writing the report"):
        made = files.write_all(found, path, settings=gather.Settings(gates, margin, alpha, seed))
    sys.stderr.write("".join(f"report in {one}\n" for one in made))


def _gated(
    session: Session, policy: Policy, margin: float, found: Assessment, gates: Sequence[str], *, quiet: bool
) -> tuple[ExitCode, dict[str, Any]]:
    from eval.gate import Judged  # noqa: PLC0415 - heavy

    suite = session.suite
    judged = Judged(policy.suites[0], suite.name, suite.digest, margin, tuple(gates), found)
    return conclude(session, policy, [judged], quiet=quiet)
