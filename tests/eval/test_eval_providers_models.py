"""Log-probabilities from real models: libraries against each other, a model against itself, and what is refused."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from eval_support import Cli, write_suite

from eval.drift_tokens import TokenDrift
from eval.providers import CapabilityError, Prompt, Question, capabilities
from eval.providers.in_process import InProcess, ModelProcessError
from eval.providers.texts import Text
from eval.providers.token_drift import Measured, around, measure
from eval.results import Subject
from eval.suite import Message

pytestmark = pytest.mark.engine

SENTENCES = (
    "The capital of France is Paris, which lies on the Seine, and the capital of Italy is Rome, on the Tiber.",
    "Water boils at one hundred degrees Celsius at sea level, and at lower temperatures in the mountains.",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))",
    "She opened the door, looked into the garden, and saw that the roses had begun to bloom in the night.",
)
CHOICES = (" Paris", " Rome", " the city of light", " a small town in the north of Norway")


@pytest.fixture(scope="module")
def q4_1(llama_python: str, smollm2_path: Path) -> Iterator[InProcess]:
    with InProcess("llama-cpp", smollm2_path, python=llama_python, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def again(llama_python: str, smollm2_path: Path) -> Iterator[InProcess]:
    """The same model in another process, with little room."""
    with InProcess("llama-cpp", smollm2_path, python=llama_python, threads=1, context=160) as model:
        yield model


def texts() -> list[Text]:
    return [Text(f"s{number}", Prompt(text=sentence), answered=False) for number, sentence in enumerate(SENTENCES)]


def drift_of(measured: Measured) -> TokenDrift:
    found = measured.collected.summary(alpha=0.05, rng=np.random.default_rng(0))
    assert found is not None
    assert not measured.refused
    return found


def test_a_model_against_itself_has_no_drift(q4_1: InProcess, again: InProcess) -> None:
    drift = drift_of(measure(q4_1, again, texts()))
    assert drift.n > 80
    assert drift.max_kl < 1e-6
    assert (drift.top1_agreement.value, drift.bound) == (1.0, "exact")
    assert drift.perplexity_ratio.value == pytest.approx(1, abs=1e-6)
    answered = [Text("q", Prompt(messages=(Message("user", "Name three colours."),)), answered=True)]
    measured = measure(q4_1, again, answered, answer_tokens=8)
    assert drift_of(measured).n <= 8
    before, token = around(q4_1, measured.readings["q"], 0)
    assert before.endswith("assistant\n")
    assert token


def test_the_requantised_version_has_drifted(q4_1: InProcess, llama_python: str, q4_0_path: Path) -> None:
    with InProcess("llama-cpp", q4_0_path, python=llama_python, threads=1) as q4_0:
        drift = drift_of(measure(q4_1, q4_0, texts()))
    assert 0.2 < drift.mean_kl.value < 0.9, "0.48 on one sentence of 30 tokens"
    assert drift.mean_kl.interval.low < drift.mean_kl.value < drift.mean_kl.interval.high
    assert 0.4 < drift.top1_agreement.value < 0.95
    assert drift.perplexity_ratio.value > 1
    assert drift.p90_kl.value < drift.p99_kl.value <= drift.max_kl
    assert drift.worst[0].mean_kl == max(one.mean_kl for one in drift.worst)


def test_two_libraries_agree_on_one_file(q4_1: InProcess, transformers_python: str, smollm2_path: Path) -> None:
    """float32 of the dequantised weights against llama.cpp's quantised kernels: 0.003 nats, where Q4_0 is at 0.5."""
    with InProcess("transformers", smollm2_path, python=transformers_python, threads=2) as floats:
        assert floats.capabilities.tokenizer_digest == q4_1.capabilities.tokenizer_digest
        assert floats.capabilities.vocabulary == q4_1.capabilities.vocabulary
        assert floats.capabilities.context_tokens == q4_1.capabilities.context_tokens == 8192
        assert floats.chat == q4_1.chat
        drift = drift_of(measure(floats, q4_1, texts()))
        assert drift.mean_kl.value < 0.01
        assert drift.max_kl < 0.1
        assert drift.top1_agreement.value > 0.93
        assert drift.perplexity_ratio.value == pytest.approx(1, abs=0.02)
        questions = [Question(Prompt(text="The capital of France is"), choice) for choice in CHOICES]
        questions += [Question(Prompt(messages=(Message("user", SENTENCES[0]),)), "Yes.")]
        for ours, theirs in zip(floats.score(questions), q4_1.score(questions), strict=True):
            assert ours.likelihood is not None
            assert theirs.likelihood is not None
            assert ours.likelihood.tokens == theirs.likelihood.tokens
            per_token = abs(ours.likelihood.log_probability - theirs.likelihood.log_probability)
            assert per_token / ours.likelihood.tokens < 0.3


