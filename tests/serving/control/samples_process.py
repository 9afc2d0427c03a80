"""A process that takes in the spool until it is killed: `python samples_process.py DATABASE SPOOL`.

Prints `ready` once it reads.
"""

from __future__ import annotations

import sys
from pathlib import Path

from registry.config import SamplesConfig
from registry.sample_store import SampleStore
from serving.control.samples import Samples


def main() -> None:
    database, spool = Path(sys.argv[1]), Path(sys.argv[2])
    config = SamplesConfig(rate=1.0, store="text")
    samples = Samples(spool, SampleStore.open(database), models=lambda: {"m": config})
    print("ready", flush=True)
    while True:
        samples.step()


if __name__ == "__main__":
    main()
