"""The process that lm-evaluation-harness runs in: a script of its own, which reads two requests, a JSON line each.

Owns: every call into lm_eval. Never: importing anything of this project: the package may be installed for another
Python. What lm_eval prints goes to standard error; standard output holds one JSON line per answer or sample.

1. `{"tasks": […], …}` is answered with what the tasks are: kind of request, number, metrics, a digest.
2. `{"api": …, "model_args": …, …}` runs them; each sample is a line, then `{"done": true}`. Closing the pipe in between
   ends the process before anything has been asked.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import sys
from importlib import import_module
from typing import Any

LIKELIHOOD = ("loglikelihood", "loglikelihood_rolling", "multiple_choice")


def main() -> None:
    """Answer on what was standard output; everything else that is printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    requests = iter(sys.stdin)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value, default=str) + "\n")
        answers.flush()

    try:
        first = json.loads(next(requests))
        tasks = load(first)
        answer(described(tasks, first))
        second = next(requests, "")
        if second:
            run(tasks, json.loads(second), answer)
            answer({"done": True})
    except Exception as error:  # lm_eval, its tasks and their data sets raise all there is
        answer({"error": reason(error)})


def load(job: dict[str, Any]) -> dict[str, Any]:
    """Task name -> task. Raises LookupError naming the nearest where there is none."""
    manager = import_module("lm_eval.tasks").TaskManager(include_path=job["include_path"])
    for name in job["tasks"]:
        if name not in manager.all_tasks:
            close = difflib.get_close_matches(name, manager.all_tasks, n=1, cutoff=0.6)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise LookupError(
                f"lm-eval has no task {name!r}{hint}: `lm-eval ls tasks` lists them; --tasks adds a folder"
            )
    found: dict[str, Any] = manager.load(job["tasks"])["tasks"]
    for task in found.values():
        if job["few_shot"] is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=job["few_shot"])
    return found


def described(tasks: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    """What the tasks are, and the tokens of `texts` by the tokenizer that was named."""
    limit = job["limit"]
    about = []
    for name, task in tasks.items():
        docs = [doc for _, doc in task.doc_iterator(limit=limit)]
        about.append(
            {
                "name": name,
                "output_type": task.OUTPUT_TYPE,
                "docs": len(docs),
                "digest": digest([task.VERSION, plain(task.dump_config()), docs]),
                "metrics": task.higher_is_better(),
                "unsafe": bool(getattr(task, "UNSAFE_CODE", False)),
            }
        )
    found: dict[str, Any] = {"version": import_module("lm_eval").__version__, "tasks": about}
    if job["tokenizer"]:
        tokenizer = import_module("transformers").AutoTokenizer.from_pretrained(job["tokenizer"])
        found["probe"] = [list(tokenizer(text, add_special_tokens=False).input_ids) for text in job["texts"]]
        found["longest"] = longest(tasks, limit, tokenizer)
    return found


def longest(tasks: dict[str, Any], limit: int | None, tokenizer: Any) -> int:
    """Tokens of the longest request of the tasks that ask for likelihoods (of the 20 with the most characters)."""
    texts: list[str] = []
    for task in tasks.values():
        if task.OUTPUT_TYPE in LIKELIHOOD:
            task.build_all_requests(limit=limit)
            texts += ["".join(str(part) for part in request.args) for request in task.instances]
    return max((len(tokenizer(text).input_ids) for text in sorted(texts, key=len)[-20:]), default=0)


def run(tasks: dict[str, Any], job: dict[str, Any], answer: Any) -> None:
    """Run the tasks and give each sample; the same seed for everything that lm_eval draws."""
    seed = job["seed"]
    results = import_module("lm_eval").simple_evaluate(
        model=job["api"],
        model_args=job["model_args"],
        tasks=list(tasks.values()),
        limit=job["limit"],
        batch_size=1,
        bootstrap_iters=0,
        apply_chat_template=job["chat"],
        fewshot_as_multiturn=job["chat"],
        system_instruction=job["system"],
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
        log_samples=True,
    )
    for name, samples in results["samples"].items():
        for sample in samples:
            answer({"sample": {"task": name, **taken(sample)}})


def taken(sample: dict[str, Any]) -> dict[str, Any]:
    """What of a sample is kept: prompts as text or messages, answers as they came, metrics by name."""
    arguments = [[prompt(part) for part in one if isinstance(part, str | tuple)] for one in sample["arguments"]]
    return {
        "doc_id": sample["doc_id"],
        "target": plain(sample["target"]),
        "arguments": arguments,
        "resps": plain(sample["resps"]),
        "filtered": plain(sample["filtered_resps"]),
        "filter": sample["filter"],
        "metrics": {name: plain(sample[name]) for name in sample["metrics"]},
    }


def prompt(part: Any) -> Any:
    """A text, or the messages that lm_eval keeps as JSON in a tuple of one."""
    return json.loads(part[0]) if isinstance(part, tuple) else part


def plain(value: Any) -> Any:
    """The value as JSON has it: numpy's numbers as numbers, functions by their name (their address says nothing)."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(inner) for inner in value]
    if hasattr(value, "item") and not isinstance(value, str):
        return value.item()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return getattr(value, "__qualname__", type(value).__name__)


def digest(value: Any) -> str:
    """SHA-256 over the value as JSON."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()


def reason(error: BaseException) -> str:
    """The error in one line, the cause first where a library wrapped it."""
    while error.__cause__ is not None and not str(error):
        error = error.__cause__
    text = " ".join(str(error.args[0] if error.args else error).split())
    return f"{text[:400]}" if isinstance(error, LookupError) else f"{type(error).__name__}: {text[:400]}"


if __name__ == "__main__":
    main()
