"""The page of figures: what Prometheus answers becomes words with units, row by row of the dashboards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from monitoring.dashboards.figures import Window, look, subject, value, words
from monitoring.dashboards.pictures import draw
from monitoring.dashboards.show import BEGIN, END, _write, lacks

WINDOW = Window(1000.0, 1600.0)


def panel(kind: str, *targets: dict[str, Any], unit: str = "short", **defaults: Any) -> dict[str, Any]:
    steps = [{"value": None, "color": "green"}, {"value": 5.0, "color": "red"}]
    return {
        "id": 7,
        "type": kind,
        "title": "A panel",
        "targets": list(targets),
        "gridPos": {"x": 0, "y": 1, "w": 12, "h": 8},
        "fieldConfig": {
            "defaults": {"unit": unit, "noValue": "nothing", "thresholds": {"steps": steps}, **defaults},
            "overrides": [
                {"matcher": {"options": "share"}, "properties": [{"id": "unit", "value": "percentunit"}]},
                {"matcher": {"options": "wait"}, "properties": [{"id": "unit", "value": "s"}]},
            ],
        },
    }


def target(expr: str, legend: str, *, ranged: bool = True) -> dict[str, Any]:
    return {"expr": expr, "legendFormat": legend, "range": ranged, "instant": not ranged}


def board(*panels: dict[str, Any]) -> dict[str, Any]:
    row = {"type": "row", "title": "Is it?", "collapsed": False, "gridPos": {"x": 0, "y": 0, "w": 24, "h": 1}}
    return {"title": "A board", "templating": {"list": [{"name": "model"}]}, "panels": [row, *panels]}


class Prometheus:
    """Answers from a table, and keeps what it was asked."""

    def __init__(self, answers: Mapping[str, list[dict[str, Any]]]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, dict[str, str]]] = []

    def __call__(self, path: str, parameters: Mapping[str, str]) -> list[dict[str, Any]]:
        self.asked.append((path, dict(parameters)))
        return self.answers.get(parameters["query"], [])


def series(labels: dict[str, str], *values: float) -> dict[str, Any]:
    return {"metric": labels, "values": [[1000.0 + 10 * index, str(each)] for index, each in enumerate(values)]}


def test_a_line_is_its_last_value_and_the_range_it_went_through() -> None:
    prometheus = Prometheus({'x{m=~".*"}': [series({"m": "a"}, 0.002, 0.001, 1.5), series({"m": "b"}, 9, 9, 9)]})
    one = panel("timeseries", target('x{m=~"$model"}', "wait of {{m}}"), unit="s")
    shown = look(board(one), one, prometheus, WINDOW)
    assert words(shown) == ["wait of b: **9 s**", "wait of a: **1.5 s** (1 ms to 1.5 s)"]
    ((path, asked),) = prometheus.asked
    assert (path, asked["start"], asked["end"]) == ("query_range", "1000.000", "1600.000")


def test_a_table_is_a_line_per_set_of_labels_with_the_columns_units() -> None:
    found = {"metric": {"model": "m", "version": "v1", "kind": "data"}, "value": [1600, "0.25"]}
    other = {"metric": {"model": "m", "version": "v1", "kind": "data"}, "value": [1600, "90"]}
    one = panel("table", target("a", "share", ranged=False), target("b", "wait", ranged=False))
    shown = look(board(one), one, Prometheus({"a": [found], "b": [other]}), WINDOW)
    assert words(shown) == ["m@v1 data: share **25.0%**, wait **1.5 min**"]


def test_what_is_not_a_number_is_no_figure_and_what_is_missing_is_said() -> None:
    one = panel("timeseries", target("modelyard_gpu_power_watts", "{{device}}"))
    nothing = look(board(one), one, Prometheus({}), WINDOW)
    assert words(nothing) == ["*nothing* (needs a GPU)"]
    assert not lacks(nothing)
    plain = panel("timeseries", target("modelyard_requests_total", "requests"))
    unknown = look(board(plain), plain, Prometheus({"modelyard_requests_total": [series({}, float("nan"))]}), WINDOW)
    assert lacks(unknown)


def test_many_series_are_counted_and_states_are_named() -> None:
    many = [series({"m": str(number)}, number, number) for number in range(9)]
    one = panel("timeseries", target("x", "{{m}}"))
    lines = words(look(board(one), one, Prometheus({"x": many}), WINDOW))
    assert lines[0] == "8: **8**"
    assert lines[-1] == "and 3 more"
    mapped = [{"options": {"0": {"text": "holds", "color": "green"}, "1": {"text": "broken", "color": "red"}}}]
    state = panel("state-timeline", target("y", "gate"), mappings=mapped)
    shown = look(board(state), state, Prometheus({"y": [series({}, 0, 1, 0, 0)]}), WINDOW)
    assert words(shown) == ["gate: **holds**, changed 2 times"]


@pytest.mark.parametrize(
    ("number", "unit", "decimals", "shown"),
    [
        (0.0, "s", None, "0"),
        (0.00025, "s", 2, "250 µs"),
        (7200.0, "s", 1, "2 h"),
        (1536.0, "bytes", None, "1.5 KiB"),
        (0.123, "percentunit", 2, "12.30%"),
        (2.5, "reqps", None, "2.5 req/s"),
        (1.7e9, "hertz", None, "1.7 GHz"),
        (0.00001234, "short", 4, "1.23e-05"),
        (12345.6, "short", None, "12,346"),
        (61.0, "celsius", None, "61 °C"),
    ],
)
def test_values_have_their_units(number: float, unit: str, decimals: int | None, shown: str) -> None:
    assert value(number, unit, decimals) == shown


def test_labels_are_written_as_people_do() -> None:
    assert subject({"__name__": "x", "job": "modelyard", "model": "a", "version": "v1", "kind": "data"}) == "a@v1 data"
    assert subject({"model": "a"}) == "a"
    assert subject({}) == "all"


def test_the_page_is_written_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    _write(page, "new")
    assert page.read_text() == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="lacks the marks"):
        _write(page, "new")


def test_a_picture_has_each_panel_in_its_place(tmp_path: Path) -> None:
    one = panel("timeseries", target("x", "{{m}}"), unit="s", custom={"stacking": {"mode": "normal"}})
    two = {**panel("stat", target("y", "why")), "id": 8, "gridPos": {"x": 12, "y": 1, "w": 12, "h": 8}}
    prometheus = Prometheus({"x": [series({"m": "a"}, 1, 2, 3), series({"m": "b"}, 3, 2)], "y": [series({}, 6)]})
    dashboard = board(one, two)
    shown = [look(dashboard, each, prometheus, WINDOW) for each in (one, two)]
    draw(dashboard, shown, WINDOW, tmp_path / "images" / "board.png")
    with Image.open(tmp_path / "images" / "board.png") as image:
        assert image.size == (1280, 380)
        assert image.mode == "P"
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert len(colours) > 10
