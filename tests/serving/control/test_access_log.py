"""The access log: what a line holds and never holds, which requests are sampled, and how the file is rotated."""

from __future__ import annotations

import json
import os
import resource
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from registry.usage import RequestRecord
from serving.control.access_log import AccessLog


def record(request_id: str = "req-1", **changes: Any) -> RequestRecord:
    values = {
        "request_id": request_id,
        "started_at": 1_700_000_000.1234,
        "duration_s": 0.123456789,
        "endpoint": "/v1/chat/completions",
        "model": "assistant",
        "version": "v1",
        "replica": "assistant@v1/0",
        "outcome": "completed",
        "status": 200,
        "sticky": 123456789,
        "key_id": "key_1",
        "shadow_of": "req-0",
    }
    return RequestRecord(**(values | changes))


@dataclass
class Written:
    path: Path

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []


def write(path: Path, records: list[RequestRecord], **options: Any) -> list[dict[str, Any]]:
    log = AccessLog(path, **({"sample": 10_000, "bytes_max": 1_000_000} | options))
    log.write(records)
    log.close()
    return Written(path).lines()


def test_a_line_says_what_became_of_a_request_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    (line,) = write(path, [record(error="", prompt_tokens=3)])
    assert line["time"] == "2023-11-14T22:13:20.123Z"
    assert (line["request_id"], line["outcome"], line["duration_s"]) == ("req-1", "completed", 0.123457)
    assert (line["prompt_tokens"], line["key_id"], line["shadow_of"]) == (3, "key_1", "req-0")
    assert not {"sticky", "started_at"} & set(line)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_redacted_fields_are_in_no_line_nor_in_another_guise(tmp_path: Path) -> None:
    kept = [record(trace_id="a" * 32, span_id="b" * 16)]
    (line,) = write(tmp_path / "log", kept, redact=("request_id", "key_id", "trace_id"))
    assert not {"request_id", "shadow_of", "key_id", "trace_id", "span_id", "parent_span_id"} & set(line)
    text = (tmp_path / "log").read_text()
    assert not any(word in text for word in ("req-", "key_1", "aaaa", "bbbb"))


@given(st.integers(0, 10_000), st.lists(st.text("abcdef0123456789", min_size=4), max_size=40, unique=True))
def test_sampling_is_by_the_requests_id_and_errors_are_always_written(
    tmp_path_factory: Any, share: int, ids: list[str]
) -> None:
    path = tmp_path_factory.mktemp("log")
    good = [record(name) for name in ids]
    bad = [record(f"bad-{name}", outcome="failed", status=502, error="engine_reset") for name in ids]
    mistakes = [record(f"no-{name}", status=404) for name in ids]
    lines = write(path / "one", [*good, *bad, *mistakes], sample=share)
    again = write(path / "two", [*good, *bad, *mistakes], sample=share)
    assert lines == again
    written = [line["request_id"] for line in lines]
    assert all(one.request_id in written for one in (*bad, *mistakes))
    if share == 0:
        assert len(written) == 2 * len(ids)
    if share == 10_000:
        assert len(written) == 3 * len(ids)


def test_a_sample_is_about_as_large_as_it_should_be(tmp_path: Path) -> None:
    written = write(tmp_path / "log", [record(f"req-{number:x}") for number in range(4000)], sample=2500)
    assert 850 < len(written) < 1150


def test_at_its_size_the_file_is_rotated_and_one_older_one_is_kept(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "log", sample=10_000, bytes_max=4000)
    for number in range(60):
        log.write([record(f"req-{number}")])
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]
    assert all(path.stat().st_size <= 4000 for path in tmp_path.iterdir())
    ids = [line["request_id"] for name in ("log.1", "log") for line in Written(tmp_path / name).lines()]
    assert ids == [f"req-{number}" for number in range(60 - len(ids), 60)]


def test_a_file_that_another_program_rotates_is_begun_anew(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "log", sample=10_000, bytes_max=1_000_000)
    log.write([record("one")])
    (tmp_path / "log").rename(tmp_path / "elsewhere")
    log.write([record("two")])
    log.close()
    assert [line["request_id"] for line in Written(tmp_path / "log").lines()] == ["two"]


def test_a_log_that_cannot_be_written_says_so_and_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    log = AccessLog(tmp_path / "log", sample=10_000, bytes_max=1_000_000)
    log.write([record()])
    assert "cannot be written (Is a directory)" in log.problem
    (tmp_path / "log").rmdir()
    log.write([record("after")])
    log.close()
    assert log.problem == ""
    assert [line["request_id"] for line in Written(tmp_path / "log").lines()] == ["after"]


def test_a_line_cut_by_a_full_disk_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "log", sample=10_000, bytes_max=1_000_000)
    log.write([record("whole")])
    room = (tmp_path / "log").stat().st_size + 100
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        log.write([record("cut")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "lines are being lost" in log.problem
    log.write([record("after")])
    log.close()
    first, torn, last = (tmp_path / "log").read_text().splitlines()
    assert [json.loads(line)["request_id"] for line in (first, last)] == ["whole", "after"]
    assert len(torn) == 100


def test_a_link_is_written_through_and_never_rotated(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("target")
    written = [record(f"req-{number}") for number in range(20)]
    log = AccessLog(tmp_path / "log", sample=10_000, bytes_max=2000)
    for one in written:
        log.write([one])
    log.close()
    assert (tmp_path / "log").is_symlink()
    assert len(Written(tmp_path / "target").lines()) == 20


def test_a_pipe_that_nobody_reads_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    log = AccessLog(tmp_path / "log", sample=10_000, bytes_max=1_000_000)
    log.write([record()])
    assert "cannot be written" in log.problem
