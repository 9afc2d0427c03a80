"""What the console ships: libraries as their packages have them, nothing from elsewhere, nothing inline."""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from pathlib import Path

import pytest

from monitoring.console import words
from monitoring.console.app import modules

CONSOLE = Path(str(resources.files("monitoring.console")))
VENDOR = CONSOLE / "static" / "vendor"
OWN = sorted(
    path
    for pattern in ("templates/*.html", "static/*.js", "static/*.css", "static/*.svg")
    for path in CONSOLE.glob(pattern)
)


def test_the_libraries_are_those_of_their_packages() -> None:
    listed = dict(line.split("  ")[::-1] for line in (VENDOR / "SHA256SUMS").read_text().splitlines())
    shipped = {path.name for path in VENDOR.iterdir()} - {"SHA256SUMS", "README.md"}
    assert set(listed) == shipped
    for name, digest in listed.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest, name
    about = (VENDOR / "README.md").read_text()
    assert all(f"`{name}`" in about for name in shipped if not name.endswith("LICENSE.txt"))
    assert {name.split(".")[0] for name in shipped if name.endswith(".LICENSE.txt")} == {"htmx", "idiomorph", "uPlot"}


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_nothing_comes_from_elsewhere_and_nothing_is_inline(path: Path) -> None:
    text = path.read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"""(src|href|url\()\s*=?\s*["'(]?\s*(https?:)?//""", text)
    if path.suffix == ".html":
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", text)
        assert not [tag for tag in re.findall(r"<script[^>]*>", text) if "src=" not in tag]
        assert not re.search(r"\|\s*safe", re.sub(r"'[^']*'\s*\|\s*safe", "", text)), "only literals are markup"


def test_every_page_has_a_place_and_a_question() -> None:
    pages = [module.PAGE for module in modules()]
    listed = [page for page in pages if page.order]
    assert len({page.order for page in listed}) == len(listed)
    assert len({page.path for page in pages}) == len(pages)
    assert all(page.title and page.question for page in listed)
    assert {"/", "/engines", "/audit"} <= {page.path for page in listed}


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (words.seconds(None), "–"),
        (words.seconds(0), "0 ms"),
        (words.seconds(0.00085), "850 µs"),
        (words.seconds(0.0123), "12.3 ms"),
        (words.seconds(0.5), "500 ms"),
        (words.seconds(1.25), "1.25 s"),
        (words.seconds(200), "3 min 20 s"),
        (words.seconds(3600), "1 h"),
        (words.seconds(183600), "2 d 3 h"),
        (words.number(None), "–"),
        (words.number(0), "0"),
        (words.number(12345.6), "12,346"),
        (words.number(1.2345), "1.23"),
        (words.number(0.00000123), "1.2e-06"),
        (words.count(1, "request"), "1 request"),
        (words.count(2000, "request"), "2,000 requests"),
        (words.size(999), "999 B"),
        (words.size(353_000_000), "353 MB"),
        (words.money(0.0009333, "USD"), "0.0009333 USD"),
        (words.money(1234.5, "EUR"), "1,234.50 EUR"),
        (words.money(0, "EUR"), "0 EUR"),
        (words.share(0.005), "0.5%"),
        (words.share(1), "100%"),
        (words.points(9000), "90%"),
        (words.points(25), "0.25%"),
        (words.ago(100.0, 101.0), "just now"),
        (words.ago(100.0, 7400.0), "2 h ago"),
        (words.ago(None, 1.0), "–"),
        (words.state("backoff")["kind"], "bad"),
        (words.state("unheard of")["words"], "Unheard of"),
    ],
)
def test_figures_read_well(said: str, wanted: str) -> None:
    assert said == wanted
