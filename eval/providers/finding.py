"""From what is evaluated to who can give its log-probabilities.

Owns: the choice, and the refusal where nobody can. Never: asking, loading.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Final, Literal

from eval.endpoint import Endpoint
from eval.providers.base import CapabilityError
from eval.providers.capabilities import probe
from eval.providers.files import ModelFiles, is_path, locate
from eval.providers.in_process import InProcess
from eval.providers.prompt_logprobs import PromptLogprobs, Wire
from eval.results import Subject
from registry.state import StateDir
from registry.terminal import UserError

__all__ = ["IN_PROCESS", "PROVIDERS", "Wanted", "find", "in_process", "is_in_process", "locate", "over_http"]

IN_PROCESS: Final = ("transformers", "llama-cpp")
PROVIDERS: Final = ("auto", *IN_PROCESS, "vllm")
"""What `--provider` takes. `auto`: the running engine where it can, a path in process."""

Need = Literal["likelihood", "top_k", "full_vocabulary"]

REMEDY: Final = (
    "run it in process, from its files: --provider llama-cpp (GGUF) or --provider transformers (GGUF or safetensors)"
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a provider is to be made."""

    provider: str = "auto"
    python: str | None = None
    """The interpreter for a model in process; None looks for one."""
    threads: int = 0
    """0: as the library likes."""
    context: int = 0
    """The most tokens to make room for; 0: the model's own limit."""

    def __post_init__(self) -> None:
        if self.provider not in PROVIDERS:
            raise UserError(f"there is no provider {self.provider!r}: one of {', '.join(PROVIDERS)}")


def is_in_process(wanted: Wanted, ref: str = "") -> bool:
    """Whether the model that `ref` names is loaded here, and no server is asked: a path is, unless told otherwise."""
    return wanted.provider in IN_PROCESS or (wanted.provider == "auto" and is_path(ref))


def find(
    subject: Subject,
    need: Need = "likelihood",
    *,
    wanted: Wanted = Wanted(),
    server: Endpoint | None = None,
    state: StateDir | None = None,
) -> PromptLogprobs | InProcess:
    """Who gives what is needed of the subject; the caller closes it.

    Raises CapabilityError with the remedy where its engine does not, UserError where its files are not here, and what
    loading a model raises.
    """
    if is_in_process(wanted, subject.ref):
        _, files = locate(subject.ref, state or StateDir.find(), server or Endpoint(subject.url))
        return in_process(files, wanted)
    verify = server.verify if server is not None and subject.url == server.url else True
    return over_http(subject, need, verify)


def in_process(files: ModelFiles, wanted: Wanted) -> InProcess:
    """The model, loaded by the library that is wanted, else by the one that reads it as it is served."""
    return InProcess(
        wanted.provider if wanted.provider in IN_PROCESS else files.provider,
        files.path,
        python=wanted.python,
        threads=wanted.threads,
        context=wanted.context,
        chat_template=files.chat_template,
    )


def over_http(subject: Subject, need: Need, verify: ssl.SSLContext | bool = True) -> PromptLogprobs:
    """The running engine, if it gives what is needed. Raises CapabilityError."""
    wire = Wire(subject, verify)
    try:
        found = probe(wire)
        if not found.prompt_logprobs:
            task = "a log-likelihood" if need == "likelihood" else "token-level drift"
            raise CapabilityError(f"{task} needs log-probabilities of the prompt, and {found.lacking}; {REMEDY}")
        if need == "full_vocabulary" and not found.full_vocabulary:
            raise CapabilityError(
                f"{subject.ref} gives the {found.top_k} likeliest tokens of a position and the whole vocabulary is "
                f"needed: {REMEDY}"
            )
    except BaseException:
        wire.close()
        raise
    return PromptLogprobs(wire, found)
