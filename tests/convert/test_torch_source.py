"""The file of plain PyTorch without PyTorch: it is Python, makes each parameter once, and holds what it needs alone.

What it computes is compared in tests/interop/test_torch_export.py.
"""

import ast
import contextlib
import functools
import importlib.util
import json
import sys

import fake_torch
import jax
import pytest
import safetensors.numpy
from made_runs import run_of
from torch_models import PAIRS, REDUCED, VARIANTS, tiny_model

from stce_jax.convert.formats import torch as form
from stce_jax.convert.torch_source import assembly, bodies, embeddings, reductions
from stce_jax.convert.torch_source.call import Call, render
from stce_jax.convert.torch_source.weights import state_dict
from stce_jax.errors import CheckpointError, ConfigError
from stce_jax.models.bodies import BODIES
from stce_jax.models.embeddings import EMBEDDINGS
from stce_jax.models.reductions import REDUCTIONS
from stce_jax.workdir.weights import flatten

CASES = {
    **{"_".join(pair): (*pair, {}) for pair in PAIRS},
    **{name: ("vit", "patch", {"pooling": pooling, "reduction": own}) for name, (pooling, own) in REDUCED.items()},
    **VARIANTS,
}
# Of bodies with an embedding of their own the quick tier has that one alone, and of vit all.
QUICK = {
    case
    for case, (body, embedding, _) in CASES.items()
    if case not in map("_".join, PAIRS) or embedding == getattr(BODIES[body], "EMBEDDING", embedding)
}
MARKED = [pytest.param(case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES]


@functools.cache
def model_and_text(case):
    """(model, text of its file) of a case."""
    body, embedding, options = CASES[case]
    model = tiny_model(body, embedding, **options)
    return model, text_of(model)


def text_of(model):
    constants = {"IMAGE_SIZE": 32, "SHORT_SIDE": 36, "MEAN": (0.5, 0.5, 0.5), "STD": (0.2, 0.2, 0.2)}
    constants |= {"INTERPOLATION": "bicubic", "NORM_EPSILON": 1e-6}
    return assembly.program(bodies.call_of(model), docstring="A model.", constants=constants, names={"CLASSES": ("a",)})


def made_by(text, monkeypatch):
    """The model that a file makes of the stand-in for PyTorch."""
    for name, module in fake_torch.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    space = {"__name__": "model", "__file__": "/nowhere/model.py"}
    exec(compile(text, "model.py", "exec"), space)
    return space["build_model"]()


def definitions(text):
    """{name: names that it uses} of a file's functions, classes and constants, and of its imports."""
    found = {}
    for node in ast.parse(text).body:
        used = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name: set() for alias in node.names}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            assert node.name not in found, f"{node.name} is there twice"
            found[node.name] = used
        elif isinstance(node, ast.Assign):
            found[node.targets[0].id] = used
    return found


@pytest.mark.parametrize("case", MARKED)
def test_a_file_makes_every_parameter_once_and_holds_nothing_else(case, monkeypatch):
    model, text = model_and_text(case)
    shapes = made_by(text, monkeypatch).shapes()
    arrays = state_dict(model, flatten(run_of(model).variables))
    assert {name: array.shape for name, array in arrays.items()} == shapes
    found = definitions(text)
    left, reached = ["build_model", "load", "preprocess", "normalise", "CLASSES"], set()
    while left:
        if (name := left.pop()) in found and name not in reached:
            reached.add(name)
            left += found[name]
    assert reached == found.keys(), f"not needed: {found.keys() - reached}"
    assert text == text_of(model), "the same model gives another text"
    assert max(map(len, text.splitlines())) <= 120


def test_every_entry_of_the_registries_has_a_form():
    for table, pieces in (
        (BODIES, bodies.BODIES),
        (EMBEDDINGS, embeddings.EMBEDDINGS),
        (REDUCTIONS, reductions.REDUCTIONS),
    ):
        own = {kind for kind in table.values() if kind.__module__.startswith("stce_jax.")}
        assert own == pieces.keys()


@pytest.mark.slow
def test_no_piece_is_left_over():
    used = set().union(*(definitions(model_and_text(case)[1]) for case in CASES))
    assert assembly.pieces().definitions.keys() <= used, "no model needs these"


