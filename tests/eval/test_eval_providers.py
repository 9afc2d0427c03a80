"""Who can give log-probabilities: frames, arithmetic, prompts and refusals, without a model."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from eval_support import Cli
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from eval import providers
from eval.errors import SuiteError, SuiteGoneError
from eval.providers import files, in_process, texts, token_drift
from eval.providers.base import CapabilityError, EvalCapabilities, Prompt, by_choice, questions_of
from eval.providers.worker import model as arithmetic
from eval.providers.worker import probes, wire
from eval.suite import Case, Message, ScorerSpec
from registry.state import StateDir
from registry.terminal import NotThereError, UserError


@given(st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=20), max_size=4), st.integers(0, 20))
def test_frames_come_as_they_were_sent(message: dict[str, object], rows: int) -> None:
    pipe = io.BytesIO()
    sent = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3) if rows else None
    wire.write(pipe, message | {"columns": 3}, sent)
    wire.write(pipe, {"next": True})
    pipe.seek(0)
    frame = wire.read(pipe)
    assert frame is not None
    assert frame[0] == message | {"columns": 3}
    assert (frame[1] is None) == (sent is None)
    if sent is not None:
        assert frame[1] is not None
        assert (frame[1] == sent).all()
    assert wire.read(pipe) == ({"next": True}, None)
    assert wire.read(pipe) is None


@pytest.mark.parametrize("kept", [1, 11, 14, 40])
def test_a_frame_that_is_cut_or_none_is_told(kept: int) -> None:
    pipe = io.BytesIO()
    wire.write(pipe, {"a": "text"}, np.ones((2, 4), dtype=np.float32))
    with pytest.raises(wire.BrokenFrameError, match="ended within"):
        wire.read(io.BytesIO(pipe.getvalue()[:kept]))
    with pytest.raises(wire.BrokenFrameError, match="no frame"):
        wire.read(io.BytesIO(b"print from a library"))


@given(st.integers(0, 2**32 - 1))
def test_log_softmax_is_that_of_scipy(seed: int) -> None:
    logits = np.random.default_rng(seed).normal(scale=20, size=(3, 50)).astype(np.float32)
    expected = special.log_softmax(logits.astype(np.float64), axis=1)
    assert arithmetic.log_softmax(logits) == pytest.approx(expected, abs=2e-5)


def test_what_has_to_be_read_for_several_continuations_is_read_once() -> None:
    pieces = arithmetic.pieces_of([(0, [1, 2], [3]), (1, [1, 2], [4]), (2, [1, 2], [3, 4]), (3, [5], [3, 6, 7])])
    assert [(piece.tokens, piece.first, [index for index, _ in piece.asked]) for piece in pieces] == [
        ((1, 2), 1, [0, 1]),
        ((1, 2, 3), 1, [2]),
        ((5, 3, 6), 0, [3]),
    ]
    rows = np.log(np.array([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]], dtype=np.float32))
    piece = arithmetic.Piece((0, 0), 0, [(7, (3, 1)), (8, (2, 0))])
    scored = {one.index: one for one in arithmetic.gather(piece, rows)}
    assert scored[7].logprob == pytest.approx(np.log(0.4) + np.log(0.25))
    assert not scored[7].greedy, "of four that are equal, the first is the greedy one"
    assert (scored[8].tokens, scored[8].greedy) == (2, False)


def test_digests_tell_tokenizers_apart_and_their_kinds() -> None:
    assert probes.digest_of_ids([[1, 2], [3]]) != probes.digest_of_ids([[1], [2, 3]])
    assert probes.digest_of_ids([[1]]).startswith("ids:")
    assert probes.digest_of_pieces([["a"]]).startswith("pieces:")


def case(**fields: object) -> Case:
    given = {"id": "c", "messages": (Message("user", "One?"),), "scorer": ScorerSpec("likelihood"), "kind": "choose"}
    return Case(**(given | fields))  # type: ignore[arg-type]


def test_a_case_becomes_a_question_per_choice_and_is_whole_or_not_scored() -> None:
    asked = questions_of(case(choices=("yes", "no"), target="yes"))
    assert [(one.prompt.messages[0].content, one.continuation) for one in asked] == [("One?", "yes"), ("One?", "no")]
    plain = questions_of(case(choices=("yes", "no"), chat=False))
    assert (plain[0].prompt.text, plain[0].prompt.messages) == ("One?", ())
    assert [one.continuation for one in questions_of(case(kind="perplexity", target="A text."))] == ["A text."]
    replies = [providers.Reply(error="it is too long"), providers.Reply()]
    with pytest.raises(Exception, match="no log-likelihood of 'yes': it is too long"):
        by_choice(case(choices=("yes", "no")), replies)


class TestPrompts:
    def test_lines_of_both_kinds(self, tmp_path: Path) -> None:
        path = tmp_path / "p.jsonl"
        rows = [{"prompt": "Hi"}, {"id": "b", "text": "A text."}, {"messages": [{"role": "user", "content": "x"}]}]
        path.write_text("\n\n".join(json.dumps(row) for row in rows))
        found = texts.load(str(path), tmp_path)
        assert [(one.name, one.answered) for one in found] == [
            ("p.jsonl:1", True),
            ("b", False),
            ("p.jsonl:5", True),
        ]
        assert found[0].prompt == Prompt(messages=(Message("user", "Hi"),))
        assert [one.name for one in texts.load(str(path), tmp_path, limit=2)] == ["p.jsonl:1", "b"]
        (tmp_path / "p.txt").write_text("one\n\ntwo\n")
        assert [one.prompt.text for one in texts.load(str(tmp_path / "p.txt"), tmp_path)] == ["one", "two"]

    def test_the_cases_of_a_suite(self, tmp_path: Path) -> None:
        found = texts.load("quickstart", tmp_path, limit=8)
        assert len(found) == 8
        assert all(one.answered and one.prompt.messages for one in found)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("", "has no prompts"),
            ("{", "p.jsonl:1 is not JSON"),
            ('{"prompt": "a", "text": "b"}', "needs one of"),
            ('{"prompt": 3}', "`prompt` cannot be read"),
            ('{"messages": [{"role": "robot", "content": "a"}]}', "`messages` cannot be read"),
            ('{"messages": []}', "`messages` is empty"),
            ('{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}', "the id 'a' twice"),
        ],
    )
    def test_a_mistake_is_one_sentence(self, tmp_path: Path, content: str, said: str) -> None:
        (tmp_path / "p.jsonl").write_text(content)
        with pytest.raises(SuiteError, match=said):
            texts.load(str(tmp_path / "p.jsonl"), tmp_path)
        with pytest.raises(SuiteGoneError, match="cannot be read"):
            texts.load(str(tmp_path / "none.jsonl"), tmp_path)


class TestFinding:
    def test_an_interpreter_without_the_library_is_told_with_the_remedy(self, tmp_path: Path) -> None:
        with pytest.raises(NotThereError, match="is no interpreter"):
            in_process.interpreter("llama-cpp", str(tmp_path / "python"))
        bare = Path(sys.base_prefix) / "bin" / "python3"
        with pytest.raises(NotThereError, match="lacks one of llama_cpp"):
            in_process.interpreter("llama-cpp", str(bare))

    def test_what_is_no_model_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(NotThereError, match="there is no"):
            in_process.check_file("llama-cpp", tmp_path / "none.gguf")
        with pytest.raises(CapabilityError, match="take --provider transformers"):
            in_process.check_file("llama-cpp", tmp_path)
        with pytest.raises(CapabilityError, match=r"has no config\.json"):
            in_process.check_file("transformers", tmp_path)

    def test_a_reference_that_has_no_files_here(self, tmp_path: Path) -> None:
        state, server = StateDir.find(tmp_path), providers.finding.Endpoint("http://127.0.0.1:1")
        for ref, said in (
            ("http://127.0.0.1:1#m", "is a server"),
            ("assistant", "pin a version"),
            ("assistant@v1", "no yard answers that knows"),
            (str(tmp_path / "no.gguf"), "there is no"),
        ):
            with pytest.raises(UserError, match=said):
                files.locate(ref, state, server)

    def test_a_path_stands_for_its_content(self, tmp_path: Path) -> None:
        state, server = StateDir.find(tmp_path), providers.finding.Endpoint("")
        (tmp_path / "a.gguf").write_bytes(b"one")
        subject, found = files.locate(str(tmp_path / "a.gguf"), state, server)
        assert (found.provider, found.path.name) == ("llama-cpp", "a.gguf")
        (tmp_path / "b.gguf").write_bytes(b"one")
        assert files.locate(str(tmp_path / "b.gguf"), state, server)[0].digest == subject.digest
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        first = files.locate(str(folder), state, server)
        assert first[1].provider == "transformers"
        (folder / "model.safetensors").write_bytes(b"weights")
        assert files.locate(str(folder), state, server)[0].digest != first[0].digest

    def test_an_unknown_provider_is_told(self) -> None:
        with pytest.raises(UserError, match="one of auto, transformers, llama-cpp, vllm"):
            providers.Wanted("tensorrt")


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"tokenizer_digest": "ids:b", "vocabulary": 5}, "tokenizers differ"),
        ({"tokenizer_digest": "", "vocabulary": 5}, "not known how both tokenise"),
        ({"tokenizer_digest": "ids:a", "vocabulary": 6}, "5 and 6 tokens"),
    ],
)
def test_models_whose_tokens_differ_are_refused(known: dict[str, object], said: str) -> None:
    with pytest.raises(token_drift.TokenizerMismatchError, match=said) as raised:
        token_drift.check(EvalCapabilities(tokenizer_digest="ids:a", vocabulary=5), EvalCapabilities(**known))  # type: ignore[arg-type]
    assert "--level text" in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("one",), "name two runs, or --baseline"),
        (("one", "two", "--prompts", "quickstart"), "name two runs, or --baseline"),
        (("--baseline", "a.gguf", "--prompts", "quickstart"), "--candidate is missing"),
        (("--baseline", "a", "--candidate", "b", "--prompts", "c", "--level", "letters"), "--level is 'letters'"),
        (("--baseline", "a", "--candidate", "b", "--prompts", "c", "--answer-tokens", "-1"), "--answer-tokens is -1"),
        (("--baseline", "a", "--candidate", "b", "--prompts", "c", "--top-k", "0"), "--top-k is 0"),
        (("--baseline", "a.gguf", "--candidate", "b.gguf", "--prompts", "quickstart"), "there is no a.gguf"),
        (
            ("--baseline", "a.gguf", "--candidate", "b.gguf", "--prompts", "quickstart", "--level", "text"),
            "text-level drift asks running versions",
        ),
        (
            ("--baseline", "a.gguf", "--candidate", "b.gguf", "--prompts", "quickstart", "--provider", "vllm"),
            "a.gguf is a file",
        ),
    ],
)
def test_wrong_usage_of_the_command_is_one_sentence(cli: Cli, arguments: tuple[str, ...], said: str) -> None:
    ended = cli.call("drift", *arguments)
    assert ended.returncode in {2, 4}
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1
