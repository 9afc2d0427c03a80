"""What the machine under the yard has left, and whether routes divide traffic as they say, as metrics.

Owns: reading the free space of directories, and the families of both. Never: deciding what is too little.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from monitoring.sample_ratio import Split


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """The file system that holds one directory."""

    path: str
    """A name of ours (`state`), not the path itself: labels are bounded."""
    free_bytes: int
    """What an unprivileged process may still write."""
    total_bytes: int


def read_disks(paths: Mapping[str, Path]) -> list[DiskSpace]:
    """The directories by their names; one that cannot be asked is left out. Blocking."""
    found: list[DiskSpace] = []
    for name, path in paths.items():
        try:
            usage = shutil.disk_usage(path)
        except OSError:
            continue
        found.append(DiskSpace(name, usage.free, usage.total))
    return found


def collect_disks(disks: Sequence[DiskSpace]) -> Iterator[Metric]:
    free = GaugeMetricFamily("modelyard_disk_free_bytes", "Free space of a directory's disk.", labels=["path"])
    total = GaugeMetricFamily("modelyard_disk_total_bytes", "Size of a directory's disk.", labels=["path"])
    for disk in disks:
        free.add_metric([disk.path], disk.free_bytes)
        total.add_metric([disk.path], disk.total_bytes)
    yield from (free, total)


def collect_splits(splits: Sequence[Split]) -> Iterator[Metric]:
    p = GaugeMetricFamily(
        "modelyard_sample_ratio_mismatch_p", "p-value of the route's split, valid at every look.", labels=["model"]
    )
    units = GaugeMetricFamily(
        "modelyard_sample_ratio_units", "Distinct sticky keys per arm in this round.", labels=["model", "version"]
    )
    for split in splits:
        p.add_metric([split.model], split.p)
        for label, count in sorted(split.units.items()):
            units.add_metric([split.model, label], count)
    yield from (p, units)
