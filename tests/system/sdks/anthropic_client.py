"""The anthropic SDK against a router: python anthropic_client.py URL; prints what it saw as one JSON object."""

from __future__ import annotations

import json
import sys
from typing import Any

import anthropic

MESSAGES: Any = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY: Any = {"extra_body": {"temperature": 0}}
TOOL: Any = {
    "name": "look_up",
    "description": "Looks up a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def calls() -> Any:
    """A conversation in which the model has looked up cities, and is asked for one more."""
    messages: list[Any] = []
    for number, city in enumerate(("Rome", "Berlin", "Madrid")):
        use = {"type": "tool_use", "id": f"c{number}", "name": "look_up", "input": {"city": city}}
        result = {"type": "tool_result", "tool_use_id": f"c{number}", "content": "ok"}
        messages += [
            {"role": "user", "content": f"Look up {city}"},
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": [result]},
            {"role": "assistant", "content": "ok"},
        ]
    return [*messages, {"role": "user", "content": "Look up Paris"}]


def failure(client: anthropic.Anthropic, model: Any) -> list[Any]:
    try:
        client.messages.create(model=model, max_tokens=4, messages=MESSAGES)
    except anthropic.APIStatusError as error:
        body: Any = error.body
        return [type(error).__name__, error.status_code, body["error"]["type"], body["error"]["message"]]
    return []


def main(url: str) -> None:
    seen: dict[str, Any] = {}
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        message = client.messages.create(model="assistant", max_tokens=12, messages=MESSAGES, **GREEDY)
        seen["message"] = {
            "text": message.content[0].text,
            "stop": message.stop_reason,
            "usage": message.usage.to_dict(),
        }
        with client.messages.stream(model="assistant", max_tokens=12, messages=MESSAGES, **GREEDY) as stream:
            seen["stream"] = "".join(stream.text_stream)
            seen["stream_usage"] = stream.get_final_message().usage.to_dict()
        seen["count"] = client.messages.count_tokens(model="assistant", messages=MESSAGES).input_tokens
        asked: Any = {"model": "assistant", "max_tokens": 60, "messages": calls(), "tools": [TOOL], **GREEDY}
        called = client.messages.create(**asked)
        seen["tools"] = [called.stop_reason, [block.input for block in called.content if block.type == "tool_use"]]
        with client.messages.stream(**asked) as stream:
            final = stream.get_final_message()
        seen["tool_usage"] = [called.usage.to_dict(), final.usage.to_dict()]
        seen["streamed_tools"] = [final.stop_reason, [one.input for one in final.content if one.type == "tool_use"]]
        seen["unknown"] = failure(client, "nobody")
        seen["wrong"] = failure(client, 3)
        seen["models"] = [model.id for model in client.models.list()]
    print(json.dumps(seen))


main(sys.argv[1])
