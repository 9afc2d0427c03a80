"""NVML through its real ctypes path: a C library built here answers in the driver's place, refusals included."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from nvml_library import build_nvml, run_with_nvml

from monitoring.cpu import CpuReader, ProcessTable, cores_held
from monitoring.gpu import NvmlReader, open_reader

READ = """
import json, os, sys
from dataclasses import asdict
from monitoring.devices import DeviceUnavailableError
from monitoring.gpu import open_reader
times, scenarios = json.load(sys.stdin)
def play(scenario):
    with open(os.environ["FAKE_NVML"], "w") as file:
        file.writelines(f"{key} {value}\\n" for key, value in scenario.items())
play(scenarios[0])
reader, why = open_reader()
taken = []
for at, scenario in zip(times, scenarios):
    play(scenario)
    try:
        taken.append([asdict(reading) for reading in reader.read(at)])
    except DeviceUnavailableError as error:
        taken.append(str(error))
reader.close()
json.dump({"kind": reader.kind, "why": why, "taken": taken}, sys.stdout, default=sorted)
"""
WHOLE = {
    "count": 1,
    "0.uuid": "GPU-6c7e",
    "0.name": "NVIDIA H100",
    "0.utilization": 73,
    "0.memory_total": 85899345920,
    "0.memory_used": 42949672960,
    "0.power": 412500,
    "0.power_limit": 700000,
    "0.energy": 5_000_000_000_000,
    "0.temperature": 61,
    "0.sm_clock": 1755,
    "0.memory_clock": 2619,
    "0.throttle": 0x24,
    "0.ecc_corrected": 3,
    "0.ecc_uncorrected": 0,
    "0.mig": 0,
    "0.mps": "",
    "0.processes": "4242:1073741824,4243:2147483648",
    "0.samples": "4242:30:1000000,4242:50:2000000,4243:10:2000000",
}
GPU_IS_LOST, NO_PERMISSION = "!15", "!4"
TWO = (
    WHOLE
    | {key.replace("0.", "1."): value for key, value in WHOLE.items() if key != "count"}
    | {"count": 2, "1.uuid": "GPU-9f00"}
)

Play = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Folders with an `libnvidia-ml.so.1`: of a driver of today, and of an old one (True)."""
    return {old: build_nvml(tmp_path_factory.mktemp("nvml"), old_driver=old) for old in (False, True)}


@pytest.fixture
def play(libraries: dict[bool, Path], tmp_path: Path) -> Play:
    """Readings of a new process under each scenario in turn."""

    def run(*scenarios: dict[str, Any], times: Sequence[float] = (), old_driver: bool = False) -> dict[str, Any]:
        times = times or [1000.0 + 60 * step for step in range(len(scenarios))]
        done = run_with_nvml(libraries[old_driver], tmp_path / "scenario", READ, [times, scenarios])
        return json.loads(done)

    return run


def test_every_value_in_base_units(play: Play) -> None:
    answer = play(WHOLE)
    assert (answer["kind"], answer["why"]) == ("gpu", "")
    (reading,) = answer["taken"][0]
    processes = reading.pop("processes")
    assert reading == {
        "kind": "gpu",
        "device": "GPU-6c7e",
        "at": 1000.0,
        "index": 0,
        "name": "NVIDIA H100",
        "cores": None,
        "utilisation": 0.73,
        "memory_used_bytes": 42949672960,
        "memory_total_bytes": 85899345920,
        "power_w": 412.5,
        "power_limit_w": 700.0,
        "energy_j": 5e9,
        "temperature_c": 61.0,
        "sm_clock_hz": 1.755e9,
        "memory_clock_hz": 2.619e9,
        "throttle_reasons": ["power_cap", "sw_thermal"],
        "ecc_corrected": 3,
        "ecc_uncorrected": 0,
        "xid_errors": {},
        "mig": False,
        "mps": False,
        "absent": {},
    }
    assert [(p["pid"], p["memory_bytes"], p["utilisation"], p["sm_s"]) for p in processes] == [
        (4242, 1073741824, pytest.approx(0.4), None),  # nobody knows since when
        (4243, 2147483648, pytest.approx(0.1), None),
    ]


