"""A YAML file as a value of a type, with the line of each of its keys for errors.

Owns: reading YAML, and mistakes in it as one sentence with file, line and the nearest field. Never: what a field means.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import yaml

from eval.errors import SuiteError

Value = TypeVar("Value")
_AT: Final = re.compile(r" - at `(key in )?\$([^`]*)`$")
_STEP: Final = re.compile(r"\.(\w+)|\[(\d+)\]")


class Places:
    """The lines of a YAML file's keys."""

    def __init__(self, source: str, text: str) -> None:
        self.source = source
        self._root: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)

    def line(self, *keys: str | int) -> int:
        """The line (from 1) of the value at `keys`, or of the nearest thing around it."""
        return self._find(keys).start_mark.line + 1 if self._root else 1

    def text_line(self, *keys: str | int) -> int:
        """The line that a text's first line stands in: below the key where it is a block (`|`)."""
        node = self._find(keys)
        block = isinstance(node, yaml.ScalarNode) and node.style in {"|", ">"}
        return int(node.start_mark.line) + 1 + int(block)

    def at(self, *keys: str | int) -> str:
        return f"{self.source} line {self.line(*keys)}"

    def _find(self, keys: Iterable[str | int]) -> yaml.Node:
        assert self._root is not None
        node = self._root
        for key in keys:
            found: yaml.Node | None = None
            if isinstance(node, yaml.MappingNode):
                found = next((value for name, value in node.value if name.value == key), None)
            elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
                found = node.value[key]
            if found is None:
                break
            node = found
        return node


def read(path: Path, kind: type[Value]) -> tuple[Value, dict[str, Any], Places]:
    """The file as `kind`, as plain values, and its places. Raises SuiteError."""
    try:
        text = path.read_text(encoding="utf-8")
        raw, places = yaml.safe_load(text), Places(str(path), text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise SuiteError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', error)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise SuiteError(f"{path}: a suite is a mapping with `name` and `cases`")
    try:
        return msgspec.convert(raw, kind), raw, places
    except msgspec.ValidationError as error:
        raise SuiteError(_sentence(error, kind, raw, places)) from error


def _sentence(error: msgspec.ValidationError, kind: Any, raw: Any, places: Places) -> str:
    keys = [name or int(number) for name, number in _STEP.findall(path_of(error))]
    text = explained(error, _fields(kind, keys))
    if unknown := re.match(r"unknown field `([^`]+)`", text):
        keys.append(unknown[1])
    return f"{places.at(*keys) if keys else places.source}: {text}"


def path_of(error: msgspec.ValidationError) -> str:
    """Where in the value the error is, e.g. `.sampling.max_tokens`; "" for the value itself."""
    found = _AT.search(str(error))
    return found[2] if found else ""


def explained(error: msgspec.ValidationError, fields: Iterable[str]) -> str:
    """msgspec's message in the words of the file, with the nearest of `fields` for an unknown one."""
    text, path = _AT.sub("", str(error)), path_of(error).lstrip(".")
    if text.startswith("Object contains unknown field"):
        unknown, fields = text.split("`")[1], list(fields)
        close = difflib.get_close_matches(unknown, fields, n=1, cutoff=0.5)
        hint = f" (did you mean `{close[0]}`?)" if close else f"; known: {', '.join(fields)}"
        return f"unknown field `{unknown}`{f' of `{path}`' if path else ''}{hint}"
    if text.startswith("Object missing required field"):
        return text.replace("Object missing required field", "missing field") + (f" of `{path}`" if path else "")
    return f"`{path}`: {text[0].lower()}{text[1:]}" if path else text


def _fields(kind: Any, keys: list[str | int]) -> list[str]:
    """The fields of the struct at `keys` within `kind`; of the unions on the way, the first that fits."""
    for key in keys:
        if isinstance(key, int):
            continue
        field = next((one for one in msgspec.structs.fields(kind) if one.encode_name == key), None)
        found = _struct(field.type) if field else None
        if found is None:
            return []
        kind = found
    return [field.encode_name for field in msgspec.structs.fields(kind)]


def _struct(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation
    inner = getattr(annotation, "__args__", ())
    return next((found for one in inner if (found := _struct(one))), None)
