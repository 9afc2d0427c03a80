"""Every dashboard has the shape of Grafana's own schema, as TypeScript's compiler sees it.

Grafana itself is in no registry that can be reached here: whether it draws them well is not shown by this.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from components import CACHE, missing

from monitoring.dashboards.__main__ import FOLDER

HERE = Path(__file__).resolve().parent
MODULES = CACHE / "grafana_schema"


@pytest.fixture(scope="module")
def compiler() -> list[str]:
    """TypeScript's compiler, beside Grafana's schema in the version that grafana_schema.json names."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        missing("node", "install nodejs and npm")
    wanted, there = (HERE / "grafana_schema.json").read_text(), MODULES / "package.json"
    if not there.exists() or there.read_text() != wanted:
        shutil.rmtree(MODULES, ignore_errors=True)
        MODULES.mkdir(parents=True)
        (MODULES / "package.json.new").write_text(wanted)
        (MODULES / "package.json.new").rename(there)
        argv = [str(npm), "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
        if subprocess.run(argv, cwd=MODULES, check=False).returncode != 0:
            shutil.rmtree(MODULES)
            missing("node", "npm could not install @grafana/schema")
    return [str(node), str(MODULES / "node_modules/typescript/bin/tsc"), "--noEmit", "--strict", "--skipLibCheck"]


def check(compiler: list[str], dashboards: dict[str, str]) -> str:
    """What the compiler says against them."""
    shutil.copy(HERE / "grafana_schema.ts", MODULES / "schema.ts")
    files = []
    for name, text in dashboards.items():
        path = MODULES / f"{name}.ts"
        path.write_text(f"import type {{ Checked }} from './schema';\nexport const board: Checked = {text};\n")
        files.append(path.name)
    argv = [*compiler, "--target", "es2022", "--module", "esnext", "--moduleResolution", "bundler", *files]
    done = subprocess.run(argv, cwd=MODULES, capture_output=True, text=True, check=False, timeout=250)
    return done.stdout + done.stderr


def test_every_dashboard_has_the_shape_of_grafanas_schema(compiler: list[str]) -> None:
    dashboards = {path.stem.replace("-", "_"): path.read_text() for path in sorted(FOLDER.glob("*.json"))}
    assert len(dashboards) == 6
    assert check(compiler, dashboards) == ""


def test_a_shape_that_is_wrong_is_found(compiler: list[str]) -> None:
    text = (FOLDER / "slo.json").read_text()
    wrong = text.replace('"graphTooltip": 1', '"graphTooltip": "one"').replace('"mode": "absolute"', '"mode": "some"')
    assert wrong != text
    found = check(compiler, {"wrong": wrong})
    assert "DashboardCursorSync" in found
    assert '"some"' in found
