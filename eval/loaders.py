"""From files (or a hub) to a checked Suite.

Owns: where a suite is looked for, reading its YAML and its cases, and errors that name the file, the line and what to
write instead. Never: what a case means (suite.py) or what its answer is worth (scorers).

Cases are read through `datasets`, in its streaming mode, so that nothing is copied into a cache first. JSONL is taken
line by line: an error can then name its line, and targets of mixed types stay what they are.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from eval import scorers
from eval.errors import MissingExtraError, StateDirError, SuiteError, SuiteGoneError, need
from eval.suite import Case, Kind, Message, Sampling, ScorerSpec, Suite, SuiteFile, duplicates

CONFIGS_VARIABLE: Final = "MODELYARD_CONFIGS"
_BUILDERS: Final = {".jsonl": "text", ".csv": "csv", ".parquet": "parquet"}


class _Row(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A case as written; `prompt` or `messages`."""

    id: str
    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    target: Any = None
    scorer: str | dict[str, Any] | None = None
    slice: str = ""
    cluster: str = ""
    max_tokens: int | None = None
    timeout_s: float | None = None
    weight: float = 1.0
    kind: Kind = "generate"
    choices: tuple[str, ...] = ()
    chat: bool = True
    then: tuple[str, ...] = ()
    request: dict[str, Any] = {}


_CASE_FIELDS: Final = _Row.__struct_fields__


def folders() -> list[Path]:
    """Where suites are looked for by name, in order: ./configs, MODELYARD_CONFIGS, beside the installed packages."""
    roots = [Path("configs")]
    if named := os.environ.get(CONFIGS_VARIABLE):
        roots.append(Path(named))
    roots.append(Path(__file__).resolve().parent.parent / "configs")
    return [root / "suites" for root in roots]


def known() -> list[str]:
    """The names of the suites that can be found, sorted."""
    return sorted({file.parent.name for folder in folders() for file in folder.glob("*/suite.yaml")})


def find(name: str) -> Path:
    """The `suite.yaml` that `name` (a name, a folder or a file) stands for.

    Raises SuiteError listing the names where no suite is called so, SuiteGoneError where `name` is a path.
    """
    path = Path(name)
    for candidate in (path, path / "suite.yaml"):
        if candidate.is_file() and candidate.suffix in {".yaml", ".yml"}:
            return candidate
    if os.sep not in name:
        for folder in folders():
            if (folder / name / "suite.yaml").is_file():
                return folder / name / "suite.yaml"
    if os.sep in name or path.suffix in {".yaml", ".yml"}:
        raise SuiteGoneError(f"there is no suite at {name}: give the path of a suite.yaml or of the folder it lies in")
    names = known()
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    listed = f"known suites: {', '.join(names)}" if names else "no suites were found: run where configs/suites/ lies"
    raise SuiteError(f"there is no suite {name!r}{hint}; {listed}, or give the path of a suite.yaml")


def load(name: str, cache: Path) -> Suite:
    """Read and check the suite `name`. `cache` is a folder that `datasets` may write into.

    Raises SuiteError with the place and the remedy, MissingExtraError where `datasets` is not installed, StateDirError
    where `cache` cannot be made.
    """
    path = find(name)
    file = _read_yaml(path)
    rows = _hub_rows(file, path, cache) if file.dataset else _file_rows(file, path, cache)
    cases = tuple(_case(raw, file, where) for where, raw in rows)
    if not cases:
        raise SuiteError(f"{path}: the suite has no cases")
    if twice := duplicates(case.id for case in cases):
        raise SuiteError(f"{path}: the id {twice[0]!r} is given to more than one case: ids must be unique")
    _check_gates(file, cases, path)
    return Suite(
        name=file.name,
        version=file.version,
        description=file.description,
        cases=cases,
        sampling=file.sampling or Sampling(),
        repeats=file.repeats,
        margin=file.margin,
        gates=file.gates,
        source=str(path),
    )


def _read_yaml(path: Path) -> SuiteFile:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        file = msgspec.convert(raw, SuiteFile)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise SuiteError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}") from error
    except msgspec.ValidationError as error:
        raise SuiteError(f"{path}: {_plain(error, SuiteFile.__struct_fields__)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path} cannot be read: {error}") from error
    if (file.cases is None) == (file.dataset is None):
        raise SuiteError(f"{path}: give either `cases` (a file) or `dataset` (a hub's data set)")
    if file.repeats < 1:
        raise SuiteError(f"{path}: `repeats` is {file.repeats}: it must be at least 1")
    if file.margin is not None and not 0 <= file.margin <= 1:
        raise SuiteError(f"{path}: `margin` is {file.margin}: it must lie between 0 and 1")
    return file


def _check_gates(file: SuiteFile, cases: Iterable[Case], path: Path) -> None:
    used = {case.scorer.name for case in cases}
    for gate in file.gates:
        if gate != "overall" and gate not in used:
            raise SuiteError(f"{path}: the gate {gate!r} is neither `overall` nor a scorer that the cases use")
    if not file.gates:
        raise SuiteError(f"{path}: `gates` is empty: leave it out, or name what decides a comparison")


