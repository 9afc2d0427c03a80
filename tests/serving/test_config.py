"""The configuration file: what ships is valid, and every mistake is named with its line and what would be right."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from components import ROOT

from registry.models import Condition
from registry.terminal import NotThereError
from serving.config import ConfigError, json_schema, load, parse

VALID = """\
models:
  a:
    versions:
      v1: {artifact: "file:a.gguf", engine: llama.cpp}
      v2: {engine: external, url: "http://127.0.0.1:9/v1"}
    route: {v1: 9000, v2: 1000}
"""
SHIPPED = [path for path in sorted((ROOT / "configs").glob("*.yaml")) if "models" in path.read_text()]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_configuration_that_ships_is_valid(path: Path) -> None:
    load(path)
    jsonschema.validate(yaml.safe_load(path.read_text()), json.loads(json_schema()))


def test_the_hosted_example_is_valid_and_names_no_key() -> None:
    config = load(ROOT / "configs" / "hosted.yaml")
    cloud = config.models["assistant"].versions["cloud"]
    assert (cloud.engine, cloud.litellm_model, cloud.api_key_env) == ("hosted", "openai/gpt-4o-mini", "OPENAI_API_KEY")
    assert config.models["assistant"].fallback == ("cloud",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{engine: hosted}", "a hosted engine needs `litellm_model:`"),
        ("{engine: hosted, litellm_model: a/b, artifact: 'file:x'}", "takes no `artifact:`"),
        ("{engine: external, url: 'http://x', litellm_model: a/b}", "is for a hosted engine, not for external"),
        ("{engine: hosted, litellm_model: a/b, url: 'ftp://x'}", "must begin with http"),
    ],
)
def test_mistakes_about_hosted_engines_are_one_sentence(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse(f"models: {{m: {{versions: {{v1: {text}}}}}}}")


def test_a_hosted_engines_url_is_kept_whole() -> None:
    text = "models: {m: {versions: {v1: {engine: hosted, litellm_model: a/b, url: 'http://x/v1/'}}}}"
    assert parse(text).models["m"].versions["v1"].url == "http://x/v1"


BUDGETS = """\
budgets:
  - {name: whole, amount: 500}
  - {name: team, amount: 20.5, period: week, model: a, version: v1, key: key_1, alert_at: [1.0, 0.5, 0.5]}
