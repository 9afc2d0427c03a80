"""The routing table made ready for use: names indexed, headers spelt out, connection pools attached.

Owns: what one generation of the table means at run time. Never: changing after it was built; a new table is a new
Snapshot, and exchanges that began under an old one keep it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from serving.router.cache import AnswerCache
from serving.router.keys import Keyring, may_use
from serving.router.retry import Budget
from serving.router.rules import Rules
from serving.router.table import Key, Model, Table, Version
from serving.router.upstream import Backend

if TYPE_CHECKING:
    from serving.router.sampling import Sampling
    from serving.router.shadow import Lane

HEADER: Final = b"header"


class Tally:
    """Content events forwarded for one version since the worker started; shared by all generations."""

    __slots__ = ("events",)

    def __init__(self) -> None:
        self.events = 0


class VersionState:
    """One version that can be asked: its ready replicas and its part of the answer's head."""

    __slots__ = ("affinity_seed", "backends", "config", "continuers", "head", "label", "tally")

    def __init__(self, model: str, config: Version, generation: int, backends: Sequence[Backend], tally: Tally) -> None:
        self.label = config.label
        self.config = config
        self.backends = tuple(backends)
        self.tally = tally
        self.continuers: tuple[VersionState, ...] = ()
        """Versions whose engines can go on with this one's cut streams: itself first, then equivalent ones."""
        self.affinity_seed = 0
        """Tells its prompts from those of other versions; 0 where replicas are chosen by their load alone."""
        reference = f"{model}@{config.label}".encode("latin-1")
        self.head = b"x-modelyard-version: %b\r\nx-modelyard-generation: %d\r\n" % (reference, generation)


class ModelState:
    """One model: its versions and the route in force."""

    __slots__ = (
        "budget",
        "cache",
        "config",
        "fallback",
        "larger_context",
        "rules",
        "salt",
        "samples",
        "shadows",
        "sticky",
        "versions",
    )

    def __init__(self, config: Model, versions: Mapping[str, VersionState], budget: Budget) -> None:
        self.config = config
        self.versions = versions
        self.budget = budget
        """What failures may add to the load; kept across generations."""
        self.rules = Rules(config.segments) if config.segments else None
        self.cache: AnswerCache | None = None
        """Set by the router, where answers are kept for when no engine can give one."""
        self.shadows: tuple[tuple[VersionState, Lane], ...] = ()
        """Set by `shadow`, which knows what is under way."""
        self.samples: Sampling | None = None
        """Set by the router, where requests are sampled."""
        for label, version in versions.items():
            version.affinity_seed = (hash((config.name, label)) or 1) if config.affinity else 0
            version.continuers = _continuers(label, config, versions)
        self.salt = config.salt.encode("ascii")
        self.fallback = tuple(versions[label] for label in config.fallback if label in versions)
        self.larger_context = tuple(versions[label] for label in config.larger_context if label in versions)
        self.sticky = tuple(
            (kind.encode("ascii"), name.lower().encode("latin-1"))
            for kind, _, name in (source.partition(":") for source in config.sticky)
        )

    @property
    def answers(self) -> bool:
        """Whether a request that goes through the route would find a ready replica, whatever its bucket."""
        routed = {arm.label for arm in self.config.arms}
        spare = any(version.backends for version in self.fallback)
        return bool(routed) and all(
            spare or (label in self.versions and self.versions[label].backends) for label in routed
        )


def _continuers(label: str, config: Model, versions: Mapping[str, VersionState]) -> tuple[VersionState, ...]:
    """Who can go on with a stream of the version `label` that loses its replica: somebody else than that replica."""
    groups = [group for group in config.equivalent if label in group]
    labels = dict.fromkeys([label, *(other for group in groups for other in group)])
    able = [versions[one] for one in labels if one in versions and versions[one].config.prefill]
    return tuple(able) if sum(len(one.backends) for one in able) > (1 if versions[label] in able else 0) else ()


class Target:
    """What a name in `model` stands for: a route, or one pinned version of it."""

    __slots__ = ("model", "pinned")

    def __init__(self, model: ModelState, pinned: VersionState | None = None) -> None:
        self.model = model
        self.pinned = pinned


def _card(name: str, created: int, window: int) -> bytes:
    """What `/v1/models` says of a name. The window is in tokens, prompt and answer together, under vLLM's name; 0 (left
    out) where no engine tells it."""
    card = {"id": name, "object": "model", "created": created, "owned_by": "modelyard"}
    return msgspec.json.encode(card | {"max_model_len": window} if window else card)


def _window(target: Target) -> int:
    """Of a pinned version its window; of a route the smallest of its versions', where all of them tell theirs."""
    versions = [target.pinned] if target.pinned else list(target.model.versions.values())
    return min((version.config.context_tokens for version in versions), default=0)


def _list_of(cards: Iterable[bytes]) -> bytes:
    return b'{"object":"list","data":[' + b",".join(cards) + b"]}"


class Snapshot:
    """One generation: every name that clients may use, and what it stands for."""

    __slots__ = ("cards", "generation", "keyring", "limits", "models", "models_body", "targets")

    def __init__(
        self,
        table: Table,
        backends: Mapping[str, Backend],
        tallies: dict[str, Tally],
        budgets: dict[str, Budget],
        now: float,
    ) -> None:
        self.generation = table.generation
        self.limits = table.limits
        self.keyring = Keyring(table.keys) if table.keys or table.keys_required else None
        """None where no key is needed."""
        self.models: dict[str, ModelState] = {}
        self.targets: dict[str, Target] = {}
        self.cards: dict[str, bytes] = {}
        for name, config in table.models.items():
            budget = budgets.setdefault(name, Budget(config.retry.budget, now))
            budget.share = config.retry.budget
            model = self._model(config, backends, tallies, budget)
            self.models[name] = model
            self.targets[name] = Target(model)
            for label, version in model.versions.items():
                self.targets[f"{name}@{label}"] = Target(model, version)
            for alias, label in config.aliases.items():
                if label in model.versions:
                    self.targets[f"{name}@{alias}"] = Target(model, model.versions[label])
            self.cards |= {
                known: _card(known, config.created, _window(target))
                for known, target in self.targets.items()
                if known.partition("@")[0] == name
            }
        self.models_body = _list_of(self.cards.values())

    def _model(
        self, config: Model, backends: Mapping[str, Backend], tallies: dict[str, Tally], budget: Budget
    ) -> ModelState:
        versions = {
            label: VersionState(
                config.name,
                version,
                self.generation,
                [backends[replica.id] for replica in version.replicas if replica.state == "ready"],
                tallies.setdefault(f"{config.name}@{label}", Tally()),
            )
            for label, version in config.versions.items()
        }
        return ModelState(config, versions, budget)

    def names_for(self, key: Key | None) -> list[str]:
        """Names in `model` that stand for something its key may use."""
        return [name for name in self.targets if may_use(key, name.partition("@")[0])]

    def models_for(self, key: Key | None) -> bytes:
        """The answer to `/v1/models`: what the key may use."""
        if key is None or not key.models:
            return self.models_body
        return _list_of(self.cards[name] for name in self.names_for(key))

    def not_answering(self) -> list[str]:
        """Models for which some request would find no ready replica."""
        return [name for name, model in self.models.items() if not model.answers]
