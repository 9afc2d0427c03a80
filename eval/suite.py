"""Suites and cases as immutable values, and the digest of what a suite asks.

Owns: the fields of `suite.yaml` and of a case, and the digest. Never: reading files (loaders.py), scoring.

The digest covers what decides a score: how answers are drawn, and of each case, in order, its id, messages (after
templates and few-shot), later turns, target, scorer, limits, extra request fields, weight, slice and cluster. Name,
version, description, repeats, margin and gates are left out: they do not change what a sample is worth. A field at its
default is not part of it, so a new field leaves the digests of suites that do not use it as they are.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from eval.errors import SuiteError

SCORING_REVISION = 2
"""Counted up when a scorer's verdict on the same text changes, so that stored scores are not mixed."""

OVERALL = "overall"
"""The gate that stands for the mean score over all cases."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class ScorerSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """A scorer by name, with its options as written; scorers.build makes the scorer and checks them."""

    name: str
    options: dict[str, Any] = {}
    revision: str = ""
    """What else decides its verdicts (scorers.revision_of): the package that brings it, the judge and its prompts."""

    @classmethod
    def parse(cls, value: str | dict[str, Any]) -> ScorerSpec:
        """`"exact"`, or `{"name": "numeric", "tolerance": 0.1}`. Raises ValueError where the name is missing."""
        if isinstance(value, str):
            return cls(value)
        name = value.get("name")
        if not isinstance(name, str):
            raise ValueError("a scorer is a name, or a mapping with `name` and its options")
        return cls(name, {key: option for key, option in value.items() if key != "name"})


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """How answers are drawn. The defaults make a run as repeatable as the engine allows."""

    temperature: float = 0.0
    max_tokens: int = 64
    """For cases that set no limit of their own."""
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    timeout_s: float | None = None
    """For cases that set no limit of their own; None: the client's."""


Kind = Literal["generate", "choose", "perplexity"]


