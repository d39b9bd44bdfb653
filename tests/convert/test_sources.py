"""Weights of other libraries through the real door: the golden logits, what is recognised, what is refused."""

import copy
import json
import os
import re

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from golden_files import assert_close
from weight_sources import CLASSES, HUGGING_FACE, SIZE, TIMM, golden_arrays, noise, write_folder

import stce_jax
from stce_jax.convert import files, layouts
from stce_jax.convert.initial import read_weights
from stce_jax.convert.preprocessing import of_hugging_face
from stce_jax.convert.sources import open_source
from stce_jax.data import class_lists
from stce_jax.errors import CheckpointError, ConfigError
from stce_jax.models.factory import create_model
from stce_jax.training.state import abstract_variables


def logits_of(loaded, golden):
    run = jax.jit(lambda variables, images: loaded.model.apply(variables, images, train=False))
    return np.asarray(run(loaded.variables, golden["x"].astype(np.float32)))


# --- the golden logits


@pytest.mark.parametrize("name", ["vit_timm_tiny", "deit_distilled_tiny", "vit_table3_naflex_tiny"])
def test_a_file_of_timm_gives_the_golden_logits(tmp_path, name):
    arrays, golden = golden_arrays(name)
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    loaded = stce_jax.load_weights(tmp_path / "model.safetensors", heads=3)
    assert_close(logits_of(loaded, golden), golden["logits"], 1e-5, "logits")
    assert "timm's" in loaded.said and "a guess" not in loaded.said
    assert loaded.class_names[:2] == ("LABEL_0", "LABEL_1") and loaded.preprocessing.image_size == (32, 32)


@pytest.mark.parametrize("naming", ["file", "memory"])
def test_a_folder_of_hugging_face_gives_the_golden_logits(tmp_path, naming):
    arrays, golden = golden_arrays("vit_hf_tiny")
    if naming == "memory":
        names = {name: name for name in arrays} | new_names(arrays)
        assert sorted(names.values()) == sorted(golden["inmemory_names"])
        arrays = {names[name]: array for name, array in arrays.items()}
    folder = write_folder(tmp_path / "vit", arrays, json.loads(str(golden["config_json"])))
    loaded = stce_jax.load_weights(folder)
    assert_close(logits_of(loaded, golden), golden["logits"], 1e-5, "logits")
    assert "(Hugging Face's ViT or DeiT)" in loaded.said


def new_names(names):
    """{name in files: name in the memory of transformers 5} of those that differ."""
    pairs = {"attention.attention.query": "attention.q_proj", "attention.attention.key": "attention.k_proj"}
    pairs |= {"attention.attention.value": "attention.v_proj", "attention.output.dense": "attention.o_proj"}
    pairs |= {"intermediate.dense": "mlp.fc1", ".output.dense": ".mlp.fc2", "encoder.layer.": "layers."}
    found = {}
    for name in names:
        found[name] = name
        for old, new in pairs.items():
            found[name] = found[name].replace(old, new)
    return found


def test_the_fixtures_as_they_lie_there(test_data):
    """The files that timm and transformers wrote."""
    folder = test_data / "golden" / "bodies"
    hub = stce_jax.load_weights(folder / "timm_hub_repo_tiny")
    golden = dict(np.load(folder / "vit_timm_tiny.npz"))
    assert_close(logits_of(hub, golden), golden["logits"], 1e-5, "logits")
    assert hub.class_ids == tuple(f"class_{number}" for number in range(10))
    assert hub.preprocessing.mean == hub.preprocessing.std == (0.5, 0.5, 0.5)
    assert (hub.preprocessing.interpolation, hub.preprocessing.crop_fraction) == ("bicubic", 0.9)
    for name in ("vit_timm_tiny", "vit_table3_naflex_tiny", "vit_hf_tiny"):
        opened = open_source(folder / f"{name}.safetensors")
        assert opened.guessed == ("heads",) and opened.classes == 10 and opened.grid == (4, 4)


# --- layouts of the family


