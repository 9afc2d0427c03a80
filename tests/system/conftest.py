"""Fixtures of the system tests: fake and real engines behind the whole stack."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from engines.fixtures import fake_engine, hosted_python, vllm_checkpoints, vllm_python  # noqa: F401 - fixtures
from stack import QUICKSTART, Stack, stack

from registry.artifacts import ArtifactStore, NoProgress, RequantizeSource, fetch
from registry.manifest import Artifact


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Callable[[str], Stack]]:
    """Stacks by their configuration, each in a folder of its own; what they left running ends with the test."""
    with ExitStack() as stacks:
        count = iter(range(100))

        def make(config: str) -> Stack:
            folder = tmp_path / f"yard{next(count)}"
            folder.mkdir()
            return stacks.enter_context(stack(folder, config))

        yield make


@pytest.fixture(scope="session")
def with_models(smollm2: Artifact, artifact_cache: ArtifactStore) -> Callable[[Stack], Stack]:
    """Gives a stack the quickstart's artifacts, so that it need not fetch and requantise them again."""
    fetch(RequantizeSource(smollm2, "Q4_0", "requantize:v1?type=Q4_0"), artifact_cache, progress=NoProgress())

    def give(yard: Stack) -> Stack:
        shutil.copytree(artifact_cache.root, yard.state / "artifacts", copy_function=os.link)
        return yard

    return give


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory, with_models: Callable[[Stack], Stack]) -> Iterator[Stack]:
    """The quickstart as it ships, running, for the tests of one module."""
    with stack(tmp_path_factory.mktemp("quickstart"), QUICKSTART) as yard:
        yield with_models(yard).up()
