"""An answer becomes a score: the scorer called within its time, off the loop where it has to wait for something.

Owns: what a scorer is handed, its time limit, and what becomes of a sample where there is no score. Never: a scorer.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec

from eval import scorers
from eval.results import Sample
from eval.scorers import Answered, Likelihood, NoScoreError, Scorer, Tools
from eval.stream import Completion
from eval.suite import Case

SCORING_MAX_S: Final = 2.0
"""Of processor time, for one answer."""
WAITING_FACTOR: Final = 30.0
"""So many times as long may pass on the clock."""

_json = msgspec.json.Encoder(order="deterministic")


def blank(case: Case, repeat: int) -> Sample:
    """The sample of a case before it is asked."""
    return Sample(
        case=case.id,
        repeat=repeat,
        slice=case.slice,
        cluster=case.cluster,
        scorer=case.scorer.name,
        prompt=case.then[-1] if case.then else case.messages[-1].content,
        prompt_digest=case.prompt_digest,
        target=_json.encode(case.target).decode(),
        target_digest=case.target_digest,
        weight=case.weight,
    )


def fill(sample: Sample, completion: Completion) -> None:
    """What was answered, and what it took."""
    sample.output = completion.text
    sample.finish_reason = completion.finish_reason
    sample.prompt_tokens = completion.prompt_tokens
    sample.completion_tokens = completion.completion_tokens
    sample.ttft_s = completion.ttft_s
    sample.latency_s = completion.latency_s
    sample.started_at = completion.started_at
    sample.attempts = completion.attempts
    sample.answered_by = completion.answered_by
    sample.tool_calls = _json.encode(completion.tool_calls).decode() if completion.tool_calls else ""
    sample.turns = _json.encode(completion.turns).decode() if completion.turns else ""


def fill_choices(sample: Sample, choices: Mapping[str, Likelihood]) -> None:
    """What each choice got, and the one that got the most as the answer."""
    sample.logprobs = _json.encode(choices).decode()
    sample.output = max(choices, key=lambda choice: choices[choice].log_probability, default="")
    sample.finish_reason = "stop"


async def score(
    sample: Sample,
    case: Case,
    completion: Completion,
    tools: Tools,
    choices: Mapping[str, Likelihood] | None = None,
) -> None:
    """Give the sample its score, or the reason why it has none."""
    scorer = scorers.build(case.scorer.name, case.scorer.options, case.target)
    answered = Answered(
        text=completion.text,
        tool_calls=completion.tool_calls,
        finish_reason=completion.finish_reason,
        prompt=sample.prompt,
        choices=choices or {},
    )
    try:
        if scorer.needs - {scorers.LIKELIHOOD}:  # waits for a model or a process: in a thread
            found = await asyncio.to_thread(scorer.score, answered, case.target, tools)
        else:
            found = _timed(scorer, answered, case, tools)
    except NoScoreError as error:
        sample.error, sample.final = str(error), not error.passing
        return
    except _TooLongError:
        sample.error = (
            f"the scorer {case.scorer.name!r} was stopped after {SCORING_MAX_S:g} s of work, or "
            f"{WAITING_FACTOR * SCORING_MAX_S:g} s of waiting, on this answer: simplify its pattern"
        )
        return
    sample.score, sample.detail = found.value, found.detail
    sample.scoring_tokens, sample.scoring_s = found.prompt_tokens + found.completion_tokens, found.latency_s


def _timed(scorer: Scorer, answered: Answered, case: Case, tools: Tools) -> scorers.Score:
    with _at_most(SCORING_MAX_S):
        return scorer.score(answered, case.target, tools)


class _TooLongError(Exception):
    """A scorer took too long."""


@contextlib.contextmanager
def _at_most(limit_s: float) -> Iterator[None]:
    """Raise _TooLongError in the block after `limit_s` of processor time, or WAITING_FACTOR times as long on the clock:
    a busy machine stops nobody early, and who waits for something is stopped too.

    A suite's regular expression may need time exponential in the answer's length, and no thread can stop it; a signal
    can, which reaches the main thread only: elsewhere nothing is bounded.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(*_: object) -> None:
        raise _TooLongError

    with (
        _timer(signal.SIGPROF, signal.ITIMER_PROF, limit_s, expire),
        _timer(signal.SIGALRM, signal.ITIMER_REAL, WAITING_FACTOR * limit_s, expire),
    ):
        yield


@contextlib.contextmanager
def _timer(number: signal.Signals, which: int, limit_s: float, expire: Callable[..., None]) -> Iterator[None]:
    """Call `expire` after the limit; what the timer was set to before it is set to again."""
    handler = signal.signal(number, expire)
    before = signal.setitimer(which, limit_s)
    try:
        yield
    finally:
        signal.setitimer(which, 0)
        signal.signal(number, handler)
        signal.setitimer(which, *before)
