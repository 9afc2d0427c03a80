"""A process that ingests segments until it is killed: `python ingest_process.py DATABASE FOLDER`.

Prints `ready` once it reads. A worker `w0` counts as alive, so segments that are still written are not sealed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from registry.database import connect
from registry.ledger import Ledger
from serving.control.ingest import Ingest, Writer


def main() -> None:
    database, folder = Path(sys.argv[1]), Path(sys.argv[2])
    ingest = Ingest(folder, Ledger(connect(database)), device_of=lambda replica: "cpu")
    print("ready", flush=True)
    while True:
        ingest.step([Writer("w0", 1.0, None)], time.time(), settle_now=True)


if __name__ == "__main__":
    main()
