"""Beginning with other weights: what is taken over to the bit, what is interpolated or new, and what is refused."""

import json
import os
import pickle
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from helpers import TINY
from PIL import Image

from stce_jax.convert.initial import initialize, read_weights
from stce_jax.errors import CheckpointError, ConfigError
from stce_jax.models.factory import create_model
from stce_jax.training import assemble as runs
from stce_jax.training import evaluation
from stce_jax.training.mesh import make_mesh, state_shardings
from stce_jax.training.state import abstract_variables, init_state
from stce_jax.training.step import make_train_step, run_key
from stce_jax.verbs import evaluate
from stce_jax.workdir import layout, weights
from stce_jax.workdir.metric_lines import read_metrics
from stce_jax.workdir.mismatch import first_mismatch

pytestmark = pytest.mark.usefixtures("everything_is_split")
DIGITS, LETTERS = [str(digit) for digit in range(10)], list("abcdefg")
BODY = {"width": 16, "depth": 1, "heads": 2, "mlp_dim": 32, "drop_path": 0.0}
OWN = {"stce": {"stem_widths": (8, 16), "stem_strides": (2, 2), "cell": (2, 2)}, "patch": {"patch_size": 8}}
HEAD = ("params/head/bias", "params/head/kernel")
POSITIONS = "params/position_embedding"


def tiny(embedding="stce", classes=10, image_size=16, **options):
    """The model of TINY, or another one of its size."""
    return create_model(
        f"vit_ti_{embedding}", num_classes=classes, image_size=image_size, **BODY | OWN[embedding] | options
    )


def expected_of(model):
    return abstract_variables(model, model.image_size[0])


def read(source, model, class_ids=DIGITS):
    return read_weights(str(source), expected_of(model), model, class_ids)


def noise_of(model, seed=0):
    """{path: array} of noise for every array of a model."""
    rng = np.random.default_rng(seed)
    shapes = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), expected_of(model))
    return {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in weights.flatten(shapes).items()}


def new_state(model, mesh, *, ema=True, optimizer=None):
    optimizer = optimizer or optax.sgd(0.1, momentum=0.9)
    return init_state(model, optimizer, seed=1, image_size=model.image_size[0], with_ema=ema, mesh=mesh)


def assert_same_bits(actual, expected, paths=None):
    if paths is None:
        assert sorted(actual) == sorted(expected), "not the same arrays"
    for path in paths or expected:
        left, right = np.asarray(actual[path]), np.asarray(expected[path])
        assert (left.dtype, left.shape) == (right.dtype, right.shape), f"{path} changed its type or shape"
        assert left.tobytes() == right.tobytes(), f"{path} is not what it was"


@pytest.fixture(scope="module")
def source(tiny_run):
    """(workdir, {path: array}) of the finished run whose weights the tests begin with."""
    workdir, _ = tiny_run
    return workdir, weights.flatten(runs.load_run(workdir).variables)


# --- what is taken over


@pytest.mark.slow
def test_the_same_model_begins_with_every_bit_of_a_run(source):
    workdir, trained = source
    model = tiny()
    arrays, line = read(workdir, model)
    state = initialize(new_state(model, make_mesh()), arrays)
    assert_same_bits(weights.flatten(state.variables), trained)
    assert_same_bits(weights.flatten(state.ema), trained)
    assert int(state.step) == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(state.optimizer)), "not step 0"
    assert line == f"begins with {len(trained)} arrays of {workdir}, head of the same 10 classes"


@pytest.mark.slow
def test_the_first_evaluation_is_that_of_the_source(source, data_dir):
    workdir, _ = source
    config = layout.read_config(workdir)
    dataset, model = runs.open_dataset(config, data_dir), tiny()
    state = initialize(new_state(model, make_mesh(), ema=False), read(workdir, model)[0])
    step, views = evaluation.eval_step(model, dataset, config, make_mesh()), runs.eval_views(config, dataset)
    metrics = evaluation.mean_metrics(state.variables, step, views, config, make_mesh())
    of_source = runs.load_run(workdir).variables
    assert metrics == evaluation.mean_metrics(of_source, step, views, config, make_mesh())
    result = evaluate.evaluate(workdir, data_dir=str(data_dir))  # which sums the losses up in float64
    assert {name: metrics[name] for name in ("loss", "top1", "top5")} == {
        name: pytest.approx(result[name], rel=1e-6 if name == "loss" else 0) for name in ("loss", "top1", "top5")
    }


