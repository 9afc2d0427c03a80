"""What it would cost hosted: names are found or said to be unknown, cached tokens have their own price."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from components import missing
from hypothesis import given
from hypothesis import strategies as st

from monitoring.hosted_map import FILE, PriceMapReader, find
from monitoring.hosted_prices import HostedPrice, Tokens, UnknownPrice, compare, known, look_up
from registry.terminal import NotThereError, UserError

MAP = {
    "sample_spec": {"input_cost_per_token": 0.0, "output_cost_per_token": 0.0, "mode": "one of"},
    "small-1": {
        "litellm_provider": "acme",
        "mode": "chat",
        "input_cost_per_token": 1.5e-07,
        "output_cost_per_token": 6e-07,
        "cache_read_input_token_cost": 7.5e-08,
        "input_cost_per_token_above_200k_tokens": 3e-07,
    },
    "globex/small-2": {
        "litellm_provider": "globex",
        "mode": "chat",
        "input_cost_per_token": 1e-06,
        "output_cost_per_token": 2e-06,
    },
    "embed-1": {"litellm_provider": "acme", "mode": "embedding", "input_cost_per_token": 1e-07},
    "painter": {"litellm_provider": "acme", "mode": "image_generation", "output_cost_per_image": 0.04},
    "free-1": {"litellm_provider": "acme", "mode": "chat", "input_cost_per_token": 0, "output_cost_per_token": 0},
}


def test_cached_tokens_are_priced_apart_where_their_price_is_known() -> None:
    tokens = Tokens(uncached=1_000_000, cached=400_000, output=100_000, successes=500)
    price = look_up(MAP, "acme/small-1")
    assert isinstance(price, HostedPrice)
    assert (price.name, price.cached, price.above) == ("small-1", Fraction(75, 10**9), ("200k",))
    found = compare(price, tokens, own_nano=480_000_000)
    assert (found.input_nano, found.cached_nano, found.output_nano) == (150_000_000, 30_000_000, 60_000_000)
    assert (found.nano, found.per_1k_requests, found.ratio, found.is_cached_apart) == (240_000_000, 0.48, 2.0, True)
    other = look_up(MAP, "small-2")
    assert isinstance(other, HostedPrice)
    full = compare(other, tokens, own_nano=None)
    assert (full.cached_nano, full.is_cached_apart, full.ratio) == (400_000_000, False, None)


def test_a_model_without_a_price_is_unknown_and_near_names_are_given() -> None:
    prices, unknown = known(MAP, ["acme/smal-1", "initech/small-2", "painter", "free-1", "sample_spec", "embed-1"])
    assert [one.name for one in prices] == ["embed-1"]
    assert [one.name for one in unknown] == ["acme/smal-1", "initech/small-2", "painter", "free-1", "sample_spec"]
    assert unknown[0] == UnknownPrice("acme/smal-1", "the price map does not have it", ("small-1",)) or unknown[0].near
    assert unknown[1].near[0] == "globex/small-2"
    assert unknown[2].why == unknown[3].why == "the price map has no price per token for it"


@given(st.text(max_size=30))
def test_no_name_makes_it_guess(name: str) -> None:
    found = look_up(MAP, name)
    assert isinstance(found, UnknownPrice) or found.name in MAP


@given(*(st.integers(0, 10**12) for _ in range(3)))
def test_the_parts_are_the_whole(uncached: int, cached: int, output: int) -> None:
    price = look_up(MAP, "small-1")
    assert isinstance(price, HostedPrice)
    found = compare(price, Tokens(uncached, cached, output, 0), own_nano=None)
    assert abs(found.nano - (uncached * 150 + cached * 75 + output * 600)) <= 3
    assert found.per_1k_requests is None


def test_the_map_is_found_read_once_and_again_when_it_changed(tmp_path: Path) -> None:
    with pytest.raises(NotThereError, match="make hosted"):
        find([tmp_path])
    with pytest.raises(NotThereError, match=r"there is no price map .*nowhere"):
        find([tmp_path], str(tmp_path / "nowhere.json"))
    path = tmp_path / "litellm" / FILE
    path.parent.mkdir()
    (tmp_path / "litellm-1.2.3.dist-info").mkdir()
    path.write_text(json.dumps(MAP))
    reader = PriceMapReader()
    found = reader.read(find([tmp_path]))
    assert found.source == "LiteLLM 1.2.3"
    assert reader.read(path) is found
    path.write_text(json.dumps(MAP | {"new": {}}))
    assert "new" in reader.read(path).prices
    for text in ("[]", "{}", "no JSON"):
        path.write_text(text)
        with pytest.raises(UserError, match="price map"):
            reader.read(path)


@pytest.mark.hosted
def test_litellms_own_map_has_prices() -> None:
    folders = sorted((Path(__file__).parents[2] / ".venv-hosted" / "lib").glob("python*/site-packages"))
    try:
        path = find(folders)
    except NotThereError:
        missing("LiteLLM's price map", "make hosted")
    found = PriceMapReader().read(path)
    assert found.source.startswith("LiteLLM 1.")
    prices, unknown = known(found.prices, ["openai/gpt-4o-mini", "gpt-4o-mni", "assistant"])
    assert prices[0].input < prices[0].output
    assert prices[0].cached is not None
    assert "gpt-4o-mini" in unknown[0].near
    assert [one.name for one in unknown] == ["gpt-4o-mni", "assistant"]
