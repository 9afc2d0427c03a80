"""What `modelyard route show` says of segments and shadows."""

from __future__ import annotations

from serving.commands.route import segment_text, shadow_text


def test_a_segment_says_who_is_in_it_and_where_they_go() -> None:
    segment = {
        "name": "beta",
        "when": [
            {"kind": "header", "name": "x-beta", "values": ["1", "on"]},
            {"kind": "user", "name": "", "values": ["[ann]"]},
        ],
        "weights": {"v1": 0, "v2": 10_000},
    }
    text = segment_text(segment)
    assert text.startswith("  segment beta: ")
    assert text.endswith("where header x-beta is 1 or on and user is \\[ann]"), "what a file says is no markup"


def test_a_shadow_says_its_share_and_its_caps() -> None:
    shadow = {"label": "v2", "sample": 250, "inflight_max": 4, "engine_seconds_per_hour": 0.0}
    assert shadow_text(shadow) == "  shadow v2: copies of 2.5% of requests; per worker at most 4 at a time"
    assert shadow_text(shadow | {"engine_seconds_per_hour": 90.0}).endswith(", 90 engine seconds per hour")
