"""The Python of README and docs/ runs: a page's blocks in order, in one namespace, in a folder with images and a run.

A block that begins with `# NAME.py` is a file, which is written there; those of docs/extending.md are trained by
tests/test_extending.py. Commands are parsed by tests/test_documents.py. Sizes are cut down, nothing else is changed.
"""

import functools
import json
import re
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from helpers import TINY
from PIL import Image

from stce_jax.errors import check_range
from stce_jax.models.tokens import Tokens
from stce_jax.recipe.parts import PARTS, Part

ROOT = Path(__file__).parents[1]
NOTEBOOK = "docs/tutorial.ipynb"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# (\w+\.py)\n")
TINY_VIT = ", image_size=32, width=16, depth=1, heads=2, mlp_dim=16)"
SMALL = """
config.epochs, config.batch_size, config.eval_batch_size, config.optimizer.warmup_epochs = 1.0, 8, 8, 0.0
config.model.body.vit.width, config.model.body.vit.depth, config.model.body.vit.mlp_dim = 16, 1, 16
config.model.embedding.stce.stem_widths = (8, 8)
"""
# Page -> what is cut down in it: (text, what takes its place), each of which the page must have.
CUT: dict[str, list[tuple[str, str]]] = {
    "README.md": [
        ('load_config("digits")', "load_config(*tiny)"),  # the run of the digits that is there: it is finished
        ("iterations=3)", f"iterations=3{TINY_VIT}"),
    ],
    "docs/start.md": [
        ('load_config("digits")', "load_config(*tiny)"),
        ("config.epochs = 30.0\n", ""),
        ("runs/longer", "runs/digits"),
    ],
    "docs/python.md": [
        ("config.epochs = 20.0\n", f"{SMALL}config.image_size = 16\n"),
        ("config.image_size = 40\n", f"{SMALL}config.image_size = 16\n"),
        ('data_dir = "pets"\ndataset', f'data_dir = "pets"\n{SMALL}dataset'),
        ('"depth": 3', '"depth": 1'),
        ("(batches, 200)", "(batches, 2)"),
    ],
    NOTEBOOK: [
        ('("train", 300), ("val", 60)', '("train", 8), ("val", 4)'),
        (
            "config.epochs = 15.0\nconfig.batch_size = 48",
            "config.epochs, config.image_size = 1.0, 16\nconfig.batch_size = 8",
        ),
        ("depth = 3", "depth = 1"),
    ],
}


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def blocks_of(name):
    """The pieces of code of a page or notebook, in order."""
    if not name.endswith(".ipynb"):
        return BLOCK.findall(text_of(name))
    cells = json.loads(text_of(name))["cells"]
    return ["".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "code"]


PAGES = [
    name
    for name in ("README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md")))
    if BLOCK.search(text_of(name))
]


def given(page, data_dir):
    """What a page takes for granted."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
    tiny = ("digits", [*TINY[1:], f"--config.data_dir={data_dir}"])
    return {
        "README.md": {"features": jnp.ones((1, 8, 8, 5)), "tiny": tiny},
        "docs/start.md": {"tiny": tiny},
        "docs/data.md": {"image": image, "key": jax.random.key(0)},
        "docs/extending.md": {
            "jnp": jnp,
            "Tokens": Tokens,
            "functools": functools,
            "Callable": Callable,
            "check_range": check_range,
            "Part": Part,
            "PARTS": dict(PARTS),
            "mask_grid": lambda key, image, probability: image,
        },
    }.get(page, {})


def make_images(folder, rng):
    """What a reader of the pages has: class folders, photographs, and the picture of a seven."""
    names = [
        f"pets/{split}/{one}/{n}.png"
        for split, count in (("train", 8), ("val", 3))
        for one in ("cat", "dog")
        for n in range(count)
    ]
    for name in (*names, "photos/a.png", "photos/b.png", "seven.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)


def run_blocks(page, names, monkeypatch):
    """Runs a page's code; the namespace is a module's, as flax wants it of classes."""
    module = types.ModuleType(re.sub(r"\W", "_", page))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(module).update(names)
    blocks, cuts = blocks_of(page), CUT.get(page, [])
    for text, _ in cuts:
        assert any(text in block for block in blocks), f"{page} has no {text!r} to be cut down"
    for number, block in enumerate(blocks):
        for text, instead in cuts:
            block = block.replace(text, instead)
        if file := FILE.match(block):
            Path(file[1]).write_text(block, encoding="utf-8")
            continue
        block = re.sub(r"^( *)%pip .*$", r"\1pass", block, flags=re.MULTILINE)
        exec(compile(block, f"{page}, block {number}", "exec"), vars(module))  # the page's own words
    return vars(module)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with images."""
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path, np.random.default_rng(0))
    backend = matplotlib.get_backend()
    matplotlib.use("agg")
    yield tmp_path
    matplotlib.use(backend)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/python.md"])
def test_the_code_of_a_page_runs(page, place, tiny_run, data_dir, monkeypatch):
    shutil.copytree(tiny_run[0], place / "runs" / "digits")
    run_blocks(page, given(page, data_dir), monkeypatch)


@pytest.mark.slow
def test_the_page_about_python_runs(place, monkeypatch, capsys):
    names = run_blocks("docs/python.md", {}, monkeypatch)
    printed = capsys.readouterr().out
    assert "finished: top-1" in printed and "16 images of ('cat', 'dog')" in printed and "\n2 runs/none" in printed
    assert names["vectors"].shape == (2, 16) and np.isfinite(names["loss"])
    assert names["params"]["head"]["kernel"].shape == (16, 5)


@pytest.mark.slow
def test_the_notebook_runs(place, monkeypatch, capsys):
    run_blocks(NOTEBOOK, {}, monkeypatch)
    printed = capsys.readouterr().out
    assert "finished: top-1" in printed and "of 12 images" in printed
    assert list((place / "tutorial" / "pictures").glob("*_super_tokens.png"))
    assert (place / "tutorial" / "exported" / "model.jaxexport").exists()


def test_the_notebook_is_small_and_has_no_output():
    notebook = json.loads(text_of(NOTEBOOK))
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["language"]) == (4, "python")
    cells = notebook["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    assert len(text_of(NOTEBOOK)) < 20_000
    magics = re.findall(r"^ *([%!].*)", "\n".join(blocks_of(NOTEBOOK)), re.MULTILINE)
    assert [line.split()[:2] for line in magics] == [["%pip", "install"]], "what is no Python is not run here"
    assert "%pip" in blocks_of(NOTEBOOK)[0], "the first cell installs"


def test_each_block_of_python_is_found():
    """Another spelling of its language, or an indented block, would not be run."""
    for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "CONTRIBUTING.md", ROOT / "launch" / "README.md"):
        text = path.read_text(encoding="utf-8")
        fences = re.findall(
            r"^ *```+ *(?:\{code-block\} *)?(?:py\w*|ipython\w*) *$", text, re.MULTILINE | re.IGNORECASE
        )
        assert len(fences) == len(BLOCK.findall(text)), f"{path.name} has code that no test runs"
        assert not fences or path.name == "README.md" or path.parent.name == "docs"
