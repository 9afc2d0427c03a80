"""A driver's library that answers from a file, and Python processes that load it in the driver's place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from components import ROOT, missing


def build_nvml(folder: Path, *, old_driver: bool = False) -> Path:
    """`folder` with a libnvidia-ml.so.1 built from `fake_nvml.c`."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        missing("a C compiler", "install gcc to test the NVML reader without a GPU")
    flags = ["-DOLD_DRIVER"] if old_driver else []
    source = Path(__file__).with_name("fake_nvml.c")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", *flags, "-o", library, source], check=True)
    return folder


def run_with_nvml(folder: Path, scenario: Path, program: str, given: Any) -> str:
    """What `program` prints, run with that library and with `given` as JSON on its standard input."""
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder), "FAKE_NVML": str(scenario), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(given),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
