"""What ships around the code: pinned requirements, images, the Makefile, .ci/run, the documents."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from components import ROOT

REQUIREMENTS = ROOT / "requirements"
COMPILED = sorted(REQUIREMENTS.glob("*.txt"))
OURS = ("base", "serve", "quickstart", "dev", "bench")
EXTRAS = {
    "base": (),
    "serve": ("llamacpp",),
    "quickstart": ("llamacpp", "eval"),
    "dev": ("llamacpp", "eval", "otel", "dev"),
    "bench": ("llamacpp", "bench"),
}
IMAGES = ("Dockerfile.cpu", "Dockerfile.gpu")
PIN = re.compile(r"([A-Za-z0-9._-]+)==(\S+)( ; (.+?))? \\")


def pins(name: str) -> dict[tuple[str, str], str]:
    """(package, marker) -> version."""
    lines = (REQUIREMENTS / f"{name}.txt").read_text().splitlines()
    found = (PIN.fullmatch(line) for line in lines)
    return {(match[1], match[4] or ""): match[2] for match in found if match}


def normal(requirement: str) -> str:
    return re.split(r"[<>=!~;\s\[]", requirement)[0].lower().replace("_", "-").replace(".", "-")


@pytest.mark.parametrize("path", COMPILED, ids=lambda path: path.name)
def test_every_package_is_pinned_with_hashes_and_nothing_has_an_address(path: Path) -> None:
    text = path.read_text()
    requirements = re.sub(r"#.*", "", text).replace("\\\n", " ").split("\n")
    for line in filter(str.strip, requirements):
        assert re.match(r"[A-Za-z0-9._-]+==\S+", line), line
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", line), line
    assert not re.search(r"https?://|file:|--(extra-)?index|--find-links|(^|\s)/\w", text)


@pytest.mark.parametrize("name", OURS)
def test_every_declared_dependency_is_locked(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *(one for e in EXTRAS[name] for one in project["optional-dependencies"][e])]
    locked = {package.lower().replace("_", "-") for package, _ in pins(name)}
    lacking = {normal(one) for one in declared} - locked
    assert not lacking, f"run `make lock`: requirements/{name}.txt lacks {', '.join(sorted(lacking))}"


@pytest.mark.parametrize("name", [name for name in OURS if name != "dev"])
def test_the_sets_agree_on_versions(name: str) -> None:
    """What is tested is what is installed: a package has one version in all sets."""
    dev = pins("dev")
    differing = {key: (version, dev[key]) for key, version in pins(name).items() if dev.get(key, version) != version}
    assert not differing, f"run `make lock`: {differing}"


def test_the_base_is_lean() -> None:
    names = {package for package, _ in pins("base")}
    assert not names & {"pandas", "pyarrow", "datasets", "scipy", "torch", "transformers", "litellm", "numpy"}


def test_the_installer_is_readable_by_old_pythons() -> None:
    """It says which Python it wants, so that it must not stumble over its own syntax before."""
    text = (REQUIREMENTS / "install.py").read_text()
    assert not re.search(r"""\b[fF]["']""", text)
    assert ":=" not in text
    assert "match " not in text
    assert "from __future__ import annotations" not in text


