"""From files (or a hub, or a generator) to a checked Suite.

Owns: where a suite is looked for, and bringing its YAML, its data, its templates and its examples together. Never: what
a case means (suite.py, cases.py), how a file is read (records.py) or what an answer is worth (scorers).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from eval import cases, records, yaml_places
from eval.adapters import ADAPTERS, Adapter, Way
from eval.cases import Recipe
from eval.errors import MissingExtraError, StateDirError, SuiteError, SuiteGoneError, need
from eval.records import Record
from eval.suite import OVERALL, Case, FewShot, FileRef, Kind, Sampling, Suite, SuiteFile, duplicates
from eval.templates import Template, rendering
from eval.yaml_places import Places

if TYPE_CHECKING:
    from eval.generated import GenerateContext

CONFIGS_VARIABLE: Final = "MODELYARD_CONFIGS"
Context: TypeAlias = "Callable[[], GenerateContext]"
_SOURCES: Final = ("cases", "dataset", "path", "generate")


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
    if name in ADAPTERS:
        raise SuiteError(f"{name!r} is a published format, not a suite: give its file with --path FILE")
    names = known()
    close = difflib.get_close_matches(name, [*names, *ADAPTERS], n=1, cutoff=0.5)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    listed = f"known suites: {', '.join(names)}" if names else "no suites were found: run where configs/suites/ lies"
    formats = f"published formats, with --path FILE: {', '.join(ADAPTERS)}"
    raise SuiteError(f"there is no suite {name!r}{hint}; {listed}; {formats}; or give the path of a suite.yaml")


def load(name: str, cache: Path, *, path: Path | None = None, context: Context | None = None) -> Suite:
    """Read and check the suite `name`, or the published file `path` by the adapter `name`.

    `cache` is a folder that `datasets` may write into; `path` also stands in for a suite's own `path`; `context` is
    asked what is known of the server, for a suite that is generated. Raises SuiteError with the place and the remedy,
    MissingExtraError where a library is not installed, StateDirError where `cache` cannot be made.
    """
    draft = _published(name, path) if path is not None and name in ADAPTERS and name not in known() else _written(name)
    if path is not None:
        if draft.file.path is None:
            raise SuiteError(
                f"{draft.place('name')}: the suite reads no published file: leave --path out, or name a format "
                f"({', '.join(ADAPTERS)})"
            )
        draft = replace(draft, file=msgspec.structs.replace(draft.file, path=str(path.resolve())))
    _check(draft)
    found = _source(draft, cache, context)
    built = _built(draft, found)
    if not built:
        raise SuiteError(f"{draft.where}: the suite has no cases")
    if twice := duplicates(case.id for case in built):
        raise SuiteError(f"{draft.where}: the id {twice[0]!r} is given to more than one case: ids must be unique")
    _check_gates(draft, built)
    file = draft.file
    return Suite(
        name=file.name,
        version=file.version,
        description=file.description,
        cases=built,
        sampling=draft.sampling,
        repeats=file.repeats,
        margin=file.margin,
        gates=file.gates,
        source=draft.where,
        notes=found.notes,
    )


@dataclass(frozen=True, slots=True)
class _Draft:
    """A suite.yaml that has been read, or what stands for one."""

    file: SuiteFile
    folder: Path
    where: str
    """The file's path, for errors and as the suite's source."""
    raw: dict[str, Any]
    places: Places | None = None

    @property
    def adapter(self) -> Adapter | None:
        return ADAPTERS[self.file.format] if self.file.format else None

    @property
    def kind(self) -> Kind:
        return self.file.task or (self.adapter.default if self.adapter else "generate")

    @property
    def way(self) -> Way | None:
        return self.adapter.ways[self.kind] if self.adapter else None

    @property
    def sampling(self) -> Sampling:
        """The file's, over the adapter's for what it does not say."""
        if self.way is None or self.file.sampling is None:
            return self.file.sampling or (self.way.sampling if self.way else Sampling())
        written = {name: getattr(self.file.sampling, name) for name in self.raw["sampling"]}
        return msgspec.structs.replace(self.way.sampling, **written)

    @property
    def few_shot(self) -> FewShot | None:
        written = self.file.few_shot
        if isinstance(written, int):
            return FewShot(k=written)
        return written or (self.way.few_shot if self.way else None)

    def place(self, *keys: str | int) -> str:
        return self.places.at(*keys) if self.places else self.where

    def beside(self, name: str) -> Path:
        return self.folder / name


@dataclass(frozen=True, slots=True)
class _Found:
    """A suite's records."""

    records: Iterable[Record]
    notes: tuple[str, ...] = ()


