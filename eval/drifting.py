"""What `modelyard eval drift` does for two versions over a prompt set: find the models, read or ask, show progress.

Owns: the order of those steps. Never: the formulas (drift.py, drift_tokens.py), the layout.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from eval import endpoint
from eval.endpoint import Endpoint
from eval.errors import RunError, StateDirError
from eval.providers import texts, token_drift
from eval.providers.files import is_path, locate
from eval.providers.finding import REMEDY, Wanted, in_process, is_in_process, over_http
from eval.providers.in_process import InProcess
from eval.providers.prompt_logprobs import PromptLogprobs
from eval.providers.token_drift import Measured
from eval.reports.token_drift import Side, Spot, TokenReport
from eval.results import Run, Subject
from eval.session import Session, Settings
from registry.state import StateDir
from registry.terminal import UserError, busy, progress

Model = InProcess | PromptLogprobs

SCORER: Final = {"name": "refusal", "expect": False}
"""Prompts of a file have no target: what is kept as their score is whether they were answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The options of the command."""

    baseline: str
    candidate: str
    prompts: str
    provider: str = "auto"
    python: str | None = None
    answer_tokens: int = token_drift.ANSWER_TOKENS
    top_k: int = token_drift.TOP_K
    exact: bool = False
    context: int = 0
    threads: int = 0
    worst: int = 5
    url: str | None = None
    admin_url: str | None = None
    state_dir: Path | None = None
    concurrency: int = 4
    limit: int | None = None
    alpha: float = 0.05
    seed: int = 0

    @property
    def state(self) -> StateDir:
        return StateDir.find(self.state_dir)

    @property
    def server(self) -> Endpoint:
        return endpoint.find(self.url, self.admin_url, self.state)


def can_answer(asked: Asked) -> bool:
    """Whether both are versions that run somewhere, so that their answers can be compared as text."""
    return not (is_path(asked.baseline) or is_path(asked.candidate))


def tokens(asked: Asked) -> TokenReport:
    """Token-level drift. Raises CapabilityError where it cannot be had."""
    threads = asked.threads or max(1, (os.cpu_count() or 2) // 2)
    wanted = Wanted(asked.provider, asked.python, threads, asked.context)
    read = texts.load(asked.prompts, _datasets(asked.state), asked.limit)
    with ExitStack() as stack:
        sides: list[tuple[Subject, Model]] = []
        for ref in (asked.baseline, asked.candidate):
            with busy(f"Loading {ref}"):
                subject, model = _open(asked, ref, wanted)
            stack.enter_context(closing(model))
            sides.append((subject, model))
        (left, baseline), (right, candidate) = sides
        with progress() as display:
            bar = display.add_task("comparing distributions", total=len(read))
            measured = token_drift.measure(
                baseline,
                candidate,
                read,
                answer_tokens=asked.answer_tokens,
                top_k=asked.top_k,
                on_prompt=lambda: display.advance(bar),
            )
        found = measured.collected.summary(alpha=asked.alpha, rng=np.random.default_rng(asked.seed), worst=asked.worst)
        if found is None:
            first = f"; {measured.refused[0][0]}: {measured.refused[0][1]}" if measured.refused else ""
            raise RunError(f"no prompt of {asked.prompts} could be measured{first}")
        spots = [_spot(one.prompt, one.mean_kl, one.max_kl, one.position, measured, baseline) for one in found.worst]
        return TokenReport(
            baseline=_side(left, baseline),
            candidate=_side(right, candidate),
            drift=found,
            top_k=measured.top_k,
            refused=measured.refused,
            notes=_notes(baseline, candidate, measured),
            worst=spots,
        )


def _open(asked: Asked, ref: str, wanted: Wanted) -> tuple[Subject, Model]:
    """The model that `ref` names: loaded here where that is asked for or it is a file, else the one that runs."""
    if is_in_process(wanted, ref):
        subject, files = locate(ref, asked.state, asked.server)
        return subject, in_process(files, wanted)
    if is_path(ref):
        raise UserError(f"{ref} is a file: it is loaded by --provider {' or '.join(('llama-cpp', 'transformers'))}")
    server = asked.server
    subject = endpoint.resolve(server, ref)
    verify = server.verify if subject.url == server.url else True
    return subject, over_http(subject, "full_vocabulary" if asked.exact else "top_k", verify)


def _side(subject: Subject, model: Model) -> Side:
    return Side(subject.ref, subject.digest, model.capabilities.library or f"{model.name}, over HTTP")


def _notes(baseline: Model, candidate: Model, measured: Measured) -> list[str]:
    if measured.top_k:
        return [f"a lower bound, from the {measured.top_k} likeliest tokens of a position; for all of them, {REMEDY}"]
    templates = [model.chat for model in (baseline, candidate) if isinstance(model, InProcess)]
    if len(set(templates)) > 1:
        return ["the chat templates differ: both models read the baseline's, so that difference is not in the figures"]
    return []


def _spot(name: str, mean: float, largest: float, position: int, measured: Measured, baseline: Model) -> Spot:
    if not isinstance(baseline, InProcess):
        return Spot(name, mean, largest)
    return Spot(name, mean, largest, *token_drift.around(baseline, measured.readings[name], position))


def answers(asked: Asked) -> tuple[Run, Run]:
    """The runs of both versions over the prompts, for text-level drift; what is there already is not asked again."""
    if not can_answer(asked):
        raise UserError("text-level drift asks running versions: name assistant@v1 or URL#MODEL, or use --level tokens")
    suite = _suite_of(asked) if texts.is_file(asked.prompts) else asked.prompts
    settings = Settings(
        suite, asked.url, asked.admin_url, asked.state_dir, asked.concurrency, asked.seed, None, asked.limit
    )
    session = Session(settings)
    if any(case.kind != "generate" for case in session.suite.cases):
        raise UserError(f"{asked.prompts} has cases that are not answered but scored by likelihood: use --level tokens")
    left, rights = session.contest(asked.baseline, [asked.candidate])
    session.execute([left, *rights])
    return left.run, rights[0].run


def _suite_of(asked: Asked) -> str:
    """The prompts of a file as a suite, named by what is in it."""
    rows = [
        {
            "id": text.name,
            "messages": msgspec.to_builtins(text.prompt.messages) or [{"role": "user", "content": text.prompt.text}],
        }
        for text in texts.load(asked.prompts, _datasets(asked.state))
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    name = f"prompts-{hashlib.sha256(lines.encode()).hexdigest()[:12]}"
    folder = asked.state.root / "cache" / "prompts" / name
    written = {"name": name, "cases": "cases.jsonl", "scorer": SCORER, "description": f"the prompts of {asked.prompts}"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cases.jsonl").write_text(lines, encoding="utf-8")
        (folder / "suite.yaml").write_text(json.dumps(written), encoding="utf-8")  # JSON is YAML
    except OSError as error:
        raise StateDirError(folder, "written", error) from error
    return str(folder / "suite.yaml")


def _datasets(state: StateDir) -> Path:
    return state.root / "cache" / "datasets"
