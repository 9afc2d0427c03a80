"""Which wait for an engine has lasted too long.

Owns: that question. Never: I/O, clocks, what follows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from serving.router.answer import Answer
    from serving.router.table import Timeouts

SILENT_END: Final = "silent_end"
SILENT_END_S: Final = 2.0
"""A stream that has said how it ended, and then nothing more for so long, is over."""


def overdue(timeouts: Timeouts, answer: Answer | None, since: float, now: float) -> str:
    """The wait that is over, "" where none is. `since`: when the engine was last asked, or we last began to listen.

    1. Until the head of an answer has come: first byte.
    2. Until its content begins: first token of a stream, first byte of a whole answer.
    3. Then: between two pieces of content. What carries none (comments, half events) is no progress.
    """
    waited = now - since
    if answer is None:
        return "first_byte_timeout" if timeouts.first_byte_s and waited > timeouts.first_byte_s else ""
    if not answer.progressed_at:
        limit_s = timeouts.first_token_s if answer.scanner is not None else timeouts.first_byte_s
        return "first_token_timeout" if limit_s and waited > limit_s else ""
    waited = min(waited, now - answer.progressed_at)
    if answer.scanner is not None and answer.scanner.finish_reason and waited > SILENT_END_S:
        return SILENT_END
    return "between_tokens_timeout" if timeouts.between_tokens_s and waited > timeouts.between_tokens_s else ""
