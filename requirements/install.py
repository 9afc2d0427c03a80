"""Make `.venv` and install one set of requirements into it, with progress; the second time costs nothing.

    python3 requirements/install.py quickstart|dev|bench|hosted|sdks|inprocess|inprocess-llama

Owns: `.venv`, or what MODELYARD_VENV names. Never: anything outside it; resolving versions (requirements/*.txt say
them, with hashes).
Runs on the standard library alone, before anything is installed; old Pythons can read it, so that they can say so.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(os.environ.get("MODELYARD_VENV", str(ROOT / ".venv")))
STAMP = VENV / "modelyard-installed.json"
LOG = VENV / "install.log"
INCLUDES = {
    "quickstart": ("quickstart", "dev"),
    "dev": ("dev",),
    "bench": ("bench",),
    "hosted": ("hosted",),
    "sdks": ("sdks",),
    "inprocess": ("inprocess",),
    "inprocess-llama": ("inprocess-llama",),
}
"""A set of requirements -> the installed sets that hold all of it."""
ALONE = ("hosted", "sdks", "inprocess", "inprocess-llama")
"""Sets for an environment that modelyard itself is not installed into."""
COMPILED = {
    "inprocess-llama": {
        "CMAKE_GENERATOR": "Ninja",
        "CMAKE_ARGS": "-DLLAVA_BUILD=OFF -DLLAMA_ALL_WARNINGS=OFF -DCMAKE_PROJECT_INCLUDE=%s"
        % (ROOT / "requirements" / "llama-cpp.cmake"),
        "PATH": "%s%s%s" % (VENV / "bin", os.pathsep, os.environ.get("PATH", os.defpath)),
    }
}
"""Sets that are compiled here, with what the compilation is told. What builds them is in the environment already."""


def stop(sentence, log=""):
    """End with one sentence on standard error, after the last lines of a failed step's log."""
    if log:
        sys.stderr.write("\n".join(log.splitlines()[-15:]) + "\n")
    sys.stderr.write("make: %s\n" % sentence)
    raise SystemExit(1)


def fingerprint(name):
    """Changes with anything that would change what is installed."""
    found = hashlib.sha256(repr((sys.version_info[:2], str(ROOT))).encode())
    for path in ("requirements/setup.txt", "requirements/%s.txt" % name, "pyproject.toml"):
        found.update((ROOT / path).read_bytes())
    return found.hexdigest()


def installed(name):
    """Whether the set, or one that includes it, is there as the requirements say it."""
    try:
        stamps = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return False
    return any(stamps.get(other) == fingerprint(other) for other in INCLUDES[name])


def usable():
    """Whether `.venv` can be built upon: made for this folder, with a pip that starts, no installation cut off."""
    try:
        made_for = (VENV / "pyvenv.cfg").read_text()
    except OSError:
        return False
    if "command = " in made_for and str(VENV) not in made_for:
        return False  # moved or copied: its programs still name the old folder
    try:
        log = LOG.read_text(errors="replace")
    except OSError:
        log = ""
    if "\nInstalling collected" in log and "\nSuccessfully installed" not in log:
        return False  # pip takes a package that is half there for installed
    argv = [str(VENV / "bin" / "python"), "-c", "import pip._internal"]
    try:
        return not subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode
    except OSError:
        return False


def locked():
    """Hold `.venv` until this process ends; wait where another one makes it at this moment."""
    try:
        VENV.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(str(VENV), os.O_RDONLY)
    except OSError as error:
        stop("%s cannot be made (%s): mend that, or name another folder in MODELYARD_VENV" % (VENV, error.strerror))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.stderr.write("Another make sets up %s: waiting for it\n" % VENV.name)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


class Bar:
    """One line that is drawn over on a terminal; elsewhere a line for each step."""

    def __init__(self):
        self.drawn = sys.stderr.isatty()
        self.begin = time.monotonic()
        self.title = ""

    def show(self, title, part, text=""):
        """`part` is between 0 and 1."""
        if self.drawn:
            full = int(28 * min(part, 1.0))
            line = "  %-12s %s%s %3d%% %4.0f s  %s" % (
                title,
                "━" * full,
                "─" * (28 - full),
                100 * part,
                time.monotonic() - self.begin,
                text,
            )
            sys.stderr.write("\r\x1b[2K" + line[:110])
        elif title != self.title:
            sys.stderr.write("  %s\n" % title)
        self.title = title
        sys.stderr.flush()

    def done(self, sentence):
        lead = "\r\x1b[2K" if self.drawn else ""
        sys.stderr.write("%s  %s (%.0f s)\n" % (lead, sentence, time.monotonic() - self.begin))


