"""What every adapter is: how a published data set becomes cases.

Owns: the interface, and reading fields of records. Never: opening files (records.py), few-shot, templates.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from eval.records import Record
from eval.suite import FewShot, Kind, Sampling

ANSWER: Final = "answer_text"
"""The field of a converted row that says what a worked example answers; its target where it has none."""


class FormatError(ValueError):
    """A record that is not of the published shape; the message is one clause."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a data set is asked, where the suite does not say otherwise."""

    convert: Callable[[Record], dict[str, Any]]
    """A record -> a row: the fields of a case, and those that templates may use. Raises FormatError."""
    scorer: str | dict[str, Any] | None = None
    """For rows that name none."""
    sampling: Sampling = field(default_factory=Sampling)
    system: str = ""
    few_shot: FewShot | None = None
    chat: bool = True


@dataclass(frozen=True, slots=True)
class Adapter:
    """A published shape."""

    name: str
    summary: str
    """What its files look like, in a phrase."""
    ways: Mapping[Kind, Way]
    """Kind -> how; the first is the default."""
    header: Sequence[str] | None = field(default=None)
    """The columns of its CSV files, which are published without a header."""

    @property
    def default(self) -> Kind:
        return next(iter(self.ways))


def text(record: Record, name: str) -> str:
    """A field that must be a text with something in it."""
    value = wanted(record, name)
    if not isinstance(value, str) or not value.strip():
        raise FormatError(f"`{name}` is {value!r}: a text is expected")
    return value


def texts(value: Any, name: str) -> list[str]:
    """A field that must be a list of texts."""
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise FormatError(f"`{name}` is {value!r}: a list of texts is expected")
    return value


def wanted(record: Record, name: str) -> Any:
    """A field that must be there; FormatError with the nearest one where it is not."""
    if record.fields.get(name) is not None:
        return record.fields[name]
    close = difflib.get_close_matches(name, record.fields, n=1, cutoff=0.6)
    hint = f" (did you mean `{close[0]}`?)" if close and close[0] != name else ""
    raise FormatError(f"missing field `{name}`{hint}; it has: {', '.join(record.fields) or 'none'}")


def identity(record: Record, name: str = "id") -> str:
    """The record's own id, else its file and number."""
    own = record.fields.get(name)
    return str(own) if own not in (None, "") else f"{record.stem}-{record.number:05d}"


def lettered(choices: Mapping[str, str]) -> str:
    """The choices as lines `A. text`."""
    return "\n".join(f"{label}. {choice}" for label, choice in choices.items())
