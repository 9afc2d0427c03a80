"""Reports for programs and pull requests: Markdown, JUnit XML, CSV, Parquet, JSON, and the terminal's tables."""

import html
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pandas as pd
import pytest
from report_support import CONTROL, HARM, SETTINGS, Runs, make
from rich.console import Console

from eval import drift_tokens
from eval.drift_tokens import Estimate
from eval.reports import files, gather, junit, markdown, terminal, token_drift
from eval.reports.gather import ComparisonReport, Settings
from eval.statistics import Interval
from registry.terminal import UserError


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return make(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def report(runs: Runs) -> ComparisonReport:
    return runs.report()


# --- Markdown ---


def test_markdown_has_the_verdict_first_one_table_and_the_rest_folded(report: ComparisonReport) -> None:
    text = markdown.comparison(report)
    lines = text.splitlines()
    assert lines[0].startswith("### ▼ Worse: ")
    assert "is worse than" in lines[2]
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + len(report.rows)
    unescaped = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert unescaped == {10}, "nine cells each: no user's text adds one"
    assert len([line for line in lines if line.startswith("<details>")]) == text.count("</details>") == 3
    assert "17 cases changed: 14 lost, 3 gained" in text


def test_no_text_of_a_user_is_markdown_or_html(report: ComparisonReport) -> None:
    text = markdown.comparison(report)
    assert set(re.findall(r"<(/?\w+)", text)) <= {
        "code", "/code", "details", "/details", "summary", "/summary", "pre", "/pre",
    }  # fmt: skip
    for part in re.findall(r"<code>(.*?)</code>", text) + re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL):
        assert not re.search(r"[|`\[\]<>@*_#!]", re.sub(r"&#\d+;", "", part)), part
    assert "window.harm" in html.unescape(text), "the text itself is there"
    assert "\x1b" not in text
    assert "@somebody" not in text


def test_prose_mentions_nobody() -> None:
    assert html.unescape(markdown.prose("see @team, a@b *c*")) == "see @\u200bteam, a@b *c*"
    assert "*" not in markdown.prose("*c*")


def test_markdown_fits_into_a_comment_and_counts_the_rest(tmp_path: Path) -> None:
    many = make(tmp_path, 60, lost=35, prompt=HARM * 9).report()
    text = markdown.comparison(many)
    assert 40_000 < len(text.encode()) < 60_000
    shown = text.count("▼ lost") + text.count("▲ gained")
    assert 0 < shown < 38
    assert f"and {38 - shown} more (in the HTML report)" in text
    assert text.rstrip().endswith("</details>"), "what comes after the cases is whole"


def test_markdown_of_a_run(runs: Runs) -> None:
    text = markdown.run(gather.of_run(runs.baseline, alpha=0.05))
    assert text.startswith("### <code>assistant&#64;v1</code> on ")
    assert "| **overall** | 60 | 66.7 |" in text
    assert "20 cases without the full score" in text


# --- JUnit: the schema of Ant's JUnit task (windyroad/JUnit-Schema), rule by rule ---

TOKEN = re.compile(r"\S+( \S+)*")
WHOLE = re.compile(r"[0-9]+")
DECIMAL = re.compile(r"[0-9]+(\.[0-9]+)?")
SUITE = {
    "name": TOKEN, "package": TOKEN, "hostname": TOKEN, "id": WHOLE, "tests": WHOLE, "failures": WHOLE, "errors": WHOLE,
    "skipped": WHOLE, "time": DECIMAL,
    "timestamp": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"),
}  # fmt: skip
CASE = {"name": TOKEN, "classname": TOKEN, "time": DECIMAL}
OUTCOMES = {"failure": {"message", "type"}, "error": {"message", "type"}, "skipped": {"message"}}


def check_junit(text: str) -> ElementTree.Element:
    """Assert the schema's structure; return the one test suite."""
    root = ElementTree.fromstring(text)
    assert (root.tag, root.attrib) == ("testsuites", {})
    for number, suite in enumerate(root):
        assert suite.tag == "testsuite"
        _attributes(suite, SUITE)
        assert suite.get("id") == str(number)
        parts = [part.tag for part in suite]
        cases = parts.count("testcase")
        assert parts == ["properties", *["testcase"] * cases, "system-out", "system-err"]
        assert int(suite.get("tests", "")) == cases
        for name, outcome in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(suite.get(name, "")) == len(suite.findall(f"testcase/{outcome}"))
        for one in suite.iter("property"):
            assert set(one.attrib) == {"name", "value"}
            assert TOKEN.fullmatch(one.attrib["name"])
        for case in suite.iter("testcase"):
            _attributes(case, CASE)
            assert len(case) <= 1
            for outcome in case:
                assert set(outcome.attrib) == OUTCOMES[outcome.tag]
                assert len(outcome) == 0
    return root[0]


