"""The routers that are compared: how each is installed, started and asked, all in front of the same engines.

Owns: their commands and configurations. Never: measuring. What is not installed is left out of a comparison; `setup`
makes a folder of its own for each under .cache/bench.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from serving import native  # noqa: E402 - the path comes first

CACHE = ROOT / ".cache" / "bench"
ENGINE_PORTS = (9101, 9102)
ENGINES = tuple(f"http://127.0.0.1:{port}" for port in ENGINE_PORTS)
WEIGHTS = (95, 5)
ANY_KEY = "sk-benchmark"
"""What peers are asked with; LiteLLM is told to expect it, the others ask for none."""
MODELYARD = "modelyard"
COMPILED = f"{MODELYARD}, compiled"
"""The same, its hot path compiled: `make native`."""
BARE = f"{COMPILED}, no keys or limits"
"""The same with what the peers do as well: what the rest costs is the difference."""

NGINX = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder};
  scgi_temp_path {folder};
  upstream engines {{ server 127.0.0.1:{a} weight=19; server 127.0.0.1:{b}; keepalive 256; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""

YARD = """
server: {{port: {port}, admin_port: {admin_port}, require_keys: {require_keys}}}
prices: {{cpu_hour: 0.12}}
models:
  m:
    versions:
      v1: {{engine: external, url: "{a}"}}
      v2: {{engine: external, url: "{b}"}}
    route: {{v1: 9500, v2: 500}}
    sticky: [header:x-session-id]
    fallback: [v1]
"""
BOUNDED = "    admission: {inflight_max: 4096, queue_max: 4096}\n"

LITELLM = """
model_list:
  - model_name: m
    litellm_params: {{model: openai/m, api_base: {a}/v1, api_key: none, weight: 95}}
  - model_name: m
    litellm_params: {{model: openai/m, api_base: {b}/v1, api_key: none, weight: 5}}
litellm_settings: {{telemetry: false}}
"""


@dataclass(frozen=True)
class Peer:
    """A router to measure: the command that serves on `port`, given a folder of its own."""

    name: str
    command: Callable[[int, Path], list[str]]
    program: Callable[[], str | None]
    """Where it is installed; None where it is not."""
    install: str = ""
    """How to get it, for a person."""
    settle_s: float = 2.0
    is_slow: bool = False
    """Milliseconds a request: it gets less load, or nothing would ever end."""
    headers: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        return self.name.startswith(MODELYARD)


def in_cache(*parts: str) -> str | None:
    path = CACHE.joinpath(*parts)
    return str(path) if path.exists() else None


def modelyard(port: int, folder: Path) -> list[str]:
    return _yard(port, folder, "true", BOUNDED)


def bare_modelyard(port: int, folder: Path) -> list[str]:
    return _yard(port, folder, "false", "")


def _yard(port: int, folder: Path, require_keys: str, more: str) -> list[str]:
    config = folder / "yard.yaml"
    admin_port = port + 1
    text = YARD.format(port=port, admin_port=admin_port, a=ENGINES[0], b=ENGINES[1], require_keys=require_keys)
    config.write_text(text + more)
    return [*modelyard_program(), "up", str(config), "--state-dir", str(folder / "state")]


def compiled() -> str | None:
    """Where the compiled modules of this repository's sources are."""
    found = native.folder()
    return str(found) if found else None


def modelyard_program() -> list[str]:
    """The command line of this repository."""
    return [sys.executable, "-c", "import sys; sys.argv[0] = 'modelyard'; from serving.cli import main; main()"]


def modelyard_key(folder: Path) -> str:
    """A key of the yard whose state is in `folder`, with every limit set, far above the load."""
    bounds = ("--requests-per-minute", "--tokens-per-minute", "--concurrency", "--budget-tokens")
    values = (100_000_000, 10_000_000_000, 1_000_000, 1_000_000_000_000)
    limits = [word for bound, value in zip(bounds, values, strict=True) for word in (bound, str(value))]
    command = [*modelyard_program(), "keys", "create", "--name", "benchmark", *limits, "--json"]
    command += ["--state-dir", str(folder / "state")]
    limit = time.monotonic() + 30
    while True:  # a yard that listens may not have written down yet where it is
        made = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        if not made.returncode:
            return str(json.loads(made.stdout)["secret"])
        if time.monotonic() > limit:
            raise SystemExit(f"no key could be made: {made.stderr.strip()}")
        time.sleep(0.5)


