"""What drift is measured on: a file of prompts, or a suite's cases.

Owns: reading them. Never: which positions count (token_drift.py), tokens.

    prompts.jsonl   a line each: {"prompt": …} or {"messages": […]} are answered, {"text": …} is read; "id" is optional
    prompts.txt     a line each, read as it is
    SUITE           a suite by name or path: its cases' prompts are answered
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from eval import loaders
from eval.errors import SuiteError, SuiteGoneError
from eval.providers.base import Prompt
from eval.suite import Message, duplicates


@dataclass(frozen=True, slots=True)
class Text:
    """One prompt."""

    name: str
    prompt: Prompt
    answered: bool
    """The model's answer to it is measured; else the text itself."""


def is_file(given: str) -> bool:
    """Whether this names a file of prompts, as opposed to a suite."""
    return given.endswith((".jsonl", ".txt"))


def load(given: str, cache: Path, limit: int | None = None) -> list[Text]:
    """The prompts of a file or suite; with `limit`, that many, spread evenly. Raises SuiteError, SuiteGoneError."""
    if not is_file(given):
        suite = loaders.load(given, cache).limited(limit)
        return [Text(case.id, Prompt.of(case), answered=bool(Prompt.of(case).messages)) for case in suite.cases]
    path = Path(given).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SuiteGoneError(f"{path} cannot be read ({error.strerror}): name a file of prompts, or a suite") from error
    except UnicodeDecodeError as error:
        raise SuiteError(f"{path} is not UTF-8 ({error.reason}): save it as UTF-8") from error
    read = _objects(path, lines) if path.suffix == ".jsonl" else _plain(path, lines)
    found = list(read)
    if not found:
        raise SuiteError(f"{path} has no prompts: write one a line")
    if twice := duplicates(text.name for text in found):
        raise SuiteError(f"{path} has the id {twice[0]!r} twice: ids tell prompts apart")
    count = min(limit or len(found), len(found))
    return [found[index * len(found) // count] for index in range(count)]


def _plain(path: Path, lines: list[str]) -> Iterator[Text]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield Text(f"{path.name}:{number}", Prompt(text=line), answered=False)


def _objects(path: Path, lines: list[str]) -> Iterator[Text]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise SuiteError(f"{where} is not JSON ({error}): write one object a line") from error
        yield _object(value, where)


def _object(value: Any, where: str) -> Text:
    given = [key for key in ("prompt", "messages", "text") if isinstance(value, dict) and key in value]
    if len(given) != 1:
        raise SuiteError(f"{where} needs one of `prompt`, `messages` and `text`")
    name, content = str(value.get("id", where)), value[given[0]]
    try:
        if given[0] == "messages":
            prompt = Prompt(messages=msgspec.convert(content, tuple[Message, ...]))
        else:
            text = msgspec.convert(content, str)
            prompt = Prompt(text=text) if given[0] == "text" else Prompt(messages=(Message("user", text),))
    except msgspec.ValidationError as error:
        raise SuiteError(f"{where}: `{given[0]}` cannot be read ({error})") from error
    if not prompt.messages and not prompt.text:
        raise SuiteError(f"{where}: `{given[0]}` is empty")
    return Text(name, prompt, answered=given[0] != "text")
