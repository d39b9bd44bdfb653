"""The expression that makes a PyTorch model, as data: which piece is called with which options."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

WIDTH = 116  # characters of a line
INDENT = "    "


@dataclasses.dataclass(frozen=True)
class Piece:
    """A name of a piece that is handed over as it is."""

    name: str


@dataclasses.dataclass(frozen=True)
class Call:
    """A piece that is called.

    Attributes:
      name: of a class or function of the pieces, or with a dot of an external module, such as "nn.Identity".
      options: keywords; numbers, text, tuples of them, `Piece`, `Call`, or lists of calls.
    """

    name: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def names(self) -> Iterator[str]:
        """All names in it."""
        yield self.name
        yield from itertools.chain.from_iterable(map(_names, self.options.values()))


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, Call):
        yield from value.names()
    elif isinstance(value, Piece):
        yield value.name
    elif isinstance(value, list):
        yield from itertools.chain.from_iterable(map(_names, value))


def render(value: Any, indent: str = "", used: int = 0) -> str:
    """A value as Python, on one line where it fits.

    Args:
      value: see `Call`.
      indent: of the line that it stands in.
      used: characters that stand before and behind it.
    """
    line = _on_one_line(value)
    if len(indent) + used + len(line) <= WIDTH:
        return line
    inner = indent + INDENT
    if isinstance(value, Call):
        lines = [f"{inner}{key}={render(own, inner, len(key) + 2)}," for key, own in value.options.items()]
        return "\n".join([f"{value.name}(", *lines, f"{indent})"])
    if isinstance(value, list):
        if (parts := list(_parts(value, indent)))[0].startswith("*") and len(parts) == 1:
            return parts[0][1:]
        return "\n".join(["[", *(f"{inner}{part}," for part in _parts(value, inner)), f"{indent}]"])
    if isinstance(value, tuple):
        return "\n".join(["(", *_wrapped([render(entry) for entry in value], inner), f"{indent})"])
    return line


def _on_one_line(value: Any) -> str:
    if isinstance(value, Call):
        return f"{value.name}({', '.join(f'{key}={_on_one_line(own)}' for key, own in value.options.items())})"
    if isinstance(value, Piece):
        return value.name
    if isinstance(value, list):
        parts = list(_parts(value, ""))
        if len(parts) == 1 and parts[0].startswith("*["):
            return parts[0][1:]
        return f"[{', '.join(parts)}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(_on_one_line, value))}{',' * (len(value) == 1)})"
    if isinstance(value, str):
        text = repr(value)  # escapes whatever cannot be printed
        return f'"{text[1:-1]}"' if text[0] == "'" and '"' not in text else text
    if type(value) in (int, float, bool):
        return repr(value)
    raise TypeError(f"{type(value).__name__} is no option of a piece")


def _parts(calls: Sequence[Any], indent: str) -> Iterator[str]:
    """The entries of a list, several alike in a row as a comprehension."""
    for entry, alike in itertools.groupby(calls):
        count = len(list(alike))
        if count > 1 and isinstance(entry, Call):
            line = f"*[{_on_one_line(entry)} for _ in range({count})]"
            inner = indent + INDENT
            if len(indent) + len(line) + 1 > WIDTH:
                line = f"*[\n{inner}{render(entry, inner)}\n{inner}for _ in range({count})\n{indent}]"
            yield line
        else:
            yield from [render(entry, indent, 1)] * count


def _wrapped(entries: Sequence[str], indent: str) -> Iterator[str]:
    line = indent
    for entry in entries:
        if len(line) + len(entry) + 2 > WIDTH and line.strip():
            yield line.rstrip()
            line = indent
        line += f"{entry}, "
    yield line.rstrip()
