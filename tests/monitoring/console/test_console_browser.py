"""The console in a real browser on a real yard: what it shows, what it does, by keyboard, live, in every width."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from console_browser import settle
from engines.fixtures import FakeEngine
from stack import Stack

LOCAL = "local@v1/0"


def weights(yard: Stack) -> dict[str, int]:
    return dict(yard.admin("/models/assistant/route")["weights"])


def engine(yard: Stack, replica: str) -> dict[str, Any]:
    return next(one for one in yard.admin("/status")["engines"] if one["id"] == replica)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/console/", "overview"),
        ("/console/engines", "engines"),
        (f"/console/engines/{LOCAL}/log", "log"),
        ("/console/audit", "audit"),
        ("/console/actions/weights?model=assistant", "weights"),
        ("/console/sign-in", "sign-in"),
    ],
)
def test_pages_fit_and_are_accessible(looks_right: Callable[[str, str], None], path: str, name: str) -> None:
    looks_right(path, name)


def test_the_overview_says_what_serves_and_what_it_costs(visit: Any, yard: Stack) -> None:
    with visit("/console/") as one:
        page = one.page
        assert page.title() == "Overview · Modelyard"
        card = page.locator("section.card", has=page.get_by_role("heading", name="assistant"))
        assert card.get_by_role("img").get_attribute("aria-label") == "v1 90%, v2 10%"
        assert card.locator("tbody tr").count() == 3
        assert "champion" in card.locator("tbody tr").first.inner_text()
        served = yard.admin("/status")["models"][0]["versions"][0]
        assert served["requests"] > 40
        tiles = page.locator(".tile").all_inner_texts()
        cost = next(tile for tile in tiles if tile.startswith("Cost since"))
        assert re.search(r"\d USD", cost)
        settle(lambda: page.locator("figure.chart canvas").count() >= 3, 25)
        label = page.locator("#chart-requests [role=img]").get_attribute("aria-label")
        assert "assistant@v1 at most" in label
        assert page.locator("main").inner_text().count("Internal") == 0


def test_it_is_live_and_takes_nothing_from_who_reads(visit: Any, yard: Stack) -> None:
    with visit("/console/") as one:
        page = one.page
        page.locator(".glossary summary").click()
        button = page.get_by_role("button", name="Change weights of assistant")
        button.focus()
        page.evaluate("scrollTo(0, 300)")
        before = page.get_by_text("Running for").locator("..").inner_text()
        settle(lambda: page.get_by_text("Running for").locator("..").inner_text() != before)
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Change weights of assistant"
        assert page.evaluate("scrollY") == 300
        assert page.locator(".glossary").get_attribute("open") is not None, "what was opened stays open"

        page.get_by_role("button", name="Live").click()
        assert page.get_by_role("button", name="Held").get_attribute("aria-pressed") == "false"
        page.wait_for_timeout(300)
        held = len(one.asked)
        page.wait_for_timeout(2300)
        assert len(one.asked) == held, "held still: it asks for nothing"
        page.get_by_role("button", name="Held").click()
        settle(lambda: page.wait_for_timeout(50) or len(one.asked) > held)
        page.evaluate("Object.defineProperty(document, 'hidden', {get: () => true})")
        page.wait_for_timeout(300)
        hidden = len(one.asked)
        page.wait_for_timeout(2300)
        assert len(one.asked) == hidden, "nobody looks: it asks for nothing"


def test_an_action_is_taken_while_the_page_waits_to_be_drawn(visit: Any) -> None:
    with visit("/console/") as one:
        page, held = one.page, []

        def hold(route: Any) -> None:
            held.append(route)

        page.route("**/console/", hold)
        settle(lambda: page.wait_for_timeout(50) or held)
        page.get_by_role("button", name="Change weights of assistant").click()
        page.get_by_role("dialog", name="Change weights of assistant").wait_for()
        held[0].continue_()


def test_weights_are_changed_and_rolled_back_by_keyboard(visit: Any, yard: Stack) -> None:
    first = yard.admin("/models/assistant/route")["revision"]
    with visit("/console/") as one:
        page = one.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        page.keyboard.press("Tab")
        while page.evaluate("document.activeElement.getAttribute('aria-label')") != "Change weights of assistant":
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog", name="Change weights of assistant")
        dialog.wait_for()
        one.axe()
        assert page.evaluate("document.activeElement.name") == "weight-v1"
        page.keyboard.press("ControlOrMeta+a")
        page.keyboard.type("70")
        assert dialog.locator("output").inner_text() == "Together 80%; they must make 100%."
        page.keyboard.press("Enter")
        assert "they must make 100%" in dialog.get_by_role("alert").inner_text()
        assert dialog.get_by_label("v1").input_value() == "70", "what was typed is still there"
        one.forgive(422)
        dialog.get_by_label("v2").fill("30")
        page.keyboard.press("Enter")
        dialog.get_by_text("of the users change their version").wait_for()
        assert "20% of the users" in dialog.inner_text()
        assert weights(yard) == {"v1": 9000, "v2": 1000}, "asked, not done"
        for _ in range(8):
            page.keyboard.press("Tab")
            assert page.evaluate(
                "document.activeElement.closest('dialog') !== null || document.activeElement === document.body"
            )
        one.shot("dialog-weights-plan", whole=False)
        dialog.get_by_role("button", name="Change the weights").press("Enter")
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("status").wait_for()
        said = dialog.get_by_role("status").inner_text()
        assert re.search(rf"Revision {first + 1} is in force as generation \d+, [\d.]+ m?s after you asked", said)
        assert weights(yard) == {"v1": 7000, "v2": 3000}
        one.shot("dialog-weights-done", whole=False)
        page.keyboard.press("Escape")
        assert not dialog.is_visible()
        page.get_by_role("img", name="v1 70%, v2 30%").wait_for()

        page.get_by_role("button", name="Roll back assistant").click()
        dialog = page.get_by_role("dialog", name="Roll back assistant")
        assert f"revision {first}" in dialog.inner_text()
        dialog.get_by_role("button", name="Roll back").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("status").wait_for()
        assert weights(yard) == {"v1": 9000, "v2": 1000}

        one.go("/console/audit?subject=assistant&action=route.rollback")
        row = page.locator("tbody tr").first
        assert "Ada" in row.inner_text()
        assert "rolled back" in row.inner_text()
        assert "70%" in row.inner_text()
        assert page.get_by_label("What").input_value() == "route.rollback"


def test_a_route_is_paused_with_a_reason_and_resumed(visit: Any, yard: Stack) -> None:
    with visit("/console/") as one:
        page = one.page
        before = weights(yard)
        page.get_by_role("button", name="Pause assistant").click()
        dialog = page.get_by_role("dialog", name="Pause assistant")
        dialog.get_by_label("Why?").fill("v2 looks <b>slow</b>")
        one.axe()
        one.shot("dialog-pause", whole=False)
        page.keyboard.press("Enter")
        dialog.get_by_role("status").wait_for()
        page.keyboard.press("Escape")
        page.get_by_text("v2 looks <b>slow</b>").wait_for()
        assert "Paused" in page.get_by_role("region", name="assistant").inner_text()
        one.axe()

        one.go("/console/rollout/assistant")
        page.get_by_text("v2 looks <b>slow</b>").wait_for()
        page.get_by_role("button", name="Change weights").click()
        page.get_by_role("textbox", name="v1").fill("50")
        page.get_by_role("textbox", name="v2").fill("50")
        page.get_by_role("button", name="Show what would happen").click()
        refusal = page.locator(".alert.wait")
        refusal.wait_for()
        assert "the route of assistant is paused by Ada" in refusal.inner_text()
        page.keyboard.press("Escape")

        page.get_by_role("button", name="Resume").click()
        dialog = page.get_by_role("dialog", name="Resume assistant")
        assert "Ada paused the route" in dialog.inner_text()
        one.shot("dialog-resume", whole=False)
        dialog.get_by_role("button", name="Resume").click()
        dialog.get_by_role("status").wait_for()
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Pause").wait_for()
        assert weights(yard) == before

        one.go("/console/audit?subject=assistant")
        said = page.locator("tbody").inner_text()
        assert "let a route go on" in said
        assert "paused a route" in said


def test_without_scripts_a_route_is_paused_too(plain: Any, yard: Stack) -> None:
    plain.goto("/console/actions/pause?model=assistant")
    plain.get_by_role("button", name="Pause").click()
    plain.get_by_text("stays where it is until").wait_for()
    assert yard.admin("/models/assistant/route")["pause"]["paused_by"] == "Ada"
    plain.goto("/console/actions/pause?model=assistant")
    plain.get_by_role("button", name="Resume").click()
    plain.get_by_text("may change again").wait_for()
    assert yard.admin("/models/assistant/route")["pause"] is None


def test_an_engine_that_is_down_stands_at_the_top(visit: Any, yard: Stack, engines: dict[str, FakeEngine]) -> None:
    engines["v3"].behave(health_status=503)
    try:
        settle(lambda: engine(yard, "assistant@v3/0")["state"] != "ready", 20)
        with visit("/console/", width=360) as one:
            alert = one.page.get_by_role("region", name="Alerts")
            assert "The engine assistant@v3/0 is down" in alert.inner_text()
            one.axe()
            one.shot("overview-alert-360")
        with visit("/console/actions/weights?model=assistant") as one:
            one.page.get_by_label("v1").fill("80")
            one.page.get_by_label("v3").fill("10")
            one.page.get_by_role("button", name="Show what would happen").click()
            one.page.get_by_text("This is refused as it stands").wait_for()
            assert "assistant@v3 has no ready engine" in one.page.locator(".alert.wait").inner_text()
            one.forgive(409)
            one.page.get_by_role("button", name="Change the weights").click()
            one.page.get_by_role("alert").filter(has_text="no ready engine").wait_for()
            assert weights(yard) == {"v1": 9000, "v2": 1000}
            one.forgive(409)
    finally:
        engines["v3"].behave(health_status=200)
        settle(lambda: engine(yard, "assistant@v3/0")["state"] == "ready", 30)


def test_an_engine_is_restarted_and_its_log_is_live(visit: Any, yard: Stack) -> None:
    before = engine(yard, LOCAL)
    with visit("/console/engines") as one:
        page = one.page
        page.get_by_role("button", name=f"Restart {LOCAL}").click()
        dialog = page.get_by_role("dialog", name=f"Restart {LOCAL}")
        assert "No other engine serves local@v1" in dialog.inner_text()
        dialog.get_by_role("button", name="Restart it").click()
        dialog.get_by_text("is starting anew").wait_for()
        page.keyboard.press("Escape")
        after = settle(lambda: (now := engine(yard, LOCAL))["state"] == "ready" and now, 60)
        assert after["pid"] != before["pid"]
        assert after["restarts"] == before["restarts"] + 1
        page.get_by_role("link", name=f"Log of {LOCAL}").click()
        log = page.get_by_role("region", name=f"Log of {LOCAL}")
        log.wait_for()
        length = page.evaluate("document.querySelector('.log').textContent.length")
        yard_asks(yard)
        settle(lambda: page.evaluate("document.querySelector('.log').textContent") != "" and length)
        assert page.evaluate("(() => { const b = document.querySelector('.log');"
                             " return b.scrollTop + b.clientHeight >= b.scrollHeight - 30; })()")  # fmt: skip
    assert yard.admin("/audit?limit=1")[0]["action"] == "engine.restart"
    assert yard.admin("/audit?limit=1")[0]["actor"] == "Ada"


def yard_asks(yard: Stack) -> None:
    import httpx

    body = {"model": "local", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    assert httpx.post(f"{yard.url}/v1/chat/completions", json=body, trust_env=False, timeout=60).status_code == 200


def test_the_colours_are_the_systems_or_the_users(visit: Any) -> None:
    def dark(page: Any) -> bool:
        return bool(page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)")

    with visit("/console/audit", scheme="dark") as one:
        assert dark(one.page)
        one.page.get_by_label("Colours").select_option("light")
        assert not dark(one.page)
        one.page.reload()
        assert not dark(one.page), "it is kept"
        one.page.get_by_label("Colours").select_option("auto")
        assert dark(one.page)


def test_whoever_is_not_signed_in_looks_and_is_asked_before_a_change(visit: Any, yard: Stack) -> None:
    with visit("/console/engines", signed_in=False) as one:
        page = one.page
        assert page.get_by_role("link", name="Sign in").is_visible()
        page.get_by_role("button", name=f"Restart {LOCAL}").click()
        page.wait_for_url("**/console/sign-in?next=**")
        page.get_by_label("Your name").fill("Grace")
        page.get_by_label("Admin token").fill("wrong")
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("alert").wait_for()
        page.get_by_label("Admin token").fill((yard.state / "admin.token").read_text().strip())
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("button", name="Sign out").wait_for()
        assert page.url == f"{yard.admin_url}/console/engines"
        one.forgive(401)


def test_without_scripts_it_can_be_read_and_used(plain: Any, yard: Stack) -> None:
    before = weights(yard)
    plain.goto("/console/")
    plain.get_by_role("button", name="Change weights of assistant").click()
    plain.get_by_role("button", name="Show what would happen").click()
    plain.get_by_text("Nobody changes their version").wait_for()
    assert weights(yard) == before, "it was shown, not done"
