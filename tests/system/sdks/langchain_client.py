"""LangChain's ChatOpenAI against a router: python langchain_client.py URL CALLS.json; prints what it saw as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from itertools import accumulate
from operator import add
from pathlib import Path
from typing import Any

from langchain_core.messages import convert_to_messages
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel


class Place(BaseModel):
    """A city."""

    city: str


SCHEMA: Any = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
LOOK_UP: Any = {
    "type": "function",
    "function": {"name": "look_up", "description": "Looks up a city", "parameters": SCHEMA},
}


def main(url: str) -> None:
    seen: dict[str, Any] = {}
    place: Any = {"base_url": f"{url}/v1", "api_key": "none"}
    options: Any = {**place, "model": "assistant", "temperature": 0, "max_retries": 0}
    chat = ChatOpenAI(**options, max_tokens=12)
    answer = chat.invoke("What is the capital of France?")
    seen["invoke"] = {
        "text": answer.text,
        "usage": answer.usage_metadata,
        "model": answer.response_metadata["model_name"],
    }
    chunks = list(chat.stream("What is the capital of France?"))
    seen["stream"] = {"text": "".join(chunk.text for chunk in chunks), "chunks": len(chunks)}
    *_, whole = accumulate(ChatOpenAI(**options, max_tokens=12, stream_usage=True).stream("What is the capital?"), add)
    seen["stream_usage"] = whole.usage_metadata
    seen["batch"] = [one.text for one in asyncio.run(chat.abatch(["One, two,", "A, b,"]))]
    longer = ChatOpenAI(**options, max_tokens=60)
    calls = convert_to_messages(json.loads(Path(sys.argv[2]).read_text()))
    bound = longer.bind_tools([LOOK_UP])
    seen["tools"] = [[call["name"], call["args"]] for call in bound.invoke(calls).tool_calls]
    *_, last = accumulate(bound.stream(calls), add)
    seen["streamed_tools"] = [[call["name"], call["args"]] for call in last.tool_calls]
    structured: Any = longer.with_structured_output(Place, method="json_schema").invoke("The capital of France?")
    seen["structured"] = structured.model_dump()
    embeddings = OpenAIEmbeddings(**place, model="embedder", check_embedding_ctx_length=False)
    seen["embeddings"] = [len(vector) for vector in embeddings.embed_documents(["one", "two"])]
    print(json.dumps(seen))


main(sys.argv[1])
