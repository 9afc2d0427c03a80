"""llama.cpp: its native server with continuous batching, from the xllamacpp package or a `llama-server` binary.

Owns: the command line of either. Never: loading a model here (the child process does), other kinds.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from serving.engines.base import (
    EngineError,
    EngineKind,
    EngineMissingError,
    EngineVersion,
    Launch,
    minimal_environment,
    nearest,
    require_files,
    text_argument,
)
from serving.engines.lifecycle import PARALLEL_SLOTS, context_tokens

CHILD: Final = "serving.engines.llama_cpp_child"
ROOT: Final = Path(__file__).resolve().parent.parent.parent
"""Where the child imports the package from."""
CHECK_TIMEOUT_S: Final = 60.0
SAMPLING_FLAGS: Final = {
    "temperature": "--temp",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "min_p": "--min-p",
    "seed": "--seed",
    "presence_penalty": "--presence-penalty",
    "frequency_penalty": "--frequency-penalty",
    "repeat_penalty": "--repeat-penalty",
    "max_tokens": "--n-predict",
}
"""Sampling defaults by OpenAI's names -> flags of `llama-server`."""
_FLAG_NAMES: Final = {"n_parallel": "parallel", "n_ctx": "ctx-size", "n_threads": "threads", "embeddings": "embedding"}


class LlamaCpp:
    """`engine: llama.cpp`. Its `engine_args` are the fields of xllamacpp's CommonParams (`n_ctx`, `n_parallel`, …), and
    `binary: PATH` for a `llama-server` in its place, whose long options they are then."""

    name = "llama.cpp"

    def check(self, version: EngineVersion) -> None:
        launch = self.launch(version, 0)
        if text_argument(version, "binary"):
            return
        argv = (*launch.argv, "--check")
        env = minimal_environment(os.environ) | dict(launch.env)
        result = subprocess.run(
            argv, cwd=launch.cwd, env=env, capture_output=True, text=True, timeout=CHECK_TIMEOUT_S, check=False
        )
        if result.returncode != 0:
            reason = (result.stderr.strip().splitlines() or ["its child process gave no reason"])[-1]
            raise EngineError(f"{version.ref}: {reason}")

    def launch(self, version: EngineVersion, port: int) -> Launch:
        require_files(version)
        model = model_file(version)
        binary = text_argument(version, "binary")
        argv = self._binary(version, model, port, binary) if binary else self._child(version, model, port)
        env = {"LLAMA_ARG_THREADS": str(version.threads)} if version.threads else {}
        return Launch(argv=argv, env=env, cwd=ROOT, port=port)

    def environment(self, version: EngineVersion) -> dict[str, str]:
        binary = text_argument(version, "binary")
        if not binary:
            return {"xllamacpp": package_version()}
        result = subprocess.run(
            [find_binary(version, binary), "--version"], capture_output=True, text=True, check=False
        )
        found = re.search(r"version: (.+)", result.stderr + result.stdout)
        return {"llama-server": found.group(1).strip() if found else "unknown"}

    def _child(self, version: EngineVersion, model: Path, port: int) -> tuple[str, ...]:
        package_version()
        manifest = version.manifest
        options: dict[str, Any] = {"engine_args": manifest.engine_args}
        if manifest.sampling:
            options["sampling"] = manifest.sampling
        if manifest.chat_template:
            options["chat_template"] = manifest.chat_template
        text = json.dumps(options, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        where = ("--model", str(model), "--alias", str(version.ref), "--port", str(port), "--options", text)
        return (sys.executable, "-m", CHILD, *where)

    def _binary(self, version: EngineVersion, model: Path, port: int, binary: str) -> tuple[str, ...]:
        manifest = version.manifest
        given = {name: value for name, value in manifest.engine_args.items() if name != "binary"}
        parallel = given.setdefault("n_parallel", PARALLEL_SLOTS)
        given.setdefault("n_ctx", context_tokens(int(parallel)))
        argv = [find_binary(version, binary), "--model", str(model), "--alias", str(version.ref), "--host", "127.0.0.1"]
        argv += ["--port", str(port), "--metrics", "--jinja"]
        for name, value in given.items():
            flag = "--" + _FLAG_NAMES.get(name, name.replace("_", "-"))
            if value is True:
                argv.append(flag)
            elif value is not False:
                argv += [flag, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
        for name, value in manifest.sampling.items():
            if name not in SAMPLING_FLAGS:
                raise EngineError(f"{version.ref}: unknown sampling.{name}: {nearest(name, SAMPLING_FLAGS)}")
            argv += [SAMPLING_FLAGS[name], str(value)]
        if manifest.chat_template:
            argv += ["--chat-template", manifest.chat_template]
        return tuple(argv)


def model_file(version: EngineVersion) -> Path:
    """The version's GGUF file. Of a split model it is the first part, which names the others."""
    files = zip(version.manifest.artifacts, version.files, strict=True)
    models = [path for artifact, path in files if artifact.role == "model" and path.suffix == ".gguf"]
    if not models:
        raise EngineError(f"{version.ref} has no GGUF file: llama.cpp takes nothing else, so give it another artifact")
    return min(models, key=lambda path: path.name)


def package_version() -> str:
    """The version of xllamacpp. Raises EngineMissingError with the command that installs it."""
    try:
        return importlib.metadata.version("xllamacpp")
    except importlib.metadata.PackageNotFoundError:
        raise EngineMissingError(
            "the package xllamacpp is not installed: run `pip install '.[llamacpp]'`, or name a llama-server "
            "by engine_args.binary"
        ) from None


def find_binary(version: EngineVersion, binary: str) -> str:
    """The absolute path of a `llama-server`. Raises EngineMissingError."""
    found = shutil.which(binary)
    if found is None:
        raise EngineMissingError(
            f"{version.ref}: there is no program {binary!r}: set engine_args.binary to the path of a llama-server"
        )
    return str(Path(found).absolute())


KIND: Final[EngineKind] = LlamaCpp()