@pytest.mark.slow
def test_other_classes_get_a_new_head_and_keep_the_rest(source):
    workdir, trained = source
    model = tiny(classes=7)
    arrays, line = read(workdir, model, LETTERS)
    before = new_state(model, make_mesh())
    after = initialize(before, arrays)
    for tree in (after.variables, after.ema):
        flat = weights.flatten(tree)
        assert_same_bits(flat, trained, trained.keys() - set(HEAD))
        assert_same_bits(flat, weights.flatten(before.variables), HEAD)
    assert line.endswith(", new head for 7 classes (there: of other classes)")


@pytest.mark.slow
@pytest.mark.parametrize("class_ids", [DIGITS[::-1], list("abcdefghij")], ids=["other order", "other names"])
def test_as_many_but_other_classes_get_a_new_head_too(source, class_ids):
    arrays, line = read(source[0], tiny(), class_ids)
    assert not set(HEAD) & set(arrays) and "new head for 10 classes" in line


@pytest.mark.slow
@pytest.mark.parametrize("embedding", ["stce", "patch"])
def test_files_hold_what_was_saved(tmp_path, embedding):
    """A .safetensors file says of which classes its head is; a .npz file does not."""
    model = tiny(embedding)
    arrays = noise_of(model)
    assert any(path.startswith("batch_stats/") for path in arrays) == (embedding == "stce")
    named, unnamed, archive = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "c.npz"
    weights.save_weights(named, jax.device_put(weights.unflatten(arrays)), DIGITS)
    safetensors.numpy.save_file(arrays, unnamed, {"format": "np"})
    np.savez(archive, **arrays)
    assert sorted(os.listdir(tmp_path)) == [named.name, unnamed.name, archive.name], "something is left over"
    found, line = read(named, model)
    assert_same_bits(found, arrays)
    assert line.endswith(", head of the same 10 classes")
    for path in (unnamed, archive):
        found, line = read(path, model)
        assert_same_bits(found, {key: arrays[key] for key in arrays if key not in HEAD})
        assert line.endswith("new head for 10 classes (there: of classes that it does not name)"), line
    assert read(named, tiny(embedding, classes=7), LETTERS)[1].endswith("(there: of other classes)")


def test_weights_without_a_head_get_one(tmp_path):
    features = tiny(classes=0)
    weights.save_weights(tmp_path / "a.safetensors", weights.unflatten(noise_of(features)), DIGITS)
    found, line = read(tmp_path / "a.safetensors", tiny())
    assert len(found) == len(noise_of(features)) and line.endswith("new head for 10 classes (there: none)")


@pytest.mark.slow
@pytest.mark.parametrize("from_stacked", [True, False])
def test_blocks_are_stacked_and_unstacked(tmp_path, from_stacked):
    old, new = tiny("patch", depth=11, scan_layers=from_stacked), tiny("patch", depth=11, scan_layers=not from_stacked)
    arrays = noise_of(old)
    weights.save_weights(tmp_path / "a.safetensors", weights.unflatten(arrays), DIGITS)
    found, _ = read(tmp_path / "a.safetensors", new)
    images = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
    expected = old.apply(weights.unflatten(arrays), images, train=False)
    actual = new.apply(weights.unflatten(found), images, train=False)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


# --- the position embedding


def by_pillow(positions, old, new):
    """[1, rows * columns, D] -> [1, rows * columns, D] by Pillow's bicubic filter, channel by channel."""
    image = positions.reshape(*old, -1)
    size = (new[1], new[0])
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(image, -1, 0)]
    return np.stack([np.asarray(plane.resize(size, Image.Resampling.BICUBIC)) for plane in planes], -1).reshape(
        1, new[0] * new[1], -1
    )


@pytest.mark.slow
@pytest.mark.parametrize("new_size", [56, 16], ids=["up", "down"])
@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_the_position_embedding_is_interpolated_and_the_class_token_keeps_its_own(tmp_path, new_size, pooling):
    old, new = tiny("patch", image_size=40, pooling=pooling), tiny("patch", image_size=new_size, pooling=pooling)
    arrays, prefix, side = noise_of(old), int(pooling == "class"), new_size // 8
    weights.save_weights(tmp_path / "a.safetensors", weights.unflatten(arrays), DIGITS)
    found, line = read(tmp_path / "a.safetensors", new)
    assert found[POSITIONS].shape == (1, prefix + side * side, 16) and found[POSITIONS].dtype == np.float32
    assert np.array_equal(found[POSITIONS][:, :prefix], arrays[POSITIONS][:, :prefix])
    reference = by_pillow(arrays[POSITIONS][:, prefix:], (5, 5), (side, side))
    np.testing.assert_allclose(found[POSITIONS][:, prefix:], reference, atol=1e-5)
    assert_same_bits(found, arrays, arrays.keys() - {POSITIONS})
    assert f", position embedding interpolated from 5x5 to {side}x{side}, head of the same" in line


