"""Weights, names and paths that were made to break the door: one line each, and nothing that hangs."""

import json

import numpy as np
import pytest
import safetensors.numpy
from made_runs import TINY_VIT, made_run
from weight_sources import TIMM, noise, write_folder

import stce_jax
from stce_jax.convert import formats, layouts
from stce_jax.convert.card import write_card
from stce_jax.convert.formats import safetensors as own_format
from stce_jax.convert.sources import open_source
from stce_jax.errors import CheckpointError, ConfigError, StceError
from stce_jax.verbs.appearing import appearing
from stce_jax.verbs.import_weights import import_weights

TIMM_VIT = noise()[0]
DEIT = {"patch_size": 8, **TINY_VIT}


def refuse(path, arrays, words):
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(CheckpointError) as caught:
        open_source(path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


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
    refuse(path, {"module." * 100_000 + "x": np.zeros(1, np.float32)}, "whose name has more than 1,000 letters")
    stacked = {"embedding/kernel": np.zeros((8, 8, 3, 4), np.float32)}
    stacked["Transformer/encoderblock/x"] = np.zeros((10**9, 0), np.float32)
    refuse(path, stacked, "(1000000000, 0), not one part for each block")
    theirs, _, _ = noise("hf_vit")
    twice = theirs | {"deit.layernorm.weight": theirs["vit.layernorm.weight"] + 1}
    refuse(path, twice, "'layernorm.weight' twice, once as")
    refuse(path, TIMM_VIT | {"norm.weight": np.full(16, np.nan, np.float32)}, "norm/scale holds NaN or infinity")
    refuse(path, TIMM_VIT | {"norm.weight": np.full(16, 1e300)}, "norm/scale holds NaN or infinity")


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
    for name in ("safetensors", "huggingface"):
        (tmp_path / name).mkdir()
        formats.write(name, tmp_path / name, run, ema=False)
        assert open_source(tmp_path / name).labels.names == tuple(names)


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
