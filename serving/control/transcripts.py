"""What a sampled request asked and what it got, out of its bytes. Pure.

Owns: reading bodies and answers of the chat, completions, responses and messages APIs, whole or as a stream of events,
also where they are cut. Never: I/O, judging either; what cannot be read is None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from registry.samples import Turn

Json = dict[str, Any]
KEPT: Final = (
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "functions",
    "response_format",
    "text",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "stop",
    "stop_sequences",
    "seed",
    "n",
    "frequency_penalty",
    "presence_penalty",
    "reasoning_effort",
)
"""Fields of a request that shape its answer. Others are left out: `metadata` and `user` say who asked."""
TURNS_MAX: Final = 1000


class Asked(msgspec.Struct, frozen=True):
    """A request's body."""

    messages: tuple[Turn, ...]
    request: Json
    is_private: bool = False
    """The client said `"store": false`, in OpenAI's words."""


class Said(msgspec.Struct):
    """An answer's body. `output` is None where it could not be read."""

    output: str | None = None
    tool_calls: list[Json] = []
    mean_logprob: float | None = None


# --- requests ---


def asked(endpoint: str, body: bytes) -> Asked | None:
    """What a body asks; None where it cannot be read."""
    value = _object(body)
    read = _REQUESTS.get(endpoint)
    if value is None or read is None:
        return None
    turns = tuple(read(value))[:TURNS_MAX]
    kept = {name: value[name] for name in KEPT if value.get(name) is not None}
    return Asked(turns, kept, value.get("store") is False)


def _chat_turns(value: Json) -> Iterator[Turn]:
    for message in _dicts(value.get("messages")):
        yield Turn(str(message.get("role", "")), _with_calls(text_of(message.get("content")), message))


def _completion_turns(value: Json) -> Iterator[Turn]:
    prompt = value.get("prompt")
    parts = prompt if isinstance(prompt, list) else [prompt]
    texts = [part for part in parts if isinstance(part, str)]
    yield Turn("user", "\n".join(texts) if texts else "[tokens]")


def _response_turns(value: Json) -> Iterator[Turn]:
    if isinstance(value.get("instructions"), str):
        yield Turn("system", value["instructions"])
    given = value.get("input")
    if isinstance(given, str):
        yield Turn("user", given)
        return
    for item in _dicts(given):
        kind = item.get("type", "message")
        if kind == "message":
            yield Turn(str(item.get("role", "user")), text_of(item.get("content")))
        elif kind == "function_call":
            yield Turn("assistant", _call_text(item.get("name"), item.get("arguments")))
        elif kind == "function_call_output":
            yield Turn("tool", text_of(item.get("output")))
        else:
            yield Turn("assistant", f"[{kind}]")


def _message_turns(value: Json) -> Iterator[Turn]:
    if value.get("system"):
        yield Turn("system", text_of(value["system"]))
    yield from _chat_turns(value)


def text_of(content: Any) -> str:
    """A message's content as one text; parts that are none stand in it as `[image_url]`, …"""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for part in _dicts(content):
        kind = str(part.get("type", ""))
        if isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "tool_use":
            texts.append(_call_text(part.get("name"), part.get("input")))
        elif kind == "tool_result":
            texts.append(text_of(part.get("content")))
        elif kind:
            texts.append(f"[{kind[:32]}]")
    return "\n".join(texts)


def _with_calls(text: str, message: Json) -> str:
    calls = [_call_text(call["name"], call["arguments"]) for call in _calls_of(message)]
    return "\n".join(filter(None, [text, *calls]))


def _call_text(name: Any, arguments: Any) -> str:
    return f"[call {name} {_argument_text(arguments)}]"


_REQUESTS: Final[Mapping[str, Callable[[Json], Iterator[Turn]]]] = {
    "/v1/chat/completions": _chat_turns,
    "/v1/completions": _completion_turns,
    "/v1/responses": _response_turns,
    "/v1/messages": _message_turns,
}
ENDPOINTS: Final = frozenset(_REQUESTS)
"""Whose bodies and answers can be read."""


# --- answers ---


def said(endpoint: str, content_type: str, answer: bytes) -> Said:
    """What an answer says. Of a stream that was cut: what it says up to there."""
    if endpoint not in ENDPOINTS:
        return Said()
    if content_type.startswith("text/event-stream"):
        stream = _Stream()
        for event in events(answer):
            stream.note(event)
        return stream.said()
    value = _object(answer)
    return Said() if value is None else _whole(endpoint, value)


def events(data: bytes) -> Iterator[Json]:
    """The JSON objects of a stream's whole events; others are passed over."""
    text = data.decode("utf-8", errors="replace").replace("\r\n", "\n")
    for event in text.split("\n\n"):
        lines = [line[5:].strip() for line in event.split("\n") if line.startswith("data:")]
        value = _object("\n".join(lines).encode())
        if value is not None:
            yield value


