"""`python -m monitoring.dashboards [FOLDER]` writes every dashboard; `--check` only says whether one would differ."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from monitoring.dashboards.overview import overview

FOLDER = Path(__file__).resolve().parent.parent.parent / "configs" / "grafana" / "dashboards"


def rendered() -> dict[str, str]:
    """File name -> its text."""
    return {"overview.json": json.dumps(overview(), indent=2, ensure_ascii=False) + "\n"}


def main(arguments: list[str]) -> int:
    check = "--check" in arguments
    folders = [Path(argument) for argument in arguments if not argument.startswith("-")]
    folder = folders[0] if folders else FOLDER
    stale = [name for name, text in rendered().items() if _read(folder / name) != text]
    for name in stale if not check else []:
        (folder / name).write_text(rendered()[name], encoding="utf-8")
    if stale:
        sys.stderr.write(f"{'stale' if check else 'wrote'}: {', '.join(stale)}\n")
    return int(check and bool(stale))


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
