"""Waiting for engines while a yard starts.

Owns: for how long, and when no engine came up. Never: starting or stopping one (the supervisor).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from registry.terminal import NotThereError
from serving.control.ui import EngineState, Ui
from serving.engines.replica import ReplicaStatus
from serving.engines.supervisor import Supervisor

WAIT_STEP_S = 0.1
EXTERNAL_WAIT_S = 5.0
ADOPTION_S = 11.0
"""Longer than an engine that was found running may take to answer."""
SETTLED_STATES = ("ready", "failed")


class EngineStartError(NotThereError):
    """No engine came up; says why, with its last log lines."""


async def wait_for_adoption(supervisor: Supervisor) -> None:
    """Until it is known which of the engines that were found running answer. Raises nothing: some may never."""
    limit = time.monotonic() + ADOPTION_S
    while time.monotonic() < limit:
        if not any(one.state == "starting" and (one.adopted or not one.pid) for one in supervisor.replicas()):
            return
        await asyncio.sleep(WAIT_STEP_S / 5)


async def wait_for_engines(supervisor: Supervisor, ui: Ui, timeout_s: float) -> Sequence[ReplicaStatus]:
    """Until every engine is ready or failed, or `timeout_s` is over; shows how far they are, and returns it.

    For engines that somebody else runs it waits EXTERNAL_WAIT_S at most. Raises EngineStartError where none can answer.
    """
    began = time.monotonic()
    while True:
        replicas = supervisor.replicas()
        ui.engines([engine_state(one) for one in replicas])
        waited_s = time.monotonic() - began
        pending = [one for one in replicas if one.state not in SETTLED_STATES]
        patient = any(one.kind != "external" for one in pending) or waited_s < EXTERNAL_WAIT_S
        if not pending or not patient or waited_s > timeout_s:
            break
        await asyncio.sleep(WAIT_STEP_S)
    failed = [one for one in replicas if one.state == "failed"]
    if replicas and len(failed) == len(replicas):
        raise EngineStartError("no engine came up: " + "; ".join(f"{one.id}: {one.last_error}" for one in failed))
    return replicas


def engine_state(replica: ReplicaStatus) -> EngineState:
    """A replica as it is shown to the person who waits."""
    return EngineState(replica.id, replica.state, replica.last_error)
