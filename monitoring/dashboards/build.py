"""A dashboard's panels as plain values, and the Grafana dashboard that they become.

Owns: turning `Row`, `Panel` and `Query` into the foundation SDK's types, and the grid of 24 columns. Never: which
panels there are, files, Prometheus.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.builders import prometheus as prometheus_builder
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import prometheus

from monitoring.dashboards.look import DATASOURCE, custom, options, table_columns

COLUMNS: Final = 24
TAGS: Final = ["modelyard", "llm"]
REFRESHES: Final = ["5s", "10s", "30s", "1m", "5m", "15m", "1h"]

UNKNOWN: Final = ("id", "auto", "auto_min", "auto_count")
"""Fields that the SDK's oldest types give every variable, and that Grafana's own schema has not for these kinds."""

Kind = Literal["timeseries", "stat", "table", "bargauge", "state-timeline"]
Limits = tuple[tuple[float | None, str], ...]


@dataclass(frozen=True, slots=True)
class Query:
    """One query and how its series are called; in a table it is one column, with its own unit and limits."""

    expr: str
    legend: str = ""
    unit: str = ""
    decimals: int | None = None
    limits: Limits = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `description` says what is shown and what to do about it."""

    id: int
    """Within its dashboard, for ever: links to a panel and alerts name it. Never used again for another one."""
    title: str
    description: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    decimals: int | None = None
    limits: Limits = ()
    """(from this value on, colour); the first one has no value."""
    mappings: tuple[tuple[str, str, str], ...] = ()
    """(value, text, colour)"""
    top: float | None = None
    """The axis' maximum."""
    floor: float | None = 0.0
    """The axis' minimum; None where values may be negative."""
    steps: bool = False
    """Values hold until the next one: weights, revisions."""
    log: bool = False
    """A logarithmic axis, for values that span decades."""
    empty: str = "no data"
    """What is shown where there are no series."""
    see: tuple[str, ...] = ()
    """Uids of the dashboards that the panel's corner links to."""


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading, from left to right, wrapped at 24 columns."""

    id: int
    title: str
    panels: tuple[Panel, ...]
    collapsed: bool = False


@dataclass(frozen=True, slots=True)
class Annotation:
    """Moments marked in every panel: where the expression has a value."""

    name: str
    expr: str
    colour: str
    title: str
    """What a mark is called; `{{label}}` stands for a label's value."""


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard."""

    uid: str
    short_title: str
    description: str
    rows: tuple[Row, ...]
    variables: tuple[str, ...]
    """Names in VARIABLES, beside the data source."""
    since: str = "now-1h"
    refresh: str = "10s"
    annotations: tuple[Annotation, ...] = ()


VARIABLES: Final = {
    "model": ("Model", "Whose requests.", "label_values(modelyard_route_weight, model)"),
    "version": ("Version", "Which arms.", 'label_values(modelyard_route_weight{model=~"$model"}, version)'),
    "replica": (
        "Replica",
        "Which engines.",
        'label_values(modelyard_engine_up{model=~"$model",version=~"$version"}, replica)',
    ),
    "device": ("Device", "Which GPUs, or the CPU.", "label_values(modelyard_device_info, device)"),
}
"""Name -> label, description, query."""


def build(board: Board, others: Sequence[tuple[str, str]]) -> model.Dashboard:
    """The dashboard; `others` are (uid, title) of the ones that its head links to."""
    builder = (
        dashboards.Dashboard(f"Modelyard: {board.short_title}")
        .uid(board.uid)
        .description(board.description)
        .tags(TAGS)
        .editable()
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .timezone("browser")
        .refresh(board.refresh)
        .time(board.since, "now")
        .version(1)
        .variables([_datasource(), *(_variable(name) for name in board.variables)])
        .annotations([_Annotation(each) for each in board.annotations])
        .links([_link(uid, title) for uid, title in others])
    )
    y = 0
    for row in board.rows:
        y = _place(builder, row, y, dict(others))
    return builder.build()


def text(dashboard: model.Dashboard) -> str:
    """Its JSON, the same bytes for the same dashboard."""
    whole = json.loads(json.dumps(dashboard, cls=JSONEncoder))
    for variable in whole["templating"]["list"]:
        for name in UNKNOWN:
            variable.pop(name, None)
    del whole["style"]  # no dashboard has a theme of its own any more
    whole["timepicker"] = {"refresh_intervals": REFRESHES}
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _place(builder: dashboards.Dashboard, row: Row, y: int, titles: dict[str, str]) -> int:
    """Adds a row from line `y` on; returns the line after it."""
    head = dashboards.Row(row.title).id(row.id).grid_pos(model.GridPos(h=1, w=COLUMNS, x=0, y=y))
    built: list[Builder[model.Panel]] = []
    y += 1
    x = height = 0
    for panel in row.panels:
        if x + panel.width > COLUMNS:
            x, y, height = 0, y + height, 0
        built.append(_panel(panel, titles).grid_pos(model.GridPos(h=panel.height, w=panel.width, x=x, y=y)))
        x += panel.width
        height = max(height, panel.height)
    for each in built if row.collapsed else ():
        head.with_panel(each)  # Grafana keeps a collapsed row's panels inside the row
    builder.with_row(head.collapsed(row.collapsed))
    for each in () if row.collapsed else built:
        builder.with_panel(each)
    return y if row.collapsed else y + height


def _panel(panel: Panel, titles: dict[str, str]) -> dashboards.Panel:
    builder = (
        dashboards.Panel()
        .type(panel.kind)
        .id(panel.id)
        .title(panel.title)
        .description(panel.description)
        .datasource(DATASOURCE)
        .targets([_target(query, index, panel) for index, query in enumerate(panel.queries)])
        .unit(panel.unit)
        .thresholds(_thresholds(panel.limits))
        .color_scheme(dashboards.FieldColor().mode(_colour_mode(panel)))
        .no_value(panel.empty)
        .options(options(panel.kind))
        .links([_link(uid, titles[uid]) for uid in panel.see])
    )
    if panel.mappings:
        builder.mappings([_mapping(panel.mappings)])
    if panel.decimals is not None:
        builder.decimals(panel.decimals)
    if panel.kind in ("timeseries", "bargauge") and panel.floor is not None and not panel.log:
        builder.min(panel.floor)
    if panel.top is not None:
        builder.max(panel.top)
    look = custom(panel.kind, stacked=panel.stacked, steps=panel.steps, log=panel.log, limited=bool(panel.limits))
    if look is not None:
        builder.custom(look)
    if panel.kind == "table":
        transformations, overrides = table_columns(panel.queries)
        builder.transformations(transformations)
        for name, properties in overrides:
            builder.override_by_name(name, properties)
    return builder


def _colour_mode(panel: Panel) -> model.FieldColorModeId:
    lines = panel.kind == "timeseries"
    return model.FieldColorModeId.PALETTE_CLASSIC if lines else model.FieldColorModeId.THRESHOLDS


def _target(query: Query, index: int, panel: Panel) -> prometheus_builder.Dataquery:
    target = (
        prometheus_builder.Dataquery()
        .ref_id(chr(ord("A") + index))
        .datasource(DATASOURCE)
        .editor_mode(prometheus.QueryEditorMode.CODE)
        .expr(query.expr)
        .legend_format(query.legend or "__auto")
    )
    if panel.kind == "table":
        return target.format(prometheus.PromQueryFormat.TABLE).instant()
    target.format(prometheus.PromQueryFormat.TIME_SERIES).exemplar("_bucket{" in query.expr)
    return target.instant() if panel.kind == "bargauge" else target.range()


def _thresholds(limits: Limits) -> dashboards.ThresholdsConfig:
    steps = [model.Threshold(value, colour) for value, colour in limits or ((None, "text"),)]
    return dashboards.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)


def _mapping(mappings: Sequence[tuple[str, str, str]]) -> model.ValueMap:
    return model.ValueMap(
        {
            value: model.ValueMappingResult(text=shown, color=colour, index=index)
            for index, (value, shown, colour) in enumerate(mappings)
        }
    )


def _datasource() -> Builder[model.VariableModel]:
    """Which Prometheus to ask: the first one unless another is chosen."""
    return (
        dashboards.DatasourceVariable("datasource")
        .label("Data source")
        .description("The Prometheus that scrapes Modelyard.")
        .type("prometheus")
    )


def _variable(name: str) -> Builder[model.VariableModel]:
    """A choice among a label's values, all of them at first."""
    label, description, query = VARIABLES[name]
    return (
        dashboards.QueryVariable(name)
        .label(label)
        .description(description)
        .datasource(DATASOURCE)
        .query({"query": query, "refId": name})
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(model.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


class _Mark(model.AnnotationQuery):
    """An annotation with the title that only Grafana's Prometheus source knows."""

    def __init__(self, annotation: Annotation) -> None:
        super().__init__(annotation.name, DATASOURCE, icon_color=annotation.colour, expr=annotation.expr)
        self.title = annotation.title

    def to_json(self) -> dict[str, object]:
        return {**super().to_json(), "titleFormat": self.title}


class _Annotation(Builder[model.AnnotationQuery]):
    def __init__(self, annotation: Annotation) -> None:
        self._mark = _Mark(annotation)

    def build(self) -> model.AnnotationQuery:
        return self._mark


def _link(uid: str, title: str) -> Builder[model.DashboardLink]:
    """To another dashboard, at the same time and with the same choices."""
    return (
        dashboards.DashboardLink(title)
        .type(model.DashboardLinkType.LINK)
        .icon("dashboard")
        .tooltip(f"{title}, same time and choices")
        .url(f"/d/{uid}")
        .include_vars(True)
        .keep_time(True)
    )


def stat(number: int, title: str, description: str, query: Query, **more: Any) -> Panel:
    """One figure in a small box; `more` are fields of Panel."""
    return Panel(number, title, description, (query,), **{"kind": "stat", "width": 4, "height": 4, **more})


def table(number: int, title: str, description: str, *columns: Query, **more: Any) -> Panel:
    """One row per set of labels, one column per query."""
    return Panel(number, title, description, columns, **{"kind": "table", "width": 24, "height": 8, **more})
