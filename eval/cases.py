"""From records to checked cases: adapters, columns, templates, examples, and what a case may say.

Owns: the fields of a case as written, their order of precedence, and their checks. Never: opening files (records.py),
drawing (fewshot.py), rendering (templates.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from eval import fewshot, scorers
from eval.adapters import ANSWER, FormatError, Way
from eval.errors import SuiteError
from eval.fewshot import Example, Pool
from eval.records import Record
from eval.suite import Case, FewShot, Kind, Message, ScorerSpec, SuiteFile
from eval.templates import Renderer, Template
from eval.yaml_places import explained

_RESERVED: Final = frozenset({"model", "messages", "prompt", "stream", "stream_options", "max_tokens", "seed", "n"})
"""Fields of a request that the run sets."""
_FROM_TEXT: Final = frozenset({"json", "json_schema", "instructions", "python_tests", "tool_call"})
"""Scorers whose targets a CSV holds as JSON."""
_MIXED: Final = ("messages", "scorer", "choices", "then", "request", "chat")
"""Fields that a CSV holds as JSON."""
_LIKELIHOOD_SCORER: Final = "likelihood"


class CaseRow(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
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


FIELDS: Final = CaseRow.__struct_fields__


@dataclass(frozen=True, slots=True)
class Recipe:
    """What turns a suite's records into cases."""

    file: SuiteFile
    way: Way | None = None
    """How the adapter asks; None for records that are cases as written."""
    kind: Kind = "generate"
    templates: tuple[tuple[str, Template], ...] = ()
    """Role and template of each message."""
    answer: Template | None = None
    """Of an example's answer."""
    few_shot: FewShot | None = None
    renderer: Renderer | None = None

    @property
    def free(self) -> bool:
        """Whether rows may have columns beside a case's fields."""
        return bool(self.templates) or self.way is not None


@dataclass(frozen=True, slots=True)
class _Asked:
    """A record that has been read, before examples are put in."""

    row: CaseRow
    fields: Mapping[str, Any]
    where: str


def build(recipe: Recipe, records: Iterable[Record], drawn_from: Iterable[Record] | None) -> tuple[Case, ...]:
    """The cases. Examples are drawn from `drawn_from`, else from the cases themselves. Raises SuiteError."""
    asked = [_ask(recipe, record) for record in records]
    if recipe.way is not None:
        asked = _without_lone_clusters(asked)
    spec = recipe.few_shot
    if spec is None or spec.k == 0:
        return tuple(_case(recipe, one, ()) for one in asked)
    pool = Pool(
        [_example(recipe, one) for one in (asked if drawn_from is None else [_ask(recipe, one) for one in drawn_from])]
    )
    return tuple(_case(recipe, one, _examples(pool, spec, one)) for one in asked)


def _ask(recipe: Recipe, record: Record) -> _Asked:
    file = recipe.file
    if file.columns and recipe.free:
        record = record.renamed(file.columns)
    fields = _only_columns(record, file.columns) if file.columns and not recipe.free else record.fields
    if recipe.way is not None:
        try:
            fields = recipe.way.convert(record)
        except FormatError as error:
            raise SuiteError(f"{record.where}: {error}") from error
    known = {name: value for name, value in fields.items() if name in FIELDS} if recipe.free else dict(fields)
    if recipe.templates:
        known.pop("prompt", None)
        known["messages"] = [
            {"role": role, "content": _rendered(recipe, template, fields, record.where)}
            for role, template in recipe.templates
        ]
        known.setdefault("id", f"{record.stem}-{record.number:05d}")
    known.setdefault("kind", recipe.kind)
    if recipe.way is not None:
        known.setdefault("chat", recipe.way.chat)
    if not record.typed and recipe.way is None:
        known = _typed(known, file)
    if isinstance(known.get("id"), int):
        known["id"] = str(known["id"])
    try:
        row = msgspec.convert(known, CaseRow, strict=record.typed)
    except msgspec.ValidationError as error:
        raise SuiteError(f"{record.where}: {explained(error, FIELDS)}") from error
    return _Asked(row, fields, record.where)


