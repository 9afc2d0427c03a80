"""transformers in this process: a folder of safetensors, or a GGUF file, in float32 on the CPU.

Owns: what is particular to transformers. Never: a network; the hub is switched off.

A long text is read in chunks of positions with the key-value cache, so that never more than CHUNK distributions are in
memory however long it is. Batches are padded at their end: with causal attention nothing before the padding sees it.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from .model import CHUNK, Piece, RefusedError, Rows, Scored, gather, log_softmax

BATCH_TOKENS: Final = 1024
"""Tokens read at once, padding included."""
BATCH_MAX: Final = 16


class HfModel:
    """A causal language model of transformers."""

    def __init__(self, path: Path, *, threads: int, context: int, template: str) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        torch: Any = importlib.import_module("torch")  # heavy, and not there in every environment
        transformers: Any = importlib.import_module("transformers")
        transformers.utils.logging.disable_progress_bar()
        self._torch, self._transformers = torch, transformers
        if threads:
            torch.set_num_threads(threads)
        torch.manual_seed(0)
        torch.set_grad_enabled(False)
        folder, options = (path, {}) if path.is_dir() else (path.parent, {"gguf_file": path.name})
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, **options)
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
        self._model = torch.nn.Module.float(loaded).eval()  # a GGUF's own .float() refuses, although it is dequantised
        self._selects = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self._template = template or None
        self.vocabulary = int(self._model.get_output_embeddings().weight.shape[0])
        limit = int(getattr(self._model.config.get_text_config(), "max_position_embeddings", 0) or 0)
        self.context = min(limit or context, context or limit)
        self.bos: int | None = self._tokenizer.bos_token_id
        ends = self._model.generation_config.eos_token_id if self._model.generation_config else None
        ends = self._tokenizer.eos_token_id if ends is None else ends
        self._ends = set(ends if isinstance(ends, list) else [ends])
        self.library = f"transformers {transformers.__version__}, torch {torch.__version__}, float32"

    def encode(self, text: str, *, special: bool) -> list[int]:
        found: list[int] = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        return found

    def texts(self, tokens: Sequence[int]) -> list[str]:
        return [self._tokenizer.decode([token]) for token in tokens]

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        if not (self._template or self._tokenizer.chat_template):
            raise RefusedError("the model has no chat template")
        goes_on = messages[-1]["role"] == "assistant"
        text: str = self._tokenizer.apply_chat_template(
            list(messages),
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
        )
        return text

    def distributions(self, tokens: Sequence[int], first: int) -> Iterator[Rows]:
        cache = self._cache()
        for start in range(0, len(tokens), CHUNK):
            end = min(start + CHUNK, len(tokens))
            keep = list(range(max(start, first) - start, end - start))
            logits = self._forward([list(tokens[start:end])], cache, keep or [-1])
            if keep:
                yield log_softmax(logits[0])

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        cache = self._cache()
        read, found = list(tokens), list[int]()
        while len(found) < count:
            for start in range(0, len(read), CHUNK):
                logits = self._forward([read[start : start + CHUNK]], cache, [-1])
            best = int(logits[0, -1].argmax())
            if best in self._ends:
                break
            found.append(best)
            read = [best]
        return found

    def scores(self, pieces: Sequence[Piece]) -> Iterator[Scored]:
        """Batches of like length: little of what is read is padding."""
        left = sorted(pieces, key=lambda piece: len(piece.tokens), reverse=True)
        while left:
            count = max(1, min(BATCH_MAX, BATCH_TOKENS // len(left[0].tokens)))
            batch, left = left[:count], left[count:]
            yield from self._batch(batch)

    def _batch(self, batch: list[Piece]) -> Iterator[Scored]:
        longest = len(batch[0].tokens)
        padded = [[*piece.tokens, *[0] * (longest - len(piece.tokens))] for piece in batch]
        wanted: list[list[Rows]] = [[] for _ in batch]
        cache = self._cache()
        for start in range(0, longest, CHUNK):
            end = min(start + CHUNK, longest)
            spans = [(max(start, piece.first), min(end, len(piece.tokens))) for piece in batch]
            keep = sorted({at - start for low, high in spans for at in range(low, high)})
            logits = self._forward([row[start:end] for row in padded], cache, keep or [-1])
            place = {at: index for index, at in enumerate(keep)}
            for row, (low, high) in enumerate(spans):
                if low < high:
                    wanted[row].append(log_softmax(logits[row, [place[at - start] for at in range(low, high)]]))
        for piece, rows in zip(batch, wanted, strict=True):
            yield from gather(piece, np.concatenate(rows))

    def _cache(self) -> Any:
        return self._transformers.DynamicCache(config=self._model.config)

    def _forward(self, rows: list[list[int]], cache: Any, keep: list[int]) -> Rows:
        """Logits at the positions `keep` of what is read now; the cache grows by it."""
        torch = self._torch
        ids = torch.tensor(rows)
        wanted = torch.tensor([at % ids.shape[1] for at in keep])
        options = {"logits_to_keep": wanted} if self._selects else {}
        logits = self._model(input_ids=ids, past_key_values=cache, use_cache=True, **options).logits
        chosen = logits if self._selects else logits[:, wanted]
        found: Rows = chosen.float().numpy()
        return found