def test_a_likelihood_is_the_sum_over_the_distributions(q4_1: InProcess, again: InProcess) -> None:
    """Also where the beginning was read for the question before: choices share their prompt."""
    prompt = Prompt(text="The capital of France is")
    (tokens,) = q4_1.encode([prompt])
    assert isinstance(tokens, list)
    replies = q4_1.score([Question(prompt, choice) for choice in CHOICES])
    for choice, reply in zip(CHOICES, replies, strict=True):
        (whole,) = again.encode([Prompt(text=prompt.text + choice)])
        assert isinstance(whole, list)
        rows = np.concatenate(list(again.distributions(whole[:-1], len(tokens) - 1)))
        expected = rows[np.arange(len(rows)), whole[len(tokens) :]].astype(np.float64).sum()
        assert reply.likelihood is not None
        assert reply.likelihood.log_probability == pytest.approx(expected, abs=0.02 * len(rows))
        assert reply.likelihood.tokens == len(rows)
    assert replies[0].likelihood is not None
    assert replies[0].likelihood.is_greedy


def test_what_does_not_fit_is_refused_by_name_and_nothing_is_cut(q4_1: InProcess, again: InProcess) -> None:
    long = Text("long", Prompt(text=SENTENCES[0] * 12), answered=False)
    measured = measure(q4_1, again, [long, texts()[0]])
    ((name, reason),) = measured.refused
    assert name == "long"
    assert "the context holds 160" in reason
    assert measured.collected.names == ["s0"]
    short, reply = again.score([Question(Prompt(text="A"), " b"), Question(long.prompt, " b")])
    assert short.likelihood is not None
    assert "the context holds 160" in reply.error
    assert again.score([Question(Prompt(text="A"), "")])[0].error == "the text to score has no tokens"


def test_another_tokenizer_is_refused(
    q4_1: InProcess, llama_python: str, smollm2_path: Path, tmp_path: Path, cli: Cli
) -> None:
    """The same file, but that its token for ` the` reads ` thx`."""
    other = tmp_path / "other.gguf"
    the, thx = (len(text).to_bytes(8, "little") + text for text in ("Ġthe".encode(), "Ġthx".encode()))
    data = smollm2_path.read_bytes()
    assert the in data
    other.write_bytes(data.replace(the, thx, 1))
    with InProcess("llama-cpp", other, python=llama_python, threads=1) as model:
        assert model.capabilities.tokenizer_digest != q4_1.capabilities.tokenizer_digest
    prompts = tmp_path / "p.txt"
    prompts.write_text(SENTENCES[0])
    ended = cli.call(
        *("drift", "--baseline", str(smollm2_path), "--candidate", str(other), "--prompts", str(prompts)),
        *("--python", llama_python, "--level", "tokens"),
    )
    assert ended.returncode == 2
    assert "tokenizers differ" in ended.stderr
    assert "--level text" in ended.stderr


