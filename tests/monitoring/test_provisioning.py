"""Grafana's provisioning and the compose file name what is there, and open nothing to other machines."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path, PurePosixPath
from typing import Any

import httpx
import pytest
import yaml
from components import ROOT, missing
from prometheus_fixture import free_port

GRAFANA = ROOT / "configs" / "grafana"
COMPOSE = yaml.safe_load((ROOT / "compose.monitoring.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def options_of(service: str) -> dict[str, str]:
    """--name=value of a service's command."""
    return dict(option.removeprefix("--").split("=", 1) for option in SERVICES[service]["command"])


def mounts_of(service: str) -> dict[str, tuple[str, str]]:
    """Path in the container -> (what is mounted, mode)."""
    split = (volume.split(":") for volume in SERVICES[service]["volumes"])
    return {target: (source, mode[0] if mode else "rw") for source, target, *mode in split}


def test_the_data_source_is_asked_as_often_as_prometheus_scrapes() -> None:
    prometheus, alertmanager = yaml.safe_load((GRAFANA / "provisioning/datasources/modelyard.yml").read_text())[
        "datasources"
    ]
    scrape = yaml.safe_load((ROOT / "configs/prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]
    assert prometheus["type"] == "prometheus"
    assert prometheus["isDefault"]
    assert prometheus["jsonData"]["timeInterval"] == scrape
    assert alertmanager["type"] == "alertmanager"
    assert alertmanager["jsonData"]["implementation"] == "prometheus"
    given = SERVICES["grafana"]["environment"]
    for source in (prometheus, alertmanager):
        assert source["url"].strip("${}") in given


def test_the_provider_reads_the_folder_that_compose_mounts() -> None:
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/modelyard.yml").read_text())["providers"]
    mounts = mounts_of("grafana")
    source, mode = mounts[provider["options"]["path"]]
    assert (ROOT / source).resolve() == GRAFANA / "dashboards"
    assert mode == "ro"
    home = PurePosixPath(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert json.loads((GRAFANA / "dashboards" / home.name).read_text())["uid"] == "modelyard-overview"


def test_every_mounted_path_exists_and_every_volume_is_declared() -> None:
    for service in SERVICES:
        for target, (source, mode) in mounts_of(service).items():
            if source.startswith("."):
                assert (ROOT / source).exists(), f"{service}: {source}"
                assert mode == "ro", f"{service}: {target}"
            else:
                assert source in COMPOSE["volumes"], f"{service}: {source}"


def test_options_lead_to_what_is_mounted() -> None:
    for service in ("prometheus", "alertmanager"):
        options, mounts = options_of(service), mounts_of(service)
        assert options["config.file"] in mounts
        assert options.get("storage.tsdb.path", options.get("storage.path")) in mounts
    rules = yaml.safe_load((ROOT / "configs/prometheus/prometheus.yml").read_text())["rule_files"]
    folder = PurePosixPath(options_of("prometheus")["config.file"]).parent
    for pattern in rules:
        assert str((folder / pattern).parent) in mounts_of("prometheus")
        assert list((ROOT / "configs/prometheus").glob(pattern))


def test_images_are_pinned_and_nothing_listens_beyond_this_machine() -> None:
    for name, service in SERVICES.items():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"]), name
        assert service["network_mode"] == "host", name
        assert "privileged" not in service, name
        assert service["cap_drop"] == ["ALL"], name
    for service in ("prometheus", "alertmanager"):
        assert options_of(service)["web.listen-address"].startswith("127.0.0.1:")
    assert options_of("alertmanager")["cluster.listen-address"] == ""
    grafana = SERVICES["grafana"]["environment"]
    assert grafana["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert grafana["PROMETHEUS_URL"] == f"http://{options_of('prometheus')['web.listen-address']}"
    assert grafana["ALERTMANAGER_URL"] == f"http://{options_of('alertmanager')['web.listen-address']}"
    assert ":?" in grafana["GF_SECURITY_ADMIN_PASSWORD"]  # there is no default password


def test_prometheus_keeps_as_many_days_as_the_objectives_look_back() -> None:
    days = int(options_of("prometheus")["storage.tsdb.retention.time"].removesuffix("d"))
    windows = re.findall(r"\[(\d+)d\]", (GRAFANA / "dashboards" / "slo.json").read_text())
    assert days > max(map(int, windows))


@pytest.mark.prometheus
@pytest.mark.parametrize(
    ("service", "name"), [("prometheus", "prometheus"), ("alertmanager", "prometheus-alertmanager")]
)
def test_the_programs_start_with_the_options_and_files_of_compose(service: str, name: str, tmp_path: Path) -> None:
    """Everything but the images: container paths stand for what is mounted there, the port is another one."""
    program = shutil.which(name)
    if program is None:
        missing(name, f"apt-get install {name}")
    mounts, url = mounts_of(service), f"127.0.0.1:{free_port()}"
    command = [str(program)]
    for option, value in options_of(service).items():
        source, _ = mounts.get(value, (value, ""))
        given = str(ROOT / source) if source.startswith(".") else str(tmp_path / source) if value in mounts else value
        command.append(f"--{option}={url if option == 'web.listen-address' else given}")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not _ready(url):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        if service == "prometheus":
            groups = httpx.get(f"http://{url}/api/v1/rules", trust_env=False, timeout=30).json()["data"]["groups"]
            rules = list((ROOT / "configs/prometheus/rules").glob("*.yml"))
            assert {Path(group["file"]).name for group in groups} == {path.name for path in rules}
    finally:
        process.terminate()
        process.wait(60)


def _ready(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/-/ready", timeout=2, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
