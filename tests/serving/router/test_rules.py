"""Segments by rule: pure, so every property is checked on made-up requests."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.router.rules import Rules, metadata_of
from serving.router.table import Match, Segment

names = st.sampled_from(["x-beta", "tier", "ü"])
values = st.sampled_from(["", "1", "gold", "ü", "true"])
kinds = st.sampled_from(["header", "metadata", "key", "user"])
matches = st.builds(Match, kinds, names, st.lists(values, min_size=1, max_size=3).map(tuple))
segments = st.lists(
    st.builds(Segment, name=names, when=st.lists(matches, min_size=1, max_size=3).map(tuple)), max_size=4
)
requests = st.fixed_dictionaries(
    {
        "headers": st.dictionaries(names, values),
        "metadata": st.dictionaries(names, values),
        "key": values,
        "user": values,
    }
)


def holds(match: Match, request: dict) -> bool:
    """One condition, said as plainly as can be."""
    found = {
        "header": request["headers"].get(match.name),
        "metadata": request["metadata"].get(match.name),
        "key": request["key"],
        "user": request["user"],
    }[match.kind]
    return found is not None and found in match.values


def decide(found: list[Segment], request: dict) -> Segment | None:
    headers = {name.encode(): value.encode() for name, value in request["headers"].items()}
    body = json.dumps({"model": "m", "metadata": request["metadata"]}).encode()
    return Rules(found).match(headers, key=request["key"], user=request["user"], body=body)


@given(segments, requests)
def test_the_first_segment_whose_conditions_all_hold_decides(found: list[Segment], request: dict) -> None:
    wanted = [segment for segment in found if all(holds(match, request) for match in segment.when)]
    assert decide(found, request) is (wanted[0] if wanted else None)


@given(segments, requests, st.randoms(use_true_random=False))
def test_the_order_of_conditions_makes_no_difference(found: list[Segment], request: dict, random) -> None:
    other = [Segment(name=one.name, when=tuple(random.sample(one.when, len(one.when))), arms=one.arms) for one in found]
    one, two = decide(found, request), decide(other, request)
    assert (one and one.name) == (two and two.name)


def test_the_name_of_a_header_may_be_written_in_any_case() -> None:
    segment = Segment(name="beta", when=(Match("header", "X-Beta", ("1",)),))
    assert Rules([segment]).match({b"x-beta": b"1"}, key="", user="", body=b"") is segment
    assert Rules([segment]).match({b"x-beta": b"1, 1"}, key="", user="", body=b"") is None


def test_a_condition_of_an_unknown_kind_matches_nobody() -> None:
    segment = Segment(name="beta", when=(Match("weather", "", ("",)),))
    assert Rules([segment]).match({}, key="", user="", body=b"{}") is None


@pytest.mark.parametrize(
    ("body", "metadata"),
    [
        (
            b'{"metadata":{"a":"b","n":3,"t":true,"x":null,"l":["b"]}}',
            {"a": "b", "n": "3", "t": "true"},
        ),
        (b'{"metadata":null}', {}),
        (b'{"metadata":["a"]}', {}),
        (b'{"messages":[]}', {}),
        (b'--boundary\r\ncontent-disposition: form-data; name="metadata"', {}),
        (b"", {}),
        (b'{"metadata":' + b"[" * 100_000, {}),
    ],
)
def test_metadata_is_read_where_it_is_usable(body: bytes, metadata: dict[str, str]) -> None:
    assert metadata_of(body) == metadata
