"""Layouts of bodies: each golden file is recognised, read to its logits, and written back to the bit."""

import re

import numpy as np
import pytest
from golden_bodies import FILES, flat, golden_body
from layout_checks import check_layout

from stce_jax.convert import layouts
from stce_jax.convert.initial import read_weights
from stce_jax.convert.layouts.said import unshaped
from stce_jax.errors import CheckpointError, StceError
from stce_jax.models.factory import create_model
from stce_jax.models.ops.positions import resize_bicubic
from stce_jax.training.state import abstract_variables
from stce_jax.workdir.weights import save_weights, unflatten

# Those with a file that is committed; the golden tests of `models/bodies` read the others, too.
READ = [
    "swin_img64_w4_shift",
    "swin_timm_pad_img44x36_w4",
    "cvt_img36x44",
    "focal_img32_w4",
    "focal_img64_w4_convembed",
    "cmt_img32",
    "mobilevit_img48x80_interp",
    "dat_v1_img64",
    "datpp_img64",
]
OTHERS = ("vit_hf_tiny", "vit_table3_naflex_tiny")
SWIN = "swin_timm_pad_img44x36_w4"


def read(name):
    """(layout, config, arrays by the other library's names, options) of a golden file."""
    layout, config = FILES[name]
    arrays = {key: array.astype(np.float32) for key, array in golden_body(name)[2].items()}
    return layout, config, arrays, layouts.options_of(layout, arrays, config)


def refused(layout, arrays, config=None):
    """The one line in which these arrays are refused."""
    with pytest.raises(CheckpointError) as error:
        layouts.to_ours(layout, arrays, layouts.options_of(layout, arrays, config or {}))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", READ)
def test_the_golden_models(name):
    check_layout(name, *FILES[name])


@pytest.mark.parametrize("name", [*FILES, *OTHERS])
def test_a_file_is_recognised_by_its_names_and_taken_for_no_other(name):
    expected = {FILES[name][0]} if name in FILES else set()
    own = {layout for layout, _ in FILES.values()} | {"hf_swin"}
    names = golden_body(name)[2].keys()
    assert {layout for layout in own if layouts.LAYOUTS[layout].recognise(names)} == expected


@pytest.mark.parametrize("name", [name for name in READ if name != "swin_img64_w4_shift"])
def test_a_file_is_written_back_to_the_bit_with_or_without_its_head(name):
    layout, _, arrays, options = read(name)
    batches = {f"{key.removesuffix('.running_mean')}.num_batches_tracked" for key in arrays if "running_mean" in key}
    found, left = layouts.to_ours(layout, arrays | dict.fromkeys(batches, np.array(7)), options)
    assert not left, "counts of batches are no weights"
    back = layouts.to_theirs(layout, found, options)
    assert back.keys() == arrays.keys() and all((back[key] == array).all() for key, array in arrays.items())
    for key in [key for key in arrays if "head" in key]:
        del arrays[key]
    found, _ = layouts.to_ours(layout, arrays, options)
    assert "params/head/kernel" not in found and layouts.to_theirs(layout, found, options).keys() == arrays.keys()


def test_one_swin_in_every_layout():
    """The same arrays by other names; Hugging Face has queries, keys and values apart."""
    _, _, arrays, options = read(SWIN)
    ours, _ = layouts.to_ours("timm_swin", arrays, options)
    for layout in ("swin", "hf_swin"):
        theirs = layouts.to_theirs(layout, ours, options)
        assert layouts.recognise(theirs.keys()) == layout
        buffers = {f"{key.removesuffix('_bias_table')}_index": np.zeros(1) for key in theirs if "bias_table" in key}
        assert layouts.options_of(layout, theirs, {}) == options
        again, left = layouts.to_ours(layout, theirs | buffers, options)
        assert not left and again.keys() == ours.keys()
        assert all((again[path] == array).all() for path, array in ours.items())
    key = theirs["swin.encoder.layers.0.blocks.1.attention.self.key.weight"]
    np.testing.assert_array_equal(key, arrays["layers.0.blocks.1.attn.qkv.weight"][16:32])