"""


def test_budgets_are_of_the_yard_or_of_what_they_name() -> None:
    whole, team = parse(BUDGETS + VALID).budgets
    assert (whole.period, whole.model, whole.alert_at) == ("month", "", (0.8, 1.0))
    assert (team.period, team.version, team.key, team.alert_at) == ("week", "v1", "key_1", (0.5, 1.0))


@pytest.mark.parametrize(
    ("before", "after", "line", "words"),
    [
        ("amount: 500", "amount: 0", 2, "greater than 0"),
        ("amount: 500", "amuont: 500", 2, "unknown key 'budgets.0.amuont': did you mean 'amount'?"),
        ("model: a, version", "version", 3, "version 'v1' needs `model:` beside it"),
        ("name: team", "name: whole", 1, "two budgets are called 'whole'"),
        ("[1.0, 0.5, 0.5]", "[1.5]", 3, "less than or equal to 1"),
        ("period: week", "period: year", 3, "'month', 'week' or 'day'"),
    ],
)
def test_mistakes_about_budgets_are_named(before: str, after: str, line: int, words: str) -> None:
    text = BUDGETS + VALID
    assert before in text
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        parse(text.replace(before, after))
    assert f"configuration:{line}:" in str(caught.value)


def test_defaults_are_safe() -> None:
    config = parse(VALID)
    assert (config.server.host, config.server.admin_host) == ("127.0.0.1", "127.0.0.1")
    assert config.models["a"].versions["v2"].url == "http://127.0.0.1:9"
    assert config.models["a"].first_route() == {"v1": 9000, "v2": 1000}


@pytest.mark.parametrize(
    ("before", "after", "line", "words"),
    [
        ("engine: llama.cpp", "enigne: llama.cpp", 4, "did you mean 'engine'"),
        ("    route:", "    rout:", 6, "did you mean 'route'"),
        ("models:", "modles:", 1, "did you mean 'models'"),
        ("engine: llama.cpp", "engine: llamacpp", 4, "'llama.cpp', 'vllm', 'external' or 'hosted'"),
        ('artifact: "file:a.gguf", ', "", 4, "needs `artifact:`"),
        ("file:a.gguf", "fil:a.gguf", 4, "begins with none of file:, pypi:"),
        ('"file:a.gguf"', "{requantize: v9}", 2, "which is not one of v1, v2"),
        ('"file:a.gguf"', "{requantize: v2, typ: Q4_0}", 4, "did you mean 'type'"),
        (', url: "http://127.0.0.1:9/v1"', "", 5, "needs `url:`"),
        ("v2: 1000", "v2: 999", 2, "sum to 9999"),
        ("v2: 1000", "v3: 1000", 2, "'v3'"),
        ("      v2:", "      v1:", 5, "a second time"),
        ("      v2:", "      'v 2':", 2, "is not usable"),
        ("v2: 1000}", "v2: 1000}\n    sticky: [cookie:x]", 7, "none of header:NAME, body:user"),
        ("v2: 1000}", "v2: 1000}\n    segments: {b: {when: {}, route: {v2: 10000}}}", 7, "a segment needs a condition"),
        ("v2: 1000}", "v2: 1000}\n    segments: {b: {when: {user: []}, route: {v2: 10000}}}", 7, "needs a condition"),
        ("v2: 1000}", "v2: 1000}\n    segments: {b: {when: {header: {x: []}}, route: {v2: 10000}}}", 7, "no value"),
        ("v2: 1000}", "v2: 1000}\n    segments: {b: {when: {header: {x y: 1}}, route: {v2: 10000}}}", 7, "no header"),
        (
            "v2: 1000}",
            "v2: 1000}\n    segments: {b: {when: {header: {Authorization: 1}}, route: {v2: 10000}}}",
            7,
            "`key:`",
        ),
        ("v2: 1000}", "v2: 1000}\n    segments: {b: {when: {user: a}, route: {v3: 10000}}}", 2, "segment b names"),
        ("v2: 1000}", "v2: 1000}\n    segments: {b: {when: {user: a}, route: {v2: 1}}}", 2, "sum to 1"),
        ("v2: 1000}", "v2: 1000}\n    shadow: {v3: {}}", 2, "shadow names version 'v3'"),
        ("models:", "server: {port: 9, admin_port: 9}\nmodels:", 1, "both 9"),
        ("models:", "server: {workers: 0}\nmodels:", 1, "greater than or equal to 1"),
        ("models:", "prices: {pue: 0.5}\nmodels:", 1, "greater than or equal to 1"),
        ("models:", "models: [", 3, "not valid YAML"),
    ],
)
def test_a_mistake_is_named_with_its_line(before: str, after: str, line: int, words: str) -> None:
    assert before in VALID
    with pytest.raises(ConfigError) as refused:
        parse(VALID.replace(before, after, 1), "yard.yaml")
    assert f"yard.yaml:{line}:" in str(refused.value), refused.value
    assert words in str(refused.value)


def test_values_of_conditions_may_be_one_or_many_and_are_text() -> None:
    when = "{header: {X-Beta: [1, on], x-tier: gold}, metadata: {paid: true}, key: key_1, user: [2]}"
    text = f"{VALID}    segments: {{beta: {{when: {when}, route: {{v2: 10000}}}}}}\n"
    assert parse(text).models["a"].segments["beta"].when.conditions() == (
        Condition("header", "x-beta", ("1", "true")),
        Condition("header", "x-tier", ("gold",)),
        Condition("metadata", "paid", ("true",)),
        Condition("key", "", ("key_1",)),
        Condition("user", "", ("2",)),
    )
    jsonschema.validate(yaml.safe_load(text), json.loads(json_schema()))


@pytest.mark.parametrize(("text", "words"), [("", "empty"), ("- a", "a list, not a mapping"), ("3", "a int")])
def test_what_is_no_mapping_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotThereError, match="there is no configuration file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(NotThereError, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        load(tmp_path / "latin.yaml")