def nginx(port: int, folder: Path) -> list[str]:
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port, a=ENGINE_PORTS[0], b=ENGINE_PORTS[1]))
    return [nginx_program() or "nginx", "-c", str(config), "-p", str(folder)]


def nginx_program() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def vllm_router(port: int, folder: Path) -> list[str]:
    del folder
    where = ["--host", "127.0.0.1", "--port", str(port)]
    return [vllm_router_program() or "", *where, "--policy", "round_robin", "--worker-urls", *ENGINES]


def vllm_router_program() -> str | None:
    return in_cache("vllm-router", "bin", "vllm-router") or shutil.which(
        "vllm-router", path=str(Path(sys.executable).parent)
    )


def sglang_router(port: int, folder: Path) -> list[str]:
    del folder
    where = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(port + 2)]
    program = in_cache("sglang-router", "bin", "sglang-router") or ""
    return [program, "launch", *where, "--policy", "round_robin", "--worker-urls", *ENGINES]


def litellm(port: int, folder: Path) -> list[str]:
    config = folder / "litellm.yaml"
    config.write_text(LITELLM.format(a=ENGINES[0], b=ENGINES[1]))
    program = in_cache("litellm", "bin", "litellm") or ""
    return [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]


def portkey(port: int, folder: Path) -> list[str]:
    del folder
    return [shutil.which("node") or "node", portkey_program() or "", f"--port={port}", "--headless"]


def portkey_program() -> str | None:
    return in_cache("portkey", "node_modules", "@portkey-ai", "gateway", "build", "start-server.js")


PORTKEY_TARGETS = [
    {"provider": "openai", "api_key": "none", "custom_host": f"{engine}/v1", "weight": weight / 100}
    for engine, weight in zip(ENGINES, WEIGHTS, strict=True)
]

PEERS = (
    Peer("nginx", nginx, nginx_program, "apt-get install nginx"),
    Peer("vllm-router", vllm_router, vllm_router_program, "--setup", settle_s=3.0),
    Peer(
        "sglang-router",
        sglang_router,
        lambda: in_cache("sglang-router", "bin", "sglang-router"),
        "--setup",
        settle_s=4.0,
    ),
    Peer(MODELYARD, modelyard, lambda: sys.executable, settle_s=3.0, env={native.SWITCH: "0"}),
    Peer(COMPILED, modelyard, compiled, "make native", settle_s=3.0),
    Peer(BARE, bare_modelyard, compiled, "make native", settle_s=3.0),
    Peer(
        "Portkey gateway",
        portkey,
        portkey_program,
        "--setup, with node and npm",
        is_slow=True,
        headers={
            "x-portkey-config": json.dumps({"strategy": {"mode": "loadbalance"}, "targets": PORTKEY_TARGETS}),
        },
        env={"TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"},
    ),
    Peer(
        "LiteLLM proxy",
        litellm,
        lambda: in_cache("litellm", "bin", "litellm"),
        "--setup",
        settle_s=4.0,
        is_slow=True,
        env={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MASTER_KEY": ANY_KEY},
    ),
)


def ours() -> Peer:
    """This repository's router at its best: compiled where it is."""
    wanted = COMPILED if compiled() else MODELYARD
    return next(peer for peer in PEERS if peer.name == wanted)


PACKAGES = {"vllm-router": "vllm-router==0.1.17", "sglang-router": "sglang-router==0.3.2"}
PACKAGES["litellm"] = "litellm[proxy]==1.105.0"  # a later one wants a certifi that not every registry has
PORTKEY_PACKAGE = "@portkey-ai/gateway@1.15.2"


def setup() -> None:
    """Install every peer that is not there, each into a folder of its own; what fails is told and left out."""
    CACHE.mkdir(parents=True, exist_ok=True)
    for name, package in PACKAGES.items():
        folder = CACHE / name
        if (folder / "bin" / name).exists() or (name == "vllm-router" and vllm_router_program()):
            continue
        _install(name, [sys.executable, "-m", "venv", str(folder)], [str(folder / "bin/pip"), "install", package])
    if portkey_program() is None and (npm := shutil.which("npm")):
        (CACHE / "portkey").mkdir(exist_ok=True)
        _install("portkey", [npm, "install", "--prefix", str(CACHE / "portkey"), "--no-audit", PORTKEY_PACKAGE])


def _install(name: str, *commands: list[str]) -> None:
    sys.stderr.write(f"installing {name} …\n")
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.stderr.write(f"{name} could not be installed: {(done.stderr.strip().splitlines() or ['?'])[-1]}\n")
            shutil.rmtree(CACHE / name, ignore_errors=True)
            return
