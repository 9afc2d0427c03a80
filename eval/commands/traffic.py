"""`modelyard eval suites from-traffic`: what went wrong in production becomes a regression test.

Owns: the command's options and what it says. Never: what makes a case (eval.traffic), files (eval.traffic_files).
"""

from __future__ import annotations

import enum
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eval.commands.options import AdminUrl, Json, StateDirectory, plainly
from registry import terminal

if TYPE_CHECKING:
    from eval.traffic import Drafts
    from eval.traffic_files import Written


class FeedbackKind(enum.StrEnum):
    """Which samples."""

    NEGATIVE = "negative"
    POSITIVE = "positive"
    ANY = "any"
    NONE = "none"
    ALL = "all"


class SliceName(enum.StrEnum):
    """What names a slice."""

    SEGMENT = "segment"
    VERSION = "version"
    FEEDBACK = "feedback"


def from_traffic(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model, or MODEL@LABEL for one version's answers.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The suite's folder; added to.")],
    since: Annotated[str, typer.Option(metavar="SPAN", help="24h, 7d, …, or Unix seconds.")] = "7d",
    feedback: Annotated[
        FeedbackKind,
        typer.Option(help="Requests with such feedback; none: those without, all: every one."),
    ] = FeedbackKind.NEGATIVE,
    maximum: Annotated[
        int | None, typer.Option("--max", metavar="N", min=1, help="So many new cases at most [all].")
    ] = None,
    slice_by: Annotated[
        list[SliceName] | None, typer.Option(help="What names a case's slice; repeat for more [segment, feedback].")
    ] = None,
    admin_url: AdminUrl = None,
    state_dir: StateDirectory = None,
    json: Json = False,
) -> None:
    """Make cases of sampled requests: redacted, without repetitions, with a scorer and a target where one is known.

    A target is what the feedback names (its `target`, or a comment like `correct answer: Canberra`), or the answer
    itself where it was liked; a schema that the request asked for, and labels like `refusal`, need none. What lacks one
    goes to candidates.jsonl: write its `target` there and call again. Called again, it adds what is new and leaves the
    rest as it is. The configuration has to keep texts: `samples: {rate: 0.05, store: text}`.

    \b
    Examples:
      modelyard eval suites from-traffic assistant --output suites/from-production
      modelyard eval suites from-traffic assistant@v2 --since 30d --feedback any --max 200 -o suites/v2
      modelyard eval run suites/from-production assistant@v2
    """
    with plainly():
        with terminal.busy("Reading samples"):
            from eval import endpoint, traffic, traffic_files  # noqa: PLC0415 - heavy
            from registry.state import StateDir  # noqa: PLC0415 - heavy

            found = endpoint.find(None, admin_url, StateDir.find(state_dir))
            if not found.admin_url:
                raise terminal.NotThereError("no yard runs here: start one, or name its admin API with --admin-url")
            folder = traffic_files.Folder.read(output)
            name, _, label = model.partition("@")
            wanted = "" if feedback is FeedbackKind.ALL else feedback.value
            samples = traffic_files.fetch(found, model=name, version=label, since=since, feedback=wanted)
            drafts = traffic.draft(
                samples,
                known_ids=folder.ids,
                known_texts=folder.texts,
                slice_by=[one.value for one in slice_by or (SliceName.SEGMENT, SliceName.FEEDBACK)],
                limit=maximum,
            )
            written = traffic_files.write(folder, drafts, model=model)
        if json:
            beside = {"samples": len(samples), "known": drafts.known, "duplicates": drafts.duplicates}
            terminal.print_json(asdict(written) | beside | {"skipped": drafts.skipped})
            return
        for line in _lines(written, drafts, len(samples), name):
            typer.echo(line)


def _lines(written: Written, drafts: Drafts, samples: int, model: str) -> list[str]:
    """What happened, and what to do next."""
    lines = [
        f"{samples} samples: {written.cases} new cases, {written.candidates} new candidates, {drafts.known} known "
        f"already, {drafts.duplicates} that say nearly the same"
    ]
    lines += [f"  {count} left out: {reason}" for reason, count in sorted(drafts.skipped.items())]
    if written.completed:
        lines.append(f"{written.completed} candidates had a target and are cases now")
    lines.append(f"{written.folder}: {written.cases_total} cases, {written.candidates_total} candidates")
    if written.candidates_total:
        lines.append(f"write a `target` (or delete `missing`) in {written.folder}/candidates.jsonl and call again")
    if written.cases_total:
        lines.append(f"look at the cases, then: modelyard eval run {written.folder} {model}@LABEL")
    return lines
