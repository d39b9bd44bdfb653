"""Which classes are taken for which, in the columns that a terminal has."""

import shutil
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from stce_jax.commands import tables
from stce_jax.platform import terminal

WIDEST = 20  # max number of classes whose whole matrix is printed; of more classes, this many pairs
NARROWEST = 12  # columns that a name keeps, however narrow the terminal is


def lines_of(confusion: Int[np.ndarray, "C C"], names: Sequence[str], width: int = 0) -> list[str]:
    """A title and a table: the whole matrix if it fits and there are few classes, else the most frequent confusions.

    Columns have the classes' names, or, where these do not fit, their numbers, which then stand before the rows' names.

    Args:
      confusion: of `scores.confusion`.
      names: of the classes.
      width: columns of the terminal; 0: those that there are, or 80.
    """
    width = width or shutil.get_terminal_size((80, 24)).columns
    if len(names) <= WIDEST:
        title = "confusion: true classes in rows, predicted ones in columns"
        for numbered in (False, True):
            table = _matrix(confusion, names, numbered, width)
            if max(map(tables.width, table)) <= width:
                return [title + ", by their numbers" * numbered, *table]
    return _pairs(confusion, names, width)


def _matrix(confusion: Int[np.ndarray, "C C"], names: Sequence[str], numbered: bool, width: int) -> list[str]:
    columns = [str(number) for number in range(len(names))] if numbered else list(names)
    rows = [["", *columns], *([name, *map(str, row)] for name, row in zip(names, confusion.tolist(), strict=True))]
    if not numbered:
        return tables.aligned(rows, right=range(1, len(columns) + 1))
    cells = [max(len(row[place]) for row in rows) for place in range(1, len(columns) + 1)]
    prefix = max(map(len, columns)) + 1
    left = max(NARROWEST, width - sum(cells) - len(tables.GAP) * len(cells) - prefix)
    for number, row in enumerate(rows[1:]):
        row[0] = f"{number:>{prefix - 1}} {fitted(row[0], left)}"
    return tables.aligned(rows, right=range(1, len(columns) + 1))


def _pairs(confusion: Int[np.ndarray, "C C"], names: Sequence[str], width: int) -> list[str]:
    rows, columns = (places.tolist() for places in confusion.nonzero())
    wrong = [(row, column) for row, column in zip(rows, columns, strict=True) if row != column]
    wrong.sort(key=lambda place: -confusion[place])
    if not wrong:
        return ["confusion: no image was taken for another class"]
    title = f"most frequent confusions{' (all of them: --output)' if len(wrong) > WIDEST else ''}"
    left = max(NARROWEST, (width - len("images") - 2 * len(tables.GAP)) // 2)
    table = [["true", "predicted", "images"]]
    for row, column in wrong[:WIDEST]:
        table.append([fitted(names[row], left), fitted(names[column], left), str(confusion[row, column])])
    return [title, *tables.aligned(table, right=(2,))]


def fitted(name: str, width: int) -> str:
    """A name in at most so many columns, as it is printed; the middle of a longer one is left out."""
    shown = terminal.printable(name)
    if tables.width(shown) <= width:
        return shown
    head = tail = (width - 1) // 2
    while tables.width(f"{shown[:head]}…{shown[-tail:]}") > width:
        head, tail = (head - 1, tail) if head > tail else (head, tail - 1)
    return f"{shown[:head]}…{shown[-tail:]}"
