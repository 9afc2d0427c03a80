"""The overview's figures and alerts, and the audit's differences: pure, from what the admin API says."""

from __future__ import annotations

from typing import Any

import pytest

from monitoring.console.differences import differences
from monitoring.console.overview import alerts, cards, charts, colours, error_share, spent


def version(label: str, **changes: Any) -> dict[str, Any]:
    found = {
        "ref": f"m@{label}",
        "label": label,
        "state": "ready",
        "weight": 0,
        "inflight": 0,
        "requests": 10,
        "requests_per_second": 1.0,
        "tokens_per_second": 5.0,
        "ttft_p50_s": 0.1,
        "ttft_p95_s": 0.2,
        "cost_per_1k_requests_allocated": None,
        "currency": "USD",
    }
    return found | changes


def status(*versions: dict[str, Any], **changes: Any) -> dict[str, Any]:
    model = {
        "model": "m",
        "route": {one["label"]: one["weight"] for one in versions if one["weight"]},
        "revision": 3,
        "fallback": ["v1"],
        "segments": [],
        "pause": None,
        "shadows": {},
        "aliases": {"champion": "v1"},
        "versions": list(versions),
    }
    return {"models": [model], "engines": [], "problems": [], "drift": []} | changes


SERIES = {
    "step_s": 10,
    "at": [10, 20, 30],
    "versions": {
        "m@v1": {
            "requests": [10, 20, 30],
            "failures": [0, 0, 3],
            "tokens": [100, 100, 100],
            "ttft_p50_s": [None, 0.1, 0.2],
            "ttft_p95_s": [None, 0.2, 0.3],
        },
        "m@gone": {"requests": [1, 0, 0], "failures": [1, 0, 0], "tokens": [0] * 3}
        | {name: [None] * 3 for name in ("ttft_p50_s", "ttft_p95_s")},
    },
}


def test_all_is_well_only_where_it_is() -> None:
    quiet = {"step_s": 10, "at": [], "versions": {}}
    assert alerts(status(version("v1", weight=10000)), quiet) == []


def test_what_is_wrong_is_said_once_and_in_words() -> None:
    engine = {"id": "m@v2/0", "ref": "m@v2", "state": "failed", "last_error": "it ended with status 2"}
    found = alerts(
        status(
            version("v1", weight=9000),
            version("v2", weight=1000, state="failed"),
            version("v3", weight=0, state="registered"),
            engines=[engine],
            problems=["m@v2/0 failed: it ended with status 2", "disk: 1% is free"],
            drift=[{"model": "m", "version": "v1", "verdict": "act", "features": ["input_tokens"]}],
        ),
        SERIES,
    )
    assert [one.text for one in found] == [
        "The engine m@v2/0 has failed and is not started again.",
        "m@v2 has 10% of the traffic, and no engine that is ready. The fallback is v1.",
        "6.6% of the requests of the last five minutes failed.",
        "Disk: 1% is free.",
        "The traffic of m@v1 has drifted from its reference: input_tokens.",
    ]
    assert [one.kind for one in found] == ["bad", "bad", "bad", "bad", "wait"]
    assert found[0].detail == "it ended with status 2"


def test_versions_with_traffic_come_first_and_keep_their_colour() -> None:
    known = status(version("v1"), version("v2", weight=10000))
    (card,) = cards(known, SERIES)
    assert [(row.label, row.colour, row.aliases) for row in card.rows] == [("v2", 2, ()), ("v1", 1, ("champion",))]
    assert card.shares == (("v2", 10000, 2),)
    assert colours(known["models"][0]) == {"v1": 1, "v2": 2}
    assert (card.rows[0].error_share, card.rows[1].error_share) == (None, pytest.approx(3 / 60))


def test_errors_are_of_all_requests_of_the_last_minutes() -> None:
    assert error_share(SERIES) == pytest.approx(4 / 61)
    assert error_share({"step_s": 10, "at": [], "versions": {}}) is None


def test_charts_show_what_is_there() -> None:
    requests, first, _ = charts(status(version("v1", weight=10000)), SERIES)
    assert [one.values for one in requests.series] == [(1.0, 2.0, 3.0)], "a version that is gone has no line"
    assert first.series[0].values == (None, 0.2, 0.3)
    assert "m@v1 at most 0.3 s" in first.summary
    assert charts(status(version("v1")), {"step_s": 10, "at": [10], "versions": {}}) == []


def test_what_was_spent_is_the_allocated_bill_with_idle_apart() -> None:
    def bill(device: str, basis: str, method: str, *lines: tuple[str, str, float]) -> dict[str, Any]:
        made = [{"kind": kind, "version": name, "amount": amount} for kind, name, amount in lines]
        return {
            "device": device,
            "basis": basis,
            "method": method,
            "lines": made,
            "total": sum(one[2] for one in lines),
        }

    found = spent(
        {
            "start": 3600.0,
            "currency": "USD",
            "bills": [
                bill(
                    "a", "allocated", "inflight", ("version", "m@v1", 1.0), ("version", "m@v1", 0.5), ("idle", "", 2.0)
                ),
                bill("b", "allocated", "inflight", ("version", "m@v2", 3.0), ("unsettled", "", 0.25)),
                bill("a", "busy", "inflight", ("version", "m@v1", 9.0)),
                bill("a", "allocated", "cpu_time", ("version", "m@v1", 9.0)),
            ],
        }
    )
    assert found is not None
    assert (found.total, found.idle, found.parts) == (6.75, 2.25, (("m@v2", 3.0), ("m@v1", 1.5)))
    assert spent({"start": 0.0, "currency": "USD", "bills": []}) is None


def test_an_audit_entry_says_what_became_of_what() -> None:
    before = {"revision": 1, "weights": {"v1": 10000}, "sticky": ["header:x"], "note": "a"}
    after = {"revision": 2, "weights": {"v1": 9000, "v2": 1000}, "sticky": ["header:x"], "note": ""}
    found = {one.name: (one.before, one.after) for one in differences(before, after)}
    assert found == {
        "revision": ("1", "2"),
        "weights v1": ("100%", "90%"),
        "weights v2": ("–", "10%"),
        "note": ("a", "–"),
    }
    assert differences(None, None) == []
    (digest,) = differences(None, {"digest": "sha256:" + "a" * 64})
    assert digest.after == "sha256:aaaaaaaaaaaa…"
