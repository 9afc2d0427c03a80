"""How panels of each kind look: the options and field defaults that are the same in every dashboard.

Owns: legends, tooltips, lines, table columns. Never: which panels there are, where they stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from grafana_foundation_sdk.models import bargauge, common, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.models import dashboard as model

DATASOURCE: Final = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
HIDDEN: Final = ("Time", "__name__", "instance", "job")
"""Columns that Prometheus adds to every table and that say nothing here."""
LAST: Final = common.ReduceDataOptions(calcs=["lastNotNull"], fields="", values=False)

Properties = list[model.DynamicConfigValue]


class Column(Protocol):
    """A table's query."""

    @property
    def legend(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def decimals(self) -> int | None: ...
    @property
    def limits(self) -> tuple[tuple[float | None, str], ...]: ...


def options(kind: str) -> object:
    """The panel's options by its kind."""
    match kind:
        case "timeseries":
            return timeseries.Options(legend=_legend(shown=True), tooltip=_tooltip())
        case "state-timeline":
            return statetimeline.Options(
                show_value=common.VisibilityMode.AUTO, legend=_legend(shown=False), tooltip=_tooltip()
            )
        case "stat":
            return stat.Options(
                graph_mode=common.BigValueGraphMode.AREA,
                color_mode=common.BigValueColorMode.VALUE,
                justify_mode=common.BigValueJustifyMode.AUTO,
                text_mode=common.BigValueTextMode.AUTO,
                orientation=common.VizOrientation.AUTO,
                reduce_options=LAST,
            )
        case "bargauge":
            return bargauge.Options(
                display_mode=common.BarGaugeDisplayMode.BASIC,
                value_mode=common.BarGaugeValueMode.TEXT,
                orientation=common.VizOrientation.HORIZONTAL,
                reduce_options=LAST,
                min_viz_height=16,
            )
        case _:
            return table.Options(cell_height=common.TableCellHeight.SM, footer=common.TableFooterOptions(show=False))


def custom(kind: str, *, stacked: bool, steps: bool, log: bool, limited: bool) -> object | None:
    """The field defaults that only this kind of panel has."""
    if kind == "state-timeline":
        return statetimeline.FieldConfig(line_width=0, fill_opacity=80)
    if kind != "timeseries":
        return None
    style = common.GraphTresholdsStyleMode.LINE if limited else common.GraphTresholdsStyleMode.OFF
    scale = common.ScaleDistribution.LOG if log else common.ScaleDistribution.LINEAR
    line = common.LineInterpolation.STEP_AFTER if steps else common.LineInterpolation.LINEAR
    return common.GraphFieldConfig(
        draw_style=common.GraphDrawStyle.LINE,
        line_interpolation=line,
        line_width=1,
        fill_opacity=30 if stacked else 5,
        show_points=common.VisibilityMode.AUTO,
        span_nulls=False,
        axis_placement=common.AxisPlacement.AUTO,
        scale_distribution=common.ScaleDistributionConfig(type_val=scale, log=10 if log else None),
        stacking=common.StackingConfig(
            mode=common.StackingMode.NORMAL if stacked else common.StackingMode.NONE, group="A"
        ),
        thresholds_style=common.GraphThresholdsStyleConfig(mode=style),
    )


def table_columns(
    columns: Sequence[Column],
) -> tuple[list[model.DataTransformerConfig], list[tuple[str, Properties]]]:
    """One row per set of labels, one column per query under its legend, with its own unit and colours."""
    names = {f"Value #{chr(ord('A') + index)}": column.legend for index, column in enumerate(columns)}
    if len(columns) == 1:
        names["Value"] = columns[0].legend
    transformations = [
        model.DataTransformerConfig(id_val="merge", options={}),
        model.DataTransformerConfig(
            id_val="organize",
            options={"excludeByName": dict.fromkeys(HIDDEN, True), "renameByName": names, "indexByName": {}},
        ),
    ]
    return transformations, [(column.legend, _properties(column)) for column in columns]


def _properties(column: Column) -> Properties:
    properties = [model.DynamicConfigValue("unit", column.unit or "short")]
    if column.decimals is not None:
        properties.append(model.DynamicConfigValue("decimals", column.decimals))
    if column.limits:
        steps = [model.Threshold(value, colour) for value, colour in column.limits]
        config = model.ThresholdsConfig(mode=model.ThresholdsMode.ABSOLUTE, steps=steps)
        properties.append(model.DynamicConfigValue("thresholds", config))
        properties.append(model.DynamicConfigValue("custom.cellOptions", {"type": "color-text"}))
    return properties


def _legend(*, shown: bool) -> common.VizLegendOptions:
    return common.VizLegendOptions(
        display_mode=common.LegendDisplayMode.LIST,
        placement=common.LegendPlacement.BOTTOM,
        show_legend=shown,
        calcs=["lastNotNull"] if shown else [],
    )


def _tooltip() -> common.VizTooltipOptions:
    return common.VizTooltipOptions(mode=common.TooltipDisplayMode.MULTI, sort=common.SortOrder.DESCENDING)
