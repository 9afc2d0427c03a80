"""2,000 mutated conversations with a live worker; `fuzz_sockets.py --inputs 100000` is the long run."""

from __future__ import annotations

from pathlib import Path

from fuzz_sockets import make, run

SEED = 20


def test_two_thousand_hostile_connections_leave_nothing_behind(tmp_path: Path) -> None:
    faults = run(2000, SEED, tmp_path)
    numbers = [int(fault.split()[1].rstrip(":")) for fault in faults if fault.startswith("input ")]
    assert not faults, (f"seed {SEED}", faults[:10], [make(SEED, number) for number in numbers[:3]])


def test_an_input_is_made_from_its_seed_and_number_alone() -> None:
    assert make(7, 123) == make(7, 123)
    assert make(7, 123) != make(8, 123)
