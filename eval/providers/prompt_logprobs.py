"""Log-probabilities of prompts over HTTP, as vLLM gives them: `prompt_logprobs` of /v1/completions.

Owns: the wire of such an engine, its tokenizer included (`/tokenize`). Never: deciding that an engine can do it
(capabilities.py asks it first).

A prompt is sent as token ids, so that both ends mean the same tokens. Each position comes with its k likeliest tokens
and the prompt's own.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import httpx

from eval.endpoint import headers, trusts_environment
from eval.errors import ServerGoneError
from eval.providers.base import CapabilityError, EvalCapabilities, Prompt, Question, Reply, by_choice, questions_of
from eval.results import Subject
from eval.scorers.base import Likelihood
from eval.suite import Case

TIMEOUT_S: Final = 300.0
IN_FLIGHT: Final = 4
Row = Mapping[int, float]
"""Token id -> log p, of the tokens that came."""


class RefusedError(Exception):
    """The engine answered this request with an error."""


class AbsentError(RefusedError):
    """The engine took the request and left out what was asked for: asking for less of it is no use."""


class Wire:
    """Requests to one model of one server."""

    def __init__(self, subject: Subject, verify: ssl.SSLContext | bool = True) -> None:
        self.subject = subject
        self._http = httpx.Client(
            base_url=subject.url,
            timeout=TIMEOUT_S,
            headers=headers(),
            trust_env=trusts_environment(subject.url),
            verify=verify,
        )

    def close(self) -> None:
        self._http.close()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer's JSON. Raises RefusedError for an error status, ServerGoneError where nothing answers."""
        return self._json(self._send("POST", path, body))

    def get(self, path: str) -> Any:
        return self._json(self._send("GET", path, None))

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        named = None if body is None else {"model": self.subject.model} | body
        try:
            return self._http.request(method, path, json=named)
        except httpx.HTTPError as error:
            cause = str(error) or type(error).__name__
            raise ServerGoneError(f"{self.subject.url}{path} does not answer ({cause}): is it running?") from error

    def _json(self, answer: httpx.Response) -> Any:
        try:
            value = answer.json()
        except ValueError:
            value = {}
        if not answer.is_success:
            error = value.get("error", value.get("message", "")) if isinstance(value, dict) else ""
            said = error.get("message", "") if isinstance(error, dict) else error
            raise RefusedError(f"{answer.status_code}: {said or answer.reason_phrase}")
        return value

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Token ids of a text. Raises RefusedError."""
        how = {"add_special_tokens": special, "add_special": special}  # vLLM's words, and llama.cpp's
        return _tokens(self.post("/tokenize", {"prompt": text, "content": text} | how))

    def tokenize_chat(self, prompt: Prompt) -> list[int]:
        """Token ids of a conversation up to where the model answers. Raises RefusedError."""
        goes_on = prompt.messages[-1].role == "assistant"
        turns = [{"role": turn.role, "content": turn.content} for turn in prompt.messages]
        how = {"add_generation_prompt": not goes_on, "continue_final_message": goes_on}
        return _tokens(self.post("/tokenize", {"messages": turns} | how))

    def prompt_logprobs(self, tokens: Sequence[int], k: int) -> list[Row]:
        """Of each token but the first: the k likeliest in its place, and its own. Raises RefusedError."""
        body = {"prompt": list(tokens), "max_tokens": 1, "temperature": 0, "prompt_logprobs": k}
        answer = self.post("/v1/completions", body)
        rows = (answer.get("choices") or [{}])[0].get("prompt_logprobs")
        if not isinstance(rows, list) or len(rows) != len(tokens):
            raise AbsentError("no log-probabilities of the prompt came back")
        return [{int(token): float(one["logprob"]) for token, one in row.items()} for row in rows[1:]]

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """Up to `count` tokens that it would go on with. Raises RefusedError."""
        body = {"prompt": list(tokens), "max_tokens": count, "temperature": 0, "return_token_ids": True}
        choice = (self.post("/v1/completions", body).get("choices") or [{}])[0]
        ids = choice.get("token_ids")
        found = [int(token) for token in ids] if isinstance(ids, list) else None
        if found is None:
            found = self.tokenize(str(choice.get("text", "")), special=False)
        return found[:-1] if choice.get("finish_reason") == "stop" and ids else found


class PromptLogprobs:
    """An engine that returns log-probabilities of prompts."""

    name = "vllm"

    def __init__(self, wire: Wire, capabilities: EvalCapabilities) -> None:
        self._wire = wire
        self.capabilities = capabilities
        self._pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="prompt-logprobs")

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._wire.close()

    def likelihoods(self, case: Case) -> Mapping[str, Likelihood]:
        return by_choice(case, self.score(questions_of(case)))

    def score(self, questions: Sequence[Question]) -> list[Reply]:
        return list(self._pool.map(self._score, questions))

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int] | str]:
        """Each prompt's tokens, or why it has none."""

        def one(prompt: Prompt) -> list[int] | str:
            try:
                return self._encoded(prompt)
            except RefusedError as error:
                return str(error)

        return list(self._pool.map(one, prompts))

    def top_k(self, tokens: Sequence[int], k: int) -> list[Row]:
        """Of each token but the first: the k likeliest in its place, and its own. Raises CapabilityError."""
        try:
            return self._wire.prompt_logprobs(tokens, k)
        except RefusedError as error:
            raise CapabilityError(
                f"{self._wire.subject.ref} gives no log-probabilities of a prompt ({error})"
            ) from None

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """Up to `count` tokens that the engine would go on with. Raises CapabilityError."""
        try:
            return self._wire.greedy(tokens, count)
        except RefusedError as error:
            raise CapabilityError(f"{self._wire.subject.ref} does not go on with a prompt ({error})") from None

    def _score(self, question: Question) -> Reply:
        try:
            prompt, continuation = self._split(question)
            if not prompt:  # nothing predicts the first token: it is given
                prompt, continuation = continuation[:1], continuation[1:]
            if not continuation:
                return Reply(error="the text to score has no tokens")
            needed, room = len(prompt) + len(continuation) + 1, self.capabilities.context_tokens
            if room and needed > room:
                return Reply(error=f"it has {needed} tokens with one to answer and the context holds {room}")
            rows = self._wire.prompt_logprobs([*prompt, *continuation], 1)[len(prompt) - 1 :]
        except RefusedError as error:
            return Reply(error=str(error))
        own = [row[token] for row, token in zip(rows, continuation, strict=True)]
        greedy = all(value >= max(row.values()) for row, value in zip(rows, own, strict=True))
        return Reply(Likelihood(sum(own), len(own), greedy))

    def _split(self, question: Question) -> tuple[list[int], list[int]]:
        """Prompt and continuation as tokens; a plain text is encoded together with what follows it."""
        prompt = self._encoded(question.prompt)
        alone = self._wire.tokenize(question.continuation, special=False)
        if question.prompt.messages:
            return prompt, alone
        whole = self._wire.tokenize(question.prompt.text + question.continuation, special=True)
        return (prompt, whole[len(prompt) :]) if whole[: len(prompt)] == prompt else (prompt, alone)

    def _encoded(self, prompt: Prompt) -> list[int]:
        return self._wire.tokenize_chat(prompt) if prompt.messages else self._wire.tokenize(prompt.text, special=True)


def _tokens(answer: Any) -> list[int]:
    found = answer.get("tokens") if isinstance(answer, dict) else None
    if not isinstance(found, list) or not all(isinstance(token, int) for token in found):
        raise RefusedError("the engine does not say how it tokenises")
    return found
