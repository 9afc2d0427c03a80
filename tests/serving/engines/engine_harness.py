"""What the tests of engines share: versions to start, a supervisor around a test, a control plane that is killed."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import psutil

from registry.manifest import Artifact, Manifest, digest
from registry.models import VersionRef
from serving.engines.base import EngineVersion
from serving.engines.lifecycle import Policy
from serving.engines.supervisor import Supervisor

QUICK = Policy(first_s=0.05, max_s=0.2, stable_s=5.0, misses_max=2, hung_s=30.0)


def version(label: str, *files: Path, engine: str = "llama.cpp", python: str = "", **fields: Any) -> EngineVersion:
    """A version of `assistant` that runs on these files."""
    artifacts = tuple(
        Artifact(sha256="0" * 64, size_bytes=1, source=f"file:{path.name}", filename=path.name) for path in files
    )
    manifest = Manifest(engine=engine, artifacts=artifacts, **fields)
    return EngineVersion(
        ref=VersionRef("assistant", label), digest=digest(manifest), manifest=manifest, files=files, python=python
    )


def supervised(
    root: Path, body: Callable[[Supervisor], Coroutine[Any, Any, None]], *, policy: Policy = QUICK, **options: Any
) -> None:
    """Run a test's body with a supervisor and stop it afterwards."""

    async def run() -> None:
        async with Supervisor(root, policy=policy, chance=random.Random(1), **options) as supervisor:
            await body(supervisor)

    asyncio.run(run())


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait until it holds; fail the test where it does not in time."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


KEEPER = """
import asyncio, json, sys
from pathlib import Path
import msgspec
from registry.manifest import Manifest, digest
from registry.models import VersionRef
from serving.engines.base import EngineVersion
from serving.engines.supervisor import Supervisor

async def main():
    root, label, manifest, *files = sys.argv[1:]
    manifest = msgspec.json.decode(manifest, type=Manifest)
    supervisor = Supervisor(Path(root))
    wanted = EngineVersion(ref=VersionRef("assistant", label), digest=digest(manifest), manifest=manifest,
                           files=tuple(map(Path, files)))
    await supervisor.apply([wanted])
    assert not await supervisor.wait_ready(60)
    (one,) = supervisor.replicas()
    print(json.dumps({"pid": one.pid, "port": one.port}), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def abandoned(root: Path, wanted: EngineVersion, project: Path) -> dict[str, int]:
    """Start the version under a control plane of its own and kill that with SIGKILL: pid and port of what is left."""
    manifest = msgspec.json.encode(wanted.manifest).decode()
    argv = [sys.executable, "-c", KEEPER, str(root), wanted.ref.label, manifest, *map(str, wanted.files)]
    with subprocess.Popen(argv, cwd=project, stdout=subprocess.PIPE, text=True) as keeper:
        assert keeper.stdout is not None
        line = keeper.stdout.readline()
        keeper.kill()
    found: dict[str, int] = json.loads(line)
    return found
