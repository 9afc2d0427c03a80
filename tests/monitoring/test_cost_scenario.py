"""An hour of two GPUs whose energy, utilisation and requests are known: every line of every bill to the cent, by hand.

Prices: 36.00 per GPU-hour (a cent a second), 5.00 per kWh, PUE 1.2. Two kilowatt-hours per GPU, so 12.00 an hour, a
third of a cent a second.

GPU-A holds chat@v1 (30 GB) and chat@v2 (10 GB), GPU-B from half past on code@v1 (60 GB) and chat@v3 (20 GB), which
nobody asks: it is only warm. In flight, seconds of the hour:

    GPU-A   chat@v1  completed    0-600      key k1
            chat@v2  completed  300-900      key k2, segment beta
            chat@v1  failed     900-1200     key k1
            chat@v2  shadow     900-1200     a copy of it
            chat@v1  cancelled 1800-2400     key k1
    GPU-B   code@v1  completed 1800-2400     key k1
            code@v1  completed 2100-2700     key k2

Shares on GPU-A: v1 completed 300 + 300/2 = 450, v2 completed 300/2 + 300 = 450, failed and shadow 300/2 each,
cancelled 600: 1800 s busy, 1800 s idle, 3 : 1 by memory. On GPU-B each of code@v1's requests 300 + 300/2 = 450: 900 s
busy, 2700 s idle, 3 : 1 by memory.

Multiprocessors of GPU-A: chat@v1 had 400 s, chat@v2 800 s, so 600 and 1200 of the 1800 busy seconds; within v1 450 :
150 : 600, within v2 450 : 150. GPU-B is divided into instances: no such reading.

Tokens: an hour before, streams elsewhere took 0.01 s per prompt token and 0.1 s per completion token of chat@v1, 0.02
and 0.2 of chat@v2; code@v1 has no stream and the weights of both together, 0.015 and 0.15.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from monitoring_records import record

from monitoring import settle
from monitoring.cost import Prices
from monitoring.devices import DeviceReading, ProcessReading
from monitoring.sampler import Sampler
from monitoring.statement import Bill, Dimension, Statement, statement
from monitoring.usage import Slo
from registry.ledger import Ledger
from registry.store import Registry
from registry.usage import RequestRecord

HOUR = 1_800_000_000 // 3600 * 3600
PRICES = Prices("EUR", gpu_hour=36.0, kwh=5.0, pue=1.2)
STEP_S = 60.0
FIRST, SECOND = {11: "chat@v1", 12: "chat@v2"}, {21: "chat@v3", 22: "code@v1"}
MEMORY = {11: 30_000_000_000, 12: 10_000_000_000, 21: 20_000_000_000, 22: 60_000_000_000}
SM_S = {11: 400.0, 12: 800.0}
DEVICES = {"chat@v1/0": "GPU-A", "chat@v2/0": "GPU-A", "code@v1/0": "GPU-B"}
SLOS = {"chat": Slo(total_s=700.0), "code": Slo(total_s=60.0)}


class TwoGpus:
    """Readings once a minute, and the processes behind them."""

    kind = "gpu"

    def __init__(self) -> None:
        self.at = float(HOUR)

    def clock(self) -> float:
        return self.at

    def engines(self) -> dict[int, str]:
        return FIRST | (SECOND if self.at > HOUR + 1800 else {})

    def read(self, at: float, pids: Iterable[int] = ()) -> Sequence[DeviceReading]:
        energy_j = 7_200_000.0 * (at - HOUR) / 3600
        steps = 3600 / STEP_S
        on_a = [ProcessReading(pid, memory_bytes=MEMORY[pid], sm_s=SM_S[pid] / steps) for pid in FIRST]
        on_b = [ProcessReading(pid, memory_bytes=MEMORY[pid]) for pid in self.engines() if pid in SECOND]
        return [
            DeviceReading("gpu", "GPU-A", at, 0, energy_j=50.0 + energy_j, processes=tuple(on_a)),
            DeviceReading("gpu", "GPU-B", at, 1, energy_j=energy_j, mig=True, processes=tuple(on_b)),
        ]

    def close(self) -> None:
        pass


class Table:
    """The system's processes: each engine is its own."""

    def read(self, pids: Iterable[int], at: float) -> dict[int, ProcessReading]:
        return {pid: ProcessReading(pid, HOUR - 5.0) for pid in pids}

    def owners(self, pids: Iterable[int], at: float) -> dict[int, int]:
        return {pid: pid for pid in pids}