@pytest.mark.slow
def test_a_run_goes_on_at_another_image_size(source):
    workdir, trained = source
    model = tiny(image_size=24)
    arrays, line = read(workdir, model)
    state = initialize(new_state(model, make_mesh()), arrays)
    found = weights.flatten(state.variables)
    np.testing.assert_allclose(found[POSITIONS][:, 1:], by_pillow(trained[POSITIONS][:, 1:], (2, 2), (3, 3)), atol=1e-6)
    assert_same_bits(found, trained, trained.keys() - {POSITIONS})
    assert "interpolated from 2x2 to 3x3" in line


def test_a_run_says_what_its_grid_is_where_the_count_alone_does_not(source, tmp_path):
    """As many tokens, 4 and 4, in another arrangement: 2x2 and 1x4."""
    arrays, line = read(source[0], tiny(cell=(4, 1)))
    reference = by_pillow(source[1][POSITIONS][:, 1:], (2, 2), (1, 4))
    np.testing.assert_allclose(arrays[POSITIONS][:, 1:], reference, atol=1e-6)
    assert "interpolated from 2x2 to 1x4" in line


def test_a_file_without_a_square_grid_is_refused(tmp_path):
    model = tiny("patch")
    arrays = noise_of(model) | {POSITIONS: np.zeros((1, 1 + 6, 16), np.float32)}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(CheckpointError, match=re.escape(f"{POSITIONS} (1, 7, 16) is of 6 tokens, no square grid")):
        read(tmp_path / "a.npz", model)


# --- devices


