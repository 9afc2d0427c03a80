"""`benchmarks/gpu.py`: what it says without a GPU, and the whole of it, real yard and engine, on a scripted one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from components import ROOT
from nvml_library import build_nvml

from monitoring.gpu import NvmlReader, open_reader

PROGRAM = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]
POWER_W = 300


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)} | more


def play(folder: Path, benchmark: subprocess.Popen[str]) -> None:
    """Until the benchmark ends: one GPU that draws 300 W, 40% of it for each of the benchmark's processes."""
    began = time.time()
    samples: list[str] = []
    while benchmark.poll() is None:
        try:
            pids = [process.pid for process in psutil.Process(benchmark.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        now = time.time()
        samples = samples[-200:] + [f"{pid}:40:{int(now * 1e6)}" for pid in pids]
        lines = {
            "driver": "570.00",
            "count": 1,
            "0.uuid": "GPU-scripted",
            "0.name": "a scripted GPU",
            "0.utilization": 80,
            "0.power": POWER_W * 1000,
            "0.energy": int(POWER_W * (now - began) * 1000),
            "0.memory_total": 8_000_000_000,
            "0.memory_used": 2_000_000_000,
            "0.processes": ",".join(f"{pid}:1000000000" for pid in pids),
            "0.samples": ",".join(samples[-60:]),
        }
        new = folder / "scenario.new"
        new.write_text("".join(f"{key} {value}\n" for key, value in lines.items()))
        new.rename(folder / "scenario")
        time.sleep(0.1)


def table(output: str, first: str) -> list[list[str]]:
    """Cells of the rows whose first cell is `first`."""
    rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if line[:1] == "|")
    return [row for row in rows if row[0] == first]


def test_without_a_gpu_it_says_so_in_one_sentence_and_ends_with_4(tmp_path: Path) -> None:
    if isinstance(open_reader()[0], NvmlReader):
        pytest.skip("this machine has a GPU")
    command = [*PROGRAM, "--write", str(tmp_path / "untouched.md")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert done.stderr.startswith("there is no GPU to measure on (NVML")
    assert done.stderr.count("\n") == 1


@pytest.mark.engine
@pytest.mark.timeout(330)
def test_a_run_on_a_scripted_gpu_gives_readings_rate_and_three_bases(tmp_path: Path, smollm2_path: Path) -> None:
    build_nvml(tmp_path)
    (tmp_path / "scenario").write_text("driver 570.00\ncount 1\n0.uuid GPU-scripted\n0.name a scripted GPU\n")
    page = tmp_path / "page.md"
    page.write_text("<!-- benchmarks/gpu.py: begin -->\nNot run.\n<!-- benchmarks/gpu.py: end -->\n")
    arguments = [str(smollm2_path), "--seconds", "2", "--clients", "2", "--tokens", "8"]
    arguments += ["--gpu-hour", "3600", "--write", str(page)]
    scripted = environment(LD_LIBRARY_PATH=str(tmp_path), FAKE_NVML=str(tmp_path / "scenario"))
    began = time.time()
    with subprocess.Popen(
        [*PROGRAM, *arguments], env=scripted, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as benchmark:
        player = threading.Thread(target=play, args=(tmp_path, benchmark))
        player.start()
        try:
            output, errors = benchmark.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            for process in (*psutil.Process(benchmark.pid).children(recursive=True), benchmark):
                process.kill()
            raise
        finally:
            player.join()
    took = time.time() - began
    assert benchmark.returncode == 0, errors
    assert "**a scripted GPU (driver 570.00)**" in output
    assert "completion tokens per second" in output
    assert table(output, "power")[0][1] == "300.0 W"
    assert table(output, "memory, the engine's processes")[0][1] == "1.0 GB"
    assert table(output, "SM clock")[0][1] == "absent"
    assert output in page.read_text() + "\n"
    methods = {row[1] for row in table(output, "allocated")}
    assert {"inflight", "sm"} <= methods
    totals = {basis: float(table(output, basis)[0][2].split()[0]) for basis in ("allocated", "busy", "energy")}
    # At 3600 a GPU-hour the bill is the seconds that the engine lived.
    assert 2 < totals["busy"] <= totals["allocated"] < took
    assert totals["energy"] == pytest.approx(POWER_W * totals["allocated"] / 3.6e6 * 0.3, rel=0.2)
