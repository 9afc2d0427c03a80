"""What the configuration in force declares, for whoever may only change what it does not.

Owns: those answers. Never: reading a configuration, putting another one in force (desk).
"""

from __future__ import annotations

from collections.abc import Callable

from serving.config import YardConfig


class Declared:
    """Asks the configuration in force anew each time: an apply may have changed it."""

    def __init__(self, in_force: Callable[[], YardConfig]) -> None:
        self._in_force = in_force

    def version(self, model: str, label: str) -> bool:
        """Whether it has the version."""
        found = self._in_force().models.get(model)
        return found is not None and label in found.versions

    def url(self, url: str) -> bool:
        """Whether it names an engine at this URL."""
        models = self._in_force().models.values()
        return any(version.url == url for model in models for version in model.versions.values())

    def required_gate(self, model: str) -> str:
        """The gate policy that it requires of the model's versions; "" for none."""
        found = self._in_force().models.get(model)
        return found.require_gate if found is not None else ""
