"""A request's body on its way to an engine: the model's name and the wish for usage put in, nothing else touched.

Owns: finding the places for certain, and handing large bodies on as they lie, in pieces. Never: I/O, deciding whether
an edit is needed.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import msgspec

from serving.router.openai_wire import BACKSLASH, Form, Peek

Piece: TypeAlias = bytes | memoryview
"""One of several that follow each other."""
LARGE_BYTES: Final = 64 * 1024
"""From here on a body is sent as it lies; a smaller one is cheaper to copy behind its head."""
NOWHERE: Final = (-1, -1)
FRONT_BYTES: Final = 4096
KEYS_TRIED_MAX: Final = 4
_KEY: Final = b'"model"'
_ASK: Final = b'"stream_options":{"include_usage":true},'


class _Object(msgspec.Struct, gc=False):
    """Any JSON object: its fields are skipped."""


_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_object: Final = msgspec.json.Decoder(_Object)


def outgoing(body: bytes, seen: Peek, *, name: str | None, usage: bool) -> list[Piece]:
    """The body for an engine, in pieces that follow each other: `name` in place of the model's, usage asked for.

    Every other byte is as it was, and none of a large body is copied, wherever the places can be found for certain.
    """
    if name is None and not usage:
        return [body]
    cuts: list[tuple[int, int, bytes]] = []
    certain = True
    if usage:
        start = body.index(b"{") + 1
        cuts.append((start, start, _ASK))
        certain = seen.stream_options is msgspec.UNSET
    if name is not None:
        place = _model_place(body, seen)
        cuts.append((*place, name.encode() if isinstance(seen, Form) else msgspec.json.encode(name)))
        certain = certain and place != NOWHERE
    if not certain:
        return [_rebuilt(body, name, usage=usage)]
    view = memoryview(body) if len(body) >= LARGE_BYTES else body
    parts: list[Piece] = []
    at = 0
    for start, stop, text in cuts:  # in order: what is asked for stands before every key
        parts += (view[at:start], text)
        at = stop
    parts.append(view[at:])
    return parts


def _rebuilt(body: bytes, name: str | None, *, usage: bool) -> bytes:
    """The fields put together anew, each value as it was; the body itself where that shows it to be no JSON after all
    (nobody has looked into its strings): the engine will say so."""
    try:
        fields: dict[str, Any] = dict(_fields.decode(body))
        if name is not None:
            fields["model"] = name
        if usage:
            options: Any = msgspec.json.decode(fields.get("stream_options", b"null"))
            fields["stream_options"] = {**(options or {}), "include_usage": True}
        return msgspec.json.encode(fields)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return body


def _model_place(body: bytes, seen: Peek) -> tuple[int, int]:
    """Between which bytes the value of the top-level `model` stands; NOWHERE where that is not certain.

    Clients put it first or behind the messages. A quote inside a JSON string is escaped, so `"model":` is a key; it is
    the object's own where what stands before it, or what stands behind its value, is one whole object once its brace is
    put back. A second such key with the same value stays as it is: engines go by the last, and that one says no more
    than the public name.
    """
    if isinstance(seen, Form):
        return seen.model_from, seen.model_to
    value = msgspec.json.encode(seen.model)
    at = body.find(_KEY, 0, FRONT_BYTES)
    if at >= 0 and (place := _value_place(body, at, value)) and _is_object(body[:at].rstrip(b" \t\r\n,") + b"}"):
        return place
    at = len(body)
    for _ in range(KEYS_TRIED_MAX):
        at = body.rfind(_KEY, 0, at)
        if at < 0:
            break
        if (place := _value_place(body, at, value)) and _is_object(b'{"":0' + body[place[1] :]):
            return place
    return NOWHERE


def _value_place(body: bytes, key: int, value: bytes) -> tuple[int, int] | None:
    """Where the value of the key at `key` stands, if it is `value`."""
    if body[key - 1] == BACKSLASH:
        return None  # the end of a longer key
    at = _after_blanks(body, key + len(_KEY))
    if body[at : at + 1] != b":":
        return None
    at = _after_blanks(body, at + 1)
    return (at, at + len(value)) if body.startswith(value, at) else None


def _after_blanks(body: bytes, at: int) -> int:
    while body[at : at + 1] in {b" ", b"\n", b"\r", b"\t"}:
        at += 1
    return at


def _is_object(text: bytes) -> bool:
    try:
        _object.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
