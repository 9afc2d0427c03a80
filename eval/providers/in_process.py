"""Models in a process of our own: transformers or llama-cpp-python, over a pipe.

Owns: finding a Python that has the library, the child process, and what its death means to a user. Never: importing a
model library; that happens in the child (worker/), which may crash.

The child is asked one thing at a time. Threads that ask for likelihoods at the same time are served together: whoever
comes first takes along what has gathered meanwhile, so that the library gets batches.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from eval.providers import worker
from eval.providers.base import CapabilityError, EvalCapabilities, Prompt, Question, Reply, by_choice, questions_of
from eval.providers.worker import wire
from eval.scorers.base import Likelihood
from eval.suite import Case
from registry.terminal import NotThereError, UserError

ROOT: Final = Path(__file__).resolve().parent.parent.parent
VENV: Final = ROOT / ".venv-inprocess"
"""Where `make inprocess` puts the model libraries."""
WORKER: Final = Path(worker.__file__).resolve().parent
MODULES: Final[Mapping[str, tuple[str, ...]]] = {
    "transformers": ("torch", "transformers", "accelerate", "gguf"),
    "llama-cpp": ("llama_cpp",),
}
"""Provider -> what its environment must have."""
REMEDIES: Final[Mapping[str, str]] = {"transformers": "make inprocess", "llama-cpp": "make inprocess-llama"}
PYTHON_VARIABLE: Final = "MODELYARD_INPROCESS_PYTHON"
_BOOT: Final = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location(
    "modelyard_worker", {str(WORKER / "__init__.py")!r}, submodule_search_locations=[{str(WORKER)!r}]
)
package = importlib.util.module_from_spec(spec)
sys.modules["modelyard_worker"] = package
spec.loader.exec_module(package)
from modelyard_worker.main import main
sys.exit(main())
"""
"""What the child runs: the worker as a package of its own, without the rest of the project on its path."""
_LOOK: Final = (
    "import importlib.util, sys; sys.exit(any(importlib.util.find_spec(name) is None for name in sys.argv[1:]))"
)
STOP_S: Final = 2.0


class ModelProcessError(NotThereError):
    """The model's process ended, or could not do what was asked."""


def interpreter(provider: str, given: str | None = None) -> str:
    """A Python that has the provider's library: the one given, else the environment's, ours, that of `.venv-inprocess`.

    Raises NotThereError with the command that makes one.
    """
    wanted = MODULES[provider]
    given = given or os.environ.get(PYTHON_VARIABLE)
    if given:
        path = Path(given).expanduser()
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise NotThereError(f"{given} is no interpreter: name the bin/python of an environment")
        if not _has(str(path.absolute()), wanted):
            raise NotThereError(f"{given} lacks one of {', '.join(wanted)}: install them there, or name none")
        return str(path.absolute())
    if all(importlib.util.find_spec(name) for name in wanted):
        return sys.executable
    own = VENV / "bin" / "python"
    if own.is_file() and _has(str(own), wanted):
        return str(own)
    raise NotThereError(
        f"no Python with {' and '.join(wanted[:2])} was found for --provider {provider}: run `{REMEDIES[provider]}`, "
        "or name one with --python"
    )


