"""A stream that was cut goes on from another replica: what it had said, the request that continues it, and the new
stream made to look like the old one's rest.

Owns: those three. Never: I/O, choosing replicas, deciding that a stream was cut.

The partial text is sent as the beginning of the assistant's turn (prefill). White space at its end is left out, because
templates trim it, and is taken off the front of what comes back: the text is neither doubled nor lost. Token counts add
up exactly where the engine counts the partial text's tokens for us (`/tokenize`); else every event counts as one token.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

RAW_BYTES_MAX: Final = 32 * 1024
"""Raw events are kept up to this size, then only their text is."""
TEXT_CHARS_MAX: Final = 4 * 1024 * 1024
CHAT: Final = "/v1/chat/completions"
_TEXT_ONLY: Final = ({"type": "text"}, None)
_FORBIDDEN: Final = frozenset(
    {
        "tools",
        "functions",
        "logprobs",
        "top_logprobs",
        "echo",
        "suffix",
        "grammar",
        "json_schema",
        "structured_outputs",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "audio",
    }
)
"""A request with one of these cannot be continued by text alone: a grammar would begin anew, log-probabilities are of
tokens that the next replica does not choose."""
_LENGTHS: Final = ("max_tokens", "max_completion_tokens", "n_predict")
_KEPT: Final = ("id", "created", "model", "system_fingerprint", "object")
_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode

Json = dict[str, Any]


class Partial:
    """What one stream has said so far, from the events that went to the client."""

    __slots__ = ("_raw", "_raw_bytes", "_texts", "events", "head", "unfit")

    def __init__(self) -> None:
        self._raw: list[bytes] = []
        self._raw_bytes = 0
        self._texts: list[str] = []
        self.events = 0
        self.head: Json = {}
        """What every chunk of this stream repeats: its id, time and model."""
        self.unfit = False
        """Something that text alone cannot continue has been said (reasoning, a tool call, a second choice)."""

    def add(self, data: bytes) -> None:
        """Some whole events."""
        self._raw.append(data)
        self._raw_bytes += len(data)
        if self._raw_bytes > RAW_BYTES_MAX:
            self._read()

    @property
    def text(self) -> str:
        """All text so far."""
        self._read()
        if len(self._texts) > 1:
            self._texts = ["".join(self._texts)]
        return self._texts[0] if self._texts else ""

    def _read(self) -> None:
        raw, self._raw, self._raw_bytes = b"".join(self._raw), [], 0
        for event in raw.replace(b"\r\n", b"\n").split(b"\n\n"):
            value = payload_of(event)
            if value is not None:
                self._note(value)
        if sum(map(len, self._texts)) > TEXT_CHARS_MAX:
            self.unfit = True
            self._texts = []

    def _note(self, value: Json) -> None:
        if not self.head:
            self.head = {name: value[name] for name in _KEPT if name in value}
        for choice in value.get("choices") or ():
            delta = choice.get("delta") or {}
            if choice.get("index") or any(
                delta.get(name) for name in ("tool_calls", "function_call", "reasoning", "reasoning_content", "refusal")
            ):
                self.unfit = True
            said = delta.get("content") if "delta" in choice else choice.get("text")
            if isinstance(said, str) and said:
                self._texts.append(said)
                self.events += 1


def payload_of(event: bytes) -> Json | None:
    """The JSON object of one event; None where it carries none (`[DONE]`, a comment, something malformed)."""
    start = event.find(b"data:")
    if start < 0:
        return None
    try:
        value = _decode(event[start + 5 :].strip())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


class Resumption:
    """How one cut stream goes on. Made by `resume`; used up by one attempt."""

    __slots__ = ("_body", "_head", "_seam", "_spent", "_tail", "endpoint", "prefill", "tokens")

    def __init__(self, body: Json, endpoint: str, partial: Partial) -> None:
        text = partial.text
        self._body = body
        self._head = partial.head
        self._tail = b""
        self._spent = False
        self.endpoint = endpoint
        self.prefill = text.rstrip()
        """What the next replica goes on from."""
        self._seam = text[len(self.prefill) :]
        """White space that the client has and the prefill has not."""
        self.tokens = max(0, partial.events - (1 if self._seam else 0))
        """Tokens of the prefill: its events until `counted` says better."""

    def counting_body(self, model: str) -> bytes:
        """A request to `/tokenize` that llama.cpp and vLLM both understand."""
        return _encode(
            {
                "model": model,
                "content": self.prefill,
                "prompt": self.prefill,
                "add_special": False,
                "add_special_tokens": False,
            }
        )

    def counted(self, answer: bytes) -> None:
        """Take over the engine's count of the prefill's tokens, where its answer has one."""
        try:
            value = _decode(answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        if not isinstance(value, dict):
            return
        tokens, count = value.get("tokens"), value.get("count")
        if isinstance(count, int) and count > 0:
            self.tokens = count
        elif isinstance(tokens, list) and tokens:
            self.tokens = len(tokens)

    def body(self, model: str) -> bytes:
        """The request that continues the stream, for an engine that knows the model as `model`."""
        body = dict(self._body)
        body["model"] = model
        body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        for name in _LENGTHS:
            if isinstance(body.get(name), int) and body[name] > 0:
                self._spent = body[name] <= self.tokens
                body[name] = max(1, body[name] - self.tokens)
        if self.endpoint == CHAT:
            body["messages"] = _with_prefill(body["messages"], self.prefill)
            body["continue_final_message"] = True
            body["add_generation_prompt"] = False
        else:
            body["prompt"] = f"{body['prompt']}{self.prefill}"
        return _encode(body)

    def rewrite(self, data: bytes) -> bytes:
        """The whole events of `data`, each as if the first stream had sent it; "" where there are none yet."""
        data = self._tail + data.replace(b"\r\n", b"\n")
        cut = data.rfind(b"\n\n") + 2
        cut = cut if cut >= 2 else 0
        self._tail = data[cut:]
        return b"".join(filter(None, (self._event(event) for event in data[:cut].split(b"\n\n"))))

    def _event(self, event: bytes) -> bytes:
        if not event:
            return b""
        value = payload_of(event)
        if value is None or "error" in value:
            return event + b"\n\n"
        choices = [choice for choice in value.get("choices") or () if self._choice(choice)]
        usage = value.get("usage")
        if not choices and not usage:
            return b""
        value["choices"] = choices
        if usage:
            self._add_up(usage)
        value.pop("timings", None)  # of the last part alone
        value.update(self._head)
        return b"data: " + _encode(value) + b"\n\n"

    def _choice(self, choice: Json) -> bool:
        """Make one choice the rest of the first stream's; whether anything of it is left."""
        place = choice.get("delta") if "delta" in choice else choice
        name = "content" if "delta" in choice else "text"
        if not isinstance(place, dict):
            return bool(choice.get("finish_reason"))
        if "delta" in choice:
            place.pop("role", None)
        said = place.get(name)
        if isinstance(said, str):
            said = "" if self._spent else self._without_seam(said)
            place[name] = said
        if not said and "delta" in choice:
            place.pop(name, None)
        if choice.get("finish_reason") and self._spent:
            choice["finish_reason"] = "length"
        return bool(choice.get("finish_reason")) or any(value for key, value in place.items() if key not in _FRAME)

    def _without_seam(self, said: str) -> str:
        """What is said less the white space that the client already has."""
        seam, at = self._seam, 0
        while at < len(seam) and at < len(said) and seam[at] == said[at]:
            at += 1
        self._seam = seam[at:] if at == len(said) else ""
        return said[at:]

    def _add_up(self, usage: Json) -> None:
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not isinstance(prompt, int) or not isinstance(completion, int):
            return
        usage["prompt_tokens"] = max(0, prompt - self.tokens)
        usage["completion_tokens"] = self.tokens + (0 if self._spent else completion)
        usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict) and isinstance(details.get("cached_tokens"), int):
            details["cached_tokens"] = min(details["cached_tokens"], usage["prompt_tokens"])


