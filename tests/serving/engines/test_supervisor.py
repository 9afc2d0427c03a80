"""The supervisor against engines that misbehave: real processes, no model."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
from engine_harness import QUICK, abandoned, alive, supervised, until, version
from engines.fixtures import FakeEngine

from serving.engines import process
from serving.engines.base import EngineError, EngineVersion
from serving.engines.replica import ReplicaStatus
from serving.engines.supervisor import Supervisor

PROJECT = Path(__file__).resolve().parents[3]
Faulty = Callable[..., EngineVersion]


def one(supervisor: Supervisor) -> ReplicaStatus:
    (status,) = supervisor.replicas()
    return status


def test_two_engines_start_answer_and_leave_nothing(root: Path, faulty: Faulty) -> None:
    changes: list[float] = []
    pids: list[int] = []

    async def body(supervisor: Supervisor) -> None:
        seen: list[Sequence[ReplicaStatus]] = []
        await supervisor.apply([faulty("v1"), faulty("v2")])
        assert await supervisor.wait_ready(60, seen.append) == []
        first, second = supervisor.replicas()
        pids.extend((first.pid, second.pid))
        assert (first.id, second.id) == ("assistant@v1/0", "assistant@v2/0")
        assert (first.state, first.restarts, first.adopted) == ("ready", 0, False)
        assert first.capabilities is not None
        assert first.capabilities.model_names == ("assistant@v1",)
        assert seen
        assert changes
        await until(lambda: supervisor.replicas()[0].rss > 1_000_000)

    supervised(root, body, on_change=lambda: changes.append(time.monotonic()))
    assert not any(map(alive, pids))
    assert process.recorded(root / "assistant@v1" / "0") is None


def test_a_killed_engine_comes_back_within_a_second(root: Path, faulty: Faulty) -> None:
    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([faulty("v1")])
        assert await supervisor.wait_ready(60) == []
        noticed_s = []
        for restarts in (1, 2, 3):
            before = one(supervisor)
            killed_at = time.monotonic()
            os.kill(before.pid, signal.SIGKILL)
            await until(lambda: one(supervisor).state != "ready")
            noticed_s.append(time.monotonic() - killed_at)
            assert await supervisor.wait_ready(30) == []
            after = one(supervisor)
            assert after.restarts == restarts
            assert after.pid != before.pid
            assert after.last_error == ""
        assert min(noticed_s) < 0.5

    supervised(root, body)


def test_one_that_dies_at_start_fails_with_its_last_words(root: Path, faulty: Faulty) -> None:
    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([faulty("v1", "--exit-at-start", "7"), faulty("v2")])
        (bad,) = await supervisor.wait_ready(60)
        assert (bad.id, bad.state, bad.pid, bad.restarts) == ("assistant@v1/0", "failed", 0, 2)
        assert "status 7" in bad.last_error
        assert "the fake model cannot be read" in bad.last_error
        assert supervisor.log_tail("assistant@v1/0", 1) == ["error: the fake model cannot be read"]
        assert supervisor.log_tail("assistant@v9/0") == []
        await supervisor.apply([faulty("v1"), faulty("v2")])  # mended: another definition under the id
        assert await supervisor.wait_ready(60) == []

    supervised(root, body)


def test_a_failed_one_gets_another_chance_by_apply(root: Path, faulty: Faulty) -> None:
    wanted = faulty("v1")
    program = Path(wanted.manifest.engine_args["binary"])
    away = program.rename(program.with_suffix(".away"))

    def mend() -> None:
        away.rename(program)

    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([wanted])
        (bad,) = await supervisor.wait_ready(30)
        assert bad.state == "failed"
        assert "there is no program" in bad.last_error
        mend()
        await supervisor.apply([wanted])
        assert await supervisor.wait_ready(60) == []

    supervised(root, body)


def test_a_missing_file_is_named(root: Path, tmp_path: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([version("v1", tmp_path / "gone.gguf")])
        (bad,) = await supervisor.wait_ready(30)
        assert bad.state == "failed"
        assert f"{tmp_path}/gone.gguf" in bad.last_error
        assert "\n" not in bad.last_error

    supervised(root, body)


def test_an_unknown_engine_changes_nothing(root: Path, faulty: Faulty, tmp_path: Path) -> None:
    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([faulty("v1")])
        assert await supervisor.wait_ready(60) == []
        with pytest.raises(EngineError, match=r"unknown engine 'vlm': did you mean 'vllm'\?"):
            await supervisor.apply([version("v2", tmp_path, engine="vlm")])
        assert one(supervisor).state == "ready"

    supervised(root, body)


def test_apply_leaves_alone_what_did_not_change(root: Path, faulty: Faulty) -> None:
    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([faulty("v1"), faulty("v2")])
        await supervisor.wait_ready(60)
        first, second = supervisor.replicas()
        drained: list[tuple[str, str]] = []

        async def drain(replica: str) -> None:
            states = {status.id: status.state for status in supervisor.replicas()}
            drained.append((replica, states[replica]))

        await supervisor.apply([faulty("v1"), faulty("v3"), replace(faulty("v1"), replica=1)], drain=drain)
        assert drained == [("assistant@v2/0", "draining")]
        assert not alive(second.pid)
        assert await supervisor.wait_ready(60) == []
        statuses = {status.id: status for status in supervisor.replicas()}
        assert sorted(statuses) == ["assistant@v1/0", "assistant@v1/1", "assistant@v3/0"]
        assert statuses["assistant@v1/0"].pid == first.pid

    supervised(root, body)


def test_one_deaf_to_sigterm_is_killed_with_its_children(root: Path, faulty: Faulty) -> None:
    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([faulty("v1", "--deaf", "--child")])
        await supervisor.wait_ready(60)
        leader = psutil.Process(one(supervisor).pid)
        children = leader.children()
        assert children
        began = time.monotonic()
        await supervisor.stop(0.5)
        assert 0.5 <= time.monotonic() - began < 20  # alone it would go on for ever
        assert not any(alive(member.pid) for member in (leader, *children))

    supervised(root, body)


@pytest.mark.parametrize("flag", ["--child", "--nameless-child"])
def test_children_of_a_killed_engine_are_ended_too(root: Path, faulty: Faulty, flag: str) -> None:
    """One has our environment; the other has overwritten it, as vLLM's engine core does with its title."""

    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([faulty("v1", flag)])
        await supervisor.wait_ready(60)
        status = one(supervisor)
        (child,) = psutil.Process(status.pid).children()
        await until(lambda: flag == "--child" or "MODELYARD_ENGINE" not in child.environ())
        os.kill(status.pid, signal.SIGKILL)
        await until(lambda: one(supervisor).restarts == 1)
        assert not alive(child.pid)
        assert await supervisor.wait_ready(30) == []

    supervised(root, body)


