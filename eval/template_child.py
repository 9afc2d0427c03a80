"""The process that fills templates: a script of its own, which reads requests and writes answers, a JSON line each.

Owns: the sandbox and its limits. Never: importing anything of this project, opening a file.

A template comes from whoever wrote the suite. Jinja's sandbox keeps it from Python's objects; what a sandbox cannot
bound is time and memory (`{{ 10 ** 10 ** 10 }}`), so it runs here: SIGPROF ends the process after LIMIT_CPU_S of
processor time in one template, whatever it is doing, and the address space is limited.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import traceback
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

LIMIT_CPU_S = 1.0
LIMIT_BYTES = 512 * 1024 * 1024
LIMIT_CHARACTERS = 1_000_000


def environment() -> ImmutableSandboxedEnvironment:
    """No loader (no files), no attribute of Python's own, no writes, nothing undefined; `range` is the only global."""
    made = ImmutableSandboxedEnvironment(undefined=StrictUndefined, loader=None, keep_trailing_newline=False)
    kept = made.globals["range"]
    made.globals.clear()
    made.globals["range"] = kept
    return made


def fill(template: Template, values: dict[str, Any]) -> str:
    """The template's text. Raises ValueError where it is longer than LIMIT_CHARACTERS."""
    parts, size = [], 0
    for part in template.generate(values):
        size += len(part)
        if size > LIMIT_CHARACTERS:
            raise ValueError(f"its text is longer than {LIMIT_CHARACTERS:,} characters")
        parts.append(part)
    return "".join(parts)


def complaint(error: BaseException) -> dict[str, Any]:
    """What is wrong, and in which line of the template."""
    if isinstance(error, TemplateSyntaxError):
        return {"error": (error.message or "bad syntax").rstrip("."), "line": error.lineno}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if isinstance(error, MemoryError):
        text = f"it needs more than {LIMIT_BYTES // 1024**2} MiB"
    elif "no loader for this environment" in text:
        text = "a template cannot include, import or extend another"
    return {"error": text, "line": frames[-1].lineno if frames else 1}


def main() -> None:
    """Answer each request: `{"template": text}` is compiled; `{"use": n, "values": {…}}` fills the n-th."""
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    made, templates = environment(), []
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, LIMIT_CPU_S)
        answer: dict[str, Any]
        try:
            if "template" in request:
                templates.append(made.from_string(request["template"]))
                answer = {"text": ""}
            else:
                answer = {"text": fill(templates[request["use"]], request["values"])}
        except Exception as error:  # whatever a stranger's template raises
            answer = complaint(error)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
