"""lm-evaluation-harness against our server: its tasks and scores, kept as a run of ours.

Owns: what is checked before it runs, the process that it runs in, and turning its samples into a run. Never: calling
lm_eval (harness_child.py does, in a process of its own), statistics.

Tasks that generate text go through `local-chat-completions` (or `local-completions`); tasks over log-likelihoods go
through `local-completions` and are refused before anything runs where the engine does not give those of a prompt, where
the tokenizer named is not the engine's, or where a request is longer than the engine's context: lm-eval would score
each of them, with numbers that mean nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from eval import scoring
from eval.endpoint import Endpoint, headers
from eval.errors import RunError, SuiteError
from eval.harness_checks import check_likelihood
from eval.providers.worker.probes import TEXTS
from eval.results import Journal, Run, RunKey, RunStore, Sample, Subject
from eval.scorers import Likelihood
from eval.suite import Case, Message, Sampling, ScorerSpec, Suite
from registry.terminal import NotThereError, UserError

LIKELIHOOD: Final = frozenset({"loglikelihood", "loglikelihood_rolling", "multiple_choice"})
PREFERRED: Final = ("exact_match", "acc", "pass@1", "prompt_level_strict_acc", "f1")
"""Metrics in the order looked for, where none is named; else the task's first for which more is better."""
NO_ANSWER: Final = "(modelyard: the answer held no text)"
"""What lm-eval is told to put where a message has no content, which it would score."""
_SCRIPT: Final = Path(__file__).with_name("harness_child.py")


class HarnessGoneError(NotThereError):
    """lm-evaluation-harness is not installed where it was looked for."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What to run, and how."""

    tasks: tuple[str, ...]
    include_path: Path | None = None
    """A folder with tasks of the user's own."""
    few_shot: int | None = None
    limit: int | None = None
    seed: int = 0
    concurrency: int = 4
    tokenizer: Path | None = None
    metric: str | None = None
    """`NAME`, or `NAME,FILTER` as lm-eval prints them."""
    chat: bool = True
    system: str | None = None
    python: str = sys.executable

    @property
    def name(self) -> str:
        return f"lm-eval-{'+'.join(self.tasks)}"


class Task(msgspec.Struct, frozen=True):
    """A task as lm-eval describes it."""

    name: str
    output_type: str
    docs: int
    digest: str
    metrics: dict[str, bool]
    """Name -> whether more is better."""
    unsafe: bool = False


class Description(msgspec.Struct, frozen=True):
    """What is about to run."""

    version: str
    tasks: tuple[Task, ...]
    probe: tuple[tuple[int, ...], ...] = ()
    """The tokens of the probes' texts by the tokenizer named; () where none is."""
    longest: int = 0
    """Tokens of the longest request for a likelihood."""

    @property
    def likelihood(self) -> tuple[str, ...]:
        """The tasks that need log-likelihoods."""
        return tuple(task.name for task in self.tasks if task.output_type in LIKELIHOOD)


