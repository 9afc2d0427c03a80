"""The child process that runs llama.cpp's native HTTP server: `python -m serving.engines.llama_cpp_child`.

Owns: turning `engine_args` and sampling defaults into CommonParams, checked to the last key, and a stop within two
seconds of SIGTERM. Never: importing more of the project than constants; it must start quickly and stay small.

Exit status: 0 stopped by a signal, or SIGALRM's at that deadline; 1 the server could not be started (the log says why);
2 arguments that are not usable (the last line on standard error is one sentence).
"""

from __future__ import annotations

import argparse
import difflib
import enum
import json
import os
import signal
import sys
import threading
from typing import Any, Final

from serving.engines.lifecycle import CONFIGURATION_EXIT, PARALLEL_SLOTS, context_tokens

STOP_DEADLINE_S: Final = 1.8
HTTP_THREADS: Final = 128
"""Each open connection holds one, idle ones too; with too few, health checks wait behind idle connections."""
CACHE_RAM_MIB: Final = 512
"""Prompt cache in memory; llama.cpp's own default of 8 GiB an engine is too much for two on one machine."""
RESERVED: Final = frozenset(
    (
        "model",
        "port",
        "hostnames",
        "model_alias",
        "api_keys",
        "hf_token",
        "endpoint_metrics",
        "chat_template",
        "prompt",
        "prompt_file",
        "ssl_file_cert",
        "ssl_file_key",
        "server_tools",
        "server_tools_runtime",
        "mcp_servers_config",
        "mcp_servers_json",
        "ui_mcp_proxy",
        "models_dir",
        "models_preset",
        "models_preset_hf",
        "public_path",
        "api_prefix",
        "usage",
    )
)
"""Set by Modelyard, or not for an engine on loopback that it must be able to reach."""
THREADS: Final = {"n_threads": "n_threads", "poll": "poll"}
"""Engine arguments that go to both sets of CPU parameters."""
ALIASES: Final = {"embeddings": "embedding", "flash_attn": "flash_attn_type", "pooling": "pooling_type"}
SAMPLING: Final = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "seed": "seed",
    "presence_penalty": "penalty_present",
    "frequency_penalty": "penalty_freq",
    "repeat_penalty": "penalty_repeat",
}
"""OpenAI's names -> fields of CommonParamsSampling; `max_tokens` is CommonParams.n_predict."""


class ArgumentError(Exception):
    """An argument that is not usable, in one sentence."""


def build(params: Any, options: dict[str, Any], threads: int) -> Any:
    """Set the options on a fresh CommonParams and return it. Raises ArgumentError."""
    params.n_parallel = PARALLEL_SLOTS
    params.n_threads_http = HTTP_THREADS
    params.cache_ram_mib = CACHE_RAM_MIB
    params.endpoint_metrics = True
    params.ui = False
    params.cors_origins = ""
    given = options.get("engine_args", {})
    if threads > 0:
        set_threads(params, "n_threads", threads)
    known = settable(params)
    for name, value in given.items():
        if name in THREADS:
            set_threads(params, name, converted(name, params.cpuparams.n_threads, value))
            continue
        field = ALIASES.get(name, name)
        if field in RESERVED:
            raise ArgumentError(f"engine_args.{name} is set by Modelyard: leave it out")
        if field not in known:
            raise ArgumentError(f"unknown engine_args.{name}: {nearest(name, {*known, *ALIASES, *THREADS})}")
        assign(params, field, converted(name, getattr(params, field), value), f"engine_args.{name}")
    if params.n_parallel < 1:
        raise ArgumentError(f"engine_args.n_parallel is {params.n_parallel}: it must be at least 1")
    if "n_ctx" not in given:
        params.n_ctx = context_tokens(params.n_parallel)
    for name, value in options.get("sampling", {}).items():
        if name == "max_tokens":
            params.n_predict = converted(name, params.n_predict, value)
        elif name in SAMPLING:
            current = getattr(params.sampling, SAMPLING[name])
            assign(params.sampling, SAMPLING[name], converted(name, current, value), f"sampling.{name}")
        else:
            raise ArgumentError(f"unknown sampling.{name}: {nearest(name, [*SAMPLING, 'max_tokens'])}")
    if template := options.get("chat_template"):
        params.chat_template = template
    return params


