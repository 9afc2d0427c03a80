"""The committed dashboard is what the module makes, and follows the conventions."""

from __future__ import annotations

import json

import yaml
from components import ROOT

from monitoring.dashboards.__main__ import FOLDER, main, rendered

GRAFANA = ROOT / "configs" / "grafana"


def test_the_committed_dashboards_are_what_is_generated() -> None:
    assert {path.name: path.read_text() for path in FOLDER.glob("*.json")} == rendered()
    assert main(["--check"]) == 0


def test_it_writes_where_it_is_told(tmp_path) -> None:
    assert main([str(tmp_path), "--check"]) == 1
    assert main([str(tmp_path)]) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == rendered()


def test_conventions() -> None:
    overview = json.loads(rendered()["overview.json"])
    assert overview["uid"] == "modelyard-overview"
    panels = [panel for panel in overview["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in overview["panels"]}) == len(overview["panels"])
    assert len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        assert len(panel["description"]) > 40, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert "rate(" not in target["expr"] or "$__rate_interval" in target["expr"]
    assert [variable["name"] for variable in overview["templating"]["list"]] == ["datasource", "model", "version"]


def test_panels_fill_the_grid_without_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(rendered()["overview.json"])["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_provisioning_names_what_is_there() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/modelyard.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/modelyard.yml").read_text())["providers"]
    scrape = yaml.safe_load((ROOT / "configs/prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["type"] == "prometheus"
    assert source["jsonData"]["timeInterval"] == scrape
    assert provider["type"] == "file"
