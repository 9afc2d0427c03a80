"""What follows a failed attempt, over every kind of failure: pure decisions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serving.router.retry import RESERVE, RESERVE_PER_S, Again, Budget, Failure, backoff, decide, retry_after_s
from serving.router.table import Retry

statuses = st.sampled_from([401, 403, 429, 500, 502, 503, 504])
failures = st.one_of(
    st.sampled_from(["silent", "unreached", "reset"]).map(lambda kind: Failure(kind, kind)),
    st.builds(
        lambda status, wait: Failure("status", f"status_{status}", status, wait),
        statuses,
        st.one_of(st.none(), st.floats(0, 100)),
    ),
)
elsewheres = st.sampled_from(["", "replica", "version"])
retries = st.builds(
    Retry,
    attempts_max=st.integers(1, 10),
    backoff_s=st.floats(0.001, 1),
    backoff_max_s=st.floats(0.001, 5),
    retry_after_max_s=st.floats(0, 10),
)
jitters = st.floats(0, 1, exclude_max=True)


@given(failures, st.integers(1, 12), elsewheres, retries, jitters)
def test_whatever_fails(failure: Failure, tries: int, elsewhere: str, retry: Retry, jitter: float) -> None:
    again = decide(failure, tries=tries, elsewhere=elsewhere, retry=retry, jitter=jitter)  # type: ignore[arg-type]
    if again is None:
        return
    if not again.same:
        assert elsewhere
        assert again.wait_s == 0
        return
    assert failure.kind != "silent"
    assert failure.status not in (401, 403)
    assert tries < retry.attempts_max
    assert again.wait_s <= max(retry.backoff_max_s, retry.retry_after_max_s)
    if failure.retry_after_s is not None:
        assert again.wait_s >= failure.retry_after_s


@given(failures, retries, jitters)
def test_it_ends(failure: Failure, retry: Retry, jitter: float) -> None:
    """One replica that fails alike each time is left in the end."""
    tries = 1
    while decide(failure, tries=tries, elsewhere="", retry=retry, jitter=jitter) is not None:
        tries += 1
    assert tries <= retry.attempts_max


def test_another_replica_comes_before_waiting_but_after_one_500() -> None:
    retry = Retry()
    assert decide(Failure("status", "", 503), tries=1, elsewhere="replica", retry=retry, jitter=0) == Again(same=False)
    once = decide(Failure("status", "", 500), tries=1, elsewhere="replica", retry=retry, jitter=0)
    assert once is not None
    assert once.same
    assert decide(Failure("status", "", 500), tries=2, elsewhere="replica", retry=retry, jitter=0) == Again(same=False)


@given(retries, st.integers(1, 20), jitters)
def test_waits_grow_and_stay_in_the_upper_half(retry: Retry, tries: int, jitter: float) -> None:
    whole = min(retry.backoff_max_s, retry.backoff_s * 2 ** (tries - 1))
    assert whole / 2 <= backoff(retry, tries, jitter) <= whole


@given(st.floats(0, 1), st.lists(st.one_of(st.just(None), st.floats(0, 5)), max_size=200))
def test_the_budget_gives_no_more_than_the_share_and_the_reserve(share: float, steps: list[float | None]) -> None:
    """None is a request; a number is time that passes, with as many withdrawals as the budget grants."""
    budget, now, requests, granted = Budget(share, 0.0), 0.0, 0, 0
    for step in steps:
        if step is None:
            requests += 1
            budget.deposit()
        else:
            now += step
            while budget.withdraw(now):
                granted += 1
    assert granted <= share * requests + RESERVE + now * RESERVE_PER_S + 1e-6


def test_a_share_of_nothing_grants_nothing() -> None:
    assert not Budget(0.0, 0.0).withdraw(100.0)


def test_retry_after_is_read_in_seconds_only() -> None:
    assert retry_after_s(b" 12 ") == 12.0
    assert retry_after_s(b"Wed, 21 Oct 2015 07:28:00 GMT") is None
    assert retry_after_s(b"-1") is None
    assert retry_after_s(b"1" * 400) is None
