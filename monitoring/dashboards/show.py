"""Every panel of every dashboard with the figures of a running yard, as a page and as pictures.

    python -m monitoring.dashboards.show --prometheus http://127.0.0.1:9090 [--minutes 15] [--run "what ran"] \
        [--write docs/dashboards.md] [--pictures docs/images]

Owns: the part of the page between its two marks. Never: the yard, Prometheus, what the dashboards ask.
The pictures are this module's own drawings of the panels in their places, not screenshots of Grafana.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx

from monitoring.dashboards.expressions import panels
from monitoring.dashboards.figures import Ask, Shown, Window, look, words
from monitoring.dashboards.pictures import draw

ROOT: Final = Path(__file__).resolve().parent.parent.parent
FOLDER: Final = ROOT / "configs" / "grafana" / "dashboards"
ORDER: Final = ("overview", "versions", "rollout", "gpu-cost", "engines", "slo")
BEGIN: Final = "<!-- written by python -m monitoring.dashboards.show: from here -->"
END: Final = "<!-- to here -->"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m monitoring.dashboards.show", description=__doc__.splitlines()[0])
    parser.add_argument("--prometheus", required=True, help="its address, such as http://127.0.0.1:9090")
    parser.add_argument("--minutes", type=float, default=15.0, help="how far to look back (default: 15)")
    parser.add_argument("--run", default="", help="what ran, for the page's readers")
    parser.add_argument("--write", type=Path, help="the page to write into, between its marks; else standard output")
    parser.add_argument("--pictures", type=Path, help="a folder for one picture per dashboard")
    options = parser.parse_args(arguments)
    stop = time.time()
    window = Window(stop - 60 * options.minutes, stop)
    asked = {name: _look(name, _client(options.prometheus), window) for name in ORDER}
    page = "\n".join(_page(asked, options.run, window, with_pictures=bool(options.pictures)))
    if options.write:
        _write(options.write, page)
    else:
        sys.stdout.write(page + "\n")
    if options.pictures:
        for name, (dashboard, shown) in asked.items():
            draw(dashboard, shown, window, options.pictures / f"dashboard-{name}.png")
    missing = [f"{name}: {one.panel['title']}" for name, (_, shown) in asked.items() for one in shown if lacks(one)]
    if missing:
        sys.stderr.write(f"{len(missing)} panels have no data: " + "; ".join(missing) + "\n")
    return int(bool(missing))


def lacks(shown: Shown) -> bool:
    """Whether the panel should have data and has none."""
    return not shown.series and not shown.needs


def _client(url: str) -> Ask:
    def ask(path: str, parameters: Mapping[str, str]) -> list[dict[str, Any]]:
        answer = httpx.post(f"{url}/api/v1/{path}", data=dict(parameters), timeout=30, trust_env=False).json()
        if answer["status"] != "success":
            raise SystemExit(f"Prometheus refuses {parameters['query']}: {answer.get('error')}")
        return list(answer["data"]["result"])

    return ask


def _look(name: str, ask: Ask, window: Window) -> tuple[Mapping[str, Any], list[Shown]]:
    dashboard = json.loads((FOLDER / f"{name}.json").read_text())
    return dashboard, [look(dashboard, panel, ask, window) for panel in panels(dashboard)]


def _page(
    asked: Mapping[str, tuple[Mapping[str, Any], list[Shown]]], run: str, window: Window, *, with_pictures: bool
) -> Iterator[str]:
    day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(window.stop))
    minutes = (window.stop - window.start) / 60
    every = [one for _, shown in asked.values() for one in shown]
    full = sum(bool(one.series) for one in every)
    yield f"The run: {run or 'not said'}. Looked at on {day}, over the last {minutes:.0f} minutes."
    yield f"{full} of {len(every)} panels had data; each of the others says what it needs. Figures: the last value, and"
    yield "in brackets the lowest and the highest one of the time looked at."
    for name, (dashboard, shown) in asked.items():
        by_title = {one.panel["title"]: one for one in shown}
        yield f"\n## {dashboard['title'].removeprefix('Modelyard: ')}\n"
        yield f"`{dashboard['uid']}`: {dashboard['description']}\n"
        if with_pictures:
            yield f"![{dashboard['title']}, drawn from the same figures](images/dashboard-{name}.png)\n"
        for title, members in _rows(dashboard):
            yield f"### {title}\n"
            yield "| panel | what it shows, what to do | in this run |"
            yield "|---|---|---|"
            for panel in members:
                figures = "<br>".join(words(by_title[panel["title"]]))
                yield f"| {panel['title']} | {_cell(panel['description'])} | {_cell(figures)} |"
            yield ""


def _rows(dashboard: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    rows: list[tuple[str, list[Mapping[str, Any]]]] = []
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            rows.append((panel["title"], list(panel.get("panels") or ())))
        else:
            rows[-1][1].append(panel)
    return rows


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _write(path: Path, page: str) -> None:
    text = path.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise SystemExit(f"{path} lacks the marks {BEGIN} and {END}: put them where the figures go")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{page}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
