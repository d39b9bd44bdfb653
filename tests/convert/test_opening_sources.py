"""Weights of other libraries through the real door: the golden logits, what is recognised, what comes along."""

import json
import re

import jax
import numpy as np
import pytest
import safetensors.numpy
from golden_files import assert_close
from weight_sources import HUGGING_FACE, TIMM, golden_arrays, noise, refuse, write_folder

import stce_jax
from stce_jax.convert import files, layouts
from stce_jax.convert.sources import open_source


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
    assert loaded.left_out == tuple(f"teacher.{number}" for number in range(7))
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
