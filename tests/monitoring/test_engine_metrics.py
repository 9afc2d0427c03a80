"""The mapping of engines' own metrics: recorded shapes, renamed metrics, text as Prometheus reads it."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from monitoring.engine_metrics import READINGS, read

VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="assistant@v1"} 3.0
vllm:num_requests_running{engine="1",model_name="assistant@v1"} 1.0
vllm:num_requests_waiting{engine="0",model_name="assistant@v1"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="assistant@v1",reason="capacity"} 7.0
vllm:kv_cache_usage_perc{engine="0",model_name="assistant@v1"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="assistant@v1"} 0.75
vllm:prefix_cache_queries_total{engine="0",model_name="assistant@v1"} 240.0
vllm:prefix_cache_queries_created{engine="0",model_name="assistant@v1"} 1.7e+09
vllm:prefix_cache_hits_total{engine="0",model_name="assistant@v1"} 128.0
vllm:num_preemptions_total{engine="0",model_name="assistant@v1"} 1.0
vllm:prompt_tokens_total{engine="0",model_name="assistant@v1"} 240.0
vllm:generation_tokens_total{engine="0",model_name="assistant@v1"} 61.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="assistant@v1"} 0.0
process_resident_memory_bytes 1.2e+09
"""
LLAMA = """# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 38
llamacpp:prompt_tokens_cached_total 36
llamacpp:tokens_predicted_total 10
llamacpp:tokens_predicted_seconds_total 1.1578
llamacpp:requests_processing 1
llamacpp:requests_deferred 4
llamacpp:n_busy_slots_per_decode 1
"""


def test_vllm_in_one_vocabulary() -> None:
    found = read(VLLM)
    assert found is not None
    assert found.absent == ()
    assert found.values == {
        "requests_running": 4,
        "requests_waiting": 2,
        "kv_cache_usage_ratio": 0.75,
        "prefix_cache_queries": 240,
        "prefix_cache_hits": 128,
        "preemptions": 1,
        "prompt_tokens": 240,
        "completion_tokens": 61,
    }


def test_llama_cpp_in_the_same_one() -> None:
    found = read(LLAMA)
    assert found is not None
    assert found.absent == ("kv_cache_usage_ratio", "preemptions")
    assert found.values == {
        "requests_running": 1,
        "requests_waiting": 4,
        "prefix_cache_queries": 74,
        "prefix_cache_hits": 36,
        "prompt_tokens": 74,
        "completion_tokens": 10,
    }


def test_an_older_llama_cpp_that_does_not_count_cached_tokens_has_no_prompt_tokens() -> None:
    found = read("llamacpp:prompt_tokens_total 38\nllamacpp:kv_cache_usage_ratio 0.5\n")
    assert found is not None
    assert found.values == {"kv_cache_usage_ratio": 0.5}


@pytest.mark.parametrize(
    ("older", "reading"),
    [
        ("vllm:gpu_cache_usage_perc", "kv_cache_usage_ratio"),
        ("vllm:gpu_prefix_cache_queries_total", "prefix_cache_queries"),
        ("vllm:gpu_prefix_cache_hits_total", "prefix_cache_hits"),
        ("vllm:num_preemption_total", "preemptions"),
    ],
)
def test_renamed_metrics_are_known_and_the_newer_name_wins(older: str, reading: str) -> None:
    found = read(f'{older}{{model_name="m"}} 0.5\n')
    assert found is not None
    assert found.values == {reading: 0.5}
    newer = {"kv_cache_usage_ratio": "vllm:kv_cache_usage_perc", "preemptions": "vllm:num_preemptions_total"}
    name = newer.get(reading, older.replace("gpu_", ""))
    for text in (f"{older} 0.5\n{name} 0.25\n", f"{name} 0.25\n{older} 0.5\n"):
        both = read(text)
        assert both is not None
        assert both.values == {reading: 0.25}


@pytest.mark.parametrize("text", ["", "not metrics at all", "# HELP vllm:num_requests_running x\n", "process_cpu 1\n"])
def test_what_is_no_engines_text_has_no_readings(text: str) -> None:
    assert read(text) is None


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "", "x"])
def test_a_value_that_is_no_number_is_absent(value: str) -> None:
    found = read(f"vllm:num_requests_running 1\nvllm:kv_cache_usage_perc {value}\n")
    assert found is not None
    assert "kv_cache_usage_ratio" in found.absent


LINE_ENDS = "\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
label = st.text(st.characters(codec="utf-8", exclude_characters="\x00" + LINE_ENDS), max_size=20)
series = st.lists(st.tuples(label, st.floats(0, 1e12)), min_size=1, max_size=4, unique_by=lambda pair: pair[0])


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(["prompt_tokens_total", "kv_cache_usage_perc"]), series, min_size=1))
def test_text_is_read_as_prometheus_reads_it(families: dict[str, list[tuple[str, float]]]) -> None:
    """Whatever a label holds: braces, quotes, spaces, numbers."""
    text = "".join(
        f'vllm:{name}{{model_name="{escaped(value)}"}} {number!r}\n'
        for name, found in families.items()
        for value, number in found
    )
    parsed: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            parsed.setdefault(sample.name, []).append(sample.value)
    found = read(text)
    assert found is not None
    expected = {}
    if values := parsed.get("vllm:prompt_tokens_total"):
        expected["prompt_tokens"] = math.fsum(values)
    if values := parsed.get("vllm:kv_cache_usage_perc"):
        expected["kv_cache_usage_ratio"] = max(values)
    assert found.values == pytest.approx(expected)
    assert set(found.values) | set(found.absent) == set(READINGS)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=300))
def test_no_text_breaks_it(text: str) -> None:
    read(text)
    read("vllm:prompt_tokens_total" + text)
