"""What the yard cost, as people ask after it: forecast, budgets, dearer requests, weekly reports, hosted prices.

Owns: when an outlook is made, and which statements a report needs. Never: HTTP, arithmetic (monitoring).
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from monitoring.budgets import Budget, Scope
from monitoring.cost import HOUR_S, Prices
from monitoring.cost_report import Hosted, Report, Week, WeekBooks, report, week_at
from monitoring.hosted_map import PriceMapReader, find
from monitoring.hosted_prices import CURRENCY, Tokens, compare, known
from monitoring.outlook import BASIS, METHOD, Books, Outlook, books_of, books_since, outlook
from monitoring.settle import view
from monitoring.statement import Device, Statement
from registry.errors import RegistryError
from registry.ledger import Ledger
from registry.terminal import UserError
from serving.config import BudgetConfig, YardConfig
from serving.control.accounts import Accounts
from serving.engines.hosted import VENV

log = logging.getLogger("modelyard.costs")

OUTLOOK_S = 60.0
"""How old the outlook may be that a scrape shows."""
FIRST_S = 2.0
"""How long the first scrape waits for one, so that its series are there from the start."""
SHARE_MAX = 0.02
"""The share of time that making outlooks for scrapes may take."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration in force says."""

    budgets: tuple[Budget, ...]
    compare: tuple[str, ...]
    price_map: str

    @classmethod
    def of(cls, config: YardConfig, base: Path) -> Settings:
        """`base` is the configuration file's folder."""
        path = config.prices.price_map
        return cls(
            tuple(_budget(one) for one in config.budgets),
            tuple(config.prices.compare),
            str(base / Path(path).expanduser()) if path else "",
        )


@dataclass(frozen=True, slots=True)
class _Kept:
    """Hours that will not change, and the prices, devices and detail that they were read with."""

    rests_on: tuple[Prices, Mapping[str, Device], bool]
    until: int
    books: Books