def test_sm_time_is_share_times_the_samples_own_time(play: Play) -> None:
    more = WHOLE["0.samples"] + ",4242:90:2250000,4242:20:3250000"
    late = more + ",4243:50:9500000"
    taken = play(
        WHOLE, *[WHOLE | {"0.samples": more}] * 4, WHOLE | {"0.samples": late}, times=[2.0, 3.3, 4.3, 5.3, 9.3, 9.9]
    )["taken"]
    use = [[(one["utilisation"], one["sm_s"]) for one in reading["processes"]] for (reading,) in taken]
    assert use[1] == [(pytest.approx(0.55), pytest.approx(0.9 * 0.25 + 0.2 * 1.0)), (0.0, 0.0)]
    assert use[2:5] == [[(0.0, 0.0), (0.0, 0.0)]] * 3
    # After six seconds of silence a sample stands for the time since the reading before, not for the silence.
    assert use[5] == [(0.0, 0.0), (0.5, pytest.approx(0.5 * 0.25))]


def test_what_the_driver_reports_by_itself_is_counted_per_gpu(play: Play) -> None:
    both = TWO | {"xids": "0:31,1:79"}
    first, second, third = play(both, both, both | {"xids": "0:31,1:79,0:31,0:13"})["taken"]
    assert [reading["xid_errors"] for reading in first] == [{}, {}]  # they are waited for from the first reading on
    assert [reading["xid_errors"] for reading in second] == [{"31": 1}, {"79": 1}]
    assert [reading["xid_errors"] for reading in third] == [{"31": 2, "13": 1}, {"79": 1}]


def test_modes_and_a_driver_that_reports_no_events(play: Play) -> None:
    (reading,) = play(WHOLE | {"0.mig": 1, "0.mps": "4242:1073741824", "0.events": NO_PERMISSION})["taken"][0]
    assert (reading["mig"], reading["mps"], reading["xid_errors"]) == (True, True, None)
    assert reading["absent"] == {"xid_errors": "Insufficient Permissions"}


def test_each_refusal_leaves_the_other_values_and_says_why(play: Play) -> None:
    on_mig = {k: v for k, v in WHOLE.items() if k not in ("0.utilization", "0.energy", "0.samples")} | {"0.mig": 1}
    (divided,) = play(on_mig)["taken"][0]
    assert [process["sm_s"] for process in divided["processes"]] == [None, None]
    assert divided["absent"]["process_utilisation"] == "Not Supported"
    (reading,) = play(on_mig | {"0.processes": NO_PERMISSION, "0.throttle": "!3", "0.ecc_corrected": "!3"})["taken"][0]
    assert reading["utilisation"] is None
    assert reading["energy_j"] is None
    assert reading["processes"] is None
    assert reading["power_w"] == 412.5
    assert reading["absent"] == {
        "utilisation": "Not Supported",
        "energy_j": "Not Supported",
        "processes": "Insufficient Permissions",
        "throttle_reasons": "Not Supported",
        "ecc_corrected": "Not Supported",
    }


def test_no_process_at_all_is_an_answer(play: Play) -> None:
    (reading,) = play(WHOLE | {"0.processes": "", "0.samples": ""})["taken"][0]
    assert reading["processes"] == []


def test_an_old_driver_gives_what_it_has_by_its_old_calls(play: Play) -> None:
    (reading,) = play(WHOLE, old_driver=True)["taken"][0]
    assert reading["temperature_c"] == 61.0
    assert reading["throttle_reasons"] == ["power_cap", "sw_thermal"]


def test_a_lost_gpu_keeps_its_name_beside_one_that_answers_and_may_come_back(play: Play) -> None:
    both = TWO
    gone = {key: GPU_IS_LOST if key.startswith("1.") else value for key, value in both.items()} | {
        "1.handle": GPU_IS_LOST
    }
    whole, lost, back = play(both, gone, both)["taken"]
    assert [reading["device"] for reading in whole] == ["GPU-6c7e", "GPU-9f00"]
    assert [reading["device"] for reading in lost] == ["GPU-6c7e", "GPU-9f00"]
    assert lost[0]["power_w"] == 412.5
    assert lost[1]["power_w"] is None
    assert lost[1]["absent"] == {"device": "GPU is lost"}
    assert back[1]["power_w"] == 412.5


