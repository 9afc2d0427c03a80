"""Capabilities and readiness, asked of engines that differ."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import pytest
from engines.fixtures import FakeEngine

from serving.engines.base import Capabilities, Launch
from serving.engines.probe import NotReadyError, probe, ready

Start = Callable[..., FakeEngine]


def launch_of(engine: FakeEngine) -> Launch:
    return Launch(argv=(), host="127.0.0.1", port=engine.port, ready_paths=("/health", "/v1/models"))


def probed(engine: FakeEngine, kind: str = "external", model: str = "") -> Capabilities:
    async def ask() -> Capabilities:
        async with httpx.AsyncClient(trust_env=False) as client:
            return await probe(client, launch_of(engine), kind, model)

    return asyncio.run(ask())


def asked_ready(launch: Launch) -> None:
    async def ask() -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            await ready(client, launch)

    asyncio.run(ask())


def test_what_a_plain_engine_can_do(fake_engine: Start) -> None:
    engine = fake_engine("--name", "one", "--name", "two")
    found = probed(engine)
    assert found == Capabilities(
        chat=True,
        completions=True,
        embeddings=True,
        stream_usage=True,
        prefill=True,  # it counts words, so a prefill costs its words and nothing else
        model_names=("one", "two"),
    )
    assert {request["model"] for request in engine.stats()["requests"]} == {"one"}


def test_an_engine_without_usage_in_streams(fake_engine: Start) -> None:
    assert not probed(fake_engine("--usage", "none")).stream_usage
    assert probed(fake_engine("--usage", "last-chunk")).stream_usage


def test_an_engine_that_fails_can_do_nothing(fake_engine: Start) -> None:
    found = probed(fake_engine("--status", "500"), model="m")
    assert (found.chat, found.completions, found.embeddings, found.stream_usage, found.prefill) == (False,) * 5
    assert probed(fake_engine("--garbage")) == Capabilities(model_names=("fake",))


def test_the_served_name_is_asked_for(fake_engine: Start) -> None:
    engine = fake_engine()
    probed(engine, model="assistant@v1")
    assert {request["model"] for request in engine.stats()["requests"]} == {"assistant@v1"}


def test_readiness_by_health_else_by_models(fake_engine: Start) -> None:
    engine = fake_engine()
    asked_ready(launch_of(engine))
    engine.behave(health_status=404)
    asked_ready(launch_of(engine))
    engine.behave(health_status=503)
    with pytest.raises(NotReadyError, match="answers 503"):
        asked_ready(launch_of(engine))
    engine.behave(health_status=401)
    with pytest.raises(NotReadyError, match="check its API key"):
        asked_ready(launch_of(engine))
    engine.kill()
    with pytest.raises(NotReadyError, match="does not answer"):
        asked_ready(launch_of(engine))
