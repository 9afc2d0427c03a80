"""The admin API against its own OpenAPI document: schemathesis makes the calls, a whole yard answers them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from engines.fixtures import start_fake_engine
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from yard_harness import CONFIG, RunningYard

EXAMPLES = 15
"""Per call; the same ones each time."""
CHECKED = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
)


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningYard]:
    engine = start_fake_engine("--events", "2")
    text = CONFIG.format(workers=1, first=engine.url, second=engine.url)
    try:
        with RunningYard(tmp_path_factory.mktemp("yard"), text) as running:
            yield running
    finally:
        engine.kill()
        assert engine.process.stdout is not None
        engine.process.stdout.close()


def operations(yard: RunningYard) -> list[Any]:
    """Every documented call, less one that makes the yard start new workers: that is tested on its own."""
    found = httpx.get(f"{yard.info.admin_url}/openapi.json", trust_env=False).json()
    loaded = schemathesis.openapi.from_dict(found)
    loaded.config.update(base_url=yard.info.admin_url)
    return [one.ok() for one in loaded.exclude(path_regex="workers/restart").get_all_operations()]


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_call_answers_as_it_is_documented(yard: RunningYard, mode: GenerationMode) -> None:
    load_all_checks()
    wanted = [CHECKS.get_one(name) for name in CHECKED]
    headers = {"authorization": f"Bearer {yard.token}"}
    statuses: Counter[int] = Counter()
    impossible: list[str] = []
    for operation in operations(yard):
        takes = operation.body or operation.query or operation.path_parameters
        if mode is GenerationMode.NEGATIVE and not takes:
            continue  # nothing that could be wrong

        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def call(case: Any) -> None:
            answer = case.call(headers=headers)
            case.validate_response(answer, checks=wanted)
            statuses[answer.status_code] += 1

        try:
            call()
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE, operation.label
            impossible.append(operation.label)  # anything goes there: a path parameter that is any text
    assert sum(statuses.values()) > 100
    assert len(impossible) < 5, impossible
    assert statuses[200] if mode is GenerationMode.POSITIVE else statuses[422]


def test_calls_without_a_credential_change_nothing(yard: RunningYard) -> None:
    before = yard.get("audit", limit=1)
    for operation in operations(yard):
        if operation.method.upper() in ("GET", "HEAD"):
            continue

        @settings(
            max_examples=3, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy())
        def call(case: Any) -> None:
            assert case.call().status_code in (401, 405)

        call()
    assert yard.get("audit", limit=1) == before


def test_the_yard_is_as_well_as_before(yard: RunningYard) -> None:
    assert yard.get("models", "m", "route")["weights"]
    key = yard.admin.post("/keys", json={"name": "after"}).json()
    yard.api.headers["authorization"] = f"Bearer {key['secret']}"
    assert yard.chat().status_code == 200
    assert yard.get("status")["problems"] == []
    assert "Traceback" not in (yard.state.root / "yard.log").read_text()
