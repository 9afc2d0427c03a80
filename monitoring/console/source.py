"""What the console asks of whoever runs the yard, as a protocol.

Owns: the calls' names and what they answer. Never: how an answer comes about; serving.control implements it.

Answers are the plain values that the admin API gives for the same question (docs/admin-api.md), so that what a page
shows and what a script reads are the same thing. Every call may raise RegistryError, UserError or ValueError with one
sentence for the person in front of the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from monitoring.console.data import DataSource

SESSION_IN_SCOPE: Final = "modelyard.console.session"
"""Where the guard in front of the console leaves a request's `Session`; absent where nobody is signed in."""

Json = dict[str, Any]


class SignInError(Exception):
    """A credential or a link that does not let anybody in; says why in one sentence."""


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who is signed in."""

    actor: str
    """Who it is, as the audit writes it."""
    expires_at: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class Cookie:
    """What a browser keeps of a session."""

    name: str
    value: str
    max_age_s: int


class ConsoleSource(DataSource, Protocol):
    """The yard as the console sees it. Single requests, arms, distributions: see `DataSource`."""

    # --- what is true now ---

    async def status(self) -> Json:
        """As GET /admin/v1/status."""

    async def readiness(self) -> Json:
        """As GET /admin/v1/health."""

    async def cost(self, since: float | None) -> Json:
        """As GET /admin/v1/cost; `since` in Unix seconds, None for all time."""

    async def series(self, minutes: float) -> Json:
        """Traffic over the last minutes in equal steps, for charts: `{"at": [Unix seconds at which each step ends],
        "step_s", "versions": {"model@label": {"requests", "failures", "tokens", "ttft_p50_s", "ttft_p95_s"}}}`, each a
        list as long as `at`: counts per step, and seconds, None where nothing was streamed."""

    # --- models and traffic ---

    async def versions(self, model: str) -> list[Json]:
        """As GET /admin/v1/models/{model}/versions."""

    async def route(self, model: str) -> Json:
        """As GET /admin/v1/models/{model}/route."""

    async def route_history(self, model: str, limit: int) -> list[Json]:
        """As GET /admin/v1/models/{model}/route/history: newest first."""

    async def gates(self, model: str) -> list[Json]:
        """As GET /admin/v1/models/{model}/gates: newest first."""

    async def drift(self, model: str) -> Json:
        """As GET /admin/v1/drift."""

    # --- the machine room ---

    async def engine_log(self, replica: str, lines: int) -> Json:
        """`{"replica", "path", "lines"}`."""

    async def audit(self, *, subject: str = "", limit: int = 200) -> list[Json]:
        """As GET /admin/v1/audit: newest first."""

    # --- actions: each is in force when it returns ---

    async def plan_route(self, model: str, weights: Mapping[str, int]) -> Json:
        """What `set_route` would do, without doing it: `{"before": weights, "revision_before", "after": weights,
        "moved_buckets", "refusal", …}`; `refusal` is "" or why it would need force."""

    async def set_route(self, model: str, weights: Mapping[str, int], *, force: bool, actor: str) -> Json:
        """As PUT …/route: `{"route", "generation", "applied_ms", "moved_buckets", "waiting_for"}`."""

    async def plan_rollback(self, model: str, to: int | None) -> Json:
        """The same, with `revision`, `created_at` and `created_by` of the route that `roll_back` would restore."""

    async def roll_back(self, model: str, to: int | None, *, actor: str) -> Json:
        """As POST …/rollback, and answers as `set_route`."""

    async def pause(self, model: str, reason: str, *, actor: str) -> None:
        """Hold the model's route where it is, or change the reason. Raises ValueError for an unusable reason."""

    async def resume(self, model: str, *, actor: str) -> None:
        """Let the model's route be changed again. Raises ConflictError where it is not paused."""

    async def restart_engine(self, replica: str, *, actor: str) -> Json:
        """Let an engine finish what it has, then start it anew; answers when it is starting: `{"replica", "drained_s",
        "unfinished"}`, the requests that it still had when the time to drain was over."""

    # --- who is there ---

    async def sign_in(self, credential: str, name: str) -> Cookie:
        """Admit whoever shows the admin token or a key of scope admin. `name` is what the audit shall call them. Raises
        SignInError."""

    async def redeem(self, code: str) -> Cookie:
        """Admit whoever comes by a one-time link (`modelyard console`). Raises SignInError."""

    def sign_out(self, headers: Mapping[bytes, str]) -> str:
        """End the session of a request with these headers; returns the name of the cookie to forget."""