def calibration(version: str, per_prompt_s: float, per_completion_s: float) -> RequestRecord:
    """A stream of an hour before, on an engine that is none of ours."""
    first = 1.0 + 1000 * per_prompt_s
    return record(
        model="chat",
        version=version,
        replica="elsewhere/0",
        started_at=HOUR - 1800.0,
        dispatched_s=1.0,
        first_token_s=first,
        last_token_s=first + 1000 * per_completion_s,
        duration_s=first + 1000 * per_completion_s,
        prompt_tokens=1000,
        cached_tokens=0,
        completion_tokens=1001,
    )


def asked(ref: str, start: int, stop: int, tokens: tuple[int, int, int] = (0, 0, 0), **changes) -> RequestRecord:
    """A request in flight from `start` to `stop`; tokens: prompt, cached ones of these, completion."""
    model, _, version = ref.partition("@")
    values = {
        "model": model,
        "version": version,
        "replica": f"{ref}/0",
        "started_at": HOUR + start - 1.0,
        "dispatched_s": 1.0,
        "duration_s": stop - start + 1.0,
        "streamed": False,
        "first_token_s": 0.0,
        "last_token_s": 0.0,
        "events": 0,
        "prompt_tokens": tokens[0],
        "cached_tokens": tokens[1],
        "completion_tokens": tokens[2],
        "usage_source": "engine" if any(tokens) else "none",
    }
    return record(**(values | changes))


RECORDS = [
    calibration("v1", 0.01, 0.1),
    calibration("v2", 0.02, 0.2),
    asked("chat@v1", 0, 600, (3000, 1000, 400), key_id="k1"),
    asked("chat@v2", 300, 900, (1000, 0, 100), key_id="k2", segment="beta"),
    asked("chat@v1", 900, 1200, key_id="k1", outcome="failed", status=502),
    asked("chat@v2", 900, 1200, (500, 0, 50), shadow_of="r"),
    asked("chat@v1", 1800, 2400, (2000, 0, 600), key_id="k1", outcome="cancelled", status=499),
    asked("code@v1", 1800, 2400, (200, 0, 100), key_id="k1"),
    asked("code@v1", 2100, 2700, (1000, 0, 260), key_id="k2"),
]


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    folder: Path = tmp_path_factory.mktemp("scenario")
    registry = Registry.open(folder / "registry.db")
    found = Ledger(registry.engine)
    gpus = TwoGpus()
    sampler = Sampler(gpus, gpus.engines, interval_s=STEP_S, clock=gpus.clock, processes=Table())
    settle.record_prices(found, PRICES, HOUR - 7200.0)
    sampler.sample_once()
    for minute in range(1, 61):
        gpus.at = HOUR + minute * STEP_S
        sampler.sample_once()
        since = gpus.at - STEP_S if minute > 1 else 0.0
        arrived = [one for one in RECORDS if since < one.ended_at <= gpus.at]
        with found.transaction() as tx:
            settle.count(tx, arrived, DEVICES.get, slos=SLOS)
            running = [one.started_at for one in RECORDS if one.started_at <= gpus.at < one.ended_at]
            settle.settle(tx, min([gpus.at, *running]))
            sums = sampler.peek()
            settle.add(tx, sums)
        sampler.settled(sums)
    yield found
    registry.close()


