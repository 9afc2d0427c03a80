"""Prompts from templates: what they may use, and how a stranger's template is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval import loaders
from eval.errors import SuiteError, SuiteGoneError
from eval.suite import Suite

ROWS = [{"question": f"What is {n} + 1?", "answer": str(n + 1), "tags": ["sum", "easy"]} for n in range(4)]


def write(folder: Path, rows: list[dict[str, Any]] | None = None, **suite: Any) -> Path:
    (folder / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows or ROWS))
    file = {"name": "t", "cases": "cases.jsonl", "scorer": "exact", "columns": {"target": "answer"}} | suite
    (folder / "suite.yaml").write_text(yaml.safe_dump(file, sort_keys=False, default_style=None))
    return folder


def load(folder: Path) -> Suite:
    return loaders.load(str(folder), folder / "cache")


def test_a_template_sees_a_rows_columns_and_names_cases_by_their_place(tmp_path: Path) -> None:
    template = "{% for tag in tags %}[{{ tag }}]{% endfor %} {{ question | upper }}\nAnswer:"
    suite = load(write(tmp_path, template=template))
    assert suite.cases[0].messages[-1].content == "[sum][easy] WHAT IS 0 + 1?\nAnswer:"
    assert suite.cases[2].id == "cases-00003"
    assert suite.cases[2].target == "3"


def test_messages_are_templates_each(tmp_path: Path) -> None:
    template = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "{{ question }}"},
        {"role": "assistant", "content": "Let me see."},
        {"role": "user", "content": "And {{ tags[0] }}?"},
    ]
    suite = load(write(tmp_path, template=template))
    assert [turn.role for turn in suite.cases[0].messages] == ["system", "user", "assistant", "user"]
    assert suite.cases[0].messages[-1].content == "And sum?"


def test_a_template_in_a_file_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "prompt.j2").write_text("{{ question }}\n{{ anwser }}\n")
    with pytest.raises(SuiteError, match=r"prompt.j2 line 2: .*'anwser' is undefined, did you mean 'answer'"):
        load(write(tmp_path, template={"file": "prompt.j2"}))
    (tmp_path / "prompt.j2").write_text("{{ question }}\n")
    assert load(write(tmp_path, template={"file": "prompt.j2"})).cases[0].messages[0].content == "What is 0 + 1?"
    with pytest.raises(SuiteGoneError, match=r"away\.j2 is not there"):
        load(write(tmp_path, template={"file": "away.j2"}))


ESCAPES = [
    ("{{ ''.__class__.__mro__ }}", "'__class__' of 'str' object is unsafe"),
    ("{{ question | attr('__class__') }}", "'__class__' of 'str' object is unsafe"),
    ("{{ '{0.__class__.__init__.__globals__}'.format(question) }}", "unsafe"),
    ("{{ tags | map(attribute='__class__') | first }}", "unsafe"),
    ("{{ self.__init__.__globals__ }}", "unsafe"),
    ("{{ tags.append('x') }}", "'append' of 'list' object is unsafe"),
    ("{% set question.x = 1 %}", "cannot assign attribute"),
    ("{% set ns = namespace(x=1) %}", "'namespace' is undefined"),
    ("{{ lipsum(n=10 ** 9) }}", "'lipsum' is undefined"),
    ("{% for i in range(10 ** 9) %}x{% endfor %}", "Range too big"),
    ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "stopped after 1 s"),
    ("{{ 10 ** (10 ** 10) }}", "stopped after 1 s|MiB"),
    ("{{ question * 10 ** 10 }}", "more than 512 MiB"),
    ("{{ '%1000000000d' % tags | length }}", "more than 512 MiB"),
    ("{{ question.zfill(2000000) }}", "longer than 1,000,000 characters"),
    ("{% include '/etc/passwd' %}", "cannot include, import or extend"),
    ("{% import 'os' as os %}", "cannot include, import or extend"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ("{{ question", "unexpected end"),
    ("{{ question | nope }}", "No filter named 'nope'"),
    ("{{ 1 / 0 }}", "division by zero"),
]


@pytest.mark.parametrize(("template", "message"), ESCAPES)
def test_an_escape_is_one_sentence_with_file_and_line(tmp_path: Path, template: str, message: str) -> None:
    write(tmp_path)
    with (tmp_path / "suite.yaml").open("a") as file:
        file.write(f"template: |\n  Here is the question.\n  {template}\n")
    with pytest.raises(SuiteError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    line = 7 if message.startswith(("cannot assign", "longer", "stopped")) else 8  # the template's first, else its own
    assert f"suite.yaml line {line}: " in str(caught.value)


def test_an_error_names_the_row_that_it_came_with(tmp_path: Path) -> None:
    rows = [*ROWS, {"question": "?", "answer": "1"}]
    with pytest.raises(SuiteError, match=r"'tags' is undefined.*filled with .*cases.jsonl line 5"):
        load(write(tmp_path, rows, template="{{ question }} {{ tags[0] }}"))
