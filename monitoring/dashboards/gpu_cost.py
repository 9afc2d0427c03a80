"""Money: what is spent on whom, on which basis, by which method, and what budgets say.

Owns: the cost rows of `modelyard-gpu-cost`. Never: devices (`gpu_devices`), JSON (`build`).
"""

from __future__ import annotations

from monitoring.dashboards.build import Board, Panel, Query, Row, stat, table
from monitoring.dashboards.gpu_devices import COUNTERS, DEVICES, HEALTH, PROCESSES
from monitoring.dashboards.parts import (
    AT_WORK,
    DEVICE,
    GPU_COST,
    IDLE,
    MODEL,
    RATE,
    ROUTE_CHANGES,
    VERSIONS,
    WHICH,
)

WASTED = 'outcome=~"failed|truncated|cancelled|client_error|none"'
METHODS = ("inflight", "sm", "tokens", "cpu_time")
BUDGET = "max by (budget, currency)"
ARM_MONEY = "{{model}}@{{version}} {{currency}}"


def hourly(which: str, by: str = "currency", basis: str = "allocated") -> str:
    """Money per hour on one basis, on the chosen devices."""
    head = f'basis="{basis}",method="inflight",{DEVICE}'
    return f"3600 * sum by ({by}) (rate(modelyard_cost_total{{{head}{',' if which else ''}{which}}}{RATE}))"


def per_1k(basis: str, metric: str = "modelyard_cost_per_1k_requests") -> str:
    """What 1,000 answers of each version cost."""
    return f'max by (model, version, currency) ({metric}{{{WHICH},basis="{basis}",method="inflight"}})'


def per_1m(kind: str) -> str:
    """What a million tokens of one kind cost."""
    head = f'{WHICH},basis="allocated",method="inflight",kind="{kind}"'
    return f"max by (model, version, currency) (modelyard_cost_per_1m_tokens{{{head}}})"


def by_method(method: str) -> str:
    """What versions cost within the time range by one method of attribution, on the busy basis."""
    head = f'{WHICH},{DEVICE},basis="busy",method="{method}"'
    return f"sum by (model, version, currency) (increase(modelyard_cost_total{{{head}}}[$__range]))"


def extreme(which: str) -> str:
    """The lowest or highest of the methods' figures per hour, by version."""
    head = f'{WHICH},{DEVICE},basis="busy"'
    each = f"sum by (model, version, currency, method) (rate(modelyard_cost_total{{{head}}}{RATE}))"
    return f"3600 * {which} by (model, version, currency) ({each})"


NOW = Row(
    100,
    "What is spent now?",
    (
        stat(
            101,
            "Allocated, per hour",
            "The price of the time that devices are held, idle time with it: what the bill says. Less busy is "
            "money without an answer.",
            Query(hourly(""), "{{currency}}"),
            decimals=3,
        ),
        stat(
            102,
            "Busy, per hour",
            "The price of the time with at least one request in flight. Far below allocated: fewer replicas would do.",
            Query(hourly("", basis="busy"), "{{currency}}"),
            decimals=3,
        ),
        stat(
            103,
            "Energy, per hour",
            "Kilowatt-hours × tariff × PUE. Only where a device has a meter; do not add it to the other two, each "
            "answers another question.",
            Query(hourly("", basis="energy"), "{{currency}}"),
            decimals=3,
            empty="no meter",
        ),
        stat(
            104,
            "Idle share",
            "Part of the allocated cost that no version was at work for. Above half for days: fewer or smaller "
            "replicas, or more models on the same device.",
            Query(f"sum({hourly(IDLE)}) / clamp_min(sum({hourly('')}), 1e-12)", "idle"),
            unit="percentunit",
            decimals=0,
            limits=((None, "green"), (0.5, "orange"), (0.9, "red")),
        ),
        stat(
            105,
            "Forecast of the month",
            "What this month will have cost at the present pace. Too much: see Budgets, then who costs most.",
            Query("sum by (currency) (modelyard_cost_forecast_month)", "{{currency}}"),
            decimals=2,
            empty="too few days",
        ),
        stat(
            106,
            "Unexplained seconds",
            "Use that was found on devices that were not seen to be held. Not 0: readings are missing; "
            "ModelyardAccountingResidual's runbook says where to look.",
            Query("modelyard_cost_residual_seconds", "seconds"),
            unit="s",
            decimals=0,
            limits=((None, "green"), (1.0, "orange"), (30.0, "red")),
        ),
        Panel(
            107,
            "Cost per hour by version",
            "Allocated basis; versions and idle sum to the bill. The widest band is where a change pays most.",
            (
                Query(hourly(f"{MODEL},{AT_WORK}", "model, version, currency"), ARM_MONEY),
                Query(hourly(IDLE), "idle {{currency}}"),
            ),
            width=12,
            stacked=True,
            decimals=3,
        ),
        Panel(
            108,
            "Money without an answer, per hour",
            "idle: nobody asked; failed: work that reached no client whole; shadow: copies that no client asked for. "
            "Each has its own remedy: fewer replicas, the errors on Versions, a lower shadow share.",
            (
                Query(hourly(IDLE), "idle {{currency}}"),
                Query(hourly(f"{WHICH},{WASTED}"), "failed {{currency}}"),
                Query(hourly(f'{WHICH},outcome="shadow"'), "shadow {{currency}}"),
            ),
            width=12,
            stacked=True,
            decimals=3,
            see=(VERSIONS,),
        ),
    ),
)