@pytest.mark.parametrize("layout", ["timm_vit", "hf_vit", "augreg_npz", "timm_naflex"])
def test_what_is_written_is_read_to_the_bit(tmp_path, layout):
    theirs, ours, options = noise(layout)
    np.savez(tmp_path / "a.npz", **theirs)
    opened = open_source(tmp_path / "a.npz")
    assert opened.kind == layouts.LAYOUTS[layout].TITLE and opened.left_out == ()
    assert {key: opened.options[key] for key in options if key != "heads"} == {
        key: value for key, value in options.items() if key != "heads"
    }
    for path, array in ours.items():
        if layout == "timm_naflex" and path in ("params/class_token", "params/position_embedding"):
            continue  # their sum alone is kept
        assert opened.arrays[path].tobytes() == array.tobytes(), path
    if layout == "timm_naflex":
        tokens = [one["params/class_token"] + one["params/position_embedding"][:, :1] for one in (ours, opened.arrays)]
        np.testing.assert_array_equal(*tokens)


@pytest.mark.parametrize("stacked", [False, True], ids=["blocks", "stacked"])
@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_big_visions_names(tmp_path, pooling, stacked):
    """A prefix, other numbers, no position of the class token; blocks one by one or stacked."""
    theirs, ours, _ = noise("augreg_npz", pooling=pooling)
    made, blocks = {}, {}
    for name, array in theirs.items():
        for new, old in (("Attention_0", "Attention_1"), ("LayerNorm_1", "LayerNorm_2"), ("MlpBlock_0", "MlpBlock_3")):
            name = name.replace(old, new)
        if name == "Transformer/posembed_input/pos_embedding":
            name, array = "pos_embedding", array[:, int(pooling == "class") :]
        block = re.match(r"Transformer/encoderblock_(\d)/(.*)", name)
        if stacked and block:
            blocks.setdefault(block[2], []).append(array)
        else:
            made[f"params/{name}"] = array
    made |= {f"params/Transformer/encoderblock/{name}": np.stack(parts) for name, parts in blocks.items()}
    np.savez(tmp_path / "a.npz", **made)
    opened = open_source(tmp_path / "a.npz")
    assert opened.options["heads"] == 2 and opened.options["pooling"] == pooling and not opened.guessed
    assert opened.preprocessing.mean == (0.5, 0.5, 0.5)
    for path, array in ours.items():
        expected = array.copy()
        if path == "params/position_embedding" and pooling == "class":
            expected[:, 0] = 0.0
        np.testing.assert_array_equal(opened.arrays[path], expected, err_msg=path)


def test_a_distilled_model_of_hugging_face(tmp_path):
    theirs, ours, _ = noise("hf_vit", distilled=True)
    assert "distillation_classifier.weight" in theirs
    opened = open_source(write_folder(tmp_path / "a", theirs, HUGGING_FACE | {"model_type": "deit"}))
    assert opened.options["distilled"] and opened.options["norm_epsilon"] == 1e-12
    assert opened.build().norm_epsilon == 1e-12
    assert {path: array.tobytes() for path, array in opened.arrays.items()} == {
        path: array.tobytes() for path, array in ours.items()
    }
    del theirs["distillation_classifier.weight"], theirs["distillation_classifier.bias"]
    theirs["classifier.weight"] = theirs.pop("cls_classifier.weight")
    theirs["classifier.bias"] = theirs.pop("cls_classifier.bias")
    refuse(write_folder(tmp_path / "b", theirs, HUGGING_FACE), "reads the class token alone")


def test_wrappers_are_taken_off_and_what_is_not_used_is_named(tmp_path):
    theirs, ours, _ = noise()
    theirs |= {f"teacher.{number}": np.zeros(2, np.float32) for number in range(7)}
    safetensors.numpy.save_file(
        {f"module.model.{name}": array for name, array in theirs.items()}, tmp_path / "a.safetensors"
    )
    loaded = stce_jax.load_weights(tmp_path / "a.safetensors", heads=2)
    assert "left out: 'teacher.0', 'teacher.1', 'teacher.2', 'teacher.3', 'teacher.4' and 2 more" in loaded.said
    assert loaded.variables["params"]["norm"]["scale"].tobytes() == ours["params/norm/scale"].tobytes()


