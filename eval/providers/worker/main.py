"""The loop of a model's process: a question from the pipe, its answer, until the pipe is closed.

Owns: the questions (below) and how failures are told. Never: what a model is (model.py, hf.py, gguf.py).

    open     {kind, path, threads, context, template}  -> what the model is
    encode   {items: [{text} | {messages}]}            -> their tokens, or why not
    scores   {items: [{text | messages, continuation}]} -> a message per item
    rows     {tokens, first}                           -> messages with an array of log p, then {done}
    greedy   {tokens, count}                           -> {tokens}
    texts    {tokens}                                  -> {texts}

A failure is {error}, one clause; the process lives on. Standard output is the pipe, so whatever a library prints goes
to standard error.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from . import wire
from .model import Model, RefusedError, pieces_of
from .probes import TEXTS, digest_of_ids

Message = dict[str, Any]
Answer = tuple[Message, wire.Rows | None]

_CONVERSATION = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
_CONVERSATION += [{"role": "user", "content": "three"}]


def main() -> int:
    """Serve standard input and output; 0 when the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it closes the pipe
    questions = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        serve(questions, answers)
    except BrokenPipeError:
        return 0
    return 0


def serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    """Answer until there are no more questions."""
    desk = Desk()
    while (frame := wire.read(questions)) is not None:
        try:
            for message, rows in desk.answer(frame[0]):
                wire.write(answers, message, rows)
        except RefusedError as error:
            wire.write(answers, {"error": str(error), "refused": True})
        except BrokenPipeError:
            raise
        except Exception as error:
            wire.write(answers, {"error": _clause(error), "memory": _is_memory(error)})


class Desk:
    """The model, once it is open."""

    def __init__(self) -> None:
        self._model: Model | None = None

    def answer(self, message: Message) -> Iterator[Answer]:
        """The answers to one question. Raises RefusedError, and whatever the library raises."""
        kinds: dict[str, Callable[[Message], Iterator[Answer]]] = {
            "open": self._open,
            "encode": self._encode,
            "scores": self._scores,
            "rows": self._rows,
            "greedy": self._greedy,
            "texts": self._texts,
        }
        yield from kinds[message["question"]](message)

    @property
    def model(self) -> Model:
        if self._model is None:
            raise RefusedError("no model is open")
        return self._model

    def _open(self, message: Message) -> Iterator[Answer]:
        path = Path(message["path"])
        options = {"threads": message["threads"], "context": message["context"], "template": message["template"]}
        if message["kind"] == "llama-cpp":
            from .gguf import GgufModel  # noqa: PLC0415 - only the library that is asked for

            self._model = GgufModel(path, **options)
        else:
            from .hf import HfModel  # noqa: PLC0415 - as above

            self._model = HfModel(path, **options)
        model = self._model
        try:
            rendered = model.render(_CONVERSATION)
        except RefusedError:
            rendered = ""
        yield (
            {
                "vocabulary": model.vocabulary,
                "context": model.context,
                "tokenizer": digest_of_ids([model.encode(text, special=False) for text in TEXTS]),
                "chat": rendered,
                "library": model.library,
            },
            None,
        )

    def _encode(self, message: Message) -> Iterator[Answer]:
        found: list[Message] = []
        for item in message["items"]:
            try:
                found.append({"tokens": self._prompt(item)})
            except RefusedError as error:
                found.append({"error": str(error)})
        yield {"items": found}, None

    def _scores(self, message: Message) -> Iterator[Answer]:
        fit: list[tuple[int, list[int], list[int]]] = []
        for index, item in enumerate(message["items"]):
            try:
                prompt, continuation = self._split(item)
            except RefusedError as error:
                yield {"index": index, "error": str(error)}, None
                continue
            fit.append((index, prompt, continuation))
        for one in self.model.scores(pieces_of(fit)):
            yield {"index": one.index, "logprob": one.logprob, "tokens": one.tokens, "greedy": one.greedy}, None

    def _split(self, item: Message) -> tuple[list[int], list[int]]:
        """Prompt and continuation as tokens. Raises RefusedError where they cannot be scored."""
        model, text = self.model, item["continuation"]
        if "messages" in item:
            prompt, continuation = self._prompt(item), model.encode(text, special=False)
        else:
            # Encoded together, as the text would be: a token may not end where the prompt does.
            prompt = self._prompt(item)
            whole = model.encode(item["text"] + text, special=True)
            continuation = whole[len(prompt) :] if whole[: len(prompt)] == prompt else model.encode(text, special=False)
        if not prompt and model.bos is not None:
            prompt = [model.bos]
        if not prompt:  # nothing predicts the first token: it is given
            prompt, continuation = continuation[:1], continuation[1:]
        if not continuation:
            raise RefusedError("the text to score has no tokens")
        self._fits(len(prompt) + len(continuation) - 1)
        return prompt, continuation

    def _prompt(self, item: Message) -> list[int]:
        if "messages" in item:
            return self.model.encode(self.model.render(item["messages"]), special=False)
        return self.model.encode(item["text"], special=True)

    def _fits(self, tokens: int) -> None:
        if tokens > self.model.context:
            raise RefusedError(f"it has {tokens} tokens and the context holds {self.model.context}")

    def _rows(self, message: Message) -> Iterator[Answer]:
        self._fits(len(message["tokens"]))
        for rows in self.model.distributions(message["tokens"], message["first"]):
            yield {"columns": rows.shape[1]}, rows
        yield {"done": True}, None

    def _greedy(self, message: Message) -> Iterator[Answer]:
        self._fits(len(message["tokens"]) + message["count"])
        yield {"tokens": self.model.greedy(message["tokens"], message["count"])}, None

    def _texts(self, message: Message) -> Iterator[Answer]:
        yield {"texts": self.model.texts(message["tokens"])}, None


def _clause(error: Exception) -> str:
    text = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _is_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error).lower()


if __name__ == "__main__":
    sys.exit(main())
