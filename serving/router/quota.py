"""What one API key may use: requests and tokens a minute, requests at a time, and a budget.

Owns: the arithmetic of a key's limits over cells that workers share. Never: I/O, clocks (times come in as arguments),
choosing which key a request has.

A limit of L a minute is a bucket that holds L and fills by L / 60 a second: a whole minute's worth may come at once,
and over any time t no more than L + L / 60 * t comes through.

**One bucket over several workers.** Each worker only ever adds to a number of its own, what it has `used`; U is the sum
over workers. As long as the bucket does not overflow, its level is `line + rate * now - U` with a `line` that stays the
same. Where it would overflow the level is cut to L, and the line falls. So all that there is to agree on is the lowest
line, which each worker writes for itself: no lock, one writer per number, and no history that one of them could miss.
Two workers that take the last token in the same microsecond leave the level below 0, which is then waited for: what is
let through over a time is exact but for what that instant lets by, at most one request per further worker.

**Tokens.** Nobody knows a request's tokens before it has run. It is charged an estimate when it comes in (its bytes / 4
and its `max_tokens`), and what the engine reported when it ends: over time the count is the engine's own, and the level
may fall below 0 for a while. An estimate above the limit needs a full bucket, so that no request is refused for ever.
"""

from __future__ import annotations

from datetime import UTC, datetime
from math import ceil, inf
from typing import Final, Literal

from serving.errors import ApiError
from serving.router.counters import Row
from serving.router.table import Key

INFLIGHT: Final = 1
REQUESTS_USED, REQUESTS_LINE, REQUESTS_LIMIT = 2, 3, 4
TOKENS_USED, TOKENS_LINE, TOKENS_LIMIT = 5, 6, 7
PERIOD, BUDGET_TOKENS, BUDGET_ENGINE_S = 8, 9, 10
BYTES_PER_TOKEN: Final = 4
TOKENS_MAX: Final = 10**9
"""A larger `max_tokens` is the engine's to judge."""
ROUNDING: Final = 1e-6
"""Levels are sums of floats: this far below a whole token still is that token."""
CONCURRENCY_RETRY_S: Final = 1
DAY_S: Final = 86_400.0

PeriodKind = Literal["day", "month", "total"]


def estimate_tokens(body_bytes: int, max_tokens: object, context_tokens: int) -> int:
    """What a request is charged when it comes in: its prompt by its bytes, at most the model's context (an image has
    more bytes than tokens), and what it may generate at most, where it says."""
    prompt = body_bytes // BYTES_PER_TOKEN
    if 0 < context_tokens < prompt:
        prompt = context_tokens
    if isinstance(max_tokens, (int, float)) and 0 < max_tokens < TOKENS_MAX:
        return prompt + int(max_tokens)
    return prompt


class Bucket:
    """`limit` a minute of `what`, shared by all workers. `used`, `line` and `kept` are the cells that it lives in."""

    __slots__ = ("_cells", "_kept", "_line", "_says_limit", "_says_reset", "_used", "limit", "rate")

    def __init__(self, what: bytes, cells: Row, used: int, line: int, kept: int, limit: int, now: float) -> None:
        self._cells = cells
        self._used = used
        self._line = line
        self._kept = kept
        self._says_limit = b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: " % (what, limit, what)
        self._says_reset = b"\r\nx-ratelimit-reset-%b: " % what
        self.limit = limit
        self.rate = limit / 60.0
        before = cells.own(kept)
        if before != limit:
            start = inf  # full, unless another worker knows better
            if before:
                start = min(self._level(now, before), limit) - self.rate * now + cells.total(used)
            cells.put(line, start)
            cells.put(kept, limit)

    def level(self, now: float) -> float:
        """What may be taken now; below 0 where more was used than was charged."""
        level = self._level(now, self.limit)
        if level > self.limit:
            self._cells.put(self._line, self.limit - self.rate * now + self._cells.total(self._used))
            return self.limit
        return level

    def take(self, amount: float) -> None:
        """Use so much; less than 0 gives back."""
        self._cells.add(self._used, amount)

    def wait_s(self, level: float, amount: float) -> float:
        """Until `amount` may be taken; 0 where it may be now."""
        short = (amount if amount < self.limit else self.limit) - level - ROUNDING
        return short / self.rate if short > 0 else 0.0

    def headers(self, level: float) -> bytes:
        """The `x-ratelimit-…` lines that go with this level."""
        remaining = level + ROUNDING if level > 0 else 0.0
        reset_s = (self.limit - level) / self.rate if level < self.limit else 0.0
        return b"%b%d%b%.3fs\r\n" % (self._says_limit, remaining, self._says_reset, reset_s)

    def _level(self, now: float, limit: float) -> float:
        line = self._cells.lowest_where(self._line, self._kept, limit)
        level = line + limit / 60.0 * now - self._cells.total(self._used)
        return min(level, limit) if limit != self.limit else level


