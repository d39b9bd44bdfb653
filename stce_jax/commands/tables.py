"""Text in columns for a terminal, whatever the words in it."""

import sys


def aligned(rows, right=()):
    """Lines of rows of texts, columns two spaces apart.

    Args:
      rows: lists of equally many texts.
      right: places of the columns that are aligned at the right.
    """
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    return [line(row, widths, right) for row in rows]


def line(cells, widths, right=()):
    """One such line, if the widths are known before all rows are; wider texts push the others aside."""
    padded = []
    for place, (text, most) in enumerate(zip(cells, widths, strict=True)):
        space = " " * (most - width(text))
        padded.append(space + printable(text) if place in right else printable(text) + space)
    return "  ".join(padded).rstrip()


def width(text):
    """Columns that a text takes as it is printed: some characters take two, others none."""
    from rich.cells import cell_len

    return cell_len(printable(text))


def printable(text):
    """A text that standard output can show on one line: control characters and what it cannot encode are escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text.encode(encoding, "backslashreplace").decode(encoding)