def test_one_that_does_not_answer_loses_its_place_and_gets_it_back(root: Path, faulty: Faulty) -> None:
    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([faulty("v1")])
        await supervisor.wait_ready(60)
        status = one(supervisor)
        url = f"http://127.0.0.1:{status.port}/fake/behave"
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.post(url, json={"health_status": 503})
            for _ in range(2):
                await supervisor.nudge(status.id)
                await asyncio.sleep(0.2)
            await until(lambda: one(supervisor).state == "backoff")
            assert "answers 503" in one(supervisor).last_error
            await client.post(url, json={"health_status": 200})
        await supervisor.nudge(status.id)
        await until(lambda: one(supervisor).state == "ready")
        assert (one(supervisor).pid, one(supervisor).restarts) == (status.pid, 0)

    supervised(root, body)


def test_one_that_hangs_is_killed_and_started_again(root: Path, faulty: Faulty) -> None:
    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([faulty("v1")])
        await supervisor.wait_ready(60)
        os.kill(one(supervisor).pid, signal.SIGSTOP)
        await until(lambda: one(supervisor).restarts == 1)
        assert await supervisor.wait_ready(30) == []

    supervised(root, body, policy=replace(QUICK, hung_s=1.5))


def test_a_new_supervisor_adopts_what_a_killed_control_plane_left(root: Path, faulty: Faulty) -> None:
    wanted = faulty("v1")
    left = abandoned(root, wanted, PROJECT)
    assert alive(left["pid"])

    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([wanted])
        assert await supervisor.wait_ready(60) == []
        status = one(supervisor)
        assert status.adopted
        assert (status.pid, status.port, status.restarts) == (left["pid"], left["port"], 0)
        assert status.capabilities is not None
        os.kill(status.pid, signal.SIGKILL)
        await until(lambda: one(supervisor).restarts == 1)
        assert await supervisor.wait_ready(30) == []

    supervised(root, body)


def test_detached_engines_are_adopted(root: Path, faulty: Faulty) -> None:
    wanted = faulty("v1")
    left = abandoned(root, wanted, PROJECT)

    async def body(supervisor: Supervisor) -> None:
        other = Supervisor(root)
        await other.apply([wanted])
        await other.wait_ready(20)
        await other.detach()
        assert alive(left["pid"])
        await supervisor.apply([wanted])
        await supervisor.wait_ready(60)
        assert one(supervisor).pid == left["pid"]

    supervised(root, body)


def test_what_is_wanted_otherwise_is_not_adopted(root: Path, faulty: Faulty) -> None:
    left = abandoned(root, faulty("v1"), PROJECT)

    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([replace(faulty("v1"), digest="sha256:another")])
        assert await supervisor.wait_ready(60) == []
        assert (one(supervisor).adopted, one(supervisor).restarts) == (False, 0)
        assert one(supervisor).pid != left["pid"]

    supervised(root, body)
    assert not alive(left["pid"])