UNITS = Row(
    110,
    "What does an answer cost?",
    (
        table(
            111,
            "Cost of 1,000 answers, by basis",
            "Everything that a version cost over its completed requests. good ones: over those within the objective. "
            "A version that was only warm has none, but costs: see Cost per hour.",
            Query(per_1k("allocated"), "allocated", "short", 4),
            Query(per_1k("busy"), "busy", "short", 4),
            Query(per_1k("energy"), "energy", "short", 4),
            Query(per_1k("allocated", "modelyard_cost_per_1k_good_requests"), "good ones", "short", 4),
            width=12,
        ),
        table(
            112,
            "Cost of a million tokens",
            "Allocated basis, by what a token of each kind takes on the version's own streams. Output dear, input "
            "cheap: shorter answers pay more than shorter prompts.",
            Query(per_1m("input"), "input", "short", 3),
            Query(per_1m("cached"), "cached input", "short", 3),
            Query(per_1m("output"), "output", "short", 3),
            width=12,
        ),
        table(
            113,
            "Methods of attribution, as a range",
            "Busy cost within the time range by every method that this machine allows. They agree where versions do "
            "alike work; far apart: state the range, not one figure.",
            *(Query(by_method(method), method, "short", 4) for method in METHODS),
            width=12,
        ),
        Panel(
            114,
            "Lowest and highest method, per hour",
            "Between the two lines lies what a version cost, whatever the method. A band as wide as its figure: do not "
            "decide between versions by cost.",
            (Query(extreme("min"), f"lowest {ARM_MONEY}"), Query(extreme("max"), f"highest {ARM_MONEY}")),
            width=12,
            decimals=4,
        ),
    ),
)

BUDGETS = Row(
    120,
    "Will it be too much?",
    (
        table(
            121,
            "Budgets",
            "What each budget allows, what is spent, what it will come to. share above 100%: "
            "ModelyardBudgetForecastExceeded fires; cut idle replicas, or raise the budget knowingly.",
            Query(f"{BUDGET} (modelyard_cost_budget_amount)", "amount", "short", 2),
            Query(f"{BUDGET} (modelyard_cost_budget_spent)", "spent", "short", 2),
            Query(f"{BUDGET} (modelyard_cost_budget_forecast)", "forecast", "short", 2),
            Query(
                f"{BUDGET} (modelyard_cost_budget_forecast) / {BUDGET} (modelyard_cost_budget_amount)",
                "share",
                "percentunit",
                0,
                ((None, "green"), (0.9, "orange"), (1.0, "red")),
            ),
            width=12,
            empty="no budget",
        ),
        Panel(
            122,
            "Dearer than usual",
            "Red while 1,000 answers of a version cost significantly more than before; the cause is named from the "
            "data: larger outputs or prompts, slower engine, lower occupancy, more idle. `modelyard cost anomalies`.",
            (
                Query(f"max by (model, version) (modelyard_cost_anomaly{{{WHICH}}})", "{{model}}@{{version}}"),
                Query(
                    f"max by (model, version, cause) (modelyard_cost_anomaly_cause{{{WHICH}}}) > 0",
                    "{{cause}} {{model}}@{{version}}",
                ),
            ),
            kind="state-timeline",
            width=12,
            mappings=(("0", "usual", "green"), ("1", "dearer", "red")),
        ),
        table(
            123,
            "Storage",
            "What artifacts of each version take, and have cost. Large and without requests: "
            "`modelyard versions retire MODEL@VERSION`.",
            Query(f"sum by (model, version) (modelyard_storage_bytes{{{WHICH}}})", "size", "bytes", 1),
            Query(f"sum by (model, version) (modelyard_storage_cost_total{{{WHICH}}})", "cost", "short", 4),
            width=12,
        ),
        Panel(
            124,
            "Waiting to be divided",
            "Money for time that belongs to nobody yet, as its requests still run. Growing without end: settlement "
            "hangs; see Accounting lag on the overview.",
            (
                Query(
                    f'sum by (basis, currency) (modelyard_cost_unsettled{{{DEVICE},method="inflight"}})',
                    "{{basis}} {{currency}}",
                ),
            ),
            width=12,
            decimals=4,
        ),
        Panel(
            125,
            "Forecast of the month, and its interval",
            "What the month will have cost at its end, and between which bounds it lies four times in five. Wide: days "
            "differ much, wait before acting. Both bounds above the budget: act now.",
            (
                Query("sum by (currency) (modelyard_cost_forecast_month)", "expected {{currency}}"),
                Query("sum by (bound, currency) (modelyard_cost_forecast_month_bound)", "{{bound}} {{currency}}"),
            ),
            width=12,
            decimals=2,
            empty="too few days",
        ),
        stat(
            126,
            "Budgets that warn",
            "Budgets that are spent, or will be, beyond what `alert_at` allows. Above 0: `modelyard cost budgets` says "
            "which, and what takes most.",
            Query('sum(modelyard_cost_budget_state{state!="ok"})', "budgets"),
            width=12,
            height=8,
            limits=((None, "green"), (1.0, "orange")),
            empty="no budget",
        ),
    ),
)


def board() -> Board:
    """The dashboard."""
    return Board(
        uid=GPU_COST,
        short_title="GPU and cost",
        description="What is spent on whom, on which basis, and what the devices did for it.",
        rows=(NOW, UNITS, BUDGETS, DEVICES, PROCESSES, HEALTH, COUNTERS),
        variables=("model", "version", "device"),
        since="now-6h",
        refresh="30s",
        annotations=(ROUTE_CHANGES,),
    )
