"""What lm-eval would not notice: is the engine able to do what its log-likelihood tasks ask of it?

Owns: asking the engine once, and refusing in one sentence with the remedy. Never: running anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import httpx

from eval.endpoint import Endpoint, headers, trusts_environment
from eval.errors import RequestRefusedError, ServerGoneError
from eval.harness_child import PROBE
from eval.results import Subject

_TIMEOUT_S: Final = 60.0


def check_likelihood(
    tasks: tuple[str, ...], probe: tuple[int, ...], longest: int, tokenizer: Path | None, subject: Subject, at: Endpoint
) -> None:
    """Raise RequestRefusedError unless `subject` can answer log-likelihood tasks whose requests are `longest` tokens.

    `probe` is what the tokenizer at `tokenizer` makes of PROBE.
    """
    named = ", ".join(tasks)
    pieces = prompt_pieces(subject, at)
    if not pieces:
        raise RequestRefusedError(
            f"{subject.ref} gives no log-probabilities of a prompt, so {named} would be scored by chance: serve it "
            "with vLLM (engine: vllm), or measure it in process: a suite with `format: mmlu`, `arc` or `boolq` and "
            "`task: choose`"
        )
    if tokenizer is None:
        raise RequestRefusedError(
            f"{named} needs the model's tokenizer, to tell a prompt from its continuation: name its folder with "
            "--tokenizer FOLDER"
        )
    if not same_tokens(probe, pieces, subject, at):
        raise RequestRefusedError(
            f"the tokenizer at {tokenizer} is not that of {subject.ref}: they cut the same text differently, so every "
            "log-likelihood would be of the wrong tokens; name the model's own with --tokenizer FOLDER"
        )
    window = context_tokens(subject, at)
    if window and longest > window:
        raise RequestRefusedError(
            f"{named} has a request of {longest} tokens, and {subject.ref} has a context of {window}: lm-eval would "
            "cut the request; use fewer examples (--few-shot), or serve the model with a longer context"
        )


def prompt_pieces(subject: Subject, at: Endpoint) -> list[str]:
    """The tokens of PROBE as the engine gives them with their log-probabilities; [] where it does not."""
    body = {"model": subject.model, "prompt": PROBE, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    answer = _ask("POST", "/v1/completions", subject, at, body)
    try:
        found = answer["choices"][0]["logprobs"]
        pieces, values = [str(piece) for piece in found["tokens"]], found["token_logprobs"]
    except (LookupError, TypeError):
        return []
    echoed = pieces[:-1]  # the last one is generated
    numbers = [value for value in values[:-1] if isinstance(value, int | float)]
    return echoed if len(echoed) > 1 and len(numbers) >= len(echoed) - 1 else []


def same_tokens(probe: tuple[int, ...], pieces: list[str], subject: Subject, at: Endpoint) -> bool:
    """By the engine's own /tokenize where it has that, else by their number, a token of its own at the start aside."""
    answer = _ask(
        "POST", "/tokenize", subject, at, {"model": subject.model, "prompt": PROBE, "add_special_tokens": False}
    )
    ids = answer.get("tokens") if isinstance(answer, dict) else None
    if isinstance(ids, list) and ids and all(isinstance(one, int) for one in ids):
        return tuple(ids) == probe or tuple(ids[1:]) == probe
    return len(pieces) in (len(probe), len(probe) + 1)


def context_tokens(subject: Subject, at: Endpoint) -> int:
    """The engine's context as /v1/models tells it; 0 where it does not."""
    answer = _ask("GET", "/v1/models", subject, at)
    listed = answer.get("data", []) if isinstance(answer, dict) else []
    own = [one for one in listed if isinstance(one, dict) and one.get("id") == subject.model]
    return max((int(one.get("max_model_len") or 0) for one in own or listed if isinstance(one, dict)), default=0)


def _ask(method: str, path: str, subject: Subject, at: Endpoint, body: dict[str, Any] | None = None) -> Any:
    """The answer as JSON, or None where the engine has none. Raises ServerGoneError."""
    try:
        answer = httpx.request(
            method,
            subject.url + path,
            json=body,
            headers=headers(),
            timeout=_TIMEOUT_S,
            trust_env=trusts_environment(subject.url),
            verify=at.verify if subject.url == at.url else True,
        )
    except httpx.TransportError as error:
        raise ServerGoneError(f"no server answers at {subject.url} ({error or type(error).__name__})") from error
    try:
        return answer.json() if answer.is_success else None
    except ValueError:
        return None
