"""What a configuration file says of models and versions, as validated values.

Owns: the `models:` section. Never: reading files, resolving artifacts, traffic state (that is the registry's).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from registry.models import BUCKETS, check_name, check_weights

EngineName = Literal["llama.cpp", "vllm", "external"]
ARTIFACT_KINDS = ("file:", "pypi:")
DEFAULT_STICKY = ("header:x-session-id", "body:user")


class Section(BaseModel):
    """Unknown keys are refused; values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class Requantize(Section):
    """An artifact derived from another version of the same model by quantising its weights again."""

    requantize: str = Field(description="The label of the version whose GGUF file is quantised again.")
    type: str = Field("Q4_0", description="The GGUF quantisation type, e.g. Q4_0, Q5_0, Q8_0.")

    def __str__(self) -> str:
        return f"requantize:{self.requantize}?type={self.type}"


class LineageConfig(Section):
    """Where a version comes from; whatever is known."""

    parent: str = ""
    git_commit: str = ""
    data_digest: str = ""
    training_run: str = ""
    hyperparameters: dict[str, Any] = Field(default_factory=dict)


class VersionConfig(Section):
    """One version of a model."""

    artifact: str | Requantize | None = Field(
        None,
        description="Where the weights come from: `file:PATH`, `pypi:PACKAGE==VERSION/PATH/IN/WHEEL`, or "
        "`{requantize: LABEL, type: Q4_0}`. External engines have none.",
    )
    engine: EngineName = Field(description="`llama.cpp`, `vllm` or `external`.")
    engine_args: dict[str, Any] = Field(default_factory=dict, description="Arguments of the engine, in its own words.")
    url: str = Field("", description="Base URL of an `external` engine, without `/v1`.")
    api_key_env: str = Field("", description="The environment variable that holds an `external` engine's API key.")
    python: str = Field("", description="The Python interpreter of the environment that has vLLM.")
    replicas: int = Field(1, ge=0, le=64, description="How many engine processes; 0 registers without starting one.")
    chat_template: str = Field("", description="Path of a Jinja file that replaces the model's chat template.")
    sampling: dict[str, Any] = Field(default_factory=dict, description="Sampling defaults.")
    lineage: LineageConfig = LineageConfig()
    licence: str = ""

    @model_validator(mode="after")
    def _has_what_its_engine_needs(self) -> VersionConfig:
        if self.engine == "external":
            if not self.url:
                raise ValueError("an external engine needs `url:`")
            if self.artifact is not None:
                raise ValueError("an external engine takes no `artifact:`: it has its own")
        elif self.artifact is None:
            raise ValueError(f"a {self.engine} engine needs `artifact:`")
        if self.engine == "vllm" and not self.python:
            raise ValueError("a vllm engine needs `python:`, the interpreter of the environment that has vLLM")
        return self

    @field_validator("artifact")
    @classmethod
    def _has_a_known_source(cls, artifact: str | Requantize | None) -> str | Requantize | None:
        if isinstance(artifact, str) and not artifact.startswith(ARTIFACT_KINDS):
            raise ValueError(f"artifact {artifact!r} begins with none of {', '.join(ARTIFACT_KINDS)}")
        return artifact

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        if url and not url.startswith(("http://", "https://")):
            raise ValueError(f"url {url!r} must begin with http:// or https://")
        if "@" in urlsplit(url).netloc:  # it would be registered, and shown to everybody
            raise ValueError("the url must not hold a user or a password: put the key into `api_key_env:`")
        return url.rstrip("/").removesuffix("/v1")


class TimeoutsConfig(Section):
    """Seconds; 0 switches one off."""

    connect_s: float = Field(2.0, ge=0)
    first_byte_s: float = Field(300.0, ge=0)
    between_bytes_s: float = Field(120.0, ge=0)
    total_s: float = Field(1800.0, ge=0)


def _labels(value: Any) -> Any:
    """YAML reads a bare `1` as a number; labels are text."""
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else value


class ModelConfig(Section):
    """One public model."""

    versions: Annotated[dict[str, VersionConfig], BeforeValidator(_labels)] = Field(min_length=1)
    route: Annotated[dict[str, int], BeforeValidator(_labels)] = Field(
        default_factory=dict,
        description="Label -> basis points, summing to 10000. The first one is the stable arm. Used when the model is "
        "first seen; later changes belong to `modelyard route set`.",
    )
    aliases: Annotated[dict[str, str], BeforeValidator(_labels)] = Field(default_factory=dict)
    sticky: tuple[str, ...] = DEFAULT_STICKY
    fallback: tuple[str, ...] = ()
    timeouts: TimeoutsConfig = TimeoutsConfig()

    @field_validator("sticky")
    @classmethod
    def _known_sticky(cls, sticky: tuple[str, ...]) -> tuple[str, ...]:
        for source in sticky:
            kind, _, name = source.partition(":")
            if not name or kind not in ("header", "body") or (kind == "body" and name != "user"):
                raise ValueError(f"sticky source {source!r} is none of header:NAME, body:user")
        return sticky

    @model_validator(mode="after")
    def _names_its_own_versions(self) -> ModelConfig:
        for label in self.versions:
            check_name("version", label)
        if self.route:
            check_weights(self.route)
        elif len(self.versions) > 1:
            raise ValueError(f"a model with several versions needs `route:`, basis points that sum to {BUCKETS}")
        known = ", ".join(self.versions)
        for place, labels in (
            ("route", self.route),
            ("fallback", self.fallback),
            ("aliases", self.aliases.values()),
        ):
            for label in labels:
                if label not in self.versions:
                    raise ValueError(f"{place} names version {label!r}, which is not one of {known}")
        for label, version in self.versions.items():
            if isinstance(version.artifact, Requantize) and version.artifact.requantize not in self.versions:
                raise ValueError(
                    f"version {label!r} is derived from {version.artifact.requantize!r}, which is not one of {known}"
                )
        return self

    def first_route(self) -> dict[str, int]:
        """The weights for a model that the registry has not seen yet."""
        return dict(self.route) or {next(iter(self.versions)): BUCKETS}
