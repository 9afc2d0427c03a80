"""A hosted API behind a bridge: LiteLLM in a child process that speaks the OpenAI API on loopback.

Owns: the bridge's command line and environment, which interpreter has LiteLLM, which `engine_args` there are. Never:
importing LiteLLM; a key in a command line, a file or a log (the bridge gets it through its environment).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
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
)
from serving.engines.hosted_child import KEY
from serving.engines.hosted_wire import CHAT, COMPLETION, EMBEDDING, passage

ROOT: Final = Path(__file__).resolve().parent.parent.parent
BOOT: Final = (
    f"import sys; sys.path.append({str(ROOT)!r}); from serving.engines.hosted_child import main; sys.path.pop(); "
    "sys.exit(main())"
)
"""What the bridge's interpreter runs: the project's packages come last on its path, and only for this import."""
VENV: Final = ROOT / ".venv-hosted"
"""Where `make hosted` installs LiteLLM; its pins differ from ours."""
CHECK_TIMEOUT_S: Final = 60.0
ARGUMENTS: Final[Mapping[str, type]] = {
    "timeout_s": float,
    "drop_params": bool,
    "mode": str,
    "context_tokens": int,
    "input_price_per_million": float,
    "output_price_per_million": float,
    "api_version": str,
    "organization": str,
}
"""What `engine_args` may hold. Everything else of LiteLLM stays out: a setting that sends the key elsewhere, tries
again on its own, or calls somebody back."""
MODES: Final = ("chat", "completion", "embedding")
SAMPLING: Final = (CHAT | COMPLETION | EMBEDDING) - {"messages", "prompt", "input", "stream", "stream_options"}
_WORDS: Final = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
_PROXIES: Final = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy")
_VERSION: Final = "import importlib.metadata as m; print(m.version('litellm'))"


class Hosted:
    """`engine: hosted` with `litellm_model: PROVIDER/MODEL` as LiteLLM writes it, and `api_key_env:`."""

    name = "hosted"

    def check(self, version: EngineVersion) -> None:
        self.launch(version, 0)
        self.environment(version)

    def launch(self, version: EngineVersion, port: int) -> Launch:
        check_arguments(version)
        manifest = version.manifest
        options: dict[str, Any] = {
            "ref": str(version.ref),
            "model": manifest.litellm_model,
            "engine_args": manifest.engine_args,
            "sampling": manifest.sampling,
            "api_base": manifest.url,
            "key_variable": version.key_variable,
        }
        text = json.dumps(options, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        env = {name: os.environ[name] for name in _PROXIES if name in os.environ}
        headers: dict[str, str] = {}
        if version.authorization:
            env[KEY] = version.authorization.removeprefix("Bearer ")
            headers["Authorization"] = passage(env[KEY])
        argv = (interpreter(version), "-I", "-c", BOOT, "--port", str(port), "--options", text)
        return Launch(argv=argv, env=env, cwd=ROOT, port=port, headers=headers)

    def environment(self, version: EngineVersion) -> dict[str, str]:
        python = interpreter(version)
        if python == sys.executable and importlib.util.find_spec("litellm") is not None:
            return {"litellm": importlib.metadata.version("litellm")}
        env = minimal_environment(os.environ)
        try:
            result = subprocess.run(
                [python, "-I", "-c", _VERSION],
                env=env,
                capture_output=True,
                text=True,
                timeout=CHECK_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EngineMissingError(f"{version.ref}: {python} does not run ({error}): name another") from None
        if result.returncode != 0:
            raise EngineMissingError(f"{version.ref}: {python} has no LiteLLM: {remedy()}")
        return {"litellm": result.stdout.strip()}


def interpreter(version: EngineVersion) -> str:
    """The interpreter whose environment has LiteLLM: the version's `python:`, else our own, else `.venv-hosted`'s.

    Symbolic links are kept: a virtual environment's interpreter is one. Raises EngineMissingError.
    """
    if version.python:
        path = Path(version.python).expanduser().absolute()
        if not path.is_file() or not os.access(path, os.X_OK):
            raise EngineMissingError(
                f"{version.ref}: there is no Python interpreter {version.python!r}: set `python:` to the interpreter "
                "of an environment that has LiteLLM, or leave it out"
            )
        return str(path)
    found = found_interpreter()
    if found is None:
        raise EngineMissingError(f"{version.ref}: a hosted engine needs LiteLLM, which is not installed: {remedy()}")
    return found


def found_interpreter() -> str | None:
    """Our own interpreter where it has LiteLLM, else that of `.venv-hosted`, else None."""
    if importlib.util.find_spec("litellm") is not None:
        return sys.executable
    beside = VENV / "bin" / "python"
    return str(beside) if beside.is_file() else None


def remedy() -> str:
    """How to get LiteLLM."""
    return "run `make hosted`, which installs it into .venv-hosted, or `pip install '.[hosted]'`"


def check_arguments(version: EngineVersion) -> None:
    """Raise EngineError for an engine argument or a sampling default that a hosted engine does not take."""
    for name, value in version.manifest.engine_args.items():
        if name in ("api_key", "api_base", "base_url"):
            instead = "api_key_env:" if name == "api_key" else "url:"
            raise EngineError(f"{version.ref}: engine_args.{name} is not taken: use `{instead}` beside it")
        if name not in ARGUMENTS:
            raise EngineError(f"{version.ref}: unknown engine_args.{name}: {nearest(name, ARGUMENTS)}")
        wanted = ARGUMENTS[name]
        allowed = (int, float) if wanted is float else (wanted,)
        if not isinstance(value, allowed) or (wanted is not bool and isinstance(value, bool)):
            raise EngineError(f"{version.ref}: engine_args.{name} must be {_WORDS[wanted]}, not {value!r}")
        if isinstance(value, int | float) and (value < 0 or (name == "timeout_s" and value == 0)):
            raise EngineError(f"{version.ref}: engine_args.{name} is {value}: it must be positive")
    mode = version.manifest.engine_args.get("mode", "chat")
    if mode not in MODES:
        raise EngineError(f"{version.ref}: engine_args.mode {mode!r} is none of {', '.join(MODES)}")
    for name in version.manifest.sampling:
        if name not in SAMPLING:
            raise EngineError(f"{version.ref}: unknown sampling.{name}: {nearest(name, SAMPLING)}")


KIND: Final[EngineKind] = Hosted()
