"""Multipart forms, as the audio endpoints take them: the fields that decide where a request goes, and where they stand.

Owns: walking from boundary to boundary (RFC 2046) and reading the few fields beside the file. Never: looking into a
file, copying a part, guessing: a form that can be read in two ways is refused.
"""

from __future__ import annotations

import re
from typing import Final

from serving.errors import ApiError
from serving.router.openai_wire import Form

PARTS_MAX: Final = 256
PART_HEAD_BYTES_MAX: Final = 4096
FIELD_BYTES_MAX: Final = 1024
"""A value of `model`, `stream` or `user` beyond this size is nobody's."""
_PARAMETER: Final = re.compile(rb';\s*([^\s=;"]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;\s]*))')
_BOUNDARY: Final = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_WANTED: Final = frozenset({b"model", b"stream", b"user"})
_REMEDY: Final = "Send multipart/form-data as an HTTP library writes it."


def peek(body: bytes, content_type: bytes) -> Form:
    """The fields `model`, `stream` and `user` of a form. Raises ApiError (400) where it is none, or has no model."""
    delimiter = b"\r\n--" + _boundary(content_type)
    if body.startswith(delimiter[2:]):
        at = len(delimiter) - 2
    else:
        at = body.find(delimiter) + len(delimiter)  # a preamble, which nobody sends
        if at < len(delimiter):
            raise _malformed("its body does not begin with the boundary that content-type names")
    places: dict[bytes, tuple[int, int]] = {}
    for _ in range(PARTS_MAX):
        if body.startswith(b"--", at):
            return _form(body, places)
        start = body.find(b"\r\n", at, at + 128) + 2  # blanks may follow a boundary
        if start < 2 or body[at : start - 2].strip(b" \t"):
            raise _malformed("a boundary in it is not followed by the end of a line")
        head_end = body.find(b"\r\n\r\n", start - 2, start + PART_HEAD_BYTES_MAX)
        if head_end < 0:
            raise _malformed(f"a part of it has no head, or one of more than {PART_HEAD_BYTES_MAX} bytes")
        stop = body.find(delimiter, head_end + 2)
        if stop < 0:
            raise _malformed("its last boundary is missing")
        name = _field(body[start : head_end + 2])
        if name in _WANTED:
            if name in places:
                raise ApiError(
                    400,
                    f"The form has the field `{name.decode()}` twice.",
                    code="duplicate_field",
                    param=name.decode(),
                )
            places[name] = (head_end + 4, stop)
        at = stop + len(delimiter)
    raise _malformed(f"it has more than {PARTS_MAX} parts")


def _boundary(content_type: bytes) -> bytes:
    """The boundary that a content type names, checked against RFC 2046."""
    if not content_type.lower().startswith(b"multipart/form-data"):
        raise ApiError(400, "This endpoint takes a form: send it as multipart/form-data.", code="invalid_form")
    for name, quoted, plain in _PARAMETER.findall(content_type):
        if name.lower() == b"boundary":
            boundary: bytes = quoted or plain
            if _BOUNDARY.fullmatch(boundary):
                return boundary
            break
    raise _malformed("its content-type names no valid boundary")


def _field(head: bytes) -> bytes:
    """The name of the form field that a part is; empty for a file and for what is no field."""
    for line in head.split(b"\r\n"):
        header, _, value = line.partition(b":")
        if header.strip().lower() == b"content-disposition":
            given: dict[bytes, bytes] = {}
            for name, quoted, plain in _PARAMETER.findall(value):
                given[name.lower()] = quoted or plain
            if b"filename" in given or b"filename*" in given:
                return b""
            return given.get(b"name", b"")
    return b""


def _form(body: bytes, places: dict[bytes, tuple[int, int]]) -> Form:
    values: dict[bytes, str] = {}
    for name, (start, stop) in places.items():
        field = name.decode()
        if stop - start > FIELD_BYTES_MAX:
            raise ApiError(
                400,
                f"The form's field `{field}` is longer than {FIELD_BYTES_MAX} bytes.",
                code="invalid_value",
                param=field,
            )
        try:
            values[name] = body[start:stop].decode("utf-8")
        except UnicodeDecodeError:
            raise ApiError(
                400, f"The form's field `{field}` is not UTF-8.", code="invalid_value", param=field
            ) from None
    if not values.get(b"model"):
        raise ApiError(400, "You must provide a `model` field in the form.", code="missing_model", param="model")
    start, stop = places[b"model"]
    return Form(
        model=values[b"model"],
        stream=values.get(b"stream", "").lower() in {"true", "1", "on", "yes"},
        user=values.get(b"user"),
        model_from=start,
        model_to=stop,
    )


def _malformed(why: str) -> ApiError:
    return ApiError(400, f"The form cannot be read: {why}. {_REMEDY}", code="invalid_form")