_FRAME: Final = frozenset({"index", "finish_reason", "logprobs"})


def resume(body: bytes, endpoint: str, partial: Partial) -> Resumption | None:
    """How a stream that said `partial` in answer to `body` goes on; None where text alone cannot continue it."""
    text = partial.text
    if partial.unfit or not text.strip():
        return None
    value: Json = _decode(body)
    asks = any(value.get(name) for name in _FORBIDDEN)
    if asks or (value.get("n") or 1) != 1 or (value.get("best_of") or 1) != 1:
        return None
    if value.get("response_format") not in _TEXT_ONLY:
        return None
    return Resumption(value, endpoint, partial) if _takes_prefill(value, endpoint) else None


def _takes_prefill(body: Json, endpoint: str) -> bool:
    """Whether text can be put at the end of what the request asks to be continued."""
    if endpoint != CHAT:
        return isinstance(body.get("prompt"), str)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        return False
    return messages[-1].get("role") != "assistant" or isinstance(messages[-1].get("content"), str)


def _with_prefill(messages: list[Json], prefill: str) -> list[Json]:
    """The messages with the assistant's turn begun; where the client began it itself, it goes on from there."""
    last = messages[-1]
    if last.get("role") == "assistant":
        return [*messages[:-1], {**last, "content": f"{last['content']}{prefill}"}]
    return [*messages, {"role": "assistant", "content": prefill}]
