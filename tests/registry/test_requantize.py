"""Requantisation on small GGUF files made here, and on the real model where it is cached."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest

from registry.artifacts import ArtifactStore, FileSource, NoProgress, RequantizeSource, fetch
from registry.artifacts.requantize import renamed
from registry.errors import ArtifactError
from registry.manifest import Artifact

np = pytest.importorskip("numpy", reason="numpy comes with the extra `llamacpp`")
gguf = pytest.importorskip("gguf", reason="the extra `llamacpp` is not installed")
Kind = gguf.GGMLQuantizationType


def made(path: Path, main: str = "Q4_1") -> Path:
    """A file with fields of every sort, two tensors of `main`, a Q8_0 embedding and a norm."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_Q4_1))
    writer.add_token_list(["a", "bc", "é"])
    writer.add_chat_template("{{ messages }}")
    writer.add_float32("x.scale", 0.1)
    rng = np.random.default_rng(7)
    for name, shape, kind in (
        ("token_embd.weight", (3, 64), Kind.Q8_0),
        ("blk.0.ffn.weight", (96, 320), Kind[main]),
        ("blk.0.norm.weight", (64,), Kind.F32),
        ("blk.1.ffn.weight", (320, 96), Kind[main]),
    ):
        values = rng.standard_normal(shape).astype(np.float32)
        data = gguf.quants.quantize(values, kind)
        plain = kind.name in ("F32", "F16")
        writer.add_tensor(name, data, raw_dtype=None if plain else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Shown(NoProgress):
    """What was begun."""

    def __init__(self) -> None:
        self.titles: list[str] = []

    def start(self, title: str, total_bytes: int | None) -> None:
        self.titles.append(title)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def parent(store: ArtifactStore, tmp_path: Path) -> Artifact:
    return added(store, made(tmp_path / "m.Q4_1.gguf"))


def added(store: ArtifactStore, path: Path) -> Artifact:
    (artifact,) = fetch(FileSource(path, f"file:{path}"), store, progress=NoProgress())
    return artifact


def requantised(store: ArtifactStore, parent: Artifact, kind: str) -> Artifact:
    (artifact,) = fetch(RequantizeSource(parent, kind, "requantize:v1"), store, progress=NoProgress())
    return artifact


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16", "F32"])
def test_the_main_type_changes_and_nothing_else(store: ArtifactStore, parent: Artifact, kind: str) -> None:
    artifact = requantised(store, parent, kind)
    old, new = (gguf.GGUFReader(store.verify(item)) for item in (parent, artifact))
    assert artifact.filename == f"m.{kind}.gguf"
    assert list(old.fields) == list(new.fields)
    for name, field in old.fields.items():
        if name != "general.file_type":
            assert field.contents() == new.fields[name].contents()
    expected = gguf.LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"]
    assert new.fields["general.file_type"].contents() == expected
    for before, after in zip(old.tensors, new.tensors, strict=True):
        assert (before.name, list(before.shape)) == (after.name, list(after.shape))
        if before.tensor_type == Kind.Q4_1:
            values = gguf.quants.dequantize(before.data, before.tensor_type)
            assert after.tensor_type == Kind[kind]
            expected_bytes = gguf.quants.quantize(values, Kind[kind]).tobytes()
            assert after.data.tobytes() == expected_bytes
        else:
            assert after.tensor_type == before.tensor_type
            assert after.data.tobytes() == before.data.tobytes()


def test_the_same_input_and_type_give_the_same_bytes(store: ArtifactStore, parent: Artifact, tmp_path: Path) -> None:
    first = requantised(store, parent, "Q4_0")
    other = ArtifactStore(tmp_path / "other")
    assert requantised(other, added(other, tmp_path / "m.Q4_1.gguf"), "Q4_0").sha256 == first.sha256
    shown = Shown()
    (again,) = fetch(RequantizeSource(parent, "Q4_0", "requantize:v1"), store, progress=shown)
    assert (again, shown.titles) == (first, []), "it is not made anew"


def test_what_cannot_be_requantised_is_one_sentence(store: ArtifactStore, parent: Artifact, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((tmp_path / "m.Q4_1.gguf").read_bytes()[:-3000])
    text = tmp_path / "text.gguf"
    text.write_text("not a model" * 100)
    for source, kind, words in (
        (parent, "Q3_X", "use one of F32, "),
        (parent, "Q4_1", "is Q4_1 already"),
        (added(store, cut), "Q4_0", "cannot be requantised"),
        (added(store, text), "Q4_0", "cannot be requantised"),
    ):
        with pytest.raises(ArtifactError, match=words) as caught:
            requantised(store, source, kind)
        assert "\n" not in str(caught.value)
    assert list((store.root / "tmp").iterdir()) == []


def test_any_cut_of_a_file_is_one_sentence(store: ArtifactStore, tmp_path: Path) -> None:
    whole = made(tmp_path / "m.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for length in [*range(0, 600, 41), *range(600, len(whole) - 64, 4000)]:
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError):
            requantised(store, added(store, path), "Q4_0")


def test_a_parent_that_changed_in_the_store_is_refused(store: ArtifactStore, parent: Artifact) -> None:
    path = store.path(parent.sha256)
    path.chmod(0o644)
    path.write_bytes(b"x" * parent.size_bytes)
    with pytest.raises(ArtifactError, match=hashlib.sha256(b"x" * parent.size_bytes).hexdigest()):
        requantised(store, parent, "Q4_0")


def test_names_of_derived_files() -> None:
    assert renamed("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_0") == "SmolLM2-135M-Instruct.Q4_0.gguf"
    assert renamed("a/b/model.gguf", "Q8_0") == "model.Q8_0.gguf"
    assert renamed("llama-3.2.gguf", "Q8_0") == "llama-3.2.Q8_0.gguf"


@pytest.mark.engine
def test_the_real_model_in_seconds(store: ArtifactStore, smollm2_path: Path) -> None:
    parent = added(store, smollm2_path)
    started = time.process_time()
    artifact = requantised(store, parent, "Q4_0")
    assert time.process_time() - started < 30
    assert artifact.sha256 == "c624c2bea4349b36453448197f53b3935a96da7934904c124a612716c348a8ff"
