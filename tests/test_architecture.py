"""The house: which module may import which, and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "stce_jax"
# Importer -> the only modules of ours it may import. Anything else (verbs, runs) may import any package.
ALLOWED = {
    "errors": set(),
    "models": {"errors", "models"},
    "paths": {"errors"},
    "data": {"errors", "paths", "data"},
    "engine": {"errors", "paths", "engine"},
    "models.supertoken": {"errors"},
    "models.layers": set(),
    "models.attention": {"models.layers"},
    "models.convolution": {"models.layers"},
    "models.embeddings": {"errors", "models.supertoken", "models.layers", "models.convolution"},
    "models.vit": {"models.layers", "models.attention"},
    "models.factory": {"errors", "models.supertoken", "models.embeddings", "models.vit"},
    "configuration": {"errors", "configs"},
    "cli": {"errors", "commands", "compile_cache", "freed_memory"},
    "compile_cache": set(),
    "freed_memory": set(),
    "loop": {"errors", "runs", "evaluate", "data", "engine"},
    "weights": {"errors", "paths", "runs", "models", "engine"},
    "evaluate": {"errors", "runs", "accuracy", "data", "engine"},
    "images": {"errors", "paths", "runs", "data", "engine"},
    "predict": {"errors", "images", "runs", "accuracy"},
    "features": {"errors", "images", "runs"},
    "completion": {"configs"},
    "accuracy": {"errors", "paths", "accuracy"},
    "drawing": {"errors", "models", "drawing"},
    "compare": {"errors", "paths", "configuration", "runs", "accuracy", "summary", "engine"},
    "timing": {"errors", "paths", "runs", "configuration", "data", "engine", "models", "timing"},
    "benchmark": {"errors", "summary", "timing", "engine"},
    "export": {"errors", "paths", "runs", "weights", "data", "engine", "models"},
    "prepare": {"errors", "paths", "data"},
    "reproduce": {"errors", "paths", "runs", "accuracy", "engine", "sweep"},
    "sweep": {"errors", "paths", "configuration", "runs", "summary", "accuracy", "data", "engine"} | {"sweep"},
    "show_data": {"errors", "runs", "engine"},
    "visualize": {"errors", "paths", "runs", "images", "drawing", "data", "models"},
    "summary": {"errors", "engine", "models"},
}
SOURCES = sorted(path for path in ROOT.rglob("*.py") if "configs" not in path.parts)


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path):
    """Names of our own modules that a file imports anywhere, without the leading "stce_jax."."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    files = {module_name(path) for path in SOURCES} | {"configs", "configs.default", "models", "data", "engine"}
    own = {name.removeprefix("stce_jax.") for name in found if name.startswith("stce_jax.")}
    return {name for name in own if name in files}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_arrows(path):
    name = module_name(path)
    allowed = ALLOWED.get(name, ALLOWED.get(name.partition(".")[0]))
    if allowed is None:
        return
    for imported in imports(path):
        parents = {imported, imported.partition(".")[0]}
        assert parents & allowed or imported in ("models", "data", "engine"), f"{name} must not import {imported}"


def test_arrows_test_sees_imports():
    assert {"models.layers", "models.supertoken"} <= imports(ROOT / "models" / "embeddings.py")


@pytest.mark.parametrize("path", sorted((ROOT.parent / "configs").rglob("[!_]*.py")), ids=lambda path: path.stem)
def test_configs_import_ml_collections_alone(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.module == "ml_collections" or (node.level in (1, 2) and node.module is None), ast.unparse(node)
        assert not isinstance(node, ast.Import), ast.unparse(node)


def modules_after(code):
    program = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_and_the_help_start_no_jax():
    loaded = modules_after("import stce_jax")
    assert not {"jax", "flax", "tensorflow_datasets"} & loaded
    loaded = modules_after("from stce_jax.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit: pass")
    assert not {"jax", "flax", "ml_collections", "tensorflow_datasets"} & loaded


def test_importing_everything_computes_nothing_and_needs_no_tensorflow():
    names = [f"stce_jax.{module_name(path)}" for path in SOURCES if path.stem not in ("__main__", "__init__")]
    code = f"import {', '.join(names)}\nfrom jax._src import xla_bridge\nassert not xla_bridge._backends, 'JAX started'"
    assert "tensorflow" not in modules_after(code)


def test_public_names():
    import stce_jax

    for name in ("create_model", "list_models", "SuperTokenConvEmbed", "cluster_super_tokens", "load_run"):
        assert callable(getattr(stce_jax, name)) and name in dir(stce_jax)
    with pytest.raises(AttributeError, match="no attribute 'creat_model'"):
        stce_jax.creat_model  # noqa: B018


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_fit_in_the_head(path):
    assert len(path.read_text().splitlines()) <= 300, f"{path.name} is too long to read at once: split it"