def test_a_gpu_lost_between_two_calls_of_one_reading(play: Play) -> None:
    mid = WHOLE | {"0.uuid": GPU_IS_LOST, "0.name": GPU_IS_LOST}
    _, (reading,) = play(WHOLE, mid)["taken"]
    assert (reading["device"], reading["power_w"]) == ("GPU-6c7e", None)


def test_a_gpu_that_is_gone_from_the_list_does_not_lend_its_number_to_another(play: Play) -> None:
    only_second = {key.replace("1.", "0."): value for key, value in TWO.items() if not key.startswith("0.")}
    whole, shrunk = play(TWO, only_second | {"count": 1})["taken"]
    assert [reading["device"] for reading in whole] == ["GPU-6c7e", "GPU-9f00"]
    assert {reading["device"]: reading["power_w"] for reading in shrunk} == {"GPU-9f00": 412.5, "GPU-6c7e": None}
    (gone,) = (reading for reading in shrunk if reading["absent"])
    assert gone["absent"] == {"device": "the driver does not list it any more"}


def test_a_driver_that_went_away_leaves_every_gpu_lost_and_is_tried_again_ever_later(play: Play) -> None:
    away = {"count": "!1", "init": "!9"}
    times = [0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.9, 8.0, 8.1]
    taken = play(TWO, *[away] * 6, *[TWO] * 3, times=times)["taken"]
    assert [reading["power_w"] for reading in taken[1]] == [None, None]
    assert taken[1][0]["name"] == "NVIDIA H100"
    # Opened anew after 1 s, then 2 s (refused both times), then 4 s: a driver that is back meanwhile is not noticed.
    whys = [readings[0]["absent"].get("device") for readings in taken]
    assert whys[0] is None
    assert whys[3] == whys[5] == whys[7] == "NVML is not usable: Driver Not Loaded"
    assert whys[8:] == [None, None]
    assert taken[9][0]["processes"][0]["sm_s"] == 0.0


@pytest.mark.parametrize(
    ("scenario", "why"),
    [
        ({"count": 0}, "NVML shows no GPU"),
        ({"init": "!9", "count": 1}, "NVML is not usable: Driver Not Loaded"),
    ],
)
def test_without_a_usable_gpu_the_cpu_is_read_and_the_reason_kept(play: Play, scenario: dict, why: str) -> None:
    answer = play(scenario)
    assert answer["kind"] == "cpu"
    assert answer["why"] == why
    assert answer["taken"][0][0]["kind"] == "cpu"


def test_this_machine_is_read_one_way_or_the_other() -> None:
    reader, why = open_reader()
    (first, *_) = reader.read(1.0)
    assert first.kind == reader.kind
    assert isinstance(reader, NvmlReader) or why
    assert (first.memory_total_bytes or 0) > 0
    reader.close()


def test_the_cpu_counts_a_process_with_its_children() -> None:
    burn = "import subprocess, sys; c = 'while True: pass'; p = subprocess.Popen([sys.executable, '-c', c]); p.wait()"
    parent = subprocess.Popen([sys.executable, "-c", burn])
    try:
        process = psutil.Process(parent.pid)
        while not (children := process.children()) or children[0].cpu_times().user < 0.2:
            assert parent.poll() is None
        reader = CpuReader()
        first = reader.read(1.0, [parent.pid, 2**22 - 1])[0]
        assert first.absent["utilisation"]
        assert first.processes is not None
        (reading,) = first.processes  # the pid that nobody has is left out
        assert (reading.cpu_s or 0) >= 0.2
        assert reading.started_at == process.create_time()
        before = reading.cpu_s or 0
        children[0].kill()
        parent.wait()
        assert ProcessTable().read([parent.pid], 0.0).get(parent.pid) is None
        assert before > 0
        again = reader.read(2.0)[0]
        assert again.utilisation is None or 0 <= again.utilisation <= 1
    finally:
        for child in psutil.Process(parent.pid).children() if parent.poll() is None else []:
            child.kill()
        parent.kill()
        parent.wait()


def test_a_control_groups_quota_limits_the_cores(tmp_path: Path) -> None:
    quota = tmp_path / "sys/fs/cgroup/cpu.max"
    quota.parent.mkdir(parents=True)
    quota.write_text("50000 100000\n")
    assert cores_held(tmp_path) == 0.5
    quota.write_text("max 100000\n")
    assert cores_held(tmp_path) == cores_held(tmp_path / "nothing")
