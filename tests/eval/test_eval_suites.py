"""Suite files: what is accepted, the digest, and one clear sentence for each mistake."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

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


def test_a_hub_is_not_asked_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump({"name": "h", "dataset": {"hub": "org/set"}}))
    with pytest.raises(SuiteError, match="HF_HUB_OFFLINE forbids"):
        load(tmp_path)
