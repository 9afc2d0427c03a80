"""What a person or a door could be known by is taken out of texts: completely, once, and in bounded time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.redact import KINDS, Redactor, redact

SECRETS = {
    "email": ["ann.b+x@example.co.uk", "Ünal@exämple.de", "a_b%c@mail-1.example.museum", "x@a.io"],
    "key": [
        "sk-proj-abcDEF0123456789abcd",
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_0123456789abcdefghij0123456789abcdef",
        "xoxb-123456789012-abcdefABCDEF",
        "hf_abcdefghijklmnopqrst12345",
        "AIzaSyA0123456789abcdefghijklmnopqrstuv",
        "mya_0123456789abcdefXYZ-_",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP-mB92K27uhbUJU1p1r",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEow+/=\nabc\n-----END RSA PRIVATE KEY-----",
    ],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "NO9386011117947"],
    "card": ["4111111111111111", "5500-0000-0000-0004", "3782 822463 10005", "6011 1111 1111 1117", "4222222222222"],
    "ip": ["10.0.0.1", "255.255.255.255", "2001:db8::8a2e:370:7334", "fe80::1ff:fe23:4567:890a", "::ffff:1.2.3.4"],
    "phone": [
        "+49 (0)89 1234567",
        "(555) 123-4567",
        "555.123.4567",
        "1-800-555-0199",
        "06 12 34 56 78",
        "+14155550123",
    ],
}
PLAIN = [
    "The risk-management-guidelines-and-other-things are at task-force-recommendations-of-may.",
    "On 2024-01-15 at 12:34:56, version 3.11.2, 1700000000 s, pi 3.14159265358979, $1,234,567.89, 1234567812345678.",
    "std::string a::b 10:20 f(x) = x@y, @user, #42, 100 000 items, ISBN 978-3-16-148410-0",
    "Bearer of good news, token-based, password: short, `sk-learn`",
]


@pytest.mark.parametrize(("kind", "secret"), [(kind, one) for kind, found in SECRETS.items() for one in found])
def test_every_kind_is_found_within_a_sentence(kind: str, secret: str) -> None:
    (text,), counts = redact([f"Please use {secret}, or {secret}; not else."])
    assert text == f"Please use <{kind}-1>, or <{kind}-1>; not else."
    assert counts == {kind: 1}


@pytest.mark.parametrize("text", PLAIN)
def test_what_only_looks_alike_stays(text: str) -> None:
    assert redact([text]) == ([text], {})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Authorization: Bearer abcdef0123456789abcdef", "Authorization: Bearer <key-1>"),
        ('{"api_key": "correct-horse"}', '{"api_key": "<key-1>"}'),
        ("password=hunter2hunter2&x=1", "password=<key-1>"),
        ("DB_PASSWORD = 'swordfish9'", "DB_PASSWORD = '<key-1>'"),
    ],
)
def test_of_an_assignment_the_value_goes(text: str, wanted: str) -> None:
    assert redact([text])[0] == [wanted]


def test_an_address_goes_whatever_stands_before_it() -> None:
    assert redact(["2>2001:db8::8a2e:370:7334"])[0] == ["2><ip-1>"]
    assert redact(["555.123.4567>2001:db8::8a2e:370:7334"])[0] == ["<phone-1>><ip-1>"]


def test_one_value_has_one_number_throughout_a_sample() -> None:
    texts, counts = redact(["a@x.org and B@x.org", "+1 415 555 0123, again A@X.ORG", "+1-415-555-0123"])
    assert texts == ["<email-1> and <email-2>", "<phone-1>, again <email-1>", "<phone-1>"]
    assert counts == {"email": 2, "phone": 1}


def test_numbers_that_are_there_are_not_given_again() -> None:
    assert redact(["<email-3> wrote to new@x.org", "and <email-1>"])[0] == [
        "<email-3> wrote to <email-4>",
        "and <email-1>",
    ]


def test_addresses_without_anything_between_them_go_together() -> None:
    assert redact(["to ann.b@example.org.ann.c@example.org."])[0] == ["to <email-1>"]


def test_only_the_kinds_asked_for_go() -> None:
    assert redact(["a@x.org at 10.0.0.1"], kinds=("ip",))[0] == ["a@x.org at <ip-1>"]


def test_values_of_json_are_redacted_and_names_stay() -> None:
    value = {"a@x.org": ["b@x.org", 5, None, {"c": "b@x.org"}], "n": True}
    assert Redactor().value(value) == {"a@x.org": ["<email-1>", 5, None, {"c": "<email-1>"}], "n": True}


PIECES = st.one_of(
    st.sampled_from([one for found in SECRETS.values() for one in found]),
    st.sampled_from(
        [*"@.:-+()/<> 0123456789aF", "  ", "::", "-----", "sk-", "eyJ", "Bearer ", "token=", "<key-1>", "@x.de"]
    ),
    st.text(alphabet="0123456789 -.:()+", max_size=25),
    st.text(alphabet="abcdefABCDEF0123456789@.-_+%:<>", max_size=25),
    st.text(max_size=8),
)


@given(st.lists(PIECES, max_size=12), st.sets(st.sampled_from(KINDS), min_size=1))
def test_what_is_redacted_has_nothing_left_to_redact(pieces: list[str], kinds: set[str]) -> None:
    chosen = [kind for kind in KINDS if kind in kinds]
    once, _ = redact(["".join(pieces)], chosen)
    twice, counts = redact(once, chosen)
    assert twice == once
    assert counts == {}


@given(st.sampled_from([(kind, one) for kind, found in SECRETS.items() for one in found]), st.text(max_size=20))
def test_a_secret_between_words_never_survives(secret: tuple[str, str], text: str) -> None:
    (found,), _ = redact([f"{text}\n{secret[1]}\n{text}"])
    assert secret[1] not in found


HOSTILE = [
    "a", "a.", "@", "a@", "a@b.", "a@a.a.", "0", "0 ", "4-", "4 4", "+1 ", "(555) ", "1.", "1.1.1.1.", ":", "f:", "::1",
    "eyJ", "eyJ-", "eyJa.", "eyJaaaaaaaa.", "sk-", "-----BEGIN PRIVATE KEY-----", "-----", "Bearer ", "token=", "DE89 ",
    "AA00", "DE89370400440532013", "<email-1>", "<", "password : ", "é", "\u0660", "_", "%+-.",
]  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE)
def test_hostile_texts_take_linear_time(unit: str) -> None:
    """Eight times as long takes about eight times as long; quadratic would be 64 times."""

    def seconds(size: int) -> float:
        text = (unit * (size // len(unit) + 1))[:size]
        began = time.process_time()
        redact([text])
        return time.process_time() - began

    short = max(min(seconds(4_000) for _ in range(3)), 5e-4)
    assert min(seconds(32_000) for _ in range(3)) < 30 * short
