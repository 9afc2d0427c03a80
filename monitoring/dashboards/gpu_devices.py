"""Devices: how busy, hot and limited they are, who works on them, and whether they can be read.

Owns: the device rows of `modelyard-gpu-cost`. Never: money (`gpu_cost`), JSON (`build`).
"""

from __future__ import annotations

from monitoring.dashboards.build import Panel, Query, Row, table
from monitoring.dashboards.parts import ARM, AT_WORK, DEVICE, ENGINES, FULL, GOOD_FROM_1, IDLE, RATE, UP, WHICH

NO_GPU = "no GPU"
THROTTLED = (("0", "no", "green"), ("1", "throttled", "orange"))


def either(reading: str) -> str:
    """A reading that GPUs and the CPU both have."""
    return f'{{__name__=~"modelyard_(gpu|cpu)_{reading}",{DEVICE}}}'


DEVICES = Row(
    130,
    "What do the devices do?",
    (
        Panel(
            131,
            "Utilisation",
            "Share of time with a kernel running, or of the machine's cores. High with few tokens per second: small "
            "batches, or another process; see Processes.",
            (Query(either("utilization_ratio"), "{{device}}"),),
            unit="percentunit",
            top=1.0,
            see=(ENGINES,),
        ),
        Panel(
            132,
            "Memory in use",
            "Share of the device's memory. From 97% ModelyardGpuMemoryHigh fires on a GPU: the next engine will not "
            "fit; fewer slots, a shorter context, or one engine less.",
            (
                Query(
                    f"sum by (device) ({either('memory_used_bytes')}) / sum by (device) "
                    f"({either('memory_total_bytes')})",
                    "{{device}}",
                ),
            ),
            unit="percentunit",
            top=1.0,
            limits=FULL,
        ),
        Panel(
            133,
            "Power, and its limit",
            "What GPUs draw, and where the driver caps them. At the limit for long: clocks fall, see Throttled; raise "
            "the limit or accept it.",
            (
                Query(f"modelyard_gpu_power_watts{{{DEVICE}}}", "{{device}}"),
                Query(f"modelyard_gpu_power_limit_watts{{{DEVICE}}}", "limit {{device}}"),
            ),
            unit="watt",
            empty=NO_GPU,
        ),
        Panel(
            134,
            "Power by the energy meter",
            "Joules per second by the meter, not by sampled power. Above it for long: the sampler misses peaks, "
            "raise `monitoring.sample_hz`.",
            (Query(f"rate(modelyard_gpu_energy_joules_total{{{DEVICE}}}{RATE})", "{{device}}"),),
            unit="watt",
            empty=NO_GPU,
        ),
        Panel(
            135,
            "Temperature",
            "Of the GPU's core. Beyond what the maker allows it throttles: look at fans and air.",
            (Query(f"modelyard_gpu_temperature_celsius{{{DEVICE}}}", "{{device}}"),),
            unit="celsius",
            limits=((None, "green"), (80.0, "orange"), (90.0, "red")),
            empty=NO_GPU,
        ),
        Panel(
            136,
            "Clocks",
            "Of the multiprocessors and of memory. Lower under load than before: see Throttled for the reason.",
            (
                Query(f"modelyard_gpu_sm_clock_hertz{{{DEVICE}}}", "SM {{device}}"),
                Query(f"modelyard_gpu_memory_clock_hertz{{{DEVICE}}}", "memory {{device}}"),
            ),
            unit="hertz",
            empty=NO_GPU,
        ),
    ),
)

PROCESSES = Row(
    140,
    "Who works on them?",
    (
        Panel(
            141,
            "Multiprocessor time by version",
            "Share of each GPU that a version's processes had. Less than utilisation in all: another process works on "
            "the device. Absent with MIG or where pids are foreign.",
            (
                Query(
                    f"sum by (device, model, version) (modelyard_gpu_process_utilization_ratio{{{WHICH},{DEVICE}}})",
                    f"{ARM} {{{{device}}}}",
                ),
            ),
            unit="percentunit",
            stacked=True,
            top=1.0,
            empty=NO_GPU,
        ),
        Panel(
            142,
            "GPU memory by version",
            "What each version's processes hold: idle time is divided by it. A version without requests that holds "
            "much: retire it or give it fewer slots.",
            (
                Query(
                    f"sum by (device, model, version) (modelyard_gpu_process_memory_bytes{{{WHICH},{DEVICE}}})",
                    f"{ARM} {{{{device}}}}",
                ),
            ),
            unit="bytes",
            stacked=True,
            empty=NO_GPU,
        ),
        Panel(
            143,
            "Device time by version",
            "GPU-seconds or core-seconds per second that versions are charged for, idle with them (allocated basis): "
            "how many devices each one has on average.",
            (
                Query(
                    "sum by (model, version) (rate({__name__=~"
                    f'"modelyard_(gpu|cpu)_seconds_total",basis="allocated",method="inflight",{DEVICE},{AT_WORK}}}{RATE}))',
                    ARM,
                ),
                Query(
                    "sum (rate({__name__=~"
                    f'"modelyard_(gpu|cpu)_seconds_total",basis="allocated",method="inflight",{DEVICE},{IDLE}}}{RATE}))',
                    "idle",
                ),
            ),
            stacked=True,
            decimals=2,
        ),
    ),
)

