"""Degraded answers: an answer is kept while it passes, and given again, marked, where no engine can answer.

Owns: the copy of an answer's bytes on their way to the client (samples are made of it too), and the head of a degraded
answer. Never: deciding that no engine can answer (the exchange does), what qualifies and for how long it is kept (the
cache does). Where no model has a cache and nothing is sampled nothing here runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from serving.router.answer import Answer
from serving.router.cache import AnswerCache, Kept

if TYPE_CHECKING:
    from collections.abc import Mapping

    from registry.usage import RequestRecord
    from serving.router.http1 import Client, Request
    from serving.router.snapshot import ModelState, VersionState


COPY_BYTES_MAX: Final = 4 * 1024 * 1024
"""A larger answer is not kept."""


class CopiedAnswer(Answer):
    """An answer that is remembered as it was given."""

    __slots__ = ("_copied", "_copied_bytes", "_is_cut", "content_type", "copy_bytes_max")

    def remember(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Begin the copy, once the answer's head is known and before any of its body is."""
        self._copied: list[bytes] | None = []
        self._copied_bytes = 0
        self._is_cut = False
        self.content_type = b"application/json"
        self.copy_bytes_max = COPY_BYTES_MAX
        """What follows the first so many bytes is not copied."""
        for name, value in headers:
            if name == b"content-type":
                self.content_type = value
            elif name == b"content-encoding":
                self._copied = None  # not every client could read it

    def _forward(self, data: bytes) -> None:
        if self._copied is not None:
            if self._copied_bytes + len(data) <= self.copy_bytes_max:
                self._copied.append(data)
                self._copied_bytes += len(data)
            elif not self._is_cut:
                self._is_cut = True
                self._copied.append(data[: self.copy_bytes_max - self._copied_bytes])
                self._copied_bytes = self.copy_bytes_max
        super()._forward(data)

    def keep(self, cache: AnswerCache, key: bytes, now: float) -> None:
        """The answer is complete: keep it, if it is one that may be given again."""
        if self._copied is not None and not self._is_cut and self._record.status == 200:
            cache.put(key, Kept(self.content_type, b"".join(self._copied), self._record.version, now))

    def beginning(self, bytes_max: int) -> tuple[bytes, bool]:
        """The first bytes of what the client got, and whether there were more; none of what is encoded."""
        body = b"".join(self._copied or ())
        return body[:bytes_max], self._is_cut or len(body) > bytes_max


def caches_of(models: Mapping[str, ModelState], known: Mapping[str, AnswerCache]) -> dict[str, AnswerCache]:
    """Give every model that wants one its cache: the one it had, where it had one."""
    found: dict[str, AnswerCache] = {}
    for name, model in models.items():
        wanted = model.config.cache
        if wanted.bytes_max:
            model.cache = found[name] = known.get(name) or AnswerCache(wanted.bytes_max, wanted.ttl_s)
            model.cache.limit(wanted.bytes_max, wanted.ttl_s)
    return found


def may_answer(kept: Kept, model: ModelState, chain: list[VersionState]) -> bool:
    """Whether the version that gave the answer still has a part in the model's traffic: what a version said that was
    taken out of it is not said again."""
    return any(version.label == kept.version for version in chain) or any(
        arm.label == kept.version for arm in model.config.arms
    )


def give(
    kept: Kept,
    client: Client,
    request: Request,
    record: RequestRecord,
    version: VersionState,
    now: float,
    headers: bytes,
) -> None:
    """Answer with what was kept: `x-modelyard-degraded: cache` says so, `age` how many seconds ago it was made."""
    record.status = 200
    record.source = "cache"
    record.version = kept.version
    record.dispatched_s = 0.0  # no engine worked for it
    record.response_bytes = len(kept.body)
    head = b"%bx-modelyard-degraded: cache\r\nage: %d\r\n%b" % (version.head, now - kept.at, headers)
    client.send(200, kept.body, request, content_type=kept.content_type, headers=head)
