"""A browser in front of a console: signing in, what it complains about, axe, pictures.

Owns: these helpers, for whichever yard. Never: starting anything, what a page must show.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from components import missing

WIDTHS = (360, 768, 1280)
SCHEMES = ("light", "dark")
SHOTS = os.environ.get("MODELYARD_SHOTS", "")
"""A folder for pictures of every page; none are made where it is not set."""


def sign_in(admin_url: str, token: str, name: str = "Ada") -> dict[str, str]:
    """The cookie of somebody who comes in by the form."""
    form = {"credential": token, "name": name}
    answer = httpx.post(f"{admin_url}/console/sign-in", data=form, headers={"origin": admin_url}, trust_env=False)
    assert answer.status_code == 303, answer.text
    return dict(answer.cookies)


def settle(condition: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """The first true value."""
    limit = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < limit, "it did not come true"
        time.sleep(0.05)
    return value


class Visit:
    """One page of the console in a context of its own. Whatever the browser complains about fails the test."""

    def __init__(
        self, browser: Any, url: str, path: str, cookie: dict[str, str], *, width: int, scheme: str, height: int
    ) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
        )
        self.context.add_cookies(
            [
                {"name": name, "value": value, "domain": "127.0.0.1", "path": "/console", "sameSite": "Strict"}
                for name, value in cookie.items()
            ]
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.errors: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type != "log" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("requestfailed", self._failed)
        self._url = url
        self.go(path)

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.context.close()
        if kind is None:
            assert self.errors == []
            assert not [url for url in self.asked if not url.startswith((self._url, "data:", "blob:"))]

    def go(self, path: str) -> None:
        self.page.goto(self._url + path)

    def forgive(self, status: int) -> None:
        """The browser says in its console that an answer had this status, as the test means it to."""
        self.errors[:] = [said for said in self.errors if f"status of {status}" not in said]

    def fits(self) -> None:
        """Nothing sticks out to the right."""
        sticks = self.page.evaluate(
            """() => [...document.querySelectorAll('main *')].filter((one) => {
                 const box = one.getBoundingClientRect();
                 const scrolls = one.closest('.scroll, pre, .log, nav ul, .visually-hidden, thead');
                 return box.width > 0 && !scrolls && box.right > innerWidth + 1;
               }).slice(0, 5).map((one) => one.tagName + '.' + one.className)"""
        )
        assert sticks == []
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    def axe(self) -> None:
        """No rule of WCAG 2.2 A and AA, nor of good practice, is broken."""
        try:
            from axe_playwright_python.sync_playwright import Axe
        except ImportError:
            missing("axe-playwright-python", "pip install '.[dev]'")
        found = Axe().run(self.page)
        said = [
            f"{one['id']} ({one['impact']}): {one['help']}: "
            + "; ".join(f"{node['target']} {node['html'][:160]}" for node in one["nodes"][:4])
            for one in found.response["violations"]
        ]
        assert said == []

    def shot(self, name: str, *, whole: bool = True) -> None:
        """A picture of the page, or of what is in view, where pictures are wanted."""
        if SHOTS:
            Path(SHOTS).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=whole)

    def _failed(self, request: Any) -> None:
        if request.failure and "ERR_ABORTED" not in request.failure:  # a page that is left breaks off what it asked for
            self.errors.append(f"{request.url}: {request.failure}")
