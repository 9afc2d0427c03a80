"""Command lines, what a child may see, and refusals in one sentence."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from engine_harness import version

from serving.engines.base import EngineError, EngineMissingError, EngineVersion, fingerprint, kind, minimal_environment
from serving.engines.llama_cpp import LlamaCpp


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, Path]:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder / "config.json", folder / "model.safetensors"


def vllm(checkpoint: tuple[Path, ...], **fields: object) -> EngineVersion:
    return version("v1", *checkpoint, engine="vllm", python=sys.executable, **fields)


def test_llama_cpp_is_given_its_model_and_its_public_name_only(gguf: Path) -> None:
    launch = kind("llama.cpp").launch(replace(version("v1", gguf, engine_args={"n_ctx": 4096}), threads=2), 4711)
    argv = list(launch.argv)
    assert argv[:3] == [sys.executable, "-m", "serving.engines.llama_cpp_child"]
    assert argv[argv.index("--model") + 1] == str(gguf)
    assert argv[argv.index("--alias") + 1] == "assistant@v1"
    assert json.loads(argv[argv.index("--options") + 1]) == {"engine_args": {"n_ctx": 4096}}
    assert launch.env == {"LLAMA_ARG_THREADS": "2"}
    assert (launch.url, launch.served_names) == ("http://127.0.0.1:4711", ("*",))


def test_a_llama_server_binary_gets_long_options(gguf: Path) -> None:
    wanted = version(
        "v1",
        gguf,
        engine_args={"binary": sys.executable, "n_parallel": 2, "flash_attn": "on", "mlock": True, "webui": False},
        sampling={"temperature": 0.5},
        chat_template="{{ messages }}",
    )
    argv = kind("llama.cpp").launch(wanted, 4711).argv
    text = " ".join(argv)
    assert argv[0] == sys.executable
    for part in ("--parallel 2", "--ctx-size 4096", "--flash-attn on", "--mlock", "--temp 0.5", "--alias assistant@v1"):
        assert part in text
    assert "--webui" not in text
    assert argv[-2:] == ("--chat-template", "{{ messages }}")


def test_of_a_split_model_the_first_part_is_given(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (2, 1)]
    for part in parts:
        part.write_bytes(b"GGUF")
    argv = kind("llama.cpp").launch(version("v1", *parts), 1).argv
    assert argv[argv.index("--model") + 1] == str(parts[1])


def test_vllm_serves_under_both_names_without_a_key(checkpoint: tuple[Path, Path], tmp_path: Path) -> None:
    wanted = replace(
        vllm(
            checkpoint,
            engine_args={
                "enforce_eager": True,
                "enable_prefix_caching": False,
                "max_model_len": 512,
                "lora_modules": ["a=b", "c=d"],
                "hf_overrides": {"x": 1},
                "env": {"VLLM_CPU_KVCACHE_SPACE": 1},
            },
            sampling={"temperature": 0.2, "max_tokens": 9},
            chat_template="{{ é }}",
        ),
        folder=tmp_path,
        threads=2,
    )
    launch = kind("vllm").launch(wanted, 4711)
    text = " ".join(launch.argv)
    assert launch.argv[:3] == (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
    for part in (
        f"--model {checkpoint[0].parent} ",
        "--served-model-name assistant@v1 assistant ",
        "--host 127.0.0.1 --port 4711 ",
        "--enforce-eager --no-enable-prefix-caching --max-model-len 512 --lora-modules a=b c=d",
        '--hf-overrides {"x": 1}',
        '--override-generation-config {"max_new_tokens": 9, "temperature": 0.2}',
    ):
        assert part in text
    assert "api-key" not in text
    assert launch.files == {tmp_path / "chat_template.jinja": "{{ é }}"}
    assert launch.served_names == ("assistant@v1", "assistant")
    assert launch.env["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert launch.env["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"engine_args": {"port": 1}}, "engine_args.port is set by Modelyard"),
        ({"engine_args": {"Max-Len": 1}}, "write it in snake_case"),
        ({"engine_args": {"env": ["a"]}}, "must be a mapping"),
        ({"sampling": {"temprature": 1}}, "sampling.temprature has no default in vLLM"),
    ],
)
def test_vllm_refuses_what_it_cannot_take(
    checkpoint: tuple[Path, Path], fields: dict[str, object], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        kind("vllm").launch(vllm(checkpoint, **fields), 1)


def test_vllm_needs_an_interpreter_that_has_it(checkpoint: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(EngineMissingError, match="there is no Python interpreter"):
        kind("vllm").check(replace(vllm(checkpoint), python=str(tmp_path / "python")))
    with pytest.raises(EngineMissingError, match="has no vLLM: install it there"):
        kind("vllm").check(vllm(checkpoint))
    with pytest.raises(EngineError, match=r"no config\.json"):
        kind("vllm").launch(vllm(checkpoint[1:]), 1)


def test_llama_cpp_refuses_a_version_without_gguf_and_a_binary_that_is_not_there(
    gguf: Path, checkpoint: tuple[Path, Path]
) -> None:
    with pytest.raises(EngineError, match="has no GGUF file"):
        kind("llama.cpp").launch(version("v1", *checkpoint), 1)
    with pytest.raises(EngineMissingError, match="there is no program 'llama-srv'"):
        kind("llama.cpp").launch(version("v1", gguf, engine_args={"binary": "llama-srv"}), 1)
    with pytest.raises(EngineError, match=r"engine_args\.binary must be text"):
        kind("llama.cpp").launch(version("v1", gguf, engine_args={"binary": 3}), 1)
    bad = version("v1", gguf, engine_args={"binary": sys.executable}, sampling={"temperatur": 1})
    with pytest.raises(EngineError, match=r"unknown sampling\.temperatur: did you mean 'temperature'"):
        kind("llama.cpp").launch(bad, 1)


def test_an_external_engine_is_reached_by_its_url() -> None:
    wanted = replace(
        version("v1", engine="external", url="https://api.example/base", engine_args={"model": "big"}),
        authorization="Bearer k",
    )
    launch = kind("external").launch(wanted, 0)
    assert (launch.argv, launch.host, launch.port, launch.url) == ((), "api.example", 443, "https://api.example/base")
    assert (launch.served_names, launch.headers) == (("big",), {"Authorization": "Bearer k"})
    assert "Bearer" not in repr(wanted)
    assert "Bearer" not in repr(launch)
    with pytest.raises(EngineError, match=r"unknown engine_args\.modle: did you mean 'model'"):
        kind("external").check(version("v1", engine="external", url="http://h", engine_args={"modle": "x"}))


def test_a_fingerprint_changes_with_what_is_started_and_with_nothing_else(gguf: Path) -> None:
    llama = LlamaCpp()
    plain = version("v1", gguf)
    assert fingerprint(llama, plain) == fingerprint(llama, replace(plain, threads=4))
    assert fingerprint(llama, plain) != fingerprint(llama, replace(plain, digest="sha256:other"))
    assert fingerprint(llama, plain) != fingerprint(llama, version("v2", gguf))
    assert fingerprint(llama, plain) != fingerprint(llama, version("v1", gguf, engine_args={"n_ctx": 1024}))


def test_the_minimal_environment_holds_no_keys_and_no_engine_settings() -> None:
    environ = {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "0",
        "OPENAI_API_KEY": "k",
        "HF_TOKEN": "t",
        "VLLM_API_KEY": "k",
        "LLAMA_ARG_CTX_SIZE": "1",
        "AWS_SECRET_ACCESS_KEY": "k",
    }
    assert minimal_environment(environ) == {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0"}
