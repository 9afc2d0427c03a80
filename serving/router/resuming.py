"""The attempt in which another replica goes on with a cut stream.

Owns: its two requests (count the partial text's tokens, then continue it) and what of their answers counts. Never:
which replica, what the stream has said (`continuation`), what the client is told (`exchange`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from serving.router.forward import request_to
from serving.router.table import ANY_NAME

if TYPE_CHECKING:
    from serving.router.continuation import Resumption
    from serving.router.exchange import Exchange
    from serving.router.snapshot import VersionState
    from serving.router.upstream import Backend

COUNT_BYTES_MAX: Final = 8 * 1024 * 1024
OK: Final = 200


def able_to_continue(version: VersionState, failed: set[str], now: float) -> list[tuple[VersionState, Backend]]:
    """Who may go on with a stream of the version, those first whose breaker is closed. `failed` are the replicas that
    have failed since the stream last made progress."""
    left = [
        (one, backend)
        for one in version.continuers
        for backend in one.backends
        if backend.config.id not in failed and not backend.breaker.rests_s(now)
    ]
    return [each for each in left if each[1].breaker.allows(now)] or left


class Resuming:
    """Implements `upstream.Receiver` between an exchange and the replica that is to go on."""

    __slots__ = ("_backend", "_counting", "_data", "_exchange", "_heard", "_model", "_resumption", "_status")

    def __init__(self, exchange: Exchange, backend: Backend, version: VersionState, resumption: Resumption) -> None:
        self._exchange = exchange
        self._backend = backend
        self._resumption = resumption
        name = version.config.served_names[0]
        self._model = exchange.record.model if name == ANY_NAME else name
        self._counting = True
        self._status = 0
        self._heard: list[bytes] = []
        self._data: list[bytes | memoryview] = []

    def start(self) -> None:
        """Ask for the count first: what is left of the request's `max_tokens` depends on it."""
        self._send(b"/tokenize", self._resumption.counting_body(self._model))

    def _send(self, target: bytes, body: bytes) -> None:
        self._data = request_to(self._exchange.request, self._backend, target, body)
        self._exchange.dispatch(self, self._data)

    # --- upstream.Receiver ---

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._status = status
        if not self._counting and status != OK:
            self._exchange.not_continued(status)

    def on_body(self, data: bytes) -> None:
        if not self._counting:
            self._exchange.on_body(data)
        elif sum(map(len, self._heard)) < COUNT_BYTES_MAX:
            self._heard.append(data)

    def on_end(self) -> None:
        if not self._counting:
            self._exchange.on_end()
            return
        self._counting = False
        if self._status == OK:
            self._resumption.counted(b"".join(self._heard))
        self._heard = []
        self._send(self._exchange.request.target, self._resumption.body(self._model))

    def on_broken(self, error: str, *, stale: bool) -> None:
        if stale:
            self._exchange.dispatch(self, self._data, fresh=True)
        else:
            self._exchange.on_broken(error, stale=False)
