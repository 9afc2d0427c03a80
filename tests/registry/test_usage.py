"""Segments: every record that was written whole is read once, wherever a writer died or a reader stopped."""

from __future__ import annotations

import struct
import zlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.usage import FRAME, MAGIC, PAYLOAD_BYTES_MAX, CorruptSegmentError, RequestRecord, frame, scan

TIMES = st.floats(0, 2e9)
RECORDS = st.builds(
    RequestRecord,
    request_id=st.text(max_size=40),
    started_at=TIMES,
    duration_s=TIMES,
    endpoint=st.sampled_from(["/v1/chat/completions", "other"]),
    model=st.text(max_size=10),
    version=st.text(max_size=5),
    replica=st.text(max_size=5),
    outcome=st.sampled_from(["completed", "failed", "cancelled", "truncated", "rejected"]),
    status=st.integers(0, 599),
    sticky=st.integers(0, 2**63 - 1),
    prompt_tokens=st.integers(0, 2**31),
)


def segment(records: list[RequestRecord]) -> bytes:
    return MAGIC + b"".join(frame(record) for record in records)


def record(number: int) -> RequestRecord:
    return RequestRecord(f"r{number}", 1.0, 0.5, "other", "m", "v1", "m@v1/0", "completed", 200)


@given(st.lists(RECORDS, max_size=5))
def test_records_read_back(records: list[RequestRecord]) -> None:
    data = segment(records)
    assert scan(data, from_start=True) == (records, len(data))
    assert scan(memoryview(data), from_start=True) == (records, len(data))
    assert scan(data[len(MAGIC) :], from_start=False) == (records, len(data) - len(MAGIC))


@given(st.lists(RECORDS, min_size=1, max_size=40), st.integers(0, 2_000))
def test_records_packed_together_read_back_all_or_none(records: list[RequestRecord], cut: int) -> None:
    data = MAGIC + frame(*records)
    assert scan(data, from_start=True) == (records, len(data))
    assert scan(data[: max(len(MAGIC), len(data) - 1 - cut)], from_start=True) == ([], len(MAGIC))


def test_a_frame_is_never_larger_than_a_reader_takes() -> None:
    records = [RequestRecord("r" * 900, n, 0.5, "other", "m", "v1", "m@v1/0", "completed", 200) for n in range(500)]
    assert scan(frame(*records), from_start=False)[0] == records


def test_a_frame_of_the_first_release_is_one_record_by_itself() -> None:
    payload = msgspec.msgpack.encode(record(7))
    assert scan(FRAME.pack(len(payload), zlib.crc32(payload)) + payload, from_start=False)[0] == [record(7)]


def test_a_tail_torn_at_any_byte_is_left_for_the_next_scan() -> None:
    records = [record(number) for number in range(3)]
    data = segment(records)
    ends = [len(MAGIC)]
    for item in records:
        ends.append(ends[-1] + len(frame(item)))
    for cut in range(len(data) + 1):
        found, offset = scan(data[:cut], from_start=True)
        whole = sum(end <= cut for end in ends[1:])
        assert found == records[:whole]
        assert offset == (ends[whole] if cut >= len(MAGIC) else 0)
        rest, taken = scan(data[offset:], from_start=offset == 0)
        assert found + rest == records
        assert offset + taken == len(data)


@settings(max_examples=50)
@given(st.lists(RECORDS, max_size=6), st.lists(st.integers(0, 4000), max_size=8))
def test_any_steps_of_reading_find_each_record_once(records: list[RequestRecord], stops: list[int]) -> None:
    data = segment(records)
    found: list[RequestRecord] = []
    offset = 0
    for stop in [*sorted(stops), len(data)]:
        new, taken = scan(data[offset : max(stop, offset)], from_start=offset == 0)
        found += new
        offset += taken
    assert found == records
    assert offset == len(data)


def test_damage_at_any_byte_is_never_taken_for_another_record() -> None:
    records = [record(number) for number in range(3)]
    data = segment(records)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x55
        try:
            found, _ = scan(bytes(damaged), from_start=True)
        except CorruptSegmentError:
            continue
        assert found == records[: len(found)]
        assert len(found) < len(records)


def test_what_is_no_segment_is_refused() -> None:
    with pytest.raises(CorruptSegmentError, match="MYSEG1"):
        scan(b"PARQUET" + b"x" * 20, from_start=True)
    with pytest.raises(CorruptSegmentError, match="claims"):
        scan(MAGIC + FRAME.pack(PAYLOAD_BYTES_MAX + 1, 0) + b"x", from_start=True)


def test_a_payload_that_is_no_record_is_damage_too() -> None:
    payload = msgspec.msgpack.encode(["too", "short"])
    data = MAGIC + struct.pack("<II", len(payload), zlib.crc32(payload)) + payload + b"x"
    with pytest.raises((CorruptSegmentError, msgspec.ValidationError)):
        scan(data, from_start=True)


def test_older_and_newer_fields_are_read() -> None:
    whole = msgspec.msgpack.decode(msgspec.msgpack.encode(record(1)))
    for fields in (whole[:9], [*whole, "a field of a newer release"]):
        payload = msgspec.msgpack.encode(fields)
        data = MAGIC + FRAME.pack(len(payload), zlib.crc32(payload)) + payload
        assert scan(data, from_start=True)[0] == [record(1)]
