"""A scripted afternoon of two GPUs through everything real: C library, ctypes, reader, sampler, process table, metrics.

Two engines run: one with a child that holds its memory on GPU 0 (as vLLM's engine cores do), one on GPU 1.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from nvml_library import build_nvml, run_with_nvml

from registry.entries import HOUR_S

HOUR = 1_700_000_000 // HOUR_S * HOUR_S
PROGRAM = """
import json, os, subprocess, sys
from dataclasses import asdict
from prometheus_client import CollectorRegistry, generate_latest
from monitoring.device_metrics import collect_devices, collect_sampler
from monitoring.gpu import NvmlReader
from monitoring.sampler import Sampler
times, scenarios = json.load(sys.stdin)
sleep = "import time; time.sleep(600)"
start = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {sleep!r}])"
parent = f"{start}; print(p.pid, flush=True); p.wait()"
first = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
second = subprocess.Popen([sys.executable, "-c", sleep])
child = int(first.stdout.readline())
pids = {"FIRST": first.pid, "CHILD": child, "SECOND": second.pid, "OTHER": 2**22 - 1}
def play(scenario):
    lines = "".join(f"{key} {value}\\n" for key, value in scenario.items())
    for name, pid in pids.items():
        lines = lines.replace(name, str(pid))
    with open(os.environ["FAKE_NVML"], "w") as file:
        file.write(lines)
class Shown:
    def __init__(self, sampler): self.sampler = sampler
    def collect(self):
        yield from collect_devices(self.sampler.latest(), self.sampler.engine_memory())
        yield from collect_sampler(self.sampler.status())
try:
    play(scenarios[0])
    now = iter(times)
    sampler = Sampler(
        NvmlReader(), lambda: {first.pid: "assistant@v1", second.pid: "assistant@v2"}, clock=lambda: next(now)
    )
    registry = CollectorRegistry()
    registry.register(Shown(sampler))
    pages = []
    for scenario in scenarios:
        play(scenario)
        sampler.sample_once()
        pages.append(generate_latest(registry).decode())
    print(json.dumps({
        "pages": pages,
        "sums": asdict(sampler.peek()),
        "status": sampler.status().failing,
        "devices": [sampler.device_of(first.pid), sampler.device_of(second.pid)],
    }))
    sampler.stop()
finally:
    os.kill(child, 9)
    first.kill(), second.kill()