def test_a_swin_by_the_names_that_transformers_5_has_in_memory():
    """Which its files have not, in any version; tests/interop compares with the library."""
    _, _, arrays, options = read(SWIN)
    files = layouts.to_theirs("hf_swin", layouts.to_ours("timm_swin", arrays, options)[0], options)
    pairs = {"self.query": "q_proj", "self.key": "k_proj", "self.value": "v_proj", "output.dense": "o_proj"}
    pairs = {f".attention.{old}.": f".attention.{new}." for old, new in pairs.items()}
    pairs |= {".attention.self.rel": ".attention.relative_position_bias.rel"}
    pairs |= {".intermediate.dense.": ".mlp.fc1.", ".output.dense.": ".mlp.fc2."}  # behind that of the attention

    def in_memory(name):
        for old, new in pairs.items():
            name = name.replace(old, new)
        return name

    memory = {in_memory(name): array for name, array in files.items()}
    assert "swin.encoder.layers.0.blocks.1.mlp.fc2.bias" in memory and memory.keys() != files.keys()
    assert layouts.recognise(memory.keys()) == "hf_swin"
    back = layouts.LAYOUTS["hf_swin"].normal(memory)
    assert back.keys() == files.keys() and all(back[name] is array for name, array in files.items())


def test_options_are_read_off_shapes():
    assert read(SWIN)[-1] == {
        "patch_size": 4,
        "widths": (16, 32),
        "depths": (2, 2),
        "heads": (2, 4),
        "window": 4,
        "mlp_ratio": 4,
    }
    focal = read("focal_img32_w4")[-1]
    assert focal["focal_windows"] == (3, 1) and focal["expands"] == (2, 0), "the last map is as small as a window"
    cmt = read("cmt_img32")[-1]
    assert cmt["key_strides"] == (4, 2, 1, 1) and cmt["mlp_ratios"] == (3.5, 4.0, 4.0, 4.0)
    mobilevit = read("mobilevit_img48x80_interp")[-1]
    assert mobilevit["heads"] == (4, 4, 4) and mobilevit["stem_widths"] == (8, 8, 16) and mobilevit["stem_blocks"] == 2
    dat = read("datpp_img64")[-1]
    assert dat["groups"] == (1, 2, 2, 4) and dat["kernels"] == (5, 3, 3, 3)
    assert [bool(scale) for scale in dat["layer_scale"]] == [False, False, False, True]


def test_what_shows_in_no_shape_is_that_of_the_published_size():
    widths, depths = (64, 192, 384), (1, 4, 16)
    assert unshaped("cvt", {}, {"widths": widths, "depths": depths}, "heads") == {"heads": (1, 3, 6)}
    said = {"model_args": {"heads": [2, 3, 6]}}
    assert unshaped("cvt", said, {"widths": widths, "depths": depths}, "heads") == {"heads": [2, 3, 6]}
    datpp = {"widths": (64, 128, 256, 512), "heads": (2, 4, 8, 16)}
    assert unshaped("datpp", {}, datpp, "strides", "offset_ranges") == {
        "strides": (8, 4, 2, 1),
        "offset_ranges": (0.0,) * 4,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layout", "options"),
    [("cmt_ti", "cmt", ("mlp_ratios", "stem_widths")), ("dat_t", "dat", ("kinds", "strides", "offset_ranges"))],
)
def test_a_published_size_is_read_whole(name, layout, options):
    model = create_model(name, num_classes=10, image_size=160)
    shapes = flat(abstract_variables(model, 160))
    own = {option: getattr(model, option) for option in model.__dataclass_fields__}
    own |= {option: getattr(model.embedding, option) for option in model.embedding.__dataclass_fields__}
    arrays = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in shapes.items()}
    theirs = layouts.to_theirs(layout, arrays, own)
    found = layouts.options_of(layout, theirs, {})
    assert {option: found[option] for option in options} == {option: own[option] for option in options}
    again, left = layouts.to_ours(layout, theirs, found)
    assert not left and {path: array.shape for path, array in again.items()} == {
        path: leaf.shape for path, leaf in shapes.items()
    }