def _only_columns(record: Record, columns: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a case and the renamed ones; other columns are left out."""
    renamed = record.renamed(columns).fields
    return {name: value for name, value in renamed.items() if name in FIELDS and value is not None}


def _typed(fields: dict[str, Any], file: SuiteFile) -> dict[str, Any]:
    """A CSV's cells as what they stand for; an empty one is not there. What cannot be read stays a text."""
    filled = {name: value for name, value in fields.items() if value != "" or name in {"prompt", "id"}}
    for name in _MIXED:
        if isinstance(filled.get(name), str):
            filled[name] = _json(filled[name])
    written = filled.get("scorer", file.scorer)
    scorer = written.get("name") if isinstance(written, dict) else written
    if "target" in filled and (scorer == "numeric" or scorer in _FROM_TEXT):
        filled["target"] = _json(filled["target"])
    return filled


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _rendered(recipe: Recipe, template: Template, fields: Mapping[str, Any], where: str) -> str:
    assert recipe.renderer is not None
    return recipe.renderer.render(template, fields, where)


def _without_lone_clusters(asked: list[_Asked]) -> list[_Asked]:
    """A cluster of one says nothing, and would cost a comparison its exact test."""
    times: dict[str, int] = {}
    for one in asked:
        times[one.row.cluster] = times.get(one.row.cluster, 0) + 1
    return [
        _Asked(msgspec.structs.replace(one.row, cluster=""), one.fields, one.where)
        if times[one.row.cluster] == 1
        else one
        for one in asked
    ]


def _turns(row: CaseRow) -> tuple[Message, ...]:
    return row.messages or (Message("user", row.prompt or ""),)


def _example(recipe: Recipe, asked: _Asked) -> Example:
    if recipe.answer is not None:
        answer = _rendered(recipe, recipe.answer, asked.fields, asked.where)
    elif isinstance(asked.fields.get(ANSWER), str):
        answer = asked.fields[ANSWER]
    else:
        target = asked.row.target
        first = target[0] if isinstance(target, list) and target else target
        if asked.row.kind == "choose" and isinstance(first, int) and 0 <= first < len(asked.row.choices):
            first = asked.row.choices[first]
        answer = first if isinstance(first, str) else json.dumps(first, ensure_ascii=False)
    if not answer or answer == "null":
        raise SuiteError(f"{asked.where}: a worked example needs an answer: give a target, or `few_shot.answer`")
    turns = tuple(turn for turn in _turns(asked.row) if turn.role != "system")
    return Example(turns, answer, asked.row.slice)


def _examples(pool: Pool, spec: FewShot, asked: _Asked) -> list[Example]:
    turns, row = _turns(asked.row), asked.row
    if spec.examples:
        return pool.fixed(spec.k, turns)
    try:
        return pool.draw(spec.k or 0, seed=spec.seed, case=row.id, slice_=row.slice, messages=turns)
    except ValueError as error:
        raise SuiteError(f"{asked.where}: case {row.id!r}: {error}") from error


def _case(recipe: Recipe, asked: _Asked, examples: Iterable[Example]) -> Case:
    row, file, way, where = asked.row, recipe.file, recipe.way, asked.where
    if (row.prompt is None) == (not row.messages) and row.kind != "perplexity":
        raise SuiteError(f"{where}: case {row.id!r} needs either `prompt` or `messages`")
    turns = _turns(row)
    if (system := file.system or (way.system if way else "")) and turns[0].role != "system":
        turns = (Message("system", system), *turns)
    if (shown := tuple(examples)) and recipe.few_shot is not None:
        style = recipe.few_shot.style or ("turns" if row.chat else "text")
        turns = fewshot.placed(shown, turns, style, recipe.few_shot.separator)
    _check(row, f"{where}: case {row.id!r}")
    target = _target(row, f"{where}: case {row.id!r}")
    return Case(
        id=row.id,
        messages=turns,
        target=target,
        scorer=_scorer(recipe, row, target, where),
        slice=row.slice,
        cluster=row.cluster,
        max_tokens=row.max_tokens,
        timeout_s=row.timeout_s,
        weight=row.weight,
        kind=row.kind,
        choices=row.choices if row.kind == "choose" else (),
        chat=row.chat,
        then=row.then,
        request=row.request,
    )


def _scorer(recipe: Recipe, row: CaseRow, target: Any, where: str) -> ScorerSpec:
    """The row's own, else the file's, else the adapter's; of a kind with likelihoods, one that reads them."""
    place = f"{where}: case {row.id!r}"
    if row.kind == "perplexity":
        return ScorerSpec(row.kind)
    offered = [row.scorer, recipe.file.scorer, recipe.way.scorer if recipe.way else None]
    try:
        specs = [ScorerSpec.parse(one) for one in offered if one is not None]
        reads = [scorers.LIKELIHOOD in scorers.kind_of(spec.name).needs for spec in specs]
    except ValueError as error:
        raise SuiteError(f"{place}: {error}") from error
    if row.kind == "choose":
        if row.scorer is not None and not reads[0]:
            raise SuiteError(
                f"{place}: the scorer {specs[0].name!r} reads texts: the kind `choose` goes with {_LIKELIHOOD_SCORER!r}"
            )
        specs = [spec for spec, fits in zip(specs, reads, strict=True) if fits] or [ScorerSpec(_LIKELIHOOD_SCORER)]
    elif not specs:
        raise SuiteError(f"{where}: missing field `scorer` (or set `scorer` for all cases in suite.yaml)")
    elif reads[0]:
        raise SuiteError(f"{place}: the scorer {specs[0].name!r} goes with the kind `choose`, and this one generates")
    try:
        scorers.build(specs[0].name, specs[0].options, target)
        return msgspec.structs.replace(specs[0], revision=scorers.revision_of(specs[0].name))
    except ValueError as error:
        raise SuiteError(f"{place}: {error}") from error


def _check(row: CaseRow, where: str) -> None:
    for name, value in (("max_tokens", row.max_tokens), ("timeout_s", row.timeout_s), ("weight", row.weight)):
        if value is not None and not 0 < value < float("inf"):
            least = "be at least 1" if name == "max_tokens" else "be above 0"
            raise SuiteError(f"{where}: `{name}` must {least}")
    if taken := sorted(_RESERVED & row.request.keys()):
        raise SuiteError(f"{where}: `request.{taken[0]}` is set by the run: leave it out")
    if row.then and row.kind != "generate":
        raise SuiteError(f"{where}: `then` goes with the kind `generate`, and this one is {row.kind!r}")
    if not row.chat and row.kind == "generate":
        raise SuiteError(f"{where}: `chat: false` goes with the kinds `choose` and `perplexity`")
    if row.choices and row.kind == "perplexity":
        raise SuiteError(f"{where}: `choices` go with the kind `choose`")


def _target(row: CaseRow, where: str) -> Any:
    """The target; of `choose`, as the text of the choice also where it is written as its index."""
    if row.kind == "perplexity" and not (isinstance(row.target, str) and row.target):
        raise SuiteError(f"{where}: the kind `perplexity` needs the text whose likelihood is wanted as its target")
    if row.kind != "choose":
        return row.target
    if len(set(row.choices)) < 2:
        raise SuiteError(f"{where}: the kind `choose` needs two or more `choices`")
    if row.target in row.choices:
        return row.target
    if isinstance(row.target, int) and not isinstance(row.target, bool) and 0 <= row.target < len(row.choices):
        return row.choices[row.target]
    raise SuiteError(f"{where}: the target {row.target!r} is none of the choices {', '.join(map(repr, row.choices))}")