def _published(name: str, path: Path) -> _Draft:
    raw = {"name": name, "format": name, "path": str(path.resolve())}
    return _Draft(msgspec.convert(raw, SuiteFile), Path(), str(path), raw)


def _written(name: str) -> _Draft:
    path = find(name)
    file, raw, places = yaml_places.read(path, SuiteFile)
    return _Draft(file, path.parent, str(path), raw, places)


def _check(draft: _Draft) -> None:
    """What the types do not say. Raises SuiteError with the line."""
    file = draft.file
    given = [name for name in _SOURCES if getattr(file, name) is not None]
    if len(given) != 1:
        raise SuiteError(
            f"{draft.where}: give either `cases` (a file), `dataset` (a hub's), `path` (a published file, with "
            f"`format`) or `generate`{', not ' + ' and '.join(given) if given else ''}"
        )
    if file.format is not None and file.format not in ADAPTERS:
        close = difflib.get_close_matches(file.format, ADAPTERS, n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise SuiteError(f"{draft.place('format')}: unknown format {file.format!r}{hint}; known: {', '.join(ADAPTERS)}")
    if file.path is not None and file.format is None:
        raise SuiteError(f"{draft.place('path')}: `path` needs `format`, one of {', '.join(ADAPTERS)}")
    if file.format is not None and given[0] not in {"path", "dataset"}:
        raise SuiteError(f"{draft.place('format')}: `format` goes with `path` or `dataset`, not with `{given[0]}`")
    if draft.adapter and draft.kind not in draft.adapter.ways:
        raise SuiteError(
            f"{draft.place('task')}: {file.format} cannot be asked by `{draft.kind}`: "
            f"use {' or '.join(draft.adapter.ways)}"
        )
    if file.repeats < 1:
        raise SuiteError(f"{draft.place('repeats')}: `repeats` is {file.repeats}: it must be at least 1")
    if file.margin is not None and not 0 <= file.margin <= 1:
        raise SuiteError(f"{draft.place('margin')}: `margin` is {file.margin}: it must lie between 0 and 1")
    sampling = draft.sampling
    for name, value in (("max_tokens", sampling.max_tokens), ("timeout_s", sampling.timeout_s)):
        if value is not None and value <= 0:
            raise SuiteError(f"{draft.place('sampling', name)}: `sampling.{name}` is {value}: it must be above 0")
    _check_few_shot(draft)


def _check_few_shot(draft: _Draft) -> None:
    spec = draft.few_shot
    if spec is None:
        return
    if spec.k is not None and spec.k < 0:
        raise SuiteError(f"{draft.place('few_shot', 'k')}: `few_shot` wants {spec.k} examples: 0 or more can be had")
    if spec.examples and spec.file:
        raise SuiteError(f"{draft.place('few_shot')}: `few_shot` takes `examples` or a `file`, not both")
    if not spec.examples and spec.k is None:
        raise SuiteError(f"{draft.place('few_shot')}: `few_shot` needs `k`, how many are drawn, or `examples`")


def _check_gates(draft: _Draft, built: Iterable[Case]) -> None:
    used = {case.scorer.name for case in built}
    for index, gate in enumerate(draft.file.gates):
        if gate != OVERALL and gate not in used:
            close = difflib.get_close_matches(gate, [OVERALL, *used], n=1, cutoff=0.5)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise SuiteError(
                f"{draft.place('gates', index)}: the gate {gate!r} is neither `overall` nor a scorer that the cases "
                f"use{hint}"
            )
    if not draft.file.gates:
        raise SuiteError(f"{draft.place('gates')}: `gates` is empty: leave it out, or name what decides a comparison")


def _source(draft: _Draft, cache: Path, context: Context | None) -> _Found:
    file = draft.file
    if file.generate is not None:
        return _generated(draft, context)
    if file.dataset is not None:
        return _Found(_hub(draft, cache))
    path = draft.beside(str(file.path or file.cases))
    return _Found(_file(draft, path, "cases" if file.cases else "path"))


def _file(draft: _Draft, path: Path, *keys: str) -> Iterable[Record]:
    records.check(path, draft.place(*keys))
    return records.read(path, draft.adapter.header if draft.adapter else None)


def _generated(draft: _Draft, context: Context | None) -> _Found:
    from eval import generated  # noqa: PLC0415 - few suites are

    spec = dict(draft.file.generate or {})
    name = spec.pop("name", None)
    if not isinstance(name, str):
        raise SuiteError(f"{draft.place('generate')}: `generate` needs the `name` of a generator")
    try:
        made = generated.generate(name, spec, context() if context else None)
    except generated.GenerateError as error:
        raise SuiteError(f"{draft.place('generate')}: {error}") from error
    rows = (
        Record(dict(row), f"{draft.where} ({name})", number, "case") for number, row in enumerate(made.rows, start=1)
    )
    return _Found(rows, made.left_out)


def _hub(draft: _Draft, cache: Path) -> Iterator[Record]:
    spec, place = draft.file.dataset, draft.place("dataset")
    assert spec is not None
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        raise SuiteError(
            f"{place}: the data set {spec.hub} lies on a hub, and HF_HUB_OFFLINE forbids going there: "
            "unset it, or export the data to a JSONL file beside the suite"
        )
    try:
        rows = _streamed(spec.hub, cache, name=spec.config, split=spec.split, revision=spec.revision)
    except (MissingExtraError, StateDirError):
        raise
    except Exception as error:  # the hub's client raises many kinds, from DNS to 404
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise SuiteError(
            f"{place}: the data set {spec.hub} cannot be loaded ({reason}): check the name and the connection, "
            "or use a JSONL file beside the suite"
        ) from error
    for number, row in enumerate(rows, start=1):
        row.setdefault("id", f"{spec.split}-{number:05d}")
        yield Record(row, spec.hub, number, "row")


def _streamed(hub: str, cache: Path, **options: Any) -> list[dict[str, Any]]:
    """Every row, without a copy of the data set; read to the end before any is looked at: files are closed there."""
    datasets = need("datasets")
    datasets.disable_progress_bars()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StateDirError(cache, "written", error) from error
    return list(datasets.load_dataset(hub, streaming=True, cache_dir=str(cache), **options))


def _built(draft: _Draft, found: _Found) -> tuple[Case, ...]:
    templates, answer = _templates(draft), _answer(draft)
    drawn_from = _pool(draft)
    with rendering() if templates or answer else nullcontext() as renderer:
        recipe = Recipe(
            file=draft.file,
            way=draft.way,
            kind=draft.kind,
            templates=templates,
            answer=answer,
            few_shot=draft.few_shot,
            renderer=renderer,
        )
        return cases.build(recipe, found.records, drawn_from)


def _pool(draft: _Draft) -> Iterable[Record] | None:
    """What examples are drawn from; None: the cases themselves."""
    spec = draft.few_shot
    if spec is not None and spec.examples:
        source = f"{draft.place('few_shot')}: few_shot"
        rows = [{"id": f"example-{number}"} | row for number, row in enumerate(spec.examples, start=1)]
        return [Record(row, source, number, "example") for number, row in enumerate(rows, start=1)]
    if spec is None or spec.file is None:
        return None
    path = draft.beside(spec.file)
    return _file(draft, path, "few_shot", "file")


def _templates(draft: _Draft) -> tuple[tuple[str, Template], ...]:
    written = draft.file.template
    if written is None:
        return ()
    if isinstance(written, FileRef):
        path = draft.beside(written.file)
        try:
            return (("user", Template(path.read_text(encoding="utf-8"), str(path))),)
        except FileNotFoundError as error:
            raise SuiteGoneError(f"{draft.place('template')}: the template {path} is not there") from error
        except (OSError, UnicodeDecodeError) as error:
            raise SuiteError(f"{draft.place('template')}: the template {path} cannot be read: {error}") from error
    if isinstance(written, str):
        return (("user", _inline(draft, written, "template")),)
    return tuple(
        (turn.role, _inline(draft, turn.content, "template", index, "content")) for index, turn in enumerate(written)
    )


def _answer(draft: _Draft) -> Template | None:
    written = draft.file.few_shot
    if not isinstance(written, FewShot) or written.answer is None:
        return None
    return _inline(draft, written.answer, "few_shot", "answer")


def _inline(draft: _Draft, text: str, *keys: str | int) -> Template:
    line = draft.places.text_line(*keys) if draft.places else 1
    return Template(text, draft.where, line)
