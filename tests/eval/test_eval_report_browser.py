"""The HTML page in a real browser, from file://: it asks for nothing, runs nothing, fits, filters by keyboard."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from components import missing
from report_support import Runs, make

from eval.reports import gather, page

MUCH = 45
"""Cases lost: more than one batch of the list."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return make(tmp_path_factory.mktemp("runs"), 90, lost=MUCH, gained=3)


@pytest.fixture(scope="module")
def comparison(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page.comparison(runs.report(), flips=100), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(program: Callable[[str], str]) -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright", "pip install '.[dev]'")
    path = program("chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"], timeout=120_000)
        yield started
        started.close()


class Visit:
    """A page in a fresh context that notes what the browser complains about and asks for."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.where = path.as_uri()

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def shown(self) -> int:
        return self.page.locator(".flip:visible").count()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1440])
def test_it_fits_reads_and_asks_for_nothing(browser: Any, comparison: Path, width: int, scheme: str) -> None:
    with Visit(browser, comparison, viewport={"width": width, "height": 800}, color_scheme=scheme) as visit:
        assert visit.said == []
        assert visit.asked == [visit.where]
        assert visit.page.evaluate("document.documentElement.scrollWidth") == width
        assert visit.page.evaluate("window.harm") is None, "no text of a user has run"
        assert visit.page.locator(".headline").inner_text() == "assistant@v2 is worse than assistant@v1."
        plots = visit.page.locator("svg:visible")
        assert plots.count() == 4
        for index in range(4):
            box = plots.nth(index).bounding_box()
            assert box is not None
            assert 250 < box["width"] <= width
        for selector in (".headline", "td:visible", ".flip pre", "figcaption", "footer dt"):
            assert _contrast(visit.page, selector) >= 4.5, selector
        light = _luminance(visit.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert (light > 0.5) == (scheme == "light")


def test_the_cases_are_filtered_by_keyboard(browser: Any, comparison: Path) -> None:
    with Visit(browser, comparison, viewport={"width": 1000, "height": 800}) as visit:
        page, count = visit.page, visit.page.locator("#count")
        assert visit.shown() == 20
        assert count.inner_text() == f"20 of {MUCH + 3} shown"
        page.get_by_label("Text").focus()
        page.keyboard.type("CASE-007 question")
        assert count.inner_text() == f"1 of 1 shown ({MUCH + 3} in all)"
        assert page.locator(".flip:visible h3").inner_text().replace("\n", " ").startswith("▼ lost case-007")
        page.keyboard.press("ControlOrMeta+a")
        page.keyboard.press("Delete")
        page.keyboard.press("Tab")
        page.keyboard.type("gained")
        assert count.inner_text() == f"3 of 3 shown ({MUCH + 3} in all)"
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowDown")
        assert visit.shown() == 1, "the first slice has one of the three"
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_function("document.querySelectorAll('.flip:not([hidden])').length === 20")
        more = page.get_by_role("button", name="Show more")
        more.focus()
        page.keyboard.press("Enter")
        assert visit.shown() == 40
        assert page.evaluate("document.activeElement.className") == "flip"
        more.click()
        assert visit.shown() == MUCH + 3
        assert not more.is_visible()
        assert visit.said == []


def test_without_script_everything_is_there(browser: Any, comparison: Path) -> None:
    with Visit(browser, comparison, java_script_enabled=False) as visit:
        assert visit.shown() == MUCH + 3
        assert not visit.page.locator("#filter").is_visible()
        visit.page.locator("summary").first.click()
        assert visit.page.locator("details table").first.is_visible()


def test_it_prints_whole_and_in_light(browser: Any, comparison: Path) -> None:
    with Visit(browser, comparison, color_scheme="dark") as visit:
        visit.page.emulate_media(media="print", color_scheme="dark")
        visit.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert visit.shown() == MUCH + 3
        assert _luminance(visit.page.evaluate("getComputedStyle(document.body).backgroundColor")) == 1
        assert len(visit.page.pdf()) > 20_000


def test_the_page_of_a_run_fits_too(browser: Any, runs: Runs, tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    path.write_text(page.run(gather.of_run(runs.candidate, alpha=0.05), cases=100), encoding="utf-8")
    with Visit(browser, path, viewport={"width": 360, "height": 700}) as visit:
        assert visit.said == []
        assert visit.asked == [visit.where]
        assert visit.page.evaluate("document.documentElement.scrollWidth") == 360
        assert visit.page.evaluate("window.harm") is None
        assert visit.shown() == 20


def _contrast(page: Any, selector: str) -> float:
    """WCAG's contrast of the first such element's text with what lies behind it."""
    colours = page.locator(selector).first.evaluate(
        """node => {
            const back = (one) => getComputedStyle(one).backgroundColor;
            let behind = node;
            while (behind !== document.body && back(behind) === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
            return [getComputedStyle(node).color, back(behind)];
        }"""
    )
    dark, light = sorted(_luminance(colour) for colour in colours)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, by WCAG 2."""
    parts = [int(part) / 255 for part in colour[4:-1].split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
