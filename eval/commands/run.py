"""`modelyard eval run`: a suite on one version.

Owns: the command's options. Never: what it computes.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

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
    show_run,
)


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
    sample_seed: SampleSeed = 0,
    slices: Slices = None,
    path: DataPath = None,
    fresh: Fresh = False,
    no_cache: NoCache = False,
    price: Price = None,
    provider: Provider = "auto",
    judge: JudgeRef = None,
    alpha: Alpha = 0.05,
    json: Json = False,
) -> None:
    """Run a suite on one version. Killed or stopped, the same command goes on; finished, it is reused.

    Example: modelyard eval run quickstart --model assistant@v1
    """
    with plainly():
        from eval.session import state_of  # noqa: PLC0415 - heavy

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
            (model,),
        )
        session = open_session(settings)
        job = session.job(session.subject(model))
        note = job.plan.subject.note
        if note:
            sys.stderr.write(f"{note}\n")
        session.execute([job])
        show_run(job.run, alpha, json, state=state_of(job))