def quiet(argv, sentence):
    """Run a short step; its output is shown only where it fails."""
    result = subprocess.run(argv, cwd=str(ROOT), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if result.returncode:
        stop(sentence, result.stdout.decode(errors="replace"))


def pip(*arguments):
    return [str(VENV / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", *arguments]


@contextlib.contextmanager
def ended(process):
    """The process has ended when the block has, also by Ctrl-C."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def install_packages(name, bar):
    """pip's own download lines and then the packages as they appear, as one bar."""
    path = ROOT / "requirements" / ("%s.txt" % name)
    wanted = len(re.findall(r"^\S+==", path.read_text(), re.M))
    how = ("--no-build-isolation", "--no-binary") if name in COMPILED else ("--only-binary",)
    argv = pip("--require-hashes", "--no-deps", *how, ":all:", "--progress-bar", "off", "-r", str(path))
    environment = dict(os.environ, **COMPILED.get(name, {}))
    collected = 0
    with LOG.open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(argv, cwd=str(ROOT), stdout=log, stderr=subprocess.STDOUT, env=environment)
        with ended(process), LOG.open(encoding="utf-8") as lines:
            package = ""
            putting = compiling = False
            while process.poll() is None:
                for line in lines:
                    wanted -= line.startswith("Ignoring ")
                    if line.startswith(("Collecting ", "Requirement already satisfied")):
                        collected += 1
                        package = line.split()[1 if line.startswith("C") else 3].split("==")[0]
                    putting = putting or line.startswith("Installing collected")
                    compiling = compiling or line.startswith("Building wheels")
                if putting:
                    there = len(list(VENV.glob("lib/python*/site-packages/*.dist-info")))
                    bar.show(
                        "installing", there / max(wanted, there), "%d of %d packages" % (min(there, wanted), wanted)
                    )
                elif compiling:
                    bar.show("compiling", 0.5, package)
                else:
                    bar.show("downloading", collected / max(wanted, 1), "%d of %d  %s" % (collected, wanted, package))
                time.sleep(0.1)
    if process.returncode:
        stop(
            "the packages of requirements/%s.txt could not be installed: see above and %s; check the network and pip's "
            "configuration, then run the command again" % (name, LOG),
            LOG.read_text(errors="replace"),
        )


def main():
    name = sys.argv[1] if len(sys.argv) == 2 else "quickstart"
    if name not in INCLUDES:
        stop("there is no set of requirements %r: one of %s" % (name, ", ".join(INCLUDES)))
    if sys.version_info < (3, 11):  # noqa: UP036 - this file runs before the project's own check can
        stop(
            "Modelyard needs Python 3.11 or newer and %s is %d.%d: install one and name it, `make PYTHON=python3.12 up`"
            % (sys.executable, sys.version_info[0], sys.version_info[1])
        )
    if installed(name):
        return
    locked()
    if installed(name):
        return
    bar = Bar()
    sys.stderr.write("Setting up %s for %s\n" % (VENV.name, name))
    bar.show("environment", 0.0)
    if not usable():
        quiet(
            [sys.executable, "-m", "venv", "--clear", str(VENV)],
            "the virtual environment could not be made: on Debian and Ubuntu, install the package python3-venv",
        )
    bar.show("environment", 0.6)
    quiet(
        pip("--quiet", "--require-hashes", "--no-deps", "-r", str(ROOT / "requirements" / "setup.txt")),
        "pip could not be updated from requirements/setup.txt: check the network and pip's configuration",
    )
    install_packages(name, bar)
    if name not in ALONE:
        bar.show("modelyard", 1.0)
        quiet(
            pip("--quiet", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)),
            "modelyard itself could not be installed into %s" % VENV,
        )
    try:
        stamps = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        stamps = {}
    stamps[name] = fingerprint(name)
    STAMP.write_text(json.dumps(stamps))
    bar.done("%s is ready" % VENV.name)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.stderr.write("\nmake: stopped; the same command goes on from here\n")
        raise SystemExit(130) from None
    except OSError as error:
        stop("%s cannot be written (%s): mend that, then run the command again" % (VENV, error.strerror))
