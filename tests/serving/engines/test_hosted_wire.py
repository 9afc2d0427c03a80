"""What the bridge to a hosted API takes and gives, without LiteLLM: its exceptions are stood in for by their shape."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engines.hosted_child import Discreet, hidden
from serving.engines.hosted_wire import (
    CHAT,
    COMPLETION,
    EMBEDDING,
    Cut,
    Refused,
    arguments,
    capabilities,
    refusal,
    tidy,
)

OPTIONS: dict[str, Any] = {
    "ref": "assistant@cloud",
    "model": "openai/gpt-4o-mini",
    "engine_args": {},
    "sampling": {},
    "api_base": "https://provider.example/v1",
    "key_variable": "PROVIDER_KEY",
}
MESSAGES = [{"role": "user", "content": "hi"}]
OURS = {"model", "timeout", "max_retries", "num_retries", "drop_params", "api_key", "api_base"}
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=4)
TEMPTING = (
    *("api_base", "api_key", "base_url", "model", "extra_headers", "headers", "mock_response", "fallbacks", "timeout"),
    *("custom_llm_provider", "num_retries", "max_retries", "metadata", "litellm_params", "model_list", "callbacks"),
    *("ssl_verify", "api_version", "organization", "_skip_mcp_handler"),
)


class ApiError(Exception):
    """As LiteLLM and the OpenAI package shape theirs."""

    def __init__(self, text: str = "", *, status: int = 0, body: Any = None, headers: dict[str, str] | None = None):
        super().__init__(text)
        self.status_code = status or None
        self.body = body
        self.response = type("Response", (), {"headers": headers or {}})()


def named(name: str, **fields: Any) -> Exception:
    return type(name, (ApiError,), {})(f"litellm.{name}: {name}: what the provider said", **fields)


@given(st.dictionaries(st.sampled_from(TEMPTING) | st.text(), JSON, max_size=6), st.sampled_from((CHAT, EMBEDDING)))
def test_nothing_of_a_client_chooses_where_a_request_goes(extra: dict[str, Any], known: frozenset[str]) -> None:
    """Every field that reaches LiteLLM is one of OpenAI's, or ours with our value."""
    body = extra | {"messages": MESSAGES, "stream": False, "stream_options": None, "tools": None}
    found = arguments(json.dumps(body).encode(), known, OPTIONS, "the-key")
    assert set(found) - OURS <= known
    assert (found["api_key"], found["api_base"]) == ("the-key", OPTIONS["api_base"])
    assert (found["model"], found["max_retries"], found["num_retries"]) == (OPTIONS["model"], 0, 0)


def test_the_versions_settings_and_sampling_defaults_apply() -> None:
    options = OPTIONS | {
        "sampling": {"temperature": 0.2, "max_tokens": 9},
        "engine_args": {"timeout_s": 5, "drop_params": True, "api_version": "v", "context_tokens": 7},
        "api_base": "",
    }
    found = arguments(json.dumps({"messages": MESSAGES, "temperature": 1}).encode(), CHAT, options, "")
    assert found == {
        "messages": MESSAGES,
        "temperature": 1,
        "max_tokens": 9,
        "model": "openai/gpt-4o-mini",
        "timeout": 5.0,
        "max_retries": 0,
        "num_retries": 0,
        "drop_params": True,
        "api_version": "v",
    }
    assert "max_tokens" not in arguments(b'{"input": "x"}', EMBEDDING, options, "")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b"[" * 100_000, None),
        (b'{"messages": []}', "messages"),
        (b'{"messages": ["x"]}', "messages"),
        (b'{"messages": [{"content": "x"}]}', "messages"),
        (b'{"messages": [{"role": "user", "content": 5}]}', "messages"),
        (b'{"stream": 1}', "stream"),
        (b'{"stream_options": 1}', "stream_options"),
        (b'{"tools": {}}', "tools"),
        (b'{"tools": [{"type": "mcp", "server_url": "http://169.254.169.254/mcp/x"}]}', "tools"),
    ],
)
def test_a_clients_mistake_is_a_400_before_anything_is_asked(body: bytes, param: str | None) -> None:
    with pytest.raises(Refused) as refused:
        arguments(body, CHAT, OPTIONS, "k")
    assert (refused.value.status, refused.value.error["param"]) == (400, param)
    assert refused.value.error["type"] == "invalid_request_error"


def chained(outer: Exception, *inner: Exception) -> Exception:
    for one, cause in zip((outer, *inner), inner, strict=False):
        one.__cause__ = cause
    return outer


def test_the_providers_own_error_goes_on_with_its_status_code_and_retry_after() -> None:
    body = {"message": "slow down", "type": "tokens", "param": None, "code": "rate_limit_exceeded"}
    origin = named("Origin", status=429, body={"error": body}, headers={"retry-after": "7"})
    found = refusal(chained(named("RateLimitError", status=429), origin), OPTIONS)
    assert (found.status, found.error, found.retry_after) == (429, body, "7")


@pytest.mark.parametrize("value", ["", "7\r\nx: y", "sieben€"])
def test_a_retry_after_that_is_no_header_stays_out(value: str) -> None:
    error = named("RateLimitError", status=429, headers={"retry-after": value})
    assert refusal(error, OPTIONS).retry_after == ""


