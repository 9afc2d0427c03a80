"""From samples of real traffic to cases of a suite: what can be asked again, by which scorer, with what target. Pure.

Owns: which samples make cases, the proposals, slices, provenance. Never: I/O (traffic_files), judging an answer.

A case needs something to be scored by. In this order: a schema that the request asked for; a target that the feedback
names; the answer itself, where it was liked; a refusal that should, or should not, have been. What has none of them is
a candidate: everything but its target, with what is missing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

import msgspec

from eval import scorers
from eval.near import NearIndex, normal
from registry.redact import Redactor
from registry.samples import TrafficSample

Wanted = Literal["negative", "positive", "any", "none", "all"]
SliceBy = Literal["segment", "version", "feedback"]
SHORT_CHARS: Final = 60
SHORT_WORDS: Final = 6
"""A target up to here is looked for in the answer; a longer one is compared by meaning."""
EMBEDDING_THRESHOLD: Final = 0.8
TOKENS: Final = (64, 2048)
"""The bounds of a case's `max_tokens`: twice what the answer took, or what the request allowed."""
ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
PASSED: Final = ("tools", "tool_choice", "parallel_tool_calls", "functions", "response_format", "stop")
"""Fields of a request that a case repeats. How answers are drawn is the suite's to say."""
REFUSED: Final = frozenset({"refusal", "refused", "over-refusal", "over_refusal"})
"""Labels that say: it should have answered."""
UNSAFE: Final = frozenset({"unsafe", "harmful", "should-refuse", "should_refuse", "under-refusal"})
"""Labels that say: it should have refused."""
_NAMED: Final = re.compile(
    r"\s*(?:the\s+)?(?:correct(?:\s+answer)?|right(?:\s+answer)?|expected|target|should\s+(?:be|say|have\s+been))"
    r"(?:\s+is)?\s*[:=]\s*(.+)",
    re.IGNORECASE | re.DOTALL,
)
_NUMBER: Final = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")
_PLACEHOLDER: Final = re.compile(r"<[a-z]{2,5}-\d+>")
_NOT_TEXT: Final = re.compile(r"(?:^|\n)\[[a-z_]{1,32}\](?:\n|$)")


class Provenance(msgspec.Struct, kw_only=True):
    """Where a case comes from: one line of `provenance.jsonl`."""

    id: str
    request_id: str
    model: str
    version: str
    digest: str = ""
    """Of the version that answered."""
    at: float
    """When the request came, Unix seconds."""
    feedback: float | None = None
    label: str = ""
    comment: str = ""
    output: str = ""
    """What was answered."""
    target_from: str = ""
    """`feedback`, `comment`, `answer`, `request`, `label`; "" where there is none yet."""
    like_it: int = 0
    """How many other samples of the same batch asked nearly the same."""
    review: str = "pending"
    """`accepted` once a person has looked at it."""


class Draft(msgspec.Struct, kw_only=True):
    """A case to be, as it is written."""

    row: dict[str, Any]
    missing: str
    """What a candidate lacks; "" for a case."""
    provenance: Provenance


class Drafts(msgspec.Struct, kw_only=True):
    """What a batch of samples came to."""

    drafts: list[Draft]
    known: int = 0
    """Samples that are cases already, or say nearly what one says."""
    duplicates: int = 0
    """Samples that say nearly what another one of the batch says."""
    skipped: dict[str, int] = {}
    """Why samples cannot be asked again -> how many."""


def draft(
    samples: Iterable[TrafficSample],
    *,
    known_ids: Iterable[str] = (),
    known_texts: Iterable[str] = (),
    slice_by: Sequence[SliceBy] = ("segment", "feedback"),
    limit: int | None = None,
) -> Drafts:
    """Cases and candidates out of samples; those of which a target is known first, then the worst, then the newest."""
    ids, index, found = set(known_ids), NearIndex(), Drafts(drafts=[], skipped={})
    for number, text in enumerate(known_texts):
        index.add(f"known {number}", text)
    by_name: dict[str, Draft] = {}
    for sample in sorted(samples, key=_rank):
        if reason := _unfit(sample):
            found.skipped[reason] = found.skipped.get(reason, 0) + 1
            continue
        one = _draft(sample, slice_by)
        name = one.provenance.id
        if name in ids:
            found.known += 1
            continue
        other = index.add(name, text_of(one.row))
        if other in by_name:
            by_name[other].provenance.like_it += 1
            found.duplicates += 1
        elif other is not None:
            found.known += 1
        elif limit is None or len(found.drafts) < limit:
            ids.add(name)
            by_name[name] = one
            found.drafts.append(one)
    _cluster(found.drafts)
    return found


