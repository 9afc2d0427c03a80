"""Windows of real traffic and what they are compared with, as values; and where references lie on disk.

Owns: the shapes of a window's rows, a reference, a policy and a result; the files of references. Never: computing a
distance (distances, live_drift), capturing traffic, numpy: the control plane imports this.

    drift/                      in the state directory
      references/MODEL.json     what is pinned: measured features, and embeddings where they are on; never a text
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from monitoring.features import Kind, Scale
from registry.terminal import UserError

Verdict = Literal["none", "watch", "act", "inconclusive"]
SEVERITY: Final = {"none": 0, "inconclusive": 1, "watch": 2, "act": 3}
ROWS_MAX: Final = 2000
"""Of a window and of a reference: more say nothing that matters more and cost memory."""


class Row(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One sample as a window holds it."""

    id: str
    version: str
    at: float = 0.0
    """Unix seconds."""
    unit: str = ""
    """Its conversation or user; "" where that is not known: then it stands for itself."""
    features: dict[str, float | str] = {}
    feedback: float | None = None
    text: str = ""
    """The beginning of what was asked; "" where no texts are kept. References have none."""
    vectors: dict[str, list[float]] = {}
    """`input_embedding` and `output_embedding`."""


class Reference(msgspec.Struct, kw_only=True):
    """What windows of a model are compared with."""

    model: str
    source: Literal["window", "run"]
    name: str
    """The run's name, or the window's times."""
    since: float = 0.0
    until: float = 0.0
    pinned_at: float
    pinned_by: str = ""
    found: int
    """Samples that there were; of more than ROWS_MAX a random part is kept."""
    rows: list[Row]
    embedder: str = ""
    """What made the vectors; "" where there are none."""
    schema: int = 1

    def summary(self) -> dict[str, Any]:
        """All but the rows, and how many there are per version."""
        versions: dict[str, int] = {}
        for row in self.rows:
            versions[row.version] = versions.get(row.version, 0) + 1
        said = {name: getattr(self, name) for name in self.__struct_fields__ if name != "rows"}
        return {**said, "samples": len(self.rows), "versions": versions}


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How windows are judged. Effects are PSI beyond its noise; embeddings' are on the same scale."""

    samples_min: int = 200
    """On each side, for a feature to be judged."""
    feedback_min: int = 50
    """The same for feedback, which few give."""
    alpha: float = 0.05
    watch: float = 0.1
    act: float = 0.25
    resamples: int = 999
    vectors_max: int = 300
    """Embeddings of each side that are compared."""
    seed: int = 0


class Move(msgspec.Struct, frozen=True):
    """A bin or category whose share changed."""

    name: str
    reference: float
    current: float
    """Shares between 0 and 1."""


class FeatureDrift(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What was found of one feature."""

    feature: str
    kind: Kind
    scale: Scale
    verdict: Verdict
    reference_n: int
    current_n: int
    needed: int = 0
    """More samples that the current window needs for a verdict, about; 0 where there is one."""
    needed_reference: int = 0
    """The same of the reference, which only a new pin can give."""
    effect: float | None = None
    """PSI less its mean under no drift; what is compared with the policy's `watch` and `act`."""
    low: float | None = None
    high: float | None = None
    """Its interval at 1 - alpha."""
    psi: float | None = None
    noise: float | None = None
    """The mean of the PSI under no drift at these sizes, by permutation."""
    p: float | None = None
    q: float | None = None
    """p adjusted over all features of the check (Benjamini-Hochberg)."""
    test: str = ""
    statistics: dict[str, float] = {}
    """jensen_shannon, ks, wasserstein, chi_square, mmd, auc, mean_reference, mean_current, mean_difference and its
    interval, where they apply."""
    moves: list[Move] = []
    """Where the shares changed most."""


class Suspect(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A sample of the current window that moved the score."""

    id: str
    score: float
    """The sum of ln(current share / reference share) of its values over the features that moved."""
    why: list[str]
    """`feature value`, the one that weighs most first."""
    at: float = 0.0
    text: str = ""


class Drift(msgspec.Struct, kw_only=True):
    """One check of one version."""

    model: str
    version: str
    verdict: Verdict
    at: float
    """Unix seconds of the check."""
    since: float
    until: float
    """Times of the oldest and the newest sample of the window."""
    reference: str
    """Name of what it was compared with."""
    against: str
    """Whose samples of the reference: the same version's, or all."""
    reference_n: int
    current_n: int
    needed: int = 0
    """More samples that would make a verdict, where it is inconclusive."""
    kinds: dict[str, Verdict] = {}
    features: list[FeatureDrift] = []
    samples: list[Suspect] = []
    remarks: list[str] = []


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """act before watch before none before inconclusive: what could not be judged does not hide what could."""
    order: tuple[Verdict, ...] = ("act", "watch", "none")
    return next((one for one in order if one in verdicts), "inconclusive")


def thinned(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """At most `count` of the rows, in their order: a part that their ids and the seed decide, so that parts taken page
    by page are the part of the whole."""
    if len(rows) <= count:
        return list(rows)

    def key(index: int) -> bytes:
        return hashlib.blake2b(f"{seed}:{rows[index].id}".encode()).digest()

    chosen = sorted(range(len(rows)), key=key)
    return [rows[index] for index in sorted(chosen[:count])]


class References:
    """The pinned references of one state directory, one file a model. Blocking."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, model: str) -> Path:
        return self.folder / f"{model}.json"

    def models(self) -> list[str]:
        """Models that have one."""
        return sorted(path.stem for path in self.folder.glob("*.json")) if self.folder.exists() else []

    def read(self, model: str) -> Reference | None:
        """The model's reference, None where none is pinned. Raises UserError where its file is damaged."""
        try:
            return msgspec.json.decode(self.path(model).read_bytes(), type=Reference)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise UserError(f"the reference of {model} is damaged ({error}): pin one again") from None

    def write(self, reference: Reference) -> None:
        """Replace the model's reference in one step."""
        replace_file(self.path(reference.model), msgspec.json.encode(reference))

    def remove(self, model: str) -> bool:
        """Returns whether there was one."""
        try:
            self.path(model).unlink()
        except FileNotFoundError:
            return False
        return True


def replace_file(path: Path, data: bytes) -> None:
    """Write a whole file in one rename, readable by its owner only."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def needed_for(effect: float, bins: int, reference: int, current: int) -> tuple[int, int]:
    """How many more samples of (current, reference) show a PSI of `effect` beyond its noise at 5% one-sided, about.

    1.645 standard deviations of the PSI under no drift, √(2(B - 1))(1/N + 1/M), are to be under `effect`. Where even
    an endless window would not do, the reference is too small as well: then both are said for sides of about one size.
    """
    budget = effect / (1.645 * math.sqrt(2 * max(1, bins - 1)))  # what 1/N + 1/M may be
    if budget > 1 / reference:
        return max(0, math.ceil(1 / (budget - 1 / reference)) - current), 0
    wanted = max(current, math.ceil(2 / budget))
    return wanted - current, max(0, math.ceil(1 / (budget - 1 / wanted)) - reference)
