"""Long lists of names in one line."""

from collections.abc import Sequence

NAMED = 3


def first_names(names: Sequence[str], total: int | None = None) -> str:
    """The first NAMED names, and ", ..." if there are more: `total` of them, or as many as are given."""
    return ", ".join(names[:NAMED]) + (", ..." if (total or len(names)) > NAMED else "")
