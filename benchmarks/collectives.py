"""What the devices of a compiled program send each other, read from XLA's text of it (HLO)."""

import functools
import math
import re
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
_LINE = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)$")
_ARRAY = re.compile(r"([a-z]+)(\d*)(?:e\d\w*)?\[([\d,]*)\]")
_SAME_BYTES = ("bitcast", "copy", "transpose", "reshape")  # of one array, laid out anew


class Operation(NamedTuple):
    """A line of a program.

    Attributes:
      place: the operations before it, in XLA's order if the program is compiled.
      name, kind: its own, such as "fusion.3", and that of what it does, such as "fusion".
      results: (sides, bytes) of each array that it makes.
      takes: names of operations.
      rest: its attributes.
    """

    place: int
    name: str
    kind: str
    results: tuple[tuple[tuple[int, ...], int], ...]
    takes: tuple[str, ...]
    rest: str

    @property
    def bytes(self):
        return sum(size for _, size in self.results)


class Program:
    """The computation that a program begins with; those that it calls are text alone, but for loops' collectives.

    Attributes:
      operations: of that computation, by name, in order.
    """

    def __init__(self, text):
        self._text = re.sub(r"/\*.*?\*/", "", text)
        self.operations = {}
        entry = self._text[self._text.index("\nENTRY ") :]
        for line in entry[: entry.index("\n}")].splitlines():
            found = _LINE.match(line)
            if found:
                name, made, kind, rest = found.groups()
                takes, _, rest = rest.partition(")")
                takes = tuple(re.findall(r"%([\w.-]+)", takes))
                self.operations[name] = Operation(len(self.operations), name, kind, _results(made), takes, rest)

    def collectives(self):
        """(kind, bytes of the result, line) of each in the whole program, in loops and branches, too.

        A TPU's program holds the stages of one collective in several places, under the number of its channel; a
        reduce-scatter is there a computation that begins with "all-reduce-scatter".
        """
        found, computation = {}, ""
        for line in self._text.splitlines():
            if line.endswith("{") and not line.startswith(" "):
                computation = line.lstrip("%")
            match = _LINE.match(line)
            kind = match[3].removesuffix("-start") if match else ""
            if kind not in KINDS:
                continue
            kind = "reduce-scatter" if computation.startswith("all-reduce-scatter") else kind
            channel = re.search(r"channel_id=(\d+)", line)
            results = [size for _, size in _results(match[2])]
            if match[3] == "collective-permute-start":  # what is sent, what comes, two counters
                results = results[1:2]
            found[kind, channel[1] if channel else match[1]] = (kind, sum(results), line)
        return list(found.values())

    def of_kind(self, kind):
        return [operation for operation in self.operations.values() if operation.kind.removesuffix("-start") == kind]

    def gathered(self):
        """(place, place of the last use, bytes) of each all-gather's result."""
        return [(op.place, self._last_use(op.name), op.bytes) for op in self.of_kind("all-gather")]

    def most_gathered(self):
        """Bytes of gathered arrays that are held at a time, at most."""
        spans = self.gathered()
        return max((sum(size for b, e, size in spans if b <= place <= e) for place, *_ in spans), default=0)

    def is_scattered(self, operation, index=0):
        """Whether result `index` of an all-reduce is read by slices alone: a reduce-scatter, written for CPUs in two.

        XLA for GPUs and TPUs makes one operation of the two (its pass `reduce-scatter-creator`), XLA for CPUs does not.
        """
        names = [operation.name]
        if len(operation.results) > 1:
            numbered = f"index={index}"
            names = [user for user in self._users[names[0]] if numbered in self.operations[user].rest.split(", ")]
        uses = [(user, name) for name in names for user in self._users[name]]
        return bool(uses) and all(self._slices(*use) for use in uses)

    @functools.cached_property
    def _users(self):
        users = {name: [] for name in self.operations}
        for operation in self.operations.values():
            for taken in operation.takes:
                users[taken].append(operation.name)
        return users

    def _last_use(self, name):
        places = [self.operations[name].place]
        for user in self._users[name]:
            same = self.operations[user].kind in _SAME_BYTES
            places.append(self._last_use(user) if same else self.operations[user].place)
        return max(places)

    def _slices(self, name, taken):
        """Whether an operation only takes a slice of one that it takes."""
        operation = self.operations[name]
        if operation.kind in _SAME_BYTES:
            return all(self._slices(user, name) for user in self._users[name])
        if operation.kind != "fusion":
            return operation.kind == "dynamic-slice"
        called = re.search(r"calls=%?([\w.-]+)", operation.rest)[1]
        body = re.search(rf"\n%?{re.escape(called)} [^\n]*{{\n(.*?)\n}}", self._text, re.S)[1]
        inner = [_LINE.match(line).groups() for line in body.splitlines()]
        number = operation.takes.index(taken)
        (given,) = (name for name, _, kind, rest in inner if kind == "parameter" and rest.startswith(f"{number})"))
        return all(
            kind == "dynamic-slice" for _, _, kind, rest in inner if re.search(rf"%{re.escape(given)}[,)]", rest)
        )


def _results(made):
    return tuple(
        (tuple(int(side) for side in sides.split(",") if side), _bytes(letters, bits, sides))
        for letters, bits, sides in _ARRAY.findall(made)
    )


def _bytes(letters, bits, sides):
    """Of an array, such as ("bf", "16", "2,3"); of "pred" a byte each, of "token" none."""
    each = 1 if letters == "pred" else int(bits or 0) / 8
    return math.ceil(each * math.prod(int(side) for side in sides.split(",") if side))
