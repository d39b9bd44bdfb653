"""Text in columns for a terminal, whatever the words in it."""

import sys
from collections.abc import Collection, Iterable, Sequence

GAP = "  "  # between columns


def aligned(
    rows: Sequence[Sequence[str]], right: Collection[int] = (), minimum: Iterable[int] = (), gap: str = GAP
) -> list[str]:
    """Lines of rows of texts in columns.

    Args:
      rows: of one text a column.
      right: places of the columns that are aligned at the right.
      minimum: widths that the columns have at least, so that tables printed one after the other match.
      gap: between the columns.
    """
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    for place, smallest in enumerate(minimum):
        widths[place] = max(widths[place], smallest)
    return [line(row, widths, right, gap) for row in rows]


def line(cells: Sequence[str], widths: Sequence[int], right: Collection[int] = (), gap: str = GAP) -> str:
    """One such line, where the widths are known before the rows; wider texts push the others aside."""
    padded = []
    for place, (text, available) in enumerate(zip(cells, widths, strict=True)):
        space = " " * (available - width(text))
        padded.append(space + printable(text) if place in right else printable(text) + space)
    return gap.join(padded).rstrip()


def width(text: str) -> int:
    """Columns that a text takes as it is printed: some characters take two, others none."""
    from rich.cells import cell_len

    return cell_len(printable(text))


def printable(text: str) -> str:
    """A text that standard output can show on one line: control characters and what it cannot encode are escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text.encode(encoding, "backslashreplace").decode(encoding)