def _file_rows(file: SuiteFile, path: Path, cache: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    data = path.parent / str(file.cases)
    builder = _BUILDERS.get(data.suffix)
    if builder is None:
        raise SuiteError(f"{path}: cases of the kind {data.suffix!r} cannot be read: use .jsonl, .csv or .parquet")
    if not data.is_file():
        raise SuiteGoneError(f"{path}: the cases {data} are not there")
    try:
        rows = _read(builder, cache, data_files=str(data), split="train")
    except (ValueError, OSError) as error:
        raise SuiteError(f"{data} cannot be read: {error}") from error
    for number, row in enumerate(rows, start=1):
        if builder != "text":
            yield f"{data} row {number}", row
        elif row["text"].strip():
            where = f"{data} line {number}"
            yield where, _json_line(row["text"], where)


def _json_line(text: str, where: str) -> dict[str, Any]:
    try:
        raw = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise SuiteError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise SuiteError(f'{where}: a case is a JSON object, e.g. {{"id": …, "prompt": …, "target": …}}')
    return raw


def _hub_rows(file: SuiteFile, path: Path, cache: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    spec = file.dataset
    assert spec is not None
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        raise SuiteError(
            f"{path}: the data set {spec.hub} lies on a hub, and HF_HUB_OFFLINE forbids going there: "
            "unset it, or export the data to a JSONL file beside the suite"
        )
    try:
        rows = _read(spec.hub, cache, name=spec.config, split=spec.split, revision=spec.revision)
    except (MissingExtraError, StateDirError):
        raise
    except Exception as error:  # the hub's client raises many kinds, from DNS to 404
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise SuiteError(
            f"{path}: the data set {spec.hub} cannot be loaded ({reason}): check the name and the connection, "
            "or use a JSONL file beside the suite"
        ) from error
    for number, row in enumerate(rows, start=1):
        row.setdefault("id", f"{spec.split}-{number:05d}")
        yield f"{spec.hub} row {number}", row


def _read(builder: str, cache: Path, **options: Any) -> list[dict[str, Any]]:
    """Every row, read to the end before any is looked at: `datasets` closes its files only there."""
    datasets = need("datasets")
    datasets.disable_progress_bars()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StateDirError(cache, "written", error) from error
    return list(datasets.load_dataset(builder, streaming=True, cache_dir=str(cache), **options))


def _case(raw: dict[str, Any], file: SuiteFile, where: str) -> Case:
    if file.columns:
        raw = _renamed(raw, file.columns, where)
    try:
        row = msgspec.convert(raw, _Row)
    except msgspec.ValidationError as error:
        raise SuiteError(f"{where}: {_plain(error, _CASE_FIELDS)}") from error
    if (row.prompt is None) == (not row.messages):
        raise SuiteError(f"{where}: case {row.id!r} needs either `prompt` or `messages`")
    written = row.scorer if row.scorer is not None else file.scorer
    if written is None:
        raise SuiteError(f"{where}: missing field `scorer` (or set `scorer` for all cases in suite.yaml)")
    try:
        spec = ScorerSpec.parse(written)
        scorers.build(spec.name, spec.options, row.target)
    except ValueError as error:
        raise SuiteError(f"{where}: case {row.id!r}: {error}") from error
    if row.max_tokens is not None and row.max_tokens < 1:
        raise SuiteError(f"{where}: case {row.id!r}: `max_tokens` must be at least 1")
    turns = row.messages or (Message("user", row.prompt or ""),)
    if file.system and turns[0].role != "system":
        turns = (Message("system", file.system), *turns)
    return Case(
        id=row.id,
        messages=turns,
        target=row.target,
        scorer=spec,
        slice=row.slice,
        cluster=row.cluster,
        max_tokens=row.max_tokens,
        timeout_s=row.timeout_s,
        weight=row.weight,
        kind=row.kind,
        choices=row.choices,
        chat=row.chat,
        then=row.then,
        request=row.request,
    )


def _renamed(raw: dict[str, Any], columns: dict[str, str], where: str) -> dict[str, Any]:
    """The row with its columns under the names of a case's fields; other columns are left out."""
    for column in columns.values():
        if column not in raw:
            raise SuiteError(f"{where}: there is no column {column!r}; it has: {', '.join(raw)}")
    taken = {field: raw[field] for field in _CASE_FIELDS if field in raw and raw[field] is not None}
    return taken | {field: raw[column] for field, column in columns.items()}


def _plain(error: msgspec.ValidationError, fields: Iterable[str]) -> str:
    """msgspec's message in the words of the file, with the nearest field for an unknown one."""
    text = str(error).replace("Object missing required field", "missing field")
    if text.startswith("Object contains unknown field"):
        unknown = text.split("`")[1]
        close = difflib.get_close_matches(unknown, list(fields), n=1, cutoff=0.5)
        hint = f" (did you mean `{close[0]}`?)" if close else f"; known: {', '.join(fields)}"
        return f"unknown field `{unknown}`{hint}"
    return text
