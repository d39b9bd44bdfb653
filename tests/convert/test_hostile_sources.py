"""Weights, names and paths that were made to break the door: one line each, and nothing that hangs."""

import ast
import copy
import json
import os

import numpy as np
import pytest
import safetensors.numpy
from made_runs import TINY_VIT, made_run
from weight_sources import CLASSES, TIMM, noise, refuse, write_folder

import stce_jax
from stce_jax.analysis import files as evaluation_files
from stce_jax.convert import files, formats, layouts
from stce_jax.convert.card import write_card
from stce_jax.convert.formats import safetensors as own_format
from stce_jax.convert.sources import open_source
from stce_jax.errors import CheckpointError, ConfigError, StceError
from stce_jax.paths import encoded
from stce_jax.verbs.appearing import appearing
from stce_jax.verbs.import_weights import import_weights

TIMM_VIT = noise()[0]
DEIT = {"patch_size": 8, **TINY_VIT}


def refuse_arrays(path, arrays, words):
    safetensors.numpy.save_file(arrays, path)
    refuse(path, words)


@pytest.mark.parametrize("layout", ["timm_vit", "timm_naflex", "hf_vit", "augreg_npz"])
def test_no_shape_of_a_vit_ends_in_another_error(layout):
    theirs, _, _ = noise(layout)
    module = layouts.LAYOUTS[layout]
    for name in theirs:
        for shape in (None, (), (0,), (0, 3), (2, 1, 1), (1, 1, 1, 1)):
            changed = {other: array for other, array in theirs.items() if other != name}
            changed |= {} if shape is None else {name: np.zeros(shape, np.float32)}
            if not module.recognise(changed.keys()):
                continue
            try:
                arrays = getattr(module, "normal", dict)(changed)
                layouts.to_ours(layout, arrays, module.options(arrays, {}))
            except StceError as error:
                assert "\n" not in str(error), (name, shape)


def test_what_hangs_fills_the_memory_or_is_lost(tmp_path):
    path = tmp_path / "weights.safetensors"
    refuse_arrays(path, {"module." * 100_000 + "x": np.zeros(1, np.float32)}, "whose name has more than 1,000 letters")
    stacked = {"embedding/kernel": np.zeros((8, 8, 3, 4), np.float32)}
    stacked["Transformer/encoderblock/x"] = np.zeros((10**9, 0), np.float32)
    refuse_arrays(path, stacked, "(1000000000, 0), not one part for each block")
    theirs, _, _ = noise("hf_vit")
    twice = theirs | {"deit.layernorm.weight": theirs["vit.layernorm.weight"] + 1}
    refuse_arrays(path, twice, "'layernorm.weight' twice, once as")
    refuse_arrays(path, TIMM_VIT | {"norm.weight": np.full(16, np.nan, np.float32)}, "norm/scale holds NaN or infinity")
    refuse_arrays(path, TIMM_VIT | {"norm.weight": np.full(16, 1e300)}, "norm/scale holds NaN or infinity")


def test_storage_that_nothing_opens_is_one_line():
    with pytest.raises(ConfigError, match="cannot open nothing://bucket/run: nothing reads"):
        open_source("nothing://bucket/run")


