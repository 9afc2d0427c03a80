"""What lm-eval would not notice: is the engine able to do what its log-likelihood tasks ask of it?

Owns: refusing in one sentence with the remedy, before anything runs. Never: asking the engine (eval.providers does),
running anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval.endpoint import Endpoint
from eval.providers import CapabilityError, capabilities
from eval.providers.worker.probes import digest_of_ids
from eval.results import Subject


def check_likelihood(
    tasks: Sequence[str],
    probe: Sequence[Sequence[int]],
    longest: int,
    tokenizer: Path | None,
    subject: Subject,
    at: Endpoint,
) -> None:
    """Raise CapabilityError unless `subject` can answer log-likelihood tasks whose requests are `longest` tokens.

    `probe` is what the tokenizer at `tokenizer` makes of the probes' texts.
    """
    named = ", ".join(tasks)
    found = capabilities(subject, at.verify if subject.url == at.url else True)
    if not found.prompt_logprobs:
        raise CapabilityError(
            f"{named} would be scored by chance, as {found.lacking}: serve the model with vLLM (engine: vllm), or "
            "measure it in process by a suite with `format: mmlu`, `arc` or `boolq` and `task: choose`"
        )
    if tokenizer is None:
        raise CapabilityError(
            f"{named} needs the model's tokenizer, to tell a prompt from its continuation: name its folder with "
            "--tokenizer FOLDER"
        )
    if digest_of_ids(probe) != found.tokenizer_digest:
        raise CapabilityError(
            f"the tokenizer at {tokenizer} is not that of {subject.ref}: they cut the same texts differently, so every "
            "log-likelihood would be of the wrong tokens; name the model's own with --tokenizer FOLDER"
        )
    if found.context_tokens and longest > found.context_tokens:
        raise CapabilityError(
            f"{named} has a request of {longest} tokens, and {subject.ref} has a context of {found.context_tokens}: "
            "lm-eval would cut the request; use fewer examples (--few-shot), or serve the model with a longer context"
        )