HEALTH = Row(
    150,
    "Is a device held back or broken?",
    (
        Panel(
            151,
            "Device answers",
            "Whether the driver still gives readings. Down: driver or device is lost (ModelyardNvmlStale); "
            "`nvidia-smi` tells which, and the time meanwhile is marked, not guessed.",
            (Query(f"max by (device) (modelyard_gpu_up{{{DEVICE}}})", "{{device}}"),),
            kind="state-timeline",
            mappings=UP,
            empty=NO_GPU,
        ),
        Panel(
            152,
            "Throttled",
            "Why clocks are held down. power_cap: raise the limit or accept it; thermal: cooling; hw_power_brake: the "
            "power supply. ModelyardGpuThrottled's runbook goes through them.",
            (
                Query(
                    f'max by (device, reason) (modelyard_gpu_throttled{{{DEVICE},reason!="idle"}})',
                    "{{reason}} {{device}}",
                ),
            ),
            kind="state-timeline",
            width=16,
            mappings=THROTTLED,
            empty=NO_GPU,
        ),
        table(
            153,
            "Errors and resets within a day",
            "Memory errors (uncorrected ones need a reset or a new card), XID errors of the driver, and counters that "
            "began anew. Above 0: look into the kernel's log; docs/runbooks has what XIDs mean for you.",
            Query(
                f'sum by (device) (increase(modelyard_gpu_ecc_errors_total{{{DEVICE},kind="uncorrected"}}[1d]))',
                "ECC uncorrected",
                "short",
                0,
                ((None, "green"), (1.0, "red")),
            ),
            Query(
                f'sum by (device) (increase(modelyard_gpu_ecc_errors_total{{{DEVICE},kind="corrected"}}[1d]))',
                "ECC corrected",
                "short",
                0,
            ),
            Query(
                f"sum by (device) (increase(modelyard_gpu_xid_errors_total{{{DEVICE}}}[1d]))",
                "XID",
                "short",
                0,
                ((None, "green"), (1.0, "red")),
            ),
            Query(
                f"sum by (device) (increase(modelyard_gpu_resets_total{{{DEVICE}}}[1d]))",
                "counter resets",
                "short",
                0,
            ),
            width=16,
            empty=NO_GPU,
        ),
        table(
            154,
            "MIG and MPS",
            "Modes that change what can be read: with MIG no time by process, with MPS processes share one context. "
            "Cost by `sm` needs both off.",
            Query(f"max by (device, mode) (modelyard_gpu_mode{{{DEVICE}}})", "on", "short", 0),
            width=8,
            empty=NO_GPU,
        ),
    ),
)

COUNTERS = Row(
    160,
    "Can the devices be read?",
    (
        table(
            161,
            "Devices",
            "Every device that is counted and billed. One is missing: it is not visible to the control plane "
            "(`CUDA_VISIBLE_DEVICES`, the container's devices).",
            Query(f"max by (device, kind, name) (modelyard_device_info{{{DEVICE}}})", "there", "short", 0, GOOD_FROM_1),
            width=12,
        ),
        table(
            162,
            "Readings that are absent",
            "Values that a device does not give: their panels are empty for it, which is not 0. Nothing to do, unless "
            "another driver gives them.",
            Query(f"max by (device, reading) (modelyard_device_reading_absent{{{DEVICE}}}) > 0", "absent"),
            width=12,
            empty="every reading is there",
        ),
        Panel(
            163,
            "Age of the last reading",
            "Above a minute ModelyardDeviceReadingsStale fires: the driver or the sampler hangs, and cost on the "
            "allocated basis is short by that time.",
            (Query("time() - modelyard_sampler_last_reading_timestamp_seconds", "age"),),
            unit="s",
            limits=((None, "green"), (60.0, "red")),
        ),
        Panel(
            164,
            "Rounds of readings",
            "Rounds per second, those that failed, and gaps. Gaps: time that is marked as not seen; an overloaded "
            "machine, or a driver that was away.",
            (
                Query(f"rate(modelyard_sampler_readings_total{RATE})", "readings"),
                Query(f"rate(modelyard_sampler_failures_total{RATE})", "failed"),
                Query(f"rate(modelyard_sampler_gaps_total{RATE})", "gaps"),
            ),
        ),
        Panel(
            165,
            "What reading costs",
            "Share of one core that reading devices takes. Above 1%: lower `monitoring.sample_hz`.",
            (Query(f"rate(modelyard_sampler_cpu_seconds_total{RATE})", "of a core"),),
            unit="percentunit",
            decimals=2,
            limits=((None, "green"), (0.01, "orange")),
        ),
    ),
    collapsed=True,
)