def test_an_output_that_is_a_link_is_refused_before_any_work(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(ConfigError, match="link is there already"), appearing(tmp_path / "link"):
        pytest.fail("it began")


@pytest.mark.slow
def test_a_name_that_no_file_can_hold_goes_out_and_in_again(tmp_path):
    names = ["half \ud800", 'tw"o', "<b>", "---\n# x", "\u202e"]
    source = write_folder(tmp_path / "hub", TIMM_VIT, TIMM | {"label_names": names})
    import_weights(source, tmp_path / "run")
    run = stce_jax.load_run(tmp_path / "run")
    for name in ("safetensors", "huggingface", "timm", "torch"):
        (tmp_path / name).mkdir()
        formats.write(name, tmp_path / name, run, ema=False)
        if name != "torch":
            assert open_source(tmp_path / name).labels.names == tuple(names)
    assert "`half \\ud800`" in (tmp_path / "huggingface" / "README.md").read_text("utf-8")
    program = ast.parse((tmp_path / "torch" / "model.py").read_text("utf-8"))
    assert ast.literal_eval(program.body[-1].value) == tuple(names), "CLASSES is the last of the file"
    table = evaluation_files._table(np.eye(5, dtype=int), names)
    assert b"half \\ud800" in table and encoded("caf\udce9") == b"caf\xe9"


def test_a_format_is_included_once():
    with pytest.raises(ConfigError, match="names a format twice"):
        formats.find("huggingface", {"include": ("timm", "timm")})


def test_the_cards_code_resizes_as_the_run(tmp_path):
    run = made_run("deit_ti", **DEIT)
    text = write_card(run, ema=False, weights="w", license="mit", known={}, include=())
    assert '"interpolation": image["interpolation"]' in text


@pytest.mark.slow
def test_an_export_whose_reduction_has_one_number_is_imported(tmp_path):
    run = made_run("deit_ti", reduction="tome", **DEIT)  # r is 13 by its own default
    own_format.write(tmp_path, run, ema=False)
    assert json.loads((tmp_path / "model.json").read_text())["model"]["r"] == 13
    import_weights(tmp_path, tmp_path / "run")
    assert stce_jax.load_run(tmp_path / "run").config.model.reduction.tome.r == (13,)


def test_timm_has_one_epsilon(tmp_path):
    with pytest.raises(ConfigError, match=r"LayerNorms with the epsilon 0\.001"):
        formats.write("timm", tmp_path, made_run("deit_ti", norm_epsilon=1e-3, **DEIT), ema=False)


# --- configs and names that lie


@pytest.mark.parametrize(
    "name, what",
    [
        ("blocks.0.gamma_1", "layer scale of another form"),
        ("norm_pre.weight", "a norm before the blocks"),
        ("blocks.0.mlp.fc1_g.weight", "gated MLPs"),
        ("fc_norm.weight", "a norm behind the pooling (fc_norm)"),
        ("attn_pool.q.weight", "attention pooling"),
        ("rope.periods", "rotary positions"),
    ],
)
def test_what_the_model_lacks_is_named(tmp_path, name, what):
    theirs, _, _ = noise()
    folder = write_folder(tmp_path / "a", theirs | {name: np.ones(16, np.float32)}, TIMM)
    refuse(folder, f"it has {what}")


@pytest.mark.parametrize(
    ("name", "shape", "what"),
    [
        ("blocks.0.ls1.gamma", (16,), "blocks.0.ls2.gamma is missing"),
        ("blocks.1.attn.q_norm.weight", (8,), "blocks.0.attn.q_norm.weight' is missing"),
        ("reg_token", (16,), "'reg_token' has the shape (16,), not 3 axes"),
        ("reg_token", (1, 2, 16), "its 17 positions are of no square image"),
        ("reg_token", (1, 1, 8), "params/registers"),
    ],
)
def test_half_of_a_part_is_refused(tmp_path, name, shape, what):
    theirs, _, _ = noise()
    folder = write_folder(tmp_path / "a", theirs | {name: np.ones(shape, np.float32)}, TIMM)
    with pytest.raises(CheckpointError) as caught:
        stce_jax.load_weights(folder)
    assert what.replace("'", "") in str(caught.value).replace("'", "") and "\n" not in str(caught.value)


CONFIGS = {
    "a class too many": ({"num_classes": CLASSES + 1}, "its head is of 5 classes"),
    "a million classes": ({"num_classes": 1_000_000}, "num_classes 1000000"),
    "labels of others": ({"label_names": ["a"] * 4}, "no list of 5 names"),
    "labels that are none": ({"label_names": ["a", "b", "c", "d", 7]}, "7 among label_names"),
    "another size": ({"model_args": {"img_size": 64, "num_heads": 2}}, "64x64 pixels, 64 patches of 8"),
    "a size without end": ({"model_args": {"img_size": 10**12, "num_heads": 2}}, "img_size=1000000000000"),
    "a size that is none": ({"model_args": {"img_size": "large", "num_heads": 2}}, "img_size='large'"),
    "a norm without biases": ({"model_args": {"norm_layer": "rmsnorm"}}, "norm_layer='rmsnorm', which has no blocks.0"),
    "heads that are none": ({"model_args": {"num_heads": -1}}, "num_heads=-1"),
    "heads that do not divide": ({"model_args": {"num_heads": 3}}, "cannot be divided among 3 heads"),
    "heads without end": ({"model_args": {"num_heads": 10**30}}, "num_heads="),
    "another activation": ({"model_args": {"act_layer": "relu", "num_heads": 2}}, "act_layer='relu'"),
    "another pooling": ({"global_pool": "avg"}, "global_pool='avg'"),
    "a mean of two": ({"pretrained_cfg": {"mean": [0.5, 0.5]}}, "mean=[0.5, 0.5]"),
    "a std of zero": ({"pretrained_cfg": {"std": [0, 0, 0]}}, "std=[0, 0, 0]"),
    "a mean that is none": ({"pretrained_cfg": {"mean": [float("nan")] * 3}}, "mean=[nan"),
    "a crop of three": ({"pretrained_cfg": {"crop_pct": 3}}, "crop_pct=3"),
    "an unknown interpolation": (
        {"pretrained_cfg": {"interpolation": "magic\x1b[2J"}},
        "interpolation='magic\\x1b[2J'",
    ),
    "an input of two": ({"model_args": {}, "pretrained_cfg": {"input_size": [32, 32]}}, "input_size=[32, 32]"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_lies_is_one_line(tmp_path, case):
    changes, words = CONFIGS[case]
    config = copy.deepcopy(TIMM) | changes
    theirs, _, _ = noise()
    refuse(write_folder(tmp_path / "a", theirs, config), words)


@pytest.mark.parametrize("kind", ["broken", "list", "deep", "pipe", "link to nothing", "directory"])
def test_a_config_that_is_none_is_one_line(tmp_path, kind):
    theirs, _, _ = noise()
    folder = write_folder(tmp_path / "a", theirs)
    config = folder / files.CONFIG
    if kind == "pipe":
        os.mkfifo(config)
    elif kind == "link to nothing":
        config.symlink_to("nothing")
    elif kind == "directory":
        config.mkdir()
    else:
        config.write_text({"broken": '{"a": ', "list": "[1]", "deep": "[" * 100_000}[kind])
    refuse(folder, f"cannot read {config}")


def test_a_config_may_be_a_link(tmp_path):
    """As in the cache of the hub."""
    theirs, _, _ = noise()
    folder = write_folder(tmp_path / "a", theirs, TIMM)
    (folder / files.CONFIG).rename(tmp_path / "blob")
    (folder / files.CONFIG).symlink_to(tmp_path / "blob")
    assert open_source(folder).preprocessing.crop_fraction == 0.9


def test_names_of_no_layout_missing_and_odd_arrays(tmp_path):
    theirs, _, _ = noise()
    np.savez(tmp_path / "odd.npz", **{"conv\x1b[31m": np.zeros(3)})
    refuse(tmp_path / "odd.npz", "names of no known layout ('conv\\x1b[31m'); known are timm's ViT or DeiT")
    np.savez(tmp_path / "empty.npz")
    refuse(tmp_path / "empty.npz", "it is empty")
    refuse(
        tmp_path / "odd.npz", "take one of those libraries' files of it, or rename its arrays as docs/weights.md says"
    )
    missing = {name: array for name, array in theirs.items() if name != "blocks.1.mlp.fc2.bias"}
    np.savez(tmp_path / "missing.npz", **missing)
    refuse(tmp_path / "missing.npz", "'blocks.1.mlp.fc2.bias' is missing, which timm's ViT or DeiT has")
    np.savez(tmp_path / "flat.npz", **(theirs | {"patch_embed.proj.weight": np.zeros((16, 192), np.float32)}))
    refuse(tmp_path / "flat.npz", "'patch_embed.proj.weight' has the shape (16, 192), not 4 axes")
    np.savez(tmp_path / "square.npz", **(theirs | {"pos_embed": np.zeros((1, 16, 16), np.float32)}))
    refuse(tmp_path / "square.npz", "no_embed_class")


def test_pickles_are_refused_and_the_converter_named(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"x")
    refuse(tmp_path / "a.pth", "python -m stce_jax.convert.pth_to_safetensors IN OUT")
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    (folder / files.CONFIG).write_text("{}")
    refuse(folder, "python -m stce_jax.convert.pth_to_safetensors IN OUT")


def test_a_packed_archive_that_would_fill_the_memory(tmp_path, monkeypatch):
    from stce_jax.workdir import weights

    monkeypatch.setattr(weights, "_MAX_UNPACKED", 2**20)
    np.savez_compressed(tmp_path / "a.npz", **{"norm.weight": np.zeros(2**20, np.float32)})
    refuse(tmp_path / "a.npz", "bytes would become")
