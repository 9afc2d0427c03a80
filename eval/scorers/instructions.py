"""Verifiable instructions: was the answer written as it was asked for?

Owns: the instructions of IFEval (Zhou et al. 2023, arXiv 2311.07911) under their published ids and keyword names, and
the strict and the loose reading. Never: I/O, judgement by a model.

Differences from the published script: keywords are taken as text, not as regular expressions; languages are told apart
by py3langid in place of langdetect; sentences and capital words are counted by rules, in place of NLTK's models.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal, get_type_hints

import msgspec

from eval.scorers import language as languages
from eval.scorers.base import NO_TOOLS, Answered, Score, Scorer, ScorerError, Tools

Relation = Literal["at least", "less than"]

_ABBREVIATIONS: Final = frozenset(("mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "vs", "etc", "no"))
_QUOTES: Final = "\"'\u2018\u2019\u201c\u201d"
_SENTENCE_END: Final = re.compile(
    rf"([.!?\u2026]+)[{_QUOTES})\]]*(?:\s+[{_QUOTES}(\[]*(?=(\S))|\s*\Z)|[\u3002\uff01\uff1f]"
)
_INITIALS: Final = re.compile(r"\w(?:\.\w)*")
_CAPITAL_WORD: Final = re.compile(r"\w+(?:[-.&/]\w+)*")


def _compares(count: int, relation: Relation, bound: int) -> bool:
    return count >= bound if relation == "at least" else count < bound


def sentences(text: str) -> int:
    """How many sentences. A point ends none after an abbreviation or an initial, or within a number or a name; three
    points end one before a capital."""
    count, start = 0, 0
    for match in _SENTENCE_END.finditer(text):
        words = text[start : match.start()].split()
        last = words[-1].strip(_QUOTES + "([").casefold() if words else ""
        follows = match[2]
        if match[1] == "." and follows and (last in _ABBREVIATIONS or _INITIALS.fullmatch(last)):
            continue
        if match[1] in {"...", "\u2026"} and follows and follows.islower():
            continue
        count += bool(words)
        start = match.end()
    return count + bool(re.search(r"\w", text[start:]))


def _existence(text: str, *, keywords: tuple[str, ...]) -> bool:
    return all(keyword.casefold() in text.casefold() for keyword in keywords)


def _frequency(text: str, *, keyword: str, frequency: int, relation: Relation) -> bool:
    return _compares(text.casefold().count(keyword.strip().casefold()), relation, frequency)


def _forbidden_words(text: str, *, forbidden_words: tuple[str, ...]) -> bool:
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in forbidden_words)


def _letter_frequency(text: str, *, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    return _compares(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


def _response_language(text: str, *, language: str) -> bool:
    return languages.is_in(text, language)


def _number_sentences(text: str, *, num_sentences: int, relation: Relation) -> bool:
    return _compares(sentences(text), relation, num_sentences)


def _number_words(text: str, *, num_words: int, relation: Relation) -> bool:
    return _compares(len(re.findall(r"\w+", text)), relation, num_words)


def _number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """Divided by `***`; only the first and the last may be empty, and do not count then."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    if not all(parts[1:-1]):
        return False
    return sum(map(bool, parts)) == num_paragraphs


