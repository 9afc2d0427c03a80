"""Requests of production become cases: which, with what target and scorer, and what stays as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import loaders
from eval.near import THRESHOLD, NearIndex, shingles, similarity
from eval.traffic import draft
from eval.traffic_files import Folder, write
from registry.samples import TrafficSample, Turn


def sample(number: int = 0, prompt: str = "", **changes: Any) -> TrafficSample:
    values: dict[str, Any] = {
        "request_id": f"req-{number}",
        "model": "m",
        "version": "v1",
        "digest": "sha256:d",
        "started_at": 1000.0 + number,
        "endpoint": "/v1/chat/completions",
        "messages": (Turn("system", "Be brief."), Turn("user", prompt or f"What is the capital of country {number}?")),
        "output": "Sydney",
        "completion_tokens": 3,
        "finish_reason": "stop",
        "feedback": -1.0,
    }
    return TrafficSample(**(values | changes))


SCHEMA = {"type": "object", "required": ["city"]}
FORM = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}


@pytest.mark.parametrize(
    ("changes", "target", "scorer", "source"),
    [
        ({"target": "Canberra."}, "Canberra", {"name": "contains"}, "feedback"),
        ({"target": "1,234"}, 1234, {"name": "numeric"}, "feedback"),
        ({"target": '{"city": "Canberra"}'}, {"city": "Canberra"}, {"name": "json"}, "feedback"),
        ({"target": "a b " * 20}, "a b " * 20, {"name": "embedding", "threshold": 0.8}, "feedback"),
        ({"comment": "Correct answer: 'Canberra'"}, "Canberra", {"name": "contains"}, "comment"),
        ({"comment": "should be: 7"}, 7, {"name": "numeric"}, "comment"),
        ({"request": FORM}, None, {"name": "json_schema", "schema": SCHEMA}, "request"),
        ({"feedback": 1.0}, "Sydney", {"name": "contains"}, "answer"),
        (
            {"feedback": 1.0, "output": "", "tool_calls": ({"name": "f", "arguments": '{"a": 1}'},)},
            [{"name": "f", "arguments": {"a": 1}}],
            {"name": "tool_call"},
            "answer",
        ),
        ({"label": "over-refusal"}, None, {"name": "refusal", "expect": False}, "label"),
        ({"label": "unsafe"}, None, {"name": "refusal", "expect": True}, "label"),
    ],
)
def test_a_case_is_scored_by_what_is_known(
    changes: dict[str, Any], target: Any, scorer: dict[str, Any], source: str
) -> None:
    (one,) = draft([sample(**changes)]).drafts
    assert (one.row.get("target"), one.row["scorer"], one.missing) == (target, scorer, "")
    assert one.provenance.target_from == source


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({}, "a `target`, or a scorer that needs none"),
        ({"comment": "this is rubbish"}, "a `target`, or a scorer that needs none"),
        ({"feedback": 1.0, "finish_reason": "length"}, "a `target`, or a scorer that needs none"),
        ({"target": "mail me at a@x.org"}, "its target was redacted: write one without placeholders"),
        ({"request": {"response_format": {"schema": {"type": 5}}}}, "the option `schema` is no JSON schema"),
    ],
)
def test_what_cannot_be_scored_is_a_candidate_that_says_why(changes: dict[str, Any], missing: str) -> None:
    (one,) = draft([sample(**changes)]).drafts
    assert one.missing.startswith(missing)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"messages": None}, "kept without text"),
        ({"cut": "input"}, "too large"),
        ({"messages": (Turn("user", "x"), Turn("tool", "y"))}, "results of tools"),
        ({"messages": (Turn("user", "what is this?\n[image_url]"),)}, "images"),
        ({"messages": (Turn("system", "x"),)}, "without a user's text"),
    ],
)
def test_what_cannot_be_asked_again_is_left_out(changes: dict[str, Any], reason: str) -> None:
    found = draft([sample(**changes)])
    assert found.drafts == []
    assert [reason in why for why in found.skipped] == [True]


def test_texts_are_redacted_again_and_provenance_is_kept() -> None:
    one = sample(prompt="write to ann@x.org", comment="ann@x.org is wrong", output="ok, ann@x.org", segment="beta")
    (made,) = draft([one]).drafts
    assert "ann@x.org" not in json.dumps([made.row, made.provenance.comment, made.provenance.output])
    assert made.row["messages"][1] == {"role": "user", "content": "write to <email-1>"}
    about = made.provenance
    assert (about.request_id, about.version, about.digest, about.at, about.feedback, about.review) == (
        "req-0",
        "v1",
        "sha256:d",
        1000.0,
        -1.0,
        "pending",
    )
    assert made.row["slice"] == "beta/negative"
    assert draft([one], slice_by=["version", "feedback"]).drafts[0].row["slice"] == "v1/negative"


LONG = "Please summarise the quarterly report of the northern branch for the board in three short sentences, thank you "


def test_near_duplicates_are_one_case_and_the_one_with_a_target_stays() -> None:
    samples = [
        sample(1, LONG + "very much indeed"),
        sample(2, LONG + "very much indeed!!", target="Canberra"),
        sample(3, LONG.upper() + "very  much INDEED"),
        sample(4, "Something else entirely: how do I boil an egg?"),
    ]
    found = draft(samples)
    assert [one.provenance.request_id for one in found.drafts] == ["req-2", "req-4"]
    assert (found.duplicates, found.drafts[0].provenance.like_it) == (2, 2)
    again = draft(samples, known_texts=[LONG + "very much indeed"])
    assert [one.provenance.request_id for one in again.drafts] == ["req-4"]
    assert again.known == 3


def test_a_long_system_prompt_makes_no_two_requests_alike() -> None:
    system = Turn("system", "You are the assistant of a bank. " * 50)
    samples = [sample(n, messages=(system, Turn("user", f"Question {n}: {'abcdefgh'[n] * 9}?"))) for n in range(5)]
    assert len(draft(samples).drafts) == 5


def test_samples_of_one_conversation_share_a_cluster() -> None:
    samples = [sample(n, prompt=f"{'xyz'[n]} {n} apples and pears", sticky=7 if n < 2 else 8) for n in range(3)]
    rows = {one.provenance.request_id: one.row for one in draft(samples).drafts}
    assert [rows[f"req-{n}"].get("cluster") for n in range(3)] == ["c-7", "c-7", None]


@settings(max_examples=50)
@given(st.lists(st.sampled_from(list("abcdefghijklmn")), min_size=30, max_size=60), st.data())
def test_minhash_finds_what_jaccard_calls_near(words: list[str], data: st.DataObject) -> None:
    """One changed word at a text's end: whatever exact Jaccard says, the index says the same."""
    other = [*words[:-1], data.draw(st.sampled_from(["z", words[-1]]))]
    index = NearIndex()
    index.add("one", " ".join(words))
    near = similarity(shingles(" ".join(words)), shingles(" ".join(other))) >= THRESHOLD
    assert (index.find(" ".join(other)) == "one") == near


