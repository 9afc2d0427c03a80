"""What an engine can do, found out by asking it.

Owns: the questions, and what counts as a yes. Never: assuming; an answer that does not come means no.

It asks for a handful of tokens; every question has its own deadline. Readiness is asked here too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import httpx
import msgspec

from serving.engines.base import Capabilities, Launch
from serving.engines.hosted_child import CAPABILITIES
from serving.engines.knock import handles, knock

READY_TIMEOUT_S: Final = 2.0
ASK_TIMEOUT_S: Final = 120.0
"""The first request of its kind may compile kernels: vLLM on a busy CPU took over 30 s."""
_WORDS: Final = "yes yes yes yes"
_NOT_AN_ENDPOINT: Final = frozenset((404, 405, 501))
_UNAUTHORIZED: Final = frozenset((401, 403))

Json = dict[str, Any]


class NotReadyError(Exception):
    """The engine did not say that it is ready; the text says what it did."""


async def ready(client: httpx.AsyncClient, launch: Launch) -> None:
    """Return where the engine answers its readiness probe. Raises NotReadyError."""
    said = "it has no readiness probe"
    for path in launch.ready_paths:
        try:
            status = await _status(client, launch.url + path, launch.headers)
        except (httpx.HTTPError, OSError) as error:
            raise NotReadyError(f"{launch.url}{path} does not answer: {error or type(error).__name__}") from None
        if 200 <= status < 300:
            return
        said = f"{launch.url}{path} answers {status}"
        if status in _UNAUTHORIZED:
            said += ": check its API key (`api_key_env:`)"
        if status not in _NOT_AN_ENDPOINT:
            break
    raise NotReadyError(said)


async def _status(client: httpx.AsyncClient, url: str, headers: Mapping[str, str]) -> int:
    if handles(url):
        return await knock(url, headers, READY_TIMEOUT_S)
    return (await client.get(url, headers=dict(headers), timeout=READY_TIMEOUT_S)).status_code


async def probe(client: httpx.AsyncClient, launch: Launch, kind: str, model: str) -> Capabilities:
    """Ask the engine what it can do. `model` is a name that it serves; "" takes the first one that it lists.

    1. Names and context: `/v1/models`; llama.cpp's `/props` for the slots.
    2. Chat with one token, streamed with `include_usage`: chat, and whether a chunk carried the usage.
    3. A completion of one token with `echo` and `logprobs`: completions, and whether the prompt's tokens came back.
    4. An embedding of one word.
    5. Two prefills, of one length and of twice it: continued if the first costs no more than that difference.
    6. Adapters, sleep mode and metrics by their endpoints.
    """
    asker = Asker(client, launch, kind)
    if kind == "hosted":  # it says what it can do: every question to its provider would cost money
        return await declared(asker)
    models = await asker.get("/v1/models")
    listed = [entry for entry in models.get("data", []) if isinstance(entry, dict)]
    names = tuple(str(entry.get("id", "")) for entry in listed)
    asker.model = model or next(iter(names), "")
    props = await asker.get("/props")
    chat, stream_usage = await asker.chat_stream()
    completions, prompt_logprobs = await asker.completion()
    lora_status = await asker.status("POST", "/v1/load_lora_adapter")
    return Capabilities(
        chat=chat,
        completions=completions,
        embeddings=await asker.embedding(),
        stream_usage=stream_usage,
        prompt_logprobs=prompt_logprobs,
        prefill=chat and await asker.prefill(),
        lora=bool(await asker.items("/lora-adapters")) or lora_status in (400, 422),
        sleep=await asker.status("GET", "/is_sleeping") == 200,
        metrics=await asker.status("GET", "/metrics") == 200,
        parallel_slots=_number(props.get("total_slots")),
        context_tokens=next((found for entry in listed if (found := _context(entry))), 0),
        model_names=names,
    )


async def declared(asker: Asker) -> Capabilities:
    """What a bridge to a hosted API says of itself; nothing where it does not answer."""
    try:
        return msgspec.convert(await asker.get(CAPABILITIES), Capabilities)
    except msgspec.ValidationError:
        return Capabilities()


class Asker:
    """One engine and how to ask it. An engine that fails to answer a question has not got what was asked for."""

    def __init__(self, client: httpx.AsyncClient, launch: Launch, kind: str) -> None:
        self._client = client
        self._launch = launch
        self._kind = kind
        self.model = ""

    async def request(self, method: str, path: str, body: Json | None = None) -> httpx.Response | None:
        try:
            return await self._client.request(
                method, self._launch.url + path, json=body, headers=dict(self._launch.headers), timeout=ASK_TIMEOUT_S
            )
        except httpx.HTTPError:
            return None

    async def status(self, method: str, path: str) -> int:
        answer = await self.request(method, path, {} if method == "POST" else None)
        return answer.status_code if answer is not None else 0

    async def get(self, path: str) -> Json:
        return _object(await self.request("GET", path))

    async def items(self, path: str) -> list[Any]:
        answer = await self.request("GET", path)
        value = _json(answer) if answer is not None and answer.is_success else None
        return value if isinstance(value, list) else []

    async def chat(self, messages: list[Json], **options: Any) -> httpx.Response | None:
        body = {"model": self.model, "messages": messages, "max_tokens": 1} | options
        return await self.request("POST", "/v1/chat/completions", body)

    async def chat_stream(self) -> tuple[bool, bool]:
        """Whether it chats, and whether it streams usage when asked to."""
        messages = [{"role": "user", "content": "Hi"}]
        answer = await self.chat(messages, stream=True, stream_options={"include_usage": True})
        if answer is None or not answer.is_success:
            answer = await self.chat(messages)
            return answer is not None and answer.is_success, False
        events = [line.removeprefix("data:").strip() for line in answer.text.splitlines() if line.startswith("data:")]
        return True, any(isinstance(_parsed(event), dict) and _parsed(event).get("usage") for event in events)

    async def completion(self) -> tuple[bool, bool]:
        """Whether it completes text, and whether it returns log-probabilities of the prompt."""
        plain = {"model": self.model, "prompt": "one two three", "max_tokens": 1}
        answer = await self.request("POST", "/v1/completions", plain | {"echo": True, "logprobs": 1})
        if answer is None or not answer.is_success:
            answer = await self.request("POST", "/v1/completions", plain)
            return answer is not None and answer.is_success, False
        value = _object(answer)
        choices = value.get("choices") or [{}]
        found = (choices[0].get("logprobs") or {}).get("token_logprobs") or []
        return True, len(found) > 1 and len(found) >= _number((value.get("usage") or {}).get("prompt_tokens"))

    async def embedding(self) -> bool:
        value = _object(await self.request("POST", "/v1/embeddings", {"model": self.model, "input": "one"}))
        return bool(value.get("data"))

    async def prefill(self) -> bool:
        bare = await self._prompt_tokens("")
        short = await self._prompt_tokens(_WORDS)
        long = await self._prompt_tokens(f"{_WORDS} {_WORDS}")
        return 0 < bare < short < long and short - bare <= long - short + 1

    async def _prompt_tokens(self, prefilled: str) -> int:
        """How long a prompt gets with this prefill: one that is not continued adds the ends of two turns."""
        messages = [{"role": "user", "content": "Hi"}]
        options: Json = {}
        if prefilled:
            messages.append({"role": "assistant", "content": prefilled})
            if self._kind == "vllm":
                options = {"continue_final_message": True, "add_generation_prompt": False}
        value = _object(await self.chat(messages, **options))
        return _number((value.get("usage") or {}).get("prompt_tokens"))


def _object(answer: httpx.Response | None) -> Json:
    value = _json(answer) if answer is not None and answer.is_success else None
    return value if isinstance(value, dict) else {}


def _json(answer: httpx.Response) -> Any:
    return _parsed(answer.text)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _context(entry: Json) -> int:
    """Tokens of one request: vLLM's `max_model_len`, llama.cpp's `meta.n_ctx` (already divided by its slots)."""
    meta = entry.get("meta")
    return _number(entry.get("max_model_len")) or _number(meta.get("n_ctx") if isinstance(meta, dict) else None)
