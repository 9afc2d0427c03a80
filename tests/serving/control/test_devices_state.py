"""What the yard's health says of its devices."""

from __future__ import annotations

from monitoring.sampler import SamplerStatus
from serving.control.health import devices_state


def test_devices_are_degraded_while_one_is_lost_and_no_longer() -> None:
    lost = SamplerStatus(last_at=100.0, samples=5, last_error="GPU-b: GPU is lost", failing="GPU-b: GPU is lost")
    found = devices_state(lost, 100.5)
    assert (found.state, found.detail) == (
        "degraded",
        "readings fail (GPU-b: GPU is lost): cost is not measured meanwhile",
    )
    back = SamplerStatus(last_at=200.0, samples=9, last_error="GPU-b: GPU is lost")
    assert devices_state(back, 200.5).state == "ok"
    assert devices_state(back, 900.0).state == "degraded"  # readings stopped coming
