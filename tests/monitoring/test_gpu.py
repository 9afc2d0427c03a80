"""NVML through its real ctypes path: a C library built here answers in the driver's place, refusals included."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from components import ROOT, missing

from monitoring.cpu import CpuReader, cores_held, read_process
from monitoring.gpu import NvmlReader, open_reader

READ = """
import json, os, sys
from dataclasses import asdict
from monitoring.devices import DeviceUnavailableError
from monitoring.gpu import open_reader
scenarios = json.load(sys.stdin)
def play(scenario):
    with open(os.environ["FAKE_NVML"], "w") as file:
        file.writelines(f"{key} {value}\\n" for key, value in scenario.items())
play(scenarios[0])
reader, why = open_reader()
taken = []
for step, scenario in enumerate(scenarios):
    play(scenario)
    try:
        taken.append([asdict(reading) for reading in reader.read(1000.0 + 60 * step)])
    except DeviceUnavailableError as error:
        taken.append(str(error))
json.dump({"kind": reader.kind, "why": why, "taken": taken}, sys.stdout)
"""
WHOLE = {
    "count": 1,
    "0.uuid": "GPU-6c7e",
    "0.name": "NVIDIA H100",
    "0.utilization": 73,
    "0.memory_total": 85899345920,
    "0.memory_used": 42949672960,
    "0.power": 412500,
    "0.energy": 5_000_000_000_000,
    "0.temperature": 61,
    "0.sm_clock": 1755,
    "0.memory_clock": 2619,
    "0.processes": "4242:1073741824,4243:2147483648",
    "0.samples": "4242:30:10,4242:50:20,4243:10:20",
}
GPU_IS_LOST, NO_PERMISSION = "!15", "!4"

Play = Callable[..., dict[str, Any]]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """Readings of a new process under each scenario in turn."""

    def run(*scenarios: dict[str, Any], old_driver: bool = False) -> dict[str, Any]:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            missing("a C compiler", "install gcc to test the NVML reader without a GPU")
        library = tmp_path / "libnvidia-ml.so.1"
        flags = ["-DOLD_DRIVER"] if old_driver else []
        source = Path(__file__).with_name("fake_nvml.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", *flags, "-o", library, source], check=True)
        environment = os.environ | {
            "LD_LIBRARY_PATH": str(tmp_path),
            "FAKE_NVML": str(tmp_path / "scenario"),
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            [sys.executable, "-c", READ],
            input=json.dumps(scenarios),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

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
        "energy_j": 5e9,
        "temperature_c": 61.0,
        "sm_clock_hz": 1.755e9,
        "memory_clock_hz": 2.619e9,
        "absent": {},
    }
    assert [(p["pid"], p["memory_bytes"], p["utilisation"]) for p in processes] == [
        (4242, 1073741824, pytest.approx(0.4)),
        (4243, 2147483648, pytest.approx(0.1)),
    ]


def test_process_utilisation_is_of_new_samples_only(play: Play) -> None:
    second = WHOLE | {"0.samples": "4242:30:10,4242:50:20,4243:10:20,4242:90:30"}
    _, (reading,), (still,) = play(WHOLE, second, second)["taken"]
    assert [process["utilisation"] for process in reading["processes"]] == [0.9, None]
    assert [process["utilisation"] for process in still["processes"]] == [None, None]


def test_each_refusal_leaves_the_other_values_and_says_why(play: Play) -> None:
    on_mig = {k: v for k, v in WHOLE.items() if k not in ("0.utilization", "0.energy", "0.samples")}
    (reading,) = play(on_mig | {"0.processes": NO_PERMISSION})["taken"][0]
    assert reading["utilisation"] is None
    assert reading["energy_j"] is None
    assert reading["processes"] is None
    assert reading["power_w"] == 412.5
    assert reading["absent"] == {
        "utilisation": "Not Supported",
        "energy_j": "Not Supported",
        "processes": "Insufficient Permissions",
    }


def test_no_process_at_all_is_an_answer(play: Play) -> None:
    (reading,) = play(WHOLE | {"0.processes": ""})["taken"][0]
    assert reading["processes"] == []


def test_an_old_driver_gives_the_temperature_by_its_old_call(play: Play) -> None:
    (reading,) = play(WHOLE, old_driver=True)["taken"][0]
    assert reading["temperature_c"] == 61.0


def test_a_lost_gpu_keeps_its_name_beside_one_that_answers_and_may_come_back(play: Play) -> None:
    second = {key.replace("0.", "1."): value for key, value in WHOLE.items() if key != "count"}
    both = WHOLE | second | {"count": 2, "1.uuid": "GPU-9f00"}
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


def test_a_driver_that_stops_answering_is_an_error_and_recovers(play: Play) -> None:
    whole, failed, back = play(WHOLE, WHOLE | {"count": "!1", "init": "!9"}, WHOLE)["taken"]
    assert failed.startswith("NVML does not answer")
    assert back[0]["power_w"] == whole[0]["power_w"]


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
        assert read_process(parent.pid) is None
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
