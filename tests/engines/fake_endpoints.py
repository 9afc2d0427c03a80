"""What the fake engine says at endpoints other than chat, completions and embeddings, in each API's own form.

Owns: whole answers and the events of streams, by path. Never: I/O, misbehaving (that is the fake engine's).
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

Json = dict[str, Any]
TYPED = ("/v1/responses", "/v1/messages")
"""Endpoints whose streams consist of events that name their type."""
PLAIN = (
    "/v1/embeddings",
    "/v1/messages/count_tokens",
    "/v1/rerank",
    "/v1/score",
    "/tokenize",
    "/detokenize",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/audio/speech",
)
"""Endpoints with one whole answer."""


def usage_of(path: str, prompt: int, completion: int) -> Json:
    """Usage in an API's words. Of a prompt for the messages API, one token is said to come from the cache."""
    if path == "/v1/messages":
        cached = min(prompt, 1)
        return {"input_tokens": prompt - cached, "cache_read_input_tokens": cached, "output_tokens": completion}
    return {"input_tokens": prompt, "output_tokens": completion, "total_tokens": prompt + completion}


def plain(path: str, model: str, prompt: int, raw: bytes) -> Json | bytes:
    """The answer of a plain endpoint; bytes for one that is no JSON. What depends on the body comes from its hash."""
    digest = hashlib.sha256(raw).digest()
    if path == "/v1/embeddings":
        vector = {"object": "embedding", "index": 0, "embedding": [0.6, 0.8]}
        usage = {"prompt_tokens": prompt, "completion_tokens": 0, "total_tokens": prompt}
        return {"object": "list", "model": model, "data": [vector], "usage": usage}
    if path == "/v1/audio/speech":
        return b"ID3\x00\xff\xfb" + digest * 4096
    if path.startswith("/v1/audio/"):
        return {"text": digest.hex(), "usage": {"type": "tokens", "input_tokens": 9, "output_tokens": 2}}
    if path in {"/v1/rerank", "/v1/score"}:
        scores = [{"index": index, "relevance_score": digest[index] / 255} for index in range(3)]
        return {"results": scores, "usage": {"total_tokens": prompt}}
    if path == "/detokenize":
        return {"content": digest.hex()}
    words = str(json.loads(raw).get("content", "")).split()
    return {"tokens": list(digest)[: len(words)]} if path == "/tokenize" else {"input_tokens": prompt}


def whole(path: str, model: str, text: str, finish: str, usage: Json) -> Json:
    """An answer of the responses or messages API that is not streamed."""
    if path == "/v1/messages":
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "stop_sequence": None}
        reason = "end_turn" if finish == "stop" else "max_tokens"
        return {**message, "content": [{"type": "text", "text": text}], "stop_reason": reason, "usage": usage}
    item = {"type": "message", "id": "m1", "role": "assistant", "status": "completed"}
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    answer: Json = {"id": "resp_1", "object": "response", "created_at": 1, "model": model, "usage": usage}
    answer |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "output": [{**item, "content": [part]}]}
    if finish == "stop":
        return {**answer, "status": "completed"}
    return {**answer, "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}


def opening(path: str, model: str, usage: Json) -> list[Json]:
    """The events before the first text."""
    if path == "/v1/messages":
        message = whole(path, model, "", "stop", {**usage, "output_tokens": 0})
        message |= {"content": [], "stop_reason": None}
        block = {"type": "text", "text": ""}
        return [
            {"type": "message_start", "message": message},
            {"type": "content_block_start", "index": 0, "content_block": block},
        ]
    response = {"id": "resp_1", "object": "response", "status": "in_progress", "output": []}
    return [{"type": "response.created", "response": response}, {"type": "response.in_progress", "response": response}]


def delta(path: str, text: str) -> Json:
    """The event of one token."""
    if path == "/v1/messages":
        return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    return {"type": "response.output_text.delta", "item_id": "m1", "output_index": 0, "content_index": 0, "delta": text}


def ending(path: str, model: str, text: str, finish: str, usage: Json) -> list[Json]:
    """The events behind the last text."""
    answer = whole(path, model, text, finish, usage)
    if path == "/v1/messages":
        said = {"stop_reason": answer["stop_reason"], "stop_sequence": None}
        output = {"output_tokens": usage["output_tokens"]}
        return [
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": said, "usage": output},
            {"type": "message_stop"},
        ]
    return [
        {"type": "response.output_text.done", "item_id": "m1", "output_index": 0, "content_index": 0, "text": text},
        {"type": f"response.{answer['status']}", "response": answer},
    ]
