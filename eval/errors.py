"""What a user of `modelyard eval` can get wrong, each as one sentence with the remedy.

Owns: the exceptions of this package. Never: printing or exiting (registry.terminal does).

    UserError (exit 2)
    ├── SuiteError            a suite file that cannot be used: where, and what to write instead
    │   └── SuiteGoneError    (exit 4) the suite's file, or that of its cases, is not there
    ├── MissingExtraError     a library of an optional extra is not installed
    ├── RequestRefusedError   the server refuses every request of this kind (unknown model, key)
    └── RunError              a run that cannot be read, or that another process is writing
    NotThereError (exit 4)
    ├── ServerGoneError       no server answers, or it stopped answering
    └── StateDirError         the state directory cannot be read or written
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Final

from registry.terminal import NotThereError, UserError

EXTRA: Final = ("numpy", "pandas", "pyarrow", "scipy", "jsonschema", "datasets")
"""What the extra `eval` brings."""


class SuiteError(UserError):
    """A suite that cannot be used."""


class SuiteGoneError(SuiteError, NotThereError):
    """A suite's file, or that of its cases, is not there."""


class PolicyError(UserError):
    """A gate's policy that cannot be used."""


class MissingExtraError(UserError):
    """A library of an optional extra is not installed."""


class RequestRefusedError(UserError):
    """The server would refuse every request of this run."""


class RunError(UserError):
    """A run's files cannot be used."""


class ServerGoneError(NotThereError):
    """No server answers."""


class StateDirError(NotThereError):
    """The state directory cannot be read or written."""

    def __init__(self, path: Path, deed: str, error: OSError) -> None:
        cause = error.strerror or str(error)
        super().__init__(
            f"the state directory cannot be {deed}: {path} ({cause}); name another with --state-dir, or change its "
            "permissions"
        )


def need(module: str, extra: str = "eval") -> ModuleType:
    """Import `module`, or raise MissingExtraError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtraError(
            f"{package} cannot be imported ({error}): install it with pip install '.[{extra}]'"
        ) from error


def need_extra() -> None:
    """Raise MissingExtraError where the extra `eval` is not installed. Looks, without importing."""
    missing = [module for module in EXTRA if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f"evaluation needs {', '.join(missing)}, which this installation lacks: pip install '.[eval]'"
        )