def test_half_floats_are_cast_and_integers_refused(tmp_path):
    theirs, ours, _ = noise()
    halves = {name: array.astype(np.float16) for name, array in theirs.items()}
    safetensors.numpy.save_file(halves, tmp_path / "half.safetensors")
    half = open_source(tmp_path / "half.safetensors").arrays["params/norm/scale"]
    assert half.dtype == np.float32 and np.allclose(half, ours["params/norm/scale"], rtol=1e-3)
    uppers = {name: (array.view(np.uint32) >> 16).astype(np.uint16) for name, array in theirs.items()}
    specs = {
        name: {"dtype": "bfloat16", "shape": upper.shape, "data": upper.tobytes()} for name, upper in uppers.items()
    }
    write_raw(tmp_path / "brain.safetensors", specs)
    brain = open_source(tmp_path / "brain.safetensors").arrays["params/norm/scale"]
    assert brain.dtype == np.float32 and np.allclose(brain, ours["params/norm/scale"], rtol=1e-2)
    whole = theirs | {"norm.weight": np.ones(16, np.int32)}
    safetensors.numpy.save_file(whole, tmp_path / "whole.safetensors")
    refuse(tmp_path / "whole.safetensors", "params/norm/scale is of type int32, not of a float")


def write_raw(path, specs):
    """A .safetensors file of bytes, by hand: a header and the data."""
    header, offset, data = {}, 0, b""
    for name, spec in specs.items():
        end = offset + len(spec["data"])
        header[name] = {"dtype": "BF16", "shape": list(spec["shape"]), "data_offsets": [offset, end]}
        offset, data = end, data + spec["data"]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_shards_are_put_together(tmp_path):
    theirs, ours, _ = noise()
    names = sorted(theirs)
    folder = tmp_path / "sharded"
    folder.mkdir()
    places = {name: f"model-0000{1 + (index % 2)}-of-00002.safetensors" for index, name in enumerate(names)}
    for shard in set(places.values()):
        safetensors.numpy.save_file({name: theirs[name] for name in names if places[name] == shard}, folder / shard)
    (folder / files.CONFIG).write_text(json.dumps(TIMM))
    index = folder / files.INDEX
    index.write_text(json.dumps({"weight_map": places}))
    assert open_source(folder).arrays["params/norm/scale"].tobytes() == ours["params/norm/scale"].tobytes()
    for odd in ("../model.safetensors", "/etc/passwd", "model.bin"):
        index.write_text(json.dumps({"weight_map": places | {names[0]: odd}}))
        refuse(folder, "which is no .safetensors file of its folder")
    index.write_text(json.dumps({"weight_map": places | {"more": places[names[0]]}}))
    refuse(folder, "'more' is not in the shard")
    index.write_text(json.dumps({"weight_map": places | {"more": "gone.safetensors"}}))
    refuse(folder, "lacks gone.safetensors")
    index.write_text(json.dumps({"weight_map": 3}))
    refuse(folder, "no weight_map")


# --- what comes along


def test_preprocessing_and_classes_of_timm(tmp_path):
    theirs, _, _ = noise()
    names = ["cat", "dog", "cow", "dog", "pig"]
    config = TIMM | {"label_names": names, "label_descriptions": {name: f"a {name}" for name in names}}
    opened = open_source(write_folder(tmp_path / "a", theirs, config))
    seen = opened.preprocessing
    assert seen.mean == (0.5, 0.4, 0.3) and seen.std == (0.5, 0.25, 0.2) and seen.image_size == (SIZE, SIZE)
    assert seen.summary() == "mean 0.5,0.4,0.3, std 0.5,0.25,0.2, bilinear, crop 0.9"
    assert opened.labels.ids == ("cat", "dog", "cow", "dog (3)", "pig") and opened.labels.names[3] == "a dog"
    assert not opened.guessed and opened.options["heads"] == 2