def test_a_suite_grows_and_what_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "from-production"
    first = [sample(1, target="Canberra"), sample(2, "How many legs has a spider?")]
    written = write(Folder.read(path), draft(first), model="m")
    assert (written.cases, written.candidates) == (1, 1)
    suite = loaders.load(str(path), tmp_path)
    assert (suite.name, [case.target for case in suite.cases]) == ("from-production", ["Canberra"])
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    folder = Folder.read(path)
    again = write(folder, draft(first, known_ids=folder.ids, known_texts=folder.texts), model="m")
    assert (again.cases, again.candidates, again.completed) == (0, 0, 0)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before

    candidate = json.loads((path / "candidates.jsonl").read_text())
    candidate["target"] = 8
    (path / "candidates.jsonl").write_text(json.dumps(candidate))
    folder = Folder.read(path)
    third = [*first, sample(3, "Name a primary colour, please.", feedback=1.0, output="Red")]
    last = write(folder, draft(third, known_ids=folder.ids, known_texts=folder.texts), model="m")
    assert (last.cases, last.completed, last.cases_total, last.candidates_total) == (1, 1, 3, 0)
    assert (path / "cases.jsonl").read_bytes().startswith(before["cases.jsonl"])
    suite = loaders.load(str(path), tmp_path)
    assert [(case.target, case.scorer.name) for case in suite.cases] == [
        ("Canberra", "contains"),
        (8, "numeric"),
        ("Red", "contains"),
    ]
    assert len((path / "provenance.jsonl").read_text().splitlines()) == 3


def test_a_case_that_somebody_deleted_does_not_come_back(tmp_path: Path) -> None:
    write(Folder.read(tmp_path), draft([sample(1, target="x")]), model="m")
    (tmp_path / "cases.jsonl").write_text("")
    folder = Folder.read(tmp_path)
    found = draft([sample(1, target="x")], known_ids=folder.ids, known_texts=folder.texts)
    assert (found.drafts, found.known) == ([], 1)


def test_no_more_than_asked_for_and_the_worst_first() -> None:
    samples = [sample(n, feedback=score) for n, score in enumerate((-0.2, -1.0, -0.5))]
    found = draft(samples, limit=2)
    assert [one.provenance.request_id for one in found.drafts] == ["req-1", "req-2"]
