"""LiteLLM's local price map as a file: found beside an installed LiteLLM, or where somebody says it is.

Owns: where it lies, and reading it once. Never: importing LiteLLM (4 s, and its own pins), the network, prices.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from registry.terminal import NotThereError, UserError

FILE: Final = "model_prices_and_context_window_backup.json"
BYTES_MAX: Final = 64 * 1024 * 1024
REMEDY: Final = "run `make hosted`, which installs LiteLLM with its price map, or name a file as prices.price_map"


@dataclass(frozen=True, slots=True)
class PriceMap:
    """The map as it was read."""

    path: Path
    source: str
    """What it is of, in words: `LiteLLM 1.80.0` or the file's name."""
    prices: Mapping[str, Any]


def find(folders: Sequence[Path], named: str = "") -> Path:
    """The file that is `named`, else the one of LiteLLM in the first of `folders` (of packages) that has it.

    Raises NotThereError.
    """
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise NotThereError(f"there is no price map {named}: name LiteLLM's {FILE}, or run `make hosted`")
        return path
    for folder in folders:
        path = folder / "litellm" / FILE
        if path.is_file():
            return path
    raise NotThereError(f"hosted prices need LiteLLM's price map, which is not here: {REMEDY}")


class PriceMapReader:
    """Reads the map when it is first asked for, and again where the file was changed. One thread at a time."""

    def __init__(self) -> None:
        self._read: tuple[tuple[Path, int, int], PriceMap] | None = None

    def read(self, path: Path) -> PriceMap:
        """Raises NotThereError where it cannot be read, UserError where it is no price map."""
        try:
            status = path.stat()
            state = (path, status.st_mtime_ns, status.st_size)
            if self._read is not None and self._read[0] == state:
                return self._read[1]
            if status.st_size > BYTES_MAX:
                raise UserError(f"the price map {path} is above {BYTES_MAX} bytes: name LiteLLM's {FILE}")
            prices = json.loads(path.read_bytes())
        except OSError as error:
            raise NotThereError(f"the price map {path} cannot be read ({error.strerror}): name another") from None
        except ValueError:
            raise UserError(f"the price map {path} is not JSON: name LiteLLM's {FILE}") from None
        if not isinstance(prices, dict) or not any(isinstance(one, dict) for one in prices.values()):
            raise UserError(f"the price map {path} names no models: name LiteLLM's {FILE}")
        made = PriceMap(path, _source(path), prices)
        self._read = (state, made)
        return made


def _source(path: Path) -> str:
    """The version of the LiteLLM that the file belongs to, by the folder that pip leaves beside it."""
    for folder in sorted(path.parent.parent.glob("litellm-*.dist-info")) if path.name == FILE else ():
        return f"LiteLLM {folder.name.removeprefix('litellm-').removesuffix('.dist-info')}"
    return path.name
