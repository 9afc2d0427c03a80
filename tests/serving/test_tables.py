"""Tables in terminals of every width: nothing is lost, nothing is wider, no name or number is broken."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from serving.commands.tables import LONG_WORD, Column, FittingTable, Flow, fit

WORDS = st.text("abcdefgh@/.", min_size=1, max_size=14)
ROWS = st.lists(st.tuples(WORDS, WORDS, WORDS, WORDS), min_size=1, max_size=4)
HEADINGS = ("version", "state of it", ">in flight", ">per 1k requests")


def drawn(what: FittingTable | Flow, width: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, highlight=False).print(what)
    return [line.rstrip() for line in file.getvalue().splitlines()]


@given(rows=ROWS, width=st.integers(40, 160))
def test_every_cell_is_whole_at_every_width(rows: list[tuple[str, str, str, str]], width: int) -> None:
    lines = drawn(FittingTable(HEADINGS, rows), width)
    words = " ".join(lines).split()
    assert all(cell in words for row in rows for cell in row)
    assert all(len(line) <= width for line in lines)


@given(columns=st.lists(st.tuples(WORDS, WORDS, st.booleans()), min_size=1, max_size=8), width=st.integers(10, 200))
def test_what_fits_fits(columns: list[tuple[str, str, bool]], width: int) -> None:
    made = [Column(Text(heading), (Text(cell),), is_right) for heading, cell, is_right in columns]
    found = fit(made, width)
    if found is None:
        assert sum(column.narrowest for column in made) + len(made) - 1 > width
    else:
        gap, widths = found
        assert sum(widths) + gap * (len(made) - 1) <= width
        assert all(have >= column.narrowest for have, column in zip(widths, made, strict=True))


def test_three_layouts() -> None:
    table = FittingTable(HEADINGS, [("assistant@v1 champion", "ready", "0", "0.0335 USD")], title="models")
    assert drawn(table, 120)[:2] == ["models", "version                 state of it   in flight   per 1k requests"]
    narrow = drawn(table, 38)
    assert "per 1k" not in narrow[2], "a heading goes on below"
    assert any("assistant@v1 " in line and "0.0335 USD" in line for line in narrow)
    assert drawn(table, 30) == [
        "models",
        "assistant@v1 champion",
        "  state of it ready",
        "  in flight 0",
        "  per 1k requests 0.0335 USD",
    ]


def test_a_hash_may_be_folded() -> None:
    digest = "sha256:" + 64 * "a"
    lines = drawn(FittingTable(("step", "why"), [("keep", digest)]), 40)
    assert "".join(line.removeprefix("keep").strip() for line in lines[2:]) == digest
    assert len(digest) > LONG_WORD


def test_a_line_breaks_between_its_parts() -> None:
    parts = ("[bold]one two[/]", "three four", "five")
    assert drawn(Flow(parts), 80) == ["one two  ·  three four  ·  five"]
    assert drawn(Flow(parts), 18) == ["one two", "three four", "five"]
