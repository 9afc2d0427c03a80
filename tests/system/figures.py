"""Figures of a yard as its metrics and its bills have them. For tests that compare them."""

from __future__ import annotations

import contextlib
import time

import httpx
from prometheus_client.parser import text_string_to_metric_families
from stack import Stack, until

from monitoring.settle import HELD
from registry.ledger import Ledger
from registry.store import Registry
from serving.control.ingest import SETTLE_S

LAST_READING = "modelyard_sampler_last_reading_timestamp_seconds"


def metrics(stack: Stack) -> str:
    """What a scrape gives now."""
    return httpx.get(f"{stack.admin_url}/metrics", trust_env=False, timeout=60).text


def sample(text: str, name: str, **labels: str) -> float:
    """The sum of the samples of `name` with these labels."""
    return sum(
        one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
        if one.name == name and all(one.labels.get(key) == value for key, value in labels.items())
    )


def allocated(stack: Stack) -> tuple[float, dict[str, float]]:
    """Up to when devices were read (Unix seconds), and what each one's allocated bill was then.

    A bill is written up to the last reading, whose time the ledger then has; it goes on only SETTLE_S later.
    """

    def together() -> tuple[float, dict[str, float]] | None:
        began = time.monotonic()
        bills = stack.admin("/cost")["bills"]
        with contextlib.closing(Registry.open(stack.state / "registry.db")) as registry:
            read_until = Ledger(registry.engine).cursor(HELD)
        wanted = ("allocated", "inflight")
        made = {bill["device"]: bill["total"] for bill in bills if (bill["basis"], bill["method"]) == wanted}
        return (read_until, made) if read_until and time.monotonic() - began < SETTLE_S else None

    found: tuple[float, dict[str, float]] = until(together, 60, "a bill and its time")
    return found
