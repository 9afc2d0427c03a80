"""The replicas that one request may be tried on, in order.

Owns: that order and what has been tried. Never: I/O, deciding whether to try again (`retry`).

1. The assigned version comes first, then the fallback chain; a pinned version has no chain.
2. Within a version the choice among the replicas that are left is the router's (least busy, prefix affinity).
3. Replicas whose breaker is open come last, after every fallback: better a doubtful one than none. One that asked to be
   left alone is not asked before its time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from serving.router.http1 import Request
from serving.router.retry import Elsewhere
from serving.router.snapshot import VersionState
from serving.router.upstream import Backend

Choose = Callable[[VersionState, list[Backend], Request], Backend]
"""One of several replicas of a version, none of them tried yet by this request."""


class Plan:
    """Where one request is and may go. `version` and `backend` are set by `next`."""

    __slots__ = ("_attempts_max", "_choose", "_in_version", "_request", "_tries", "_versions", "backend", "version")

    def __init__(self, versions: Sequence[VersionState], attempts_max: int, choose: Choose, request: Request) -> None:
        self._versions = versions
        self._attempts_max = attempts_max
        self._choose = choose
        self._request = request
        self._tries: dict[str, int] = {}
        self._in_version = 0
        self.version: VersionState
        self.backend: Backend

    @property
    def tries(self) -> int:
        """Attempts on the present replica so far."""
        return self._tries.get(self.backend.config.id, 0)

    def next(self, now: float) -> bool:
        """Move to the next replica; False where there is none."""
        found = self._find(now)
        if found is None:
            return False
        version, left = found
        if not self._tries or version is not self.version:
            self._in_version = 0
        self.version = version
        self.backend = left[0] if len(left) == 1 else self._choose(version, left, self._request)
        self.again()
        return True

    def again(self) -> None:
        """One more attempt on the present replica."""
        name = self.backend.config.id
        self._tries[name] = self._tries.get(name, 0) + 1
        self._in_version += 1

    def elsewhere(self, now: float) -> Elsewhere:
        """What is left beside the present replica."""
        found = self._find(now)
        if found is None:
            return ""
        return "replica" if found[0] is self.version else "version"

    def rests_s(self, now: float) -> float:
        """How long until the first replica that asked to be left alone may be asked again; 0 where none did."""
        rests = [backend.breaker.rests_s(now) for version in self._versions for backend in version.backends]
        return min((rest for rest in rests if rest), default=0.0)

    def _find(self, now: float) -> tuple[VersionState, list[Backend]] | None:
        tries = self._tries
        if not tries and self._versions:  # by far the most frequent case
            first = self._versions[0]
            if len(first.backends) == 1 and first.backends[0].breaker.allows(now):
                return first, [first.backends[0]]
        for last_resort in (False, True):
            for version in self._versions:
                if tries and version is self.version and self._in_version >= self._attempts_max:
                    continue
                left = [
                    backend
                    for backend in version.backends
                    if backend.config.id not in tries
                    and (backend.breaker.allows(now) or (last_resort and not backend.breaker.rests_s(now)))
                ]
                if left:
                    return version, left
        return None