def test_a_finished_set_up_costs_nothing(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    venv.mkdir()
    env = {**os.environ, "MODELYARD_VENV": str(venv)}
    code = (
        "import sys, json; sys.argv = ['install.py', 'quickstart']; sys.path.insert(0, 'requirements'); "
        "import install; "
        "install.STAMP.write_text(json.dumps({'dev': install.fingerprint('dev')})); install.main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", ""), "dev holds all of quickstart"
    assert [path.name for path in venv.iterdir()] == ["modelyard-installed.json"]


def test_what_a_cut_off_set_up_leaves_is_made_anew(tmp_path: Path) -> None:
    """Ctrl-C while the environment is made leaves one without pip, or a package that is half there."""
    venv = tmp_path / "venv"
    code = "import sys; sys.path.insert(0, 'requirements'); import install; print(install.usable())"

    def usable() -> str:
        env = {**os.environ, "MODELYARD_VENV": str(venv)}
        argv = [sys.executable, "-c", code]
        return subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout.strip()

    assert usable() == "False"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    assert usable() == "False", "no pip"
    (site_packages,) = venv.glob("lib/python*/site-packages")
    (site_packages / "pip").mkdir()
    (site_packages / "pip" / "__init__.py").touch()
    (site_packages / "pip" / "_internal.py").touch()
    assert usable() == "True"
    log = venv / "install.log"
    log.write_text("Collecting a\nInstalling collected packages: a, b\n")
    assert usable() == "False", "cut off between two packages"
    log.write_text("Collecting a\nInstalling collected packages: a, b\nSuccessfully installed a-1 b-2\n")
    assert usable() == "True"
    venv = venv.rename(tmp_path / "moved")
    assert usable() == "False", "made for another folder"


def test_an_old_python_is_one_sentence() -> None:
    code = (
        "import sys; sys.argv = ['install.py', 'quickstart']; sys.path.insert(0, 'requirements'); import install; "
        "sys.version_info = (3, 9, 2); install.main()"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Modelyard needs Python 3.11 or newer" in result.stderr
    assert "is 3.9" in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_unknown_set_is_one_sentence() -> None:
    argv = [sys.executable, "requirements/install.py", "everything"]
    result = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("make: there is no set of requirements 'everything'")


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_multi_stage_pinned_and_not_root(name: str) -> None:
    text = (ROOT / name).read_text()
    instructions = [line for line in text.splitlines() if line and not line.startswith("#")]
    stages = [line for line in instructions if line.startswith("FROM ")]
    assert len(stages) == 2
    assert stages[0].endswith(" AS build")
    (base,) = re.findall(r"^ARG \w+_IMAGE=(\S+)$", text, re.M)
    assert re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+-\S+", base), "a full version tag"
    assert ":latest" not in text
    assert "ADD " not in text
    final = text[text.index(stages[1]) :]
    user = re.findall(r"^USER (\S+)$", final, re.M)
    assert user == ["10001:10001"]
    assert final.index("USER ") < final.index("ENTRYPOINT ")
    assert "HEALTHCHECK" in final
    assert "/health/ready" in final
    assert re.search(r'^ENTRYPOINT \["modelyard"\]$', final, re.M), "exec form: signals reach it"
    assert re.search(r'^CMD \["up",.*"--host", "0\.0\.0\.0", "--require-keys"\]$', final, re.M)
    assert "EXPOSE 8001" not in text, "the admin API is for the machine that it runs on"


@pytest.mark.parametrize("name", IMAGES)
def test_images_install_with_hashes(name: str) -> None:
    text = (ROOT / name).read_text().replace("\\\n", " ")
    installs = re.findall(r"pip install ([^&\n]+)", text)
    assert installs
    for arguments in installs:
        assert "--require-hashes" in arguments or "--no-deps --no-build-isolation /src" in arguments
    named = {Path(one).name for one in re.findall(r"requirements/(\S+\.txt)", text)}
    assert all((REQUIREMENTS / one).exists() for one in named)
    for apt in re.findall(r"apt-get install ([^&]+)", text):
        assert "--no-install-recommends" in apt
    assert text.count("apt-get update") == text.count("rm -rf /var/lib/apt/lists/*")


def test_the_cpu_image_has_no_compiler_and_vllm_has_an_environment_of_its_own() -> None:
    assert "gcc" not in (ROOT / "Dockerfile.cpu").read_text()
    gpu = (ROOT / "Dockerfile.gpu").read_text()
    assert "/opt/vllm/bin/pip install --require-hashes" in gpu
    assert "requirements/base.txt" in gpu
    assert "vllm" not in {package for package, _ in pins("base")}


def test_images_get_only_what_they_need() -> None:
    rules = (ROOT / ".dockerignore").read_text().split()
    assert "*" in rules
    copied = {rule.removeprefix("!").split("/")[0] for rule in rules if rule.startswith("!")}
    assert copied == {
        *("registry", "monitoring", "eval", "serving", "configs", "requirements"),
        *("pyproject.toml", "README.md", "LICENSE"),
    }
    assert all((ROOT / one).exists() for one in copied)


def test_the_check_of_everything_is_a_valid_script() -> None:
    script = ROOT / ".ci" / "run"
    text = script.read_text()
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in text
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert text.index("export MODELYARD_REQUIRE=all") < text.index("make test")
    found = re.search(r"^apart=\((.*)\)$", text, re.MULTILINE)
    assert found is not None
    assert [path for path in found[1].split() if not (ROOT / path).exists()] == []
    assert 'pytest "${apart[@]}"' in text, "what one run leaves out, the other one runs"
    assert """make test TESTS="tests $(printf -- '--ignore=%s ' "${apart[@]}")" || status=$?""" in text
    assert 'wait "$beside" || status=$?' in text
    assert text.rstrip().endswith('exit "$status"')


def test_the_makefile_lists_its_targets() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("up", "setup", "test", "lint", "lock", "bench", "clean", "vllm-cpu", "hosted"):
        assert f"make {target} " in text


def documents() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), f"{path.name} links to {target}, which is not there"


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_documented_commands_are_there(path: Path) -> None:
    from serving.commands.reference import commands

    known = {" ".join(words) for words in commands()}
    first = {words.split()[0] for words in known if words}
    for line in re.findall(r"^(?:\$ )?(?:\.venv/bin/)?modelyard ([a-z].*)$", path.read_text(), re.M):
        words = line.split()
        assert words[0] in first, f"{path.name}: modelyard {line}"
        groups = {one.split()[0] for one in known if " " in one}
        if words[0] in groups and len(words) > 1 and not words[1].startswith("-"):
            assert " ".join(words[:2]) in known, f"{path.name}: modelyard {line}"


def test_yaml_in_documents_is_valid_configuration() -> None:
    from serving.config import parse

    for path in documents():
        for block in re.findall(r"^```yaml\n(.*?)^```$", path.read_text(), re.M | re.S):
            value = yaml.safe_load(block)
            if isinstance(value, dict) and "models" in value:
                parse(block, path.name)
