"""A process that writes records as a worker does: `python segment_process.py FOLDER WORKER RECORDS SEED`.

Bytes reach the file in pieces of random size, so that a reader meets torn frames; a third of the way it begins a new
segment. Prints `done` at the end and waits to be killed.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

from registry.usage import MAGIC, RequestRecord, frame


def record(index: int, started_at: float, worker: str = "w0", **changes: object) -> RequestRecord:
    """A completed request: one prompt token, two completion tokens, 10 ms on its engine."""
    values: dict[str, object] = {
        "request_id": f"{worker}-{index}",
        "started_at": started_at,
        "duration_s": 0.011,
        "endpoint": "/v1/chat/completions",
        "model": "m",
        "version": "v1",
        "replica": "m@v1/0",
        "outcome": "completed",
        "status": 200,
        "attempts": 1,
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "usage_source": "engine",
        "dispatched_s": 0.001,
        "worker": worker,
    }
    return RequestRecord(**(values | changes))  # type: ignore[arg-type]


def main() -> None:
    folder, worker, count, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    rng = random.Random(seed)
    for part, numbers in enumerate((range(count // 3), range(count // 3, count))):
        data = MAGIC + b"".join(frame(record(index, time.time(), worker)) for index in numbers)
        path = folder / f"{worker}-{1_000_000_000 * (part + 1)}.seg"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        while data:
            size = rng.randrange(1, 4096)
            os.write(file, data[:size])
            data = data[size:]
            time.sleep(rng.random() * 0.002)
    print("done", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main()
