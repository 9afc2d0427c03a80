"""The data pages in a browser, over a yard with a past: content, filters, live figures, charts, what axe says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from console_browser import WIDTHS, Visit, settle, sign_in
from engines.fixtures import FakeEngine
from past import yard_with_a_past
from stack import Stack, external, stack

pytestmark = pytest.mark.system

PAGES = {
    "requests": "/console/requests",
    "request": "/console/requests/req-00003",
    "rollout": "/console/rollout/assistant",
    "compare": "/console/compare?model=assistant&a=v1&b=v2",
    "drift": "/console/drift",
    "cost": "/console/cost",
}
See = Callable[..., Visit]


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with yard_with_a_past(tmp_path_factory.mktemp("past")) as made:
        yield made


@pytest.fixture(scope="module")
def see(browser: Any, past: Stack) -> See:
    """`with see("/console/cost", width=360) as one: one.page…`"""
    own = sign_in(past.admin_url, (past.state / "admin.token").read_text().strip())

    def visit(path: str, *, width: int = 1280, scheme: str = "light", signed_in: bool = True) -> Visit:
        cookie = own if signed_in else {}
        return Visit(browser, past.admin_url, path, cookie, width=width, scheme=scheme, height=900)

    return visit


@pytest.mark.parametrize("name", PAGES)
def test_pages_fit_three_widths_in_light_and_dark_and_axe_finds_nothing(see: See, name: str) -> None:
    with see(PAGES[name]) as one:
        for width, scheme in zip(WIDTHS, ("dark", "light", "light"), strict=True):
            one.page.emulate_media(color_scheme=scheme)
            one.page.set_viewport_size({"width": width, "height": 900})
            one.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 60)))")
            one.fits()
            if width != 768:
                one.axe()


def test_requests_are_filtered_by_keyboard_and_lead_to_one_with_its_text(see: See) -> None:
    with see(PAGES["requests"]) as one:
        page = one.page
        assert page.locator("tbody tr").count() == 50
        assert "Answered" in page.locator("tbody").inner_text()
        page.get_by_label("How it ended").focus()
        page.keyboard.type("Failed")
        page.get_by_role("button", name="Show").press("Enter")
        page.wait_for_url("**outcome=failed**")
        badges = page.locator("tbody .badge").all_inner_texts()
        assert badges
        assert {re.sub(r"\W", "", text) for text in badges} == {"Failed"}
        one.go("/console/requests?order=slowest&arm=v2")
        first, second = (page.locator("tbody tr").nth(place).locator("td").nth(3).inner_text() for place in (0, 1))
        assert float(first.split()[0]) >= float(second.split()[0])
        one.go(PAGES["requests"])
        page.get_by_role("link", name="Older").click()
        page.wait_for_url("**before=**")
        assert page.locator("tbody tr").count() == 50


def test_a_request_shows_where_its_time_went_who_answered_and_what_was_said(see: See) -> None:
    with see(PAGES["request"]) as one:
        text = one.page.locator("main").inner_text()
        for wanted in ("Where the time went", "First token", "What was said", "capital of France", "1 × email", "mk_"):
            assert wanted in text
        label = one.page.locator("svg.timeline").get_attribute("aria-label")
        assert label is not None
        assert "first token" in label
        one.go("/console/requests/req-00399")
        assert "It was not among the requests that are sampled." in one.page.locator("main").inner_text()


def test_what_clients_wrote_needs_somebody_who_is_signed_in(see: See) -> None:
    for path in (PAGES["requests"], PAGES["request"], PAGES["drift"]):
        with see(path, signed_in=False) as one:
            assert "/console/sign-in" in one.page.url
    with see(PAGES["rollout"], signed_in=False) as one:
        assert one.page.locator("h1").inner_text() == "Rollout of assistant"


def test_a_new_request_appears_by_itself(see: See, past: Stack) -> None:
    with see(PAGES["requests"]) as one:
        body = {"model": "assistant", "messages": [{"role": "user", "content": "one more"}]}
        answer = httpx.post(f"{past.url}/v1/chat/completions", json=body, trust_env=False, timeout=20)
        link = f"Request {answer.headers['x-request-id']}"
        settle(lambda: one.page.get_by_role("link", name=link).count(), 20.0)
        one.page.get_by_role("link", name=link).click()
        one.page.wait_for_url("**/requests/**")
        assert "one more" in one.page.locator("main").inner_text()


def test_a_rollout_shows_arms_its_history_the_gate_and_the_split(see: See) -> None:
    with see(PAGES["rollout"]) as one:
        page = one.page
        text = page.locator("main").inner_text()
        for wanted in (
            "changed: v1 90% → 50%, v2 10% → 50%",
            "v2 is not worse than v1",
            "First token, 95 of 100 within",
            "The gate",
        ):
            assert wanted in text
        assert page.locator("[data-chart] canvas").count() == 1
        page.get_by_text("The same as a table").press("Enter")
        table = page.get_by_role("region", name="Traffic over time, as a table")
        assert table.locator("tbody tr").last.locator("td").all_inner_texts() == ["50%", "50%"]
        with page.expect_response(lambda said: "/console/rollout/" in said.url, timeout=20_000):
            pass
        page.wait_for_timeout(100)
        assert page.locator("[data-chart] canvas").count() == 1
        assert table.is_visible()
        page.get_by_role("button", name="Change weights").click()
        settle(lambda: page.locator("dialog[open]").count() == 1)


def test_two_versions_side_by_side_say_what_is_different_and_how_they_do(see: See) -> None:
    with see(PAGES["compare"]) as one:
        page = one.page
        text = page.locator("main").inner_text()
        for wanted in ("git_commit", "4f2c91d", "difference -0.008 to 0.028", "regression-core", "not finished"):
            assert wanted in text
        assert page.locator("[data-chart] canvas").count() == 2
        page.locator("select[name=a]").select_option("v3")
        page.locator("select[name=b]").select_option("v4")
        page.get_by_role("button", name="Compare").click()
        page.wait_for_url("**a=v3**b=v4**")
        text = page.locator("main").inner_text()
        assert "SmolLM2-135M-Instruct.Q4_0.gguf" in text
        assert "No gate compared these two." in text
        assert page.locator(".diff .added").count() == 3
        one.go("/console/compare?model=embedder")
        assert "embedder has one version." in page.locator("main").inner_text()


def test_drift_names_what_moved_and_how_to_begin_where_nothing_is_pinned(see: See) -> None:
    with see(PAGES["drift"]) as one:
        page = one.page
        first = page.locator("section.drift").first
        assert "assistant@v2" in first.inner_text()
        assert "input_tokens" in first.inner_text()
        assert "300 / 240" in first.inner_text()
        first.get_by_text("Requests that moved the score most").click()
        assert first.locator("details[open] table a").count() > 0
        text = page.locator("main").inner_text()
        assert "No request of embedder is sampled" in text
        assert "goes on" in text
        assert page.locator("[data-chart] canvas").count() == 1


def test_cost_is_what_the_statement_says(see: See, past: Stack) -> None:
    said = past.admin("/cost?since=24h")
    totals = {one["basis"]: one["total"] for one in said["bills"] if one["method"] == "inflight"}
    with see(PAGES["cost"]) as one:
        page = one.page
        tiles = page.locator(".tile .figure").all_inner_texts()
        assert tiles[:3] == [f"{totals[basis]:,.2f} USD" for basis in ("allocated", "busy", "energy")]
        text = page.locator("main").inner_text()
        for wanted in ("idle, kept ready", "copies (shadow)", "failed", "per 1M output tokens", "nearly spent"):
            assert wanted in text
        assert page.locator("[data-chart] canvas").count() == 1
        page.get_by_label("Divided").select_option("tokens")
        page.get_by_label("Time").select_option("all")
        page.get_by_role("button", name="Show").click()
        page.wait_for_url("**window=all**method=tokens**")
        assert "by tokens" in page.locator("main").inner_text()


def test_a_fresh_yard_says_what_to_do_on_every_page(engines: dict[str, FakeEngine], tmp_path: Path) -> None:
    urls = {label: engines[label].url for label in ("v1", "v2")}
    with stack(tmp_path, external(urls, {"v1": 10_000})) as made:
        made.up(timeout_s=120)
        token = (made.state / "admin.token").read_text().strip()
        own = sign_in(made.admin_url, token)
        with httpx.Client(base_url=f"{made.admin_url}/console", cookies=own, trust_env=False, timeout=20) as client:
            model = made.admin("/models")[0]["model"]
            for path, wanted, remedy in (
                ("/requests", "No request came in yet.", f"curl {made.url}/v1/chat/completions"),
                (f"/rollout/{model}", "No request came since then.", f"curl {made.url}/v1/chat/completions"),
                ("/compare", "No gate compared these two.", "modelyard eval gate release.yaml"),
                ("/drift", "is sampled, so nothing can be compared.", "samples: {rate: 0.1"),
                ("/cost", "No budget is set.", "budgets: "),
            ):
                answer = client.get(path)
                assert answer.status_code == 200, answer.text
                assert wanted in answer.text
                assert remedy in answer.text
            for path in ("/requests/nothing", "/rollout/nothing", "/compare?model=nothing", "/drift?model=nothing"):
                answer = client.get(path)
                assert answer.status_code == 404
                assert "nothing" in answer.text
            assert client.get("/requests?order=sideways").status_code == 422
