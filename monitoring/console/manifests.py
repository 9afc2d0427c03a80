"""What is different between two versions' manifests, in plain words.

Owns: which fields there are, what they are called, and how long texts are compared. Never: I/O, what a manifest is
(`registry.manifest`).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

NAMES: Final = {
    "engine": "Engine",
    "engine_args": "Engine argument",
    "artifacts": "File",
    "url": "Engine's address",
    "litellm_model": "Hosted model",
    "chat_template": "Chat template",
    "sampling": "Sampling default",
    "adapter": "Adapter",
    "lineage": "Lineage",
    "environment": "Package",
    "licence": "Licence",
    "schema": "Manifest's form",
}
"""In the order in which they are shown."""
CONTEXT_LINES: Final = 2
DIFF_LINES_MAX: Final = 400


@dataclass(frozen=True, slots=True)
class Difference:
    """One field with two values; "" where a version has none."""

    group: str
    name: str
    left: str
    right: str

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Of texts of several lines: ("+", "-" or " ", line); empty for short values."""
        if "\n" not in self.left + self.right:
            return []
        made = difflib.unified_diff(self.left.splitlines(), self.right.splitlines(), lineterm="", n=CONTEXT_LINES)
        body = [one for one in made if not one.startswith(("---", "+++"))]
        lines = [("@", "…") if one.startswith("@@") else (one[:1], one[1:]) for one in body[:DIFF_LINES_MAX]]
        return lines[1:] if lines and lines[0][0] == "@" else lines


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> tuple[list[Difference], int]:
    """What differs between two manifests as the admin API shows them, and how many fields are the same."""
    one, other = dict(_fields(left)), dict(_fields(right))
    order = [*one, *(key for key in other if key not in one)]
    groups = list(NAMES)
    order.sort(key=lambda key: groups.index(key[0]) if key[0] in groups else len(groups))
    found = [
        Difference(NAMES.get(group, group), name, one.get((group, name), ""), other.get((group, name), ""))
        for group, name in order
        if one.get((group, name)) != other.get((group, name))
    ]
    return found, len(order) - len(found)


def _fields(manifest: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], str]]:
    """((field, name within it), value) of everything that a manifest says."""
    for group, value in manifest.items():
        if group == "artifacts":
            for artifact in value:
                yield from _file(artifact)
        elif isinstance(value, Mapping):
            for name, part in value.items():
                if isinstance(part, Mapping):
                    yield from (((group, f"{name}.{inner}"), _text(inmost)) for inner, inmost in part.items())
                else:
                    yield (group, name), _text(part)
        else:
            yield (group, ""), _text(value)


def _file(artifact: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], str]]:
    role = artifact.get("role", "model")
    yield ("artifacts", f"{role}: name"), artifact["filename"]
    yield ("artifacts", f"{role}: SHA-256"), artifact["sha256"]
    yield ("artifacts", f"{role}: bytes"), f"{artifact['size_bytes']:,}"
    yield ("artifacts", f"{role}: source"), artifact["source"]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
