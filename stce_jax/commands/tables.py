"""Text in columns for a terminal, whatever the words in it."""

from collections.abc import Collection, Iterable, Sequence

from stce_jax.platform import terminal

GAP = "  "  # between columns
CELL = 1000  # characters of a cell: what is longer would push the other columns out of sight


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
        padded.append(space + _shown(text) if place in right else _shown(text) + space)
    return gap.join(padded).rstrip()


def width(text: str) -> int:
    """Columns that a text takes as it is printed: some characters take two, others none."""
    from rich.cells import cell_len

    return cell_len(_shown(text))


def _shown(text: str) -> str:
    return terminal.printable(terminal.shortened(text, CELL))