def made(ledger: Ledger, *by: Dimension) -> Statement:
    view = settle.view(ledger, HOUR, HOUR + 3600)
    return statement(view, prices=Prices(), devices={}, stop=HOUR + 3600.0, by=by or ("version", "outcome"))


def cents(bill: Bill) -> dict[tuple[str, ...], int]:
    """Line -> whole cents; fails where an amount is not whole."""
    found: dict[tuple[str, ...], int] = {}
    for line in bill.lines:
        whole, rest = divmod(line.nano, 10_000_000)
        assert rest == 0, line
        if whole:
            found[(line.kind, line.version, line.outcome) if line.kind != "idle" else ("idle", line.version)] = whole
    return found


def lines(v1: int, v2: int, failed: int, shadow: int, cancelled: int) -> dict[tuple[str, ...], int]:
    found = {
        ("version", "chat@v1", "completed"): v1,
        ("version", "chat@v2", "completed"): v2,
        ("version", "chat@v1", "failed"): failed,
        ("version", "chat@v2", "shadow"): shadow,
        ("version", "chat@v1", "cancelled"): cancelled,
    }
    return {line: amount for line, amount in found.items() if amount}


IDLE_A = {("idle", "chat@v1"): 1350, ("idle", "chat@v2"): 450}
IDLE_B = {("idle", "chat@v3"): 675, ("idle", "code@v1"): 2025}
CODE = {("version", "code@v1", "completed"): 900}
IDLE_A_ENERGY = {("idle", "chat@v1"): 450, ("idle", "chat@v2"): 150}
IDLE_B_ENERGY = {("idle", "chat@v3"): 225, ("idle", "code@v1"): 675}
CODE_ENERGY = {("version", "code@v1", "completed"): 300}
# By tokens: v1 completed 2000 x 0.01 + 400 x 0.1 = 60, v2 1000 x 0.02 + 100 x 0.2 = 40, failed none, shadow 20,
# cancelled 2000 x 0.01 + 600 x 0.1 = 80: 60, 40, 20 and 80 of 200 parts of 1800 s.
EXPECTED = {
    ("GPU-A", "allocated", "inflight"): lines(450, 450, 150, 150, 600) | IDLE_A,
    ("GPU-A", "busy", "inflight"): lines(450, 450, 150, 150, 600),
    ("GPU-A", "energy", "inflight"): lines(150, 150, 50, 50, 200) | IDLE_A_ENERGY,
    ("GPU-A", "allocated", "sm"): lines(225, 900, 75, 300, 300) | IDLE_A,
    ("GPU-A", "busy", "sm"): lines(225, 900, 75, 300, 300),
    ("GPU-A", "energy", "sm"): lines(75, 300, 25, 100, 100) | IDLE_A_ENERGY,
    ("GPU-A", "allocated", "tokens"): lines(540, 360, 0, 180, 720) | IDLE_A,
    ("GPU-A", "busy", "tokens"): lines(540, 360, 0, 180, 720),
    ("GPU-A", "energy", "tokens"): lines(180, 120, 0, 60, 240) | IDLE_A_ENERGY,
    ("GPU-B", "allocated", "inflight"): CODE | IDLE_B,
    ("GPU-B", "busy", "inflight"): CODE,
    ("GPU-B", "energy", "inflight"): CODE_ENERGY | IDLE_B_ENERGY,
    ("GPU-B", "allocated", "tokens"): CODE | IDLE_B,
    ("GPU-B", "busy", "tokens"): CODE,
    ("GPU-B", "energy", "tokens"): CODE_ENERGY | IDLE_B_ENERGY,
}