def _has(python: str, modules: Sequence[str]) -> bool:
    try:
        found = subprocess.run([python, "-c", _LOOK, *modules], check=False, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return found.returncode == 0


@dataclass(slots=True)
class _Waiting:
    """Questions of one thread, and what came of them."""

    questions: list[Question]
    replies: list[Reply] | None = None
    error: UserError | None = None


class InProcess:
    """One model, loaded by one library in a child process."""

    def __init__(
        self,
        provider: str,
        path: Path,
        *,
        python: str | None = None,
        threads: int = 0,
        context: int = 0,
        chat_template: str = "",
    ) -> None:
        """Load the model. Raises NotThereError without a Python for it, CapabilityError, ModelProcessError."""
        self.name = provider
        self._path = path
        check_file(provider, path)
        self._python = interpreter(provider, python)
        self._using = threading.Lock()
        self._gathering = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        argv = [self._python, "-c", _BOOT]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=_environment(threads)
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to: IO[bytes] = self._process.stdin
        self._from: IO[bytes] = self._process.stdout
        question = {"kind": provider, "path": str(path), "threads": threads, "context": context}
        try:
            found = self._one("open", **question, template=chat_template)
        except BaseException:
            self.close()
            raise
        self.chat: str = found["chat"]
        """A fixed conversation as the model's chat template writes it; "" without a template."""
        self.capabilities = EvalCapabilities(
            prompt_logprobs=True,
            top_k=found["vocabulary"],
            full_vocabulary=True,
            context_tokens=found["context"],
            tokenizer_digest=found["tokenizer"],
            vocabulary=found["vocabulary"],
            library=found["library"],
        )

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._to.close()
        try:
            self._process.wait(0 if self._using.locked() else STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(OSError):
            self._from.close()  # not before: a thread may still be reading from it
        self._log.close()

    def likelihoods(self, case: Case) -> Mapping[str, Likelihood]:
        return by_choice(case, self.score(questions_of(case)))

    def score(self, questions: Sequence[Question]) -> list[Reply]:
        mine = _Waiting(list(questions))
        with self._gathering:
            self._waiting.append(mine)
        with self._using:
            if mine.replies is None and mine.error is None:
                with self._gathering:
                    batch, self._waiting = self._waiting, []
                self._serve(batch)
        if mine.error is not None:
            raise mine.error
        return mine.replies or []

    def _serve(self, batch: Sequence[_Waiting]) -> None:
        """Reply to everybody who waits, or tell all of them why there is no reply."""
        try:
            replies = iter(self._scores([question for one in batch for question in one.questions]))
        except UserError as error:
            for one in batch:
                one.error = error
            return
        for one in batch:
            one.replies = [next(replies) for _ in one.questions]

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int] | str]:
        """Each prompt's tokens, or why it has none."""
        with self._using:
            found = self._one("encode", items=[_item(prompt) for prompt in prompts])["items"]
        return [item.get("tokens", item.get("error", "")) for item in found]

    def distributions(self, tokens: Sequence[int], first: int) -> Iterator[wire.Rows]:
        """log p over the whole vocabulary at the positions from `first` on, some rows at a time.

        The model begins at once, before the first rows are taken. All must be taken before anything else is asked.
        """
        self._send("rows", tokens=list(tokens), first=first)
        return self._rows()

    def _rows(self) -> Iterator[wire.Rows]:
        for message, rows in self._answers():
            if rows is None:
                return
            assert message["columns"] == self.capabilities.vocabulary
            yield rows

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """Up to `count` tokens that the model would go on with."""
        with self._using:
            found: list[int] = self._one("greedy", tokens=list(tokens), count=count)["tokens"]
        return found

    def texts(self, tokens: Sequence[int]) -> list[str]:
        """Each token as text."""
        with self._using:
            found: list[str] = self._one("texts", tokens=list(tokens))["texts"]
        return found

    def _scores(self, questions: Sequence[Question]) -> list[Reply]:
        items = [_item(question.prompt) | {"continuation": question.continuation} for question in questions]
        replies = [Reply(error="the model's process gave no answer")] * len(items)
        answers = self._ask("scores", items=items)
        for _ in items:
            message, _rows = next(answers)
            replies[message["index"]] = _reply(message)
        return replies

    def _one(self, question: str, **fields: Any) -> dict[str, Any]:
        return next(self._ask(question, **fields))[0]

    def _ask(self, question: str, **fields: Any) -> Iterator[tuple[dict[str, Any], wire.Rows | None]]:
        """The messages that answer; the caller knows how many. Raises CapabilityError, ModelProcessError."""
        self._send(question, **fields)
        return self._answers()

    def _send(self, question: str, **fields: Any) -> None:
        try:
            wire.write(self._to, {"question": question} | fields)
        except (BrokenPipeError, ValueError):
            raise ModelProcessError(self._obituary()) from None

    def _answers(self) -> Iterator[tuple[dict[str, Any], wire.Rows | None]]:
        try:
            while True:
                frame = wire.read(self._from)
                if frame is None:
                    raise wire.BrokenFrameError
                message = frame[0]
                if "error" in message and "index" not in message:
                    raise self._failure(message)
                yield frame
        except wire.BrokenFrameError:
            raise ModelProcessError(self._obituary()) from None

    def _failure(self, message: dict[str, Any]) -> Exception:
        if message.get("refused"):
            return CapabilityError(f"{self.name} and {self._path.name}: {message['error']}")
        if message.get("memory"):
            return ModelProcessError(_out_of_memory(self.name, self._path))
        return ModelProcessError(
            f"{self.name} cannot use {self._path} ({message['error']}): check the file, or take another --provider"
        )

    def _obituary(self) -> str:
        """Why there is no process any more, in one sentence."""
        try:
            code = self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            return f"the process of {self.name} stopped to speak: run the command again"
        if code == -9:
            return _out_of_memory(self.name, self._path)
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        last = f", saying {lines[-1]!r}" if lines else ""
        how = f"by signal {-code}" if code < 0 else f"with exit status {code}"
        return (
            f"the process of {self.name} that held {self._path.name} ended {how}{last}: run the command again, or take "
            "another --provider"
        )


def check_file(provider: str, path: Path) -> None:
    """Raise a UserError unless `path` is something that the provider can load."""
    if not path.exists():
        raise NotThereError(f"there is no {path}: name a GGUF file, or a folder with a safetensors checkpoint")
    if provider == "llama-cpp" and path.is_dir():
        raise CapabilityError(f"{path} is a folder: llama-cpp reads GGUF files; take --provider transformers")
    if path.is_dir() and not (path / "config.json").is_file():
        raise CapabilityError(f"{path} has no config.json: name the folder of a checkpoint, or a GGUF file")


def _out_of_memory(provider: str, path: Path) -> str:
    larger = " (float32 takes four bytes a weight)" if provider == "transformers" else ""
    return (
        f"{path.name} needs more memory than there is for {provider}{larger}: free some, limit the context with "
        "--context, or take a smaller model"
    )


def _environment(threads: int) -> dict[str, str]:
    """Without what points at our own environment; no hub, no telemetry."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    fixed = {
        "PYTHONSAFEPATH": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return kept | fixed | ({"OMP_NUM_THREADS": str(threads)} if threads else {})


def _item(prompt: Prompt) -> dict[str, Any]:
    if not prompt.messages:
        return {"text": prompt.text}
    return {"messages": [{"role": turn.role, "content": turn.content} for turn in prompt.messages]}


def _reply(message: dict[str, Any]) -> Reply:
    if "error" in message:
        return Reply(error=message["error"])
    return Reply(Likelihood(message["logprob"], message["tokens"], message["greedy"]))
