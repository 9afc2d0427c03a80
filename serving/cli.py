"""The program `modelyard`: the list of its commands and how they are found.

Owns: names and order of the commands, lazy loading, the last line of defence for errors. Never: what a command does;
importing a command before it is called (`--help` answers in under 150 ms), importing `eval` by a statement.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, Final

import typer
from typer.core import TyperGroup

from registry import terminal

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "up": ("serving.commands.up:app", "Start engines, router and admin API, in the foreground."),
    "down": ("serving.commands.down:app", "Stop a yard, and whatever a dead one left running."),
    "status": ("serving.commands.status:app", "Engines, route, speed and cost per version, live with --watch."),
    "restart": ("serving.commands.restart:app", "Replace the router's workers one by one, or restart an engine."),
    "apply": ("serving.commands.apply:app", "Show what a changed configuration would do, then do it."),
    "versions": ("serving.commands.versions:app", "Register, list, show and retire versions."),
    "alias": ("serving.commands.alias:app", "Names such as `champion` that point to a version."),
    "route": ("serving.commands.route:app", "How a model's traffic is divided: set, show, history."),
    "rollback": ("serving.commands.rollback:app", "Put the route that was there before back."),
    "keys": ("serving.commands.keys:app", "API keys: who may use what, how much and until when."),
    "feedback": ("serving.commands.feedback:app", "Say how good an answer was, by its request id."),
    "eval": ("eval.cli:app", "Run suites, compare two versions, report drift."),
    "drift": ("serving.commands.drift:app", "How far live traffic is from its reference; pin references."),
    "cost": ("serving.commands.cost:app", "Tokens and money per version, and what was idle."),
    "console": ("serving.commands.console:app", "A link that signs a browser in to the console."),
    "audit": ("serving.commands.audit:app", "Who changed what, and when."),
    "logs": ("serving.commands.logs:app", "The last lines of an engine's log."),
    "doctor": ("serving.commands.doctor:app", "Check this machine: packages, ports, GPU, disk; with remedies."),
    "config": ("serving.commands.config:app", "Check a configuration file; print its schema."),
    "version": ("serving.commands.version:app", "What is installed here."),
}
"""Command -> where its Typer application is, and its line in the list."""


class LazyGroup(TyperGroup):
    """A group whose commands are imported by name when they are called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = typer.main.get_command(getattr(importlib.import_module(module), attribute))
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib  # noqa: PLC0415 - only on this way

            near = difflib.get_close_matches(args[0], COMMANDS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else "`modelyard --help` lists the commands"
            raise terminal.UserError(f"there is no command {args[0]!r}: {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


app = typer.Typer(
    cls=LazyGroup, add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)


@app.callback(epilog="Start here: modelyard up configs/quickstart.yaml. Every command has examples in its own --help.")
def root() -> None:
    """Serve versions of open-weight language models and decide, with evidence, which deserves the traffic.

    Exit codes: 0 done or gate passed; 1 gate failed; 2 usage or configuration; 3 inconclusive; 4 something that the
    command needs is not there.
    """


def help_for(arguments: list[str], width: int | None = None) -> str | None:
    """The help that `arguments` ask for; None where they ask for none, or for a command that is not there.

    Typer would convert parameters before it shows help, for which it imports pydantic: 220 ms that help need not take.
    """
    words = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "--help" not in words:
        return None
    command: Any = typer.main.get_command(app)
    context = command.context_class(command, info_name="modelyard", terminal_width=width)
    for word in words:
        if word == "--help" or not isinstance(command, TyperGroup):
            break
        found = command.get_command(context, word)
        if found is None:
            return None
        command, context = found, found.context_class(found, info_name=word, parent=context)
    return str(command.get_help(context))


def main() -> None:
    """The console script."""
    if sys.argv[1:] == ["--version"]:
        sys.argv[1:] = ["version"]
    text = help_for(sys.argv[1:])
    if text is not None:
        terminal.run(lambda: sys.stdout.write(text + "\n"))
    else:
        terminal.run(app)
