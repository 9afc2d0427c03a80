"""The committed dashboards are what the modules make, and follow the conventions."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from components import ROOT
from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring.dashboards import needs, panels, queries
from monitoring.dashboards.__main__ import FOLDER, main, rendered
from monitoring.dashboards.build import text

UIDS = ["overview", "versions", "rollout", "gpu-cost", "engines", "slo"]
METRIC = re.compile(r"\b(modelyard_[a-z0-9_]+)")
SERIES = re.compile(r"_(?:bucket|sum|count)$")
UNITS = {"short", "s", "reqps", "percentunit", "bytes", "watt", "celsius", "hertz"}
BOARDS = {name.removesuffix(".json"): json.loads(made) for name, made in rendered().items()}


def every_panel() -> Iterator[tuple[str, Any]]:
    for name, board in BOARDS.items():
        for panel in panels(board):
            yield f"{name}: {panel['title']}", panel


def metrics_of(expression: str) -> set[str]:
    """The metrics that an expression names, those of a pattern on the name spelt out."""
    spelt = re.sub(r'__name__=~"modelyard_\(gpu\|cpu\)_(\w+)"', r"modelyard_gpu_\1 modelyard_cpu_\1", expression)
    return set(METRIC.findall(spelt))


def test_the_committed_dashboards_are_what_is_generated() -> None:
    assert {path.name: path.read_text() for path in FOLDER.glob("*.json")} == rendered()
    assert main(["--check"]) == 0


def test_it_writes_where_it_is_told(tmp_path) -> None:
    assert main([str(tmp_path), "--check"]) == 1
    assert main([str(tmp_path)]) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == rendered()


def test_uids_ids_and_titles_are_unique() -> None:
    assert [board["uid"] for board in BOARDS.values()] == [f"modelyard-{name}" for name in UIDS]
    for board in BOARDS.values():
        rows = [panel for panel in board["panels"] if panel["type"] == "row"]
        shown = list(panels(board))
        ids = [panel["id"] for panel in [*rows, *shown]]
        assert len(set(ids)) == len(ids)
        titles = [panel["title"] for panel in [*rows, *shown]]
        assert len(set(titles)) == len(titles), titles


def test_each_panel_says_what_it_shows_and_what_to_do() -> None:
    for where, panel in every_panel():
        assert len(panel["description"]) > 60, where
        assert len(re.findall(r"[.:;,] ", panel["description"])) >= 1, where
        assert len(panel["title"]) < 45, where
        assert panel["datasource"]["uid"] == "${datasource}"
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"] in UNITS, where
        assert defaults["noValue"], where
        for override in panel["fieldConfig"]["overrides"]:
            assert next(each["value"] for each in override["properties"] if each["id"] == "unit") in UNITS, where
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert target["legendFormat"] != "__auto", where


def test_limits_are_sorted_and_begin_without_a_value() -> None:
    for where, panel in every_panel():
        steps = [panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
        for override in panel["fieldConfig"]["overrides"]:
            steps += [each["value"]["steps"] for each in override["properties"] if each["id"] == "thresholds"]
        for each in steps:
            values = [step["value"] for step in each]
            assert values[0] is None, where
            assert values[1:] == sorted(values[1:]), where


def test_a_table_names_each_column_and_gives_it_a_unit() -> None:
    tables = [(where, panel) for where, panel in every_panel() if panel["type"] == "table"]
    assert tables
    for where, panel in tables:
        merge, organize = panel["transformations"]
        assert (merge["id"], organize["id"]) == ("merge", "organize")
        named = set(organize["options"]["renameByName"].values())
        assert named == {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]}, where
        assert all(target["instant"] and target["format"] == "table" for target in panel["targets"]), where


def test_panels_fill_the_grid_without_overlap() -> None:
    least = {"timeseries": (8, 6), "table": (8, 6), "state-timeline": (8, 6), "stat": (4, 4)}
    for name, board in BOARDS.items():
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            inside: set[tuple[int, int]] = set()
            for each in panel.get("panels", ()):  # drawn below its row when that is opened
                assert _cells(each, name).isdisjoint(inside)
                inside |= _cells(each, name)
            assert bool(inside) == bool(panel.get("collapsed"))
            assert _cells(panel, name).isdisjoint(taken), panel["title"]
            taken |= _cells(panel, name)
        for panel in panels(board):
            width, height = least[panel["type"]]
            assert panel["gridPos"]["w"] >= width, panel["title"]  # 8 of 24 columns are 400 of 1280 pixels
            assert panel["gridPos"]["h"] >= height, panel["title"]


def _cells(panel: Any, name: str) -> set[tuple[int, int]]:
    at = panel["gridPos"]
    assert at["x"] + at["w"] <= 24, f"{name}: {panel['title']}"
    return {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}


def test_links_lead_to_every_other_dashboard_and_keep_time_and_variables() -> None:
    uids = {board["uid"] for board in BOARDS.values()}
    for name, board in BOARDS.items():
        assert {link["url"].removeprefix("/d/") for link in board["links"]} == uids - {board["uid"]}
        links = [*board["links"], *(link for panel in panels(board) for link in panel.get("links", ()))]
        for link in links:
            assert link["url"].removeprefix("/d/") in uids - {board["uid"]}, name
            assert link["keepTime"], name
            assert link["includeVars"], name


def test_variables_stand_at_all_and_only_known_ones_are_asked_for() -> None:
    for name, board in BOARDS.items():
        first, *others = board["templating"]["list"]
        assert (first["name"], first["type"]) == ("datasource", "datasource")
        for variable in others:
            assert variable["includeAll"], name
            assert variable["allValue"] == ".*", name
            assert variable["current"]["value"] == ["$__all"], name
        used = {variable["name"] for variable in others if f"${variable['name']}" in json.dumps(list(panels(board)))}
        assert used == {variable["name"] for variable in others}, f"{name}: a variable that no panel heeds"
        assert len(queries(board)) >= len(list(panels(board)))  # raises for a variable that is not there


def test_a_variable_that_is_not_there_is_refused() -> None:
    panel = {"type": "stat", "title": "Up", "targets": [{"expr": "up{job=~'$jobs'}"}]}
    with pytest.raises(ValueError, match=r"Up: the variable \$jobs"):
        queries({"templating": {"list": []}, "panels": [panel]})


def test_variables_are_filled_in_within_collapsed_rows_too() -> None:
    inner = {"type": "stat", "title": "Rate", "targets": [{"expr": 'rate(x{m=~"${m}"}[$__rate_interval])'}]}
    row = {"type": "row", "title": "More", "collapsed": True, "panels": [inner]}
    board = {"templating": {"list": [{"name": "m"}]}, "panels": [row]}
    assert queries(board) == [("Rate", 'rate(x{m=~".*"}[30s])')]
    assert queries(board, rate_interval="1m", values={"m": "a"}) == [("Rate", 'rate(x{m=~"a"}[1m])')]
    assert needs("modelyard_gpu_power_watts") == "a GPU"
    assert needs("modelyard_requests_total") == needs("sum(modelyard_gpu_power_watts) or vector(0)") == ""


def test_every_metric_is_documented() -> None:
    documented = set(METRIC.findall((ROOT / "docs" / "metrics.md").read_text()))
    asked = {name for board in BOARDS.values() for _, expr in queries(board) for name in metrics_of(expr)}
    assert len(asked) > 80
    assert {name for name in asked if SERIES.sub("", name) not in documented} == set()


def test_rates_follow_the_scrape_interval_or_a_stated_window() -> None:
    for board in BOARDS.values():
        for panel in panels(board):
            for target in panel["targets"]:
                windows = re.findall(r"(?:rate|increase)\([^\[]*\[([^\]]+)\]", target["expr"])
                assert set(windows) <= {"$__rate_interval", "$__range", "5m", "1h", "6h", "1d", "3d", "30d"}


@pytest.mark.prometheus
def test_promtool_parses_every_expression(program: Callable[[str], str], tmp_path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expr}
        for number, (_, expr) in enumerate(each for board in BOARDS.values() for each in queries(board))
    ]
    assert len(rules) > 150
    rules += [
        {"record": f"mark:{number}", "expr": mark["expr"].replace("$model", ".*")}
        for number, mark in enumerate(mark for board in BOARDS.values() for mark in board["annotations"]["list"])
    ]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        [program("promtool"), "check", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_types_of_the_sdk_take_what_is_committed() -> None:
    for path in FOLDER.glob("*.json"):
        committed = json.loads(path.read_text())
        again = json.loads(text(Dashboard.from_json(committed)))
        for marked, mark in zip(again["annotations"]["list"], committed["annotations"]["list"], strict=True):
            marked["titleFormat"] = mark["titleFormat"]  # Prometheus' own, unknown to the SDK
        assert again == committed, path.name


def test_reading_dashboards_needs_no_sdk() -> None:
    code = "import sys; import monitoring.dashboards.show; sys.exit(any('grafana' in name for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_of_figures_names_every_panel() -> None:
    page = (ROOT / "docs" / "dashboards.md").read_text()
    sections = dict(zip(BOARDS, re.split(r"\n## ", page)[-len(BOARDS) :], strict=True))
    for name, board in BOARDS.items():
        shown = re.findall(r"^\| (.+?) \| ", sections[name], re.MULTILINE)
        titles = [panel["title"] for panel in panels(board)]
        assert [each for each in shown if each != "panel"] == titles, f"{name}: run benchmarks/dashboards.py anew"
