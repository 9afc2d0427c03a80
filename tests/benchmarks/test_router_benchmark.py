"""The benchmarks' own arithmetic and drawing; the runs themselves are made by command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import chart  # noqa: E402 - the folder of scripts is no package
import load  # noqa: E402
import router  # noqa: E402

NGINX = router.Result("nginx", 20.0, 15.0, 139.0, 14.2, 1000, 0)
VLLM = router.Result("vllm-router", 60.0, 25.0, 219.0, 94.0, 900, 0)
OURS = router.Result("modelyard", 36.0, 20.0, 179.0, 120.0, 1200, 0)
BROKEN = router.Result("Portkey gateway", 3000.0, None, 7000.0, 153.0, 700, 213)


def test_the_table_has_every_ratio_and_says_what_failed() -> None:
    rows = router.table([NGINX, VLLM, OURS, BROKEN], direct_us=99.0).splitlines()
    assert len({row.count("|") for row in rows}) == 1
    ours = [cell.strip() for cell in rows[4].split("|")[1:-1]]
    assert ours == [
        "modelyard",
        "36.0",
        "0.60",
        "1.80",
        "20.0",
        "0.80",
        "1.33",
        "80 µs",
        "0.67",
        "120 MB",
        "0 of 1,200",
    ]
    assert "none right" in rows[5]
    assert "213 of 700" in rows[5]


def test_without_the_references_there_are_no_ratios() -> None:
    row = router.table([OURS], direct_us=99.0).splitlines()[2]
    assert row.count("–") == 5


def test_the_best_round_counts_and_every_answer() -> None:
    worse = router.Result("modelyard", 40.0, 18.0, 150.0, 130.0, 1000, 2)
    (one,) = router.best([[OURS], [worse]])
    assert (one.request_us, one.event_us, one.p50_us, one.resident_mb) == (36.0, 18.0, 150.0, 130.0)
    assert (one.answers, one.wrong) == (2200, 2)


def test_what_wrk_says_is_read() -> None:
    output = "Running 1s test\n\nRESULT 1234 2 1 141.5 2.0\nEXAMPLE 500 oh no\n"
    assert load.parse(output) == load.Loaded(1234, 3, 141.5, 2.0, "500 oh no")
    with pytest.raises(ValueError, match="wrk"):
        load.parse("unable to connect")


def test_the_script_of_wrk_is_filled_in(tmp_path: Path) -> None:
    text = load.script(tmp_path, stream=True, headers={"Authorization": 'Bearer "x"'}).read_text()
    assert not [name for name in ("HEADERS", "STREAM", "EVENTS", "WORDS", "SESSIONS") if name in text]
    assert '["Authorization"]="Bearer \\"x\\""' in text
    assert '"stream":true' in text


def test_the_chart_is_one_file_for_light_and_dark() -> None:
    picture = router.draw([NGINX, VLLM, OURS, BROKEN], "a <machine>")
    root = ElementTree.fromstring(picture)
    words = " ".join(root.itertext())
    assert "prefers-color-scheme: dark" in picture
    assert all(name in words for name in ("nginx", "vllm-router", "modelyard", "none was answered", "a <machine>"))
    bars = [one for one in root.iter() if one.get("class") in ("bar", "own")]
    assert len(bars) == 7
    assert all(float(one.get("width", "-1")) >= 0 for one in bars)


@pytest.mark.parametrize(("values", "expected"), [([20.0, 18_000.0], (10.0, 100_000.0)), ([10.0], (10.0, 100.0))])
def test_a_scale_holds_its_values(values: list[float], expected: tuple[float, float]) -> None:
    assert chart.scale(values) == pytest.approx(expected)


def test_a_scale_refuses_what_has_no_logarithm() -> None:
    with pytest.raises(ValueError, match="above 0"):
        chart.scale([0.0, 1.0])


@pytest.mark.parametrize("name", ["router.py", "streams.py", "soak.py"])
def test_every_command_says_what_it_does(name: str) -> None:
    command = [sys.executable, str(BENCHMARKS / name), "--help"]
    env = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    assert "--write" in done.stdout
