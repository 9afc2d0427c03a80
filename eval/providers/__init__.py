"""Who can say how likely a model finds a text, and how far two models' distributions are apart.

Owns: finding such a provider for what is evaluated, or refusing with the remedy. Never: a score by chance; an engine
that does not give log-probabilities of a prompt is not asked for them.

    transformers    in process, safetensors or GGUF, exact over the whole vocabulary
    llama-cpp       in process, GGUF as llama.cpp computes with it, exact over the whole vocabulary
    vllm            over HTTP, an engine that returns prompt log-probabilities: exact sums, k tokens a position
"""

from eval.providers.base import (
    CapabilityError,
    EvalCapabilities,
    LikelihoodProvider,
    Prompt,
    Question,
    Reply,
)
from eval.providers.capabilities import capabilities
from eval.providers.finding import PROVIDERS, Wanted, find, is_in_process, locate

__all__ = [
    "PROVIDERS",
    "CapabilityError",
    "EvalCapabilities",
    "LikelihoodProvider",
    "Prompt",
    "Question",
    "Reply",
    "Wanted",
    "capabilities",
    "find",
    "is_in_process",
    "locate",
]