def test_every_line_is_right_to_the_cent_on_every_basis_and_by_every_method(ledger: Ledger) -> None:
    found = made(ledger)
    assert {(bill.device, bill.basis, bill.method): cents(bill) for bill in found.bills} == EXPECTED
    for bill in found.bills:
        assert bill.total_nano == sum(line.nano for line in bill.lines)
        assert (bill.currency, bill.residual_s, bill.fallback_s) == ("EUR", 0.0, 0.0)
        assert bill.start == HOUR
    totals = {bill.total_nano for bill in found.bills if bill.basis == "allocated"}
    assert totals == {36_000_000_000}, "wall time x price, by whatever method it is divided"


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("inflight", {("chat", "k1"): 1200, ("chat", "k2"): 450, ("chat", ""): 150}),
        ("tokens", {("chat", "k1"): 1260, ("chat", "k2"): 360, ("chat", ""): 180}),
    ],
)
def test_by_model_and_key(ledger: Ledger, method: str, expected: dict[tuple[str, str], int]) -> None:
    found = made(ledger, "model", "key")
    (bill,) = (one for one in found.bills if (one.device, one.basis, one.method) == ("GPU-A", "busy", method))
    assert {(line.model, line.key): line.nano // 10_000_000 for line in bill.lines} == expected
    assert all(not unit.with_idle for unit in found.unit_costs)
    (code,) = (one for one in found.bills if (one.device, one.basis, one.method) == ("GPU-B", "busy", method))
    shares = {"inflight": {"k1": 450, "k2": 450}, "tokens": {"k1": 225, "k2": 675}}[method]  # 18 and 54 of 72 parts
    assert {line.key: line.nano // 10_000_000 for line in code.lines} == shares


def test_by_segment_outcome_and_hour(ledger: Ledger) -> None:
    found = made(ledger, "segment", "outcome", "hour")
    (bill,) = (one for one in found.bills if (one.device, one.basis, one.method) == ("GPU-A", "allocated", "inflight"))
    assert {(one.kind, one.segment, one.outcome): one.nano // 10_000_000 for one in bill.lines if one.nano} == {
        ("version", "", "completed"): 450,
        ("version", "beta", "completed"): 450,
        ("version", "", "failed"): 150,
        ("version", "", "shadow"): 150,
        ("version", "", "cancelled"): 600,
        ("idle", "", ""): 1800,
    }
    assert {line.hour for line in bill.lines} == {HOUR}


def test_unit_costs_are_of_everything_but_copies_over_what_was_completed_and_good(ledger: Ledger) -> None:
    units = {
        (one.version, one.basis): one for one in made(ledger).unit_costs if one.method == "inflight" and one.device
    }
    v1 = units["chat@v1", "allocated"]
    assert v1.cost_nano == (450 + 150 + 600 + 1350) * 10_000_000
    assert v1.per_1k_requests == pytest.approx(25_500.0)
    assert (v1.requests, v1.judged, v1.good, v1.per_1k_good) == (1, 2, 1, pytest.approx(25_500.0))
    assert v1.token_weights == "phase_seconds"
    # 4000 uncached tokens at 0.01 s and 1000 at 0.1 s: 40 and 100 of 140 parts of 25.50
    assert v1.per_1m_input_tokens == pytest.approx(25.5 * 40 / 140 / 4000 * 1e6)
    assert v1.per_1m_output_tokens == pytest.approx(25.5 * 100 / 140 / 1000 * 1e6)
    v2 = units["chat@v2", "busy"]
    assert v2.cost_nano == 4_500_000_000, "what it did as a shadow is on no client's request"
    code = units["code@v1", "busy"]
    assert (code.requests, code.good, code.per_1k_good, code.token_weights) == (2, 0, None, "pooled")
    assert ("chat@v3", "allocated") not in units, (
        "it was only warm: its line is idle, and there is nothing to divide by"
    )


def test_usage_of_the_hour_leaves_out_what_was_before(ledger: Ledger) -> None:
    used = {one.version: one for one in made(ledger).usage}
    assert dict(used["chat@v1"].requests) == {"completed": 1, "failed": 1, "cancelled": 1}
    assert (used["chat@v1"].prompt_tokens, used["chat@v1"].cached_tokens) == (5000, 1000)
    assert (used["chat@v2"].completion_tokens, used["chat@v2"].shadow_requests) == (100, 1)
