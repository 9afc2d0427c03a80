"""`requantize:` sources: a GGUF file whose weights are dequantised and quantised to another type.

Owns: which tensors change, and the new file's bytes; the same input and type give the same bytes. Never: the
arithmetic of a quantisation type (the `gguf` package has it), more of the file in memory than a few pieces.

Changed are the two-dimensional tensors of the file's main type, the one that holds most of their bytes: in a Q4_1 file
whose embedding is Q8_0, the embedding stays Q8_0. Every field stays as it is, but for `general.file_type`, which says
what most of the file is.
"""

from __future__ import annotations

import os
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from registry.artifacts.sources import Progress, RequantizeSource
from registry.artifacts.store import CHUNK_BYTES, ArtifactStore
from registry.errors import ArtifactError
from registry.manifest import Artifact

TYPES: Final = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
"""The types that the `gguf` package can quantise to and that llama.cpp takes on every device."""

_PIECE_ELEMENTS: Final = 1 << 16
"""Fits a core's cache in float32; measured twice as fast as a whole tensor at once."""
_THREADS: Final = max(1, min(4, os.cpu_count() or 1))


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dimensions: tuple[int, ...]
    """Fastest first, as in the file."""
    old: Any
    new: Any
    """gguf.GGMLQuantizationType"""
    data: Any
    """Rows of the old bytes, mapped from the file."""
    size_bytes: int
    """Of the new bytes."""


def fetch(source: RequantizeSource, store: ArtifactStore, work: Path, progress: Progress) -> list[Artifact]:
    """Write the file with its new weights into the store. Raises ArtifactError, OSError."""
    if source.type not in TYPES:
        raise ArtifactError(f"{source} asks for the type {source.type!r}", remedy=f"use one of {', '.join(TYPES)}")
    try:
        import gguf  # noqa: F401, PLC0415  an extra, and numpy with it
    except ImportError:
        raise ArtifactError(f"{source} needs the gguf package", remedy="pip install '.[llamacpp]'") from None
    parent = store.verify(source.parent)
    progress.start(f"Requantising {source.parent.filename} to {source.type}", parent.stat().st_size)
    try:
        sha256, size = store.absorb(_rewrite(parent, source, progress), work)
    except (ValueError, IndexError, KeyError, OverflowError, NotImplementedError) as error:
        raise ArtifactError(
            f"{source.parent.filename} cannot be requantised to {source.type} ({error})",
            remedy="take a complete GGUF file of a type that the gguf package can read",
        ) from error
    finally:
        progress.done()
    filename = renamed(source.parent.filename, source.type)
    return [Artifact(sha256=sha256, size_bytes=size, source=str(source), filename=filename)]


def renamed(filename: str, new: str) -> str:
    """The name of the derived file: `m.Q4_1.gguf` -> `m.Q4_0.gguf`, `m.gguf` -> `m.Q4_0.gguf`."""
    stem = PurePosixPath(filename).name.removesuffix(".gguf")
    base, dot, last = stem.rpartition(".")
    return f"{base if dot and last.upper() in _known_types() else stem}.{new}.gguf"


def _known_types() -> set[str]:
    from gguf import GGMLQuantizationType  # noqa: PLC0415  as above

    return {kind.name for kind in GGMLQuantizationType}


def _rewrite(path: Path, source: RequantizeSource, progress: Progress) -> Iterator[bytes]:
    """The new file, piece by piece."""
    from gguf import GGUFReader  # noqa: PLC0415  as above

    reader = GGUFReader(path)
    if reader.byte_order != "I":
        raise ValueError("its byte order is not this machine's")
    tensors = _plan(reader, source)
    progress.advance(int(reader.data_offset))
    yield from _head(reader, tensors, source.type)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="requantize") as pool:
        for tensor in tensors:
            if tensor.old == tensor.new:
                yield from _copied(tensor)
            else:
                yield from _converted(tensor, pool)
            yield bytes(-tensor.size_bytes % reader.alignment)
            progress.advance(int(tensor.data.nbytes))


