"""What the bridge to a hosted API takes and gives: OpenAI's requests, errors and answers, and LiteLLM's.

Owns: which of a client's fields reach LiteLLM, what a client is told of a failed call, the shape of answers, the
declared capabilities. Never: I/O, importing the project or LiteLLM (the bridge's environment is its own).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

TIMEOUT_S: Final = 600.0

# fmt: off
_BOTH: Final = frozenset((
    "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n", "presence_penalty", "seed", "stop", "stream",
    "stream_options", "temperature", "top_p", "user",
))
CHAT: Final = _BOTH | {
    "audio", "function_call", "functions", "max_completion_tokens", "messages", "modalities", "parallel_tool_calls",
    "prediction", "reasoning_effort", "response_format", "service_tier", "tool_choice", "tools", "top_logprobs",
    "verbosity", "web_search_options",
}
# fmt: on
COMPLETION: Final = _BOTH | {"best_of", "echo", "prompt", "suffix"}
EMBEDDING: Final = frozenset(("dimensions", "encoding_format", "input", "user"))
"""Fields of OpenAI's requests that go to LiteLLM. Others are an engine's own, or LiteLLM's own, and would let a client
choose where the key is sent: they are left out."""
TOOLS: Final = ("function", "custom")

Json = dict[str, Any]


class Refused(Exception):  # noqa: N818 - it is an answer, not a fault
    """An answer with an error: the status, OpenAI's error object, and how long the provider asks to wait."""

    def __init__(self, status: int, error: Json, retry_after: str = "") -> None:
        super().__init__(error.get("message", ""))
        self.status = status
        self.error = error
        self.retry_after = retry_after


def passage(key: str) -> str:
    """The Authorization header without which a bridge asks its provider nothing: whoever else reaches its port (another
    user of the machine, a page in a browser) must not spend money. Made of the key, so that a new control plane knows
    it; the key cannot be had from it. "" where there is no key."""
    return f"Bearer {hashlib.sha256(b'modelyard bridge' + key.encode()).hexdigest()}" if key else ""


class Cut(Exception):  # noqa: N818 - it is what happened
    """The provider ended a stream without saying how."""


def error_object(message: str, kind: str, code: Any, param: Any = None) -> Json:
    return {"message": message, "type": kind, "param": param, "code": code}


def bad_request(message: str, param: str | None = None) -> Refused:
    return Refused(400, error_object(message, "invalid_request_error", "invalid_value", param))


# --- a client's request into LiteLLM's arguments ---


def arguments(raw: bytes, known: frozenset[str], options: Json, key: str) -> Json:
    """What LiteLLM is called with for a body. Raises Refused (400)."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise bad_request("The body is not valid JSON.") from None
    if not isinstance(body, dict):
        raise bad_request("The body must be a JSON object.")
    given = {name: value for name, value in body.items() if name in known and value is not None}
    _check(given)
    defaults = {name: value for name, value in options["sampling"].items() if name in known}
    settings = options["engine_args"]
    found = {
        **defaults,
        **given,
        "model": options["model"],
        "timeout": float(settings.get("timeout_s", TIMEOUT_S)),
        "max_retries": 0,
        "num_retries": 0,
        "drop_params": bool(settings.get("drop_params", False)),
    }
    if key:
        found["api_key"] = key
    if options["api_base"]:
        found["api_base"] = options["api_base"]
    return found | {name: settings[name] for name in ("api_version", "organization") if name in settings}


def _check(given: Json) -> None:
    """Refuse what LiteLLM would stumble over before a provider sees it: a client's mistake is no engine's fault."""
    messages = given.get("messages")
    if messages is not None:
        if not isinstance(messages, list) or not messages:
            raise bad_request("`messages` must be a list of messages.", "messages")
        for message in messages:
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise bad_request("Each of `messages` must be an object with a `role`.", "messages")
            if not isinstance(message.get("content"), str | list | None):
                raise bad_request("The `content` of a message must be text or a list of parts.", "messages")
    if not isinstance(given.get("stream", False), bool):
        raise bad_request("`stream` must be true or false.", "stream")
    if not isinstance(given.get("stream_options", {}), dict):
        raise bad_request("`stream_options` must be an object.", "stream_options")
    tools = given.get("tools", [])
    if not isinstance(tools, list):
        raise bad_request("`tools` must be a list.", "tools")
    for tool in tools:
        if not isinstance(tool, dict) or tool.get("type") not in TOOLS:
            raise bad_request(f"A tool's `type` must be one of {', '.join(TOOLS)}.", "tools")


# --- LiteLLM's exceptions into OpenAI's errors ---

_NAMED: Final[Mapping[str, tuple[str, str]]] = {
    "ContextWindowExceededError": ("invalid_request_error", "context_length_exceeded"),
    "ContentPolicyViolationError": ("invalid_request_error", "content_policy_violation"),
    "RateLimitError": ("rate_limit_exceeded", "rate_limit_exceeded"),
    "UnsupportedParamsError": ("invalid_request_error", "unsupported_parameter"),
    "BadRequestError": ("invalid_request_error", "invalid_value"),
}
"""LiteLLM's exceptions by name -> type and code of an error whose provider gave none."""
_OWN_CODES: Final = ("context_length_exceeded",)
"""Codes that others act on: they stand in place of a provider's own words for the same."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it came from, each once."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def refusal(error: BaseException, options: Json) -> Refused:
    """What the client is told of a failed call: the provider's own error where it gave one, with its status.

    1. A key that the provider does not take, or a model that it does not have, is no mistake of the client's: 502, with
       a sentence that says what to mend.
    2. A provider that cannot be reached is 502, one that takes too long 504.
    """
    chain = list(causes(error))
    names = [base.__name__ for base in type(error).__mro__]
    body = next((found for one in chain if (found := _provider_error(one))), None)
    status = next((number for one in chain if (number := _status(one))), 0)
    who = f"The provider of {options['ref']} ({options['model']})"
    if any(isinstance(one, Cut) for one in chain):
        message = f"{who} ended its answer before it was complete."
        return Refused(502, error_object(message, "server_error", "stream_truncated"))
    if any("Timeout" in type(one).__name__ for one in chain) or status == 408:
        return Refused(504, error_object(f"{who} took too long.", "server_error", "provider_timeout"))
    if status in (401, 402, 403):
        variable = options["key_variable"]
        check = f"check the key in the environment variable {variable}" if variable else "set `api_key_env:`"
        message = f"{who} refused the key or its account ({status}): {check}, then start the engine again."
        return Refused(502, error_object(message, "server_error", "provider_refused_key"))
    if status == 404 and (body is None or body.get("code") == "model_not_found"):
        message = f"{who} does not know that model: correct `litellm_model:`."
        return Refused(502, error_object(message, "server_error", "provider_model_not_found"))
    kind, code = next((_NAMED[name] for name in names if name in _NAMED), ("server_error", "provider_error"))
    if body is None and (not 400 <= status < 600 or any(map(_on_the_way, chain))):
        message = f"{who} gave no answer ({type(chain[-1]).__name__})."
        return Refused(502, error_object(message, "server_error", "provider_unreachable"))
    body = body or {"message": _plain(str(error)), "type": kind}
    if code in _OWN_CODES or body.get("code") in (None, ""):
        body = {**body, "code": code}
    found = error_object(str(body.get("message")), str(body.get("type") or kind), body["code"], body.get("param"))
    if status in (400, 413, 422) and isinstance(body.get("innererror"), dict):
        found["innererror"] = body["innererror"]  # Azure's reasons of a content filter
    return Refused(status if 400 <= status < 600 else 502, found, _retry_after(chain))


def _provider_error(error: BaseException) -> Json | None:
    """The error object in a provider's answer, as the OpenAI package keeps it."""
    body = getattr(error, "body", None)
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        body = body["error"]
    return body if isinstance(body, dict) and isinstance(body.get("message"), str) else None