def _attributes(element: ElementTree.Element, wanted: dict[str, re.Pattern[str]]) -> None:
    assert element.attrib.keys() == wanted.keys()
    for name, pattern in wanted.items():
        assert pattern.fullmatch(element.attrib[name]), (name, element.attrib[name])


def test_junit_shows_the_verdict_and_the_lost_cases(report: ComparisonReport) -> None:
    suite = check_junit(junit.comparison(report))
    assert (suite.get("name"), suite.get("tests")) == ("report-suite", "61")
    assert (suite.get("failures"), suite.get("errors"), suite.get("skipped")) == ("15", "1", "0")
    first = suite.findall("testcase")[0]
    failure = first.find("failure")
    assert failure is not None
    assert (first.get("classname"), first.get("name"), failure.get("type")) == (
        "report-suite.gates",
        "verdict",
        "worse",
    )
    lost = [case for case in suite.findall("testcase") if case.find("failure[@type='lost']") is not None]
    assert len(lost) == 14
    told = lost[0].findtext("failure") or ""
    assert "prompt: Question 1" in told
    assert HARM in told
    (unanswered,) = suite.findall("testcase/error")
    assert unanswered.get("message") == "failed in the candidate"
    figures = {one.get("name"): one.get("value") for one in suite.iter("property")}
    assert figures["n"] == "59"
    assert figures["candidate's digest"] == "sha256:" + "v2".ljust(64, "0")


def test_an_inconclusive_verdict_is_an_error_there_and_a_pass_is_none(runs: Runs) -> None:
    strict = Settings(("overall", "exact", "contains"), 0.9, 0.05, 7)
    suite = check_junit(junit.comparison(runs.report(strict)))
    gates = [case for case in suite.findall("testcase") if case.get("classname") == "report-suite.gates"]
    assert gates[0].get("name") == "verdict"
    assert {case.get("name") for case in gates[1:]} == {"overall", "exact", "contains"}
    assert [len(case) for case in gates] == [0, 0, 0, 0]
    unknown = runs.report(Settings(("nothing-of-the-kind",), 0.9, 0.05, 7))
    error = check_junit(junit.comparison(unknown)).find("testcase/error")
    assert error is not None
    assert error.get("type") == "inconclusive"


def test_control_characters_do_not_break_the_xml(report: ComparisonReport) -> None:
    text = junit.comparison(report)
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f]", text)
    names = {case.get("name") for case in check_junit(text).iter("testcase")}
    assert "case-000 bell \ufffd escape \ufffd[31m null \ufffd override \ufffd end" in names


def test_junit_of_a_run(runs: Runs) -> None:
    suite = check_junit(junit.run(gather.of_run(runs.candidate, alpha=0.05)))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("60", "31", "1")


# --- data ---

NUMBERS = ("difference", "baseline_score", "candidate_score")


def test_csv_and_parquet_hold_every_pair_with_both_answers(report: ComparisonReport) -> None:
    read = [
        pd.read_csv(
            io.BytesIO(files.content(report, "csv")), keep_default_na=False, na_values={name: [""] for name in NUMBERS}
        ),
        pd.read_parquet(io.BytesIO(files.content(report, "parquet"))),
    ]
    for frame in read:
        assert len(frame) == 60
        assert frame["change"].value_counts().to_dict() == {"same": 42, "lost": 14, "gained": 3, "unpaired": 1}
        lost = frame[frame["change"] == "lost"].iloc[0]
        assert (lost["baseline_score"], lost["candidate_score"], lost["difference"]) == (1, 0, -1)
        assert HARM in lost["candidate_output"], "data is left as it is"
        assert frame["unpaired_reason"].value_counts()["failed in the candidate"] == 1
    assert CONTROL in read[1]["case"].iloc[0]


def test_json_of_two_runs_has_the_names_that_eval_compare_has(report: ComparisonReport, runs: Runs) -> None:
    value = json.loads(files.content(report, "json"))
    assert value["verdict"]["kind"] == "worse"
    assert value["suite"]["digest"] == runs.baseline.info().key.suite_digest
    assert (value["suite"]["cases"], value["seed"], len(value["flips"])) == (60, 7, 17)
    assert value["noise_floor"]["run"] == runs.twin.name
    one = json.loads(files.content(gather.of_run(runs.baseline, alpha=0.05), "json"))
    assert one["overall"]["n"] == 60


