"""Properties of names, manifests and their digests."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.manifest import Artifact, Lineage, Manifest, canonical, decode, definition, digest
from registry.models import BUCKETS, InvalidNameError, VersionRef, check_name, check_weights

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
TREES: st.SearchStrategy[Any] = st.recursive(
    SCALARS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.text(max_size=8), TREES, max_size=4)
ARTIFACTS = st.builds(
    Artifact,
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    size_bytes=st.integers(0, 2**40),
    source=st.text(max_size=10),
    filename=st.text(max_size=10),
)
MANIFESTS = st.builds(
    Manifest,
    engine=st.sampled_from(["llama.cpp", "vllm", "external"]),
    engine_args=ARGUMENTS,
    artifacts=st.lists(ARTIFACTS, max_size=3).map(tuple),
    sampling=ARGUMENTS,
    chat_template=st.text(max_size=10),
    lineage=st.builds(Lineage, parent=st.text(max_size=5), hyperparameters=ARGUMENTS),
    environment=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
    licence=st.text(max_size=5),
)


def shuffled(value: Any) -> Any:
    """The same mapping with its keys inserted the other way round, at every depth."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(list(value))}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@given(MANIFESTS)
def test_a_manifest_is_its_canonical_bytes(manifest: Manifest) -> None:
    data = canonical(manifest)
    assert decode(data) == manifest
    assert canonical(decode(data)) == data
    assert digest(decode(data)) == digest(manifest)
    assert digest(manifest).startswith("sha256:")
    assert len(digest(manifest)) == 71


@given(MANIFESTS)
def test_the_digest_does_not_depend_on_the_order_of_keys(manifest: Manifest) -> None:
    other = msgspec.structs.replace(
        manifest,
        engine_args=shuffled(manifest.engine_args),
        sampling=shuffled(manifest.sampling),
        environment=shuffled(manifest.environment),
    )
    assert canonical(other) == canonical(manifest)


@given(MANIFESTS, MANIFESTS)
def test_digests_differ_where_manifests_do(one: Manifest, other: Manifest) -> None:
    assert (digest(one) == digest(other)) == (canonical(one) == canonical(other))


@given(MANIFESTS, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2))
def test_the_environment_is_no_part_of_the_definition(manifest: Manifest, environment: dict[str, str]) -> None:
    assert definition(msgspec.structs.replace(manifest, environment=environment)) == definition(manifest)


@given(NAMES, NAMES)
def test_a_reference_reads_back(model: str, label: str) -> None:
    for ref in (VersionRef(model), VersionRef(model, label)):
        assert VersionRef.parse(str(ref)) == ref
    assert check_name("model", model) == model


@given(st.text(max_size=70))
def test_a_name_is_usable_everywhere_or_refused(name: str) -> None:
    try:
        check_name("model", name)
    except InvalidNameError:
        return
    assert name.isascii()
    assert 1 <= len(name) <= 64
    assert not set(name) & set("/@:?#%&=\" '{}\n\r\\")


@pytest.mark.parametrize("text", ["", "@", "a@", "@v1", "a@b@c", "a b", "a/b@v1", "-a", "a\n", "a@v1\n", "é"])
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidNameError):
        VersionRef.parse(text)


@given(st.dictionaries(NAMES, st.integers(-10, BUCKETS + 10), max_size=4))
def test_weights_are_checked(weights: dict[str, int]) -> None:
    fine = sum(weights.values()) == BUCKETS and all(0 <= weight <= BUCKETS for weight in weights.values())
    if fine:
        assert check_weights(weights) is weights
        return
    with pytest.raises(ValueError, match="weight"):
        check_weights(weights)
