"""`modelyard eval judge`: does the model that judges agree with people?

Owns: the commands' options. Never: what they compute.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eval.commands.options import AdminUrl, Alpha, Fresh, Json, Seed, StateDirectory, Url, check_alpha, plainly
from registry import terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eval.judge_labels import Calibration, Label
    from eval.scorers.judge import LlmJudge
    from registry.state import StateDir

app = typer.Typer(
    help="Compare a judge with people, and list what was found.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def root() -> None:
    """Compare a judge with people, and list what was found."""


@app.command()
def calibrate(
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="A JSONL file of labelled answers or pairs.")],
    judge: Annotated[
        str | None,
        typer.Option(metavar="REF", help="assistant@v2, or URL#MODEL [default: the suite's, $MODELYARD_JUDGE]."),
    ] = None,
    suite: Annotated[
        str | None, typer.Option(metavar="SUITE", help="Judge as this suite's scorer does: rubric and scale.")
    ] = None,
    rubric: Annotated[str | None, typer.Option(metavar="TEXT", help="What to judge by, without a suite.")] = None,
    scale: Annotated[int, typer.Option(metavar="K", help="Scores go from 1 to K, without a suite.")] = 5,
    url: Url = None,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
    seed: Seed = 0,
    fresh: Fresh = False,
    alpha: Alpha = 0.05,
    json: Json = False,
) -> None:
    """Ask a judge about answers that people have labelled, and keep how far they agree.

    Example: modelyard eval judge calibrate labels.jsonl --judge http://127.0.0.1:9000#big-model
    """
    with plainly():
        import numpy as np  # noqa: PLC0415 - heavy

        from eval import endpoint, judge_labels  # noqa: PLC0415 - heavy
        from eval.cache import ResponseCache  # noqa: PLC0415 - heavy
        from eval.judge import HttpJudge  # noqa: PLC0415 - heavy
        from eval.scorers.judge import Judging  # noqa: PLC0415 - heavy
        from registry.state import StateDir  # noqa: PLC0415 - heavy

        check_alpha(alpha)
        state = StateDir.find(state_dir)
        rows = judge_labels.read(labels)
        scorer = _scorer(rows, judge, suite, rubric, scale, state)
        cache = ResponseCache(state.root / "cache" / "judgements.sqlite", reading=not fresh)
        asked = HttpJudge(endpoint.find(url, admin_url, state), cache)
        try:
            subject = asked.subject(scorer.judge)
            judging = Judging(ref=scorer.judge, identity=subject.identity, criterion=scorer.criterion)
            with terminal.progress() as display:
                bar = display.add_task(scorer.judge, total=len(rows))
                found = judge_labels.calibrate(
                    asked,
                    scorer,
                    judging,
                    rows,
                    alpha=alpha,
                    rng=np.random.default_rng(seed),
                    now=time.time(),
                    on_done=lambda: display.advance(bar),
                )
        finally:
            asked.close()
        path = judge_labels.save(found, state.root / "judges")
        if json:
            terminal.print_json(judge_labels.as_document(found))
        else:
            _show([found])
            sys.stderr.write(f"kept in {path}\n")


@app.command("list")
def list_(state_dir: StateDirectory = None, json: Json = False) -> None:
    """Every judge that was compared with people, the latest last."""
    with plainly():
        from eval import judge_labels  # noqa: PLC0415 - heavy
        from registry.state import StateDir  # noqa: PLC0415 - heavy

        found = judge_labels.known(StateDir.find(state_dir).root / "judges")
        if json:
            terminal.print_json([judge_labels.as_document(one) for one in found])
        elif found:
            _show(found)
        else:
            sys.stderr.write("no judge was compared with people yet: modelyard eval judge calibrate LABELS does it\n")


def _scorer(
    rows: Sequence[Label],
    judge: str | None,
    suite: str | None,
    rubric: str | None,
    scale: int,
    state: StateDir,
) -> LlmJudge:
    """Who judges by what: as the suite's scorer does, or as the options say."""
    import os  # noqa: PLC0415 - with the heavy ones

    from eval import loaders, scorers  # noqa: PLC0415 - heavy
    from eval.judge import JUDGE_VARIABLE  # noqa: PLC0415 - heavy
    from eval.judge_labels import mode_of  # noqa: PLC0415 - heavy
    from eval.scorers.judge import LlmJudge  # noqa: PLC0415 - heavy

    mode = mode_of(rows[0])
    options = {"mode": mode, "scale": scale} | ({"rubric": rubric} if rubric else {})
    if suite is not None:
        if rubric is not None:
            raise terminal.UserError("--rubric and --suite say two things: leave one out")
        cases = loaders.load(suite, state.root / "cache" / "datasets").cases
        used = [case.scorer.options for case in cases if case.scorer.name == "judge"]
        distinct = [one for n, one in enumerate(used) if one.get("mode", "rubric") == mode and one not in used[:n]]
        if len(distinct) != 1:
            raise terminal.UserError(
                f"{suite} has {len(distinct)} different judges of the mode {mode!r}: give --rubric and --scale instead"
            )
        options = dict(distinct[0])
    named = judge or options.get("judge") or os.environ.get(JUDGE_VARIABLE)
    if not named:
        raise terminal.UserError(f"no judge is named: add --judge REF, or set {JUDGE_VARIABLE}")
    scorer = scorers.build("judge", options | {"judge": named}, "a target" if mode == "pairwise" else None)
    assert isinstance(scorer, LlmJudge)
    return scorer


def _show(found: Sequence[Calibration]) -> None:
    from rich.markup import escape  # noqa: PLC0415 - heavy
    from rich.table import Table  # noqa: PLC0415 - heavy

    for one in found:
        judging = one.judging
        table = Table(
            title=f"{judging.ref}: {judging.criterion.mode}", title_justify="left", show_header=False, box=None
        )
        table.add_row("judged by", escape(judging.criterion.rubric))
        table.add_row("labels", f"{one.labels}, of which unreadable {one.unreadable}")
        table.add_row("the people's verdict", _share(one.accuracy))
        table.add_row("Cohen's κ", _figure(one.kappa))
        for level, value in one.alphas.items():
            table.add_row(f"Krippendorff's α, {level}", _figure(value))
        if one.alpha is not None:
            table.add_row("its interval", f"[{one.alpha.low:.2f}, {one.alpha.high:.2f}]")
        if one.people is not None:
            table.add_row("α among the people", _figure(one.people))
        if one.consistent is not None:
            table.add_row("same in both orders", _share(one.consistent))
            table.add_row("for its place alone", f"the first {one.first} times, the last {one.last} times")
        table.add_row("tokens", f"{one.prompt_tokens} in, {one.completion_tokens} out")
        terminal.console().print(table)


def _share(estimate: object) -> str:
    from eval.judge_labels import Estimate  # noqa: PLC0415 - heavy

    assert isinstance(estimate, Estimate)
    return f"{estimate.value:.1%} [{estimate.low:.1%}, {estimate.high:.1%}]"


def _figure(value: float | None) -> str:
    return "not defined: one and the same rating throughout" if value is None else f"{value:.3f}"
