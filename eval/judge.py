"""The model that judges, over HTTP: asked at temperature 0, kept, bounded, counted.

Owns: who judges a suite, and the calls to it. Never: what it is asked or how it is read (eval/scorers/judge.py).

A judgement is kept under the judge's identity and the whole question: the same answer is never judged twice, by any run
of this state directory. A judge that does not answer leaves the sample without a score, to be scored by the next run of
the same command; one that fails several times in a row ends the run.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

import httpx
import msgspec

from eval import endpoint as endpoints
from eval import scorers
from eval.cache import ResponseCache
from eval.endpoint import Endpoint
from eval.errors import RequestRefusedError, ServerGoneError, SuiteError
from eval.results import Subject
from eval.scorers import JUDGE, NoScoreError, Reply
from eval.scorers.judge import Judging, LlmJudge
from eval.stream import Completion
from eval.suite import Case, ScorerSpec, Suite
from registry.terminal import UserError

JUDGE_VARIABLE: Final = "MODELYARD_JUDGE"
KEY_VARIABLE: Final = "MODELYARD_JUDGE_KEY"
"""Sent to a judge elsewhere; MODELYARD_API_KEY goes to the server that is evaluated, and nowhere else."""
AT_ONCE: Final = 4
"""Calls in flight."""
ATTEMPTS_MAX: Final = 4
BACKOFF_S: Final = 0.5
RETRY_AFTER_MAX_S: Final = 20.0
TIMEOUT: Final = httpx.Timeout(connect=5.0, read=120.0, write=30.0, pool=None)
ALIVE_TIMEOUT_S: Final = 5.0
FAILURES_MAX: Final = 3
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
_REFUSED: Final = frozenset({401, 403, 404})

_encoder = msgspec.json.Encoder(order="deterministic")


class HttpJudge:
    """Judges by an OpenAI server. Safe for several threads."""

    def __init__(self, endpoint: Endpoint, cache: ResponseCache | None) -> None:
        self._endpoint = endpoint
        self._cache = cache
        self._subjects: dict[str, Subject] = {}
        self._clients: dict[str, httpx.Client] = {}
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._turn = threading.BoundedSemaphore(AT_ONCE)
        self._failures_in_row = 0

    def subject(self, ref: str) -> Subject:
        """Whom `ref` stands for; looked up once. Raises UserError where it is not there."""
        with self._lock:
            if ref not in self._subjects:
                elsewhere = ref.startswith(("http://", "https://"))
                self._subjects[ref] = self._elsewhere(ref) if elsewhere else endpoints.resolve(self._endpoint, ref)
            return self._subjects[ref]

    def ask(self, ref: str, messages: Sequence[Mapping[str, str]], *, max_tokens: int, attempt: int = 0) -> Reply:
        """The judge's reply. Raises NoScoreError, RequestRefusedError where it refuses all, ServerGoneError."""
        subject = self.subject(ref)
        body = {
            "model": subject.model,
            "messages": list(messages),
            "temperature": 0,
            "max_tokens": max_tokens,
            "seed": attempt,
        }
        key = hashlib.sha256(_encoder.encode(["judge", 1, subject.identity, body])).hexdigest()
        kept = self._cache.get(key) if self._cache is not None else None
        if kept is not None:
            return Reply(text=kept.text, cached=True)
        with self._turn:
            began = time.perf_counter()
            found = self._post(subject, body)
            found.latency_s = time.perf_counter() - began
        if self._cache is not None:
            self._cache.put(key, found)
            self._cache.flush()
        return Reply(
            text=found.text,
            prompt_tokens=found.prompt_tokens,
            completion_tokens=found.completion_tokens,
            latency_s=found.latency_s,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        if self._cache is not None:
            self._cache.close()

    def _elsewhere(self, ref: str) -> Subject:
        """The judge `URL#MODEL`, once it is known that its server answers."""
        url, _, model = ref.partition("#")
        url = url.rstrip("/").removesuffix("/v1").rstrip("/")
        if not model:
            raise UserError(f"the judge {ref} names no model: write it as URL#MODEL")
        try:
            status = self._client(url).get(f"{url}/v1/models", timeout=ALIVE_TIMEOUT_S).status_code
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise ServerGoneError(
                f"no server answers at {url}, where the judge should be ({error or type(error).__name__}): start it, "
                "or name another"
            ) from error
        if status in {401, 403}:
            raise RequestRefusedError(f"the judge at {url} wants a key: set {KEY_VARIABLE}")
        return Subject(ref=ref, model=model, url=url)

    def _headers(self, url: str) -> dict[str, str]:
        if url == self._endpoint.url:
            return endpoints.headers()
        key = os.environ.get(KEY_VARIABLE, "")
        return {"authorization": f"Bearer {key}"} if key else {}

    def _post(self, subject: Subject, body: Mapping[str, Any]) -> Completion:
        """One completion, asked again after a passing failure."""
        why = ""
        for attempt in range(ATTEMPTS_MAX):
            wait_s = BACKOFF_S * 2**attempt
            try:
                answer = self._client(subject.url).post(f"{subject.url}/v1/chat/completions", json=body)
            except httpx.TransportError as error:
                why = str(error) or type(error).__name__
            else:
                if answer.is_success:
                    self._failures_in_row = 0
                    return _read(answer)
                why = f"{answer.status_code}: {_error(answer)}"
                if answer.status_code in _REFUSED:
                    raise RequestRefusedError(
                        f"the judge {subject.ref} refuses ({why}): check its name, and {KEY_VARIABLE}"
                    )
                if answer.status_code not in _PASSING:
                    raise NoScoreError(f"the judge refuses this question ({why})")
                wait_s = _retry_after_s(answer, wait_s)
            if attempt + 1 < ATTEMPTS_MAX:
                time.sleep(wait_s)
        self._failures_in_row += 1
        if self._failures_in_row >= FAILURES_MAX:
            raise ServerGoneError(
                f"the judge {subject.ref} does not answer ({why}): start it; what is done is kept, the same command "
                "goes on from there"
            )
        raise NoScoreError(f"the judge {subject.ref} does not answer ({why})", passing=True)

    def _client(self, url: str) -> httpx.Client:
        with self._opening:
            if url not in self._clients:
                own = url == self._endpoint.url
                self._clients[url] = httpx.Client(
                    timeout=TIMEOUT,
                    headers=self._headers(url),
                    trust_env=endpoints.trusts_environment(url),
                    verify=self._endpoint.verify if own else True,
                )
            return self._clients[url]


def bind(suite: Suite, judge: HttpJudge, ref: str | None) -> Suite:
    """The suite with every judge named and pinned, so that its digest says who judged.

    `ref` (else $MODELYARD_JUDGE) stands in where a scorer names none. Raises SuiteError where nobody is named.
    """
    named = ref or os.environ.get(JUDGE_VARIABLE) or ""

    def bound(case: Case) -> Case:
        spec = case.scorer
        if JUDGE not in scorers.kind_of(spec.name).needs:
            return case
        chosen = str(spec.options.get("judge") or named)
        if not chosen:
            raise SuiteError(
                f"{suite.source}: case {case.id!r} is scored by a judge and names none: add `judge: REF` to its "
                f"scorer, or set {JUDGE_VARIABLE}"
            )
        subject = judge.subject(chosen)
        pinned = chosen if chosen.startswith(("http://", "https://")) else subject.model
        revision = " ".join(part for part in (scorers.revision_of(spec.name), subject.digest) if part)
        return msgspec.structs.replace(
            case, scorer=ScorerSpec(spec.name, {**spec.options, "judge": pinned}, revision=revision)
        )

    return msgspec.structs.replace(suite, cases=tuple(map(bound, suite.cases)))


def judgings(suite: Suite, judge: HttpJudge) -> tuple[Judging, ...]:
    """Who judges a bound suite by what, each once, in order of appearance."""
    found: dict[str, Judging] = {}
    for case in suite.cases:
        if case.scorer.name == "judge":
            scorer = scorers.build(case.scorer.name, case.scorer.options, case.target)
            assert isinstance(scorer, LlmJudge)
            one = Judging(ref=scorer.judge, identity=judge.subject(scorer.judge).identity, criterion=scorer.criterion)
            found.setdefault(one.key, one)
    return tuple(found.values())


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


def _read(answer: httpx.Response) -> Completion:
    try:
        found = msgspec.json.decode(answer.content, type=_Answer)
    except msgspec.DecodeError as error:
        raise NoScoreError(f"the judge's server answers no chat completion ({error})") from error
    if not found.choices:
        raise NoScoreError("the judge's server answers a chat completion without a choice")
    usage = found.usage or _Usage()
    return Completion(
        text=found.choices[0].message.content or "",
        finish_reason=found.choices[0].finish_reason or "",
        prompt_tokens=usage.prompt_tokens or 0,
        completion_tokens=usage.completion_tokens or 0,
    )


def _error(answer: httpx.Response) -> str:
    try:
        value = answer.json()["error"]
        return str(value["message"] if isinstance(value, dict) else value)[:200]
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]


def _retry_after_s(answer: httpx.Response, otherwise: float) -> float:
    try:
        return min(RETRY_AFTER_MAX_S, max(0.0, float(answer.headers["retry-after"])))
    except (KeyError, ValueError):
        return otherwise