class Case(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One question with what counts as right."""

    id: str
    messages: tuple[Message, ...]
    target: Any = None
    """For `choose`: one of `choices`. For `perplexity`: the text whose likelihood is measured."""
    scorer: ScorerSpec
    slice: str = ""
    cluster: str = ""
    """Cases that share a document or conversation share a cluster: they are not independent."""
    max_tokens: int | None = None
    timeout_s: float | None = None
    """The longest that an answer may take, from the first attempt's start."""
    weight: float = 1.0
    """How much the case counts in a mean; above 0."""
    kind: Kind = "generate"
    """`choose`: right where the choice with the largest log-likelihood after the messages is the target.
    `perplexity`: the log-likelihood of the target after the messages."""
    choices: tuple[str, ...] = ()
    """What `choose` chooses from, as written after the prompt (with a leading space where the prompt ends without)."""
    chat: bool = True
    """False: `text` goes to the model as it is, without the chat template (/v1/completions, log-likelihoods)."""
    then: tuple[str, ...] = ()
    """Later user turns, each asked after the model's own answer to the one before; the last answer is scored."""
    request: dict[str, Any] = {}
    """Extra fields of the request, passed through: tools, tool_choice, response_format, logprobs, …"""

    @property
    def text(self) -> str:
        """The prompt as plain text: the messages' contents, a blank line between them."""
        return "\n\n".join(message.content for message in self.messages)

    @property
    def prompt_digest(self) -> str:
        """Of what is asked: the messages, and whatever else the case adds to the request."""
        beside = [self.then, self.choices, self.request, self.chat]
        return _digest(self.messages if beside == [(), (), {}, True] else [self.messages, *beside])

    @property
    def target_digest(self) -> str:
        return _digest([self.target, self.scorer])


class DatasetSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A data set on a hub, as `datasets.load_dataset` takes it."""

    hub: str
    split: str = "test"
    config: str | None = None
    revision: str | None = None


class FewShot(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Worked examples before each case. Never the case itself."""

    examples: tuple[dict[str, Any], ...] = ()
    """Fixed ones, as rows like those of the cases."""
    file: str | None = None
    """Where to draw from: a file of the cases' format beside `suite.yaml`; None: the suite's own cases."""
    k: int | None = None
    """How many are drawn for each case, of its own slice where there are some; None: all `examples`, in order."""
    seed: int = 0
    style: Literal["turns", "text"] | None = None
    """`turns`: user and assistant messages. `text`: in the prompt, before the question. None: `turns` in a chat."""
    answer: str | None = None
    """A template of what an example answers [default: its target]."""
    separator: str = "\n\n"
    """Between examples of the style `text`."""


class FileRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text that lies in a file beside `suite.yaml`."""

    file: str


class SuiteFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`suite.yaml` as written."""

    name: str
    version: int = 1
    description: str = ""
    cases: str | None = None
    """A JSONL, CSV or Parquet file beside `suite.yaml`."""
    dataset: DatasetSpec | None = None
    columns: dict[str, str] = {}
    """Field of a case -> column of the file or data set, where their names differ, e.g. `{prompt: question}`."""
    format: str | None = None
    """An adapter's name (eval/adapters): how the published file at `path` is read."""
    path: str | None = None
    """A published data set's file or folder, beside `suite.yaml` or absolute."""
    task: Kind | None = None
    """The kind of cases that name none: `generate` an answer, or `choose` by log-likelihood."""
    generate: dict[str, Any] | None = None
    """A generator's `name` and its options."""
    template: str | tuple[Message, ...] | FileRef | None = None
    """Jinja over a row's columns: the user's prompt, or messages; or the file that holds the prompt."""
    few_shot: int | FewShot | None = None
    """A number: so many of the suite's own cases, drawn by seed. 0: none, where an adapter has some by default."""
    system: str = ""
    scorer: str | dict[str, Any] | None = None
    """For cases that name none."""
    sampling: Sampling | None = None
    """None: the adapter's, else the defaults."""
    repeats: int = 1
    margin: float | None = None
    """δ: how much lower the mean score may be and still count as non-inferior."""
    gates: tuple[str, ...] = (OVERALL,)
    """What decides a comparison: `overall`, or names of scorers (then Holm-adjusted)."""


class Suite(msgspec.Struct, frozen=True, kw_only=True):
    """A suite that has been read and checked."""

    name: str
    version: int
    description: str
    cases: tuple[Case, ...]
    sampling: Sampling
    repeats: int = 1
    margin: float | None = None
    gates: tuple[str, ...] = (OVERALL,)
    source: str = ""
    """The path that it was read from."""
    notes: tuple[str, ...] = ()
    """What a reader should know about how it was made, a sentence each: cases that a generator left out, …"""

    @property
    def digest(self) -> str:
        return "sha256:" + _digest([SCORING_REVISION, self.sampling, self.cases])

    @property
    def slices(self) -> dict[str, int]:
        """Slice -> number of its cases, in order of appearance."""
        counts: dict[str, int] = {}
        for case in self.cases:
            counts[case.slice] = counts.get(case.slice, 0) + 1
        return counts

    def limited(self, count: int | None, seed: int = 0) -> Suite:
        """The suite with `count` of its cases, drawn by `seed`; every slice keeps its share to within one case.

        The order stays, and a case is drawn or not whatever its neighbours are, so that a larger sample by the same
        seed contains (up to the rounding of shares) a smaller one.
        """
        if count is None or count >= len(self.cases):
            return self
        ranked: dict[str, list[Case]] = {}
        for case in sorted(self.cases, key=lambda case: _digest([seed, case.id])):
            ranked.setdefault(case.slice, []).append(case)
        shares = _shares({name: len(cases) for name, cases in ranked.items()}, count)
        picked = {case.id for name, cases in ranked.items() for case in cases[: shares[name]]}
        return msgspec.structs.replace(self, cases=tuple(case for case in self.cases if case.id in picked))

    def sliced(self, names: Sequence[str]) -> Suite:
        """The suite with the cases of these slices only; none named: all. Raises SuiteError naming the slices."""
        if not names:
            return self
        known = self.slices
        for name in names:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                listed = f"it has: {', '.join(filter(None, known))}" if any(known) else "its cases name none"
                raise SuiteError(f"the suite {self.name!r} has no slice {name!r}{hint}; {listed}")
        return msgspec.structs.replace(self, cases=tuple(case for case in self.cases if case.slice in names))


def _shares(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """`count` split in proportion to `sizes` by largest remainders: each share is its quota rounded up or down."""
    total = sum(sizes.values())
    shares = {name: count * size // total for name, size in sizes.items()}
    rest = sorted(sizes, key=lambda name: (-(count * sizes[name] % total), name))
    for name in rest[: count - sum(shares.values())]:
        shares[name] += 1
    return shares


_encoder = msgspec.json.Encoder(order="deterministic")


def _digest(value: Any) -> str:
    return hashlib.sha256(_encoder.encode(value)).hexdigest()


def duplicates(ids: Iterable[str]) -> list[str]:
    """The ids that occur more than once, in order."""
    seen: set[str] = set()
    twice: dict[str, None] = {}
    for name in ids:
        if name in seen:
            twice[name] = None
        seen.add(name)
    return list(twice)
