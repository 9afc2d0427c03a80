"""What the machine has left, and what of it is billed."""

from __future__ import annotations

from pathlib import Path

from monitoring_yard import HOUR, PRICES

from monitoring.host_metrics import collect_disks, read_disks
from monitoring.statement import Device, LedgerView, statement
from registry.entries import CpuSeconds, HeldSeconds


def test_a_disk_is_measured_and_one_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    disks = read_disks({"state": tmp_path, "gone": tmp_path / "nowhere"})
    assert [disk.path for disk in disks] == ["state"]
    assert 0 < disks[0].free_bytes <= disks[0].total_bytes
    free, total = collect_disks(disks)
    assert [sample.value for sample in free.samples] == [disks[0].free_bytes]
    assert [sample.labels for sample in total.samples] == [{"path": "state"}]


def test_engines_cpu_seconds_on_a_machine_with_gpus_are_no_residual() -> None:
    view = LedgerView(
        held=[HeldSeconds(HOUR, "GPU-1", 60.0)],
        cpu=[CpuSeconds(HOUR, "cpu", "assistant@v1", 12.0)],
        settled_until=HOUR + 60.0,
        held_until=HOUR + 60.0,
    )
    made = statement(view, prices=PRICES, devices={"GPU-1": Device("gpu")}, stop=HOUR + 60.0)
    assert {bill.device for bill in made.bills} == {"GPU-1"}
    assert made.residual_s == 0
