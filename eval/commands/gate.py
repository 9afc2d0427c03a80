"""`modelyard eval gate`: a policy over several suites becomes one verdict, an exit code, and a row in the registry.

Owns: the commands' options, and writing the verdict. Never: deciding (gate.py).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from eval.commands.options import (
    AdminUrl,
    Concurrency,
    Fresh,
    Json,
    NoCache,
    Price,
    Provider,
    StateDirectory,
    Url,
    open_session,
    plainly,
    settings_of,
)
from registry import terminal
from registry.terminal import ExitCode

if TYPE_CHECKING:
    from eval.gate import Judged
    from eval.policy import Policy
    from eval.session import Session

EXIT_CODES = "Exit codes: 0 pass; 1 fail; 2 usage or configuration; 3 inconclusive; 4 a server or file is not there."


class ChecksByDefault(TyperGroup):
    """`gate POLICY.yaml …` is `gate check POLICY.yaml …`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["check", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    help="Decide by a policy whether a candidate may take the baseline's place: `gate POLICY.yaml …`; list.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    cls=ChecksByDefault,
)


@app.command("check", epilog=EXIT_CODES)
def check(
    policy: Annotated[Path, typer.Argument(metavar="POLICY", help="A policy's YAML file.")],
    baseline: Annotated[str, typer.Option(metavar="REF", help="What serves now: assistant@champion.")],
    candidate: Annotated[str, typer.Option(metavar="REF", help="What is to take its place: assistant@v2.")],
    url: Url = None,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
    concurrency: Concurrency = 4,
    fresh: Fresh = False,
    no_cache: NoCache = False,
    price: Price = None,
    provider: Provider = "auto",
    json: Json = False,
) -> None:
    """Run what a policy asks for and decide: one verdict over all suites, written to the registry.

    Example: modelyard eval gate configs/gates/release.yaml --baseline assistant@champion --candidate assistant@v2
    """
    with plainly():
        from eval import contest  # noqa: PLC0415 - heavy
        from eval import policy as policies  # noqa: PLC0415 - heavy
        from eval.gate import Judged  # noqa: PLC0415 - heavy

        declared = policies.load(policy)
        judged: list[Judged] = []
        for one in declared.suites:
            session = open_session(
                settings_of(
                    policies.located(one.suite, policy.parent),
                    url,
                    admin_url,
                    state_dir,
                    concurrency,
                    declared.seed,
                    one.repeats,
                    one.sample,
                    fresh,
                    declared.alpha,
                    list(one.slices),
                    no_cache,
                    price,
                    provider,
                    path=policies.data_of(one, policy.parent),
                    models=(baseline, candidate),
                )
            )
            gates = one.gates or session.suite.gates
            planned = contest.plan(session, baseline, [candidate], margin=one.margin, alpha=declared.alpha)
            sys.stderr.write(f"{session.suite.name}: {planned.states[0]} / {planned.states[1]}\n")
            (found,) = contest.decide(session, planned, gates=gates, alpha=declared.alpha, with_drift=False)
            judged.append(Judged(one, session.suite.name, session.suite.digest, planned.margin, tuple(gates), found))
        code, value = conclude(session, declared, judged, quiet=json)
        if json:
            terminal.print_json(value)
    raise SystemExit(int(code))


def conclude(session: Session, policy: Policy, judged: list[Judged], *, quiet: bool) -> tuple[ExitCode, dict[str, Any]]:
    """Decide, write the verdict, and show it unless `quiet`; the exit code, and everything as a JSON object."""
    from eval import gate, gate_records  # noqa: PLC0415 - heavy

    decision = gate.judge(policy, judged)
    verdict = gate_records.verdict_of(policy, judged, decision)
    kept, note = gate_records.write(session.endpoint, session.state, verdict)
    code = gate.EXIT[decision.outcome]
    if not quiet:
        gate_records.show(terminal.console(), verdict, decision)
        sys.stderr.write(f"{note}\n")
    return code, gate_records.as_json(verdict, kept, note, int(code))


@app.command("list")
def list_gates(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="One model; all of them without it.")] = "",
    policy: Annotated[str, typer.Option(metavar="NAME", help="Only of this policy.")] = "",
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
    json: Json = False,
) -> None:
    """Verdicts of gates, the newest first.

    Example: modelyard eval gate list assistant --policy release
    """
    with plainly():
        from eval import endpoint, gate_records  # noqa: PLC0415 - heavy
        from registry.state import StateDir  # noqa: PLC0415 - heavy

        state = StateDir.find(state_dir)
        found: list[dict[str, Any]] = gate_records.listed(endpoint.find(None, admin_url, state), state, model, policy)
        if json:
            terminal.print_json(found)
        elif found:
            gate_records.show_list(terminal.console(), found)
        else:
            sys.stderr.write("no verdict yet: modelyard eval gate POLICY.yaml --baseline … --candidate … makes one\n")
