"""Types: mypy finds nothing, everything public is annotated, and arrays say their shape."""

import ast
from pathlib import Path

import pytest
from mypy import api

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "stce_jax"
SOURCES = sorted({*PACKAGE.rglob("*.py"), *(PACKAGE / "configs").rglob("*.py")})  # configs is a link
SHAPED = [path for path in SOURCES if path.relative_to(PACKAGE).parts[0] in ("models", "recipe")]
SHAPED.append(PACKAGE / "training" / "step.py")
SHAPELESS = {"Array", "jax.Array", "jnp.ndarray", "np.ndarray", "ndarray", "ArrayLike", "jax.typing.ArrayLike"}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def is_public(name):
    return not name.startswith("_") or name in ("__init__", "__call__")


def functions(tree):
    """(name, node) of the public functions of a module and of its public classes, in order."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and is_public(node.name):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and is_public(node.name):
            yield from ((f"{node.name}.{name}", inner) for name, inner in functions(node))


def annotations(node):
    """(what, annotation or None) of each parameter and of what a function returns; a method's first one needs none."""
    parameters = [*node.args.posonlyargs, *node.args.args]
    if parameters and parameters[0].arg in ("self", "cls"):
        parameters = parameters[1:]
    parameters += [*node.args.kwonlyargs, *filter(None, (node.args.vararg, node.args.kwarg))]
    yield from ((parameter.arg, parameter.annotation) for parameter in parameters)
    if node.name != "__init__":
        yield "what it returns", node.returns


def without_annotation(tree):
    found = [f"{name}: {what}" for name, node in functions(tree) for what, given in annotations(node) if given is None]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("nn.Module") for base in node.bases):
            found += [
                f"{node.name}.{target.id}"
                for line in node.body
                if isinstance(line, ast.Assign)
                for target in line.targets
                if isinstance(target, ast.Name) and is_public(target.id)
            ]
    return found


def without_shape(tree):
    """The annotations of public functions and fields that name an array and not its shape, as jaxtyping does."""
    given = [(f"{name}: {what}", hint) for name, node in functions(tree) for what, hint in annotations(node) if hint]
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            lines = [line for line in node.body if isinstance(line, ast.AnnAssign)]
            given += [(f"{node.name}.{ast.unparse(line.target)}", line.annotation) for line in lines]
    found = []
    for where, hint in given:
        if isinstance(hint, ast.Constant) and isinstance(hint.value, str):
            hint = ast.parse(hint.value, mode="eval").body
        shaped = {id(part) for node in ast.walk(hint) if is_shaped(node) for part in ast.walk(node)}
        bare = [node for node in ast.walk(hint) if id(node) not in shaped and ast.unparse(node) in SHAPELESS]
        found += [f"{where}: {ast.unparse(hint)}"] if bare else []
    return found


def is_shaped(node):
    """Whether a node is jaxtyping's `Float[Array, "B N D"]` or the like."""
    if not isinstance(node, ast.Subscript) or not isinstance(node.slice, ast.Tuple):
        return False
    array, *shape = node.slice.elts
    return ast.unparse(array) in SHAPELESS and len(shape) == 1 and isinstance(shape[0], ast.Constant)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_what_is_public_is_annotated(path):
    missing = without_annotation(ast.parse(path.read_text()))
    assert not missing, f"{name_of(path)}: no annotation of {'; '.join(missing)}"


@pytest.mark.parametrize("path", SHAPED, ids=name_of)
def test_arrays_are_annotated_with_their_shape(path):
    missing = without_shape(ast.parse(path.read_text()))
    assert not missing, f"{name_of(path)}: no shape in {'; '.join(missing)}"


def test_the_checks_see_what_is_missing():
    tree = ast.parse(
        "class Layer(nn.Module):\n"
        "  width: int\n"
        "  depth = 3\n"
        "  def __call__(self, x: Float[Array, 'B D'], mask: np.ndarray | None, *, train) -> Array: ...\n"
        "  def _private(self, x): ...\n"
        "def join(parts: list[Float[np.ndarray, 'B']]) -> 'tuple[jax.Array, int]': ...\n"
    )
    assert without_annotation(tree) == ["Layer.__call__: train", "Layer.depth"]
    assert without_shape(tree) == [
        "Layer.__call__: mask: np.ndarray | None",
        "Layer.__call__: what it returns: Array",
        "join: what it returns: tuple[jax.Array, int]",
    ]


@pytest.mark.slow
def test_mypy_finds_nothing(monkeypatch):
    """Over the package, as [tool.mypy] says, and a user's program; its cache lies beside what pytest keeps."""
    monkeypatch.chdir(ROOT)
    paths = ["stce_jax", "tests/typed_program.py"]
    output, errors, code = api.run(["--config-file=pyproject.toml", "--cache-dir=.pytest_cache/mypy", *paths])
    assert code == 0, f"mypy:\n{output}{errors}"
    checked = int(output.rsplit("no issues found in ", 1)[1].split()[0])
    assert checked >= len(SOURCES), f"mypy checked {checked} of {len(SOURCES)} files"
    spared = [name_of(path) for path in SOURCES if "mypy: " in path.read_text()]
    assert not spared, f"these switch mypy off for themselves: {spared}"
