"""What a client says of an answer that it had: `POST /v1/feedback`, read and checked.

Owns: the form of the request and of its answer, and the errors. Never: I/O, finding the request that it is about: the
control plane does, and it knows whose request it was.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from registry.capture import COMMENT_BYTES_MAX, LABEL, LABEL_CHARS_MAX, SCORES, TARGET_BYTES_MAX, FeedbackGiven
from serving.errors import ApiError

PATH: Final = "/v1/feedback"
BODY_BYTES_MAX: Final = 64 * 1024
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_PLACE: Final = re.compile(r" - at `\$\.([^`]+)`")
_FORM: Final = (
    '{"request_id": "req-…", "score": -1 to 1 or "up" or "down", and perhaps "label", "comment" and "target"}'
)


class Form(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request. `model` may come along, as SDKs' helpers send it; it is not looked at."""

    request_id: str
    score: float | str
    label: str | None = None
    comment: str | None = None
    target: str | None = None
    model: Any = None


_decode: Final = msgspec.json.Decoder(Form).decode


def read(body: bytes, *, key_id: str, at: float) -> FeedbackGiven:
    """The feedback that a body gives. Raises ApiError (400, 413)."""
    if len(body) > BODY_BYTES_MAX:
        raise ApiError(413, f"Feedback of more than {BODY_BYTES_MAX} bytes is not taken.", code="request_too_large")
    try:
        form = _decode(body)
    except msgspec.ValidationError as error:
        place = _PLACE.search(str(error))
        message = _PLACE.sub("", str(error))
        param = place[1] if place else None
        raise ApiError(400, f"{message}. Send {_FORM}.", code="invalid_feedback", param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"The body is not valid JSON: {error}", code="invalid_json") from None
    if not _REQUEST_ID.fullmatch(form.request_id):
        raise _wrong("request_id", "must be the `x-request-id` of an answer")
    label = form.label or ""
    if len(label) > LABEL_CHARS_MAX or not LABEL.fullmatch(label):
        raise _wrong("label", f"must be at most {LABEL_CHARS_MAX} letters, digits, `_`, `.`, `:` and `-`")
    return FeedbackGiven(
        request_id=form.request_id,
        at=at,
        score=score_of(form.score),
        label=label,
        comment=_bounded("comment", form.comment or "", COMMENT_BYTES_MAX),
        target=_bounded("target", form.target or "", TARGET_BYTES_MAX),
        key_id=key_id,
    )


def score_of(given: float | str) -> float:
    """-1 to 1, of a number or of thumbs. Raises ApiError (400)."""
    score = SCORES.get(given.strip().lower()) if isinstance(given, str) else given
    if score is None or not -1 <= score <= 1:
        raise _wrong("score", 'must be a number from -1 to 1, or "up" or "down"')
    return score + 0.0  # no -0.0


def accepted(given: FeedbackGiven) -> bytes:
    """The answer's body."""
    return msgspec.json.encode(
        {"object": "feedback", "request_id": given.request_id, "score": given.score, "status": "accepted"}
    )


def unavailable() -> ApiError:
    """Nobody takes feedback now: the control plane is too far behind, or the worker was started without a spool."""
    return ApiError(
        503, "Feedback cannot be kept now; send it again later.", code="feedback_unavailable", retry_after_s=5
    )


def _bounded(name: str, text: str, limit: int) -> str:
    if len(text.encode("utf-8", errors="surrogatepass")) > limit:
        raise _wrong(name, f"must be at most {limit} bytes long")
    return text


def _wrong(name: str, what: str) -> ApiError:
    return ApiError(400, f"`{name}` {what}.", code="invalid_feedback", param=name)
