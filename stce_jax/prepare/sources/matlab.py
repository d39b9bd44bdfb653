"""A struct array of a MAT-file of version 5, as in ILSVRC2012's development kit, read with every length checked.

SciPy's reader is compiled code that a damaged file can crash. This one reads numbers and text of the fields that are
needed and steps over all else, so that nothing nests. The format: MathWorks, "MAT-File Format", chapter 1.
"""

import math
import struct
import zlib
from collections.abc import Iterator, Sequence

_HEADER = 128  # bytes
_MAX_BYTES = 64 * 2**20  # of one variable, unpacked; the devkit's has less than 1 MiB
_MATRIX, _COMPRESSED = 14, 15  # types of elements
_NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}  # type -> struct's letter
_TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}  # type -> encoding
_STRUCT, _CHAR = 2, 4  # classes of arrays; those from _DOUBLE to _UINT64 are of numbers
_DOUBLE, _UINT64 = 6, 15

Value = float | str


def read_structs(content: bytes, name: str, fields: Sequence[str]) -> list[tuple[Value, ...]]:
    """The named fields, single numbers or texts, of each element of a struct array.

    Args:
      content: the file's bytes.
      name: of the variable.
      fields: names of fields that every element has.

    Raises:
      ValueError: the file is damaged, of another version, or has no such variable and fields.
    """
    if len(content) < _HEADER or content[126:128] not in (b"IM", b"MI"):
        raise ValueError("it is no MAT-file of version 5")
    order = "<" if content[126:128] == b"IM" else ">"
    for kind, data in _elements(content[_HEADER:], order):
        if kind == _COMPRESSED:
            kind, data = next(_elements(_unpacked(data), order), (0, b""))
        if kind == _MATRIX and data:
            number_class, count, own_name, rest = _array(data, order)
            if own_name == name:
                if number_class != _STRUCT:
                    raise ValueError(f"{name} is no struct array")
                return _structs(rest, count, fields, order)
    raise ValueError(f"it has no variable {name}")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yields (type, content) of the elements that lie one after the other."""
    place = 0
    while place < len(data):
        if len(data) - place < 8:
            raise ValueError("it is cut off")
        kind, size = struct.unpack_from(f"{order}II", data, place)
        start, step = place + 8, 8 + size
        if kind >> 16:  # the content in the tag itself
            kind, size = kind & 0xFFFF, kind >> 16
            start, step = place + 4, 8
            if size > 4:
                raise ValueError("it is damaged")
        elif kind != _COMPRESSED:
            step += -size % 8
        if start + size > len(data):
            raise ValueError("it is cut off")
        yield kind, data[start : start + size]
        place += step


def _unpacked(data: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(data, _MAX_BYTES)
    except zlib.error as error:
        raise ValueError(f"it is damaged: {error}") from error
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise ValueError("a variable is cut off or too large")
    return content


def _array(data: bytes, order: str) -> tuple[int, int, str, Iterator[tuple[int, bytes]]]:
    """(class, number of elements, name, the elements that follow) of an array."""
    rest = _elements(data, order)
    _, flags = _next(rest)
    _, sizes = _next(rest)
    _, name = _next(rest)
    if len(flags) != 8 or len(sizes) % 4 or not sizes:
        raise ValueError("an array is damaged")
    lengths = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    if min(lengths) < 0:
        raise ValueError("an array is damaged")
    return struct.unpack(f"{order}I", flags[:4])[0] & 0xFF, math.prod(lengths), name.decode("latin-1"), rest


def _structs(
    rest: Iterator[tuple[int, bytes]], count: int, fields: Sequence[str], order: str
) -> list[tuple[Value, ...]]:
    _, width = _next(rest)
    _, text = _next(rest)
    if len(width) != 4 or (length := struct.unpack(f"{order}i", width)[0]) < 1:
        raise ValueError("the names of fields are damaged")
    names = [text[start : start + length].split(b"\0")[0].decode("latin-1") for start in range(0, len(text), length)]
    if missing := set(fields) - set(names):
        raise ValueError(f"it has no field {min(missing)}")
    found = []
    for _ in range(count):  # `rest` ends before a count that is too large
        row = {name: _next(rest) for name in names}
        found.append(tuple(_value(*row[name], order) for name in fields))
    return found


def _value(kind: int, data: bytes, order: str) -> Value:
    """The number, or the text, that an array holds."""
    if kind != _MATRIX or not data:
        raise ValueError("a field is empty")
    number_class, count, _, rest = _array(data, order)
    kind, content = _next(rest)
    if number_class == _CHAR and kind in _TEXT:
        encoding = _TEXT[kind]
        if encoding in ("utf-16", "utf-32"):
            encoding += "-le" if order == "<" else "-be"
        return content.decode(encoding, errors="replace")
    if _DOUBLE <= number_class <= _UINT64 and kind in _NUMBERS and count == 1:
        letter = order + _NUMBERS[kind]
        if len(content) == struct.calcsize(letter):
            return struct.unpack(letter, content)[0]
    raise ValueError("a field is neither a number nor a text")


def _next(rest: Iterator[tuple[int, bytes]]) -> tuple[int, bytes]:
    for element in rest:
        return element
    raise ValueError("it is cut off")
