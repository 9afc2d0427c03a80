"""What the commands say where no yard runs, and those that need none."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from components import ROOT
from hypothesis import given
from hypothesis import strategies as st

from registry.state import StateDir
from registry.terminal import NotThereError, UserError
from serving.commands.checks import Check, port, running, state_directory
from serving.commands.client import AdminClient, goes_on
from serving.commands.render import moment, money, percent, seconds
from serving.commands.route import parse_weights
from serving.commands.screen import Screen, Step, welcome
from serving.commands.versions import split_ref
from serving.control.ui import EngineState, Ready

CALL = [sys.executable, "-c", "import sys; sys.argv[0] = 'modelyard'; from serving.cli import main; main()"]
NEEDS_A_YARD = [
    "status",
    "versions list",
    "versions show assistant@v1",
    "alias set assistant champion=v1",
    "route set assistant v1=10000",
    "rollback assistant",
    "cost",
    "audit",
    "logs assistant@v1/0",
    "apply configs/quickstart.yaml",
]


def call(*arguments: str, state: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "MODELYARD_STATE_DIR": str(state), "COLUMNS": "160"}
    env.pop("MODELYARD_ADMIN_URL", None)
    return subprocess.run(
        [*CALL, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("command", NEEDS_A_YARD)
def test_without_a_yard_one_sentence_and_exit_4(command: str, tmp_path: Path) -> None:
    result = call(*command.split(), state=tmp_path)
    assert result.returncode == 4
    assert result.stdout == ""
    assert result.stderr.startswith("modelyard: no yard runs in ")
    assert "modelyard up configs/quickstart.yaml" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_yard_that_is_gone_is_named(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    result = call("status", "--admin-url", url, state=tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (4, 1)
    assert f"no yard answers at {url}" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("route set assistant v1=3", "the weights sum to 3"),
        ("route set assistant v1=9e9 v2=1", "must sum to 10000"),
        ("route set assistant v1=many", "the weight of v1 is 'many'"),
        ("route set assistant v1=nan v2=inf", "the weight of v1 is 'nan'"),
        ("route set assistant v1=90 v2=10", "for per cent write v1=90% v2=10%"),
        ("alias set assistant champion", "e.g. champion=v1"),
        ("route set assistant v1", "'v1' is not of the form NAME=VALUE"),
        ("route set assistant v1=1 v1=2", "'v1' is given twice"),
        ("versions show assistant", "'assistant' names no version"),
        ("versions register assistant@v3 --artifact file:x --requantize v1", "exclude each other"),
        ("status --admin-url nonsense", "not of the form http://HOST:PORT"),
        ("status --admin-url http://127.0.0.1:99999", "not of the form http://HOST:PORT"),
        ("versions show assistant@v1/../x --admin-url http://127.0.0.1:1", "'v1/../x' is not a name"),
        ("logs assistant@v1/x --admin-url http://127.0.0.1:1", "names no replica"),
        ("cost --by colour --admin-url http://127.0.0.1:1", "--by is 'colour': it is one of version, model"),
        ("up configs/quickstart.yaml --port 8399 --admin-port 8399", "both 8399"),
        ("up configs/quickstart.yaml --state-dir README.md", "the state directory"),
        ("up configs/quickstart.yaml --state-dir /proc/modelyard", "cannot be used"),
        ("config check tests", "tests"),
        ("config check nowhere.yaml", "there is no configuration file nowhere.yaml"),
        ("apply nowhere.yaml", "the configuration file nowhere.yaml cannot be read"),
        ("up nowhere.yaml", "there is no configuration file nowhere.yaml"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: str, sentence: str, tmp_path: Path) -> None:
    result = call(*arguments.split(), state=tmp_path)
    assert result.returncode in (2, 4)
    assert result.stderr.startswith("modelyard: ")
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1, "no traceback, no second line"


def test_every_shipped_configuration_is_valid(tmp_path: Path) -> None:
    found = sorted((ROOT / "configs").glob("*.yaml"))
    assert found
    for path in found:
        result = call("config", "check", str(path), "--json", state=tmp_path)
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["models"]


def test_the_schema_describes_the_quickstart(tmp_path: Path) -> None:
    schema = json.loads(call("config", "schema", state=tmp_path).stdout)
    assert {"server", "prices", "models"} <= set(schema["properties"])


def test_version_says_what_is_installed(tmp_path: Path) -> None:
    found = json.loads(call("version", "--json", state=tmp_path).stdout)
    assert found["python"].startswith("3.")
    assert "fastapi" in found["packages"]
    assert call("--version", state=tmp_path).stdout == call("version", state=tmp_path).stdout


def test_doctor_finds_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        config = tmp_path / "yard.yaml"
        config.write_text(
            f"server: {{port: {number}, admin_port: 0}}\n"
            "models: {assistant: {versions: {v1: {engine: vllm, artifact: 'file:x', python: /nowhere/python}}}}\n"
        )
        result = call("doctor", str(config), "--json", state=tmp_path / "state")
    checks = {one["name"]: one for one in json.loads(result.stdout)}
    assert result.returncode == 4
    assert checks["router port"]["result"] == "fail"
    assert "is in use" in checks["router port"]["detail"]
    assert checks["vLLM for assistant@v1"]["result"] == "fail"
    assert checks["Python"]["result"] in ("ok", "warn")
    assert all(one["remedy"] for one in checks.values() if one["result"] == "fail")


def test_doctor_knows_what_a_hosted_engine_needs(tmp_path: Path) -> None:
    text = "models: {m: {versions: {v1: {engine: hosted, litellm_model: openai/x, api_key_env: NOT_SET, python: %s}}}}"
    checks: list[dict[str, str]] = []
    for python in ("/nowhere/python", sys.executable):
        config = tmp_path / "yard.yaml"
        config.write_text(text % python)
        result = call("doctor", str(config), "--json", state=tmp_path / "state")
        checks += [one for one in json.loads(result.stdout) if one["name"] == "LiteLLM for m@v1"]
    assert [one["result"] for one in checks] in (["fail", "fail"], ["fail", "warn"])
    assert "there is no Python interpreter '/nowhere/python'" in checks[0]["detail"]
    assert "make hosted" in checks[0]["remedy"]


def test_doctor_sees_a_free_port_and_a_fresh_state_directory(tmp_path: Path) -> None:
    assert port("router port", "127.0.0.1", 0, None).result == "ok"
    state = StateDir(tmp_path / "new")
    assert running(state) is None
    assert [check.result for check in state_directory(state, None)] in (["ok"], ["warn"])
    assert not state.root.exists(), "looking makes nothing"
    assert isinstance(next(state_directory(state, None)), Check)


def test_down_where_nothing_runs(tmp_path: Path) -> None:
    result = call("down", "--json", state=tmp_path / "nowhere")
    assert (result.returncode, json.loads(result.stdout)["stopped"]) == (0, [])
    assert not (tmp_path / "nowhere").exists()


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=6))
def test_weights_are_taken_only_if_they_sum_to_one(points: list[int]) -> None:
    given_weights = [f"v{index}={value}" for index, value in enumerate(points)]
    if sum(points) == 10_000:
        assert list(parse_weights(given_weights).values()) == points
    else:
        with pytest.raises(UserError):
            parse_weights(given_weights)


def test_weights_in_per_cent() -> None:
    assert parse_weights(["v1=90%", "v2=9.5%", "v3=0.5%"]) == {"v1": 9000, "v2": 950, "v3": 50}
    assert parse_weights(["v1=90%", "v2=1000"]) == {"v1": 9000, "v2": 1000}
    assert parse_weights(["v1=1.1%", "v2=98.9%"]) == {"v1": 110, "v2": 9890}, "not a matter of binary fractions"


def test_references_are_split() -> None:
    assert split_ref("assistant@v2") == ("assistant", "v2")
    for wrong in ("assistant", "@v2", "assistant@"):
        with pytest.raises(UserError):
            split_ref(wrong)


def test_values_read_as_people_write_them() -> None:
    assert [percent(points) for points in (10_000, 9000, 50, 1)] == ["100%", "90%", "0.5%", "0.01%"]
    assert [seconds(value) for value in (None, 0.012, 3.14159, 600, 9000, 400_000)] == [
        "-",
        "12 ms",
        "3.1 s",
        "10 min",
        "2.5 h",
        "5 d",
    ]
    assert money(None, "USD") == "-"
    assert money(0.000055062, "USD") == "5.51e-05 USD"
    assert money(1234.5, "EUR") == "1,234.50 EUR"


class Answers(http.server.BaseHTTPRequestHandler):
    """A server that is no admin API."""

    def do_GET(self) -> None:
        if self.path == "/slow/admin/v1/status":
            time.sleep(1)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>something else</html>")

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def stranger() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_something_else_on_the_admin_port(stranger: str) -> None:
    with pytest.raises(NotThereError, match="no admin API of Modelyard"):
        AdminClient(stranger).get("status")


def test_a_deaf_admin_api(stranger: str) -> None:
    with pytest.raises(NotThereError, match=r"did not answer within 0.2 s"):
        AdminClient(f"{stranger}/slow", timeout_s=0.2).get("status")


def test_ctrl_c_says_that_the_yard_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), goes_on("modelyard versions list"):
        signal.raise_signal(signal.SIGINT)
    assert "the yard goes on with it, see `modelyard versions list`" in capsys.readouterr().err


def test_a_time_beyond_the_calendar_is_shown_all_the_same() -> None:
    assert moment(-8.6e18) == "-8600000000000000000 s"


def test_the_screen_tells_a_start_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    step = screen.progress()
    assert isinstance(step, Step)
    step.start("Fetching model.gguf", 100)
    step.advance(60)
    step.advance(40)
    step.done()
    screen.engines([EngineState("assistant@v1/0", "starting")])
    screen.engines([EngineState("assistant@v1/0", "starting")])
    screen.engines([EngineState("assistant@v1/0", "failed", "line one\n[bracketed] last words")])
    screen.say("[not markup]")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "Fetching model.gguf",
        "assistant@v1/0: starting",
        "assistant@v1/0: failed: [bracketed] last words",
        "[not markup]",
    ]


def test_the_welcome_can_be_pasted() -> None:
    ready = Ready(url="http://127.0.0.1:8000", admin_url="http://127.0.0.1:8001", models={"assistant": ["v1", "v2"]})
    text = welcome(ready, 3.2, None)
    start = text.index("  curl -i") + 2
    curl = text[start : text.index("\n\n", start)]
    assert subprocess.run(["bash", "-n", "-c", curl], check=False).returncode == 0
    body = curl[curl.index("-d '") + 4 : curl.rindex("'")]
    assert json.loads(body)["model"] == "assistant"
    begin = text.index("  from openai")
    snippet = text[begin : text.index("\n\n", begin)]
    compile("\n".join(line[2:] for line in snippet.splitlines()), "snippet", "exec")
    assert "route set assistant v1=5000 v2=5000" in text
    assert "eval compare" not in welcome(Ready("http://x", "http://y", {"assistant": ["v1"]}), 1.0, None)


def test_the_welcome_says_how_to_come_by_a_key_and_whom_to_trust() -> None:
    ready = Ready(
        "https://127.0.0.1:8000", "http://y", {"m": ["v1"]}, keys_required=True, certificate="/tls/my cert.pem"
    )
    text = welcome(ready, 1.0, None)
    assert "keys create --name me" in text
    start = text.index("  curl -i") + 2
    curl = text[start : text.index("\n\n", start)]
    assert subprocess.run(["bash", "-n", "-c", curl], check=False).returncode == 0
    assert "--cacert '/tls/my cert.pem' https://127.0.0.1:8000/v1/chat/completions" in curl
    assert '-H "authorization: Bearer $KEY"' in curl
    begin = text.index("  import os\n  from openai")
    snippet = text[begin : text.index("\n\n", begin)]
    compile("\n".join(line[2:] for line in snippet.splitlines()), "snippet", "exec")
    assert "keys create" not in welcome(Ready("http://x", "http://y", {"m": ["v1"]}), 1.0, None)


@pytest.mark.parametrize(("redirect", "words"), [(">/dev/full", "cannot be written"), (">&-", "is closed")])
def test_output_that_cannot_be_written_is_one_sentence(redirect: str, words: str) -> None:
    program = "from serving.cli import main; main()"
    argv = ["bash", "-c", f'"$0" -c "$1" config schema {redirect}', sys.executable, program]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
