"""lm-evaluation-harness: what is refused before it runs, how its samples are read, and a real run where it is there."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from engines.fixtures import FakeEngine
from eval_support import Cli

from eval.endpoint import Endpoint
from eval.harness import NO_ANSWER, sample_of
from eval.harness_checks import check_likelihood
from eval.providers import CapabilityError
from eval.providers.worker.probes import TEXTS
from eval.results import RunStore, Subject

LM_EVAL_PYTHON = "MODELYARD_LM_EVAL_PYTHON"
IDS = [[ord(letter) for letter in text] for text in TEXTS]
"""What the fake engine's tokenizer, a letter a token, makes of the probes."""


def raw(**changes: Any) -> dict[str, Any]:
    return {
        "task": "sums",
        "doc_id": 3,
        "target": "5",
        "arguments": [[[{"role": "user", "content": "2 + 3?"}], {"until": ["\n"]}]],
        "resps": [["It is 5."]],
        "filtered": ["5"],
        "filter": "number",
        "metrics": {"exact_match": 1.0},
    } | changes


def test_a_generated_sample_is_read_with_what_the_filter_made_of_it() -> None:
    sample = sample_of(raw(arguments=[[[{"role": "user", "content": "2 + 3?"}]]]), "exact_match")
    assert (sample.case, sample.slice, sample.scorer, sample.score) == ("sums-00003", "sums", "exact_match", 1.0)
    assert (sample.prompt, sample.output, sample.target) == ("2 + 3?", "It is 5.", '"5"')
    assert sample.detail == "read as '5'"
    assert sample.cached  # lm-eval tells no times


def test_a_chosen_sample_keeps_its_likelihoods() -> None:
    resps = [[[-4.0, False]], [[-1.5, True]]]
    arguments = [["2 + 3 =", " 4"], ["2 + 3 =", " 5"]]
    sample = sample_of(raw(arguments=arguments, resps=resps, target=1, metrics={"acc": 1}), "acc")
    assert (sample.output, sample.target, sample.score) == (" 5", '" 5"', 1.0)
    assert json.loads(sample.logprobs)[" 4"]["log_probability"] == -4.0


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"resps": [[NO_ANSWER]]}, "the server's answer held no text"),
        (
            {"metrics": {"exact_match": [3, 4]}},
            "lm-eval's exact_match of this sample is '.3, 4.': a number from 0 to 1",
        ),
        ({"metrics": {"exact_match": 17.5}}, "a number from 0 to 1 is needed"),
        ({"metrics": {"exact_match": float("nan")}}, "a number from 0 to 1 is needed"),
    ],
)
def test_what_is_no_score_is_an_error_and_not_zero(changes: dict[str, Any], error: str) -> None:
    sample = sample_of(raw(arguments=[["2 + 3?"]], **changes), "exact_match")
    assert sample.score is None
    with pytest.raises(AssertionError, match=error):
        raise AssertionError(sample.error)


class Engine(BaseHTTPRequestHandler):
    """An engine that gives log-probabilities of a prompt, with a tokenizer of a letter a token."""

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "x", "max_model_len": 100}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/tokenize":
            self._answer({"tokens": [ord(letter) for letter in body["prompt"]]})
            return
        rows = [None, *({str(token): {"logprob": -1.0}} for token in body["prompt"][1:])]
        self._answer({"choices": [{"index": 0, "text": "x", "prompt_logprobs": rows}]})

    def _answer(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""


@pytest.fixture
def likely_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Engine) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def check(url: str, probe: list[list[int]] | None = None, longest: int = 10, tokenizer: str | None = "t") -> None:
    subject = Subject(ref="x", model="x", url=url)
    folder = Path(tokenizer) if tokenizer else None
    check_likelihood(["arc"], IDS if probe is None else probe, longest, folder, subject, Endpoint(url))


