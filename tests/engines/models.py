"""Fixtures of models in process: import them into a conftest.

    from engines.models import llama_python, q4_0_path, transformers_python  # noqa: F401

Owns: the interpreters that have the model libraries, and the second version of the model. Never: loading a model.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from components import CACHE, missing

from eval.providers.in_process import interpreter
from registry.artifacts import ArtifactStore, NoProgress, RequantizeSource, fetch
from registry.manifest import Artifact
from registry.terminal import NotThereError


@pytest.fixture(scope="session")
def llama_python() -> str:
    """The interpreter of an environment that has llama-cpp-python."""
    return _interpreter("llama-cpp", "run `make inprocess-llama`, which compiles it")


@pytest.fixture(scope="session")
def transformers_python() -> str:
    """The interpreter of an environment that has torch, transformers, accelerate and gguf."""
    return _interpreter("transformers", "run `make inprocess`")


@pytest.fixture(scope="session")
def q4_0_path(smollm2: Artifact, artifact_cache: ArtifactStore) -> Path:
    """SmolLM2 requantised from Q4_1 to Q4_0: the quickstart's second version."""
    source = RequantizeSource(smollm2, "Q4_0", "requantize:v1?type=Q4_0")
    (artifact,) = fetch(source, artifact_cache, progress=NoProgress())
    return artifact_cache.link(artifact, CACHE / "models")


def _interpreter(provider: str, remedy: str) -> str:
    try:
        return interpreter(provider)
    except NotThereError:
        missing(provider, remedy)
        raise
