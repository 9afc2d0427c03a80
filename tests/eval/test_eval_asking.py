"""How a case is asked: turns, limits of time, extra fields, plain prompts, tool calls, and cases that are not asked."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from eval_support import write_suite
from test_eval_client import END, complete

from eval import loaders, runner
from eval.endpoint import Endpoint, resolve
from eval.results import RunStore, Sample
from eval.scorers import Likelihood, Tools
from eval.suite import Case, Message, ScorerSpec, Suite

FakeEngines = Callable[..., Any]


def suite_of(tmp_path: Path, **changes: Any) -> Suite:
    """One case with these fields."""
    suite = loaders.load(str(write_suite(tmp_path / "one", cases=1)), tmp_path)
    return msgspec.structs.replace(suite, cases=(msgspec.structs.replace(suite.cases[0], **changes),))


def run(suite: Suite, url: str, tmp_path: Path, likelihoods: runner.Likelihoods | None = None) -> dict[str, Sample]:
    subject = resolve(Endpoint(url), "fake")
    key = runner.key_of(suite, subject, seed=5, repeats=1)
    folder = RunStore(tmp_path / "runs").open(suite, subject, key, fresh=True, now=time.time())
    plan = runner.Plan(suite, subject, key, folder, concurrency=2, likelihoods=likelihoods)
    runner.execute(plan, runner.Tally(plan.total), tools=Tools())
    assert folder.finished
    return {sample.case: sample for sample in folder.samples().values()}


def bodies(engine: Any) -> list[dict[str, Any]]:
    return [json.loads(one["body"]) for one in engine.stats()["requests"]]


def test_later_turns_are_asked_after_the_models_own_answers(tmp_path: Path, fake_engine: FakeEngines) -> None:
    engine = fake_engine("--events", "2")
    (sample,) = run(suite_of(tmp_path, then=("And then?", "And last?")), engine.url, tmp_path).values()
    first, second, third = (body["messages"] for body in bodies(engine))
    said = {"role": "assistant", "content": sample.output}
    assert second == [*first, said, {"role": "user", "content": "And then?"}]
    assert third == [*second, said, {"role": "user", "content": "And last?"}]
    assert json.loads(sample.turns) == [sample.output, sample.output]
    assert (sample.prompt, sample.completion_tokens, sample.score) == ("And last?", 6, 1.0)
    assert sample.latency_s > (sample.ttft_s or 0) > 0


def test_an_answer_that_takes_too_long_is_a_result(tmp_path: Path, fake_engine: FakeEngines) -> None:
    engine = fake_engine("--events", "50", "--gap-s", "2")
    began = time.monotonic()
    (sample,) = run(suite_of(tmp_path, timeout_s=0.5), engine.url, tmp_path).values()
    assert time.monotonic() - began < 60  # the whole answer takes 100 s
    assert (sample.error, sample.final, sample.score) == ("no whole answer within the case's 0.5 s", True, None)


def test_extra_fields_go_into_the_request(tmp_path: Path, fake_engine: FakeEngines) -> None:
    engine = fake_engine()
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    run(suite_of(tmp_path, request={"tools": tools, "temperature": 0.5}), engine.url, tmp_path)
    (body,) = bodies(engine)
    assert (body["tools"], body["temperature"], body["stream"]) == (tools, 0.5, True)


def test_a_case_without_chat_goes_to_completions_as_it_is(tmp_path: Path, fake_engine: FakeEngines) -> None:
    engine = fake_engine("--events", "3")
    (sample,) = run(suite_of(tmp_path, chat=False), engine.url, tmp_path).values()
    (asked,) = engine.stats()["requests"]
    assert asked["path"] == "/v1/completions"
    assert json.loads(asked["body"])["prompt"] == "Question 0"
    assert (sample.output.split(), sample.finish_reason) == (["t0", "t1", "t2"], "stop")


def test_tool_calls_are_put_together_from_their_pieces() -> None:
    def event(*pieces: dict[str, Any]) -> bytes:
        return b"data: " + json.dumps({"choices": [{"delta": {"tool_calls": list(pieces)}}]}).encode() + b"\n\n"

    body = event({"index": 0, "id": "a", "function": {"name": "weather", "arguments": ""}})
    body += event({"index": 0, "function": {"arguments": '{"city": '}}, {"index": 1, "id": "b"})
    body += event({"index": 1, "function": {"name": "time", "arguments": "{}"}})
    body += event({"index": 0, "function": {"arguments": '"Bonn"}'}})
    found = complete(body + END)
    assert [(call["id"], call["function"]) for call in found.tool_calls] == [
        ("a", {"name": "weather", "arguments": '{"city": "Bonn"}'}),
        ("b", {"name": "time", "arguments": "{}"}),
    ]
    assert found.text == ""
    assert found.ttft_s is not None


def test_cases_scored_by_likelihood_ask_nobody_for_text(tmp_path: Path, fake_engine: FakeEngines) -> None:
    engine = fake_engine()
    cases = tuple(
        Case(id=f"c{i}", messages=(Message("user", "Capital of France?"),), kind="choose", choices=(" Paris", " Rome"),
             target=target, scorer=ScorerSpec("likelihood"))
        for i, target in enumerate((" Paris", " Rome"))
    )  # fmt: skip
    suite = msgspec.structs.replace(suite_of(tmp_path), cases=cases)

    def likelihoods(case: Case) -> Mapping[str, Likelihood]:
        return {" Paris": Likelihood(-1.0, 1, True), " Rome": Likelihood(-4.0, 2)}

    found = run(suite, engine.url, tmp_path, likelihoods)
    assert engine.stats()["seen"] == 0
    assert {name: sample.score for name, sample in found.items()} == {"c0": 1.0, "c1": 0.0}
    assert found["c1"].output == " Paris"
    assert json.loads(found["c1"].logprobs)[" Rome"]["log_probability"] == -4.0


@pytest.mark.parametrize("concurrency", [1, 7])
def test_so_many_requests_are_in_flight_whatever_scoring_takes(
    tmp_path: Path, fake_engine: FakeEngines, concurrency: int
) -> None:
    """As many as wanted, and never one more."""
    engine = fake_engine("--events", "2", "--gap-s", "0.02")
    suite = loaders.load(str(write_suite(tmp_path / "s", cases=30)), tmp_path)
    subject = resolve(Endpoint(engine.url), "fake")
    key = runner.key_of(suite, subject, seed=5, repeats=1)
    folder = RunStore(tmp_path / "runs").open(suite, subject, key, fresh=True, now=time.time())
    tally = runner.Tally(30)
    runner.execute(runner.Plan(suite, subject, key, folder, concurrency), tally, tools=Tools())
    spans = [(one.started_at, one.started_at + one.latency_s) for one in folder.samples().values()]
    most = max(sum(1 for start, stop in spans if start <= at < stop) for at, _ in spans)
    assert most == concurrency
    assert tally.half_width is not None
    assert 0.1 < tally.half_width < 0.25
