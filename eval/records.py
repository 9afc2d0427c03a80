"""Data files as records: JSONL, JSON, CSV and Parquet, plain or gzipped, a file or a folder of them.

Owns: reading, and the place of each record for errors. Never: what a record means.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from eval.errors import SuiteError, SuiteGoneError, need

SUFFIXES: Final = (".jsonl", ".json", ".csv", ".parquet")
_LISTS: Final = ("examples", "data", "rows")
"""Where a JSON object keeps its records, in the order looked at."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record as published, and where it stands."""

    fields: dict[str, Any]
    source: str
    """The file, or the hub's name of the data set."""
    number: int
    """Counted from 1: a line, a row or an example."""
    unit: str = "line"
    typed: bool = True
    """False where every cell is a text (CSV)."""

    @property
    def where(self) -> str:
        return f"{self.source} {self.unit} {self.number}"

    @property
    def stem(self) -> str:
        """The file's name without its endings."""
        return Path(self.source).name.partition(".")[0]

    def renamed(self, columns: Mapping[str, str]) -> Record:
        """With each of `columns` (field -> column) under the field's name too.

        A row that has the field itself may do without the column. Raises SuiteError where it has neither.
        """
        for field, column in columns.items():
            if column not in self.fields and field not in self.fields:
                raise SuiteError(f"{self.where}: there is no column {column!r}; it has: {', '.join(self.fields)}")
        found = {field: self.fields[column] for field, column in columns.items() if column in self.fields}
        return replace(self, fields=self.fields | found)


def read(path: Path, header: Sequence[str] | None = None) -> Iterator[Record]:
    """The records of a file that `check` has let pass, or of every file of a folder, by name.

    `header` names the columns of a CSV that may have none. Raises SuiteGoneError where a folder holds nothing to read,
    SuiteError naming file and line where a file is damaged.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if kind(file) in SUFFIXES)
        if not files:
            raise SuiteGoneError(f"{path}: the folder holds no {', '.join(SUFFIXES)} file")
        for file in files:
            yield from read(file, header)
        return
    reader = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}.get(kind(path))
    try:
        yield from reader(path) if reader else _csv(path, header)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path} cannot be read: {error}") from error


def check(path: Path, where: str) -> None:
    """Raise SuiteGoneError where nothing is at `path`, SuiteError where it is of no kind that can be read."""
    if not path.is_dir() and kind(path) not in SUFFIXES:
        listed = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise SuiteError(f"{where}: data of the kind {path.suffix!r} cannot be read: use {listed}")
    if not path.exists():
        raise SuiteGoneError(f"{where}: the data {path} are not there: give the path of the file or folder")


def kind(path: Path) -> str:
    """The file's ending, without .gz."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def json_object(text: str | bytes, where: str) -> dict[str, Any]:
    """One JSON object. Raises SuiteError with its place."""
    try:
        raw = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SuiteError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise SuiteError(f'{where}: a case is a JSON object, e.g. {{"id": …, "prompt": …, "target": …}}')
    return raw


def _bytes(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def _jsonl(path: Path) -> Iterator[Record]:
    for number, line in enumerate(_bytes(path).removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            yield Record(json_object(line, f"{path} line {number}"), str(path), number)


def _json(path: Path) -> Iterator[Record]:
    try:
        raw = msgspec.json.decode(_bytes(path).removeprefix(b"\xef\xbb\xbf"))
    except msgspec.DecodeError as error:
        raise SuiteError(f"{path}: not valid JSON: {error}") from error
    rows = next((raw[name] for name in _LISTS if name in raw), None) if isinstance(raw, dict) else raw
    if not isinstance(rows, list):
        listed = ", ".join(f"`{name}`" for name in _LISTS)
        raise SuiteError(f"{path}: a JSON file of cases is a list, or an object with {listed}")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise SuiteError(f"{path} example {number}: it is no JSON object")
        yield Record(row, str(path), number, "example")


def _csv(path: Path, header: Sequence[str] | None) -> Iterator[Record]:
    """Texts as they stand: what is a number there is for the reader to say."""
    text = _bytes(path).decode("utf-8-sig")
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    names = list(header) if header else None
    try:
        for row in rows:
            if names is None or (header and rows.line_num == 1 and [cell.lower() for cell in row] == _lower(header)):
                names = row
            elif row:
                yield Record(
                    _matched(row, names, f"{path} line {rows.line_num}"), str(path), rows.line_num, typed=False
                )
    except csv.Error as error:
        raise SuiteError(f"{path} line {rows.line_num}: not valid CSV: {error}") from error


def _lower(names: Iterable[str]) -> list[str]:
    return [name.lower() for name in names]


def _matched(row: list[str], names: list[str], where: str) -> dict[str, Any]:
    if len(row) != len(names):
        raise SuiteError(f"{where}: it has {len(row)} columns where {len(names)} are expected: {', '.join(names)}")
    return dict(zip(names, row, strict=True))


def _parquet(path: Path) -> Iterator[Record]:
    parquet = need("pyarrow.parquet")
    try:
        rows = parquet.read_table(path).to_pylist()
    except (ValueError, OSError) as error:  # pyarrow's own errors are of these kinds
        raise SuiteError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    for number, row in enumerate(rows, start=1):
        yield Record(row, str(path), number, "row")