def _whole(endpoint: str, value: Json) -> Said:
    if endpoint == "/v1/responses":
        return _response(value)
    if endpoint == "/v1/messages":
        blocks = _dicts(value.get("content"))
        texts = [str(block.get("text", "")) for block in blocks if block.get("type") == "text"]
        calls = [_call(block.get("name"), block.get("input")) for block in blocks if block.get("type") == "tool_use"]
        return Said("".join(texts), calls) if blocks or value.get("type") == "message" else Said()
    choice = next(iter(_dicts(value.get("choices"))), None)
    if choice is None:
        return Said()
    mean = _mean_logprob(choice.get("logprobs"))
    if isinstance(choice.get("text"), str):
        return Said(choice["text"], [], mean)
    message = choice.get("message")
    if not isinstance(message, dict):
        return Said()
    return Said(text_of(message.get("content") or message.get("refusal") or ""), _calls_of(message), mean)


def _response(value: Json) -> Said:
    found = Said()
    for item in _dicts(value.get("output")):
        if item.get("type") == "message":
            found.output = (found.output or "") + "".join(
                str(part.get("text") or part.get("refusal") or "") for part in _dicts(item.get("content"))
            )
        elif item.get("type") == "function_call":
            found.tool_calls.append(_call(item.get("name"), item.get("arguments")))
            found.output = found.output or ""
    return found


class _Stream:
    """Puts an answer together from its events, whichever API they are of. Of several choices the first counts."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._calls: dict[int, Json] = {}
        self._logprobs: list[float] = []
        self._final: Said | None = None
        self._any = False

    def note(self, value: Json) -> None:
        kind = value.get("type")
        if isinstance(kind, str) and kind:
            self._any = True
            self._note_typed(kind, value)
            return
        for choice in _dicts(value.get("choices")):
            self._any = True
            if choice.get("index"):
                continue
            self._logprobs += _logprobs(choice.get("logprobs"))
            if isinstance(choice.get("text"), str):
                self._texts.append(choice["text"])
            delta = choice.get("delta")
            if isinstance(delta, dict):
                self._texts.append(text_of(delta.get("content") or delta.get("refusal") or ""))
                for call in _dicts(delta.get("tool_calls")):
                    self._note_call(call)

    def _note_call(self, call: Json) -> None:
        function = call.get("function")
        if isinstance(function, dict):
            there = self._calls.setdefault(_whole_number(call.get("index")), {"name": "", "arguments": ""})
            there["name"] += str(function.get("name") or "")
            there["arguments"] += str(function.get("arguments") or "")

    def _note_typed(self, kind: str, value: Json) -> None:
        delta = value.get("delta")
        place = _whole_number(value.get("index", value.get("output_index")))
        if kind in ("response.output_text.delta", "response.refusal.delta") and isinstance(delta, str):
            self._texts.append(delta)
        elif kind == "response.output_item.done" and isinstance(value.get("item"), dict):
            item = value["item"]
            if item.get("type") == "function_call":
                self._calls[place] = _call(item.get("name"), item.get("arguments"))
        elif kind in ("response.completed", "response.incomplete") and isinstance(value.get("response"), dict):
            self._final = _response(value["response"])
        elif kind == "content_block_start" and isinstance(value.get("content_block"), dict):
            block = value["content_block"]
            if block.get("type") == "tool_use":
                self._calls[place] = {"name": str(block.get("name", "")), "arguments": ""}
        elif kind == "content_block_delta" and isinstance(delta, dict):
            self._texts.append(str(delta.get("text") or ""))
            if place in self._calls:
                self._calls[place]["arguments"] += str(delta.get("partial_json") or "")

    def said(self) -> Said:
        if self._final is not None and self._final.output is not None:
            return self._final
        mean = sum(self._logprobs) / len(self._logprobs) if self._logprobs else None
        calls = [self._calls[place] for place in sorted(self._calls)]
        return Said("".join(self._texts), calls, mean) if self._any else Said()


# --- small steps ---


def _calls_of(message: Json) -> list[Json]:
    """The tool calls of a message, as name and arguments; the older `function_call` too."""
    found = [call.get("function") for call in _dicts(message.get("tool_calls"))]
    found.append(message.get("function_call"))
    return [_call(one.get("name"), one.get("arguments")) for one in found if isinstance(one, dict)]


def _call(name: Any, arguments: Any) -> Json:
    return {"name": str(name or ""), "arguments": _argument_text(arguments)}


def _argument_text(arguments: Any) -> str:
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()


def _logprobs(value: Any) -> list[float]:
    """Log-probabilities of an answer's tokens, in the forms of chat and completions."""
    if not isinstance(value, dict):
        return []
    plain = value.get("token_logprobs")
    found = plain if isinstance(plain, list) else [one.get("logprob") for one in _dicts(value.get("content"))]
    return [float(one) for one in found if isinstance(one, int | float)]


def _mean_logprob(value: Any) -> float | None:
    found = _logprobs(value)
    return sum(found) / len(found) if found else None


def _whole_number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _dicts(value: Any) -> list[Json]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _object(data: bytes) -> Json | None:
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
