"""The printer of all tables, for a terminal and in Markdown; who prints one says its columns."""

import dataclasses
import textwrap
from collections.abc import Sequence

WIDTH = 110
"""Columns of a terminal that a table or a line of text may fill."""
_MIN_REMARK_WIDTH = 30  # columns that a remark is given at least, beyond `WIDTH` if need be
_RULES = {"l": "---", "c": ":---:", "r": "---:"}
_PADS = {"l": str.ljust, "c": str.center, "r": str.rjust}


@dataclasses.dataclass(frozen=True)
class Table:
    """A table's text.

    Attributes:
      head: a heading for each column; line breaks in it are kept in a terminal.
      rows: the cells of each row; a row that ends early has a remark in place of the others.
      align: a letter for each column, ``l``, ``c`` or ``r``; empty for columns of numbers to the
        right and all others to the left.
      remarks: text behind the cells of each row, which may be long; no row has one if empty.
      remarks_head: the heading of remarks in Markdown, where they need a column of their own.
      spare: columns that a terminal's width may leave out, the last of them first.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    align: str = ""
    remarks: Sequence[str] = ()
    remarks_head: str = ""
    spare: Sequence[int] = ()

    def terminal(self) -> str:
        """Columns aligned by blanks; spare ones are left out where all would not fit `WIDTH`."""
        table, spare = self, sorted(self.spare)
        while spare and sum(widths := table._widths()) + 2 * len(widths) - 2 > WIDTH:
            table = table._without(spare.pop())
        return "\n".join(table._lines())

    def markdown(self, only: Sequence[str] = ()) -> str:
        """The table in Markdown, of all columns or of those with `only` these headings."""
        head = [" ".join(heading.split("\n")).strip() for heading in self.head]
        remarks = [[remark.replace("|", "\\|")] if remark else [] for remark in self._remarks()]
        rows = [[*row, *remark] for row, remark in zip(self.rows, remarks, strict=True)]
        beyond = max(map(len, rows), default=0) > len(head)
        head += [self.remarks_head] * beyond
        rows = [row + [""] * (len(head) - len(row)) for row in rows]
        align = self._alignment() + "r" * beyond
        shown = [head.index(heading) for heading in only or head]
        lines = [f"| {' | '.join(row[i] for i in shown)} |" for row in (head, *rows)]
        lines.insert(1, f"|{'|'.join(_RULES[align[i]] for i in shown)}|")
        return "\n".join(lines)

    def _remarks(self) -> Sequence[str]:
        return self.remarks or [""] * len(self.rows)

    def _alignment(self) -> str:
        if self.align:
            return self.align
        columns = ([row[i] for row in self.rows if row[i:]] for i in range(len(self.head)))
        return "".join("r" if all(map(_numeric, column)) else "l" for column in columns)

    def _widths(self) -> list[int]:
        return [
            max(map(len, (*heading.split("\n"), *(row[i] for row in self.rows if row[i:]))))
            for i, heading in enumerate(self.head)
        ]

    def _without(self, column: int) -> "Table":
        def cut(cells: Sequence[str]) -> Sequence[str]:
            return [*cells[:column], *cells[column + 1 :]]

        align = self._alignment()
        return dataclasses.replace(
            self,
            head=cut(self.head),
            rows=list(map(cut, self.rows)),
            align=align[:column] + align[column + 1 :],
        )

    def _lines(self) -> list[str]:
        widths, align = self._widths(), self._alignment()

        def line(cells: Sequence[str]) -> str:
            padded = (
                _PADS[letter](cell, width)
                for cell, width, letter in zip(cells, widths, align, strict=False)
            )
            return "  ".join(padded)

        headings = [heading.split("\n") for heading in self.head]
        height = max(map(len, headings))
        headings = [[""] * (height - len(heading)) + heading for heading in headings]
        lines = [line(cells).rstrip() for cells in zip(*headings, strict=True)]
        for row, remark in zip(self.rows, self._remarks(), strict=True):
            start = line(row)
            indent = " " * (len(start) + 2)
            wrapped = textwrap.wrap(remark, max(WIDTH - len(indent), _MIN_REMARK_WIDTH)) or [""]
            lines += [f"{start}  {wrapped[0]}".rstrip(), *(indent + more for more in wrapped[1:])]
        return lines


def _numeric(cell: str) -> bool:
    return not cell or cell[0].isdigit()


def wrap(text: str, indent: int = 0) -> str:
    """A long line in several of a terminal's width, those behind the first indented."""
    return "\n".join(textwrap.wrap(text, WIDTH, subsequent_indent=" " * indent))