@pytest.mark.slow
@pytest.mark.parametrize("devices, fsdp", [(1, 1), (8, 2)])
def test_a_split_state_keeps_its_shardings_and_trains(source, devices, fsdp):
    workdir, trained = source
    mesh, model, optimizer = make_mesh(fsdp, jax.devices()[:devices]), tiny(), optax.sgd(0.1, momentum=0.9)
    arrays, _ = read(workdir, model)
    state = initialize(new_state(model, mesh, optimizer=optimizer), arrays)
    shardings = state_shardings(state, mesh)
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim), "an array is not where its sharding says"
    qkv = state.ema["params"]["blocks_0"]["attention"]["qkv"]["kernel"]
    assert qkv.addressable_shards[0].data.shape == (16, 48 // fsdp), "the kernel is not split"
    # The step donates the state: parameters and average must not share a buffer with each other or with the arrays.
    step = make_train_step(model, optimizer, one_hot, ema_decay=0.75, state=state, mesh=mesh)
    batch = {"image": np.zeros((8, 16, 16, 3), np.uint8), "label": np.arange(8, dtype=np.int32)}
    after, metrics = step(state, batch, run_key(0, mesh))
    assert np.isfinite(metrics["loss"])
    assert_same_bits(arrays, trained)
    moved, average = weights.flatten(after.variables), weights.flatten(after.ema)
    assert not np.array_equal(moved[HEAD[0]], trained[HEAD[0]]), "the step changed nothing"
    for path in trained:
        np.testing.assert_allclose(average[path], 0.75 * trained[path] + 0.25 * moved[path], atol=1e-6, err_msg=path)


def one_hot(key, step, images, labels):
    return images.astype(jnp.float32), jax.nn.one_hot(labels, 10)


# --- another model


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, message",
    [
        ({"embedding": "patch"}, "params/embedding/norm/bias is not in it, the model wants (16,)"),
        ({"depth": 12}, "params/blocks_1/attention/out/bias is not in it, the model wants (16,)"),
        (
            {"depth": 3, "scan_layers": True},
            "params/blocks/attention/out/bias is (1, 16) in it, the model wants (3, 16)",
        ),
        ({"width": 32}, "params/blocks_0/attention/out/bias is (16,) in it, the model wants (32,)"),
        ({"mlp_dim": 48}, "params/blocks_0/mlp/in/bias is (32,) in it, the model wants (48,)"),
        ({"stem_widths": (8, 24)}, "params/embedding/module_2/convolution/bias is (16,) in it, the model wants (24,)"),
        ({"pooling": "mean"}, f"{POSITIONS} is (1, 5, 16) in it, the model wants (1, 4, 16)"),
        ({"position_embedding": "sincos2d"}, f"{POSITIONS} is (1, 5, 16) in it, the model has none"),
        ({"heads": 4}, "heads is 2 in it, the model wants 4; give the config the same"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_another_model_is_refused_naming_the_first_parameter_and_both_shapes(source, options, message):
    with pytest.raises(CheckpointError) as error:
        read(source[0], tiny(**options))
    assert str(error.value) == f"{source[0]} does not fit the model: {message}"


def test_another_class_count_and_depth_are_named_from_a_checkpoints_metadata(source):
    """Shapes as Orbax tells them, without reading an array."""
    with ocp.CheckpointManager(
        source[0] / "checkpoints", item_handlers={"variables": ocp.StandardCheckpointHandler()}
    ) as manager:
        found = manager.item_metadata(90)["variables"].tree
    assert first_mismatch(expected_of(tiny()), found) is None
    message = first_mismatch(expected_of(tiny(classes=7)), found)
    assert message == "params/head/bias is (10,) in it, the model wants (7,)"
    message = first_mismatch(expected_of(tiny(depth=12)), found)
    assert message == "params/blocks_1/attention/out/bias is not in it, the model wants (16,)"


def test_the_first_mismatch_is_in_the_order_of_blocks_parameters_before_statistics():
    shapes = {f"params/blocks_{index}/kernel": (2, 2) for index in range(12)} | {"batch_stats/norm/mean": (2,)}
    assert first_mismatch(shapes, shapes) is None
    assert first_mismatch(weights.unflatten(shapes), shapes) is None
    assert first_mismatch(shapes, {}).startswith("params/blocks_0/kernel is not in it")
    assert first_mismatch({}, shapes).startswith("params/blocks_0/kernel is (2, 2) in it, the model has none")
    less = {path: shape for path, shape in shapes.items() if path not in (*list(shapes)[2:4], *list(shapes)[10:])}
    assert first_mismatch(shapes, less).startswith("params/blocks_2/"), "sorted as text, 10 comes before 2"
    statistics = shapes | {"batch_stats/norm/mean": (3,)}
    assert first_mismatch(shapes, statistics) == "batch_stats/norm/mean is (3,) in it, the model wants (2,)"
    both = statistics | {"params/blocks_11/kernel": (2, 3)}
    assert first_mismatch(shapes, both) == "params/blocks_11/kernel is (2, 3) in it, the model wants (2, 2)"


# --- what is refused


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self._path = str(path)

    def __reduce__(self):
        return open, (self._path, "w")


def refuse(source, words, error=CheckpointError):
    with pytest.raises(error) as caught:
        read(source, tiny("patch"))
    message = str(caught.value)
    assert str(source) in message and words in message and "\n" not in message, message


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.ckpt", "model.pkl", "pickle.npz", "object.npz"])
def test_a_pickle_is_refused_and_never_unpickled(tmp_path, name):
    mark, path = tmp_path / "mark", tmp_path / name
    if name == "object.npz":
        bomb = np.empty((), object)
        bomb[()] = Bomb(mark)
        np.savez(path, **noise_of(tiny("patch")) | {"params/norm/scale": bomb})
        with np.load(path, allow_pickle=True) as archive:
            archive["params/norm/scale"]
    else:
        path.write_bytes(pickle.dumps(Bomb(mark)))
        pickle.loads(path.read_bytes())
    assert mark.exists(), "the test's pickle does nothing when it is unpickled"
    mark.unlink()
    refuse(path, "without Python objects" if name.endswith(".npz") else "not read: unpickling them can run any code")
    assert not mark.exists(), "it was unpickled"


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0, 4, 8, 200, -1])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_truncated_file_is_one_line(tmp_path, suffix, kept):
    path, arrays = tmp_path / f"a{suffix}", noise_of(tiny("patch"))
    if suffix == ".npz":
        np.savez(path, **arrays)
    else:
        weights.save_weights(path, weights.unflatten(arrays), DIGITS)
    path.write_bytes(path.read_bytes()[:kept])
    refuse(path, f"cannot read {path}: ")


def test_damage_inside_a_file_is_one_line(tmp_path):
    weights.save_weights(tmp_path / "a.safetensors", weights.unflatten(noise_of(tiny("patch"))), DIGITS)
    content = (tmp_path / "a.safetensors").read_bytes()
    for number, (old, new) in enumerate(
        [(b'"F32"', b'"F3?"'), (b'"F32"', b'"F64"'), (b'"dtype"', b'"dtyp\xff"'), (b'[\\"0\\"', b'[\\"0\\",')]
    ):
        assert old in content
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(content.replace(old, new, 1))
        refuse(path, f"cannot read {path}: ")
    np.savez(tmp_path / "a.npz", **noise_of(tiny("patch")))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[len(content) // 2] ^= 1  # zip keeps a checksum
    (tmp_path / "a.npz").write_bytes(content)
    refuse(tmp_path / "a.npz", "CRC")


def test_what_holds_no_weights_is_refused(tmp_path):
    refuse(tmp_path / "missing", "there is no ", ConfigError)
    refuse(tmp_path, "is neither a workdir of stce train nor a .safetensors or .npz file")
    (tmp_path / "folder.npz").mkdir()
    refuse(tmp_path / "folder.npz", "IsADirectoryError")
    np.save(tmp_path / "array.npy", np.zeros(3))
    shutil.copy(tmp_path / "array.npy", tmp_path / "array.npz")
    refuse(tmp_path / "array.npz", "cannot read ")
    np.savez(tmp_path / "integers.npz", **{path: array.astype(int) for path, array in noise_of(tiny("patch")).items()})
    refuse(tmp_path / "integers.npz", "is of type int64, not of a float")
    np.savez(tmp_path / "others.npz", weight=np.zeros(3))
    refuse(tmp_path / "others.npz", "names of no known layout ('weight')")


def test_a_workdir_without_a_checkpoint_or_with_a_bad_config_is_refused(source, tmp_path):
    shutil.copy(source[0] / "config.json", tmp_path)
    refuse(tmp_path, "there is no checkpoint in ")
    (tmp_path / "config.json").write_text("{")
    refuse(tmp_path, "config.json is damaged")


# --- the command line


@pytest.mark.slow
def test_fine_tuning_from_the_command_line(source, stce_here, data_dir, tmp_path):
    """Learns from where the source stood; a resumed run needs the source no more and ends at the same bits."""
    path, workdir = tmp_path / "a.safetensors", tmp_path / "run"
    weights.save_weights(path, weights.unflatten(source[1]), DIGITS)
    words = ("train", *TINY, "--config.seed=1", f"--data_dir={data_dir}", f"--workdir={workdir}", f"--init_from={path}")
    done = stce_here(*words)
    assert done.returncode == 0, done.stderr
    assert f"begins with {len(source[1])} arrays of {path}, head of the same 10 classes\n" in done.stdout
    assert json.loads((workdir / "config.json").read_text())["init_from"] == str(path)
    first, scratch = read_metrics(workdir)[0], read_metrics(source[0])[0]
    assert first["step"] == scratch["step"] == 20
    assert first["loss"] < 0.9 * scratch["loss"], "it did not begin with what the source had learnt"
    ends = weights.flatten(runs.load_run(workdir).variables)
    shutil.rmtree(workdir / "checkpoints" / "90")
    path.unlink()
    done = stce_here(*words)
    assert done.returncode == 0, done.stderr
    assert "resuming from step 45 of 90" in done.stdout and "begins with" not in done.stdout
    assert_same_bits(weights.flatten(runs.load_run(workdir).variables), ends)


@pytest.mark.slow
def test_weights_that_do_not_fit_end_with_exit_4_before_the_workdir_is_touched(source, stce_here, data_dir, tmp_path):
    words = ("train", *TINY, f"--data_dir={data_dir}", f"--workdir={tmp_path / 'run'}")
    words += ("--config.model.body.vit.depth=3",)
    done = stce_here(*words, f"--init_from={source[0]}")
    assert done.returncode == 4, done.stderr
    assert done.stderr == (
        f"stce: {source[0]} does not fit the model: "
        "params/blocks_1/attention/out/bias is not in it, the model wants (16,)\n"
    )
    assert not (tmp_path / "run").exists(), "the workdir is now that of a config that cannot begin"
    done = stce_here(*words, f"--init_from={tmp_path / 'missing'}")
    assert done.returncode == 2 and "there is no " in done.stderr, done.stderr
