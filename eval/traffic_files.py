"""A suite made of traffic, as a folder: written, and added to without touching what is there.

Owns: `suite.yaml`, `cases.jsonl`, `candidates.jsonl`, `provenance.jsonl`, and fetching samples from the admin API.
Never: what makes a case (traffic).

    suite.yaml         made once, yours to edit
    cases.jsonl        cases that can be run; lines that are there stay as they are
    candidates.jsonl   cases without a target, with what is `missing`
    provenance.jsonl   where each of both comes from, and `review: pending` until a person accepts it

A candidate that somebody gives a target becomes a case with the next call.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import httpx
import msgspec

from eval import scorers
from eval.endpoint import Endpoint, trusts_environment
from eval.errors import ServerGoneError, SuiteError
from eval.suite import ScorerSpec
from eval.traffic import Drafts, by_shape, is_redacted, text_of
from registry.samples import TrafficSample
from registry.terminal import UserError

PAGE: Final = 500
SAMPLES_MAX: Final = 20_000
"""Looked at in one call."""
TIMEOUT_S: Final = 30.0
Row = dict[str, Any]

SUITE: Final = """\
name: {name}
version: 1
description: >-
  Requests to {model} from production, redacted. provenance.jsonl says where each case comes from.
cases: cases.jsonl
sampling: {{temperature: 0, max_tokens: 256}}
"""


@dataclass(slots=True)
class Folder:
    """What a suite's folder holds."""

    path: Path
    cases: list[Row] = field(default_factory=list)
    candidates: list[Row] = field(default_factory=list)
    provenance: list[Row] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Folder:
        """What is there; nothing where the folder is not. Raises SuiteError naming file and line."""
        found = cls(path)
        for name, rows in (("cases", found.cases), ("candidates", found.candidates), ("provenance", found.provenance)):
            file = path / f"{name}.jsonl"
            if not file.is_file():
                continue
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
                if line.strip():
                    rows.append(_row(line, f"{file} line {number}"))
        return found

    @property
    def ids(self) -> set[str]:
        """Of all that was ever made, also of what somebody has deleted from the cases since."""
        return {str(row["id"]) for row in (*self.cases, *self.candidates, *self.provenance)}

    @property
    def texts(self) -> list[str]:
        return [text_of(row) for row in (*self.cases, *self.candidates)]


@dataclass(frozen=True, slots=True)
class Written:
    """What a call came to."""

    folder: str
    cases: int
    """New ones."""
    completed: int
    """Candidates that have become cases."""
    candidates: int
    """New ones."""
    cases_total: int
    candidates_total: int


def write(folder: Folder, drafts: Drafts, *, model: str) -> Written:
    """Add the drafts to the folder. What was there stays, byte for byte, but for candidates that are complete now.

    Raises SuiteError where the folder cannot be written.
    """
    ids = {row["id"] for row in folder.cases}
    done = [row for row in map(_completed, folder.candidates) if row is not None and row["id"] not in ids]
    ids |= {row["id"] for row in done}
    waiting = [row for row in folder.candidates if row["id"] not in ids]
    cases = [one.row for one in drafts.drafts if not one.missing]
    candidates = [{**one.row, "missing": one.missing} for one in drafts.drafts if one.missing]
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        if not (folder.path / "suite.yaml").exists():
            name = re.sub(r"[^a-z0-9-]+", "-", folder.path.resolve().name.lower()).strip("-") or "traffic"
            _replace(folder.path / "suite.yaml", SUITE.format(name=name, model=model))
        # In this order, so that stopped in between the next call goes on: what has no provenance yet is made again
        # unless it is a case or a candidate.
        _append(folder.path / "cases.jsonl", [*done, *cases])
        if len(waiting) < len(folder.candidates) or candidates:
            _replace(folder.path / "candidates.jsonl", _lines([*waiting, *candidates]))
        _append(folder.path / "provenance.jsonl", [msgspec.to_builtins(one.provenance) for one in drafts.drafts])
    except OSError as error:
        raise SuiteError(
            f"{folder.path} cannot be written ({error.strerror or error}): give another --output"
        ) from error
    return Written(
        folder=str(folder.path),
        cases=len(cases),
        completed=len(done),
        candidates=len(candidates),
        cases_total=len(folder.cases) + len(done) + len(cases),
        candidates_total=len(waiting) + len(candidates),
    )


def fetch(endpoint: Endpoint, *, model: str, since: str, feedback: str, version: str = "") -> list[TrafficSample]:
    """The samples of the yard, newest first, at most SAMPLES_MAX. Raises ServerGoneError, UserError."""
    found: dict[tuple[str, str, float], TrafficSample] = {}
    until: float | None = None
    while len(found) < SAMPLES_MAX:
        query: dict[str, Any] = {"model": model, "version": version, "since": since, "feedback": feedback}
        query |= {"limit": PAGE} | ({"until": until} if until is not None else {})
        page = _page(endpoint, {name: value for name, value in query.items() if value != ""})
        before = len(found)
        found |= {(one.request_id, one.key, one.started_at): one for one in page}
        if len(page) < PAGE:
            break
        # Those that began with the last one may be cut apart by the page's end: they are asked for again.
        oldest = page[-1].started_at
        until = math.nextafter(oldest, math.inf) if len(found) > before else oldest
    return list(found.values())


def _page(endpoint: Endpoint, query: Row) -> list[TrafficSample]:
    url = f"{endpoint.admin_url}/admin/v1/samples?{urlencode(query)}"
    headers = {"authorization": f"Bearer {endpoint.admin_token}"} if endpoint.admin_token else {}
    try:
        answer = httpx.get(url, headers=headers, timeout=TIMEOUT_S, trust_env=trusts_environment(url))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServerGoneError(
            f"no yard answers at {endpoint.admin_url} ({type(error).__name__}): start one with `modelyard up`, or name "
            "its admin API with --admin-url"
        ) from error
    try:
        value = answer.json()
        if answer.is_success:
            return msgspec.convert(value["samples"], list[TrafficSample], strict=False)
        raise UserError(f"the samples cannot be read: {value['error']['message']}")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"what answers at {endpoint.admin_url} is no admin API of this release") from error


def _completed(row: Row) -> Row | None:
    """The case that a candidate has become; None where it lacks something still.

    Where somebody wrote a target and left the rest alone, its scorer is chosen by the target in place of the judge that
    stands in a candidate for want of anything better. Where `missing` was deleted, the candidate is taken as it is.
    """
    made = {name: value for name, value in row.items() if name != "missing"}
    written, target = row.get("scorer"), row.get("target")
    if "missing" in row:
        if target is None or is_redacted(target):
            return None
        if isinstance(written, dict) and written.get("name") == "judge":
            made["target"], made["scorer"] = by_shape(target)
    try:
        spec = ScorerSpec.parse(made.get("scorer") or "")
        scorers.build(spec.name, spec.options, made.get("target"))
    except ValueError:
        return None
    return made


def _row(line: str, where: str) -> Row:
    try:
        value = msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        raise SuiteError(f"{where}: {error}") from error
    if not isinstance(value, dict) or "id" not in value:
        raise SuiteError(f"{where}: a line is an object with an `id`")
    return value


def _lines(rows: Sequence[Row]) -> str:
    return "".join(msgspec.json.encode(row).decode() + "\n" for row in rows)


def _append(path: Path, rows: Sequence[Row]) -> None:
    if not rows and path.exists():
        return
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    gap = "" if not before or before.endswith("\n") else "\n"
    _replace(path, f"{before}{gap}{_lines(rows)}")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
