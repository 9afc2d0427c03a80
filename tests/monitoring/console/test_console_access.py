"""Who gets into the console, and what a stranger's page cannot make a browser do."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import httpx
import pytest
from console_browser import sign_in
from stack import Stack

from monitoring.console import SignInError
from serving.control.access import Access
from serving.control.console_access import LINK_S, LINKS_MAX, SESSION_S, ConsoleAccess
from serving.errors import ApiError
from serving.router.table import Key

TOKEN = "myt_" + "t" * 40
WEIGHTS = {"model": "assistant", "weight-v1": "50", "weight-v2": "50"}


@pytest.fixture
def client(yard: Stack) -> Iterator[httpx.Client]:
    """A browser's HTTP without its cookie."""
    with httpx.Client(base_url=yard.admin_url, trust_env=False, timeout=20) as made:
        yield made


def revision(yard: Stack) -> int:
    return int(yard.admin("/models/assistant/route")["revision"])


def test_a_change_needs_the_cookie_and_the_consoles_own_origin(
    yard: Stack, client: httpx.Client, cookie: dict[str, str]
) -> None:
    before = revision(yard)
    own, port = {"origin": yard.admin_url}, yard.port

    def change(headers: dict[str, str], cookies: dict[str, str]) -> httpx.Response:
        client.cookies.clear()
        client.cookies.update(cookies)
        return client.post("/console/actions/weights", data=WEIGHTS, headers=headers)

    assert change(own, {}).status_code == 401
    assert change(own, {}).headers["hx-redirect"] == "/console/sign-in?next=%2Fconsole%2F"
    for origin in ("https://evil.example", f"http://127.0.0.1:{port}", f"http://localhost:{yard.admin_port}", "null"):
        assert change({"origin": origin}, cookie).status_code == 403, origin
    assert change({}, cookie).status_code == 403, "no Origin at all"
    assert change(own | {"host": "evil.example"}, cookie).status_code == 421
    name, value = next(iter(cookie.items()))
    assert change(own, {name: value[:-1] + ("0" if value[-1] != "0" else "1")}).status_code == 401, "another seal"
    assert change(own, {name: "e30." + value.rpartition(".")[2]}).status_code == 401, "another payload"
    assert revision(yard) == before
    bare = client.put("/admin/v1/models/assistant/route", json={"weights": {"v1": 10000}}, headers=own, cookies=cookie)
    assert bare.status_code == 401, "the admin API takes no cookie"
    assert revision(yard) == before


def test_looking_needs_nobody_here_but_changes_and_clients_texts_do(client: httpx.Client) -> None:
    for path in ("/console/", "/console/engines", "/console/audit", "/console/sign-in", "/console/static/console.css"):
        assert client.get(path).status_code == 200, path
    for path in ("/console/actions/weights?model=assistant", "/console/engines/local@v1/0/restart"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["location"][:22]) == (303, "/console/sign-in?next="), path
    partial = client.get("/console/actions/weights?model=assistant", headers={"hx-request": "true"})
    assert (partial.status_code, partial.headers["hx-redirect"]) == (401, "/console/sign-in?next=%2Fconsole%2F")
    assert client.get("/console").headers["location"] == "/console/"


def test_a_wrong_token_is_refused_in_one_sentence(yard: Stack, client: httpx.Client) -> None:
    answer = client.post("/console/sign-in", data={"credential": "wrong"}, headers={"origin": yard.admin_url})
    assert answer.status_code == 401
    assert "This is not the yard&#39;s admin token." in answer.text
    assert "set-cookie" not in answer.headers


def test_a_link_lets_one_browser_in_once(yard: Stack, client: httpx.Client) -> None:
    url = yard.cli("console").stdout.strip()
    assert url.startswith(f"{yard.admin_url}/console/sign-in?code=")
    answer = client.get(url)
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/")
    said = answer.headers["set-cookie"]
    assert all(part in said for part in ("HttpOnly", "SameSite=strict", "Path=/console", "Max-Age=43200"))
    assert "Sign out" in client.get("/console/").text
    again = client.get(url)
    assert again.status_code == 401
    assert "used already" in again.text


def test_signing_out_ends_the_session_itself(yard: Stack, client: httpx.Client) -> None:
    token = (yard.state / "admin.token").read_text().strip()
    cookies = sign_in(yard.admin_url, token, "Grace")
    client.cookies.update(cookies)
    assert "Signed in as Grace" in client.get("/console/").text
    assert client.post("/console/sign-out", headers={"origin": yard.admin_url}).status_code == 303
    client.cookies.update(cookies)
    assert "Signed in as" not in client.get("/console/").text, "the cookie is good for nothing now"


