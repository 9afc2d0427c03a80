"""A gate's policy: what a candidate must show before it takes the baseline's place, as declared in a YAML file.

Owns: the fields, their checks and the digest. Never: deciding by it (gate.py).

    name: release
    alpha: 0.05
    suites:
      - suite: regression-core
        margin: 0.03
        samples_min: 200
        slices_not_worse: [arithmetic, extraction]
      - suite: safety-basics
    max_latency_ratio: 1.5
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from eval.errors import PolicyError
from registry.models import InvalidNameError, check_name
from registry.terminal import NotThereError

ALL_SLICES: Final = "all"


class SuitePolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one suite has to show."""

    suite: str
    """A shipped suite's name, or a path (from the policy's folder)."""
    path: str | None = None
    """A published data set (from the policy's folder), where `suite` names its format."""
    margin: float | None = None
    """δ [default: the suite's, else 0.05 or the noise floor]."""
    gates: tuple[str, ...] = ()
    """`overall`, or names of scorers [default: the suite's]."""
    sample: int | None = None
    """Only so many cases, every slice with its share."""
    slices: tuple[str, ...] = ()
    """Only these slices."""
    repeats: int | None = None
    samples_min: int = 0
    """With fewer pairs the gate is inconclusive."""
    slices_not_worse: tuple[str, ...] | str = ()
    """Slices that may not be measurably worse (Holm over all slices that the policy names), or `all`."""


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What has to hold, all of it."""

    name: str
    suites: tuple[SuitePolicy, ...]
    description: str = ""
    alpha: float = 0.05
    seed: int = 0
    max_latency_ratio: float | None = None
    """Candidate / baseline of the mean latency, on every suite."""
    max_cost_ratio: float | None = None
    """Candidate / baseline of the mean engine time per answer, which cost is proportional to on one device."""

    @property
    def digest(self) -> str:
        encoded = msgspec.json.encode(msgspec.structs.replace(self, description=""), order="deterministic")
        return "sha256:" + hashlib.sha256(encoded).hexdigest()


def load(path: Path) -> Policy:
    """Read and check a policy. Raises NotThereError, PolicyError naming the field."""
    try:
        text = path.read_text()
    except OSError as error:
        raise NotThereError(f"the policy {path} cannot be read ({error.strerror})") from error
    try:
        raw: Any = yaml.safe_load(text)
        policy = msgspec.convert(raw, Policy)
        check_name("policy", policy.name)
    except yaml.YAMLError as error:
        raise PolicyError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except (msgspec.ValidationError, InvalidNameError) as error:
        raise PolicyError(f"{path}: {error}") from error
    _check(policy, path)
    return policy


def load_for(path: Path, suite: str) -> tuple[Policy, SuitePolicy]:
    """A policy that names `suite` and no other, with its entry. Raises PolicyError where it names others."""
    policy = load(path)
    names = [one.suite for one in policy.suites]
    if [Path(name).name for name in names] != [Path(suite).name]:
        raise PolicyError(f"{path} is about {', '.join(names)}: run modelyard eval gate {path}")
    return policy, policy.suites[0]


def located(suite: str, folder: Path) -> str:
    """The suite as the policy means it: a path from the policy's own folder, where there is one, else a name."""
    beside = folder / suite
    return str(beside) if beside.exists() and ("/" in suite or suite.endswith((".yaml", ".yml"))) else suite


def data_of(suite: SuitePolicy, folder: Path) -> Path | None:
    """The published data set that the suite's format reads."""
    return None if suite.path is None else folder / suite.path


def _check(policy: Policy, path: Path) -> None:
    names = [one.suite for one in policy.suites]
    problems = [
        (not names, "it names no suite under `suites:`"),
        (len(set(names)) < len(names), "a suite is named twice: name each once"),
        (not 0 < policy.alpha < 0.5, f"alpha is {policy.alpha}: it must lie between 0 and 0.5"),
    ]
    for name, ratio in (("max_latency_ratio", policy.max_latency_ratio), ("max_cost_ratio", policy.max_cost_ratio)):
        problems.append((ratio is not None and ratio <= 0, f"{name} is {ratio}: it must be above 0"))
    for one in policy.suites:
        bad_margin = one.margin is not None and not 0 <= one.margin < 1
        problems += [
            (bad_margin, f"margin of {one.suite} is {one.margin}: it is a share of the score, between 0 and 1"),
            (one.sample is not None and one.sample < 1, f"sample of {one.suite} is {one.sample}: it must be 1 or more"),
            (
                one.repeats is not None and one.repeats < 1,
                f"repeats of {one.suite} is {one.repeats}: it must be 1 or more",
            ),
            (
                isinstance(one.slices_not_worse, str) and one.slices_not_worse != ALL_SLICES,
                f"slices_not_worse of {one.suite} is {one.slices_not_worse!r}: a list of slices, or `{ALL_SLICES}`",
            ),
        ]
    for wrong, message in problems:
        if wrong:
            raise PolicyError(f"{path}: {message}")
