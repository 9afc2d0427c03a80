"""What the data pages make of plain values: charts and their tables, bills, differences of manifests, histories."""

from __future__ import annotations

import re
from typing import Any

import pytest
from components import ROOT
from hypothesis import given
from hypothesis import strategies as st

from monitoring.console import bills
from monitoring.console.app import modules
from monitoring.console.charts import Chart, Series, figure, shares_within, weights_over_time
from monitoring.console.manifests import differences
from monitoring.console.pages.compare import choose, suites_of
from monitoring.console.pages.drift import shorter
from monitoring.console.pages.rollout import colours_of, divided, history
from monitoring.console.shell import plot
from monitoring.sample_ratio import Split

HOUR = 1_700_002_800


def test_stacked_layers_come_with_what_lies_below_them_and_the_table_with_their_own() -> None:
    chart = Chart(
        "c", "Cost", "", (HOUR, HOUR + 3600.0), (Series("a", (1.0, 2.0)), Series("b", (3.0, 0.5))),
        shape="bars", unit="money", currency="EUR", stacked=True,
    )  # fmt: skip
    assert chart.payload()["data"] == [[HOUR, HOUR + 3600.0], [1.0, 2.0], [4.0, 2.5]]
    assert chart.header() == ["Time (UTC)", "a", "b"]
    assert chart.rows()[1] == ["2023-11-15 00:00:00", "2.00 EUR", "0.5000 EUR"]
    assert plot(chart.payload())


def test_a_route_is_drawn_as_steps_until_now() -> None:
    chart = weights_over_time(
        [(10.0, {"v1": 10_000}), (20.0, {"v1": 9_000, "v2": 1_000})], now=30.0, colours={"v1": 1, "v2": 2}, model="m"
    )
    assert chart.x == (10.0, 20.0, 30.0)
    assert [one.values for one in chart.series] == [(1.0, 0.9, 0.9), (0.0, 0.1, 0.1)]
    assert "v1 90%, v2 10%" in chart.summary


def test_a_distribution_says_exactly_what_is_known_at_its_bounds() -> None:
    bounds = (0.1, 0.5, 1.0)
    chart = shares_within("d", "t", [("v1", bounds, (1, 2, 1, 0)), ("v2", bounds, (0, 0, 0, 0))], {"v1": 1})
    assert chart is not None
    assert [one.name for one in chart.series] == ["v1 (n = 4)"]
    assert chart.series[0].values == (0.25, 0.75, 1.0)
    assert "half within 500 ms" in chart.summary
    assert shares_within("d", "t", [("v2", bounds, (0, 0, 0, 0))], {}) is None


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(sum))
def test_a_distribution_only_rises_and_lies_between_nothing_and_all(counts: list[int]) -> None:
    chart = shares_within("d", "t", [("v1", (0.1, 0.5, 1.0), counts)], {})
    assert chart is not None
    values = [value or 0.0 for value in chart.series[0].values]
    assert values == sorted(values)
    assert all(0 <= value <= 1 for value in values)


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [(0.1234, "share", "12.34%"), (0.25, "seconds", "250 ms"), (None, "count", "–"), (1234.0, "count", "1,234")],
)
def test_figures_in_words(value: float | None, unit: Any, words: str) -> None:
    assert figure(value, unit) == words


def line(kind: str = "version", version: str = "m@v1", outcome: str = "completed", **changes: Any) -> dict[str, Any]:
    made = {"kind": kind, "version": version, "outcome": outcome, "seconds": 10.0, "nano": 1_000, "hour": HOUR}
    return made | changes


