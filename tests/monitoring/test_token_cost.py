"""What hosted versions' tokens cost: beside the bills by device, never in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from monitoring_records import record

from monitoring.cost import NANO, Prices, TokenPrice, token_cost
from monitoring.statement import LedgerView, statement
from monitoring.usage import usage

LIST = TokenPrice(0.15, 0.6)


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_tokens_times_price_to_the_last_billionth(prompt: int, completion: int) -> None:
    found = token_cost("a@cloud", prompt, completion, LIST)
    assert found.nano == prompt * 150 + completion * 600
    assert (found.basis, found.currency) == ("tokens", "USD")


def test_only_hosted_versions_have_a_price_and_no_bill_changes() -> None:
    cloud = record(version="cloud", prompt_tokens=1_000_000, completion_tokens=500_000)
    rows, _ = usage([cloud, record()], [("", ""), ("", "")], lambda replica: None, {})
    view = LedgerView(usage=rows)
    without = statement(view, prices=Prices(), devices={}, stop=10.0)
    made = statement(view, prices=Prices(), devices={}, token_prices={"assistant@cloud": LIST}, stop=10.0)
    assert (without.tokens, without.bills) == ((), made.bills)
    (line,) = made.tokens
    assert (line.version, line.prompt_tokens, line.completion_tokens) == ("assistant@cloud", 1_000_000, 500_000)
    assert line.nano / NANO == pytest.approx(0.15 + 0.30)
    assert made.as_json()["tokens"][0]["basis"] == "tokens"
