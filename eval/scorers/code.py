"""Does the program that the answer holds pass its tests?

Owns: finding the program in an answer, and putting it together with its tests. Never: running it (eval/sandbox.py).
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final

import msgspec

from eval.scorers.base import NO_TOOLS, SANDBOX, Answered, Score, Scorer, ScorerError, Tools

_BLOCK: Final = re.compile(r"```[ \t]*(?:python|python3|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_EXAMPLE: Final = '{"test": "assert add(1, 2) == 3"}'


class CodeTarget(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a program is tried with."""

    test: str | list[str]
    """Python that raises where the program is wrong; of HumanEval, the definition of `check(candidate)`."""
    entry_point: str = ""
    """The function that is asked for."""
    prompt: str = ""
    """Code that was given: imports and helpers before the function, its head and docstring."""


class PythonTests(Scorer, frozen=True):
    """1 where the answer's program passes its tests in the sandbox: no network, no other files, limits on the rest."""

    needs: ClassVar[frozenset[str]] = frozenset({SANDBOX})

    wall_s: float = 10.0
    memory_mib: int = 512

    def check(self, target: Any) -> None:
        found = _target(target)
        if not (found.test if isinstance(found.test, str) else "".join(found.test)).strip():
            raise ScorerError(
                f"the scorer 'python_tests' needs a test that is not empty in its target, e.g. {_EXAMPLE}"
            )
        if not 0 < self.wall_s <= 600 or not 64 <= self.memory_mib <= 65536:
            raise ScorerError("`wall_s` must lie between 0 and 600, `memory_mib` between 64 and 65536")

    def score(self, answered: Answered, target: Any, tools: Tools = NO_TOOLS) -> Score:
        if tools.sandbox is None:
            raise ScorerError("the scorer 'python_tests' needs the sandbox, and there is none")
        text = program(answered.text, _target(target))
        found = tools.sandbox.run(text, wall_s=self.wall_s, memory_bytes=self.memory_mib * 2**20)
        return Score(float(found.passed), found.reason)


def program(answer: str, target: CodeTarget) -> str:
    """The answer's code after what was given, and its tests after that.

    An answer that defines the function replaces it; one that does not is taken to go on where the prompt stops.
    """
    code = code_of(answer, target.entry_point)
    if target.entry_point and target.prompt:
        head = re.search(rf"^(?:async\s+)?def\s+{re.escape(target.entry_point)}\b", target.prompt, re.MULTILINE)
        given = target.prompt[: head.start()] if head and _defines(code, target.entry_point) else target.prompt
        code = given + code
    else:
        code = f"{target.prompt}\n{code}"
    tests = target.test if isinstance(target.test, str) else "\n".join(target.test)
    calls = f"\ncheck({target.entry_point})\n" if target.entry_point and _defines(tests, "check") else "\n"
    return f"{code}\n\n{tests}\n{calls}"


def code_of(answer: str, entry_point: str = "") -> str:
    """The code in the answer: the first fenced block that defines `entry_point`, else the first, else all of it."""
    blocks = [str(block) for block in _BLOCK.findall(answer)]
    if not blocks:
        return answer
    return next((block for block in blocks if entry_point and _defines(block, entry_point)), blocks[0])


def _defines(code: str, name: str) -> bool:
    return re.search(rf"^(?:async\s+)?def\s+{re.escape(name)}\b|^{re.escape(name)}\s*=", code, re.MULTILINE) is not None


def _target(target: Any) -> CodeTarget:
    try:
        return msgspec.convert(target, CodeTarget)
    except msgspec.ValidationError as error:
        raise ScorerError(
            f"the scorer 'python_tests' needs its tests as the target, e.g. {_EXAMPLE} ({error})"
        ) from error
