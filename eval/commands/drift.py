"""`modelyard eval drift`: how far two runs' outputs, or two models' distributions, lie apart.

Owns: the command's options, and which level is measured. Never: what it computes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eval.commands.options import (
    AdminUrl,
    Alpha,
    Concurrency,
    Json,
    Limit,
    Provider,
    Seed,
    StateDirectory,
    Url,
    check_alpha,
    plainly,
    run_store,
)
from eval.errors import RunError
from registry import terminal
from registry.terminal import UserError

if TYPE_CHECKING:
    from eval.drifting import Asked
    from eval.results import Run

LEVELS = ("auto", "text", "tokens")


def drift(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN RUN", help="Two runs to compare as text, by name or a part of it."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="REF", help="assistant@v1, URL#MODEL, a GGUF file or a checkpoint's folder.")
    ] = None,
    candidate: Annotated[str | None, typer.Option(metavar="REF", help="The same, to measure against it.")] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="FILE|SUITE", help="A .jsonl or .txt file of prompts, or a suite.")
    ] = None,
    level: Annotated[
        str, typer.Option(help="text, tokens, or auto: tokens where both models give them, else text.")
    ] = "auto",
    provider: Provider = "auto",
    python: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The Python of an environment with the model libraries.")
    ] = None,
    answer_tokens: Annotated[
        int, typer.Option(metavar="N", help="Tokens of the baseline's answer to measure; 0: the prompts themselves.")
    ] = 32,
    top_k: Annotated[int, typer.Option(metavar="K", help="Tokens a position to ask a server for.")] = 20,
    exact: Annotated[bool, typer.Option("--exact", help="Refuse a lower bound from the likeliest tokens.")] = False,
    context: Annotated[
        int, typer.Option(metavar="N", help="The most tokens to make room for; 0: the model's limit.")
    ] = 0,
    threads: Annotated[int, typer.Option(metavar="N", help="For each model in process; 0: half of the cores.")] = 0,
    worst: Annotated[int, typer.Option(metavar="N", help="Prompts to show that are furthest apart.")] = 5,
    url: Url = None,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
    concurrency: Concurrency = 4,
    limit: Limit = None,
    alpha: Alpha = 0.05,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Output drift: two runs as text, or two versions over a prompt set, as text or token by token.

    Example: modelyard eval drift --baseline v1.gguf --candidate v2.gguf --prompts quickstart
    """
    with plainly():
        check_alpha(alpha)
        refs = [("--baseline", baseline), ("--candidate", candidate), ("--prompts", prompts)]
        if runs:
            if len(runs) != 2 or any(value for _, value in refs):
                raise UserError("name two runs, or --baseline, --candidate and --prompts")
            left, right = (run_store(state_dir).get(name) for name in runs)
            _texts(left, right, alpha=alpha, seed=seed, json=json)
            return
        for name, value in refs:
            if not value:
                raise UserError(f"{name} is missing: name two runs, or --baseline, --candidate and --prompts")
        _check_level(level)
        counts = {"answer-tokens": answer_tokens, "context": context, "threads": threads, "worst": worst}
        _check_counts(counts, least=0)
        _check_counts({"top-k": top_k, "sample": 1 if limit is None else limit}, least=1)
        from eval.drifting import Asked  # noqa: PLC0415 - heavy

        asked = Asked(
            baseline=str(baseline),
            candidate=str(candidate),
            prompts=str(prompts),
            provider=provider,
            python=str(python) if python else None,
            answer_tokens=answer_tokens,
            top_k=top_k,
            exact=exact,
            context=context,
            threads=threads,
            worst=worst,
            url=url,
            admin_url=admin_url,
            state_dir=state_dir,
            concurrency=concurrency,
            limit=limit,
            alpha=alpha,
            seed=seed,
        )
        _versions(asked, level, json=json)


def _versions(asked: Asked, level: str, *, json: bool) -> None:
    from eval import drifting  # noqa: PLC0415 - heavy
    from eval.providers import CapabilityError  # noqa: PLC0415 - heavy

    if level != "text":
        try:
            report = drifting.tokens(asked)
        except CapabilityError as error:
            if level == "tokens" or not drifting.can_answer(asked):
                raise
            terminal.console(stderr=True).print(f"text only: {error}", markup=False)
        else:
            from eval.reports import token_drift  # noqa: PLC0415 - heavy

            if json:
                terminal.print_json(token_drift.document(report, asked.alpha))
            else:
                token_drift.show(terminal.console(), report)
            return
    left, right = drifting.answers(asked)
    _texts(left, right, alpha=asked.alpha, seed=asked.seed, json=json)


def _texts(left: Run, right: Run, *, alpha: float, seed: int, json: bool) -> None:
    from dataclasses import asdict  # noqa: PLC0415 - with the heavy ones

    import numpy as np  # noqa: PLC0415 - heavy

    from eval import assessment, embeddings  # noqa: PLC0415 - heavy
    from eval.reports import document  # noqa: PLC0415 - heavy
    from eval.reports import terminal as tables  # noqa: PLC0415 - heavy

    embedder = embeddings.load() or embeddings.FALLBACK
    rng = np.random.default_rng(seed)
    found = assessment.measure_drift(left.samples(), right.samples(), embedder, alpha, rng)
    if found is None:
        raise RunError(f"{left.name} and {right.name} share no answered sample: were they runs of one suite?")
    if json:
        named = {"level": "text", "baseline": left.name, "candidate": right.name}
        terminal.print_json(document.finite(named | asdict(found)))
    else:
        tables.drift(terminal.console(), found, None)


def _check_level(level: str) -> None:
    if level not in LEVELS:
        raise UserError(f"--level is {level!r}: one of {', '.join(LEVELS)}")


def _check_counts(counts: dict[str, int], least: int) -> None:
    for name, value in counts.items():
        if value < least:
            raise UserError(f"--{name} is {value}: it must be {least} or more")