class Costs:
    """Answers for one yard."""

    def __init__(
        self,
        accounts: Accounts,
        ledger: Ledger,
        *,
        prices: Callable[[], Prices],
        settings: Callable[[], Settings],
        key_names: Callable[[], Mapping[str, str]] = dict,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._accounts = accounts
        self._prices = prices
        self._ledger = ledger
        self._kept: _Kept | None = None
        self._settings = settings
        self._key_names = key_names
        self._clock = clock
        self._reader = PriceMapReader()
        self._reading = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._took_s = 0.0
        self.latest: Outlook | None = None

    async def refresh(self) -> None:
        """See that `latest` is not old, for scrapes: they wait for the first one a moment, and for no other."""
        age_s = self._clock() - self.latest.at if self.latest else math.inf
        is_due = not 0 <= age_s < max(OUTLOOK_S, self._took_s / SHARE_MAX)
        if is_due and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._refresh())
        if self.latest is None and self._task is not None:
            await asyncio.wait({self._task}, timeout=FIRST_S)

    async def _refresh(self) -> None:
        try:
            async with self._reading:
                await asyncio.to_thread(self._look)
        except (RegistryError, OSError):
            log.exception("the outlook could not be made; metrics show the last one")

    async def outlook(self) -> Outlook:
        """As of now."""
        await self._accounts.step(settle_now=True)
        async with self._reading:
            return await asyncio.to_thread(self._look)

    async def report(self, week: Week | None) -> Report:
        """A week's report; without one, of the last week that is over, or of this one where that had no cost."""
        outlook = await self.outlook()
        return await asyncio.to_thread(self._report, week, outlook)

    async def hosted(self, statement: Statement, names: Sequence[str]) -> Hosted | None:
        """What a statement's tokens would have cost at these models' prices; by default those of the configuration.

        None where nothing is to be compared. `statement` tells versions apart. Raises NotThereError where models are
        named and there is no price map, UserError where it is none.
        """
        if names:
            return await asyncio.to_thread(self._compare, statement, names)
        return await asyncio.to_thread(self._compare_configured, statement)

    def _look(self) -> Outlook:
        began = time.perf_counter()
        now, settings = self._clock(), self._settings()
        self.latest = outlook(
            self._books(now, by_key=any(one.scope.key for one in settings.budgets)), settings.budgets, now=now
        )
        self._took_s = time.perf_counter() - began
        return self.latest

    def _books(self, now: float, *, by_key: bool) -> Books:
        """The books up to now. Hours that are over and divided stay as they were read."""
        since = books_since(now)
        rests_on = (self._prices(), self._accounts.devices(), by_key)
        kept = self._kept if self._kept is not None and self._kept.rests_on == rests_on else None
        start = max(since, kept.until) if kept else since
        found = books_of(
            view(self._ledger, start), *rests_on[:2], self._accounts.sampler.engine_memory(), by_key=by_key
        )
        made = kept.books.then(found) if kept else found
        over = min(found.settled_until or 0.0, now) // HOUR_S * HOUR_S - HOUR_S
        if over > start:
            self._kept = _Kept(rests_on, int(over), made.between(since // HOUR_S * HOUR_S, over))
        return made

    def _report(self, week: Week | None, outlook: Outlook) -> Report:
        now = self._clock()
        state = self._accounts.statement
        if week is None:
            this = week_at(now)
            before = state(this.before.start, this.before.stop, by=("version",))
            week = this.before if any(one.total_nano for one in before.bills) else this
        if week.start > now:
            raise UserError(f"week {week.name} has not begun: name an earlier one")
        stop = min(week.stop, now)
        totals = state(week.start, stop, by=("version",))
        books = WeekBooks(
            hourly=state(week.start, stop, by=("hour", "version", "outcome")),
            keys=state(week.start, stop, by=("outcome", "key")),
            totals=totals,
            before=state(week.before.start, week.before.start + stop - week.start, by=("version", "outcome")),
        )
        compared = self._compare_configured(totals)
        return report(week, books, outlook, at=now, hosted=compared, key_names=self._key_names())

    def _compare_configured(self, statement: Statement) -> Hosted | None:
        names = self._settings().compare
        if not names:
            return None
        try:
            return self._compare(statement, names)
        except UserError as error:
            return Hosted("", problem=str(error))

    def _compare(self, statement: Statement, names: Sequence[str]) -> Hosted:
        found = self._reader.read(find(_packages(), self._settings().price_map))
        if statement.usage_from is not None and statement.start < statement.usage_from and not statement.unit_costs:
            return Hosted(found.source, problem="tokens before this version of the ledger are not known by hour")
        own = [one for one in statement.bills if (one.basis, one.method) == (BASIS, METHOD)]
        here = {line.version for one in own for line in one.lines}
        used = [one for one in statement.usage if one.version in here]
        tokens = Tokens(
            uncached=sum(max(0, one.prompt_tokens - one.cached_tokens) for one in used),
            cached=sum(one.cached_tokens for one in used),
            output=sum(one.completion_tokens for one in used),
            successes=sum(one.requests.get("completed", 0) for one in used),
        )
        is_same = all(one.currency == CURRENCY for one in own)
        own_nano = sum(one.total_nano for one in own) if is_same else None
        prices, unknown = known(found.prices, names)
        costs = tuple(compare(price, tokens, own_nano=own_nano) for price in prices)
        return Hosted(found.source, costs, tuple(unknown))


def _packages() -> list[Path]:
    """Where LiteLLM may be installed: beside ourselves, or in `.venv-hosted`. Nothing is imported."""
    try:
        own = importlib.util.find_spec("litellm")
    except (ImportError, ValueError):
        own = None
    beside = [Path(place).parent for place in (own.submodule_search_locations or ())] if own else []
    return [*beside, *sorted(VENV.glob("lib/python*/site-packages"))]


def _budget(config: BudgetConfig) -> Budget:
    scope = Scope(config.model, config.version, config.key)
    return Budget(config.name, config.amount, config.period, scope, config.alert_at)
