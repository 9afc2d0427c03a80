"""The console: what an operator sees and does in a browser, served by the control plane itself.

Owns: the pages under `/console`. Never: deciding, or importing the control plane, which hands in a `ConsoleSource`.

    from monitoring.console import mount
    mount(app, source)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitoring.console.source import SESSION_IN_SCOPE, ConsoleSource, Cookie, Session, SignInError

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["SESSION_IN_SCOPE", "ConsoleSource", "Cookie", "Session", "SignInError", "mount"]


def mount(app: FastAPI, source: ConsoleSource) -> None:
    """Serve the console under `/console` of the application."""
    from monitoring.console.app import serve  # noqa: PLC0415 - the templates' library is wanted by the control plane only

    serve(app, source)