@pytest.mark.parametrize("form", [form for form in files.FORMATS if form != "html"])
def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, report: ComparisonReport, runs: Runs, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    suffix = next(suffix for suffix, name in files.SUFFIXES.items() if name == form)
    for one in (report, gather.of_run(runs.baseline, alpha=0.05)):
        path = Path(f"report{suffix}")
        files.write(one, path)
        assert path.read_bytes() == files.content(one, form)
    assert [path.name for path in tmp_path.iterdir()] == [f"report{suffix}"]
    with pytest.raises(UserError, match="cannot be written"):
        files.write(report, Path(f"away/report{suffix}"))


def test_a_format_is_told_by_the_suffix_or_by_name() -> None:
    assert files.format_of(Path("a/b.HTML")) == "html"
    assert files.format_of(Path("-"), "junit") == "junit"
    with pytest.raises(UserError, match=r"let it end in \.html"):
        files.format_of(Path("report.pdf"))
    with pytest.raises(UserError, match="take one of html, markdown"):
        files.format_of(Path("report.html"), "pdf")


def test_several_candidates_are_a_file_each(tmp_path: Path, report: ComparisonReport) -> None:
    made = files.write_all([report.found, report.found], tmp_path / "r.md", settings=SETTINGS)
    assert [path.name for path in made] == ["r-assistant@v2.md"] * 2
    assert files.write_all([report.found], tmp_path / "r.md", settings=SETTINGS) == [tmp_path / "r.md"]


# --- terminal ---


@pytest.mark.parametrize("columns", [80, 160])
def test_the_tables_fit_the_terminal(report: ComparisonReport, columns: int) -> None:
    out = io.StringIO()
    terminal.comparison(Console(file=out, width=columns, highlight=False), report.found, alpha=0.05, flips=2)
    text = out.getvalue()
    assert max(len(line) for line in text.splitlines()) <= columns
    assert "\x1b" not in text
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\u202e]", text)
    drift = _block(text, "output drift")
    assert [line.split("  ")[0] for line in drift][:3] == ["same text", "length ratio", "mean distance"]
    assert all(re.match(r"\S", line) and re.search(r"\S {2,}\S", line) for line in drift), "no label wraps"
    assert " ".join(text[text.rindex("verdict ") :].split()).startswith(
        "verdict assistant@v2 against assistant@v1: worse"
    )


def _block(text: str, title: str) -> Sequence[str]:
    """The rows of the table whose first column is called so."""
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(title)) + 2
    rows = []
    for line in lines[start:]:
        if not line.strip() or line.startswith(("finish reasons", "distances")):
            break
        rows.append(line)
    return rows


def test_token_drift_is_read_from_what_eval_drift_writes(tmp_path: Path) -> None:
    mean = Estimate(0.1, Interval(0.0, 0.2, "cluster bootstrap"))
    drift = drift_tokens.TokenDrift(
        "lower bound",
        30,
        3,
        mean,
        mean,
        mean,
        0.9,
        mean,
        mean,
        (2.0, 2.1),
        mean,
        (drift_tokens.Band(0, 8, 24, 0.1),),
        (),
    )
    sides = token_drift.Side("v1", "", "transformers"), token_drift.Side("v2", "", "transformers")
    written = token_drift.document(token_drift.TokenReport(*sides, drift, 20, (), (), ()), 0.05)
    file = tmp_path / "drift.json"
    file.write_text(json.dumps(written))
    assert gather.token_drift_of(file) == gather.TokenDrift(drift.bands, lower_bound=True)
    file.write_text('{"drift": 1}')
    with pytest.raises(UserError, match="holds no drift at the level of tokens"):
        gather.token_drift_of(file)
    with pytest.raises(UserError, match="cannot be read"):
        gather.token_drift_of(tmp_path / "away.json")


def test_runs_of_different_suites_and_unfinished_ones_are_refused(runs: Runs, tmp_path: Path) -> None:
    other = make(tmp_path, 12, lost=1, gained=1)
    with pytest.raises(UserError, match="runs of different suites"):
        gather.of_runs(runs.baseline, other.candidate, store=runs.store, settings=SETTINGS)
    begun = runs.store.root / "begun"
    begun.mkdir()
    (begun / "run.json").write_bytes(msgspec.json.encode(runs.baseline.info()))
    with pytest.raises(UserError, match="is not finished"):
        gather.of_runs(runs.baseline, runs.store.get("begun"), store=runs.store, settings=SETTINGS)
    with pytest.raises(UserError, match="nothing to report"):
        gather.of_run(runs.store.get("begun"), alpha=0.05)