def test_what_cannot_be_known_is_refused_by_its_name():
    for name, option in (("cvt_img36x44", "heads"), ("dat_v1_img64", "kinds"), ("datpp_img64", "kinds")):
        layout, _, arrays, _ = read(name)
        assert f"no shape tells the option {option}, and no published size of" in refused(layout, arrays)
    layout, config, arrays, _ = read("dat_v1_img64")
    assert "the option kinds is ['LS', 'L', 'DL', 'D']" in refused(
        layout, arrays, config | {"kinds": ["LS", "L", "DL", "D"]}
    )
    buffers = {"stages.0.attns.1.attn_mask": np.zeros(1)}
    assert layouts.options_of(layout, arrays | buffers, config | {"kinds": None})["kinds"][0] == "LS"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (SWIN, {"absolute_pos_embed": (1, 99, 16)}, "it has learned positions of patches ('absolute_pos_embed')"),
        (SWIN, {"layers.1.blocks.0.attn.relative_position_bias_table": (9, 4)}, "window of 4, 2; the body has one"),
        (SWIN, {"layers.0.blocks.0.attn.relative_position_bias_table": (48, 2)}, "no table of square windows"),
        (SWIN, {"layers.0.blocks.0.mlp.fc1.weight": (40, 16)}, "mlp_ratio is 40/16, no whole number"),
        (SWIN, {"layers.0.blocks.1.attn.qkv.weight": (3, 4, 5)}, "has the shape (3, 4, 5), not 2 axes"),
        (SWIN, {"norm.weight": None}, "norm.weight' is missing, which timm's Swin has"),
        (
            "focal_img32_w4",
            {"layers.0.blocks.1.attn_mask": (1,)},
            "it has shifted windows ('layers.0.blocks.1.attn_mask')",
        ),
        ("cmt_img32", {"_fc.weight": (48, 32, 3, 3)}, "_fc.weight has the shape (48, 32, 3, 3), which gives no"),
        ("cmt_img32", {"_fc.weight": (0, 32, 1, 1)}, "not 4 axes of at least 1"),
        ("mobilevit_img48x80_interp", {"stages.2.0.attn.fc1.weight": (1,)}, "squeeze and excitation"),
        ("datpp_img64", {"stages.1.proj.weight": (1,)}, "a convolution before a stage"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_in_one_line(name, changes, message):
    layout, config, arrays, _ = read(name)
    for key, shape in changes.items():
        if shape is None:
            del arrays[key]
        else:
            arrays[key] = np.zeros(shape, np.float32)
    assert message in refused(layout, arrays, config)


@pytest.mark.parametrize("name", [name for name in READ if name != "swin_img64_w4_shift"])
def test_no_shape_of_a_stranger_ends_in_another_error(name):
    layout, config, arrays, _ = read(name)
    alike = {re.sub(r"\d+", "0", key): key for key in arrays}
    for key in alike.values():
        for shape in (None, (), (0, 3), (5, 1, 2), (3, 2, 1, 1)):
            changed = {other: array for other, array in arrays.items() if other != key}
            changed |= {} if shape is None else {key: np.zeros(shape, np.float32)}
            try:
                layouts.to_ours(layout, changed, layouts.options_of(layout, changed, config))
            except StceError as error:
                assert "\n" not in str(error), (key, shape)


def test_a_model_that_no_other_library_has_is_not_written():
    _, _, arrays, options = read(SWIN)
    ours, _ = layouts.to_ours("timm_swin", arrays, options)
    with pytest.raises(CheckpointError, match="Swin with downsample='stce' is in no other library"):
        layouts.to_theirs("timm_swin", ours, options | {"downsample": "stce"})
    with pytest.raises(CheckpointError, match="timm's Swin has no place for params/embedding/cell"):
        layouts.to_theirs("timm_swin", ours | {"params/embedding/cell": np.zeros(1)}, options)
    with pytest.raises(CheckpointError, match="the model has no params/norm/bias, which timm's Swin has"):
        layouts.to_theirs("timm_swin", {path: ours[path] for path in ours.keys() - {"params/norm/bias"}}, options)


def test_hugging_face_s_config_may_only_agree():
    _, _, arrays, options = read(SWIN)
    theirs = layouts.to_theirs("hf_swin", layouts.to_ours("timm_swin", arrays, options)[0], options)
    config = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "image_size": 44}
    assert layouts.options_of("hf_swin", theirs, config) == options
    assert "its config.json says layer_norm_eps=1e-12: the model's LayerNorms have 1e-05" in refused(
        "hf_swin", theirs, {"layer_norm_eps": 1e-12}
    )


def test_a_swin_of_windows_of_4_begins_one_of_8(tmp_path):
    _, _, arrays, options = read(SWIN)
    path, classes = tmp_path / "weights.safetensors", list("abcdefghij")
    save_weights(path, unflatten(layouts.to_ours("timm_swin", arrays, options)[0]), classes)
    model = create_model("swin_t", num_classes=10, image_size=64, **options | {"window": 8})
    expected = abstract_variables(model, 64)
    arrays, line = read_weights(str(path), expected, model, classes)
    assert "tables of relative positions interpolated from windows of 4x4 to 8x8" in line
    shapes = {key: leaf.shape for key, leaf in flat(expected).items()}
    assert {key: array.shape for key, array in arrays.items()} == shapes
    table = golden_body(SWIN)[2]["layers.1.blocks.1.attn.relative_position_bias_table"].reshape(7, 7, 4)
    wanted = resize_bicubic(np.float32(table), (15, 15)).reshape(225, 4)
    np.testing.assert_array_equal(arrays["params/blocks_3/attention/bias_table"], wanted)
