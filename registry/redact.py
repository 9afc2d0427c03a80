"""Taking what names a person or opens a door out of a text: addresses, numbers, keys. Pure.

Owns: the kinds, how each is recognised, the placeholders. Never: I/O, deciding which texts are kept.

Every find becomes `<kind-N>`; the same value has the same N throughout one sample, so that a conversation stays one.
Time is linear in the text's length: no pattern looks at a character more than a fixed number of times.

What is redacted has nothing left to redact: kinds are looked for in the order of KINDS, and no pattern's edges can be
changed by a later one's placeholder. Numbers and codes end where letters and digits do; an address and a key take all
that could belong to them; an IPv6 address is none where it touches a placeholder.

It finds forms, not meanings: names, streets and what people say of themselves stay. It is a net, no proof.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, get_args

Kind = Literal["email", "key", "iban", "card", "ip", "phone"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
"""In the order in which they are looked for."""

_PLACEHOLDER: Final = re.compile(rf"<({'|'.join(KINDS)})-([0-9]{{1,6}})>")
_PLACEHOLDER_ENDS: Final = re.compile(rf"{_PLACEHOLDER.pattern}\Z")
_PLACEHOLDER_MAX: Final = 14
"""Characters of the longest one."""
_EDGE: Final = "(?<![A-Za-z0-9])"
_END: Final = "(?![A-Za-z0-9])"

_EMAIL: Final = re.compile(
    r"(?<![\w.%+-])[\w.%+-]++@(?:[\w-]++\.)+[^\W\d_]{2}[\w-]*+(?:[\w.%+-]*+@[\w.%+@-]*+)?"  # another right behind it
)
_KEY: Final = re.compile(
    rf"""
      -----BEGIN[ ](?:[A-Z]{{1,16}}[ ]){{0,3}}PRIVATE[ ]KEY-----(?:(?!-----END)[\s\S])*+(?:-----END[^-\n]{{0,64}}-----)?
    | (?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{{8,}}+\.[A-Za-z0-9_-]{{8,}}+(?:\.[A-Za-z0-9_-]*+)?
    | {_EDGE}(?P<token>
        sk-[A-Za-z0-9_-]{{16,}}+
      | [spr]k_(?:live|test)_[A-Za-z0-9_-]{{10,}}+
      | my[at]_[A-Za-z0-9_-]{{16,}}+
      | gh[pousr]_[A-Za-z0-9_-]{{20,}}+
      | github_pat_[A-Za-z0-9_-]{{20,}}+
      | glpat-[A-Za-z0-9_-]{{16,}}+
      | xox[abeoprs]-[A-Za-z0-9_-]{{10,}}+
      | hf_[A-Za-z0-9_-]{{20,}}+
      | AIza[A-Za-z0-9_-]{{30,}}+
      | (?:AKIA|ASIA)[A-Za-z0-9_-]{{16,}}+
      )
    | {_EDGE}[Bb]earer[ \t]{{1,4}}(?P<bearer>[A-Za-z0-9._~+/=-]{{16,}}+)
    | {_EDGE}(?i:api[_-]?key|access[_-]?key|secret[_-]?key|secret|token|password|passwd|pwd)["']?
      [ \t]{{0,4}}(?:[:=]|=>)[ \t]{{0,4}}["']?(?P<value>[^\s"'<>]{{8,}}+)
    """,
    re.VERBOSE,
)
_IBAN: Final = re.compile(rf"{_EDGE}[A-Z]{{2}}[0-9]{{2}}(?=[ ]?[A-Z0-9])")
_CARD: Final = re.compile(rf"{_EDGE}[2-6][0-9 -]{{11,37}}+")
_IPV6: Final = re.compile(r"(?<![A-Za-z0-9:.])(?=[0-9A-Fa-f]{0,4}:)[0-9A-Fa-f:.]++(?![A-Za-z0-9])(?!<[a-z]{2,5}-[0-9])")
_IPV4: Final = re.compile(rf"{_EDGE}[0-9]{{1,3}}(?:\.[0-9]{{1,3}}){{3}}{_END}")
_PHONE: Final = re.compile(
    rf"""
    (?:
        \+[0-9](?:[ .()/-]{{0,2}}[0-9]){{7,14}}
      | (?:{_EDGE}(?:1[ .-])?(?:\([0-9]{{3}}\)[ ]?|[0-9]{{3}}[ .-])|\([0-9]{{3}}\)[ ]?)[0-9]{{3}}[ .-][0-9]{{4}}
      | {_EDGE}0[0-9](?:[ .()/-]{{0,2}}[0-9]){{7,11}}
    ){_END}
    """,
    re.VERBOSE,
)
_IBANS: Final = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 "
    "FI18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 "
    "LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 "
    "SA24 SC31 SE24 SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20"
)
_IBAN_LENGTHS: Final = {entry[:2]: int(entry[2:]) for entry in _IBANS.split()}
"""Country -> characters of an IBAN (ISO 13616 registry)."""


class Redactor:
    """Redacts the texts of one sample. `kinds` are those to look for; `texts` are all that may have placeholders
    already, whose numbers are not given again."""

    def __init__(self, kinds: Iterable[Kind] = KINDS, texts: Iterable[str] = ()) -> None:
        self._kinds = frozenset(kinds)
        self._numbers: dict[tuple[Kind, str], int] = {}
        self._last: dict[str, int] = dict.fromkeys(KINDS, 0)
        for text in texts:
            self._note(text)

    @property
    def counts(self) -> dict[str, int]:
        """Kind -> how many different ones were replaced."""
        found: dict[str, int] = {}
        for kind, _ in self._numbers:
            found[kind] = found.get(kind, 0) + 1
        return found

    def text(self, text: str) -> str:
        """The text with placeholders."""
        self._note(text)
        for kind in KINDS:
            if kind in self._kinds:
                text = _FINDERS[kind](text, partial(self._placeholder, kind))
        return text

    def value(self, value: Any) -> Any:
        """A JSON value with every text in it redacted; the names of fields stay."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {name: self.value(one) for name, one in value.items()}
        if isinstance(value, Sequence):
            return [self.value(one) for one in value]
        return value

    def _note(self, text: str) -> None:
        if "<" in text:
            for kind, number in _PLACEHOLDER.findall(text):
                self._last[kind] = max(self._last[kind], int(number))

    def _placeholder(self, kind: Kind, value: str) -> str:
        known = (kind, _normal(kind, value))
        number = self._numbers.get(known)
        if number is None:
            self._last[kind] += 1
            number = self._numbers[known] = self._last[kind]
        return f"<{kind}-{number}>"


def redact(texts: Sequence[str], kinds: Iterable[Kind] = KINDS) -> tuple[list[str], dict[str, int]]:
    """The texts of one sample with placeholders, and how many different values of each kind were replaced."""
    redactor = Redactor(kinds, texts)
    return [redactor.text(text) for text in texts], redactor.counts


Replace = Callable[[str], str]


def _normal(kind: Kind, value: str) -> str:
    """What makes two values the same one."""
    if kind in ("phone", "card"):
        return re.sub(r"[^0-9]", "", value)
    if kind == "iban":
        return value.replace(" ", "")
    return value.lower() if kind in ("email", "ip") else value


def _emails(text: str, replace: Replace) -> str:
    return _EMAIL.sub(lambda found: replace(found[0]), text) if "@" in text else text


def _keys(text: str, replace: Replace) -> str:
    def put(found: re.Match[str]) -> str:
        group = found.lastgroup
        if group is None:
            return replace(found[0])
        secret = found[group]
        if group != "value" and not any(char.isdigit() for char in secret):
            return found[0]  # `sk-` and `Bearer` begin words too
        return found[0][: found.start(group) - found.start()] + replace(secret)

    return _KEY.sub(put, text)


def _walk(pattern: re.Pattern[str], text: str, replace: Replace, stop: Callable[[str, re.Match[str]], int]) -> str:
    """Replace what begins as `pattern` does and ends where `stop` says (-1: it is none; then a later start counts)."""
    parts: list[str] = []
    done = at = 0
    while (found := pattern.search(text, at)) is not None:
        end = stop(text, found)
        if end < 0:
            at = found.start() + 1
            continue
        parts += [text[done : found.start()], replace(text[found.start() : end])]
        done = at = end
    return "".join([*parts, text[done:]]) if parts else text


def _iban_end(text: str, found: re.Match[str]) -> int:
    length = _IBAN_LENGTHS.get(found[0][:2], 0)
    at, characters = found.end(), found[0]
    while length and len(characters) < length:
        if text[at : at + 1] == " ":
            at += 1
        char = text[at : at + 1]
        if not char.isascii() or not (char.isdigit() or char.isupper()):
            return -1
        characters += char
        at += 1
    if not length or _is_alnum(text[at : at + 1]):
        return -1
    digits = "".join(str(int(char, 36)) for char in characters[4:] + characters[:4])
    return at if int(digits) % 97 == 1 else -1


def _card_end(text: str, found: re.Match[str]) -> int:
    """The longest run of 13 to 19 digits, alone or with single blanks or dashes, that an issuer could have given."""
    digits, end = "", -1
    run = found[0]
    for place, char in enumerate(run):
        if not char.isdigit():
            if not run[place - 1].isdigit():
                break
            continue
        digits += char
        if len(digits) > 19:
            break
        at = found.start() + place + 1
        if len(digits) in _card_lengths(digits) and not _is_alnum(text[at : at + 1]) and _luhn(digits):
            end = at
    return end


def _card_lengths(digits: str) -> tuple[int, ...]:
    """How many digits a card that begins so has (ISO/IEC 7812 issuers in use)."""
    if digits[0] == "4":
        return (13, 16, 19)
    if digits[0] == "6":
        return (16, 17, 18, 19)
    if digits[0] == "3":
        return (15,) if digits[1:2] in ("4", "7") else (14, 16, 17, 18, 19)
    return (16,)


def _luhn(digits: str) -> bool:
    total = 0
    for place, char in enumerate(reversed(digits)):
        value = int(char) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _ibans(text: str, replace: Replace) -> str:
    return _walk(_IBAN, text, replace, _iban_end)


def _cards(text: str, replace: Replace) -> str:
    return _walk(_CARD, text, replace, _card_end)


def _addresses(text: str, replace: Replace) -> str:
    def ipv6(found: re.Match[str]) -> str:
        whole = found[0]
        address = whole.rstrip(":.") if not whole.endswith("::") else whole
        if _PLACEHOLDER_ENDS.search(text, max(0, found.start() - _PLACEHOLDER_MAX), found.start()):
            return whole
        if address.count(":") < 2 or sum(char.isalnum() for char in address) < 3 or len(address) > 45:
            return whole
        try:
            ipaddress.IPv6Address(address)
        except ValueError:
            return whole
        return replace(address) + whole[len(address) :]

    def ipv4(found: re.Match[str]) -> str:
        return replace(found[0]) if all(int(part) <= 255 for part in found[0].split(".")) else found[0]

    if ":" in text:
        text = _IPV6.sub(ipv6, text)
    return _IPV4.sub(ipv4, text) if "." in text else text


def _phones(text: str, replace: Replace) -> str:
    return _PHONE.sub(lambda found: replace(found[0]), text)


def _is_alnum(char: str) -> bool:
    return char.isascii() and char.isalnum()


_FINDERS: Final[Mapping[Kind, Callable[[str, Replace], str]]] = {
    "email": _emails,
    "key": _keys,
    "iban": _ibans,
    "card": _cards,
    "ip": _addresses,
    "phone": _phones,
}
