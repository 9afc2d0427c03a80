"""What the same tokens would have cost at a hosted API: a price map in LiteLLM's form, looked up and applied.

Owns: what a name in the map stands for, and the comparison. Never: I/O, importing LiteLLM, guessing a price (a model
that is not in the map, or has no price per token there, is unknown).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

NANO: Final = 1_000_000_000
CURRENCY: Final = "USD"
"""The map's prices are in it."""
SAMPLE: Final = "sample_spec"
"""The map's own explanation of its fields."""
CACHED: Final = ("cache_read_input_token_cost", "input_cost_per_token_cache_hit")
TOKEN_MODES: Final = ("chat", "completion", "responses", "embedding")
NEAR_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class HostedPrice:
    """One model of the map; prices per token, as decimal text would have them."""

    name: str
    """Its key in the map."""
    provider: str
    input: Fraction
    cached: Fraction | None
    """For a prompt token that is read from the provider's cache; None where the map has no such price."""
    output: Fraction
    above: tuple[str, ...] = ()
    """Prompt lengths (`200k`) from which the map has other prices, which are not applied."""


@dataclass(frozen=True, slots=True)
class UnknownPrice:
    """A model that cannot be priced."""

    name: str
    why: str
    near: tuple[str, ...]
    """Names of the map that are nearly this one."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What was read and written in a window."""

    uncached: int
    cached: int
    output: int
    successes: int


@dataclass(frozen=True, slots=True)
class HostedCost:
    """The window's tokens at one model's price."""

    model: str
    provider: str
    input_nano: int
    cached_nano: int
    output_nano: int
    is_cached_apart: bool
    """Whether cached prompt tokens had a price of their own; the full price of input otherwise."""
    per_1k_requests: float | None
    own_nano: int | None
    """What the window cost here on the basis `allocated`, idle time included; None where that is in another currency,
    or a part of it cannot be told."""
    above: tuple[str, ...] = ()
    currency: str = CURRENCY

    @property
    def nano(self) -> int:
        return self.input_nano + self.cached_nano + self.output_nano

    @property
    def ratio(self) -> float | None:
        """What it cost here over what it would have cost there; None where either is unknown or there it is 0."""
        return self.own_nano / self.nano if self.own_nano is not None and self.nano else None


def look_up(prices: Mapping[str, Any], name: str) -> HostedPrice | UnknownPrice:
    """The price of `PROVIDER/MODEL` or of the map's own key.

    Tried in turn: the key itself; the part after the first `/` where its provider is the part before it; without a
    provider, the one key that ends in `/NAME`.
    """
    found = _entry(prices, name)
    if found is None:
        return UnknownPrice(name, "the price map does not have it", _near(prices, name))
    key, entry = found
    costs = [entry.get("input_cost_per_token"), entry.get("output_cost_per_token")]
    if entry.get("mode") == "embedding" and costs[1] is None:
        costs[1] = 0.0
    given, made = (_exact(cost) for cost in costs)
    if given is None or made is None or (not given and not made):
        return UnknownPrice(name, "the price map has no price per token for it", ())
    cached = next((price for field in CACHED if (price := _exact(entry.get(field))) is not None), None)
    prefix, suffix = "input_cost_per_token_above_", "_tokens"
    above = sorted(
        field[len(prefix) : -len(suffix)] for field in entry if field.startswith(prefix) and field.endswith(suffix)
    )
    return HostedPrice(key, str(entry.get("litellm_provider", "")), given, cached, made, tuple(above))


def compare(price: HostedPrice, tokens: Tokens, *, own_nano: int | None) -> HostedCost:
    """What `tokens` would have cost at `price`, beside what they cost here (billionths of USD)."""
    parts = (
        price.input * tokens.uncached,
        (price.input if price.cached is None else price.cached) * tokens.cached,
        price.output * tokens.output,
    )
    given, cached, made = (round(part * NANO) for part in parts)
    total = given + cached + made
    return HostedCost(
        model=price.name,
        provider=price.provider,
        input_nano=given,
        cached_nano=cached,
        output_nano=made,
        is_cached_apart=price.cached is not None,
        per_1k_requests=1000 * total / NANO / tokens.successes if tokens.successes else None,
        own_nano=own_nano,
        above=price.above,
    )


def _entry(prices: Mapping[str, Any], name: str) -> tuple[str, Mapping[str, Any]] | None:
    provider, _, model = name.partition("/")
    if name != SAMPLE and isinstance(prices.get(name), Mapping):
        return name, prices[name]
    entry = prices.get(model) if model else None
    if isinstance(entry, Mapping) and entry.get("litellm_provider") == provider:
        return model, entry
    if not model:
        ends = [key for key, one in prices.items() if key.endswith(f"/{name}") and isinstance(one, Mapping)]
        if len(ends) == 1:
            return ends[0], prices[ends[0]]
    return None


def _near(prices: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Names that somebody who wrote `name` may have meant; without its provider's, or without its size."""
    known = [key for key, entry in prices.items() if isinstance(entry, Mapping) and entry.get("mode") in TOKEN_MODES]
    lowered = {key.lower(): key for key in known}
    found = difflib.get_close_matches(name.lower(), lowered, n=NEAR_MAX, cutoff=0.6)
    bare = name.rpartition("/")[2].lower()
    same = [key for key in sorted(lowered) if bare and key.rpartition("/")[2] == bare]
    return tuple(lowered[key] for key in dict.fromkeys([*same, *found]))[:NEAR_MAX]


def _exact(value: Any) -> Fraction | None:
    """The decimal number that stands in the map; None for what is no price."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        return None
    return Fraction(Decimal(repr(value)))


def known(prices: Mapping[str, Any], names: Sequence[str]) -> tuple[list[HostedPrice], list[UnknownPrice]]:
    """The names as prices, and those that have none."""
    looked = [look_up(prices, name) for name in dict.fromkeys(names)]
    return (
        [one for one in looked if isinstance(one, HostedPrice)],
        [one for one in looked if isinstance(one, UnknownPrice)],
    )
