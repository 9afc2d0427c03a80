"""What a yard tells the person in front of it, and what it may be told on the command line.

Owns: the seam between the control plane and whoever draws. Never: drawing.

    from serving.control.yard import run
    asyncio.run(run(Path("configs/quickstart.yaml"), StateDir.find(), Options(), ui))
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from registry.artifacts import NoProgress, Progress
from registry.terminal import UserError


class StoppingError(UserError):
    """A long step was broken off because the yard stops."""


class Haltable:
    """Progress of a long step in a thread, which it breaks off once `halt` is set: nobody else can end a thread."""

    def __init__(self, shown: Progress, halt: threading.Event) -> None:
        self._shown = shown
        self._halt = halt

    def start(self, title: str, total_bytes: int | None) -> None:
        self._check()
        self._shown.start(title, total_bytes)

    def advance(self, n: int) -> None:
        self._check()
        self._shown.advance(n)

    def done(self) -> None:
        self._shown.done()

    def _check(self) -> None:
        if self._halt.is_set():
            raise StoppingError("broken off, because the yard stops: start it again to go on")


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says over the configuration's `server:`; None leaves it as it is."""

    host: str | None = None
    port: int | None = None
    admin_port: int | None = None
    workers: int | None = None
    ready_timeout_s: float = 600.0
    """How long the start waits for the engines."""
    require_keys: bool = False
    allow_public_without_keys: bool = False

    def grants(self) -> dict[str, bool]:
        """What was said of keys, by the names of the configuration; nothing where nothing was."""
        said = {"require_keys": self.require_keys, "allow_public_without_keys": self.allow_public_without_keys}
        return {name: True for name, value in said.items() if value}


@dataclass(frozen=True, slots=True)
class EngineState:
    """One replica while the start waits for it."""

    id: str
    """`assistant@v1/0`"""
    state: str
    """`starting`, `ready`, `backoff`, `failed`, …"""
    detail: str = ""
    """Why, where it is not ready: the engine's last words."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Everything is up: what to tell, and how it is called."""

    url: str
    """The router's base URL, without `/v1`."""
    admin_url: str
    models: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Model -> labels of its versions."""
    adopted_workers: int = 0
    adopted_engines: int = 0
    failed: Sequence[EngineState] = ()
    """Engines that did not come up, while others did."""
    keys_required: bool = False
    """Requests need an API key."""
    certificate: str = ""
    """The file of the certificate that the router shows; "" where it speaks plain HTTP."""


class Ui(Protocol):
    """Whoever draws. Every method may be called from a thread, and returns at once."""

    def progress(self) -> Progress:
        """Something that shows one long step (a download, a requantisation)."""

    def say(self, text: str) -> None:
        """A remark: what is going on now."""

    def engines(self, states: Sequence[EngineState]) -> None:
        """How far the engines are, several times a second while the start waits for them."""

    def ready(self, ready: Ready) -> None:
        """Clients can be served."""

    def stopping(self, text: str) -> None:
        """The stop has begun; a second Ctrl-C forces it."""


class SilentUi:
    """Shows nothing: for tests and for services."""

    def progress(self) -> Progress:
        return NoProgress()

    def say(self, text: str) -> None:
        """Nothing to show."""

    def engines(self, states: Sequence[EngineState]) -> None:
        """Nothing to show."""

    def ready(self, ready: Ready) -> None:
        """Nothing to show."""

    def stopping(self, text: str) -> None:
        """Nothing to show."""
