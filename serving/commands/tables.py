"""Tables that stay readable however narrow the terminal is.

Owns: which of three layouts fits: roomy; narrow, with headings on several lines; or one paragraph per row.
Never: fetching or formatting values. A name or a number is never broken in two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

PADDINGS: Final[dict[int, tuple[int, int, int, int]]] = {3: (0, 1, 0, 1), 2: (0, 1, 0, 0), 1: (0, 0, 0, 0)}
"""Spaces between columns, the roomiest first -> padding of cells: top, right, bottom, left. The divider is one more."""
LONG_WORD = 24
"""A longer word (a hash, a path) may be folded."""
INDENT = 2


@dataclass(frozen=True, slots=True)
class Column:
    """A heading with its cells. Cells on the right are numbers and stay on one line; those on the left may wrap."""

    heading: Text
    cells: tuple[Text, ...]
    is_right: bool

    @property
    def widest(self) -> int:
        """Columns that it takes with nothing wrapped."""
        return max([self.heading.cell_len, *(widest_line(cell) for cell in self.cells)])

    @property
    def narrowest(self) -> int:
        """Columns that it takes with headings, and cells on the left, wrapped at words."""
        cells = (widest_line(cell) if self.is_right else longest_word(cell) for cell in self.cells)
        return max([longest_word(self.heading), *cells])


def widest_line(text: Text) -> int:
    """Columns of the longest line."""
    return max((line.cell_len for line in text.split("\n")), default=0)


def longest_word(text: Text) -> int:
    """Columns of the longest word, of which more than `LONG_WORD` may be folded."""
    return max((min(Text(word).cell_len, LONG_WORD) for word in text.plain.split()), default=0)


def fit(columns: Sequence[Column], width: int) -> tuple[int, list[int]] | None:
    """The gap and the columns' widths that fit `width`; None where not even the narrowest do."""
    least = [column.narrowest for column in columns]
    for gap in PADDINGS:
        room = width - gap * (len(columns) - 1)
        if sum(least) <= room:
            return gap, _spread(least, [column.widest for column in columns], room)
    return None


def _spread(widths: Sequence[int], wanted: Sequence[int], room: int) -> list[int]:
    """The widths grown towards what is wanted, those that lack least first, as far as the room goes."""
    grown = list(widths)
    left = room - sum(widths)
    for index in sorted(range(len(grown)), key=lambda at: wanted[at] - grown[at]):
        more = min(left, wanted[index] - grown[index])
        grown[index] += more
        left -= more
    return grown


class FittingTable:
    """A table that chooses its layout when it is drawn. A heading that begins with `>` is aligned to the right."""

    def __init__(self, headings: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> None:
        self._title = title
        cells = [[Text.from_markup(cell) for cell in row] for row in rows]
        self.columns = [
            Column(Text(name.removeprefix(">")), tuple(row[index] for row in cells), name.startswith(">"))
            for index, name in enumerate(headings)
        ]
        self._rows = cells

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._title:
            yield Text(self._title, style="bold")
        fitting = fit(self.columns, options.max_width)
        if fitting is None:
            yield from self._paragraphs(options.max_width)
        else:
            yield self._grid(*fitting)

    def _grid(self, gap: int, widths: Sequence[int]) -> RenderableType:
        from rich import box  # noqa: PLC0415 - wanted only when drawing
        from rich.table import Table  # noqa: PLC0415

        made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=PADDINGS[gap])
        for column, width in zip(self.columns, widths, strict=True):
            justify: Literal["left", "right"] = "right" if column.is_right else "left"
            made.add_column(column.heading, width=width, justify=justify, overflow="fold")
        for row in self._rows:
            made.add_row(*row)
        return made

    def _paragraphs(self, width: int) -> Iterator[RenderableType]:
        """Each row as its first cell and then `heading value` pairs, as many to a line as there is room for."""
        for row in self._rows:
            head, *rest = row
            pairs = [
                Text.assemble((f"{column.heading.plain} ".lstrip(), "dim"), cell)
                for column, cell in zip(self.columns[1:], rest, strict=True)
                if cell.plain.strip()
            ]
            yield head
            yield from flow(pairs, width, indent=INDENT)


def flow(parts: Sequence[Text], width: int, *, between: str = "  ", indent: int = 0) -> Iterator[Text]:
    """Parts one after the other, broken into lines only between them while they fit a line."""
    line = Text(" " * indent)
    is_empty = True
    for part in parts:
        if not is_empty and line.cell_len + len(between) + part.cell_len > width:
            yield line
            line, is_empty = Text(" " * indent), True
        line = Text.assemble(line, "" if is_empty else between, part)
        is_empty = False
    if not is_empty:
        yield line


class Flow:
    """Markup in one line, broken only between its parts where it is too long."""

    def __init__(self, parts: Sequence[str]) -> None:
        self._parts = [Text.from_markup(part) for part in parts]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from flow(self._parts, options.max_width, between="  ·  ")
