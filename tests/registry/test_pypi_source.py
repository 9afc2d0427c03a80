"""`pypi:` sources through the real pip, from a package index of our own on loopback."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from registry.artifacts import ArtifactStore, NoProgress, fetch, parse
from registry.errors import ArtifactError
from registry.manifest import Artifact

CONTENT = bytes(range(256)) * 8000
MEMBER = "tiny_model/m.gguf"


def wheel(path: Path, members: dict[str, bytes]) -> bytes:
    """A minimal wheel of tiny-model 1.0, stored uncompressed."""
    info = "tiny_model-1.0.dist-info"
    described = {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**members, **described}.items():
            archive.writestr(name, content)
    return path.read_bytes()


class Index:
    """A package index with one wheel. Closing `gate` holds every download in its middle."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.gate = threading.Event()
        self.gate.set()
        self.downloads = 0
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/simple"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = "tiny_model-1.0-py3-none-any.whl"
        if request.path == "/simple/tiny-model/":
            page = f'<!DOCTYPE html><html><body><a href="/{name}">{name}</a></body></html>'.encode()
            self.send(request, 200, "text/html", page)
        elif request.path == f"/{name}":
            self.downloads += 1
            self.send(request, 200, "application/octet-stream", self.body)
        else:
            self.send(request, 404, "text/plain", b"")

    def send(self, request: BaseHTTPRequestHandler, status: int, kind: str, body: bytes) -> None:
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        half = len(body) // 2
        try:
            request.wfile.write(body[:half])
            if kind == "application/octet-stream":
                self.gate.wait(60)
            request.wfile.write(body[half:])
        except OSError:
            return  # the client was killed


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    served = Index(wheel(tmp_path / "x.whl", {MEMBER: CONTENT, "tiny_model/__init__.py": b"", "../evil": b"x"}))
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", served.url)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield served
    served.gate.set()
    served.server.shutdown()
    served.server.server_close()


class Shown(NoProgress):
    """What was begun."""

    def __init__(self) -> None:
        self.titles: list[str] = []

    def start(self, title: str, total_bytes: int | None) -> None:
        self.titles.append(title)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def bring(store: ArtifactStore, spec: str) -> Artifact:
    (artifact,) = fetch(parse(spec, Path("/")), store, progress=NoProgress())
    return artifact


def test_one_file_of_a_wheel_is_fetched_once(index: Index, store: ArtifactStore, tmp_path: Path) -> None:
    spec = f"pypi:tiny-model==1.0/{MEMBER}"
    artifact = bring(store, spec)
    assert (artifact.filename, artifact.role, artifact.source) == ("m.gguf", "model", spec)
    assert store.verify(artifact).read_bytes() == CONTENT
    shown = Shown()
    assert fetch(parse(spec, Path("/")), store, progress=shown) == [artifact]
    assert shown.titles == [], "pip is not asked again"
    assert index.downloads == 1
    assert list((store.root / "tmp").iterdir()) == []
    assert not list(tmp_path.rglob("evil"))


def test_a_member_that_is_not_there_is_named_with_those_that_are(index: Index, store: ArtifactStore) -> None:
    with pytest.raises(ArtifactError, match=r"has no file 'nope\.gguf': it has tiny_model/m\.gguf, ") as caught:
        bring(store, "pypi:tiny-model==1.0/nope.gguf")
    assert "\n" not in str(caught.value)
    assert not (store.root / "sha256").exists()


def test_a_version_or_package_that_is_not_there(index: Index, store: ArtifactStore) -> None:
    with pytest.raises(ArtifactError, match=r"no wheel of tiny-model==2\.0 for this machine: it has 1\.0$"):
        bring(store, "pypi:tiny-model==2.0/x")
    with pytest.raises(ArtifactError, match="no package 'other-model'"):
        bring(store, "pypi:other-model==2.0/x")


def test_an_index_that_is_not_there(index: Index, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(ArtifactError, match="cannot be reached"):
        bring(store, f"pypi:tiny-model==1.0/{MEMBER}")


def test_a_damaged_wheel(index: Index, store: ArtifactStore) -> None:
    body = bytearray(index.body)
    at = index.body.index(CONTENT) + 1000
    body[at] ^= 1
    index.body = bytes(body)
    with pytest.raises(ArtifactError, match=r"tiny_model-1\.0-py3-none-any\.whl.* is damaged"):
        bring(store, f"pypi:tiny-model==1.0/{MEMBER}")
    assert not (store.root / "sha256").exists()
    assert list((store.root / "tmp").iterdir()) == []


def test_a_killed_download_leaves_nothing_visible_and_the_next_succeeds(index: Index, store: ArtifactStore) -> None:
    spec = f"pypi:tiny-model==1.0/{MEMBER}"
    code = (
        "from pathlib import Path; from registry.artifacts import ArtifactStore, NoProgress, fetch, parse\n"
        f"fetch(parse({spec!r}, Path('/')), ArtifactStore(Path({str(store.root)!r})), progress=NoProgress())"
    )
    index.gate.clear()
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        deadline = time.monotonic() + 60
        while index.downloads == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert index.downloads == 1
        process.kill()
    assert not (store.root / "sha256").exists()
    index.gate.set()
    artifact = bring(store, spec)
    assert store.verify(artifact).read_bytes() == CONTENT
    assert index.downloads == 2