def bill(basis: str, lines: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    made = {"device": "GPU-1", "device_kind": "gpu", "basis": basis, "method": "inflight", "currency": "EUR"}
    return made | {"lines": lines, "total_nano": sum(one["nano"] for one in lines), "residual_s": 0.0} | changes


def test_three_bases_stand_beside_each_other_and_idle_failed_and_shadow_work_apart() -> None:
    found = bills.tables(
        [
            bill("allocated", [line(), line(outcome="failed"), line(outcome="shadow"), line("idle", "m@v1", "")]),
            bill("busy", [line(nano=1_000), line(outcome="failed", nano=500)]),
            bill("allocated", [line(nano=7)], method="tokens"),
        ],
        "inflight",
    )
    (table,) = found
    assert [(row.kind, row.what) for row in table.rows] == [
        ("work", "answered"),
        ("waste", "failed"),
        ("shadow", "copies (shadow)"),
        ("idle", "idle, kept ready"),
    ]
    assert table.rows[0].amount("allocated") == table.rows[0].amount("busy") == 1e-6
    assert table.rows[3].amount("busy") is None
    assert table.total("energy") is None
    assert bills.totals(found) == {("allocated", "EUR"): 4e-6, ("busy", "EUR"): 1.5e-6}


nanos = st.integers(0, 10**12)


spending = st.tuples(
    nanos,
    st.integers(0, 30),
    st.sampled_from(("v1", "v2", "v3", "v4", "v5", "v6")),
    st.sampled_from(("completed", "failed", "shadow", "")),
)


@given(st.lists(spending, min_size=1, max_size=40))
def test_rows_and_bars_sum_to_the_bill(spent: list[tuple[int, int, str, str]]) -> None:
    lines = [
        line("version" if outcome else "idle", f"m@{label}", outcome, nano=nano, hour=HOUR + 3600 * hour)
        for nano, hour, label, outcome in spent
    ]
    made = [bill("allocated", lines)]
    (table,) = bills.tables(made, "inflight")
    assert sum(row.nano["allocated"] for row in table.rows) == table.totals["allocated"]
    chart = bills.over_time(made, "inflight", start=HOUR, stop=HOUR + 31 * 3600)
    total = sum(one["nano"] for one in lines)
    if not total:
        assert chart is None
        return
    assert chart is not None
    drawn = sum(value or 0.0 for one in chart.series for value in one.values)
    assert drawn == pytest.approx(total / 1e9)
    assert len({one.colour for one in chart.series if one.colour not in (5,)}) >= len(chart.series) - 2


def test_manifests_differ_by_field_and_texts_line_by_line() -> None:
    left = {"engine": "llama.cpp", "chat_template": "a\nb\nc", "engine_args": {"parallel": 4}, "licence": "MIT"}
    right = {
        "engine": "llama.cpp",
        "chat_template": "a\nB\nc",
        "licence": "MIT",
        "artifacts": [{"sha256": "ab", "size_bytes": 1000, "source": "file:m", "filename": "m.gguf"}],
        "lineage": {"hyperparameters": {"epochs": 2}},
    }
    found, same = differences(left, right)
    assert same == 2
    assert [(one.group, one.name) for one in found] == [
        ("Engine argument", "parallel"),
        ("File", "model: name"),
        ("File", "model: SHA-256"),
        ("File", "model: bytes"),
        ("File", "model: source"),
        ("Chat template", ""),
        ("Lineage", "hyperparameters.epochs"),
    ]
    template = next(one for one in found if one.group == "Chat template")
    assert template.lines == [(" ", "a"), ("-", "b"), ("+", "B"), (" ", "c")]
    assert differences(left, left) == ([], 4)


def test_the_two_versions_with_the_most_traffic_are_compared_unless_others_are_named() -> None:
    versions = [{"label": label, "weight": weight} for label, weight in (("v1", 0), ("v2", 100), ("v3", 9_900))]
    assert choose(versions, "", "") == ("v2", "v3")
    assert choose(versions, "v1", "") == ("v1", "v3")
    assert choose(versions, "", "v1") == ("v3", "v1")
    assert choose(versions, "v3", "v3") == ("v3", "v3")
    assert choose(versions[:1], "", "") is None


def test_a_history_says_what_moved_and_how() -> None:
    route = {"created_by": "anna", "restores": None}
    found = history(
        [
            route | {"revision": 3, "created_at": 30.0, "weights": {"v1": 10_000}, "restores": 1},
            route | {"revision": 2, "created_at": 20.0, "weights": {"v1": 9_000, "v2": 1_000}},
            route | {"revision": 1, "created_at": 10.0, "weights": {"v1": 10_000}},
        ],
        [
            {"action": "route.rollback", "after": {"revision": 3}},
            {"action": "route.forced", "after": {"revision": 2}},
            {"action": "alias.set", "after": {"label": "v1"}},
        ],
    )
    assert [one.how for one in found] == ["rolled back", "forced past the gate", "set"]
    assert found[0].moved == [("v1", 9_000, 10_000), ("v2", 1_000, 0)]
    assert colours_of([f"v{number}" for number in range(1, 9)])["v7"] == 1


def test_a_split_is_sound_or_broken_or_not_known() -> None:
    weights = {"v1": 9_000, "v2": 1_000}
    assert divided(None, weights) is None
    assert divided(Split("m", 1.0, {}), weights) is None
    sound, broken = (divided(Split("m", p, {"v1": 90, "v2": 10}), weights) for p in (0.4, 0.0001))
    assert sound is not None
    assert broken is not None
    assert (sound.kind, broken.kind, sound.units) == ("good", "bad", 100)
    assert sound.arms == [("v1", 90, 0.9), ("v2", 10, 0.1)]


def test_evidence_that_is_not_as_ours_is_left_out() -> None:
    suite = {"suite": "core", "candidate": 0.8, "baseline": 0.7, "n": 40, "margin": 0.02, "interval": [-0.1, 0.3]}
    broken = [suite | {"n": "many"}, suite | {"interval": None}, suite | {"candidate": None}, "core", {"suite": 3}]
    assert suites_of({"suites": [*broken, suite]}) == [suite]
    assert suites_of({"suites": "none"}) == suites_of({}) == []


def test_every_page_is_in_the_document_with_pictures_at_three_widths_that_are_small() -> None:
    text = (ROOT / "docs" / "console.md").read_text()
    shown = set(re.findall(r"images/(console-[a-z-]+)-(360|768|1280)\.png", text))
    names = {name for name, _ in shown}
    assert {(name, width) for name in names for width in ("360", "768", "1280")} == shown
    pages = {one.PAGE.title for one in modules() if one.PAGE.order}
    assert pages <= set(re.findall(r"^\| \[(.+?)\]", text, re.MULTILINE))
    assert {f"console-{title.lower()}" for title in pages} <= names
    for name, width in shown:
        picture = ROOT / "docs" / "images" / f"{name}-{width}.png"
        assert picture.stat().st_size < 120_000
        assert picture.read_bytes().startswith(b"\x89PNG")
    kept = {path.name for path in (ROOT / "docs" / "images").glob("console-*.png")}
    assert kept == {f"{name}-{width}.png" for name, width in shown}


def test_long_numbers_in_the_names_of_bins_are_shortened() -> None:
    assert shorter("0.0491674 to 0.0579923") == "0.0492 to 0.058"
    assert shorter("866 to 1157, input_turns 1.5") == "866 to 1157, input_turns 1.5"
