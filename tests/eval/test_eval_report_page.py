"""The HTML page as a text: what it holds, what it must not hold, how large it gets."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_support import HARM, SETTINGS, Runs, make

from eval.drift_tokens import Band
from eval.reports import differences, figures, gather, page, plots, svg, words
from eval.reports.gather import ComparisonReport, Settings, TokenDrift


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return make(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def report(runs: Runs) -> ComparisonReport:
    return runs.report()


@pytest.fixture(scope="module")
def html(report: ComparisonReport) -> str:
    return page.comparison(report, flips=100)


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_the_page_says_the_verdict_first_and_everything_that_it_follows_from(
    html: str, report: ComparisonReport, runs: Runs
) -> None:
    text = " ".join(" ".join(Elements(html).words).split())
    assert report.found.result.verdict.kind == "worse"
    order = [
        "assistant@v2 is worse than assistant@v1.",
        "points lower",
        "It should not take the baseline's place.",
        "How it was decided",
        "McNemar",
        "Noise floor: asked twice",
        "Differences",
        "Quality and cost",
        "Speed",
        "Output drift",
        "14 cases lost, 3 gained",
        "Samples that could not be paired",
        "failed in the candidate",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    for fact in (
        runs.baseline.info().key.suite_digest,
        runs.baseline.info().subject.digest,
        runs.candidate.info().subject.digest,
        runs.baseline.name,
        runs.candidate.name,
        runs.twin.name,
        "report-suite 3",
        "--margin 0.05 --alpha 0.05 --seed 7 --gate overall",
    ):
        assert fact in text


def test_the_noise_floor_stands_beside_each_difference(report: ComparisonReport) -> None:
    """One case of 60 changed between the two runs of the baseline: 1 of 60 overall, 1 of 30 of its scorer."""
    noise = {(row.kind, row.group.name): row.noise for row in report.rows}
    assert noise["overall", "overall"] == pytest.approx(1 / 60)
    assert noise["scorer", "contains"] == pytest.approx(1 / 30)
    assert noise["scorer", "exact"] == 0
    assert noise["slice", "$x^2$ <b>"] == pytest.approx(1 / 20)


def test_nothing_of_a_users_text_is_markup(html: str) -> None:
    elements = Elements(html)
    assert "window.harm" in "".join(elements.words), "the texts are there, as text"
    assert not elements.all("img")
    assert not elements.all("a") or {one.get("href") for one in elements.all("a")} == {"#main"}
    assert len(elements.all("script")) == 1
    names = {name for _, attributes in elements.found for name in attributes}
    assert not {name for name in names if name.startswith("on")}
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202e]", html)


def test_the_page_needs_nothing_from_elsewhere_and_its_policy_says_so(html: str) -> None:
    elements = Elements(html)
    (policy,) = (one["content"] for one in elements.all("meta") if one.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (own,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    references = [
        value
        for _, attributes in elements.found
        for name, value in attributes.items()
        if name in {"src", "href", "xlink:href", "action", "data", "poster", "srcset"}
    ]
    assert {reference for reference in references if not (reference or "").startswith("#")} == {"data:,"}
    assert not [name for _, attributes in elements.found for name in attributes if name == "style"]
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_ids_are_unique_and_references_lead_somewhere(html: str) -> None:
    elements = Elements(html)
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = {value[1:] for _, one in elements.found if (value := one.get("href") or "").startswith("#")}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", html))
    assert wanted <= set(ids)


def test_every_plot_is_described_and_has_its_data_in_a_table(html: str) -> None:
    elements = Elements(html)
    drawn = elements.all("svg")
    assert len(drawn) == 2 * 4, "forest, scores, quality and cost, latencies: wide and narrow"
    assert all(one["role"] == "img" and len(one["aria-label"] or "") > 40 for one in drawn)
    assert html.count(": the figures</summary>") == 3
    assert "<caption" in html, "the forest plot's table stands open below it"


def test_the_same_runs_give_the_same_bytes(html: str, runs: Runs) -> None:
    assert page.comparison(runs.report(), flips=100) == html


def test_the_page_is_bounded_and_counts_what_it_leaves_out(tmp_path: Path, report: ComparisonReport) -> None:
    limited = page.comparison(report, flips=4)
    assert limited.count('<article class="flip"') == 4 + 3
    assert "The page holds 7 of 17" in limited
    long = "word " * 40_000
    text = page._text(long, 100)
    assert (len(text.text), text.left) == (100, len(long) - 100)


def test_a_run_of_its_own_has_a_page(runs: Runs) -> None:
    made = page.run(gather.of_run(runs.candidate, alpha=0.05), cases=10)
    text = " ".join(" ".join(Elements(made).words).split())
    assert "assistant@v2" in text
    assert "Cases without the full score" in text
    assert "10 of 31, the lowest scores first" in text
    assert "Samples without an answer" in text
    assert made.count('<article class="flip"') == 10
    assert not Elements(made).all("img")


def test_token_drift_is_shown_where_it_was_measured(report: ComparisonReport) -> None:
    bands = tuple(Band(start=4 * i, end=4 * i + 4, n=30, mean_kl=0.1 + i / 100) for i in range(5))
    figure = figures.positions(ComparisonReport(report.found, SETTINGS, TokenDrift(bands, lower_bound=True)))
    assert figure is not None
    assert figure.rows[-1] == ("16 to 19", "30", "0.14")
    assert "lower bound" in figure.drawing.wide
    assert "highest at positions 16 to 19" in figure.drawing.wide
    assert "at least this" in figure.caption
    assert figures.positions(report) is None


@pytest.mark.parametrize("margin", [0.05, 0.5])
def test_the_headline_follows_the_verdict(runs: Runs, margin: float) -> None:
    found = runs.report(Settings(("overall",), margin, 0.05, 7)).found.result
    said = words.headline(found.verdict.kind, "old", "new", margin)
    assert (
        said
        == {
            0.05: "new is worse than old.",
            0.5: "new is good enough: it is not worse than old by 50 points or more.",
        }[margin]
    )
    assert words.headline("inconclusive", "old", "new", 0.05).startswith("It is not decided")
    assert words.headline("better", "old", "new", 0.05) == "new is better than old."


def test_figures_are_written_without_false_precision_or_minus_zero() -> None:
    assert [words.signed(value) for value in (0.0, -0.0001, 0.074, -0.074)] == ["0.0", "0.0", "+7.4", "−7.4"]
    assert [words.points(value) for value in (0.01, 0.05, -0.074)] == ["1 point", "5 points", "7.4 points"]
    assert [words.p_value(p) for p in (0.0001, 0.0125)] == ["< 0.001", "0.013"]
    assert [words.seconds(value) for value in (None, 0.0123, 12.34)] == ["–", "12 ms", "12.3 s"]
    assert words.count(1, "case") == "1 case"
    assert words.count(1200, "case") == "1,200 cases"


def test_what_differs_is_marked_and_nothing_else() -> None:
    assert differences.marked("the sum is 12.", "the sum is 15.") == (
        "the sum is <del>12</del>.",
        "the sum is <ins>15</ins>.",
    )
    assert differences.marked("a & b", "a & b") == ("a &amp; b", "a &amp; b")
    assert differences.marked(HARM, "entirely other")[0].count("<") == 0


@given(st.text(max_size=60), st.text(max_size=60))
def test_marks_lose_no_text(baseline: str, candidate: str) -> None:
    for marked, whole in zip(differences.marked(baseline, candidate), (baseline, candidate), strict=True):
        assert marked.replace("<del>", "").replace("</del>", "").replace("<ins>", "").replace("</ins>", "") == (
            differences.escape(whole)
        )


@given(st.text())
def test_clean_texts_are_legal_in_xml(text: str) -> None:
    from xml.etree import ElementTree

    element = ElementTree.Element("a")
    element.text = words.clean(text)
    read = ElementTree.fromstring(ElementTree.tostring(element, encoding="utf-8"))
    assert (read.text or "") == words.clean(text)


def test_a_plot_has_the_pages_colours_and_no_style_of_its_own() -> None:
    bars = [plots.Bar("overall", "overall", 12, -0.1, -0.3, 0.1), plots.Bar("slice", "$1 & <b> 中", 3, 0.1, -0.9, 0.9)]
    drawing = plots.forest(bars, 0.05, 'a "plot" <b>')
    for drawn in (drawing.wide, drawing.narrow):
        assert "style=" not in drawn
        assert "<style" not in drawn
        assert "metadata" not in drawn
        assert not [colour for colour in svg.NAMES if colour in drawn]
        assert 'class="s-cand"' in drawn or "s-cand" in drawn
        assert "$1 &amp; &lt;b&gt; 中" in drawn
        assert 'aria-label="a &quot;plot&quot; &lt;b&gt;"' in drawn
    assert plots.forest(bars, 0.05, 'a "plot" <b>') == drawing
