"""The house: which package may import which, how large each is, and what importing costs."""

import ast
import re
from pathlib import Path

import pytest
from helpers import modules_after

ROOT = Path(__file__).parents[1] / "stce_jax"
LONGEST = 300  # lines of a file
ANYONE = {"errors", "paths", "platform"}
GROUND = {"models", "recipe", "data", "processes"}  # these never import one another
RUN = {"training", "workdir"}
USE = {"reproduce", "analysis", "convert", "prepare"}
# Package -> the packages it may import besides itself and ANYONE.
ARROWS = {
    "errors": set(),
    "paths": set(),
    "platform": set(),
    **{package: set() for package in GROUND},
    "configs": set(),
    "workdir": {*GROUND, "configs"},
    "training": {*GROUND, "workdir"},
    "prepare": {"data", "processes"},
    "analysis": {*GROUND, *RUN},
    "convert": {*GROUND, *RUN},
    "reproduce": {*GROUND, *RUN, "analysis", "configs"},
    "verbs": {*GROUND, *RUN, *USE, "configs"},
    "commands": {*GROUND, *RUN, *USE, "verbs"},
    "cli": {"commands", "processes"},
    "__main__": {"cli"},
    "__init__": {"models", "recipe", "data", "training", "convert", "verbs"},  # the public names, lazily
}
LAYERS = {"ops", "tokens", "layers", "batch_norms", "conv_layers"}
# Inside `models`: nothing above an operation, nothing beside a module.
MODELS = {
    "ops": {"ops"},
    "tokens": set(),
    "contracts": set(),
    "layers": {"ops", "tokens"},
    "batch_norms": {"ops", "layers"},
    "conv_layers": {"ops", "tokens", "layers", "batch_norms"},
    "remat": {"ops"},
    "downsampling": LAYERS,
    "attentions": {*LAYERS, "attentions"},
    "embeddings": {*LAYERS, "remat", "attentions", "embeddings"},
    "reductions": {*LAYERS, "reductions"},
    "bodies": {*LAYERS, "remat", "fused_layers", "downsampling", "attentions", "embeddings", "reductions", "bodies"},
    "fused_layers": {"ops", "tokens", "layers"},
    "factory": {*LAYERS, "attentions", "embeddings", "reductions", "bodies", "contracts"},
    "__init__": set(),
}
SOURCES = sorted(path for path in ROOT.rglob("*.py") if "configs" not in path.parts)


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path):
    """Our own modules that a file imports anywhere, as names without the leading "stce_jax."."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if node.module == "stce_jax" else {node.module} | names
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("stce_jax.") for name in found if name.startswith("stce_jax.")}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_arrows(path):
    name = module_name(path)
    own, _, inside = name.partition(".")
    allowed = ARROWS[own] | ANYONE | {own}
    for imported in imports(path):
        package, _, rest = imported.partition(".")
        assert package in allowed, f"{name} must not import {imported}"
        if own == "models" and package == "models" and rest:
            part, other = inside.partition(".")[0], rest.partition(".")[0]
            assert other in MODELS[part], f"{name} must not import {imported}"


def test_every_package_has_its_arrows():
    packages = {module_name(path).partition(".")[0] for path in SOURCES}
    assert packages <= set(ARROWS), f"no arrows are given for {packages - set(ARROWS)}"
    assert {path.stem for path in (ROOT / "models").iterdir() if path.suffix == ".py" or path.is_dir()} <= {
        *MODELS,
        "__pycache__",
    }


def test_operations_know_no_linen():
    for path in (ROOT / "models" / "ops").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)]
            module = getattr(node, "module", None) or ""
            assert not any("flax" in name for name in [module, *names]), f"{path.name} imports flax"


@pytest.mark.parametrize("path", sorted((ROOT / "models" / "bodies").glob("*.py")), ids=lambda path: path.stem)
def test_bodies_remat_so_that_it_saves_memory_on_cpus(path):
    """Flax's and JAX's would save next to nothing there."""
    found = re.search(r"\b(nn|jax|lift)\.(remat|checkpoint)\(", path.read_text())
    assert not found, f"{path.name} must call models.remat.remat in place of {found[0]}...)"


def test_arrows_test_sees_imports():
    assert "models.ops.supertoken" in imports(ROOT / "models" / "embeddings" / "stce.py")


@pytest.mark.parametrize("path", sorted((ROOT.parent / "configs").rglob("[!_]*.py")), ids=lambda path: path.stem)
def test_configs_import_nothing_heavy(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            light = node.module in ("ml_collections", "collections.abc", "typing")
            assert light or (node.level in (1, 2) and node.module is None), ast.unparse(node)
        assert not isinstance(node, ast.Import), ast.unparse(node)


@pytest.mark.slow
def test_importing_the_package_and_the_help_start_no_jax():
    loaded = modules_after("import stce_jax")
    assert not {"jax", "flax", "tensorflow_datasets"} & loaded
    loaded = modules_after("from stce_jax.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit: pass")
    assert not {"jax", "flax", "ml_collections", "tensorflow_datasets"} & loaded


@pytest.mark.slow
def test_importing_everything_computes_nothing_and_needs_no_tensorflow():
    names = [f"stce_jax.{module_name(path)}" for path in SOURCES if path.stem not in ("__main__", "__init__")]
    code = f"import {', '.join(names)}\nfrom jax._src import xla_bridge\nassert not xla_bridge._backends, 'JAX started'"
    assert "tensorflow" not in modules_after(code)


@pytest.mark.slow
def test_models_import_no_kernels_that_nobody_chose():
    assert "jax.experimental.pallas.triton" not in modules_after("import stce_jax.models.factory")


def test_public_names():
    import stce_jax

    for name in ("create_model", "list_models", "SuperTokenConvEmbed", "cluster_super_tokens", "load_run"):
        assert callable(getattr(stce_jax, name)) and name in dir(stce_jax)
    with pytest.raises(AttributeError, match="no attribute 'creat_model'"):
        stce_jax.creat_model  # noqa: B018


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_fit_in_the_head(path):
    assert len(path.read_text().splitlines()) <= LONGEST, f"{path.name} is too long to read at once: split it"