def test_likelihood_tasks_run_where_everything_fits(likely_url: str) -> None:
    check(likely_url)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tokenizer": None}, "arc needs the model's tokenizer.*--tokenizer FOLDER"),
        ({"probe": IDS[::-1]}, "the tokenizer at t is not that of x"),
        ({"longest": 101}, "arc has a request of 101 tokens, and x has a context of 100"),
    ],
)
def test_what_does_not_fit_is_refused(likely_url: str, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(CapabilityError, match=message):
        check(likely_url, **wrong)


def test_an_engine_without_log_probabilities_of_prompts_is_refused(fake_engine: Callable[..., FakeEngine]) -> None:
    with pytest.raises(CapabilityError, match=r"arc would be scored by chance, as .*engine: vllm.*task: choose"):
        check(fake_engine().url)


def test_without_lm_eval_there_is_one_sentence_with_the_remedy(cli: Cli) -> None:
    if importlib.util.find_spec("lm_eval"):
        pytest.skip("lm-eval is installed here")
    ended = cli.call("harness", "gsm8k", "--model", "http://127.0.0.1:1#x")
    assert ended.returncode == 4
    assert "lm-evaluation-harness is not installed" in ended.stderr
    assert "pip install 'lm-eval[api]'" in ended.stderr
    away = cli.call("harness", "gsm8k", "--model", "x", "--python", "/nowhere/python")
    assert (away.returncode, away.stderr.count("\n")) == (4, 1)


@pytest.fixture(scope="module")
def lm_eval_python() -> str:
    """A Python that can import lm_eval: the one named by MODELYARD_LM_EVAL_PYTHON, else this one."""
    python = os.environ.get(LM_EVAL_PYTHON, sys.executable)
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('lm_eval') is None)"
    if subprocess.run([python, "-c", look], check=False).returncode:
        pytest.skip(f"lm-eval is not installed: name a Python that has it in {LM_EVAL_PYTHON}")
    return python


TASK = """
task: own_sums
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
doc_to_text: "What is {{a}} + {{b}}?"
metadata: {version: 1}
"""
GENERATE = """
output_type: generate_until
doc_to_target: "{% if a == 1 %}t0{% else %}no{% endif %}"
generation_kwargs: {until: ["!"], max_gen_toks: 1}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOOSE = """
output_type: multiple_choice
doc_to_choice: ["{{a + b}}", "{{a}}"]
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def write_task(folder: Path, how: str) -> None:
    (folder / "data.jsonl").write_text("".join(f'{{"a": {n}, "b": 2}}\n' for n in (1, 2, 3)))
    (folder / "own.yaml").write_text(TASK.replace("DATA", str(folder / "data.jsonl")) + how)


@pytest.mark.timeout(900)
def test_a_task_is_run_kept_and_reused(
    cli: Cli, tmp_path: Path, fake_engine: Callable[..., FakeEngine], lm_eval_python: str
) -> None:
    engine = fake_engine()
    write_task(tmp_path, GENERATE)
    given = ("harness", "own_sums", "--model", f"{engine.url}#fake", "--tasks", str(tmp_path))
    ended = cli.run(*given, "--python", lm_eval_python, "--json", HF_HUB_OFFLINE="1")
    assert ended.returncode == 0, ended.stderr
    (run,) = RunStore(cli.state / "runs").all()
    samples = run.samples()
    assert [sample.output for sample in samples.values()] == ["t0"] * 3
    assert [sample.score for sample in samples.values()] == [1.0, 0.0, 0.0]
    assert run.info().suite_source.startswith("lm-eval 0.")
    asked = engine.stats()["requests"]
    again = cli.run(*given, "--python", lm_eval_python, "--json", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert engine.stats()["requests"] == asked
    twin = cli.run(*given, "--baseline", f"{engine.url}#fake", "--python", lm_eval_python, HF_HUB_OFFLINE="1")
    assert twin.returncode == 3, twin.stderr  # three samples decide nothing
    assert "inconclusive" in twin.stdout

    write_task(tmp_path, CHOOSE)
    refused = cli.run(*given, "--python", lm_eval_python, HF_HUB_OFFLINE="1")
    assert refused.returncode == 2
    assert "own_sums would be scored by chance" in refused.stderr