def settable(params: Any) -> set[str]:
    """The fields that an engine argument may set: plain values, lists and enumerations."""
    names = {name for name in dir(params) if not name.startswith("_")} - RESERVED
    return {name for name in names if isinstance(getattr(params, name), bool | int | float | str | list)}


def nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else "see the fields of xllamacpp.CommonParams"


def set_threads(params: Any, name: str, value: Any) -> None:
    for cpu in (params.cpuparams, params.cpuparams_batch):
        assign(cpu, THREADS[name], value, f"engine_args.{name}")


def assign(target: Any, field: str, value: Any, name: str) -> None:
    try:
        setattr(target, field, value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ArgumentError(f"{name} cannot be {value!r}: {error}") from None


def converted(name: str, current: Any, value: Any) -> Any:
    """`value` as the type of the field's current value. Raises ArgumentError where it is none."""
    if isinstance(current, enum.Enum):
        return member(name, type(current), value)
    fits = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, int | float) and not isinstance(value, bool),
        str: isinstance(value, str),
        list: isinstance(value, list),
    }
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}
    for kind, word in words.items():
        if isinstance(current, kind):
            if not fits[kind]:
                raise ArgumentError(f"{name} must be {word}, not {value!r}")
            return kind(value)
    raise ArgumentError(f"{name} cannot be set")


def member(name: str, kind: type[enum.Enum], value: Any) -> enum.Enum:
    """The member of an enumeration whose name ends in `value`: `q8_0` for GGML_TYPE_Q8_0."""
    names = list(kind.__members__)
    prefix = next(
        names[0][:end] for end in range(len(names[0]), -1, -1) if all(n.startswith(names[0][:end]) for n in names)
    )
    choices = {key.removeprefix(prefix).lower(): item for key, item in kind.__members__.items() if "COUNT" not in key}
    text = {True: "enabled", False: "disabled"}.get(value, value) if isinstance(value, bool) else value
    if str(text).lower() not in choices:
        raise ArgumentError(f"{name} cannot be {value!r}: it is one of {', '.join(choices)}")
    return choices[str(text).lower()]


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def serve(server_type: Any, params: Any) -> int:
    """Run the server until SIGTERM or SIGINT; whatever it still does is cut off at the deadline."""
    stop = threading.Event()
    try:
        server = server_type(params)
    except RuntimeError as error:
        say(f"llama.cpp could not start: {error}")
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):  # until here a signal ends the process at once, while it loads too
        signal.signal(number, lambda *_: stop.set())
    say(f"listening on {server.listening_address}")
    stop.wait()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # No thread could keep the deadline: the server ends under the interpreter's lock.
    signal.setitimer(signal.ITIMER_REAL, STOP_DEADLINE_S)
    del server
    return 0


def main() -> int:
    """Parse, check, serve; see the module's docstring for the exit status."""
    parser = argparse.ArgumentParser(description="Runs llama.cpp's HTTP server on one model.")
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--alias", required=True, help="the model's name in answers, e.g. assistant@v1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--options", default="{}", help="JSON: engine_args, sampling, chat_template")
    parser.add_argument("--check", action="store_true", help="check the options and exit")
    given = parser.parse_args()
    from xllamacpp import CommonParams, Server  # noqa: PLC0415 - only once the command line is known to be usable

    try:
        threads = int(os.environ.get("LLAMA_ARG_THREADS", "0"))
        params = build(CommonParams(), json.loads(given.options), threads)
    except ArgumentError as error:
        say(str(error))
        return CONFIGURATION_EXIT
    if given.check:
        return 0
    params.model.path = given.model
    params.model_alias = {given.alias}
    params.hostnames = ["127.0.0.1"]
    params.port = given.port
    return serve(Server, params)


if __name__ == "__main__":
    sys.exit(main())
