"""HTTPS at a real worker: handshakes, certificates that change under way, broken ones."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from certificates import make, put
from engines.fixtures import FakeEngine
from router_harness import PATIENCE_S, ROOT, RouterProcess, running_router, until

from registry.certificates import trusting
from serving.router.tls import Certificate, TlsError, load

Pair = tuple[Path, Path]
Engines = Callable[..., FakeEngine]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, program: Callable[[str], str]) -> dict[str, Pair]:
    folder = tmp_path_factory.mktemp("certificates")
    openssl = program("openssl")
    return {
        name: make(openssl, folder, name, kind=kind)
        for name, kind in (("first", "rsa"), ("second", "rsa"), ("third", "ec"))
    }


@pytest.fixture
def place(tmp_path: Path, pairs: dict[str, Pair]) -> Pair:
    """Where the worker looks; the first pair lies there."""
    files = (tmp_path / "tls.pem", tmp_path / "tls.key")
    put(pairs["first"], files)
    return files


@pytest.fixture
def router(tmp_path: Path, place: Pair) -> Iterator[RouterProcess]:
    options = ["--tls-certificate", str(place[0]), "--tls-key", str(place[1])]
    with running_router(tmp_path / "router", options=options) as process:
        yield process


def client_of(router: RouterProcess, certificate: Path) -> httpx.Client:
    url = f"https://127.0.0.1:{router.port}"
    return httpx.Client(base_url=url, verify=trusting(certificate, url), trust_env=False, timeout=PATIENCE_S)


def shown(router: RouterProcess, **settings: Any) -> bytes:
    """The certificate that a new connection gets, as DER."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for name, value in settings.items():
        setattr(context, name, value)
    with (
        socket.create_connection(("127.0.0.1", router.port), timeout=PATIENCE_S) as plain,
        context.wrap_socket(plain) as secure,
    ):
        found = secure.getpeercert(binary_form=True)
        assert found
        return found


def der(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair[0].read_text())


def until_shown(router: RouterProcess, pair: Pair) -> None:
    until(lambda: shown(router) == der(pair))


def body(events: str = "one two", *, stream: bool = False) -> dict[str, Any]:
    return {"model": "assistant", "messages": [{"role": "user", "content": events}], "stream": stream}


def test_requests_and_streams_go_by_tls(router: RouterProcess, place: Pair, fake_engine: Engines) -> None:
    router.serve(fake_engine("--events", "30").port)
    with client_of(router, place[0]) as client:
        assert client.get("/health/ready").status_code == 200
        for _ in range(3):  # one connection
            assert client.post("/v1/chat/completions", json=body()).status_code == 200
        with client.stream("POST", "/v1/chat/completions", json=body(stream=True)) as answer:
            assert "[DONE]" in "".join(answer.iter_text())
        large = client.post("/v1/chat/completions", json=body("x" * 3_000_000))
        assert large.status_code == 200
    assert [record.outcome for record in router.records(5)] == ["completed"] * 5


def test_it_is_recognised_by_its_own_certificate_alone(router: RouterProcess, pairs: dict[str, Pair]) -> None:
    router.serve(1)
    with client_of(router, pairs["second"][0]) as client, pytest.raises(httpx.ConnectError, match="certificate"):
        client.get("/health/live")


def test_a_certificate_is_replaced_without_touching_a_connection(
    router: RouterProcess, place: Pair, pairs: dict[str, Pair], fake_engine: Engines
) -> None:
    router.serve(fake_engine("--events", "60", "--gap", "0.05").port)
    with client_of(router, place[0]) as client:
        with client.stream("POST", "/v1/chat/completions", json=body(stream=True)) as answer:
            pieces = answer.iter_text()
            next(pieces)
            for name in ("second", "third"):  # of the same kind, and of another
                put(pairs[name], place)
                until_shown(router, pairs[name])
            assert "[DONE]" in "".join(pieces)
        assert client.get("/health/ready").status_code == 200, "the old connection goes on"
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        assert shown(router, maximum_version=version) == der(pairs["third"])
    assert router.control.stats().tls_problem == ""


def test_a_broken_certificate_is_told_and_the_old_one_stays(
    router: RouterProcess, place: Pair, pairs: dict[str, Pair]
) -> None:
    def problem(said: str) -> None:
        until(lambda: said in router.control.stats().tls_problem)
        assert shown(router) == der(pairs["first"])

    router.serve(1)
    put((pairs["second"][0], pairs["first"][1]), place)
    problem("does not belong to the certificate")
    place[1].write_text("")
    problem("no certificate and key that can be used")
    place[0].unlink()
    problem("cannot be read")
    put(pairs["third"], place)
    until_shown(router, pairs["third"])
    assert router.control.stats().tls_problem == ""


def test_old_versions_and_plain_http_are_refused(router: RouterProcess) -> None:
    router.serve(1)
    with pytest.warns(DeprecationWarning, match="TLS"), pytest.raises((ssl.SSLError, ConnectionError)):
        shown(router, minimum_version=ssl.TLSVersion.TLSv1, maximum_version=ssl.TLSVersion.TLSv1_1)
    with socket.create_connection(("127.0.0.1", router.port), timeout=PATIENCE_S) as plain:
        plain.sendall(b"GET /health/live HTTP/1.1\r\nhost: a\r\n\r\n")
        assert not plain.recv(4096).startswith(b"HTTP/1.1 200")
    assert shown(router)


def test_what_is_no_handshake_leaves_nothing_behind(router: RouterProcess) -> None:
    router.serve(1)
    for index in range(60):
        junk = (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05junk!", b"", b"\x16\x03\x01")[index % 4]
        with socket.create_connection(("127.0.0.1", router.port), timeout=PATIENCE_S) as plain:
            plain.sendall(junk)
    assert shown(router)
    until(lambda: not router.control.stats().connections)


def test_a_worker_says_in_one_sentence_why_it_cannot_speak_tls(tmp_path: Path, place: Pair) -> None:
    command = [sys.executable, "-m", "serving.router.worker", "--id", "w0", "--port", "0"]
    files = ["--tls-certificate", str(place[0]), "--tls-key", str(tmp_path / "none")]
    places = ["--socket", str(tmp_path / "s"), "--segments", str(tmp_path)]
    run = subprocess.run([*command, *files, *places], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert f"{tmp_path / 'none'} cannot be read" in run.stderr


@pytest.mark.parametrize(
    ("certificate", "key", "said"),
    [
        ("first", "second", "does not belong"),
        ("first", "third", "does not belong"),
        ("third", "first", "does not belong"),
        ("missing", "first", "the TLS certificate .* cannot be read"),
        ("first", "missing", "the TLS key .* cannot be read"),
        ("junk", "first", "no certificate and key that can be used"),
        ("first", "junk", "no certificate and key that can be used"),
        ("first", "locked", "is encrypted"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    tmp_path: Path, pairs: dict[str, Pair], certificate: str, key: str, said: str
) -> None:
    (tmp_path / "junk").write_bytes(b"\x00junk")
    (tmp_path / "locked").write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    files = [pairs[name][index] if name in pairs else tmp_path / name for index, name in enumerate((certificate, key))]
    with pytest.raises(TlsError, match=said) as refused:
        load(*files)
    assert "\n" not in str(refused.value)
    assert "PRIVATE KEY" not in str(refused.value)


def test_nothing_is_read_while_nothing_changes(place: Pair) -> None:
    held = Certificate(*place)
    context = held.context
    held.refresh()
    assert held.context is context
    assert held.problem == ""
