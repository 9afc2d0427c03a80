"""What every kind of engine has in common: from a version to a command line, and what it can do once it runs.

Owns: the values that pass between the control plane, the kinds and the supervisor, and the registry of kinds. Never:
processes, probing.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import msgspec

from registry.manifest import Manifest
from registry.models import VersionRef
from registry.terminal import NotThereError, UserError
from serving.router.table import ANY_NAME

LOOPBACK: Final = "127.0.0.1"
KINDS: Final[Mapping[str, str]] = {
    "llama.cpp": "serving.engines.llama_cpp:KIND",
    "vllm": "serving.engines.vllm:KIND",
    "external": "serving.engines.external:KIND",
    "hosted": "serving.engines.hosted:KIND",
}
"""`engine:` in a configuration -> where its kind is; imported when it is used."""

_PASSED_ON: Final = frozenset(
    (
        "PATH",
        "HOME",
        "USER",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "TZ",
        "TMPDIR",
        "LD_LIBRARY_PATH",
        "XDG_CACHE_HOME",
        "SSL_CERT_FILE",
        "HF_HOME",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "ROCR_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES",
    )
)
_PASSED_ON_PREFIXES: Final = ("CUDA_", "NVIDIA_", "NCCL_")


class EngineError(UserError):
    """An engine cannot be started as its version asks; the sentence says what to change."""


class EngineMissingError(NotThereError):
    """Something that an engine needs (package, program, environment, file) is not there."""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine was seen to do. Probed, never assumed."""

    chat: bool = False
    completions: bool = False
    embeddings: bool = False
    stream_usage: bool = False
    """Understands `stream_options.include_usage`."""
    prompt_logprobs: bool = False
    """`echo` with `logprobs` returns the log-probabilities of the prompt's tokens."""
    prefill: bool = False
    """Continues a last message that is the assistant's."""
    lora: bool = False
    """Adapters can be loaded or scaled while it runs."""
    sleep: bool = False
    metrics: bool = False
    parallel_slots: int = 0
    """Requests decoded at a time; 0 where the engine does not say."""
    context_tokens: int = 0
    """Of one request; 0 where the engine does not say."""
    model_names: tuple[str, ...] = ()
    """The names in its `/v1/models`."""
    input_price_per_million: float = 0.0
    """Of a hosted engine: what a million prompt tokens cost, by LiteLLM's price list in USD or by its engine_args; 0
    where nobody knows."""
    output_price_per_million: float = 0.0


@dataclass(frozen=True, kw_only=True)
class EngineVersion:
    """One replica of a version that is wanted: everything that its engine is started with."""

    ref: VersionRef
    """Model and label."""
    digest: str
    """Of the manifest; an engine whose digest differs is replaced."""
    manifest: Manifest
    files: tuple[Path, ...] = ()
    """Where the manifest's artifacts lie, in its order; verified by whoever made this value."""
    replica: int = 0
    python: str = ""
    """The interpreter of the environment that has vLLM, or LiteLLM."""
    authorization: str = field(default="", repr=False)
    """The whole Authorization header of an external or hosted engine; kept in memory only."""
    key_variable: str = ""
    """The environment variable that it came from."""
    threads: int = 0
    """Compute threads; 0 lets the supervisor share the cores among its engines."""
    folder: Path = Path()
    """Where the replica's own files go; set by the supervisor."""

    @property
    def id(self) -> str:
        """`assistant@v1/0`"""
        return f"{self.ref}/{self.replica}"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How one engine is started and reached."""

    argv: tuple[str, ...]
    """Empty for an engine that somebody else runs."""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """On top of the minimal environment."""
    cwd: Path = Path("/")
    host: str = LOOPBACK
    port: int = 0
    base_url: str = ""
    """Without `/v1`; "" means http on host and port."""
    ready_paths: tuple[str, ...] = ("/health",)
    """Asked in order; the first that exists (is not a 404) decides."""
    served_names: tuple[str, ...] = (ANY_NAME,)
    """The `model` values that it understands; empty: those of its `/v1/models`."""
    files: Mapping[Path, str] = field(default_factory=dict)
    """Text files to write before the start."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """For every request to it."""

    @property
    def url(self) -> str:
        return self.base_url or f"http://{self.host}:{self.port}"


class EngineKind(Protocol):
    """A kind of engine: llama.cpp, vLLM, an external URL."""

    name: str

    def check(self, version: EngineVersion) -> None:
        """Raise EngineError or EngineMissingError where the version could not be started here. Blocking; may take as
        long as starting an interpreter."""

    def launch(self, version: EngineVersion, port: int) -> Launch:
        """How to start the version so that it listens on the port. Quick. Raises as `check` does."""

    def environment(self, version: EngineVersion) -> dict[str, str]:
        """The packages that decide what the engine computes, and their versions: for the manifest."""


def kind(name: str) -> EngineKind:
    """The kind of that name. Raises EngineError naming those that there are."""
    if name not in KINDS:
        raise EngineError(f"unknown engine {name!r}: {nearest(name, KINDS)}")
    module, _, attribute = KINDS[name].partition(":")
    found: EngineKind = getattr(importlib.import_module(module), attribute)
    return found


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say of a name that is not known: the nearest one that is, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"


def fingerprint(kind: EngineKind, version: EngineVersion) -> str:
    """What must be equal for a running engine to be adopted: the command line (but for its port), the digest, and the
    key that it was given.

    The environment is left out: the share of threads changes with every neighbour, and is no reason for a restart.
    """
    launch = kind.launch(version, 0)
    keys = (version.authorization,) if version.authorization else ()
    text = "\0".join((*launch.argv, launch.base_url, str(launch.cwd), version.digest, *keys))
    return hashlib.sha256(text.encode()).hexdigest()


def minimal_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What a child may see of our environment: paths, locale and devices, never a key, never a setting of an engine
    (those belong to the version's `engine_args`, so that its digest covers them)."""
    return {
        name: value for name, value in environ.items() if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)
    }


def require_files(version: EngineVersion) -> None:
    """Raise EngineMissingError where an artifact's file is not there or cannot be read."""
    for path in version.files:
        if not path.exists():
            raise EngineMissingError(
                f"{version.ref} has no file {path}: fetch it again with `modelyard up`, or register the version anew"
            )
        if not os.access(path, os.R_OK):
            raise EngineMissingError(f"{version.ref} cannot read {path}: give this user the right to read it")


def text_argument(version: EngineVersion, name: str) -> str:
    """An engine argument that must be text, "" where it is not given. Raises EngineError."""
    value = version.manifest.engine_args.get(name, "")
    if not isinstance(value, str):
        raise EngineError(f"{version.ref}: engine_args.{name} must be text, not {value!r}")
    return value
