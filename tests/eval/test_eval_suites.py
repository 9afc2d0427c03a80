"""Suite files: what is accepted, the digest, and one clear sentence for each mistake."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pytest
import yaml
from eval_support import Cli

from eval import loaders
from eval.errors import SuiteError
from eval.suite import Suite

ROOT = Path(__file__).resolve().parents[2]
CASE = {"id": "a", "prompt": "What is 1 + 1?", "target": 2, "scorer": "numeric"}


def write(folder: Path, *cases: Any, **suite: Any) -> Path:
    lines = [case if isinstance(case, str) else json.dumps(case) for case in cases]
    (folder / "cases.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "suite.yaml").write_text(yaml.safe_dump({"name": "s", "cases": "cases.jsonl"} | suite))
    return folder


def load(folder: Path) -> Suite:
    return loaders.load(str(folder), folder / "cache")


def test_every_shipped_suite_loads() -> None:
    files = sorted((ROOT / "configs" / "suites").glob("*/suite.yaml"))
    assert files
    for file in files:
        suite = loaders.load(str(file), ROOT / ".cache" / "datasets")
        assert suite.name == file.parent.name


def test_quickstart_has_enough_short_cases_in_every_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    suite = loaders.load("quickstart", ROOT / ".cache" / "datasets")
    assert len(suite.cases) >= 96
    assert {"arithmetic", "facts", "extraction", "formatting", "yes-no", "refusals"} <= suite.slices.keys()
    assert all(8 <= (case.max_tokens or suite.sampling.max_tokens) <= 48 for case in suite.cases)
    assert sum(suite.limited(24).slices.values()) == 24
    assert suite.limited(24).slices.keys() == suite.slices.keys()


@pytest.mark.parametrize(
    ("cases", "suite", "message"),
    [
        ([CASE, "", {**CASE, "id": "b", "scorer": "numerci"}], {}, r"line 3: case 'b': unknown scorer .*'numeric'"),
        ([CASE, {key: CASE[key] for key in ("prompt", "target", "scorer")}], {}, "line 2: missing field `id`"),
        ([{**CASE, "prompt": None}], {}, "line 1: case 'a' needs either `prompt` or `messages`"),
        ([{key: CASE[key] for key in ("id", "prompt", "target")}], {}, "line 1: missing field `scorer`"),
        ([{**CASE, "promt": "x"}], {}, "unknown field `promt` .did you mean `prompt`"),
        ([CASE, CASE], {}, "'a' is given to more than one case"),
        ([CASE, "{oops"], {}, "line 2: not valid JSON"),
        (["[1]"], {}, "line 1: a case is a JSON object"),
        ([], {}, "has no cases"),
        ([{**CASE, "max_tokens": 0}], {}, "`max_tokens` must be at least 1"),
        ([{**CASE, "scorer": {"tolerance": 1}}], {}, "a scorer is a name, or a mapping with `name`"),
        ([CASE], {"gates": ["exact"]}, "gate 'exact' is neither"),
        ([CASE], {"marign": 0.1}, "unknown field `marign` .did you mean `margin`"),
        ([CASE], {"margin": 5}, "`margin` is 5.*between 0 and 1"),
        ([CASE], {"repeats": 0}, "at least 1"),
        ([CASE], {"cases": "cases.txt"}, "use .jsonl, .json, .csv or .parquet"),
        ([CASE], {"cases": "away.jsonl"}, "are not there"),
        ([CASE], {"dataset": {"hub": "x/y"}}, "either `cases`"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_place(
    tmp_path: Path, cases: list[Any], suite: dict[str, Any], message: str
) -> None:
    with pytest.raises(SuiteError, match=message) as caught:
        load(write(tmp_path, *cases, **suite))
    assert "\n" not in str(caught.value)


def test_bad_yaml_names_its_line(tmp_path: Path) -> None:
    write(tmp_path, CASE)
    (tmp_path / "suite.yaml").write_text("name: s\ncases: [\n")
    with pytest.raises(SuiteError, match="line 3: not valid YAML"):
        load(tmp_path)


def test_an_unknown_suite_lists_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SuiteError, match=r"did you mean 'quickstart'.*known suites: .*quickstart"):
        loaders.find("quikstart")


def test_suites_are_found_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "suites" / "mine"
    folder.mkdir(parents=True)
    write(folder, CASE)
    monkeypatch.setenv("MODELYARD_CONFIGS", str(tmp_path))
    assert loaders.find("mine") == folder / "suite.yaml"
    assert "mine" in loaders.known()


def test_the_digest_is_of_what_is_asked(tmp_path: Path) -> None:
    plain = load(write(tmp_path, CASE))
    described = load(write(tmp_path, CASE, description="other words", margin=0.1))
    assert plain.digest == described.digest
    for changed in ({**CASE, "prompt": "What is 2?"}, {**CASE, "target": 3}, {**CASE, "max_tokens": 9}):
        assert load(write(tmp_path, changed)).digest != plain.digest
    assert load(write(tmp_path, CASE, system="Be brief.")).digest != plain.digest


def test_csv_and_parquet_take_columns_and_a_scorer_for_all(tmp_path: Path) -> None:
    frame = pd.DataFrame({"number": ["1", "2"], "question": ["Sky?", "Grass?"], "answer": ["blue", "green"]})
    frame.to_csv(tmp_path / "x.csv", index=False)
    frame.to_parquet(tmp_path / "x.parquet")
    columns = {"id": "number", "prompt": "question", "target": "answer"}
    digests = set()
    for name in ("x.parquet", "x.csv"):
        write(tmp_path, cases=name, columns=columns, scorer="contains")
        if name == "x.csv":
            frame.assign(number=["q1", "q2"]).to_csv(tmp_path / "x.csv", index=False)
            frame.assign(number=["q1", "q2"]).to_parquet(tmp_path / "x.parquet")
        suite = load(tmp_path)
        assert [case.target for case in suite.cases] == ["blue", "green"]
        digests.add(suite.cases[1].prompt_digest)
    assert len(digests) == 1
    write(tmp_path, cases="x.csv", columns={"id": "nr"}, scorer="contains")
    with pytest.raises(SuiteError, match="no column 'nr'; it has: number, question, answer"):
        load(tmp_path)


def test_a_csvs_cells_are_what_the_scorer_reads(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(
        "id,prompt,target,scorer,weight,then\n7,1 + 1?,2,numeric,2.5,\n"
        '8,"Two, please",2,exact,,"[""And now?""]"\n9,JSON?,"{""a"": 1}","{""name"": ""json"", ""subset"": true}",,\n'
    )
    first, second, third = load(write(tmp_path, cases="x.csv")).cases
    assert (first.id, first.target, first.weight, first.then) == ("7", 2, 2.5, ())
    assert (second.target, second.weight, second.then) == ("2", 1.0, ("And now?",))
    assert (third.target, third.scorer.options) == ({"a": 1}, {"subset": True})
    (tmp_path / "x.csv").write_text("id,prompt,target\n1,a\n")
    with pytest.raises(SuiteError, match=r"x.csv line 2: it has 2 columns where 3 are expected"):
        load(write(tmp_path, cases="x.csv", scorer="exact"))


def test_cases_may_choose_by_likelihood(tmp_path: Path) -> None:
    choose = {"id": "a", "prompt": "2 + 2 =", "choices": [" 4", " 5"], "kind": "choose", "chat": False}
    by_text, by_index = load(write(tmp_path, {**choose, "target": " 4"}, {**choose, "id": "b", "target": 0})).cases
    assert by_text.target == by_index.target == " 4"
    assert by_text.scorer.name == "likelihood"
    assert by_text.prompt_digest != msgspec.structs.replace(by_text, choices=(" 4", " 6")).prompt_digest
    (text,) = load(write(tmp_path, {"id": "p", "target": "A heron wades.", "kind": "perplexity"})).cases
    assert text.scorer.name == "perplexity"


CHOOSE = {"id": "a", "prompt": "x", "kind": "choose", "choices": ["a", "b"], "target": "a"}


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({**CHOOSE, "target": "c"}, "the target 'c' is none of the choices 'a', 'b'"),
        ({**CHOOSE, "choices": ["a"]}, "needs two or more `choices`"),
        ({**CHOOSE, "scorer": "exact"}, "the scorer 'exact' reads texts: the kind `choose` goes with 'likelihood'"),
        ({**CHOOSE, "then": ["y"]}, "`then` goes with the kind `generate`"),
        ({**CHOOSE, "kind": "chose"}, "`kind`: invalid enum value 'chose'"),
        ({**CASE, "scorer": "likelihood"}, "'likelihood' goes with the kind `choose`"),
        ({**CASE, "chat": False}, "`chat: false` goes with the kinds"),
        ({**CASE, "weight": 0}, "`weight` must be above 0"),
        ({**CASE, "timeout_s": -1}, "`timeout_s` must be above 0"),
        ({**CASE, "request": {"stream": True}}, "`request.stream` is set by the run"),
        ({**CASE, "messages": [{"role": "usr", "content": "x"}]}, r"`messages\[0\].role`: invalid enum"),
        ({"id": "p", "kind": "perplexity"}, "needs the text whose likelihood is wanted"),
    ],
)
def test_a_cases_fields_fit_its_kind(tmp_path: Path, case: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError, match=message) as caught:
        load(write(tmp_path, case))
    assert "cases.jsonl line 1: " in str(caught.value)


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ({"marign": 0.1}, r"suite.yaml line 2: unknown field `marign` \(did you mean `margin`\?\)"),
        (
            {"sampling": {"max_token": 1}},
            r"line 4: unknown field `max_token` of `sampling` \(did you mean `max_tokens`",
        ),
        ({"sampling": {"max_tokens": "x"}}, "line 4: `sampling.max_tokens`: expected"),
        ({"sampling": {"timeout_s": 0}}, "line 4: `sampling.timeout_s` is 0"),
        ({"repeats": 0}, "line 3: `repeats` is 0"),
        ({"gates": ["overall", "overal"]}, r"line 4: the gate 'overal' .* \(did you mean 'overall'\?\)"),
    ],
)
def test_a_mistake_in_the_yaml_names_its_line(tmp_path: Path, suite: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        load(write(tmp_path, CASE, **suite))


def test_suites_are_listed_shown_and_checked(cli: Cli, tmp_path: Path) -> None:
    listed = json.loads(cli.call("suites", "list", "--json").stdout)
    assert "quickstart" in {one["name"] for one in listed["suites"]}
    assert not any(one["error"] for one in listed["suites"])
    assert "gsm8k" in listed["formats"]
    write(tmp_path, CASE, {**CASE, "id": "b", "then": ["And then?"]}, system="Be brief.")
    shown = cli.call("suites", "show", str(tmp_path), "--case", "b")
    for text in ("system: Be brief.", "user: What is 1 + 1?", "then user: And then?", "-> 2 by numeric, at most 64"):
        assert text in shown.stdout
    assert "did you mean 'b'" in cli.call("suites", "show", str(tmp_path), "--case", "bb").stderr
    checked = json.loads(cli.call("suites", "check", str(tmp_path), "--json").stdout)
    assert (checked["cases"], checked["scorers"]) == (2, ["numeric"])
    wrong = cli.call("suites", "check", str(write(tmp_path, {**CASE, "scorer": "numerc"})))
    assert wrong.returncode == 2
    assert "cases.jsonl line 1: case 'a': unknown scorer 'numerc'" in wrong.stderr


def test_a_data_set_is_streamed_with_a_format_or_a_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"question": "Which floats?", "subject": "tools", "choices": ["a brick", "a cork"], "answer": 1}]
    pd.DataFrame(rows).to_parquet(data / "test-00000-of-00001.parquet")
    suite = {"name": "h", "dataset": {"hub": str(data), "split": "test"}}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite | {"format": "mmlu"}))
    (case,) = load(tmp_path).cases
    assert (case.id, case.slice, case.target) == ("test-00001", "tools", "B")
    written = {"template": "{{ question }} {{ choices | join(' or ') }}", "columns": {"target": "answer"}}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite | written | {"task": "choose"}))
    (case,) = load(tmp_path).cases
    assert (case.text, case.target) == ("Which floats? a brick or a cork", "a cork")


def test_a_hub_is_not_asked_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump({"name": "h", "dataset": {"hub": "org/set"}}))
    with pytest.raises(SuiteError, match="HF_HUB_OFFLINE forbids"):
        load(tmp_path)