def test_engines_that_are_wanted_no_more_are_ended_at_the_next_start(root: Path, faulty: Faulty) -> None:
    left = abandoned(root, faulty("v1"), PROJECT)
    (root / "assistant@v1" / "0" / "engine.json").unlink()  # as if killed before it was written

    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([faulty("v2")])
        assert not alive(left["pid"])

    supervised(root, body)


def test_an_external_engine_is_probed_and_never_stopped(root: Path, fake_engine: Callable[..., FakeEngine]) -> None:
    engine = fake_engine("--name", "their-model")

    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([version("ext", engine="external", url=engine.url)])
        assert await supervisor.wait_ready(60) == []
        status = one(supervisor)
        assert (status.port, status.pid, status.log_path) == (engine.port, 0, "")
        assert status.served_names == ("their-model",)
        port = engine.port
        engine.kill()
        for _ in range(2):
            await supervisor.nudge(status.id)
            await asyncio.sleep(0.2)
        await until(lambda: one(supervisor).state == "backoff")
        again = fake_engine("--name", "their-model", port=port)
        await supervisor.nudge(status.id)
        await until(lambda: one(supervisor).state == "ready")
        assert again.process.poll() is None

    supervised(root, body)
    assert "seen" in fake_engine("--name", "x").stats()


def test_a_log_that_grew_too_long_is_cut_to_its_end(tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as log:
        log.write(b"line\n" * (process.LOG_BYTES_MAX // 5 + 10))
        log.flush()
        process.bound_log(tmp_path)
        assert (tmp_path / "log").stat().st_size == 0
        assert (tmp_path / "log.1").stat().st_size == process.LOG_BYTES_KEPT
        assert process.tail(tmp_path, 2) == ["line", "line"]
        log.write(b"after\n")
        log.flush()
    assert process.tail(tmp_path, 2) == ["after"]


def test_a_child_sees_no_key_of_ours(root: Path, faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("VLLM_API_KEY", "secret")

    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([faulty("v1")])
        await supervisor.wait_ready(60)
        environ = psutil.Process(one(supervisor).pid).environ()
        assert not [name for name, value in environ.items() if "secret" in value]
        assert environ["LLAMA_ARG_THREADS"] == "2"
        assert psutil.Process(one(supervisor).pid).cmdline()[-1] == "assistant@v1"

    supervised(root, body, cores=3)


def test_an_apply_that_a_stop_overtakes_starts_nothing_more(root: Path, faulty: Faulty) -> None:
    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([faulty("v1")])
        assert await supervisor.wait_ready(60) == []
        begun = asyncio.Event()

        async def drain(replica: str) -> None:
            begun.set()
            await asyncio.sleep(0.2)

        applying = asyncio.create_task(supervisor.apply([faulty("v2")], drain=drain))
        await begun.wait()
        assert one(supervisor).state == "draining"
        await supervisor.stop(5)
        with pytest.raises(EngineError, match="are being stopped"):
            await applying
        assert supervisor.replicas() == []

    supervised(root, body)


def test_a_replica_left_draining_by_an_apply_that_failed_is_made_anew_by_the_next(root: Path, faulty: Faulty) -> None:
    async def broken(replica: str) -> None:
        raise OSError(f"{replica} cannot be drained")

    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([faulty("v1")])
        assert await supervisor.wait_ready(60) == []
        with pytest.raises(OSError, match="cannot be drained"):
            await supervisor.apply([], drain=broken)
        assert one(supervisor).state == "draining"
        await supervisor.apply([faulty("v1")])
        assert await supervisor.wait_ready(60) == []

    supervised(root, body)


def test_an_adopted_engine_survives_a_clock_that_is_set(
    root: Path, faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = faulty("v1")
    left = abandoned(root, wanted, PROJECT)

    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([wanted])
        assert await supervisor.wait_ready(60) == []
        booted_at = psutil.boot_time()
        monkeypatch.setattr("psutil._psplatform.boot_time", lambda: booted_at - 3600)
        for _ in range(3):
            await supervisor.nudge("assistant@v1/0")
            await asyncio.sleep(0.2)
        assert (one(supervisor).state, one(supervisor).pid, one(supervisor).restarts) == ("ready", left["pid"], 0)

    supervised(root, body)


def test_an_engine_that_cannot_be_written_down_does_not_run(root: Path, faulty: Faulty) -> None:
    wanted = faulty("v1")
    (root / "assistant@v1" / "0" / "engine.json.tmp").mkdir(parents=True)

    async def body(supervisor: Supervisor) -> None:
        await supervisor.apply([wanted])
        (bad,) = await supervisor.wait_ready(30)
        assert (bad.state, bad.pid) == ("failed", 0)
        assert process.marked(root) == set()

    supervised(root, body)
