"""Sampled traffic of two kinds, as the ingestion keeps it: for tests of the drift watch.

`questions` are short and answered; `essays` are long, in capitals, partly refused and disliked.
"""

from __future__ import annotations

import random
from pathlib import Path

from monitoring.features import features
from registry.sample_store import SampleStore
from registry.samples import Feedback, TrafficSample, Turn

TOWNS = ("Paris", "Oslo", "Lima", "Cairo", "Quito", "Delhi", "Rome", "Bern")
VERBS = ("visit", "describe", "find", "reach", "leave", "compare", "like", "photograph")
WORDS = ("the", "river", "in", "spring", "when", "it", "rains", "and", "people", "stay", "home", "with", "tea")


def sample(
    kind: str, number: int, at: float, rng: random.Random, *, version: str = "v1", text: bool = False
) -> TrafficSample:
    essay = kind == "essays"
    asked = f"How do I {rng.choice(VERBS)} {rng.choice(TOWNS)} in {rng.randrange(2, 30)} days?"
    if essay:
        asked = " ".join(rng.choices(WORDS, k=rng.randrange(60, 200))).upper()
    answered = " ".join(rng.choices(WORDS, k=rng.randrange(5, 60)))
    if rng.random() < (0.4 if essay else 0.02):
        answered = "I'm sorry, I cannot help with that."
    turns = (Turn(role="system", content="Be brief."), Turn(role="user", content=asked))
    tokens = {"prompt_tokens": len(asked.split()) + 2, "completion_tokens": len(answered.split())}
    return TrafficSample(
        request_id=f"{kind}-{number}",
        model="assistant",
        version=version,
        started_at=at,
        endpoint="/v1/chat/completions",
        finish_reason="stop",
        messages=turns if text else None,
        output=answered if text else None,
        features=features(turns, answered, finish_reason="stop", **tokens),
        **tokens,
    )


def add(
    path: Path, kind: str, count: int, since: float, *, seed: int = 0, text: bool = False, liked: float = -1
) -> None:
    """Put `count` samples, one a second from `since` on, into the store at `path`; with feedback where `liked` is a
    share."""
    rng = random.Random(seed)
    store = SampleStore.open(path)
    with store.transaction() as tx:
        for number in range(count):
            one = sample(kind, number + 10_000 * seed, since + number, rng, text=text)
            tx.append([one])
            if liked >= 0:
                at = one.started_at
                score = 1.0 if rng.random() < liked else -1.0
                given = {"request_id": one.request_id, "model": one.model, "version": one.version}
                tx.give(Feedback(**given, started_at=at, at=at + 5, score=score))
    store.close()
