"""What the control plane asks the drift child to do, and what it says back: one JSON document each way.

Owns: these shapes. Never: numpy or a store: the control plane imports this.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from monitoring.windows import Drift, Policy

CHILD: Final = "monitoring.live_drift_child"


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """Whether and how far texts are embedded."""

    texts_max: int
    """New texts in this job."""
    model: str = ""


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """A reference to be made: of a window, or of an evaluation run where `run` is its folder."""

    model: str
    since: float = 0.0
    until: float = 0.0
    run: str = ""
    by: str = ""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Either `pin`, or checks of the models in `versions`."""

    samples: str
    """Path of the store of samples."""
    folder: str
    """`drift` in the state directory."""
    now: float
    cpu_s: float
    window_s: float
    window_samples_max: int
    policy: Policy
    versions: dict[str, list[str]] = {}
    """Model -> labels of its versions."""
    embedding: Embedding | None = None
    pin: Pin | None = None


class Said(msgspec.Struct, kw_only=True):
    """The child's answer."""

    drifts: list[Drift] = []
    pinned: dict[str, Any] | None = None
    """`Reference.summary()`."""
    embedded: int = 0
    """Texts that were embedded anew."""
    error: str = ""
    """One sentence for the user."""
    missing: bool = False
    """The error is that a library or a file is not there."""