def text_of(row: dict[str, Any]) -> str:
    """What of a case's messages tells it from others: all but the system's, which an application repeats."""
    messages = row.get("messages") or [{"role": "user", "content": row.get("prompt", "")}]
    return "\n".join(one["content"] for one in messages if one["role"] != "system")


def _rank(sample: TrafficSample) -> tuple[Any, ...]:
    score = sample.feedback
    return (sample.target is None, score is None, score or 0.0, -sample.started_at, sample.request_id)


def _unfit(sample: TrafficSample) -> str:
    """Why a sample cannot be asked again; "" where it can."""
    if sample.cut == "input":
        return "too large to be kept whole"
    if sample.messages is None:
        return "kept without text (samples: {store: text} keeps it)"
    if any(turn.role not in ROLES for turn in sample.messages):
        return "with results of tools among its messages"
    if any(_NOT_TEXT.search(turn.content) for turn in sample.messages):
        return "with images or other parts that are no text"
    if not sample.messages or not normal(text_of({"messages": _messages(sample)})):
        return "without a user's text"
    return ""


def _messages(sample: TrafficSample) -> list[dict[str, str]]:
    return [{"role": ROLES[turn.role], "content": turn.content} for turn in sample.messages or ()]


def _draft(sample: TrafficSample, slice_by: Sequence[SliceBy]) -> Draft:
    redactor = Redactor(texts=[sample.prompt or "", sample.output or "", sample.target or "", sample.comment or ""])
    messages = redactor.value(_messages(sample))
    output = redactor.text(sample.output or "")
    comment = redactor.text(sample.comment or "")
    given = redactor.text(sample.target or "")
    request: dict[str, Any] = {name: redactor.value(sample.request[name]) for name in PASSED if name in sample.request}
    proposal = propose(sample, output=output, comment=comment, given=given, request=request)
    missing = proposal.missing or _wrong(proposal)
    digest = hashlib.sha256(msgspec.json.encode([sample.request_id, messages])).hexdigest()
    row: dict[str, Any] = {"id": f"t-{digest[:12]}", "slice": _slice(sample, slice_by), "messages": messages}
    row |= {"target": proposal.target} if proposal.target is not None else {}
    row |= {"scorer": proposal.scorer, "max_tokens": _max_tokens(sample)}
    row |= {"request": request} if request else {}
    about = Provenance(
        id=row["id"],
        request_id=sample.request_id,
        model=sample.model,
        version=sample.version,
        digest=sample.digest,
        at=sample.started_at,
        feedback=sample.feedback,
        label=sample.label,
        comment=comment,
        output=output,
        target_from=proposal.target_from,
    )
    if sample.sticky:
        row["cluster"] = f"c-{sample.sticky:x}"
    return Draft(row=row, missing=missing, provenance=about)


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """How a case could be scored."""

    scorer: dict[str, Any]
    target: Any = None
    target_from: str = ""
    missing: str = ""


def propose(sample: TrafficSample, *, output: str, comment: str, given: str, request: dict[str, Any]) -> Proposal:
    """How a case could be scored: by a target that somebody named, else by the schema that the request asked for, else
    by the answer that was liked, else by the label. The texts are redacted."""
    source = "feedback" if given else ""
    if not given and (named := _NAMED.fullmatch(comment)):
        given, source = named[1].strip().strip("\"'"), "comment"
    if given:
        target, scorer = by_shape(given, wants_json=bool(request.get("response_format")))
        missing = "its target was redacted: write one without placeholders" if is_redacted(given) else ""
        return Proposal(scorer=scorer, target=target, target_from=source, missing=missing)
    if (schema := schema_of(request)) is not None:
        return Proposal(scorer={"name": "json_schema", "schema": schema}, target_from="request")
    if (sample.feedback or 0) > 0 and (liked := _liked(sample, output)) is not None:
        return Proposal(scorer=liked[1], target=liked[0], target_from="answer")
    if sample.label in REFUSED | UNSAFE:
        return Proposal(scorer={"name": "refusal", "expect": sample.label in UNSAFE}, target_from="label")
    rubric = "Does the answer do what was asked, correctly and completely?"
    rubric += f" A user said of an earlier answer: {comment!r}" if comment else ""
    return Proposal(scorer={"name": "judge", "rubric": rubric}, missing="a `target`, or a scorer that needs none")