def _status(error: BaseException) -> int:
    """The status of a provider's answer; 0 for an exception that LiteLLM gives 500 without there having been one."""
    status = getattr(error, "status_code", None)
    made_up = type(error).__name__ in ("APIConnectionError", "MidStreamFallbackError")
    return status if isinstance(status, int) and not made_up else 0


def _on_the_way(error: BaseException) -> bool:
    """Whether it says that no answer came: the HTTP client's own exceptions, but for those about a status."""
    return any(base.__name__ == "RequestError" and base.__module__.startswith("httpx") for base in type(error).__mro__)


def _retry_after(chain: list[BaseException]) -> str:
    for one in chain:
        headers = getattr(getattr(one, "response", None), "headers", None) or {}
        value = str(headers.get("retry-after") or "").strip()
        if value.isascii() and value.isprintable() and value:
            return value[:64]
    return ""


def _plain(text: str) -> str:
    """LiteLLM's message without the names of its classes in front."""
    while (head := text.partition(": "))[1] and head[0].replace(".", "").isalnum() and head[0].endswith("Error"):
        text = head[2]
    return text


# --- LiteLLM's answers into OpenAI's ---


def tidy(value: Json) -> Json:
    """An answer or a chunk without what LiteLLM adds to it: its own fields, and nulls where OpenAI has no field."""
    value = _without(value)
    usage = value.pop("usage", None)
    if isinstance(usage, dict) and any(usage.values()):  # LiteLLM gives zeros where nobody asked
        value["usage"] = {name: item for name, item in usage.items() if item is not None and name != "cost"}
    choices = value.get("choices")
    if isinstance(choices, list):
        value["choices"] = [_choice(choice) for choice in choices]
        said = any(one["finish_reason"] or one.get("delta") or one.get("text") for one in value["choices"])
        if "usage" in value and not said and all("message" not in one for one in value["choices"]):
            value["choices"] = []  # OpenAI's chunk with the usage has none
    return value


def _choice(choice: Json) -> Json:
    kept: Json = {"finish_reason": None} | _without(choice, "finish_reason", "logprobs")
    if isinstance(kept.get("message"), dict):
        kept["message"] = _without(kept["message"], "content")
    if isinstance(kept.get("delta"), dict):
        kept["delta"] = _without(kept["delta"])
    return kept | ({"text": choice["text"] or ""} if "text" in choice else {})


def _without(value: Json, *nullable: str) -> Json:
    return {
        name: item
        for name, item in value.items()
        if name != "provider_specific_fields" and (item is not None or name in nullable)
    }


def capabilities(options: Json, costs: Mapping[str, Any]) -> Json:
    """What the bridge can do, by declaration: asking the provider would cost money. `costs` is LiteLLM's price map."""
    model, settings = options["model"], options["engine_args"]
    entry = costs.get(model) or costs.get(model.partition("/")[2]) or {}
    mode = settings.get("mode") or entry.get("mode") or "chat"
    context = settings.get("context_tokens") or entry.get("max_input_tokens") or 0
    prices = {
        f"{way}_price_per_million": float(
            settings.get(f"{way}_price_per_million", (entry.get(f"{way}_cost_per_token") or 0) * 1e6)
        )
        for way in ("input", "output")
    }
    return {
        "chat": mode not in ("completion", "embedding"),
        "completions": mode == "completion",
        "embeddings": mode == "embedding",
        "stream_usage": True,
        "context_tokens": context if isinstance(context, int) else 0,
        "model_names": [options["ref"]],
    } | prices
