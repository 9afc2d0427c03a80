"""Scorers over JSON answers: equality, and conformance to a JSON schema.

Owns: how JSON is found in an answer. Never: I/O, remote schema references (they are refused).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import jsonschema
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from eval.scorers.base import NO_TOOLS, Answered, Score, Scorer, ScorerError, Tools


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


DETAIL_CHARACTERS: Final = 200

_decoder: Final = json.JSONDecoder(parse_constant=_no_constant)


class NoJsonError(ValueError):
    """The answer holds no JSON."""


def find_json(text: str, *, strict: bool) -> Any:
    """The answer's JSON: all of it (`strict`), or else the first object or list in it, code fences or prose around.

    Raises NoJsonError where there is none.
    """
    if strict:
        try:
            return _decoder.decode(text)
        except (ValueError, RecursionError) as error:
            raise NoJsonError(str(error)) from error
    for index, character in enumerate(text):
        if character in "{[":
            try:
                return _decoder.raw_decode(text, index)[0]
            except ValueError:
                continue
            except RecursionError as error:  # a model that repeats `[` without end
                raise NoJsonError("nested too deeply") from error
    raise NoJsonError("no JSON object or list in the answer")


class Json(Scorer, frozen=True):
    """1 where the answer's JSON equals the target (numbers by value, keys in any order)."""

    strict: bool = False
    """The whole answer must be JSON."""
    subset: bool = False
    """Keys beside the target's are allowed, at the top level."""

    def check(self, target: Any) -> None:
        if not isinstance(target, dict | list):
            raise ScorerError("the scorer 'json' needs an object or a list as its target")

    def score(self, answered: Answered, target: Any, tools: Tools = NO_TOOLS) -> Score:
        try:
            value = find_json(answered.text, strict=self.strict)
        except NoJsonError as error:
            return Score(0.0, str(error))
        if self.subset and isinstance(value, dict) and isinstance(target, dict):
            value = {key: item for key, item in value.items() if key in target}
        return Score(float(same(value, target)))


class JsonSchema(Scorer, frozen=True, kw_only=True):
    """1 where the answer's JSON satisfies the schema. The target is not looked at."""

    schema: dict[str, Any]
    strict: bool = False

    def check(self, target: Any) -> None:
        try:
            jsonschema.Draft202012Validator.check_schema(self.schema)
        except jsonschema.SchemaError as error:
            raise ScorerError(f"the option `schema` is no JSON schema: {error.message}") from error
        if not all(reference.startswith("#") for reference in _references(self.schema)):
            raise ScorerError("the option `schema` refers to another document: write it out, or use #/$defs")
        resolver = Registry[Any]().with_resource("", DRAFT202012.create_resource(self.schema)).resolver()
        for reference in _references(self.schema):
            try:
                resolver.lookup(reference)
            except Unresolvable as error:
                raise ScorerError(f"the option `schema` refers to {reference!r}, which it does not hold") from error

    def score(self, answered: Answered, target: Any, tools: Tools = NO_TOOLS) -> Score:
        try:
            value = find_json(answered.text, strict=self.strict)
        except NoJsonError as error:
            return Score(0.0, str(error))
        try:
            wrong = next(jsonschema.Draft202012Validator(self.schema).iter_errors(value), None)
        except RecursionError:  # nested deeper than the validator follows
            return Score(0.0, "nested deeper than the schema's validator follows")
        return Score(1.0) if wrong is None else Score(0.0, f"{wrong.json_path}: {wrong.message[:DETAIL_CHARACTERS]}")


def same(left: Any, right: Any) -> bool:
    """Equality of JSON values: true is not 1, 1 is 1.0."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def _references(schema: Any) -> Iterator[str]:
    """Every `$ref` in the schema."""
    if isinstance(schema, dict):
        if isinstance(reference := schema.get("$ref"), str):
            yield reference
        schema = list(schema.values())
    if isinstance(schema, list):
        for item in schema:
            yield from _references(item)