@pytest.mark.parametrize(
    "wanted", ["https://evil.example/", "//evil.example/", "/console//evil.example", "/admin/v1/status", "/console/\\e"]
)
def test_signing_in_leads_into_the_console_only(yard: Stack, client: httpx.Client, wanted: str) -> None:
    form = {"credential": (yard.state / "admin.token").read_text().strip(), "next": wanted}
    answer = client.post("/console/sign-in", data=form, headers={"origin": yard.admin_url})
    assert answer.headers["location"] == "/console/"


def test_every_answer_has_the_policy(client: httpx.Client) -> None:
    paths = ("/console/", "/console/none", "/console/static/console.js", "/console/static/../source.py")
    for path in paths:
        headers = client.get(path).headers
        if path.startswith("/console/s") and ".." in path:
            continue  # the client itself resolves it
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'self'")
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
    assert client.get("/console/static/%2e%2e/source.py").status_code == 404
    assert client.get("/console/none").status_code == 404
    assert client.get("/console/engines/none@v1/0/log").status_code == 404


# --- the door alone ---


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def door(clock: Clock, *, host: str = "127.0.0.1", keys: Callable[[], list[Key]] = list) -> ConsoleAccess:
    return ConsoleAccess(Access(TOKEN, keys, host=host, clock=clock), clock=clock)


def key(secret: str, name: str, *, scopes: tuple[str, ...] = ("inference",)) -> Key:
    return Key(id=name, digest=hashlib.sha256(secret.encode()).digest(), scopes=scopes)


def holding(own: ConsoleAccess, value: str) -> dict[bytes, str]:
    return {b"cookie": f"other=1; {own.cookie_name}={value}", b"host": "127.0.0.1:8001"}


def test_sessions_and_links_end() -> None:
    clock = Clock()
    own = door(clock)
    value = own.sign_in(f" {TOKEN}\n", "Ada\x00  ").value
    found = own.session(holding(own, value))
    assert found is not None
    assert (found.actor, found.expires_at) == ("Ada", clock.now + SESSION_S)
    other = ConsoleAccess(Access(TOKEN + "x", list, host="127.0.0.1", clock=clock), clock=clock)
    assert other.session(holding(other, value)) is None, "another token, other seals"
    assert other.cookie_name != own.cookie_name
    code = own.link("root", "")
    clock.now += LINK_S
    with pytest.raises(SignInError, match="too old"):
        own.redeem(code)
    clock.now += SESSION_S
    assert own.session(holding(own, value)) is None


def test_a_keys_session_ends_with_the_key() -> None:
    keys = [key("admin-key", "ci", scopes=("admin",)), key("other-key", "reader")]
    own = door(Clock(), keys=lambda: keys)
    with pytest.raises(SignInError, match="no scope admin"):
        own.sign_in("other-key", "")
    value = own.sign_in("admin-key", "Ada").value
    found = own.session(holding(own, value))
    assert found is not None
    assert found.actor == "Ada with ci"
    keys.pop(0)
    assert own.session(holding(own, value)) is None


def test_links_do_not_pile_up() -> None:
    own = door(Clock())
    codes = [own.link("root", "") for _ in range(LINKS_MAX + 1)]
    with pytest.raises(SignInError):
        own.redeem(codes[0])
    assert own.redeem(codes[-1]).max_age_s == SESSION_S


def test_bound_to_everybody_even_looking_needs_a_session() -> None:
    clock = Clock()
    own = door(clock, host="0.0.0.0")
    headers = {b"host": "10.0.0.1:8001", b"origin": "http://10.0.0.1:8001"}
    for path in ("/console/", "/console/engines", "/console"):
        with pytest.raises(ApiError, match="sign in"):
            own.check("GET", path, headers)
    for method, path in (
        ("GET", "/console/static/console.css"),
        ("GET", "/console/sign-in"),
        ("POST", "/console/sign-in"),
    ):
        assert own.check(method, path, headers) is None
    value = own.sign_in(TOKEN, "").value
    found = own.check("GET", "/console/", headers | holding(own, value))
    assert found is not None
    assert found.actor == "console"


@pytest.mark.parametrize("value", ["", ".", "x", "eyJ9.", "é.é", "e30.0", "\x00.\x01", "=" * 5000])
def test_what_is_no_cookie_of_ours_is_nobody(value: str) -> None:
    own = door(Clock())
    assert own.session(holding(own, value)) is None