class Harness:
    """A started lm-eval, its tasks loaded; made by `started`."""

    def __init__(self, process: subprocess.Popen[str], settings: Settings) -> None:
        self._process = process
        self.settings = settings
        job = {
            "tasks": list(settings.tasks),
            "include_path": str(settings.include_path) if settings.include_path else None,
            "few_shot": settings.few_shot,
            "limit": settings.limit,
            "tokenizer": str(settings.tokenizer) if settings.tokenizer else None,
            "texts": TEXTS,
        }
        self._send(job)
        self.description = msgspec.convert(next(self._answers()), Description)

    def metrics(self) -> dict[str, tuple[str, str]]:
        """Task -> metric and filter ("" for its first) that a run is scored by. Raises UserError."""
        wanted, _, filter_ = (self.settings.metric or "").partition(",")
        found = {}
        for task in self.description.tasks:
            better = [name for name, higher in task.metrics.items() if higher]
            chosen = wanted or next((name for name in (*PREFERRED, *better) if name in better), "")
            if not chosen or chosen not in task.metrics:
                raise UserError(
                    f"the task {task.name} has no metric {chosen or 'for which more is better'!r}: "
                    f"it has {', '.join(task.metrics) or 'none'}, and --metric chooses"
                )
            if not task.metrics[chosen]:
                raise UserError(f"less is better for the metric {chosen!r} of {task.name}: a score needs the opposite")
            found[task.name] = (chosen, filter_)
        return found

    def key(self, subject: Subject, *, twin: bool = False) -> RunKey:
        """The key of running these tasks, as they are now, on `subject`."""
        settings, about = self.settings, self.description
        decides = [
            about.version,
            sorted((task.name, task.digest) for task in about.tasks),
            sorted(self.metrics().items()),
            settings.chat,
            settings.system,
            settings.few_shot,
            settings.limit,
        ]
        digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
        return RunKey(
            suite_digest=f"sha256:{digest}",
            identity=subject.identity,
            sampling=Sampling(),
            seed=settings.seed,
            repeats=1,
            twin=twin,
        )

    def run(self, subject: Subject, where: Endpoint) -> Iterator[Sample]:
        """Run the tasks on `subject` and give their samples, each with its case's digests."""
        likelihood = bool(self.description.likelihood)
        chat = self.settings.chat and not likelihood
        arguments: dict[str, Any] = {
            "model": subject.model,
            "base_url": f"{subject.url}/v1/{'chat/' if chat else ''}completions",
            "num_concurrent": self.settings.concurrency,
            "max_retries": 5,
            "header": headers(),
            "tokenizer_backend": "huggingface" if self.settings.tokenizer else None,
        }
        if self.settings.tokenizer:
            arguments["tokenizer"] = str(self.settings.tokenizer)
        if self.description.longest:
            arguments["max_length"] = self.description.longest + 2
        if where.certificate:
            arguments["ca_cert_path"] = where.certificate
        metrics = self.metrics()
        self._send(
            {
                "api": "local-chat-completions" if chat else "local-completions",
                "model_args": arguments,
                "limit": self.settings.limit,
                "chat": chat,
                "system": self.settings.system,
                "seed": self.settings.seed,
            }
        )
        seen: set[tuple[str, int]] = set()
        for answer in self._answers():
            if "sample" not in answer:
                return
            raw = answer["sample"]
            metric, filter_ = metrics[raw["task"]]
            if raw["filter"] == filter_ or (not filter_ and (raw["task"], raw["doc_id"]) not in seen):
                seen.add((raw["task"], raw["doc_id"]))
                yield sample_of(raw, metric)

    def _send(self, job: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer that does not come says so

    def _answers(self) -> Iterator[dict[str, Any]]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            if "error" in answer:
                raise SuiteError(f"lm-eval cannot run {', '.join(self.settings.tasks)}: {answer['error']}")
            yield answer
            if "done" in answer:
                return
        raise RunError(f"lm-eval ended before its end (exit {self._process.wait()}): run it in a terminal to see why")


@contextmanager
def started(settings: Settings) -> Iterator[Harness]:
    """lm-eval with the tasks loaded. Raises HarnessGoneError where it is not installed, SuiteError for a task."""
    check_installed(settings.python)
    quiet = None if sys.stderr.isatty() else subprocess.DEVNULL
    with subprocess.Popen(
        [settings.python, str(_SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=quiet,
        env=os.environ | {"LMEVAL_MODEL_NONE_ANSWER_PLACEHOLDER": NO_ANSWER},
        text=True,
        encoding="utf-8",
    ) as process:
        try:
            yield Harness(process, settings)
        finally:
            process.kill()


def check_installed(python: str) -> None:
    """HarnessGoneError with the remedy unless `python` can import lm_eval."""
    if python == sys.executable:
        there = importlib.util.find_spec("lm_eval") is not None
    else:
        look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('lm_eval') is None)"
        try:
            there = subprocess.run([python, "-c", look], check=False, capture_output=True).returncode == 0
        except OSError as error:
            raise HarnessGoneError(
                f"{python} cannot be started ({error.strerror}): give a Python with --python"
            ) from error
    if not there:
        raise HarnessGoneError(
            f"lm-evaluation-harness is not installed for {python}: pip install 'lm-eval[api]' there, or name the "
            "Python of an environment that has it with --python"
        )


def perform(harness: Harness, subject: Subject, where: Endpoint, store: RunStore, *, fresh: bool, twin: bool) -> Run:
    """The run of these tasks on `subject`: a finished one, else a new one. Raises UserError; nothing is kept then."""
    key = harness.key(subject, twin=twin)
    empty = Suite(name=harness.settings.name, version=1, description="", cases=(), sampling=Sampling())
    found = store.latest(empty, subject, key)
    if found is not None and found.finished and not fresh:
        return found
    if unsafe := [task.name for task in harness.description.tasks if task.unsafe]:
        raise UserError(
            f"the task {unsafe[0]} runs code that a model wrote, unprotected: use the format `humaneval` or the scorer "
            "`python_tests`, which have a sandbox"
        )
    about, tokenizer = harness.description, harness.settings.tokenizer
    if about.likelihood:
        check_likelihood(about.likelihood, about.probe, about.longest, tokenizer, subject, where)
    began = time.time()
    samples = list(harness.run(subject, where))
    if not samples:
        raise RunError(f"lm-eval gave no sample of {', '.join(harness.settings.tasks)}: is the filter's name right?")
    planned = sum(task.docs for task in harness.description.tasks)
    run = store.open(empty, subject, key, fresh=found is not None, now=began)
    with run.lock():
        info = run.info()
        info.planned, info.suite_source = planned, f"lm-eval {harness.description.version}"
        run.write_info(info)
        journal = Journal(run.journal)
        try:
            for sample in samples:
                journal.append(sample)
        finally:
            journal.close()
        run.compact(time.time())
    return run


def sample_of(raw: Mapping[str, Any], metric: str) -> Sample:
    """lm-eval's sample as ours; it tells no times, so that the sample counts in no latency, as a cached one."""
    case = case_of(raw, metric)
    sample = scoring.blank(case, 0)
    sample.cached = True
    if case.kind == "generate":
        answers = [str(answer) for answer in raw["resps"][0]]
        sample.output = answers[0] if answers else ""
        read = raw["filtered"][0] if raw["filtered"] else ""
        sample.detail = "" if str(read) == sample.output else f"read as {_short(read)}"
    else:
        first = [replies[0] for replies in raw["resps"]]
        named = case.choices or (str(case.target),)
        found = {
            name: Likelihood(log_probability=reply[0], tokens=0, is_greedy=bool(reply[1]))
            for name, reply in zip(named, first, strict=False)
        }
        scoring.fill_choices(sample, found)
    value = raw["metrics"].get(metric)
    if sample.output == NO_ANSWER:
        sample.output, sample.error = "", "the server's answer held no text"
    elif isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1:
        sample.score = float(value)
    else:
        sample.error = f"lm-eval's {metric} of this sample is {_short(value)}: a number from 0 to 1 is needed"
    return sample


def case_of(raw: Mapping[str, Any], metric: str) -> Case:
    """The case that lm-eval's document amounts to."""
    requests = raw["arguments"]
    prompt = requests[0][0]
    messages = (
        tuple(Message(turn["role"], str(turn["content"])) for turn in prompt)
        if isinstance(prompt, list)
        else (Message("user", str(prompt)),)
    )
    continuations = tuple(str(request[1]) for request in requests if len(request) > 1)
    target, kind = raw["target"], "generate"
    choices: tuple[str, ...] = ()
    if len(continuations) > 1:
        kind, choices = "choose", continuations
        if isinstance(target, int) and 0 <= target < len(choices):
            target = choices[target]
    elif continuations:
        kind, target = "perplexity", continuations[0]
    return msgspec.convert(
        {
            "id": f"{raw['task']}-{int(raw['doc_id']):05d}",
            "messages": messages,
            "target": target,
            "scorer": ScorerSpec(metric),
            "slice": raw["task"],
            "kind": kind,
            "choices": choices,
            "chat": isinstance(prompt, list),
        },
        Case,
    )


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return repr(text if len(text) <= 60 else text[:59] + "…")
