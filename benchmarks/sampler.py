"""What watching GPUs costs: the sampler's share of a core, against a scripted NVML library with two GPUs.

    python benchmarks/sampler.py [--seconds 20] [--write docs/performance.md]

Method: tests/monitoring/fake_nvml.c is built and loaded in the driver's place. Two engines run: sleeping processes,
each with a child that the library lists on its GPU, as vLLM's engine cores are. A process of its own has nothing but
the control plane's sampler on its reader. Its CPU time, user and system of all threads, between its first reading and
its last, divided by the wall time, is the share of a core: it has everything in it but what a real driver's calls take.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from document import write  # the neighbour in this folder

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "tests/monitoring/fake_nvml.c"
RATES_HZ = (1, 10)
TURNS = 3
SLEEP = "import time; time.sleep(3600)"
ENGINE = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}])
print(child.pid, flush=True)
child.wait()
"""
SAMPLER = """
import json, sys, time
from monitoring.gpu import NvmlReader
from monitoring.sampler import Sampler
hz, seconds, engines = json.load(sys.stdin)
engines = {int(pid): version for pid, version in engines.items()}
sampler = Sampler(NvmlReader(), lambda: engines)
sampler.watch(hz)
sampler.sample_once()
cpu, began = time.process_time(), time.monotonic()
sampler.start()
time.sleep(seconds)
share, status = (time.process_time() - cpu) / (time.monotonic() - began), sampler.status()
assert status.samples > 0.9 * hz * seconds and not status.last_error, status
assert all(use.memory_bytes for use in status.use.values()) and len(status.use) == 2, status
print(share)
"""
GPU = {
    "name": "NVIDIA H100 80GB HBM3",
    "utilization": 90,
    "memory_total": 85_899_345_920,
    "memory_used": 40_000_000_000,
    "power": 400_000,
    "power_limit": 700_000,
    "energy": 10**12,
    "temperature": 60,
    "sm_clock": 1755,
    "memory_clock": 2619,
    "throttle": 4,
    "ecc_corrected": 0,
    "ecc_uncorrected": 0,
    "mig": 0,
    "mps": "",
}


@contextmanager
def engines(folder: Path) -> Iterator[dict[int, str]]:
    """Two engines, and the scenario that lists their children; pid -> version."""
    started = [subprocess.Popen([sys.executable, "-c", ENGINE], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    children: list[int] = []
    try:
        lines = ["count 2"]
        for index, engine in enumerate(started):
            assert engine.stdout is not None
            children.append(int(engine.stdout.readline()))
            values = GPU | {
                "uuid": f"GPU-{index}",
                "processes": f"{children[-1]}:40000000000",
                "samples": f"{children[-1]}:90:{time.time_ns() // 1000}",
            }
            lines += [f"{index}.{name} {value}" for name, value in values.items()]
        (folder / "scenario").write_text("\n".join(lines) + "\n")
        yield {engine.pid: f"assistant@v{index}" for index, engine in enumerate(started)}
    finally:
        for pid in children:
            os.kill(pid, 9)
        for engine in started:
            engine.kill()
            engine.wait()


def share(folder: Path, hz: int, seconds: float, running: dict[int, str]) -> float:
    """CPU seconds per second of the sampler at `hz`."""
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(folder),
        "FAKE_NVML": str(folder / "scenario"),
        "FAKE_NVML_FIXED": "1",
        "PYTHONPATH": str(ROOT),
    }
    given = json.dumps([hz, seconds, running])
    done = subprocess.run(
        [sys.executable, "-c", SAMPLER], input=given, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        library = folder / "libnvidia-ml.so.1"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
        with engines(folder) as running:
            taken = {hz: [share(folder, hz, arguments.seconds, running) for _ in range(TURNS)] for hz in RATES_HZ}
    processes = sum(1 for entry in Path("/proc").iterdir() if entry.name.isdigit())
    text = (
        f"`python benchmarks/sampler.py --seconds {arguments.seconds:g}` on {platform.machine()}, Python "
        f"{platform.python_version()}, {processes} processes on the system: share of one core, two GPUs, two engines "
        f"with a child each, median of {TURNS} runs.\n\n"
        "| readings a second | share of a core | of the runs |\n|---:|---:|---|\n"
    ) + "\n".join(
        f"| {hz} | {statistics.median(shares):.2%} | {', '.join(f'{one:.2%}' for one in sorted(shares))} |"
        for hz, shares in taken.items()
    )
    print(text)
    if arguments.write:
        write(arguments.write, "benchmarks/sampler.py", text)


if __name__ == "__main__":
    main()
