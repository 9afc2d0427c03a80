"""llama-cpp-python in this process: a GGUF file as llama.cpp computes with it, quantised weights and all.

Owns: what is particular to llama.cpp's C interface. Never: its sampling or its server.

A text is read CHUNK positions at a time, so never more than CHUNK distributions are in memory. What a text shares with
the one before it is not read again where only scores are asked for; distributions always are computed from the start,
so that two models get them in batches of the same shape.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from .model import CHUNK, Piece, RefusedError, Rows, Scored, gather, log_softmax

CONTEXT_FIRST: Final = 1024
"""Positions that the first context has room for; a longer text gets a larger one."""
ERRORS_FROM: Final = 4
"""llama.cpp's log level for errors."""


class GgufModel:
    """A model of llama.cpp."""

    def __init__(self, path: Path, *, threads: int, context: int, template: str) -> None:
        llama_cpp: Any = importlib.import_module("llama_cpp")  # heavy, and not there in every environment
        self._lib: Any = llama_cpp
        self._log = llama_cpp.llama_log_callback(_show)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise RefusedError(f"llama.cpp cannot load {path.name}: is it a complete GGUF file?")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._threads = threads
        self._template = template or self._own_template()
        self.vocabulary = int(llama_cpp.llama_vocab_n_tokens(self._vocab))
        limit = int(llama_cpp.llama_model_n_ctx_train(self._model))
        self.context = min(limit or context, context or limit)
        bos = int(llama_cpp.llama_vocab_bos(self._vocab))
        self.bos: int | None = bos if bos >= 0 else None
        self.library = f"llama-cpp-python {llama_cpp.__version__}"
        self._context: Any = None
        self._room = 0
        self._read: list[int] = []

    def encode(self, text: str, *, special: bool) -> list[int]:
        data = text.encode()
        room = len(data) + 8
        tokens = (self._lib.llama_token * room)()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), tokens, room, special, True)
        if count < 0:
            raise RefusedError("llama.cpp cannot tokenise this text")
        return list(tokens[:count])

    def texts(self, tokens: Sequence[int]) -> list[str]:
        return [self._piece(token).decode("utf-8", "replace") for token in tokens]

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        if not self._template:
            raise RefusedError("the model has no chat template")
        goes_on = messages[-1]["role"] == "assistant"
        end = self._text_of(self._lib.llama_vocab_eos(self._vocab))
        begin = self._text_of(self.bos if self.bos is not None else -1)
        formats: Any = importlib.import_module("llama_cpp.llama_chat_format")
        formatter = formats.Jinja2ChatFormatter(
            self._template, eos_token=end, bos_token=begin, add_generation_prompt=not goes_on
        )
        try:
            text: str = formatter(messages=[dict(turn) for turn in messages]).prompt
        except (importlib.import_module("jinja2").TemplateError, ValueError) as error:
            raise RefusedError(f"its chat template does not take this conversation ({error})") from None
        if goes_on:
            last = messages[-1]["content"]
            text = text[: text.rindex(last) + len(last)]
        return text

    def distributions(self, tokens: Sequence[int], first: int) -> Iterator[Rows]:
        self._rewind(0, len(tokens))
        for start in range(0, len(tokens), CHUNK):
            part = tokens[start : start + CHUNK]
            logits = self._decode(part, start, max(first - start, 0))
            if len(logits):
                yield log_softmax(logits)

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        self._rewind(0, len(tokens) + count)
        read, found, at = list(tokens), list[int](), 0
        while len(found) < count:
            for start in range(0, len(read), CHUNK):
                part = read[start : start + CHUNK]
                logits = self._decode(part, at, len(part) - 1)
                at += len(part)
            best = int(logits[-1].argmax())
            if self._lib.llama_vocab_is_eog(self._vocab, best):
                break
            found.append(best)
            read = [best]
        return found

    def scores(self, pieces: Sequence[Piece]) -> Iterator[Scored]:
        """In the order of their tokens: neighbours share the most."""
        for piece in sorted(pieces, key=lambda one: one.tokens):
            shared = _shared(self._read, piece.tokens)
            start = self._rewind(min(shared, piece.first), len(piece.tokens))
            rows = []
            for begin in range(start, len(piece.tokens), CHUNK):
                part = piece.tokens[begin : begin + CHUNK]
                logits = self._decode(part, begin, max(piece.first - begin, 0))
                if len(logits):
                    rows.append(log_softmax(logits))
            yield from gather(piece, np.concatenate(rows))

    def _rewind(self, keep: int, tokens: int) -> int:
        """Forget all but the first `keep` positions, with room for `tokens`; how many are kept."""
        lib = self._lib
        if tokens > self._room:
            self._make_room(tokens)
            keep = 0
        memory = lib.llama_get_memory(self._context)
        if keep == 0 or not lib.llama_memory_seq_rm(memory, 0, keep, -1):
            lib.llama_memory_clear(memory, True)
            keep = 0
        del self._read[keep:]
        return keep

    def _make_room(self, tokens: int) -> None:
        lib = self._lib
        room = CONTEXT_FIRST
        while room < tokens:
            room *= 2
        if self._context:
            lib.llama_free(self._context)
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = room, CHUNK, CHUNK, 1
        params.no_perf = True
        if self._threads:
            params.n_threads = params.n_threads_batch = self._threads
        self._context = lib.llama_init_from_model(self._model, params)
        self._read.clear()
        if not self._context:
            raise RefusedError(f"llama.cpp has no memory for a context of {room} tokens: limit it with --context")
        self._room = room

    def _decode(self, tokens: Sequence[int], start: int, first: int) -> Rows:
        """Read tokens at the positions from `start` on; the logits of those from the `first` of them on."""
        lib = self._lib
        batch = lib.llama_batch_init(len(tokens), 0, 1)
        try:
            for index, token in enumerate(tokens):
                batch.token[index], batch.pos[index] = token, start + index
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
                batch.logits[index] = index >= first
            batch.n_tokens = len(tokens)
            if lib.llama_decode(self._context, batch) != 0:
                raise RefusedError("llama.cpp could not compute this text")
        finally:
            lib.llama_batch_free(batch)
        self._read.extend(tokens)
        rows = max(len(tokens) - first, 0)
        if not rows:
            return np.empty((0, self.vocabulary), dtype=np.float32)
        logits = lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, shape=(rows, self.vocabulary)).copy()

    def _own_template(self) -> str:
        found = self._lib.llama_model_chat_template(self._model, None)
        return found.decode() if found else ""

    def _text_of(self, token: int) -> str:
        return self._piece(token).decode("utf-8", "replace") if token >= 0 else ""

    def _piece(self, token: int) -> bytes:
        room = 256
        buffer = ctypes.create_string_buffer(room)
        count = self._lib.llama_token_to_piece(self._vocab, token, buffer, room, 0, True)
        return buffer.raw[: max(count, 0)]


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


def _show(level: int, text: bytes, _: object) -> None:
    """Errors of llama.cpp go to standard error, where the parent finds the last line; the rest nowhere."""
    if level == ERRORS_FROM:
        import sys  # noqa: PLC0415 - called from C, rarely

        sys.stderr.write(text.decode("utf-8", "replace"))
