"""The statement of the whole ledger, again and again: hours that are over are added up once.

Owns: how far the sums are kept. Never: what they are of (`tally`), prices, clocks.
"""

from __future__ import annotations

from collections.abc import Mapping

from monitoring.cost import Prices, TokenPrice
from monitoring.settle import HELD, SETTLED, view_of
from monitoring.statement import DEFAULT_BY, Device, Statement, conclude
from monitoring.tally import PriceList, Tally
from registry.ledger import HOUR_S, Ledger, LedgerSnapshot


class RunningStatement:
    """Of one ledger. Not thread-safe.

    An hour is over once intervals are divided and held seconds are written beyond its end; one more hour is left open
    for what comes late. Nothing that is added to an hour later on is seen until the control plane starts again.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._closed = Tally(DEFAULT_BY)
        self._until: int | None = None
        self._basis: object = None

    def statement(
        self,
        *,
        prices: Prices,
        devices: Mapping[str, Device],
        reserved_bytes: Mapping[str, float],
        token_prices: Mapping[str, TokenPrice],
        stored_bytes: Mapping[str, float],
        stop: float,
    ) -> Statement:
        """As `monitoring.statement.statement` of all there is."""
        with self._ledger.snapshot() as state:
            changes = state.price_changes()
            self._forget_where_other((changes[:1], prices if not changes else None, devices))
            price_list = PriceList(changes, prices)
            until = _over(state)
            if until is not None and until > (self._until or 0):
                first = view_of(state, self._until, until)
                self._closed.add(first, price_list, devices, reserved_bytes)
                self._until = until
            rest = view_of(state, self._until)
        whole = self._closed.copy()
        whole.add(rest, price_list, devices, reserved_bytes)
        return conclude(
            whole,
            rest,
            prices=prices,
            token_prices=token_prices,
            stored_bytes=stored_bytes,
            stop=stop,
            from_start=True,
        )

    def _forget_where_other(self, basis: object) -> None:
        """Begin anew where what the sums were made with is not what it was: devices, or the prices of the time before
        any were written down. Changes since then begin in the future, in hours that are not over."""
        if basis != self._basis:
            self._basis, self._closed, self._until = basis, Tally(DEFAULT_BY), None


def _over(state: LedgerSnapshot) -> int | None:
    """Up to where hours are over."""
    settled, held = state.cursor(SETTLED), state.cursor(HELD)
    if settled is None or held is None:
        return None
    return int(min(settled, held) // HOUR_S) * HOUR_S - HOUR_S