"""


def gpu(index: int, **values: Any) -> dict[str, Any]:
    return {f"{index}.{name}": value for name, value in values.items()}


START_US = int(HOUR * 1e6)


def both(second: float, samples: str, **more: Any) -> dict[str, Any]:
    """Both GPUs `second` seconds into the hour: 400 W and 200 W by their counters."""
    return (
        {"count": 2}
        | gpu(0, uuid="GPU-a", name="NVIDIA H100", power=400_000, power_limit=700_000, energy=int(400_000 * second))
        | gpu(0, utilization=90, processes="CHILD:8000,OTHER:500", samples=samples, mig=0, mps="", throttle=4)
        | gpu(1, uuid="GPU-b", name="NVIDIA A30", power=200_000, energy=int(200_000 * second), mig=1)
        | gpu(1, processes="SECOND:3000", utilization="!3")
        | more
    )


def us(second: float) -> int:
    return START_US + int(second * 1e6)


@pytest.fixture(scope="module")
def afternoon(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("afternoon")
    build_nvml(folder)
    seen = f"CHILD:50:{us(1)}"
    lost = dict.fromkeys(gpu(1, handle=0, uuid=0), "!15")
    steps = [
        (1.0, both(1, seen)),
        (2.0, both(2, f"{seen},CHILD:80:{us(1.5)},CHILD:40:{us(2)},OTHER:20:{us(2)}")),
        (3.0, both(3, f"CHILD:60:{us(2.5)},CHILD:60:{us(3)}", **{"0.energy": 17})),  # it wrapped: 17 mJ
        (4.0, both(4, "", **{"0.energy": 400_017}, **lost)),
        (6.0, both(6, "", **{"0.energy": 1_200_017, "xids": "0:31"})),
        (7.0, both(7, "", **{"0.energy": 1_600_017, "xids": "0:31,0:31"})),
        (8.0, {"count": "!1", "init": "!9"}),
    ]
    times = [HOUR + second for second, _ in steps]
    return json.loads(run_with_nvml(folder, folder / "scenario", PROGRAM, [times, [scenario for _, scenario in steps]]))


def test_held_time_goes_on_and_energy_is_only_what_was_measured(afternoon: dict[str, Any]) -> None:
    held = {row["device"]: row for row in afternoon["sums"]["held"]}
    assert held["GPU-a"]["held_s"] == held["GPU-b"]["held_s"] == 7.0
    # GPU 0: without the second in which the counter wrapped and the last one, in which the driver was gone.
    assert (held["GPU-a"]["energy_j"], held["GPU-a"]["metered_s"]) == (pytest.approx(5 * 400.0), 5.0)
    # GPU 1: lost from 4 to 6; its counter went on, but nobody saw it do so.
    assert (held["GPU-b"]["energy_j"], held["GPU-b"]["metered_s"]) == (pytest.approx(3 * 200.0), 3.0)


def test_sm_time_goes_to_the_version_whose_child_took_it(afternoon: dict[str, Any]) -> None:
    (row,) = afternoon["sums"]["sm"]  # GPU 1 is divided by MIG: it does not say
    assert (row["device"], row["version"], row["hour"]) == ("GPU-a", "assistant@v1", HOUR)
    assert row["sm_s"] == pytest.approx(0.8 * 0.5 + 0.4 * 0.5 + 0.6 * 1.0)
    assert afternoon["devices"] == [None, None]  # the driver is gone by now


def test_memory_goes_to_versions_while_it_is_held(afternoon: dict[str, Any]) -> None:
    memory = {(row["device"], row["version"]): row["byte_s"] for row in afternoon["sums"]["memory"]}
    assert memory["GPU-a", "assistant@v1"] == 8000.0 * 6
    assert memory["GPU-b", "assistant@v2"] == 3000.0 * (1 + 1 + 2 + 1)


def test_metrics_show_what_is_there_and_mark_what_is_not(afternoon: dict[str, Any]) -> None:
    pages = afternoon["pages"]
    for line in (
        'modelyard_gpu_up{device="GPU-a"} 1.0',
        'modelyard_gpu_power_limit_watts{device="GPU-a"} 700.0',
        'modelyard_gpu_throttled{device="GPU-a",reason="power_cap"} 1.0',
        'modelyard_gpu_throttled{device="GPU-a",reason="hw_thermal"} 0.0',
        'modelyard_gpu_mode{device="GPU-b",mode="mig"} 1.0',
        'modelyard_gpu_process_utilization_ratio{device="GPU-a",model="assistant",version="v1"} 0.6',
        'modelyard_gpu_process_memory_bytes{device="GPU-b",model="assistant",version="v2"} 3000.0',
        'modelyard_device_reading_absent{device="GPU-b",reading="process_utilisation"} 1.0',
        'modelyard_device_reading_absent{device="GPU-b",reading="utilisation"} 1.0',
        'modelyard_gpu_resets_total{counter="energy",device="GPU-a"} 0.0',
    ):
        assert line in pages[1].splitlines()
    assert 'modelyard_gpu_resets_total{counter="energy",device="GPU-a"} 1.0' in pages[2]
    assert 'modelyard_gpu_up{device="GPU-b"} 0.0' in pages[3]
    assert 'power_watts{device="GPU-b"}' not in pages[3]
    assert 'modelyard_device_reading_absent{device="GPU-b",reading="device"} 1.0' in pages[3]
    assert 'modelyard_gpu_up{device="GPU-b"} 1.0' in pages[4]
    assert "modelyard_sampler_gaps_total 1.0" in pages[4]
    assert 'modelyard_gpu_xid_errors_total{device="GPU-a",xid="31"} 2.0' in pages[5]


def test_without_its_driver_every_gpu_is_down_and_no_value_stays(afternoon: dict[str, Any]) -> None:
    last = afternoon["pages"][-1]
    assert 'modelyard_gpu_up{device="GPU-a"} 0.0' in last
    assert 'modelyard_gpu_up{device="GPU-b"} 0.0' in last
    assert "power_watts{" not in last
    (read_at,) = (line for line in last.splitlines() if line.startswith("modelyard_sampler_last_reading"))
    assert float(read_at.split()[1]) == HOUR + 7.0
    assert afternoon["status"].startswith("GPU-a: NVML does not answer")
