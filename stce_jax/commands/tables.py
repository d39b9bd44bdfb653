"""Text in columns for a terminal, whatever the words in it."""

import sys


def aligned(rows, right=()):
    """Lines of rows of texts, columns two spaces apart.

    Args:
      rows: lists of equally many texts.
      right: places of the columns that are aligned at the right.
    """
    from rich.cells import cell_len  # knows that some characters are two columns wide, and others none

    rows = [list(map(printable, row)) for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = []
        for place, (text, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - cell_len(text))
            cells.append(space + text if place in right else text + space)
        yield "  ".join(cells).rstrip()


def printable(text):
    """A text that standard output can show on one line: control characters and what it cannot encode are escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text.encode(encoding, "backslashreplace").decode(encoding)