def test_a_process_that_dies_is_one_sentence(llama_python: str, smollm2_path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(smollm2_path.read_bytes()[:1_000_000])
    with pytest.raises(CapabilityError, match=r"cannot load broken\.gguf"):
        InProcess("llama-cpp", broken, python=llama_python)
    model = InProcess("llama-cpp", smollm2_path, python=llama_python, threads=1)
    try:
        os.kill(model._process.pid, signal.SIGKILL)
        with pytest.raises(ModelProcessError, match="needs more memory than there is"):
            model.score([Question(Prompt(text="A"), " b")])
    finally:
        model.close()
    model = InProcess("llama-cpp", smollm2_path, python=llama_python, threads=1)
    try:
        os.kill(model._process.pid, signal.SIGSEGV)
        with pytest.raises(ModelProcessError, match="ended by signal 11"):
            model.encode([Prompt(text="A")])
    finally:
        model.close()


def test_llama_cpps_server_gives_no_prompt_log_probabilities(llama_url: str, q4_1: InProcess) -> None:
    found = capabilities(Subject(ref="here", model="smollm2", url=llama_url))
    assert not found.prompt_logprobs
    assert (found.top_k, found.full_vocabulary) == (0, False)
    assert "no log-probabilities of the prompt came back" in found.lacking
    assert found.tokenizer_digest == q4_1.capabilities.tokenizer_digest
    assert found.context_tokens > 0


@pytest.fixture
def choosing(tmp_path: Path) -> str:
    """Four cases that a model answers by likelihood, one of which it gets wrong."""
    folder = write_suite(tmp_path / "choosing", name="choosing")
    asked = [("France is", " Paris"), ("Italy is", " Rome"), ("Spain is", " Madrid"), ("England is", " Berlin")]
    rows = [
        {
            "id": f"c{index}",
            "kind": "choose",
            "chat": False,
            "prompt": f"The capital of {country}",
            "choices": [" Paris", " Rome", " Madrid", " London", " Berlin"],
            "target": target,
        }
        for index, (country, target) in enumerate(asked)
    ]
    (folder / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "suite.yaml").write_text("{name: choosing, cases: cases.jsonl}")
    return str(folder / "suite.yaml")


def test_a_likelihood_suite_is_refused_by_an_engine_that_would_score_by_chance(
    cli: Cli, llama_url: str, choosing: str
) -> None:
    ended = cli.call("run", choosing, "--model", f"{llama_url}#smollm2")
    assert ended.returncode == 2
    assert "a log-likelihood needs log-probabilities of the prompt" in ended.stderr
    assert ended.stderr.count("--provider llama-cpp") == 1
    assert not cli.call("report", "list").stdout.count("choosing"), "nothing was run"


def test_a_likelihood_suite_runs_in_process(cli: Cli, llama_python: str, smollm2_path: Path, choosing: str) -> None:
    ended = cli.call("run", choosing, "--model", str(smollm2_path), "--provider", "llama-cpp", "--json")
    assert ended.returncode == 0, ended.stderr
    value = json.loads(ended.stdout)
    assert (value["done"], value["failed"], value["overall"]["mean"]) == (4, 0, 0.75)


def test_the_command_prints_tokens_and_falls_back_to_text_only_where_it_may(
    cli: Cli, llama_python: str, llama_url: str, smollm2_path: Path, q4_0_path: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"id": "hello", "prompt": "Say hello."}\n{"id": "sky", "text": "The sky is blue today."}\n')
    both = ("--baseline", str(smollm2_path), "--candidate", str(q4_0_path), "--prompts", str(prompts))
    how = ("--python", llama_python, "--answer-tokens", "8", "--threads", "1")
    ended = cli.call("drift", *both, *how)
    assert ended.returncode == 0, ended.stderr
    assert "mean KL divergence, nats" in ended.stdout
    assert "lower bound" not in ended.stdout
    value = json.loads(cli.call("drift", *both, *how, "--json").stdout)
    assert (value["level"], value["drift"]["bound"], value["drift"]["prompts"]) == ("tokens", "exact", 2)
    assert {one["prompt"] for one in value["worst"]} == {"hello", "sky"}
    assert all(one["token"] for one in value["worst"])
    here = f"{llama_url}#smollm2"
    served = ("--baseline", here, "--candidate", here, "--prompts", str(prompts))
    refused = cli.call("drift", *served, "--level", "tokens")
    assert refused.returncode == 2
    assert "token-level drift needs log-probabilities of the prompt" in refused.stderr
    fallen = cli.call("drift", *served, "--json")
    assert fallen.returncode == 0, fallen.stderr
    assert "text only: " in fallen.stderr
    assert json.loads(fallen.stdout)["level"] == "text"
