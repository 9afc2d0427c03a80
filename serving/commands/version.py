"""`modelyard version`."""

from __future__ import annotations

import platform

from registry import terminal
from serving.commands.options import Json, application

app = application()
PARTS = ("xllamacpp", "gguf", "datasets", "pandas", "fastapi", "sqlalchemy", "uvloop")


@app.command()
def version(as_json: Json = False) -> None:
    """What is installed here.

    \b
    Examples:
      modelyard version
      modelyard version --json
    """
    from importlib import metadata  # noqa: PLC0415 - 30 ms that --help need not pay

    def of(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    found = {"modelyard": of("modelyard") or "not installed", "python": platform.python_version()}
    if as_json:
        terminal.print_json({**found, "packages": {name: of(name) for name in PARTS}})
    else:
        print(f"modelyard {found['modelyard']} (Python {found['python']})")  # noqa: T201 - the command's output
