"""`modelyard eval` as its users meet it: exit codes, one JSON object, one sentence for a mistake."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
from eval_support import ROOT, Cli, Ended, write_suite

from eval import loaders, runner
from eval.results import RunStore, Subject

FakeEngines = Callable[..., Any]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from eval.cli import app; import typer.main; typer.main.get_command(app); "
        "print([m for m in ('pandas', 'numpy', 'scipy', 'datasets', 'httpx', 'pyarrow') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_missing_extra_is_one_sentence(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "def without(name, *rest): return None if name == 'pandas' else find(name, *rest)\n"
        "PathFinder.find_spec = staticmethod(without)\n"
    )
    found = cli.run("run", "quickstart", "--model", "x", PYTHONPATH=str(tmp_path))
    assert found.returncode == 2
    assert "pip install '.[eval]'" in found.stderr
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "quikstart", "--model", "x"], 2, "did you mean 'quickstart'"),
        (["run", "quickstart", "--model", "x", "--limit", "0"], 2, "--sample is 0"),
        (["run", "quickstart", "--model", "x", "--seed", "-1"], 2, "--seed is -1"),
        (["run", "quickstart", "--model", "x", "--url", "http://127.0.0.1:9"], 4, "no server answers"),
        (["run", "quickstart", "--model", "x", "--url", "nonsense"], 2, "is not a URL"),
        (["compare", "quickstart", "--baseline", "a", "--candidate", "b", "--margin", "5"], 2, "--margin is 5"),
        (["compare", "quickstart", "--baseline", "a", "--candidate", "b", "--alpha", "0"], 2, "--alpha is 0"),
        (["compare", "quickstart", "--baseline", "a", "--candidate", "b", "--flips", "-1"], 2, "--flips is -1"),
        (["run", "away/suite.yaml", "--model", "x"], 4, "there is no suite at away/suite.yaml"),
        (
            ["run", "quickstart", "--model", "x", "--state-dir", "/proc/x"],
            4,
            "state directory cannot be written: /proc",
        ),
        (["report", "list", "--state-dir", "/tmp/" + 300 * "x"], 4, "state directory cannot be read: /tmp/x"),
        (["report", "show", "nothing"], 2, "there is no run 'nothing'"),
        (["drift", "a", "b"], 2, "there is no run 'a'"),
    ],
)
def test_a_mistake_is_one_sentence_and_an_exit_code(cli: Cli, arguments: list[str], code: int, message: str) -> None:
    found = cli.call(*arguments)
    assert found.returncode == code
    assert message in found.stderr
    assert found.stderr.count("\n") == 1
    assert found.stdout == ""


def compare(cli: Cli, suite: Path, left: str, right: str, *more: str) -> Ended:
    return cli.call("compare", str(suite), "--baseline", left, "--candidate", right, *more)


def test_compare_ends_by_the_contract(cli: Cli, tmp_path: Path, fake_engine: FakeEngines) -> None:
    suite = write_suite(tmp_path / "s", cases=150)
    good, bad = fake_engine(), fake_engine("--word", "u")
    worse = compare(cli, suite, f"{good.url}#m", f"{bad.url}#m", "--json")
    assert worse.returncode == 1, worse.stderr
    found = json.loads(worse.stdout)
    assert (found["verdict"]["kind"], found["verdict"]["exit_code"]) == ("worse", 1)
    assert (found["overall"]["losses"], found["overall"]["gains"]) == (75, 0)
    assert found["drift"]["exact_match"]["value"] == 0.0
    assert found["baseline"]["digest"] is None
    assert "digest unknown" in found["baseline"]["note"]
    assert len(found["flips"]) == 75
    assert {"prompt", "target", "baseline", "candidate"} <= found["flips"][0].keys()
    assert found["planned"][0]["detectable"] > 0
    better = compare(cli, suite, f"{bad.url}#m", f"{good.url}#m")
    assert better.returncode == 0, better.stderr
    assert "reused" in better.stdout
    for part in ("detectable", "gained: the candidate is right (75)", "output drift", "time to first token", "verdict"):
        assert part in better.stdout
    again = compare(cli, suite, f"{good.url}#m", f"{good.url}#m")
    assert again.returncode == 0, again.stderr
    assert "non-inferior" in again.stdout
    assert good.stats()["seen"] == 300, "an A/A comparison asks again, and only for its second run"
    floor = json.loads(compare(cli, suite, f"{good.url}#m", f"{bad.url}#m", "--json").stdout)["noise_floor"]
    assert (floor["discordance"], floor["exact_match"]) == (0.0, 1.0)
    few = compare(cli, suite, f"{good.url}#m", f"{good.url}#m", "--limit", "6")
    assert few.returncode == 3
    assert "more samples needed" in few.stdout


def test_failed_samples_are_reported_and_not_dropped(cli: Cli, tmp_path: Path, fake_engine: FakeEngines) -> None:
    suite = write_suite(tmp_path / "s", cases=20)
    good, bad = fake_engine(), fake_engine("--status", "400", "--status-times", "3")
    found = compare(cli, suite, f"{good.url}#m", f"{bad.url}#m")
    assert "3 samples could not be paired" in found.stdout
    none = fake_engine("--status", "400")
    found = compare(cli, suite, f"{good.url}#m", f"{none.url}#m")
    assert found.returncode == 2
    assert "can be paired (failed in the candidate)" in found.stderr


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(cli: Cli, tmp_path: Path, fake_engine: FakeEngines) -> None:
    suite = write_suite(tmp_path / "s", cases=60)
    engine = fake_engine("--gap-s", "0.02")
    arguments = ("run", str(suite), "--model", f"{engine.url}#m")
    said = cli.kill_after(8, signal.SIGINT, *arguments)
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    kept = cli.journalled()
    assert 8 <= kept < 60
    seen = engine.stats()["seen"]
    found = cli.run(*arguments, "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["how"].startswith(f"resumed: {kept} of 60")
    assert engine.stats()["seen"] - seen == 60 - kept


def test_report_lists_shows_and_exports(cli: Cli, tmp_path: Path, fake_engine: FakeEngines) -> None:
    assert "no run yet" in cli.call("report", "list").stderr
    engine = fake_engine()
    suite = write_suite(tmp_path / "s")
    shown = cli.call("run", str(suite), "--model", f"{engine.url}#m")
    assert shown.returncode == 0, shown.stderr
    assert "overall" in shown.stdout
    (row,) = json.loads(cli.call("report", "list", "--json").stdout)
    assert (row["done"], row["planned"], row["state"], row["score"]) == (12, 12, "finished", 0.5)
    whole = json.loads(cli.call("report", "show", "small", "--json").stdout)
    assert whole["overall"]["mean"] == 0.5
    assert whole["performance"]["completion_tokens"] == 12 * 8
    for name in ("x.csv", "x.jsonl", "x.parquet"):
        assert cli.call("report", "export", row["run"], str(tmp_path / name)).returncode == 0
    assert len(pd.read_csv(tmp_path / "x.csv")) == len(pd.read_parquet(tmp_path / "x.parquet")) == 12
    assert cli.call("report", "export", row["run"], str(tmp_path / "x.txt")).returncode == 2
    drift = json.loads(cli.call("drift", row["run"], row["run"], "--json").stdout)
    assert (drift["exact_match"]["value"], drift["n"]) == (1.0, 12)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_state_directory_of_someone_else_is_one_sentence(cli: Cli, tmp_path: Path) -> None:
    (cli.state / "runs").mkdir(parents=True)
    (cli.state / "runs").chmod(0o700)
    cli.call("report", "list")  # imports what is heavy while it still may
    os.seteuid(65534)
    try:
        found = cli.call("report", "list")
    finally:
        os.seteuid(0)
    assert (found.returncode, found.stderr.count("\n")) == (4, 1)
    assert "cannot be read" in found.stderr
    assert "Permission denied" in found.stderr


def test_a_run_that_the_server_refuses_leaves_nothing_behind(
    cli: Cli, tmp_path: Path, fake_engine: FakeEngines
) -> None:
    suite = write_suite(tmp_path / "s")
    good, unknown = fake_engine(), fake_engine("--status", "404")
    refused = cli.call("run", str(suite), "--model", f"{unknown.url}#m")
    assert refused.returncode == 2, refused.stderr
    assert list((cli.state / "runs").iterdir()) == []
    assert compare(cli, suite, f"{good.url}#m", f"{unknown.url}#m").returncode == 2
    (row,) = json.loads(cli.call("report", "list", "--json").stdout)
    assert (row["done"], row["state"]) == (12, "finished")


def test_a_run_without_samples_is_not_exported(cli: Cli, tmp_path: Path) -> None:
    suite = loaders.load(str(write_suite(tmp_path / "s")), tmp_path / "cache")
    subject = Subject(ref="m", model="m", url="http://127.0.0.1:9")
    key = runner.key_of(suite, subject, seed=0, repeats=None)
    RunStore(cli.state / "runs").open(suite, subject, key, fresh=False, now=0.0)
    found = cli.call("report", "export", "small", str(tmp_path / "x.csv"))
    assert found.returncode == 2
    assert "has no sample yet" in found.stderr
    assert not (tmp_path / "x.csv").exists()


def test_piped_output_keeps_names_whole_and_adds_no_empty_line(
    cli: Cli, tmp_path: Path, fake_engine: FakeEngines
) -> None:
    suite = write_suite(tmp_path / "s", name="a-suite-with-a-rather-long-name-that-fills-a-narrow-terminal")
    ended = cli.run("run", str(suite), "--model", f"{fake_engine().url}#m", COLUMNS="")
    assert ended.returncode == 0, ended.stderr
    assert all(line.strip() for line in ended.stderr.splitlines())
    (run,) = (cli.state / "runs").iterdir()
    assert run.name in cli.run("report", "list", COLUMNS="").stdout


class Admin(http.server.BaseHTTPRequestHandler):
    """The admin API's contract, as far as evaluation reads it."""

    answers: ClassVar[dict[str, Any]] = {
        "/admin/v1/models/assistant/versions/v1": {"label": "v1", "digest": "sha256:" + "1" * 64},
        "/admin/v1/models/assistant/versions/v2": {"label": "v2", "digest": "sha256:" + "2" * 64},
        "/admin/v1/models/assistant/versions/champion": {"label": "v2", "digest": "sha256:" + "2" * 64},
        "/admin/v1/cost": {
            "unit_costs": [
                {
                    "version": "assistant@v2",
                    "basis": "busy",
                    "method": "inflight",
                    "currency": "EUR",
                    "per_1k_requests": 0.125,
                }
            ]
        },
    }

    def do_GET(self) -> None:
        answer = self.answers.get(self.path)
        self.send_response(200 if answer is not None else 404)
        self.end_headers()
        unknown = {"error": {"message": f"there is nothing at {self.path}"}}
        self.wfile.write(json.dumps(answer if answer is not None else unknown).encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Quiet."""


@pytest.fixture
def admin_url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Admin) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_with_the_admin_api_aliases_digests_and_costs_are_known(
    cli: Cli, tmp_path: Path, fake_engine: FakeEngines, admin_url: str
) -> None:
    engine = fake_engine()
    suite = write_suite(tmp_path / "s")
    where = ("--url", engine.url, "--admin-url", admin_url)
    found = compare(cli, suite, "assistant@v1", "assistant@champion", "--json", *where)
    value = json.loads(found.stdout)
    assert value["candidate"]["model"] == "assistant@v2"
    assert value["candidate"]["digest"] == "sha256:" + "2" * 64
    assert value["candidate"]["note"] == "assistant@champion is assistant@v2 at the moment"
    assert value["candidate"]["costs"][0]["per_1k_requests"] == 0.125
    assert {request["model"] for request in engine.stats()["requests"]} == {"assistant@v1", "assistant@v2"}
    routed = cli.call("run", str(suite), "--model", "assistant", *where)
    assert "several versions may answer" in routed.stderr
    unknown = cli.call("run", str(suite), "--model", "assistant@v9", *where)
    assert unknown.returncode == 2
    assert "assistant@v9 cannot be evaluated: there is nothing at" in unknown.stderr
