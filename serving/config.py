"""The configuration file: one YAML document, checked to its last key before anything starts.

Owns: the top-level sections, loading, and errors that name the line and the nearest valid key. Never: starting,
resolving or registering anything.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from registry.config import DriftConfig, ModelConfig, Section
from registry.models import check_name
from registry.terminal import NotThereError, UserError


class TlsConfig(Section):
    """HTTPS on the router's port. Read again when either file changes."""

    certificate: str = Field(description="Path of the certificate chain (PEM), relative to this file.")
    key: str = Field(description="Path of its private key (PEM).")


class AccessLogConfig(Section):
    """One JSON line per finished request, written off the hot path. Never a body, a key or a credential."""

    path: str = Field("", description='A file, relative to this one; "" for access.jsonl in the state directory.')
    sample: int = Field(10_000, ge=0, le=10_000, description="Basis points of completed requests; others always.")
    bytes_max: int = Field(64 * 1024 * 1024, ge=1024 * 1024, description="Then it is rotated; one older file is kept.")
    redact: tuple[Literal["request_id", "key_id", "trace_id", "segment", "bucket", "replica", "finish_reason"], ...] = (
        Field((), description="Fields that no line holds; with `request_id` its other places are left out too.")
    )


class TracingConfig(Section):
    """Spans and metrics for OpenTelemetry."""

    endpoint: str = Field(description="OTLP over HTTP, e.g. http://127.0.0.1:4318.")
    sample: int = Field(10_000, ge=0, le=10_000, description="Basis points of requests that carry no decision.")
    metrics: bool = Field(False, description="Send it metrics by the GenAI conventions too, of every request.")

    @field_validator("endpoint")
    @classmethod
    def _is_http(cls, endpoint: str) -> str:
        if not endpoint.startswith(("http://", "https://")):
            raise ValueError(f"endpoint {endpoint!r} must begin with http:// or https://")
        return endpoint.rstrip("/")


class ServerConfig(Section):
    """Where the router and the admin API listen, and what they accept."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    admin_host: str = "127.0.0.1"
    admin_port: int = Field(default=8001, ge=0, le=65535)
    workers: int = Field(default=1, ge=1, le=64)
    body_bytes_max: int = Field(default=32 * 1024 * 1024, ge=1024)
    head_timeout_s: float = Field(default=10.0, gt=0)
    body_timeout_s: float = Field(default=60.0, gt=0)
    keepalive_s: float = Field(default=75.0, gt=0)
    unread_timeout_s: float = Field(
        default=60.0, gt=0, description="A client that reads nothing of a waiting answer for so long is gone."
    )
    connections_max: int = Field(default=10_000, ge=1)
    drain_s: float = Field(default=30.0, ge=0, description="How long a stop waits for requests in flight.")
    require_keys: bool = Field(
        default=False, description="Refuse requests without an API key even while none has been created."
    )
    allow_public_without_keys: bool = Field(
        default=False, description="Listen beyond loopback although no API key is required."
    )
    tls: TlsConfig | None = None
    access_log: AccessLogConfig | None = None
    tracing: TracingConfig | None = None

    @model_validator(mode="after")
    def _ports_differ(self) -> ServerConfig:
        if self.port and self.port == self.admin_port:
            raise ValueError(f"port and admin_port are both {self.port}: give one of them another number")
        return self


class PricesConfig(Section):
    """What the devices cost. Currency is a label: nothing is converted."""

    currency: str = "USD"
    gpu_hour: float = Field(default=0.0, ge=0, description="Per GPU and hour held.")
    cpu_hour: float = Field(default=0.0, ge=0, description="Per core and hour held, on a machine without a GPU.")
    kwh: float = Field(default=0.0, ge=0)
    pue: float = Field(default=1.0, ge=1)
    storage_gb_month: float = Field(
        default=0.0, ge=0, description="Per 10^9 bytes of artifacts and month of 730 hours."
    )
    compare: list[str] = Field([], max_length=20, description="Hosted models, PROVIDER/MODEL as LiteLLM names them.")
    price_map: str = Field("", description="LiteLLM's price map, a JSON file; the installed LiteLLM's where empty.")


class BudgetConfig(Section):
    """An amount of `prices.currency` for each period, of the whole yard or of what it names. In UTC."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")
    amount: float = Field(gt=0, allow_inf_nan=False, description="On the basis `allocated`, idle time included.")
    period: Literal["month", "week", "day"] = "month"
    model: str = Field("", description="Only this model's spending.")
    version: str = Field("", description="Only this version's; `model` says whose.")
    key: str = Field("", description="Only what the API key with this id asked for; idle time is in no key's spending.")
    alert_at: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.8, 1.0), min_length=1, max_length=8, description="Shares of the amount that are worth a warning."
    )

    @field_validator("alert_at")
    @classmethod
    def _rising(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(set(shares)))

    @model_validator(mode="after")
    def _names_a_model(self) -> BudgetConfig:
        if self.version and not self.model:
            raise ValueError(f"version {self.version!r} needs `model:` beside it")
        return self