def _plan(reader: Any, source: RequantizeSource) -> list[_Tensor]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType  # noqa: PLC0415  as above

    new = GGMLQuantizationType[source.type]
    sizes: Counter[Any] = Counter()
    for tensor in reader.tensors:
        if len(tensor.shape) == 2:
            sizes[tensor.tensor_type] += int(tensor.n_bytes)
    if not sizes:
        raise ValueError("it has no two-dimensional tensors")
    main = sizes.most_common(1)[0][0]
    if main == new:
        raise ValueError(f"it is {new.name} already")
    block, block_bytes = GGML_QUANT_SIZES[new]
    planned = []
    for tensor in sorted(reader.tensors, key=lambda tensor: int(tensor.data_offset)):
        dimensions = tuple(int(length) for length in tensor.shape)
        converts = len(dimensions) == 2 and tensor.tensor_type == main and dimensions[0] % block == 0
        count = int(tensor.n_elements)
        size = count // block * block_bytes if converts else int(tensor.n_bytes)
        kind = new if converts else tensor.tensor_type
        planned.append(_Tensor(tensor.name, dimensions, tensor.tensor_type, kind, tensor.data, size))
    if all(tensor.old == tensor.new for tensor in planned):
        raise ValueError(f"no tensor's rows divide into blocks of {block}")
    return planned


def _head(reader: Any, tensors: list[_Tensor], new: str) -> Iterator[bytes]:
    """Everything before the first tensor's data: the fields byte for byte, the tensors' list anew."""
    from gguf import LlamaFileType  # noqa: PLC0415  as above

    fields_end = min(int(tensor.field.offset) for tensor in reader.tensors)
    fields = bytearray(reader.data[:fields_end].tobytes())
    file_type = reader.fields.get("general.file_type")
    names = {"F32": "ALL_F32"}
    if file_type is not None:
        kind = LlamaFileType[names.get(new, f"MOSTLY_{new}")]
        at = int(file_type.offset) + sum(int(part.nbytes) for part in file_type.parts[:-1])
        struct.pack_into("<I", fields, at, kind)
    yield bytes(fields)
    entries = []
    offset = 0
    for tensor in tensors:
        name = tensor.name.encode()
        shape = struct.pack(f"<I{len(tensor.dimensions)}Q", len(tensor.dimensions), *tensor.dimensions)
        entries.append(struct.pack("<Q", len(name)) + name + shape + struct.pack("<IQ", tensor.new, offset))
        offset += tensor.size_bytes + -tensor.size_bytes % reader.alignment
    described = b"".join(entries)
    yield described + bytes(-(fields_end + len(described)) % reader.alignment)


def _copied(tensor: _Tensor) -> Iterator[bytes]:
    flat = tensor.data.reshape(-1).view("uint8")
    for start in range(0, len(flat), CHUNK_BYTES):
        yield flat[start : start + CHUNK_BYTES].tobytes()


def _converted(tensor: _Tensor, pool: ThreadPoolExecutor) -> Iterator[bytes]:
    """The tensor's rows in pieces, converted a few ahead by the pool, in order."""
    convert = _converter(tensor.old, tensor.new)
    step = max(1, _PIECE_ELEMENTS // tensor.dimensions[0])
    waiting: deque[Future[bytes]] = deque()
    for start in range(0, len(tensor.data), step):
        waiting.append(pool.submit(convert, tensor.data[start : start + step]))
        if len(waiting) > 2 * _THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _converter(old: Any, new: Any) -> Callable[[Any], bytes]:
    from gguf import quants  # noqa: PLC0415  as above

    # The types' own row functions, where there are such: `quants.quantize` cuts into pieces far too small.
    dequantise = getattr(getattr(quants, old.name, None), "dequantize_rows", None)
    quantise = getattr(getattr(quants, new.name, None), "quantize_rows", None)

    def convert(rows: Any) -> bytes:
        values = dequantise(rows) if dequantise else quants.dequantize(rows, old)
        data: bytes = (quantise(values) if quantise else quants.quantize(values, new)).tobytes()
        return data

    return convert
