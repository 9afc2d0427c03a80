"""The commands against a running yard: one control plane, one router worker, two engine processes."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator

import httpx
import pytest
from components import ROOT
from engines.fixtures import start_fake_engine
from stack import MODELYARD, Stack, external, stack, until

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    engines = [start_fake_engine("--events", "4") for _ in range(2)]
    config = external({"v1": engines[0].url, "v2": engines[1].url}, {"v1": 9000, "v2": 1000}, fallback=["v1"])
    with stack(tmp_path_factory.mktemp("cli"), config) as made:
        yield made.up()
    for engine in engines:
        engine.kill()
        assert engine.process.stdout is not None
        engine.process.stdout.close()


def ask(yard: Stack, model: str = "assistant", count: int = 1) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "one two three"}]}
    for _ in range(count):
        answer = httpx.post(f"{yard.url}/v1/chat/completions", json=body, trust_env=False, timeout=20)
        answer.raise_for_status()


def test_status_has_every_figure(yard: Stack) -> None:
    ask(yard, "assistant@v1", 3)

    def counted() -> bool:
        (model,) = yard.json("status")["models"]
        return bool(model["versions"][0]["requests"] >= 3)

    until(counted, what="counted requests")
    text = yard.cli("status").stdout
    for word in ("assistant@v1", "assistant@v2", "ready", "90%", "tokens/s", "in flight", "TTFT p50", "TTFT p95"):
        assert word in text
    assert "per 1k requests" in text
    assert yard.url in text


def test_status_is_drawn_live_until_ctrl_c(yard: Stack) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execve(MODELYARD[0], [*MODELYARD, "status", "--watch", "--interval", "0.2"], yard.env | {"TERM": "xterm"})
    drawn = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and drawn.count(b"Ctrl-C ends this view") < 3:
        if select.select([terminal], [], [], 0.2)[0]:
            drawn += os.read(terminal, 65536)
    os.kill(pid, signal.SIGINT)
    while True:
        try:
            if not os.read(terminal, 65536):
                break
        except OSError:
            break
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)
    assert drawn.count(b"Ctrl-C ends this view") >= 3
    assert b"assistant@v2" in drawn


def test_a_stream_of_json_for_programs(yard: Stack) -> None:
    argv = [*MODELYARD, "status", "--watch", "--json", "--interval", "0.2"]
    with subprocess.Popen(argv, cwd=ROOT, env=yard.env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.kill()
    assert lines[1]["uptime_s"] > lines[0]["uptime_s"]


def test_a_route_is_set_shown_and_rolled_back(yard: Stack) -> None:
    changed = yard.json("route", "set", "assistant", "v1=50%", "v2=5000")
    assert changed["route"]["weights"] == {"v1": 5000, "v2": 5000}
    assert 0 < changed["applied_ms"] < 10_000
    assert changed["moved_buckets"] == 4000
    assert yard.json("route", "show", "assistant")["weights"] == {"v1": 5000, "v2": 5000}
    assert "v1 50%  v2 50%" in yard.cli("route", "show").stdout
    back = yard.cli("rollback", "assistant").stdout
    assert "v1 90%  v2 10%" in back
    assert "in force after" in back
    history = yard.json("route", "history", "assistant")
    assert [one["weights"]["v1"] for one in history[:3]] == [9000, 5000, 9000]
    assert history[0]["restores"] == history[2]["revision"]
    assert "brought back" in yard.cli("route", "history", "assistant").stdout
    again = yard.json("rollback", "assistant", "--to", str(history[1]["revision"]))
    assert again["route"]["weights"] == {"v1": 5000, "v2": 5000}
    yard.cli("route", "set", "assistant", "v1=9000", "v2=1000")


def test_a_paused_route_is_told_and_kept(yard: Stack) -> None:
    said = yard.cli("route", "pause", "assistant", "--reason", "v2 [slow] since noon").stdout
    assert "assistant  held at route" in said
    assert "v1 90%  v2 10%" in said
    for command in (("status",), ("route", "show", "assistant")):
        assert "v2 [slow] since noon" in " ".join(yard.cli(*command).stdout.split())
    refused = yard.cli("route", "set", "assistant", "v1=100%", check=2)
    assert "the route of assistant is paused by" in refused.stderr
    assert "`modelyard route resume assistant`" in refused.stderr
    assert yard.json("route", "resume", "assistant")["pause"] is None
    assert "is not paused" in yard.cli("route", "resume", "assistant", check=2).stderr
    assert "paused" not in yard.cli("route", "show").stdout


def test_versions_and_aliases(yard: Stack) -> None:
    assert [one["label"] for one in yard.json("versions", "list", "assistant")][:2] == ["v1", "v2"]
    yard.cli("alias", "set", "assistant", "champion=v1", "challenger=v2")
    aliases = {one["name"]: one["label"] for one in yard.json("alias", "list")}
    assert aliases == {"champion": "v1", "challenger": "v2"}
    shown = yard.json("versions", "show", "assistant@champion")
    assert shown["ref"] == "assistant@v1"
    assert shown["digest"] in yard.cli("versions", "show", "assistant@v1").stdout
    url = yard.json("versions", "show", "assistant@v2")["manifest"]["url"]
    made = yard.cli("versions", "register", "assistant@v3", "--engine", "external", "--url", url, "--licence", "x")
    assert "assistant@v3 is registered as sha256:" in made.stdout
    again = yard.cli("versions", "register", "assistant@v3", "--engine", "external", "--url", url, check=2)
    assert "assistant@v3" in again.stderr
    assert again.stderr.count("sha256:") == 2, "both digests are named"
    yard.cli("versions", "retire", "assistant@v3")
    assert "retired" in yard.cli("versions", "list").stdout
    in_use = yard.cli("versions", "retire", "assistant@v1", check=2)
    assert in_use.stderr.startswith("modelyard: ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("versions show assistant@v22", "did you mean 'v2'?"),
        ("versions show assistnt@v2", "did you mean 'assistant'?"),
        ("route set assistant v1=5000 v22=5000", "did you mean 'v2'?"),
        ("rollback asistant", "did you mean 'assistant'?"),
        ("alias set assistant champion=w1", "did you mean 'v1'?"),
        ("route history assistnt", "did you mean 'assistant'?"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(yard: Stack, arguments: str, sentence: str) -> None:
    result = yard.cli(*arguments.split(), check=2)
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_cost_sums_to_its_total(yard: Stack) -> None:
    ask(yard, "assistant@v2", 2)
    for by in ("version", "outcome"):
        for bill in yard.json("cost", "--by", by)["bills"]:
            assert sum(line["nano"] for line in bill["lines"]) == bill["total_nano"]
    text = yard.cli("cost", "--all").stdout
    assert "completion tokens" in text
    assert "assistant@v2" in text
    wrong = yard.cli("cost", "--since", "yesterday", check=2)
    assert "24h" in wrong.stderr


def test_the_audit_names_who_did_it(yard: Stack) -> None:
    environment = yard.env | {"MODELYARD_ACTOR": "somebody"}
    argv = [*MODELYARD, "alias", "set", "assistant", "candidate=v2"]
    subprocess.run(argv, cwd=ROOT, env=environment, check=True, capture_output=True)
    newest = yard.json("audit", "--limit", "1")[0]
    assert (newest["actor"], newest["action"]) == ("somebody", "alias.set")
    assert "somebody" in yard.cli("audit").stdout


def test_apply_shows_its_plan(yard: Stack) -> None:
    dry = yard.cli("apply", str(yard.config), "--dry-run").stdout
    assert "not made (--dry-run)" in dry
    assert "keep-route" in dry
    changed = yard.folder / "changed.yaml"
    changed.write_text(yard.config.read_text().replace('"url": "http://127.0.0.1:', '"url": "http://127.0.0.2:'))
    refused = yard.cli("apply", str(changed), check=2)
    assert "give the changed version a new label" in refused.stderr
    assert "refused" in refused.stdout
    broken = yard.folder / "broken.yaml"
    broken.write_text(yard.config.read_text() + "serverr: {}\n")
    assert "did you mean 'server'?" in yard.cli("apply", str(broken), check=2).stderr


def test_logs_of_what_has_none(yard: Stack) -> None:
    result = yard.cli("logs", "assistant@v9/0", check=None)
    assert result.returncode in (2, 4)
    assert result.stderr.startswith("modelyard: ")


def test_doctor_knows_the_running_yard(yard: Stack) -> None:
    checks = {one["name"]: one for one in json.loads(yard.cli("doctor", "--json", check=None).stdout)}
    assert checks["yard"]["result"] == "ok"
    assert yard.url in checks["yard"]["detail"]


def test_a_second_yard_on_the_same_state_is_refused(yard: Stack) -> None:
    result = yard.cli("up", str(yard.config), "--port", "0", "--admin-port", "0", check=2)
    assert "another modelyard" in result.stderr


def test_a_port_in_use_is_one_sentence(yard: Stack) -> None:
    folder = yard.folder / "other"
    result = yard.cli(
        "up", str(yard.config), "--port", str(yard.port), "--admin-port", "0", "--state-dir", str(folder), check=4
    )
    assert f"port {yard.port}" in result.stderr
    assert "--port" in result.stderr


def test_down_ends_what_a_killed_yard_left(tmp_path_factory: pytest.TempPathFactory) -> None:
    engine = start_fake_engine()
    with stack(tmp_path_factory.mktemp("down"), external({"v1": engine.url}, {"v1": 10_000})) as yard:
        yard.up().kill_control()
        assert httpx.get(f"{yard.url}/health/live", trust_env=False).status_code == 200, "the router serves on"
        gone = yard.cli("status", check=4)
        assert "no yard answers" in gone.stderr
        leftovers = json.loads(yard.cli("doctor", "--json", check=None).stdout)
        assert any(one["name"] == "leftovers" for one in leftovers)
        assert "stopped worker" in yard.cli("down").stdout
        assert yard.processes() == []
        assert yard.json("down")["stopped"] == []
        yard.up()
        assert "stopped yard" in yard.cli("down").stdout
        assert yard.process is not None
        assert yard.process.wait(60) == 0
        assert "nothing is left running" in yard.log.read_text()
        assert yard.processes() == []
    engine.kill()
    assert engine.process.stdout is not None
    engine.process.stdout.close()