@pytest.mark.parametrize("code", ["content_filter", "content_policy_violation"])
def test_reasons_of_a_content_filter_go_on(code: str) -> None:
    body = {
        "message": "no",
        "type": "content_filter",
        "code": code,
        "innererror": {"content_filter_result": {"hate": 1}},
    }
    found = refusal(named("ContentPolicyViolationError", status=400, body=body), OPTIONS)
    assert (found.status, found.error["code"], found.error["type"]) == (400, code, "content_filter")
    assert found.error["innererror"] == body["innererror"]


def test_a_long_context_has_one_code_whatever_the_provider_calls_it() -> None:
    body = {"message": "prompt is too long", "type": "invalid_request_error", "code": "string_above_max_length"}
    found = refusal(named("ContextWindowExceededError", status=400, body=body), OPTIONS)
    assert (found.status, found.error["code"], found.error["message"]) == (
        400,
        "context_length_exceeded",
        "prompt is too long",
    )
    bare = refusal(named("ContextWindowExceededError", status=400), OPTIONS)
    assert bare.error["code"] == "context_length_exceeded"
    assert bare.error["message"] == "what the provider said"


@pytest.mark.parametrize("status", [401, 402, 403])
def test_a_refused_key_names_the_variable_and_is_no_fault_of_the_client(status: int) -> None:
    body = {"message": "Incorrect API key provided: sk-123", "code": "invalid_api_key"}
    found = refusal(named("AuthenticationError", status=status, body=body), OPTIONS)
    assert (found.status, found.error["code"]) == (502, "provider_refused_key")
    assert "PROVIDER_KEY" in found.error["message"]
    assert "sk-123" not in found.error["message"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (named("Timeout", status=408), 504, "provider_timeout"),
        (named("APIConnectionError", status=500), 502, "provider_unreachable"),
        (chained(named("InternalServerError", status=500), type("ReadError", (OSError,), {})()), 500, "provider_error"),
        (named("NotFoundError", status=404), 502, "provider_model_not_found"),
        (named("ServiceUnavailableError", status=503, body={"message": "busy", "code": "x"}), 503, "x"),
        (KeyError("choices"), 502, "provider_unreachable"),
        (chained(named("MidStreamFallbackError", status=500), Cut()), 502, "stream_truncated"),
        (named("UnsupportedParamsError", status=400), 400, "unsupported_parameter"),
    ],
)
def test_every_other_failure_is_an_openai_error(error: Exception, status: int, code: str) -> None:
    found = refusal(error, OPTIONS)
    assert (found.status, found.error["code"]) == (status, code)
    assert set(found.error) == {"message", "type", "param", "code"}


def test_a_circle_of_causes_ends() -> None:
    first, second = KeyError("a"), KeyError("b")
    first.__cause__, second.__cause__ = second, first
    assert refusal(first, OPTIONS).status == 502


def test_answers_lose_what_litellm_added() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": None, "provider_specific_fields": {"refusal": None}}
    usage = {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "prompt_tokens_details": None,
        "cost": 2.8e-06,
    }
    whole = {"id": "x", "system_fingerprint": None, "choices": [{"index": 0, "message": message}], "usage": usage}
    assert tidy(whole) == {
        "id": "x",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": None}, "finish_reason": None}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    }
    empty = {"index": 0, "delta": {"content": None, "role": None}, "finish_reason": None}
    assert tidy({"choices": [empty], "usage": usage})["choices"] == [], "OpenAI's chunk with the usage"
    assert tidy({"choices": [empty]})["choices"] == [{"index": 0, "delta": {}, "finish_reason": None}]
    zeros = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    text = {"index": 0, "text": None, "finish_reason": None}
    assert tidy({"choices": [text], "usage": zeros}) == {"choices": [text | {"text": ""}]}


def test_capabilities_are_declared_from_the_local_price_map() -> None:
    costs = {"gpt-4o-mini": {"mode": "chat", "max_input_tokens": 128_000, "input_cost_per_token": 1.5e-07}}
    found = capabilities(OPTIONS, costs)
    assert (found["chat"], found["embeddings"], found["stream_usage"]) == (True, False, True)
    assert (found["context_tokens"], found["input_price_per_million"]) == (128_000, pytest.approx(0.15))
    unknown = OPTIONS | {"model": "openai/own", "engine_args": {"mode": "embedding", "input_price_per_million": 2}}
    found = capabilities(unknown, costs)
    assert (found["chat"], found["embeddings"], found["context_tokens"]) == (False, True, 0)
    assert (found["input_price_per_million"], found["output_price_per_million"]) == (2.0, 0.0)


@given(st.text(), st.text(min_size=1), st.text())
def test_no_output_shows_the_key(before: str, key: str, after: str) -> None:
    assert hidden(before, "") == before
    stream = io.StringIO()
    Discreet(stream, "sk-key-1").write(f"{before}sk-key-1{after}")
    assert "sk-key-1" not in stream.getvalue()


def test_completions_know_their_own_fields() -> None:
    found = arguments(b'{"prompt": "x", "echo": true, "messages": "no"}', COMPLETION, OPTIONS, "")
    assert (found["prompt"], found["echo"]) == ("x", True)
    assert "messages" not in found