def _nth_paragraph_first_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Divided by blank lines, of which empty paragraphs do not count; the n-th is that of the division."""
    parts = text.split("\n\n")
    count = sum(1 for part in parts if part.strip())
    if count != num_paragraphs or not 1 <= nth_paragraph <= count or not parts[nth_paragraph - 1].strip():
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return re.split(r"""[.,?!'"]""", word)[0].lower() == first_word.strip().lower()


def _number_placeholders(text: str, *, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def _postscript(text: str, *, postscript_marker: str) -> bool:
    marker = postscript_marker.strip().lower()
    patterns = {"p.p.s": r"p\.\s?p\.\s?s", "p.s.": r"p\.\s?s\."}
    return re.search(patterns.get(marker, re.escape(marker)), text.lower()) is not None


def _number_bullet_lists(text: str, *, num_bullets: int) -> bool:
    return len(re.findall(r"^\s*(?:\*[^*].*|-.*)$", text, re.MULTILINE)) == num_bullets


def _constrained_response(text: str) -> bool:
    return any(f"My answer is {word}." in text for word in ("yes", "no", "maybe"))


def _number_highlighted_sections(text: str, *, num_highlights: int) -> bool:
    single = (found.strip("*") for found in re.findall(r"\*[^\n*]*\*", text))
    double = (found[2:-2] for found in re.findall(r"\*\*[^\n*]*\*\*", text))
    return sum(1 for found in (*single, *double) if found.strip()) >= num_highlights


def _multiple_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", text)) >= num_sections


def _json_format(text: str) -> bool:
    inner = re.sub(r"\A```(?:json)?|```\Z", "", text.strip(), flags=re.IGNORECASE)
    try:
        json.loads(inner)
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str) -> bool:
    return any(found.strip("<>").strip() for found in re.findall(r"<<[^\n]+>>", text))


def _two_responses(text: str) -> bool:
    """Divided by six asterisks; different."""
    parts = [part.strip() for part in text.split("******")]
    given = [part for part in parts if part]
    return all(parts[1:-1]) and len(given) == 2 and given[0] != given[1]


def _repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _end_checker(text: str, *, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quotation(text: str) -> bool:
    inner = text.strip()
    return len(inner) > 1 and inner[0] == inner[-1] == '"'


def _capital_word_frequency(text: str, *, capital_frequency: int, capital_relation: Relation) -> bool:
    return _compares(sum(map(str.isupper, _CAPITAL_WORD.findall(text))), capital_relation, capital_frequency)


def _english_capital(text: str) -> bool:
    return text.isupper() and languages.may_be_english(text)


def _english_lowercase(text: str) -> bool:
    return text.islower() and languages.may_be_english(text)


def _no_comma(text: str) -> bool:
    return "," not in text


INSTRUCTIONS: Final[Mapping[str, Callable[..., bool]]] = {
    "keywords:existence": _existence,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _response_language,
    "length_constraints:number_sentences": _number_sentences,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:number_words": _number_words,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "detectable_content:number_placeholders": _number_placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _number_bullet_lists,
    "detectable_format:constrained_response": _constrained_response,
    "detectable_format:number_highlighted_sections": _number_highlighted_sections,
    "detectable_format:multiple_sections": _multiple_sections,
    "detectable_format:json_format": _json_format,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat_prompt,
    "startend:end_checker": _end_checker,
    "startend:quotation": _quotation,
    "change_case:capital_word_frequency": _capital_word_frequency,
    "change_case:english_capital": _english_capital,
    "change_case:english_lowercase": _english_lowercase,
    "punctuation:no_comma": _no_comma,
}
_WITH_LANGUAGE: Final = frozenset({_response_language, _english_capital, _english_lowercase})


def readings(text: str) -> Iterator[str]:
    """The loose reading: the answer as it is, without its first or last line (or both), and without asterisks."""
    lines = text.split("\n")
    for part in (lines, lines[1:], lines[:-1], lines[1:-1]):
        whole = "\n".join(part).strip() if part is not lines else text
        yield whole
        yield whole.replace("*", "")


class Instructions(Scorer, frozen=True):
    """The share of the target's instructions that the answer follows (or, with `count: all`, whether it follows all).

    The target is a list of `{"id": "length_constraints:number_words", "num_words": 100, "relation": "at least"}`, or
    `{"instruction_id_list": […], "kwargs": […]}` as published; keywords that are null are left out. An empty answer
    follows nothing.
    """

    mode: Literal["strict", "loose"] = "strict"
    """`loose`: an instruction counts as followed where one of `readings` follows it."""
    count: Literal["share", "all"] = "share"

    def check(self, target: Any) -> None:
        for item in _items(target):
            _bound(item)

    def score(self, answered: Answered, target: Any, tools: Tools = NO_TOOLS) -> Score:
        texts = list(readings(answered.text)) if self.mode == "loose" else [answered.text]
        texts = [text for text in texts if text.strip()]
        items = _items(target)
        missed = []
        for item in items:
            followed, keywords = _bound(item)
            if not any(followed(text, **keywords) for text in texts):
                missed.append(item["id"])
        share = 1.0 - len(missed) / len(items)
        value = share if self.count == "share" else float(not missed)
        return Score(value, f"not followed: {', '.join(missed)}" if missed else "")


def _items(target: Any) -> list[dict[str, Any]]:
    """The target's instructions, one mapping each. Raises ScorerError."""
    if isinstance(target, dict) and target.keys() == {"instruction_id_list", "kwargs"}:
        names, keywords = target["instruction_id_list"], target["kwargs"]
        if isinstance(names, list) and isinstance(keywords, list) and len(names) == len(keywords):
            target = [{"id": name} | (given or {}) for name, given in zip(names, keywords, strict=True)]
    if not isinstance(target, list) or not target or not all(isinstance(item, dict) for item in target):
        raise ScorerError(
            "the scorer 'instructions' needs a list of instructions as its target, e.g. "
            '[{"id": "length_constraints:number_words", "num_words": 100, "relation": "at least"}]'
        )
    return target


def _bound(item: Mapping[str, Any]) -> tuple[Callable[..., bool], dict[str, Any]]:
    """The instruction's function and its keywords, checked. Raises ScorerError."""
    name = item.get("id")
    followed = INSTRUCTIONS.get(name) if isinstance(name, str) else None
    if followed is None:
        close = difflib.get_close_matches(str(name), INSTRUCTIONS, n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]!r}?)" if close else f"; known: {', '.join(INSTRUCTIONS)}"
        raise ScorerError(f"unknown instruction {name!r}{hint}")
    given = {key: value for key, value in item.items() if key != "id" and value is not None}
    wanted = list(inspect.signature(followed).parameters)[1:]
    if unknown := given.keys() - set(wanted):
        raise ScorerError(f"the instruction {name!r} has no keyword {min(unknown)!r}; it takes: {_listed(wanted)}")
    if missing := [key for key in wanted if key not in given]:
        raise ScorerError(f"the instruction {name!r} needs the keyword {missing[0]!r}; it takes: {_listed(wanted)}")
    hints = get_type_hints(followed)
    for key, value in given.items():
        whole = int(value) if isinstance(value, float) and value.is_integer() else value
        try:
            given[key] = msgspec.convert(whole, hints[key])
        except msgspec.ValidationError as error:
            raise ScorerError(f"the instruction {name!r}: {key}: {error}") from error
    if followed in _WITH_LANGUAGE:
        languages.identifier()
    return followed, given


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
