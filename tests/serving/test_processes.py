"""A process is recognised for as long as it lives, whatever happens to the clock and to its pid."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from serving.processes import recognised, since_boot_s


def set_clock(monkeypatch: pytest.MonkeyPatch, by_s: float) -> None:
    """What a clock that is set does to what the kernel says: the time of the boot moves with it."""
    booted_at = psutil.boot_time()
    monkeypatch.setattr("psutil._psplatform.boot_time", lambda: booted_at + by_s)


@pytest.mark.parametrize("by_s", [-3600.0, 3600.0])
def test_a_process_is_recognised_after_the_clock_was_set(monkeypatch: pytest.MonkeyPatch, by_s: float) -> None:
    own = psutil.Process()
    born_s, created_at = since_boot_s(own), own.create_time()
    set_clock(monkeypatch, by_s)
    assert psutil.Process().create_time() == pytest.approx(created_at + by_s)
    assert recognised(own.pid, born_s) == own


def test_another_process_with_the_pid_is_not_recognised() -> None:
    own = psutil.Process()
    assert recognised(own.pid, since_boot_s(own) - 1.0) is None


def test_one_that_has_ended_is_not_recognised_before_it_is_reaped_either() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        born_s = since_boot_s(psutil.Process(child.pid))
        assert recognised(child.pid, born_s) is not None
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is left unreaped
        assert recognised(child.pid, born_s) is None
    assert recognised(child.pid, born_s) is None
