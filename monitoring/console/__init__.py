"""The console: what an operator sees and does in a browser, served by the control plane itself.

Owns: the pages under `/console`. Never: deciding, or importing the control plane, which hands in a `ConsoleSource`.

    from monitoring.console import mount
    mount(app, source)
"""

from monitoring.console.app import mount
from monitoring.console.source import SESSION_IN_SCOPE, ConsoleSource, Session, SignInError

__all__ = ["SESSION_IN_SCOPE", "ConsoleSource", "Session", "SignInError", "mount"]