@pytest.mark.parametrize(
    "processor, fraction, note",
    [
        (
            {"size": {"height": 32, "width": 32}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            1.0,
            True,
        ),
        ({"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}, 0.8, False),
        ({"size": 40, "do_center_crop": True, "crop_size": 32, "do_normalize": False}, 0.8, False),
    ],
)
def test_preprocessing_and_classes_of_hugging_face(tmp_path, processor, fraction, note):
    theirs, _, _ = noise("hf_vit")
    opened = open_source(write_folder(tmp_path / "a", theirs, HUGGING_FACE, processor))
    seen = opened.preprocessing
    assert seen.crop_fraction == fraction and bool(seen.note) == note == bool(opened.notes)
    assert seen.interpolation == ("bilinear" if note else None)
    assert opened.labels.names[0] == "kind 0" and opened.options["norm_epsilon"] == 1e-12
    if not processor.get("do_normalize", True):
        assert seen.mean == (0, 0, 0) and seen.std == (1, 1, 1)


@pytest.mark.parametrize(
    "processor", [{"do_rescale": False}, {"rescale_factor": 1 / 127.5}, {"rescale_factor": 2.0, "do_normalize": False}]
)
def test_pixels_of_hugging_face_that_are_scaled_otherwise(processor):
    processor |= {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    seen = of_hugging_face({}, processor)
    pixels, plain = np.array([[0.0, 100.0, 255.0]]), ([0.0] * 3, [1.0] * 3)
    factor = processor.get("rescale_factor", 1.0)
    mean, std = plain if "do_normalize" in processor else (processor["image_mean"], processor["image_std"])
    expected = (pixels * factor - np.array(mean)) / np.array(std)
    np.testing.assert_allclose((pixels / 255 - np.array(seen.mean)) / np.array(seen.std), expected, rtol=1e-12)
    assert "keep their size" in of_hugging_face({}, {"do_resize": False}).note


def test_a_thousand_classes_without_names_are_imagenets(tmp_path):
    theirs, _, _ = noise("timm_vit", classes=1000)
    safetensors.numpy.save_file(theirs, tmp_path / "a.safetensors")
    opened = open_source(tmp_path / "a.safetensors")
    assert opened.labels.ids == class_lists.load_class_ids("all") and "ImageNet-1k" in opened.labels.note
    assert opened.labels.names[0] == "tench, Tinca tinca"
    labels = {str(number): name for number, name in enumerate(opened.labels.names)}
    theirs, _, _ = noise("hf_vit", classes=1000)
    named = open_source(write_folder(tmp_path / "b", theirs, HUGGING_FACE | {"id2label": labels}))
    assert named.labels.ids == opened.labels.ids and named.labels.note == ""


# --- fitted to another model


def fitted(source, model, class_ids=("a", "b", "c")):
    return read_weights(str(source), abstract_variables(model, model.image_size[0]), model, class_ids)


def other(**options):
    size = options.pop("image_size", SIZE)
    own = {"patch_size": 8, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 24, "norm_epsilon": 1e-12} | options
    return create_model("deit_s", num_classes=3, image_size=size, **own)


def test_a_run_begins_with_other_patches_and_a_new_head(tmp_path):
    theirs, ours, _ = noise("hf_vit")
    folder = write_folder(tmp_path / "a", theirs, HUGGING_FACE)
    found, line = fitted(folder, other(patch_size=4))
    assert found["params/embedding/projection/kernel"].shape == (48, 16)
    assert found["params/position_embedding"].shape == (1, 65, 16)
    assert "params/head/kernel" not in found
    assert line == (
        f"begins with 30 arrays of {folder} (Hugging Face's ViT or DeiT), patch kernel resampled from 8x8 to 4x4, "
        "position embedding interpolated from 4x4 to 8x8, new head for 3 classes (there: of other classes)"
    )
    assert found["params/norm/scale"].tobytes() == ours["params/norm/scale"].tobytes()


def test_options_that_no_shape_tells_are_compared(tmp_path):
    theirs, _, _ = noise("hf_vit")
    folder = write_folder(tmp_path / "a", theirs, HUGGING_FACE)
    with pytest.raises(CheckpointError, match="heads is 2 in it, the model wants 4"):
        fitted(folder, other(heads=4))
    assert "note: norm_epsilon is 1e-12 in it, the model has 1e-06" in fitted(folder, other(norm_epsilon=1e-6))[1]
    safetensors.numpy.save_file(theirs, tmp_path / "bare.safetensors")  # which does not say its heads
    assert "norm_epsilon" not in fitted(tmp_path / "bare.safetensors", other(heads=4, norm_epsilon=1e-6))[1]


def test_a_distilled_models_weights_for_a_plain_one_and_back(tmp_path):
    theirs, ours, _ = noise("timm_vit", distilled=True)
    safetensors.numpy.save_file(theirs, tmp_path / "a.safetensors")
    found, line = fitted(tmp_path / "a.safetensors", other(image_size=48))
    assert "without the distillation token and its head" in line and "interpolated from 4x4 to 6x6" in line
    kept = found["params/position_embedding"]
    assert kept.shape == (1, 37, 16) and kept[:, 0].tobytes() == ours["params/position_embedding"][:, 0].tobytes()
    theirs, _, _ = noise("timm_vit")
    safetensors.numpy.save_file(theirs, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="the model has a distillation token, the weights have none"):
        fitted(tmp_path / "b.safetensors", other(distilled=True))


@pytest.mark.slow
def test_a_run_and_an_own_file_are_loaded_too(tiny_run, tmp_path):
    workdir, _ = tiny_run
    loaded, run = stce_jax.load_weights(workdir), stce_jax.load_run(workdir)
    assert loaded.class_ids == run.class_ids and loaded.preprocessing.mean == run.mean
    larger = stce_jax.load_weights(workdir, image_size=24)
    assert larger.model.image_size == (24, 24) and "interpolated from 2x2 to 3x3" in larger.said
    from stce_jax.workdir.weights import save_weights

    save_weights(tmp_path / "own.safetensors", run.variables, run.class_ids)
    own = stce_jax.load_weights(tmp_path / "own.safetensors", model=run.model)
    np.testing.assert_array_equal(own.variables["params"]["head"]["bias"], run.variables["params"]["head"]["bias"])
    with pytest.raises(CheckpointError, match="does not say of which model it is"):
        stce_jax.load_weights(tmp_path / "own.safetensors")
    with pytest.raises(ConfigError, match="not both"):
        stce_jax.load_weights(tmp_path / "own.safetensors", model=run.model, heads=2)
    with pytest.raises(ConfigError, match="leave out heads"):
        stce_jax.load_weights(workdir, heads=2)


# --- what is refused


def refuse(source, words, error=CheckpointError):
    with pytest.raises(error) as caught:
        opened = open_source(source)
        opened.build()
    message = str(caught.value)
    assert words in message and "\n" not in message and len(message) < 1500, message


@pytest.mark.parametrize(
    "name, what",
    [
        ("blocks.0.ls1.gamma", "layer scale"),
        ("reg_token", "register tokens"),
        ("norm_pre.weight", "a norm before the blocks"),
        ("blocks.1.attn.q_norm.weight", "norms of queries and keys"),
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


CONFIGS = {
    "a class too many": ({"num_classes": CLASSES + 1}, "its head is of 5 classes"),
    "a million classes": ({"num_classes": 1_000_000}, "num_classes 1000000"),
    "labels of others": ({"label_names": ["a"] * 4}, "no list of 5 names"),
    "labels that are none": ({"label_names": ["a", "b", "c", "d", 7]}, "7 among label_names"),
    "another size": ({"model_args": {"img_size": 64, "num_heads": 2}}, "64x64 pixels, 64 patches of 8"),
    "a size without end": ({"model_args": {"img_size": 10**12, "num_heads": 2}}, "img_size=1000000000000"),
    "a size that is none": ({"model_args": {"img_size": "large", "num_heads": 2}}, "img_size='large'"),
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