def _liked(sample: TrafficSample, output: str) -> tuple[Any, dict[str, Any]] | None:
    """Target and scorer of an answer that should come again; None where it was cut off or says nothing."""
    if sample.tool_calls:
        calls = [_call(call) for call in sample.tool_calls]
        return (calls, {"name": "tool_call"}) if None not in calls else None
    if not output.strip() or sample.finish_reason == "length" or sample.cut or sample.outcome != "completed":
        return None
    return by_shape(output.strip())


def schema_of(request: dict[str, Any]) -> dict[str, Any] | None:
    """The JSON schema that a request asks its answer to satisfy."""
    form = request.get("response_format")
    if not isinstance(form, dict):
        return None
    inner = form.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, dict) else form.get("schema")
    return schema if isinstance(schema, dict) and schema else None


def _wrong(proposal: Proposal) -> str:
    """Why a scorer refuses what is proposed for it; "" where it does not."""
    options = {name: value for name, value in proposal.scorer.items() if name != "name"}
    try:
        scorers.build(proposal.scorer["name"], options, proposal.target)
    except ValueError as error:
        return str(error)
    return ""


def is_redacted(target: Any) -> bool:
    """Whether a placeholder stands in a target: an answer will rarely have the same."""
    return bool(_PLACEHOLDER.search(target if isinstance(target, str) else msgspec.json.encode(target).decode()))


def by_shape(target: Any, *, wants_json: bool = False) -> tuple[Any, dict[str, Any]]:
    """A target and its scorer, by what the target looks like."""
    if isinstance(target, int | float):
        return target, {"name": "numeric"}
    if not isinstance(target, str):
        return target, {"name": "json"}
    if wants_json or target[:1] in "{[":
        try:
            value = msgspec.json.decode(target)
        except msgspec.DecodeError:
            value = None
        if isinstance(value, dict | list):
            return value, {"name": "json"}
    if _NUMBER.fullmatch(target):
        number = float(target.replace(",", ""))
        return int(number) if number.is_integer() else number, {"name": "numeric"}
    if len(target) <= SHORT_CHARS and len(target.split()) <= SHORT_WORDS:
        return target.rstrip("."), {"name": "contains"}
    return target, {"name": "embedding", "threshold": EMBEDDING_THRESHOLD}


def _call(call: dict[str, Any]) -> dict[str, Any] | None:
    try:
        arguments = msgspec.json.decode(call.get("arguments") or "{}")
    except msgspec.DecodeError:
        return None
    return {"name": call.get("name", ""), "arguments": arguments} if isinstance(arguments, dict) else None


def _slice(sample: TrafficSample, slice_by: Sequence[SliceBy]) -> str:
    score = sample.feedback
    sign = "" if score is None else "negative" if score < 0 else "positive" if score > 0 else "neutral"
    parts = {"segment": sample.segment, "version": sample.version, "feedback": sample.label or sign or "no feedback"}
    return "/".join(parts[name] for name in slice_by if parts[name])


def _max_tokens(sample: TrafficSample) -> int:
    allowed = next(
        (
            sample.request[name]
            for name in ("max_completion_tokens", "max_output_tokens", "max_tokens")
            if isinstance(sample.request.get(name), int)
        ),
        2 * sample.completion_tokens,
    )
    return min(max(int(allowed), TOKENS[0]), TOKENS[1])


def _cluster(drafts: Sequence[Draft]) -> None:
    """Cases of one conversation or user are not independent: they share a cluster. One of its own says nothing."""
    times: dict[str, int] = {}
    for one in drafts:
        times[one.row.get("cluster", "")] = times.get(one.row.get("cluster", ""), 0) + 1
    for one in drafts:
        if times[one.row.get("cluster", "")] < 2:
            one.row.pop("cluster", None)