class MonitoringConfig(Section):
    """How closely devices are watched."""

    sample_hz: float = Field(1.0, ge=1, le=10, description="Readings of GPUs a second. A CPU is read once a second.")


class YardConfig(Section):
    """The whole file."""

    server: ServerConfig = ServerConfig()
    prices: PricesConfig = PricesConfig()
    budgets: list[BudgetConfig] = Field([], max_length=100)
    drift: DriftConfig = DriftConfig()
    monitoring: MonitoringConfig = MonitoringConfig()
    models: dict[str, ModelConfig] = Field(min_length=1)

    @field_validator("models")
    @classmethod
    def _usable_names(cls, models: dict[str, ModelConfig]) -> dict[str, ModelConfig]:
        for name in models:
            check_name("model", name)
        return models

    @field_validator("budgets")
    @classmethod
    def _different_names(cls, budgets: list[BudgetConfig]) -> list[BudgetConfig]:
        names = [budget.name for budget in budgets]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two budgets are called {name!r}: give each a name of its own")
        return budgets


class ConfigError(UserError):
    """The configuration file is not usable; says where and what would be."""


def load(path: Path) -> YardConfig:
    """The configuration in the file at `path`. Raises NotThereError or ConfigError, each one sentence."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotThereError(
            f"there is no configuration file {path}: give the path of one, e.g. configs/quickstart.yaml"
        ) from None
    except OSError as error:
        raise NotThereError(f"the configuration file {path} cannot be read ({error.strerror}): give another") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the configuration file {path} is not text in UTF-8: give a YAML file") from None
    return parse(text, str(path))


def parse(text: str, name: str = "configuration") -> YardConfig:
    """The configuration in `text`; `name` is how errors call it. Raises ConfigError."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(value, dict):
        what = "empty" if value is None else f"a {type(value).__name__}, not a mapping"
        raise ConfigError(f"{name}: {what}: it must hold at least `models:`")
    duplicate = _duplicate_key(node)
    if duplicate is not None:
        raise ConfigError(
            f"{name}:{duplicate.start_mark.line + 1}: the key {duplicate.value!r} stands here a second time"
        )
    try:
        return YardConfig.model_validate(value)
    except ValidationError as error:
        raise ConfigError("; ".join(_sentences(error, node, name))) from None


def json_schema() -> str:
    """A JSON schema of the file, for editors."""
    return json.dumps(YardConfig.model_json_schema(), indent=2)


def _sentences(error: ValidationError, root: yaml.Node | None, name: str) -> Iterator[str]:
    seen: set[str] = set()
    for item in error.errors(include_url=False):
        if item["type"] in ("string_type", "model_type") and _of_another_shape(item["loc"], item["input"]):
            continue
        path = [part for part in item["loc"] if part not in ("Requantize", "str", "constrained-str", "[key]")]
        line = _line(root, path)
        dotted = ".".join(str(part) for part in path)
        if item["type"] == "extra_forbidden":
            known = _known_keys(path[:-1])
            near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            sentence = f"{name}:{line}: unknown key {dotted!r}: {hint}"
        elif item["type"] == "missing":
            sentence = f"{name}:{line}: {dotted!r} is missing"
        else:
            message = item["msg"].removeprefix("Value error, ")
            sentence = f"{name}:{line}: {dotted or 'file'}: {message}"
        if sentence not in seen:
            seen.add(sentence)
            yield sentence


def _of_another_shape(loc: tuple[int | str, ...], value: Any) -> bool:
    """Whether the error is about the form of an artifact that the user did not choose (text or mapping)."""
    return "artifact" in loc and isinstance(value, dict) == (loc[-1] != "Requantize")


def _line(node: yaml.Node | None, path: list[Any]) -> int:
    """The line of the deepest node on `path` that the document has."""
    line = node.start_mark.line + 1 if node else 1
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, item) for key, item in node.value if str(key.value) == str(part)), None)
            if found is None:
                return line
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line


def _known_keys(path: list[Any]) -> list[str]:
    """The keys that the section at `path` takes."""
    section: type[BaseModel] | None = YardConfig
    skip = False
    for part in path:
        if skip or isinstance(part, int):  # a key that the user chose (a model's name, a version's label), a place
            skip = False
            continue
        if section is None or part not in section.model_fields:
            return []
        annotation = section.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        section = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        skip = str(getattr(annotation, "__origin__", "")).endswith("dict'>")
    return list(section.model_fields) if section else []


def _duplicate_key(node: yaml.Node | None) -> yaml.ScalarNode | None:
    """The first key that a mapping holds twice (YAML would silently take the last)."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, item in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    return key
                seen.add(key.value)
            found = _duplicate_key(item)
            if found is not None:
                return found
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            found = _duplicate_key(item)
            if found is not None:
                return found
    return None
