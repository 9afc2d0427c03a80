"""Prices, service levels and usage from a file to the books and the metrics, in a whole yard."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from engines.fixtures import FakeEngine
from yard_harness import CONFIG, RunningYard, until

RULES = """
    slo: {total_s: 30, target: 0.9}
prices: {currency: EUR, cpu_hour: 0.12, storage_gb_month: 0.05}
"""


def scraped(yard: RunningYard, name: str) -> dict[str, float]:
    text = httpx.get(f"{yard.info.admin_url}/metrics", trust_env=False, timeout=30).text
    lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith(name + "{")]
    return {labels: float(value) for labels, _, value in lines}


def test_usage_is_known_by_hour_good_requests_are_counted_and_a_changed_price_is_written_down(
    fake_engine: Callable[..., FakeEngine], tmp_path: Path
) -> None:
    plain = CONFIG.format(workers=1, first=fake_engine().url, second=fake_engine().url) + RULES
    with RunningYard(tmp_path, plain) as yard:
        if (left_s := 3600 - time.time() % 3600) < 60:
            time.sleep(left_s)  # both requests belong to one hour
        assert yard.chat("m@v1").status_code == 200
        assert yard.chat("m@v1").status_code == 200
        since = time.time() // 3600 * 3600 - 3600

        def both() -> Any:
            found = yard.get("cost", since=str(since), by="version,hour")
            return found if [one["requests"] for one in found["usage"]] == [{"completed": 2}] else None

        found = until(both)
        (used,) = found["usage"]
        assert (used["version"], used["requests"], used["judged"], used["good"]) == ("m@v1", {"completed": 2}, 2, 2)
        assert used["hour"] % 3600 == 0
        assert [one["prices"]["cpu_hour"] for one in found["prices"]] == [0.12]
        changed = plain.replace("cpu_hour: 0.12", "cpu_hour: 0.24")
        before = time.time()
        answer = yard.admin.post("/apply", json={"config": changed, "path": str(yard.path)})
        assert answer.status_code == 200, answer.text
        cut = yard.yard.parts.sampler.cuts[-1]
        assert before + 1 <= cut <= time.time() + 3, "a whole second ahead: what was used until then keeps its price"
        again = yard.admin.post("/apply", json={"config": changed, "path": str(yard.path)})
        assert again.status_code == 200
        assert yard.yard.parts.sampler.cuts[-1] == cut, "the same prices are no change"
        good = scraped(yard, "modelyard_slo_good_requests_total")
        assert good['modelyard_slo_good_requests_total{model="m",version="v1"}'] == 2
        assert good['modelyard_slo_good_requests_total{model="m",version="v2"}'] == 0
        assert list(scraped(yard, "modelyard_slo_target").values()) == [0.9]
    time.sleep(max(0.0, cut + 0.1 - time.time()))  # from then on the changed price is in force
    with RunningYard(tmp_path, changed) as yard:
        found = yard.get("cost", since=str(since))
        assert [one["prices"]["cpu_hour"] for one in found["prices"]] == [0.12, 0.24]
        assert found["usage"][0]["requests"] == {"completed": 2}