def test_a_part_of_ones_own_is_refused():
    class Own(type(tiny_model().embedding)):
        pass

    model = tiny_model()
    with pytest.raises(ConfigError, match="no PyTorch form of the embedding Own"):
        bodies.call_of(model.clone(embedding=Own(width=16, patch_size=4)))

    class OwnBody(type(model)):
        pass

    with pytest.raises(ConfigError, match="no PyTorch form of the body OwnBody"):
        bodies.call_of(OwnBody(embedding=model.embedding, num_classes=2))


def test_a_reduction_beside_newer_ingredients_is_refused():
    for name, option in {"registers": 2, "layer_scale": 0.1, "norm": "rmsnorm", "qk_norm": True}.items():
        model = tiny_model(reduction={"name": "topk", "blocks": (1,)}, **{name: option})
        with pytest.raises(ConfigError, match="no PyTorch form of a token reduction beside ") as refused:
            bodies.call_of(model)
        assert "\n" not in str(refused.value)


def test_without_pytorch_the_files_are_written_and_this_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    run = run_of(tiny_model())
    done = form.write(tmp_path, run, ema=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.py", "model.safetensors"]
    assert done["batch_sizes"] == [] and done["difference"] is None and done["notes"] == [form.NOT_COMPARED]
    assert done["bytes"] == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert done["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(run.variables["params"]))
    text = (tmp_path / "model.py").read_text()
    assert "moving average of the weights of step 7" in text and "SHORT_SIDE = 36\n" in text
    content = (tmp_path / "model.safetensors").read_bytes()
    arrays = safetensors.numpy.load(content)
    assert {name: array.shape for name, array in arrays.items()} == made_by(text, monkeypatch).shapes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert json.loads(header["__metadata__"]["class_names"]) == list(run.class_names)


@pytest.mark.parametrize(
    "names", [('it\'s "it"', "a\nb", "\u202e\u2066x", "é\\", "", "half \ud800"), ("one",), tuple("abc") * 99]
)
def test_names_of_classes_are_text_and_nothing_else(names):
    text = f"CLASSES = {render(names, '', 10)}"
    assert ast.literal_eval(text.removeprefix("CLASSES = ")) == names
    assert text.replace("\n", "").isprintable() and max(map(len, text.splitlines())) <= 120


def test_calls_are_written_as_people_would():
    block = Call("Block", {"width": 8, "heads": (1,), "rate": 0.5})
    assert render([block, block]) == "[Block(width=8, heads=(1,), rate=0.5) for _ in range(2)]"
    assert render([block, Call("Other")]) == "[Block(width=8, heads=(1,), rate=0.5), Other()]"
    with pytest.raises(TypeError, match="bytes is no option"):
        render(Call("Block", {"width": b""}))


def test_an_installation_that_is_not_whole_is_named(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "torch" or found(name))
    monkeypatch.setitem(sys.modules, "torch", None)
    done = form.compare(tmp_path, run_of(tiny_model()))
    assert done["batch_sizes"] == [] and "torch cannot be imported (" in done["notes"][0]


def test_what_does_not_run_is_refused(tmp_path, monkeypatch):
    for name, module in fake_torch.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    torch = sys.modules["torch"]
    torch.inference_mode, torch.from_numpy = contextlib.nullcontext, lambda array: array
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "torch" or found(name))
    (tmp_path / "model.py").write_text("def load():\n    raise RuntimeError('size mismatch')\n")
    with pytest.raises(CheckpointError, match=r"model\.py does not run: size mismatch; nothing was exported"):
        form.compare(tmp_path, run_of(tiny_model()))


def test_what_pytorch_cannot_resize_by_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(form.importlib.util, "find_spec", lambda name: None)
    done = form.write(tmp_path, run_of(tiny_model(), interpolation="lanczos"), ema=False)
    assert [note for note in done["notes"] if "PyTorch has no lanczos" in note]
    assert 'INTERPOLATION = "bicubic"' in (tmp_path / form.MODEL).read_text()


def test_constants_stand_where_they_are_used():
    assert "NORM_EPSILON = 1e-06" in text_of(tiny_model("deit", "linear_patch"))
    assert "NORM_EPSILON" not in text_of(tiny_model("swin", "linear_patch"))
