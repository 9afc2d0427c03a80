"""`python -m monitoring.dashboards [FOLDER]` writes every dashboard; `--check` only says whether one would differ."""

from __future__ import annotations

import sys
from pathlib import Path

from monitoring.dashboards import engines, gpu_cost, overview, rollout, slo, versions
from monitoring.dashboards.build import Board, build, text

FOLDER = Path(__file__).resolve().parent.parent.parent / "configs" / "grafana" / "dashboards"


def boards() -> list[Board]:
    """Every dashboard, in the order in which they link to each other."""
    return [module.board() for module in (overview, versions, rollout, gpu_cost, engines, slo)]


def rendered() -> dict[str, str]:
    """File name -> its text."""
    every = boards()
    titles = [(board.uid, board.short_title) for board in every]
    return {
        board.uid.removeprefix("modelyard-") + ".json": text(
            build(board, [(uid, title) for uid, title in titles if uid != board.uid])
        )
        for board in every
    }


def main(arguments: list[str]) -> int:
    check = "--check" in arguments
    folders = [Path(argument) for argument in arguments if not argument.startswith("-")]
    folder = folders[0] if folders else FOLDER
    made = rendered()
    stale = [name for name, text in made.items() if _read(folder / name) != text]
    for name in stale if not check else []:
        (folder / name).write_text(made[name], encoding="utf-8")
    if stale:
        sys.stderr.write(f"{'stale' if check else 'wrote'}: {', '.join(stale)}\n")
    return int(check and bool(stale))


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
