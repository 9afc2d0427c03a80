"""Prompts from templates: Jinja in a sandbox, within a process that time, memory and output size are bounded for.

Owns: starting that process, and errors that name the template's file and line and the row that it was filled with.
Never: rendering in this process; opening a file for a template.
"""

from __future__ import annotations

import difflib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from eval.errors import SuiteError, need

_SCRIPT: Final = Path(__file__).with_name("template_child.py")


@dataclass(frozen=True, slots=True)
class Template:
    """A template's text, and the file and line that it begins in."""

    text: str
    source: str
    line: int = 1

    def place(self, line: int) -> str:
        """Where the template's own line `line` (from 1) stands in its file."""
        return f"{self.source} line {self.line + line - 1}"


class Renderer:
    """Fills templates in the child process; made by `rendering`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._compiled: dict[Template, int] = {}

    def render(self, template: Template, values: Mapping[str, Any], where: str) -> str:
        """The template filled with a row's `values`; `where` is the row's place. Raises SuiteError in one sentence."""
        if template not in self._compiled:
            self._ask({"template": template.text}, template, values, where)
            self._compiled[template] = len(self._compiled)
        return self._ask({"use": self._compiled[template], "values": values}, template, values, where)

    def _ask(self, request: dict[str, Any], template: Template, values: Mapping[str, Any], where: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request, default=str) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SuiteError(f"{template.place(1)}: the template {self._end()}, filled with {where}: simplify it")
        answer = json.loads(line)
        if "text" in answer:
            return str(answer["text"])
        filled = f" (filled with {where})" if "use" in request else ""
        hint = _hint(answer["error"], values)
        raise SuiteError(
            f"{template.place(answer['line'])}: the template cannot be used: {answer['error']}{hint}{filled}"
        )

    def _end(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGPROF:
            return "was stopped after 1 s of processor time"
        return f"ended its process (exit {code})"


@contextmanager
def rendering() -> Iterator[Renderer]:
    """A Renderer for as long as a suite is read. Raises MissingExtraError where Jinja is not installed."""
    need("jinja2")
    with subprocess.Popen(
        [sys.executable, "-I", str(_SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    ) as process:
        try:
            yield Renderer(process)
        finally:
            process.kill()


def _hint(error: str, values: Mapping[str, Any]) -> str:
    """The nearest column for one that is not there."""
    found = re.fullmatch(r"'(\w+)' is undefined", error)
    if not found:
        return ""
    close = difflib.get_close_matches(found[1], list(values), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else f"; the row has: {', '.join(values) or 'no column'}"
