"""A yard with real traffic, and a browser in front of its console.

Owns: starting both once for all of the console's tests. Never: what a page must show (the tests).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from components import missing
from console_browser import SCHEMES, WIDTHS, Visit, sign_in
from stack import Stack, stack, until

for folder in (Path(__file__).parent, Path(__file__).parents[2]):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from engines.fixtures import FakeEngine, start_fake_engine  # noqa: E402

AXED = (("light", 360), ("dark", 1280))
"""Axe reads each page in both layouts and in both schemes, not in every pair: a run takes half a second."""
ROUTE = {"v1": 9000, "v2": 1000, "v3": 0}


def config(urls: dict[str, str], model: Path) -> str:
    """`assistant` with three versions whose engines do what a test says, and `local` with a real engine."""
    assistant = {
        "versions": {label: {"engine": "external", "url": url} for label, url in urls.items()},
        "route": {label: weight for label, weight in ROUTE.items() if weight},
        "aliases": {"champion": "v1"},
        "fallback": ["v1"],
        "samples": {"rate": 1.0, "store": "text"},
    }
    local = {
        "versions": {"v1": {"engine": "llama.cpp", "artifact": f"file:{model}", "licence": "Apache-2.0"}},
        "route": {"v1": 10000},
    }
    return json.dumps(
        {
            "server": {"workers": 1},
            "prices": {"currency": "USD", "cpu_hour": 0.12},
            "models": {"assistant": assistant, "local": local},
        }
    )


@pytest.fixture(scope="session")
def engines() -> Iterator[dict[str, FakeEngine]]:
    """The engines of `assistant`, by version; a test that changes one's behaviour sets it back."""
    gaps = {"v1": "0.004", "v2": "0.007", "v3": "0.004"}
    made = {label: start_fake_engine("--events", "12", "--gap-s", gap) for label, gap in gaps.items()}
    yield made
    for engine in made.values():
        engine.kill()
        assert engine.process.stdout is not None
        engine.process.stdout.close()


@pytest.fixture(scope="session")
def yard(
    engines: dict[str, FakeEngine], smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """The yard that all of the console's tests look at. A test that changes its routes changes them back."""
    text = config({label: engine.url for label, engine in engines.items()}, smollm2_path)
    with stack(tmp_path_factory.mktemp("console"), text) as made:
        made.up(timeout_s=180)
        drive(made, engines)
        yield made


def drive(made: Stack, engines: dict[str, FakeEngine]) -> None:
    """Some seconds of traffic: streams and whole answers, two engines, a client with a key, faults."""
    with httpx.Client(base_url=made.url, trust_env=False, timeout=30) as client, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: ask(client, number), range(60)))
        engines["v1"].behave(status=500)
        list(pool.map(lambda number: ask(client, number), range(4)))
        engines["v1"].behave(status=200)
        ask(client, 0, model="local", max_tokens=4)
    until(lambda: seen(made) >= 60, what="the traffic in the books")


def ask(client: httpx.Client, number: int, *, model: str = "assistant", **more: Any) -> int:
    """One request; every other one is streamed. Returns its status."""
    messages = [{"role": "user", "content": f"question {number} about trains and tea"}]
    body = {"model": model, "messages": messages, "stream": number % 2 == 0, "user": f"u{number}"} | more
    return client.post("/v1/chat/completions", json=body).status_code


def seen(made: Stack) -> int:
    """Requests in the books."""
    models = made.admin("/status")["models"]
    return sum(version["requests"] for model in models for version in model["versions"])


@pytest.fixture(scope="module")
def browser(program: Callable[[str], str]) -> Iterator[Any]:
    """Chromium, headless. Not for longer than a module: Playwright keeps an event loop running in this thread, and
    another test's `asyncio.run` would refuse to start beside it."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright", "pip install '.[dev]'")
    path = program("chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def cookie(yard: Stack) -> dict[str, str]:
    """The cookie of somebody who came in by the token's form."""
    return sign_in(yard.admin_url, (yard.state / "admin.token").read_text().strip())


Visitor = Callable[..., Visit]


@pytest.fixture(scope="module")
def visit(browser: Any, yard: Stack, cookie: dict[str, str]) -> Visitor:
    """`with visit("/console/engines", width=360, scheme="dark", signed_in=False) as one: one.page…`"""

    def open_page(
        path: str, *, width: int = 1280, scheme: str = "light", signed_in: bool = True, height: int = 900
    ) -> Visit:
        own = cookie if signed_in else {}
        return Visit(browser, yard.admin_url, path, own, width=width, scheme=scheme, height=height)

    return open_page


@pytest.fixture
def plain(browser: Any, yard: Stack, cookie: dict[str, str]) -> Iterator[Any]:
    """A page of a browser that is signed in and runs no scripts."""
    context = browser.new_context(java_script_enabled=False, base_url=yard.admin_url)
    try:
        context.add_cookies([{"name": name, "value": value, "url": yard.admin_url} for name, value in cookie.items()])
        yield context.new_page()
    finally:
        context.close()


@pytest.fixture(scope="module")
def looks_right(visit: Visitor) -> Callable[[str, str], None]:
    """Opens a page at three widths in light and dark: it fits, axe finds nothing, and there is a picture of it."""

    def check(path: str, name: str) -> None:
        for scheme in SCHEMES:
            with visit(path, scheme=scheme) as one:
                for width in WIDTHS:
                    one.page.set_viewport_size({"width": width, "height": 900})
                    one.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 60)))")
                    one.fits()
                    one.shot(f"{name}-{width}-{scheme}")
                    if (scheme, width) in AXED:
                        one.axe()

    return check