_KINDS: Final[dict[str, int]] = {"day": 1_000_000, "month": 2_000_000, "total": 3_000_000}


def period_of(kind: PeriodKind, wall: float) -> tuple[int, float]:
    """The number of the budget period in which `wall` (Unix time) lies, and when it ends: UTC days and months."""
    if kind == "day":
        day = int(wall // DAY_S)
        return _KINDS[kind] + day, (day + 1) * DAY_S
    if kind == "month":
        at = datetime.fromtimestamp(wall, UTC)
        end = datetime(at.year + at.month // 12, at.month % 12 + 1, 1, tzinfo=UTC)
        return _KINDS[kind] + at.year * 12 + at.month, end.timestamp()
    return _KINDS[kind], inf


class Budget:
    """Tokens and engine seconds per period. What was used in an earlier period is forgotten when a new one begins."""

    __slots__ = ("_cells", "_ends_at", "_kind", "_period", "engine_s", "tokens")

    def __init__(self, cells: Row, key: Key) -> None:
        self._cells = cells
        self._kind = key.budget_period
        self._period = 0
        self._ends_at = 0.0
        self.tokens = key.budget_tokens
        self.engine_s = key.budget_engine_s

    def refusal(self, wall: float, tokens: float) -> ApiError | None:
        """Why a request of so many tokens may not begin."""
        if wall >= self._ends_at:
            self._roll(wall)
        if limit := self.tokens:
            used = self._cells.total_where(BUDGET_TOKENS, PERIOD, self._period)
            if used >= limit or used + min(tokens, limit) > limit:
                return self._used_up(limit, "tokens", used, wall)
        if self.engine_s:
            used = self._cells.total_where(BUDGET_ENGINE_S, PERIOD, self._period)
            if used >= self.engine_s:
                return self._used_up(self.engine_s, "engine seconds", used, wall)
        return None

    def take(self, tokens: float) -> int:
        """Charge tokens to the period of the last `refusal`; returns its number."""
        self._cells.add(BUDGET_TOKENS, tokens)
        return self._period

    def settle(self, wall: float, period: int, charged: float, tokens: float, engine_s: float) -> None:
        """What was charged in `period` turned out to be `tokens` and `engine_s`. It counts where it ends."""
        if wall >= self._ends_at:
            self._roll(wall)
        self._cells.add(BUDGET_TOKENS, tokens - charged if period == self._period else tokens)
        self._cells.add(BUDGET_ENGINE_S, engine_s)

    def _used_up(self, limit: float, what: str, used: float, wall: float) -> ApiError:
        each = "" if self._kind == "total" else f" per {self._kind}"
        return ApiError(
            429,
            f"This key's budget of {limit:g} {what}{each} has no room for this request: {used:.0f} are used.",
            code="insufficient_quota",
            retry_after_s=0 if self._ends_at == inf else max(1, ceil(self._ends_at - wall)),
        )

    def _roll(self, wall: float) -> None:
        """Begin the period in which `wall` lies."""
        cells = self._cells
        period, self._ends_at = period_of(self._kind, wall)
        before = int(cells.own(PERIOD))
        if before > period and before // 1_000_000 == period // 1_000_000:
            period = before  # the clock was set back: what is used stays used
        self._period = period
        if before != period:
            cells.put(BUDGET_TOKENS, 0.0)
            cells.put(BUDGET_ENGINE_S, 0.0)
            cells.put(PERIOD, period)


class Charge:
    """What one request was charged when it came in; settled once, when it ends."""

    __slots__ = ("headers", "limits", "period", "tokens")

    def __init__(self, limits: KeyLimits, tokens: int, period: int, headers: bytes) -> None:
        self.limits = limits
        self.tokens = tokens
        self.period = period
        self.headers = headers
        """The `x-ratelimit-…` lines of its answer."""


class KeyLimits:
    """One key in one worker. Everything that changes is in the cells: a new table makes a new one over the same."""

    __slots__ = ("_budget", "_cells", "_concurrency_max", "_requests", "_tokens", "key")

    def __init__(self, key: Key, cells: Row, now: float) -> None:
        self.key = key
        self._cells = cells
        self._concurrency_max = key.concurrency_max
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self._budget: Budget | None = None
        if key.requests_per_minute:
            cell = (REQUESTS_USED, REQUESTS_LINE, REQUESTS_LIMIT)
            self._requests = Bucket(b"requests", cells, *cell, key.requests_per_minute, now)
        if key.tokens_per_minute:
            cell = (TOKENS_USED, TOKENS_LINE, TOKENS_LIMIT)
            self._tokens = Bucket(b"tokens", cells, *cell, key.tokens_per_minute, now)
        if key.budget_tokens or key.budget_engine_s:
            self._budget = Budget(cells, key)

    def enter(self, now: float, wall: float, tokens: int) -> Charge | ApiError:
        """Charge a request of an estimated number of tokens, or say why it may not begin: then nothing is charged.

        `now` is a clock that all workers share and that never goes back, `wall` the Unix time.
        """
        cells = self._cells
        cells.add(INFLIGHT, 1.0)  # first ours, then the sum: of two workers at the bound, at least one sees the other
        if self._concurrency_max and cells.running(INFLIGHT) > self._concurrency_max:
            cells.add(INFLIGHT, -1.0)
            return _limited("requests at a time", self._concurrency_max, CONCURRENCY_RETRY_S)
        requests, of_tokens, budget = self._requests, self._tokens, self._budget
        requests_level = tokens_level = 0.0
        error: ApiError | None = None
        if requests is not None:
            requests_level = requests.level(now) - 1.0
            wait_s = requests.wait_s(requests_level, 0.0)
            if wait_s:
                error = _limited("requests per minute", requests.limit, wait_s)
        if of_tokens is not None and error is None:
            tokens_level = of_tokens.level(now)
            wait_s = of_tokens.wait_s(tokens_level, tokens)
            if wait_s:
                error = _limited("tokens per minute", of_tokens.limit, wait_s)
            tokens_level -= tokens
        if budget is not None and error is None:
            error = budget.refusal(wall, tokens)
        if error is not None:
            cells.add(INFLIGHT, -1.0)
            return error
        if requests is not None:
            requests.take(1.0)
        if of_tokens is not None:
            of_tokens.take(tokens)
        period = budget.take(tokens) if budget is not None else 0
        return Charge(self, tokens, period, self._headers(requests_level, tokens_level))

    def settle(self, charge: Charge, now: float, wall: float, *, tokens: int, engine_s: float, served: bool) -> None:
        """A request has ended: count what it used. One that no engine saw (`served`) costs nothing."""
        if not self._cells.holds():
            return
        self._cells.add(INFLIGHT, -1.0)
        if self._requests is not None and not served:
            self._requests.take(-1.0)
        if self._tokens is not None:
            self._tokens.level(
                now
            )  # what overflowed until now is gone: it must not pay for what is used beyond the charge
            self._tokens.take(tokens - charge.tokens)
        if self._budget is not None:
            self._budget.settle(wall, charge.period, charge.tokens, tokens, engine_s)

    def headers(self, now: float) -> bytes:
        """The `x-ratelimit-…` lines of a refusal."""
        return self._headers(
            self._requests.level(now) if self._requests is not None else 0.0,
            self._tokens.level(now) if self._tokens is not None else 0.0,
        )

    def _headers(self, requests_level: float, tokens_level: float) -> bytes:
        lines = b""
        if self._requests is not None:
            lines = self._requests.headers(requests_level)
        if self._tokens is not None:
            lines += self._tokens.headers(tokens_level)
        return lines


def has_limits(key: Key) -> bool:
    """Whether anything is to be counted for the key."""
    return bool(
        key.requests_per_minute
        or key.tokens_per_minute
        or key.concurrency_max
        or key.budget_tokens
        or key.budget_engine_s
    )


def _limited(what: str, limit: int, wait_s: float) -> ApiError:
    wait = max(1, ceil(wait_s))
    return ApiError(
        429,
        f"This key is limited to {limit} {what}: try again in {wait} s.",
        code="rate_limit_exceeded",
        retry_after_s=wait,
    )
