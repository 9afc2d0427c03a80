"""A whole yard with a local engine and a hosted one behind it: fallback, a key that nobody sees, adoption."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import psutil
import pytest
from engines.fixtures import FakeEngine
from stack import Stack, files_in, until

pytestmark = [pytest.mark.system, pytest.mark.hosted]

SECRET = "sk-seen-by-the-provider-alone-51c9"
CHAT = {"model": "assistant", "messages": [{"role": "user", "content": "one two three"}]}


def configuration(local: str, provider: str, python: str) -> str:
    versions = {
        "v1": {"engine": "external", "url": local},
        "cloud": {
            "engine": "hosted",
            "litellm_model": "openai/gpt-4o-mini",
            "url": f"{provider}/v1",
            "api_key_env": "PROVIDER_KEY",
            "python": python,
        },
    }
    model = {"versions": versions, "route": {"v1": 10_000}, "fallback": ["cloud"]}
    return f"server: {{workers: 1}}\nmodels: {json.dumps({'assistant': model})}\n"


def test_the_hosted_engine_takes_over_and_its_key_stays_with_it(
    yard: Callable[[str], Stack],
    fake_engine: Callable[..., FakeEngine],
    hosted_python: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    local, provider = fake_engine(), fake_engine()
    stack = yard(configuration(local.url, provider.url, hosted_python))
    refused = stack.cli("up", str(stack.config), check=4)
    assert "PROVIDER_KEY" in refused.stderr
    monkeypatch.setenv("PROVIDER_KEY", SECRET)
    stack.up()
    until(lambda: bridge_of(stack)["state"] == "ready", 120, "a ready bridge")
    assert provider.stats()["seen"] == 0, "a start costs nothing"
    shown: list[str] = []

    def ask(model: str = "assistant", **options: object) -> httpx.Response:
        body = CHAT | {"model": model} | options
        headers = {"authorization": "Bearer of-the-client"}
        answer = httpx.post(f"{stack.url}/v1/chat/completions", json=body, headers=headers, trust_env=False, timeout=60)
        shown.append(answer.text + str(answer.headers))
        return answer

    assert ask().headers["x-modelyard-version"] == "assistant@v1"
    direct = ask("assistant@cloud")
    assert direct.status_code == 200, direct.text
    assert direct.json()["choices"][0]["message"]["content"].startswith("t0 t1")
    local.kill()
    for stream in (False, True):
        answer = ask(stream=stream)
        assert (answer.status_code, answer.headers["x-modelyard-version"]) == (200, "assistant@cloud"), answer.text
    # A key that the provider takes no more is the yard's matter: the client hears which variable, not which key.
    provider.behave(status=401, error_message=f"Incorrect API key provided: {SECRET}")
    assert "PROVIDER_KEY" in ask("assistant@cloud").json()["error"]["message"]
    provider.behave(status=200)
    seen = provider.stats()["requests"]
    assert {dict(one["headers"])["authorization"] for one in seen} == {f"Bearer {SECRET}"}
    assert "of-the-client" not in json.dumps(seen)

    shown.append(stack.cli("status", "--json").stdout + stack.cli("versions", "show", "assistant@cloud").stdout)
    shown.append(json.dumps(stack.admin("/status")))
    three_answers = {"version": "assistant@cloud", "prompt_tokens": 9, "completion_tokens": 24}
    line = until(
        lambda: next((one for one in stack.json("cost")["tokens"] if three_answers.items() <= one.items()), None)
    )
    assert line["nano"] == 9 * 150 + 24 * 600, "by the price list of LiteLLM"
    bridge = bridge_of(stack)
    shown += [" ".join(process.cmdline()) for process in psutil.process_iter() if process.pid == bridge["pid"]]
    assert_nowhere(stack, shown)

    stack.kill_control()
    assert ask(stream=True).headers["x-modelyard-version"] == "assistant@cloud"
    stack.spawn()  # not `up`, which waits for the local engine too
    until(lambda: httpx.get(f"{stack.admin_url}/health", trust_env=False).is_success, 120, "a new control plane")
    until(lambda: bridge_of(stack)["state"] == "ready", 120, "the bridge's adoption")
    assert bridge_of(stack)["pid"] == bridge["pid"], "adopted"
    assert stack.stop() == 0
    until(lambda: not psutil.pid_exists(bridge["pid"]), what="the end of the bridge")
    assert_nowhere(stack, shown)


def bridge_of(stack: Stack) -> dict[str, Any]:
    engines: list[dict[str, Any]] = stack.json("status")["engines"]
    return next(one for one in engines if one["ref"] == "assistant@cloud")


def assert_nowhere(stack: Stack, shown: list[str]) -> None:
    """The key is in no file of the yard and in nothing that it said."""
    files = files_in(stack.folder)
    assert len(files) > 5
    assert [str(path) for path, data in files.items() if SECRET.encode() in data] == []
    assert not any(SECRET in text for text in shown)
