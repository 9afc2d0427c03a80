"""A whole yard from start to stop: what survives a restart, what an apply changes, what is refused at start."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from engines.fixtures import FakeEngine
from yard_harness import CONFIG, RunningYard, files_in, until

from registry.errors import RegistryError
from registry.terminal import ExitCode, UserError
from serving.control.apply import RefusedError
from serving.control.lock import StateDirBusyError
from serving.control.ui import Options
from serving.control.worker_process import PortInUseError

Engines = Callable[..., FakeEngine]


def config(engines: Engines, workers: int = 1) -> str:
    return CONFIG.format(workers=workers, first=engines("--events", "4").url, second=engines("--events", "4").url)


def completed(yard: RunningYard) -> int:
    usage = yard.get("cost")["usage"]
    return sum(one["requests"].get("completed", 0) for one in usage)


def test_a_restart_keeps_the_route_the_counts_and_the_generation(fake_engine: Engines, tmp_path: Path) -> None:
    text = config(fake_engine)
    with RunningYard(tmp_path, text) as yard:
        yard.admin.put("/models/m/route", json={"weights": {"v1": 4000, "v2": 6000}})
        for _ in range(5):
            assert yard.chat().status_code == 200
        until(lambda: completed(yard) == 5)
        generation = yard.get("status")["generation"]
        workers = [one["pid"] for one in yard.get("status")["workers"]]
    assert yard.state.read_yard() is None
    assert not any(psutil.pid_exists(pid) for pid in workers)
    with RunningYard(tmp_path, text) as yard:
        assert yard.get("models", "m", "route")["weights"] == {"v1": 4000, "v2": 6000}
        assert yard.chat().status_code == 200
        until(lambda: completed(yard) == 6)
        status = yard.get("status")
        assert status["generation"] > generation
        assert [one["requests"] for one in status["models"][0]["versions"]] != [0, 0]
        assert status["models"][0]["versions"][0]["tokens_per_second"] >= 0


def test_requests_in_flight_are_finished_by_a_stop(fake_engine: Engines, tmp_path: Path) -> None:
    text = config(fake_engine)
    with RunningYard(tmp_path, text) as yard:
        url = f"{yard.info.url}/v1/chat/completions"
        engine_body = {"model": "m@v1", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        httpx.post(f"{text.split(chr(34))[1]}/fake/behave", json={"gap_s": 0.3}, trust_env=False)
        got: list[str] = []

        def read() -> None:
            with httpx.stream("POST", url, json=engine_body, trust_env=False, timeout=60) as answer:
                got.extend(answer.iter_lines())

        reader = threading.Thread(target=read)
        reader.start()
        until(lambda: got)
    reader.join(60)
    assert got[-2:] == ["data: [DONE]", ""] or "data: [DONE]" in got
    with RunningYard(tmp_path, text) as again:
        until(lambda: completed(again) == 1)


def test_a_second_yard_on_a_state_directory_is_refused_with_the_pid_of_the_first(
    fake_engine: Engines, tmp_path: Path
) -> None:
    text = config(fake_engine)
    with RunningYard(tmp_path, text) as yard:
        with pytest.raises(StateDirBusyError, match=f"pid {yard.info.pid}"), RunningYard(tmp_path, text):
            pass
        assert yard.chat().status_code == 200


@pytest.mark.parametrize("which", ["port", "admin_port"])
def test_a_port_in_use_is_one_sentence_and_nothing_is_left(fake_engine: Engines, tmp_path: Path, which: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            pytest.raises(PortInUseError, match=rf"port {port} .*--{which.replace('_', '-')}") as caught,
            RunningYard(tmp_path, config(fake_engine), Options(**{which: port})),
        ):
            pass
    assert caught.value.exit_code is ExitCode.NOT_THERE
    assert not list((tmp_path / "state" / "workers").glob("*/worker.json"))
    assert not (tmp_path / "state" / "yard.json").exists()


def test_an_apply_adds_and_removes_versions_and_leaves_the_others_alone(fake_engine: Engines, tmp_path: Path) -> None:
    text = config(fake_engine)
    third = fake_engine("--events", "4")
    more = text.replace("    route:", f'      v3: {{engine: external, url: "{third.url}"}}\n    route:')
    with RunningYard(tmp_path, text) as yard:
        since = {one["id"]: one["since"] for one in yard.get("status")["engines"]}
        applied = yard.admin.post("/apply", json={"config": more, "path": str(yard.path)}).json()
        assert [step["kind"] for step in applied["steps"] if step["changes"]] == ["register", "start"]
        until(lambda: yard.chat("m@v3").status_code == 200)
        after = {one["id"]: one["since"] for one in yard.get("status")["engines"]}
        assert {name: pytest.approx(at, abs=0.5) for name, at in since.items()} == {name: after[name] for name in since}
        yard.admin.put("/models/m/route", json={"weights": {"v1": 9000, "v3": 1000}})
        refused = yard.admin.post("/apply", json={"config": text}).json()["error"]
        assert "m@v3 left the configuration, but it has 1000 basis points" in refused["message"]
        yard.admin.post("/models/m/rollback")
        applied = yard.admin.post("/apply", json={"config": text}).json()
        assert ("stop", "m@v3/0") in [(step["kind"], step["subject"]) for step in applied["steps"]]
        assert [one["id"] for one in yard.get("status")["engines"]] == ["m@v1/0", "m@v2/0"]
        assert yard.chat().status_code == 200
        assert [one["action"] for one in yard.get("audit", limit=1)] == ["config.apply"]


def test_a_reload_takes_the_file_again_and_a_bad_file_changes_nothing(fake_engine: Engines, tmp_path: Path) -> None:
    text = config(fake_engine)
    with RunningYard(tmp_path, text) as yard:
        yard.path.write_text(text.replace("workers: 1", "workers: 2"))
        yard.wait(yard.yard.reload())
        assert "applied" in yard.ui.said[-1]
        assert len(yard.get("status")["workers"]) == 2
        yard.path.write_text("models: {m: {versionz: {}}}")
        yard.wait(yard.yard.reload())
        assert "did you mean 'versions'" in yard.ui.said[-1]
        assert yard.chat().status_code == 200


def test_a_label_with_other_content_is_refused_at_start(fake_engine: Engines, tmp_path: Path) -> None:
    text = config(fake_engine)
    with RunningYard(tmp_path, text):
        pass
    changed = text.replace("engine: external, url", "engine: external, licence: MIT, url", 1)
    with pytest.raises(RefusedError, match=r"sha256:.*sha256:.*new label"), RunningYard(tmp_path, changed):
        pass
    with RunningYard(tmp_path, text) as yard:
        assert yard.chat().status_code == 200


def test_a_missing_artifact_is_one_sentence(tmp_path: Path) -> None:
    text = 'models: {m: {versions: {v1: {engine: llama.cpp, artifact: "file:none.gguf"}}}}'
    with (
        pytest.raises((UserError, RegistryError), match=r"none\.gguf"),
        RunningYard(tmp_path, text, Options(port=0, admin_port=0)),
    ):
        pass
    assert not (tmp_path / "state" / "yard.json").exists()


def test_an_external_engine_that_is_away_does_not_hold_up_the_others(fake_engine: Engines, tmp_path: Path) -> None:
    engine = fake_engine("--events", "4")
    text = CONFIG.format(workers=1, first=engine.url, second="http://127.0.0.1:9")
    with RunningYard(tmp_path, text) as yard:
        states = {one["id"]: one["state"] for one in yard.get("status")["engines"]}
        assert states["m@v1/0"] == "ready"
        assert states["m@v2/0"] != "ready"
        assert yard.chat("m@v2").status_code == 503
        assert yard.chat("m@v1").status_code == 200


def test_a_missing_key_of_an_external_engine_is_named(fake_engine: Engines, tmp_path: Path) -> None:
    text = config(fake_engine).replace("engine: external, url", "engine: external, api_key_env: NOT_SET_KEY, url", 1)
    with pytest.raises(UserError, match="NOT_SET_KEY"), RunningYard(tmp_path, text):
        pass


def test_the_key_of_an_external_engine_is_sent_and_never_shown(
    fake_engine: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THEIR_KEY", "sk-very-secret\n")  # as a file's content is, with the end of its line
    text = config(fake_engine).replace("engine: external, url", "engine: external, api_key_env: THEIR_KEY, url", 1)
    with RunningYard(tmp_path, text) as yard:
        assert yard.chat("m@v1").status_code == 200
        paths = ("status", "models/m/versions", "audit", "cost")
        shown = [yard.admin.get(f"/{path}").text for path in paths]
        shown.append(httpx.get(f"{yard.info.admin_url}/metrics", trust_env=False).text)
        shown += [data.decode(errors="replace") for data in files_in(yard.state.root).values()]
    assert len(shown) > 8
    assert not [text for text in shown if "very-secret" in text]


def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(
    fake_engine: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = config(fake_engine).replace("engine: external, url", "engine: external, api_key_env: THEIR_KEY, url", 1)
    for key in ("sk-s\u00e9cret", "sk-secret\nx: y"):
        monkeypatch.setenv("THEIR_KEY", key)
        with pytest.raises(UserError, match="THEIR_KEY has characters") as caught, RunningYard(tmp_path, text):
            pass
        assert "cret" not in str(caught.value)


def test_a_url_with_a_password_is_refused_without_showing_it(tmp_path: Path) -> None:
    text = 'models: {m: {versions: {v1: {engine: external, url: "https://me:hunter2@host"}}}}'
    with pytest.raises(UserError, match="api_key_env") as caught, RunningYard(tmp_path, text):
        pass
    assert "hunter2" not in str(caught.value)


def test_a_version_of_the_configuration_in_force_is_not_retired(fake_engine: Engines, tmp_path: Path) -> None:
    text = config(fake_engine).replace("engine: external, url", "engine: external, replicas: 0, url")
    with RunningYard(tmp_path, text.replace("route: {v1: 9000, v2: 1000}", "route: {v1: 10000}")) as yard:
        refused = yard.admin.post("/models/m/versions/v2/retire")
        assert refused.status_code == 409
        assert "m@v2 is in the configuration in force" in refused.json()["error"]["message"]
