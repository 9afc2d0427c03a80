"""Data sets as they are published: each shape becomes cases, and a damaged file is named by its line."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from engines.fixtures import FakeEngine
from eval_support import Cli

from eval import loaders, scorers
from eval.adapters import ADAPTERS
from eval.errors import SuiteError, SuiteGoneError
from eval.results import RunStore
from eval.scorers import Answered
from eval.suite import Case, Suite

QUESTION = "Which of these floats on water?"
CHOICES = ["a brick", "a cork", "an anvil", "a coin"]
PASSAGE = "The heron is a wading bird. It stands still for minutes."
GSM8K = [
    {"question": "Two and two apples?", "answer": "There are 2+2=<<2+2=4>>4 apples.\n#### 4"},
    {"question": "A thousand and a half?", "answer": "That is 1000 + .5.\n#### 1,000.5"},
]
ARC = {
    "id": "own-1",
    "question": {
        "stem": QUESTION,
        "choices": [{"text": text, "label": label} for label, text in zip("ABCD", CHOICES, strict=True)],
    },
    "answerKey": "B",
}
ARC_HUB = {"id": "own-1", "question": QUESTION, "choices": {"text": CHOICES, "label": list("ABCD")}, "answerKey": "B"}
BOOLQ = [
    {"question": "does a heron wade", "passage": PASSAGE, "title": "Heron", "answer": True},
    {"question": "does a heron fidget", "passage": PASSAGE, "title": "Heron", "answer": False},
    {"question": "is a cork heavy", "passage": "A cork floats.", "title": "Cork", "answer": False},
]
IFEVAL = {
    "key": 7,
    "prompt": "Name a bird without any comma.",
    "instruction_id_list": ["punctuation:no_comma"],
    "kwargs": [{"num_words": None}],
}
BBH = {
    "canary": "not in training data",
    "examples": [
        {"input": "not False is", "target": "True"},
        {"input": "How many birds are a heron and a crane?", "target": "2"},
        {"input": "Which floats?\nOptions:\n(A) a brick\n(B) a cork", "target": "(B)"},
        {"input": "Do you come back?\nOptions:\n- Yes\n- No", "target": "No"},
        {"input": "Sort: pear apple", "target": "apple pear"},
    ],
}
HUMANEVAL = {
    "task_id": "Own/0",
    "prompt": 'def double(x):\n    """Twice x."""\n',
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def suite(folder: Path, **fields: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "suite.yaml").write_text(yaml.safe_dump({"name": "own"} | fields))
    return folder


def load(name: str, path: Path) -> Suite:
    return loaders.load(name, path.parent / "cache", path=path)


def worth(case: Case, text: str) -> float:
    return (
        scorers.build(case.scorer.name, case.scorer.options, case.target).score(Answered(text=text), case.target).value
    )


def test_gsm8k(tmp_path: Path) -> None:
    found = load("gsm8k", lines(tmp_path / "test.jsonl", *GSM8K))
    assert [case.target for case in found.cases] == [4, 1000.5]
    assert [case.id for case in found.cases] == ["test-00001", "test-00002"]
    assert worth(found.cases[0], "2 + 2 = 4\n#### 4") == 1
    assert worth(found.cases[0], "4 + 1\n#### 5") == 0
    assert found.cases[0].messages[0].role == "system"
    assert [turn.role for turn in found.cases[0].messages[1:]] == ["user", "assistant"] * 3 + ["user"]
    assert found.sampling.max_tokens == 400


def test_gsm8ks_own_worked_answers_are_right_and_without_calculator_marks(tmp_path: Path) -> None:
    lines(tmp_path / "train.jsonl", GSM8K[0])
    lines(tmp_path / "test.jsonl", GSM8K[1])
    fields = {"format": "gsm8k", "path": "test.jsonl", "few_shot": {"file": "train.jsonl", "k": 1}}
    (case,) = loaders.load(str(suite(tmp_path, **fields)), tmp_path / "cache").cases
    assert case.messages[2].content == "There are 2+2=4 apples.\n#### 4"
    spec = ADAPTERS["gsm8k"].ways["generate"].few_shot
    assert spec is not None
    lines(tmp_path / "own.jsonl", *spec.examples)
    for own, row in zip(load("gsm8k", tmp_path / "own.jsonl").cases, spec.examples, strict=True):
        assert worth(own, row["answer"]) == 1
        assert own.messages[-1].content not in [turn.content for turn in own.messages[:-1]]


def mmlu_csv(path: Path, *rows: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_mmlu_as_published_and_from_the_hub_are_the_same(tmp_path: Path) -> None:
    published = load("mmlu", mmlu_csv(tmp_path / "everyday_physics_test.csv", [QUESTION, *CHOICES, "B"]))
    row = {"question": QUESTION, "subject": "everyday_physics", "choices": CHOICES, "answer": 1}
    pd.DataFrame([row]).to_parquet(tmp_path / "all.parquet")
    hub = load("mmlu", tmp_path / "all.parquet")
    as_json = load("mmlu", lines(tmp_path / "all.json", [row]))
    for found in (published, hub, as_json):
        (case,) = found.cases
        assert case.slice == "everyday_physics"
        assert case.target == "B"
        assert case.messages == published.cases[0].messages
        assert case.messages[-1].content == f"{QUESTION}\nA. a brick\nB. a cork\nC. an anvil\nD. a coin"
        assert (worth(case, "B"), worth(case, "The answer is B."), worth(case, "a cork"), worth(case, "C")) == (
            1,
            1,
            1,
            0,
        )


def test_mmlu_reads_a_folder_of_subjects_and_draws_from_the_same_subject(tmp_path: Path) -> None:
    for subject in ("birds", "tools"):
        mmlu_csv(tmp_path / "test" / f"{subject}_test.csv", [f"Test {subject}?", "1", "2", "3", "4", "A"])
        rows = [[f"Dev {n} {subject}?", "5", "6", "7", "8", "D"] for n in range(3)]
        mmlu_csv(tmp_path / "dev" / f"{subject}_dev.csv", *rows)
    fields = {"format": "mmlu", "path": "test", "few_shot": {"file": "dev", "k": 2}, "task": "choose"}
    found = loaders.load(str(suite(tmp_path, **fields)), tmp_path / "cache")
    assert found.slices == {"birds": 1, "tools": 1}
    case = found.cases[0]
    assert (case.kind, case.chat, case.choices, case.target) == ("choose", False, (" A", " B", " C", " D"), " A")
    assert case.scorer.name == "likelihood"
    assert case.text.startswith("The following are multiple choice questions (with answers) about birds.\n\nDev ")
    assert case.text.count("birds?\nA. 5\nB. 6\nC. 7\nD. 8\nAnswer: D\n\n") == 2
    assert case.text.endswith("Test birds?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:")


def test_arc_as_published_and_from_the_hub_are_the_same(tmp_path: Path) -> None:
    published, hub = (load("arc", lines(tmp_path / f"{n}.jsonl", row)) for n, row in enumerate((ARC, ARC_HUB)))
    assert published.digest == hub.digest
    (case,) = published.cases
    assert (case.id, case.target) == ("own-1", "B")
    assert (worth(case, "(B)"), worth(case, "D")) == (1, 0)
    fields = {"format": "arc", "path": "0.jsonl", "task": "choose"}
    (chosen,) = loaders.load(str(suite(tmp_path, **fields)), tmp_path / "cache").cases
    assert chosen.text == f"Question: {QUESTION}\nAnswer:"
    assert chosen.choices == (" a brick", " a cork", " an anvil", " a coin")
    assert chosen.target == " a cork"


def test_boolq_clusters_what_shares_a_passage(tmp_path: Path) -> None:
    found = load("boolq", lines(tmp_path / "dev.jsonl", *BOOLQ))
    assert [case.target for case in found.cases] == ["yes", "no", "no"]
    assert found.cases[0].cluster == found.cases[1].cluster != ""
    assert found.cases[2].cluster == ""
    assert found.cases[0].messages[-1].content == f"{PASSAGE}\n\nQuestion: does a heron wade?"
    assert (worth(found.cases[0], "Yes, it does."), worth(found.cases[0], "no")) == (1, 0)


def test_ifeval_hands_instructions_to_the_scorer(tmp_path: Path) -> None:
    (case,) = load("ifeval", lines(tmp_path / "input_data.jsonl", IFEVAL)).cases
    assert case.target == {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    assert (case.id, case.slice, case.scorer.name) == ("7", "punctuation", "instructions")
    assert (worth(case, "A heron"), worth(case, "A heron, I think")) == (1, 0)


def test_bbh_scores_each_kind_of_answer_as_what_it_is(tmp_path: Path) -> None:
    fields = {"format": "bbh", "path": "bbh_own_task.json", "few_shot": 0}
    lines(tmp_path / "bbh_own_task.json", BBH)
    found = loaders.load(str(suite(tmp_path, **fields)), tmp_path / "cache")
    assert found.slices == {"own_task": 5}
    assert [case.target for case in found.cases] == ["True", 2, "B", "No", "apple pear"]
    right = ["True", "There are 2 birds.", "(B) a cork", "No.", "Sorted: apple pear"]
    wrong = ["False", "3", "(A)", "Yes, you do.", "pear apple"]
    assert [worth(case, text) for case, text in zip(found.cases, right, strict=True)] == [1] * 5
    assert [worth(case, text) for case, text in zip(found.cases, wrong, strict=True)] == [0] * 5


def test_humaneval_also_gzipped(tmp_path: Path) -> None:
    path = tmp_path / "HumanEval.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(HUMANEVAL).encode() + b"\n"))
    (case,) = load("humaneval", path).cases
    assert case.scorer.name == "python_tests"
    assert case.target == {name: HUMANEVAL[name] for name in ("test", "entry_point", "prompt")}
    assert "```python\ndef double(x):" in case.messages[-1].content


def test_three_lines_make_a_suite_and_the_suite_decides(tmp_path: Path) -> None:
    lines(tmp_path / "test.jsonl", *GSM8K)
    fields: dict[str, Any] = {"format": "gsm8k", "path": "test.jsonl"}
    plain = loaders.load(str(suite(tmp_path, **fields)), tmp_path / "cache")
    assert plain.digest == load("gsm8k", tmp_path / "test.jsonl").digest
    fields |= {"few_shot": 0, "system": "Think.", "sampling": {"temperature": 0.5}, "template": "Q: {{ question }}"}
    fields |= {"scorer": {"name": "numeric", "pick": "first"}}
    own = loaders.load(str(suite(tmp_path, **fields)), tmp_path / "cache")
    assert [turn.content for turn in own.cases[0].messages] == ["Think.", "Q: Two and two apples?"]
    assert (own.sampling.temperature, own.sampling.max_tokens) == (0.5, 400)
    assert own.cases[0].scorer.options == {"pick": "first"}


def test_eval_run_takes_a_published_file_by_its_format(
    cli: Cli, tmp_path: Path, fake_engine: Callable[..., FakeEngine]
) -> None:
    engine = fake_engine()
    data = lines(tmp_path / "test.jsonl", *GSM8K)
    ended = cli.call("run", "gsm8k", "--path", str(data), "--model", f"{engine.url}#fake", "--sample", "1")
    assert ended.returncode == 0, ended.stderr
    (run,) = RunStore(cli.state / "runs").all()
    (sample,) = run.samples().values()
    drawn = load("gsm8k", data).limited(1, 0).cases[0]
    assert (sample.case, sample.prompt_digest, sample.scorer) == (drawn.id, drawn.prompt_digest, "numeric")
    other = next(seed for seed in range(9) if load("gsm8k", data).limited(1, seed).cases[0].id != drawn.id)
    again = ("run", "gsm8k", "--path", str(data), "--model", f"{engine.url}#fake", "--sample", "1")
    assert cli.call(*again, "--sample-seed", str(other)).returncode == 0
    cases = [case for run in RunStore(cli.state / "runs").all() for case, _ in run.samples()]
    assert sorted(cases) == ["test-00001", "test-00002"]


DAMAGED = [
    ("gsm8k", ['{"question": "x", "answer": "#### 1"}', "{oops"], "line 2: not valid JSON"),
    ("gsm8k", [{"question": "x", "answer": "four"}], "line 1: `answer` does not end in `#### ` and a number"),
    ("gsm8k", [{"question": "x", "answr": "#### 4"}], r"missing field `answer` \(did you mean `answr`"),
    ("gsm8k", [{"question": "", "answer": "#### 4"}], "line 1: `question` is ''"),
    ("arc", [{**ARC, "answerKey": "E"}], "`answerKey` is 'E': one of A, B, C, D"),
    ("arc", [{**ARC, "question": {"stem": "x"}}], "needs a `stem` and a list of `choices`"),
    ("arc", [{**ARC_HUB, "choices": {"text": CHOICES, "label": ["A"]}}], "has 1 labels for 4 texts"),
    ("arc", [{**ARC_HUB, "choices": {"text": ["x", "y"], "label": ["A", "A"]}}], "a `label` of its own"),
    ("boolq", [*BOOLQ, {**BOOLQ[0], "answer": "yes"}], "line 4: `answer` is 'yes': true or false"),
    ("ifeval", [{**IFEVAL, "kwargs": []}], "0 entries for 1 of"),
    ("ifeval", [{**IFEVAL, "instruction_id_list": ["punctuation:none"]}], "line 1: case '7': .*punctuation"),
    ("humaneval", [{**HUMANEVAL, "entry_point": "treble"}], "does not define 'treble'"),
]


@pytest.mark.parametrize(("name", "rows", "message"), DAMAGED)
def test_a_damaged_file_is_named_by_its_line(tmp_path: Path, name: str, rows: list[Any], message: str) -> None:
    with pytest.raises(SuiteError, match=message) as caught:
        load(name, lines(tmp_path / "data.jsonl", *rows))
    assert "\n" not in str(caught.value)
    assert "data.jsonl line " in str(caught.value)


def test_damaged_files_of_other_kinds(tmp_path: Path) -> None:
    good = [QUESTION, *CHOICES, "B"]
    with pytest.raises(SuiteError, match=r"x_test.csv line 2: it has 5 columns where 6 are expected: question, A"):
        load("mmlu", mmlu_csv(tmp_path / "x_test.csv", good, good[:-1]))
    with pytest.raises(SuiteError, match=r"x_test.csv line 2: `answer` is 'E'"):
        load("mmlu", mmlu_csv(tmp_path / "x_test.csv", good, [*good[:-1], "E"]))
    (tmp_path / "y_test.csv").write_text('"never closed')
    with pytest.raises(SuiteError, match=r"y_test.csv line 1: not valid CSV"):
        load("mmlu", tmp_path / "y_test.csv")
    with pytest.raises(SuiteError, match=r"task.json example 2: missing field `target`"):
        load("bbh", lines(tmp_path / "task.json", {"examples": [BBH["examples"][0], {"input": "x"}]}))
    with pytest.raises(SuiteError, match=r"task.json: a JSON file of cases is a list, or an object with `examples`"):
        load("bbh", lines(tmp_path / "task.json", {"cases": []}))
    for name, content in (("cut.jsonl.gz", gzip.compress(b"x" * 999)[:-9]), ("cut.parquet", b"PAR1 and no more")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SuiteError, match=f"{name} cannot be read"):
            load("mmlu", tmp_path / name)
    with pytest.raises(SuiteGoneError, match=r"away.jsonl are not there"):
        load("gsm8k", tmp_path / "away.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SuiteGoneError, match=r"the folder holds no .jsonl"):
        load("bbh", tmp_path / "empty")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "gsm8q", "path": "x"}, r"line 1: unknown format 'gsm8q' \(did you mean 'gsm8k'\?\)"),
        ({"path": "x.jsonl"}, "line 2: `path` needs `format`, one of gsm8k"),
        ({"format": "gsm8k", "cases": "x.jsonl"}, "`format` goes with `path` or `dataset`, not with `cases`"),
        ({"format": "gsm8k", "path": "x.jsonl", "task": "choose"}, "gsm8k cannot be asked by `choose`: use generate"),
        ({"format": "gsm8k", "path": "x.jsonl", "generate": {"name": "z"}}, "not path and generate"),
        ({"generate": {"name": "long-contxt"}}, "line 2: unknown generator 'long-contxt'.*'long-context'"),
        ({"generate": {"seed": 1}}, "`generate` needs the `name` of a generator"),
    ],
)
def test_a_suite_that_names_its_data_wrongly(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        loaders.load(str(suite(tmp_path, **fields)), tmp_path / "cache")


def test_a_format_without_its_file_says_what_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SuiteError, match="'gsm8k' is a published format, not a suite: give its file with --path FILE"):
        loaders.load("gsm8k", tmp_path / "cache")
    with pytest.raises(SuiteError, match="the suite reads no published file: leave --path out"):
        loaders.load("quickstart", tmp_path / "cache", path=tmp_path)


def test_public_test_sets_are_read_whole(shared_data: Path, tmp_path: Path) -> None:
    gsm8k = loaders.load("gsm8k", tmp_path, path=shared_data / "gsm8k_test.jsonl")
    assert len(gsm8k.cases) == 1319
    assert all(isinstance(case.target, int | float) for case in gsm8k.cases)
    for task, kind in (("boolean_expressions", "choice"), ("navigate", "choice"), ("object_counting", "numeric")):
        found = loaders.load("bbh", tmp_path, path=shared_data / f"bbh_{task}.json")
        assert len(found.cases) == 250
        assert {case.scorer.name for case in found.cases} == {kind}
        assert found.slices == {task: 250}
        assert all(len({turn.content for turn in case.messages if turn.role == "user"}) == 4 for case in found.cases)
