"""One file of PyTorch out of the pieces: what a call needs and nothing else, in the order of the pieces.

A piece is Python; what it imports from other pieces says where it is, and is left out of the file.
"""

import ast
import dataclasses
import functools
import importlib.resources
from collections.abc import Iterable, Mapping
from typing import Any

from stce_jax.convert.torch_source.call import Call, render

# In the order in which the file has them: a class comes behind its base.
PIECES = (
    "use",
    "layers",
    "clustering",
    "embeddings",
    "windows",
    "halving",
    "vit",
    "ingredients",
    "reducing",
    "selecting",
    "merging",
    "swin",
    "stages",
    "focal",
    "dat",
    "cvt",
    "cmt",
    "svit",
    "mobilevit",
)
CONSTANTS = "constants"  # what the file itself defines, as pieces call it
FIRST = ("load", "read_safetensors", "preprocess", "normalise")  # every file has them


@dataclasses.dataclass(frozen=True)
class Definition:
    """A function, class or constant of a piece: its text, and the names that it uses."""

    text: str
    uses: frozenset[str]
    constant: bool = False


@dataclasses.dataclass(frozen=True)
class Source:
    """The pieces: {name: definition} in the order of the file, and {name: line} of what they import from outside."""

    definitions: dict[str, Definition]
    imports: dict[str, str]


def program(call: Call, *, docstring: str, constants: Mapping[str, Any], names: Mapping[str, Any]) -> str:
    """The text of a file that defines a model.

    Args:
      call: what makes the model.
      docstring: of the file.
      constants: {name: number, text or tuple} that stand on top, where the file uses them.
      names: the same at the end.
    """
    source = pieces()
    needed = _needed([*FIRST, *call.names()], source)
    texts = {name: source.definitions[name].text for name in source.definitions if name in needed}
    used = frozenset().union(*(source.definitions[name].uses for name in texts), {_root(name) for name in call.names()})
    imports = {line for name, line in source.imports.items() if name in used}
    build = f'def build_model():\n    """The model with random weights."""\n    return {render(call, "    ", 7)}'
    assigned = [f"{name} = {render(value, '', len(name) + 3)}" for name, value in constants.items() if name in used]
    assigned += [text for name, text in texts.items() if source.definitions[name].constant]
    own = [text for name, text in texts.items() if not source.definitions[name].constant]
    count = sum(name in FIRST for name in texts)
    head = [f'"""{docstring}"""', "\n".join(_sorted_imports(imports)), "\n".join(assigned)]
    last = [f"{name} = {render(value, '', len(name) + 3)}" for name, value in names.items()]
    return "\n\n".join(head) + "\n\n\n" + "\n\n\n".join([*own[:count], build, *own[count:], *last]) + "\n"


@functools.cache
def pieces() -> Source:
    """All pieces."""
    definitions: dict[str, Definition] = {}
    imports: dict[str, str] = {}
    folder = importlib.resources.files(__package__)
    for piece in PIECES:
        text = (folder / f"{piece}.pytorch").read_text("utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                imports |= _imported(node)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                definitions[node.name] = Definition(_text(text, node), _used(node))
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                definitions[node.targets[0].id] = Definition(_text(text, node), _used(node.value), True)
    return Source(definitions, imports)


def _imported(node: ast.Import | ast.ImportFrom) -> dict[str, str]:
    """{name: line of its import} of what comes from outside of the pieces."""
    if isinstance(node, ast.ImportFrom) and node.module in (*PIECES, CONSTANTS):
        return {}
    lines = {}
    for alias in node.names:
        one = ast.ImportFrom(node.module, [alias], 0) if isinstance(node, ast.ImportFrom) else ast.Import([alias])
        lines[alias.asname or alias.name] = ast.unparse(one)
    return lines


def _text(text: str, node: ast.stmt) -> str:
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
    return "\n".join(text.splitlines()[first - 1 : node.end_lineno])


def _used(node: ast.AST) -> frozenset[str]:
    return frozenset(inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name))


def _needed(names: Iterable[str], source: Source) -> set[str]:
    """The names of the pieces that these lead to."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if name in source.definitions and name not in found:
            found.add(name)
            left += source.definitions[name].uses
    return found


def _root(name: str) -> str:
    return name.partition(".")[0]


def _sorted_imports(lines: Iterable[str]) -> list[str]:
    """The standard library's, then PyTorch's."""
    theirs = sorted((line for line in lines if "torch" in line), key=lambda line: (line.startswith("from"), line))
    own = sorted((line for line in lines if "torch" not in line), key=lambda line: (line.startswith("from"), line))
    return [*own, "", *theirs]
