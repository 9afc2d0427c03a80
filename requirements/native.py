"""Compile the router's hot path with mypyc, for a quarter less CPU a request: `make native`.

    .venv/bin/python requirements/native.py

Needs a C compiler and what `make dev` installs. Owns: `.native`, of which only what these sources made is kept. What
it makes is used by itself (serving/native.py says when), and changes nothing but the time that things take.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from serving import native  # noqa: E402 - the path comes first

SETUP = """
from mypyc.build import mypycify
from setuptools import setup

modules = [f"serving/router/{name}.py" for name in %r]
options = ["--ignore-missing-imports", "--follow-imports=silent", *modules]
setup(
    name="modelyard-native",
    ext_modules=mypycify(options, opt_level="3", debug_level="0", group_name="serving.router.native"),
)
"""


def stop(sentence: str) -> None:
    sys.stderr.write(f"make native: {sentence}\n")
    raise SystemExit(4)


def build(work: Path) -> None:
    """Compile copies of the sources in `work`, so that nothing of it is left beside the sources."""
    for package in ("serving", "registry"):
        shutil.copytree(ROOT / package, work / package, ignore=shutil.ignore_patterns("__pycache__"))
    (work / "serving" / "router" / "__init__.py").write_text("")
    (work / "setup.py").write_text(SETUP % (native.COMPILED,))
    log = work / "log"
    environment = {**os.environ, "MYPY_CACHE_DIR": str(work / "mypy")}
    with log.open("wb") as output:
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        done = subprocess.run(command, cwd=work, env=environment, stdout=output, stderr=output, check=False)
    if done.returncode:
        sys.stderr.write(log.read_text(errors="replace")[-2000:])
        stop("the modules were not compiled, and the router runs as Python; the lines above say why")


def main() -> None:
    """Build unless it is there, then forget older builds."""
    target = ROOT / ".native" / native.digest()
    if not target.is_dir():
        compiler = os.environ.get("CC", "gcc")
        if shutil.which(compiler) is None:
            stop(f"there is no C compiler {compiler}: install one (apt-get install gcc), or name yours in CC")
        sys.stderr.write("Compiling the router's hot path (about a minute) …\n")
        with tempfile.TemporaryDirectory(prefix="modelyard-native-") as name:
            work = Path(name)
            build(work)
            partial = target.with_suffix(f".{os.getpid()}")
            (partial / "serving" / "router").mkdir(parents=True)
            for built in (work / "serving" / "router").glob("*.so"):
                shutil.copy2(built, partial / "serving" / "router")
            partial.rename(target)
    for old in target.parent.iterdir():
        if old != target:
            shutil.rmtree(old)
    sys.stderr.write("The router's hot path is compiled; routers that start from now on use it.\n")


if __name__ == "__main__":
    main()
