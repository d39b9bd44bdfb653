"""Exporting: the artifact is the run's model, needs neither run nor package; damage and wrong results are refused."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import run_cli
from PIL import Image

import stce_jax
from stce_jax.convert.formats import jax as jax_format
from stce_jax.errors import CheckpointError, ConfigError, DataError
from stce_jax.models.factory import create_model
from stce_jax.paths import open_path
from stce_jax.recipe import augment
from stce_jax.training import assemble as runs
from stce_jax.training.state import abstract_variables
from stce_jax.verbs import export as verb
from stce_jax.verbs.appearing import PREFIX
from stce_jax.workdir import weights
from stce_jax.workdir.digests import write_digests

FILES = ("model.jaxexport", "model.json", "weights.safetensors")


@pytest.fixture(scope="module")
def exported(stce_here, tiny_run, tmp_path_factory):
    """(directory, output of the command): an export whose run is gone."""
    directory = tmp_path_factory.mktemp("exports")
    shutil.copytree(tiny_run[0], directory / "run")
    done = stce_here("export", f"--workdir={directory / 'run'}", f"--output={directory / 'deep' / 'model'}")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(directory / "run")
    assert os.listdir(directory / "deep") == ["model"], "something was left beside it"
    return directory / "deep" / "model", done.stdout


@pytest.fixture
def copy(exported, tmp_path):
    """A copy of the export, to be damaged."""
    shutil.copytree(exported[0], tmp_path / "copy")
    return tmp_path / "copy"


def noise_images(count, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def live_logits(run, pixels):
    """What the run's model gives on the host's first device."""
    variables = weights.unflatten(weights.flatten(run.variables))
    apply = jax.jit(lambda images: run.model.apply(variables, images, train=False))
    return np.asarray(apply(augment.normalize(pixels, mean=run.mean, std=run.std)))


@pytest.fixture(scope="module")
def seven(tiny_run):
    """(run, seven images, its logits of them)."""
    run = runs.load_run(tiny_run[0])
    return run, noise_images(7), live_logits(run, noise_images(7))


def run_of(tiny, name, **options):
    """The tiny run with another model and weights of noise, in place of a training of its own."""
    config = tiny.config.copy_and_resolve_references().unlock()
    config.model.update({"name": name, **options})
    model = runs.build_model(config, len(tiny.class_ids))
    rng = np.random.default_rng(0)
    shapes = abstract_variables(model, config.image_size)
    variables = jax.tree.map(lambda leaf: rng.uniform(0.1, 0.3, leaf.shape).astype(leaf.dtype), shapes)
    return dataclasses.replace(tiny, config=config, model=model, variables=variables)


# --- what stands in it


def test_any_number_of_images_gives_the_runs_logits(exported, seven):
    model, (run, pixels, expected) = stce_jax.load_exported(exported[0]), seven
    for count in (1, 3, 7):
        logits = np.asarray(model.logits(pixels[:count]))
        assert (logits.shape, logits.dtype) == ((count, 10), np.float32)
        assert np.abs(logits - expected[:count]).max() <= 2e-6 * np.abs(expected).max(), f"{count} images"
    assert (model.class_ids, model.class_names) == (run.class_ids, run.class_names)
    assert "logits of 1 and 3 images differ" in exported[1] and "cpu, cuda, tpu" in exported[1]


@pytest.mark.slow
def test_the_artifact_is_for_three_platforms_and_says_what_goes_in(exported):
    program = jax.export.deserialize(bytearray((exported[0] / FILES[0]).read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    description = json.loads((exported[0] / FILES[1]).read_text())
    assert description["input"]["shape"] == ["batch", 16, 16, 3] == [*map(_plain, program.in_avals[0].shape)]
    assert description["output"]["shape"] == ["batch", 10] == [*map(_plain, program.out_avals[0].shape)]
    assert (description["input"]["dtype"], description["output"]["dtype"]) == ("uint8", "float32")
    assert description["versions"]["jax"] == jax.__version__ and description["platforms"] == ["cpu", "cuda", "tpu"]
    sums = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=exported[0], capture_output=True, text=True)
    assert sums.returncode == 0 and [line.split(":")[0] for line in sums.stdout.splitlines()] == sorted(FILES)


def _plain(length):
    return length if isinstance(length, int) else str(length)


def test_model_json_is_enough_to_build_the_model_and_fill_it(exported, seven):
    description = json.loads((exported[0] / FILES[1]).read_text())
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in description["model"].items()}
    classes = len(description["class_ids"])
    model = create_model(num_classes=classes, image_size=description["image"]["size"], **options)
    variables = weights.unflatten(safetensors.numpy.load_file(exported[0] / FILES[2]))
    mean, std = np.array(description["image"]["mean"]), np.array(description["image"]["std"])
    _, pixels, expected = seven
    images = ((pixels / 255 - mean) / std).astype(np.float32)
    logits = jax.jit(lambda images: model.apply(variables, images, train=False))(images)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_the_safetensors_are_the_runs_weights_to_the_bit(exported, seven):
    written = safetensors.numpy.load_file(exported[0] / FILES[2])
    expected = weights.flatten(seven[0].variables)
    assert sorted(written) == sorted(expected)
    for name, array in expected.items():
        assert (written[name].dtype, written[name].shape) == (array.dtype, array.shape), name
        assert written[name].tobytes() == array.tobytes(), f"{name} has other bits"


@pytest.mark.slow
def test_a_process_that_never_saw_the_run(exported, seven, tmp_path):
    _, pixels, expected = seven
    np.save(tmp_path / "pixels.npy", pixels)
    with_package = (
        "import numpy as np, stce_jax\n"
        f"model = stce_jax.load_exported({str(exported[0])!r})\n"
        "np.save('package.npy', model.logits(np.load('pixels.npy')))"
    )
    jax_alone = (
        "import sys, numpy as np, jax.export\n"
        f"program = jax.export.deserialize(open({str(exported[0] / FILES[0])!r}, 'rb').read())\n"
        "np.save('alone.npy', program.call(np.load('pixels.npy')))\n"
        "assert 'stce_jax' not in sys.modules and 'flax' not in sys.modules"
    )
    for code in (with_package, jax_alone):
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for name in ("package", "alone"):
        logits = np.load(tmp_path / f"{name}.npy")
        np.testing.assert_allclose(logits, expected, atol=2e-6 * np.abs(expected).max(), err_msg=name)


def test_an_image_file_becomes_the_pixels_that_model_json_describes(exported, seven, tmp_path):
    path = tmp_path / "wide.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (25, 41, 3), np.uint8)).save(path)
    model, run = stce_jax.load_exported(exported[0]), seven[0]
    image, size = model.description["image"], model.description["image"]["size"]
    short, opened = image["resize_short_side"], Image.open(path)
    resized = opened.resize((short * 41 // 25, short), Image.Resampling.BICUBIC)
    left, top = round((resized.width - size) / 2), round((resized.height - size) / 2)
    expected = np.asarray(resized.crop((left, top, left + size, top + size)))
    for given in (str(path), path, path.read_bytes(), np.asarray(opened)):
        np.testing.assert_array_equal(model.preprocess(given), expected, err_msg=type(given).__name__)
    ours = augment.normalize(expected, mean=run.mean, std=run.std)
    np.testing.assert_allclose(run.preprocess(path), ours, atol=1e-6, err_msg="the run sees other pixels")
    with pytest.raises(DataError, match=r"cannot read .*nothing\.png: No such file"):
        model.preprocess(tmp_path / "nothing.png")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, options, batch",
    [
        ("vit_ti_stce", {"dtype": "bfloat16"}, None),
        ("vit_ti_patch", {"patch_size": 4, "scan_layers": True, "pooling": "mean", "remat": True}, 2),
        ("vit_ti_conv", {"stem_widths": (8, 16), "stem_strides": (2, 2), "position_embedding": "sincos2d"}, None),
    ],
)
def test_other_models(tiny_run, tmp_path, monkeypatch, name, options, batch):
    cleared = {} if name == "vit_ti_stce" else {"stem_widths": None, "stem_strides": None, "cell": None}
    run = run_of(runs.load_run(tiny_run[0]), name, **cleared | options)
    monkeypatch.setattr(runs, "load_run", lambda *_: run)
    done = verb.export("W", tmp_path / "out", batch=batch, platforms=("tpu", "cpu"))
    assert done["dtype"] == options.get("dtype", "float32") and done["platforms"] == ["tpu", "cpu"]
    assert done["batch_sizes"] == ([batch] if batch else [1, 3]) and done["greatest_logit"] > 0
    model, pixels = stce_jax.load_exported(tmp_path / "out"), noise_images(2)
    logits = np.asarray(model.logits(pixels))
    expected = live_logits(run, pixels)
    assert logits.dtype == np.float32
    tolerance = 2e-2 if done["dtype"] == "bfloat16" else 1e-5
    np.testing.assert_allclose(logits, expected, atol=tolerance * np.abs(expected).max())
    if batch:
        with pytest.raises(ValueError, match="shape"):
            model.logits(noise_images(3))


@pytest.mark.slow
def test_the_moving_average_and_a_checkpoint_of_ones_choice(capsys, tiny_run, tmp_path):
    workdir, directory = tiny_run[0], tmp_path / "average"
    words = ("--ema", "--checkpoint=best", "--platforms=cpu", "--batch=1")
    code, out, error = run_cli(capsys, "export", f"--workdir={workdir}", f"--output={directory}", *words)
    assert code == 0 and "1 images a call" in out, error
    written = safetensors.numpy.load_file(directory / FILES[2])
    average, plain = (weights.flatten(runs.load_run(workdir, "best", ema).variables) for ema in (True, False))
    kernel = "params/head/kernel"
    np.testing.assert_array_equal(written[kernel], average[kernel])
    assert not np.array_equal(written[kernel], plain[kernel])
    description = json.loads((directory / FILES[1]).read_text())
    assert description["moving_average"] is True and description["platforms"] == ["cpu"]


def test_the_model_card_knows_what_the_workdir_says(capsys, tiny_run, tmp_path):
    directory = tmp_path / "card"
    words = (f"--workdir={tiny_run[0]}", f"--output={directory}", "--format=huggingface", "--license=mit")
    code, out, error = run_cli(capsys, "export", *words)
    assert code == 0 and "float32, huggingface, " in out, error
    known = verb._known(tiny_run[0], runs.load_run(tiny_run[0]).step, False)
    text = (directory / "README.md").read_text()
    assert len(known["fingerprint"]) == 64 and known["fingerprint"] in text and known["evaluation"] is None
    assert f"| `top1` | {known['during_training']['top1']:.4g} |" in text and 'license: "mit"' in text


# --- what can go wrong


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_refused(copy, name):
    whole = (copy / name).read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 8):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        (copy / name).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"{name} is damaged; export it again") as refused:
            stce_jax.load_exported(copy)
        assert "\n" not in str(refused.value) and refused.value.exit_code == 4
    (copy / name).write_bytes(whole)
    stce_jax.load_exported(copy)


@pytest.mark.parametrize("name", [*FILES, "SHA256SUMS"])
def test_a_missing_file_is_refused(copy, name):
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        stce_jax.load_exported(copy)


def test_what_this_jax_cannot_read_is_refused(copy):
    (copy / FILES[0]).write_bytes(b"of another version")
    (copy / "SHA256SUMS").unlink()
    write_digests(open_path(copy))  # the file is whole
    with pytest.raises(CheckpointError, match=r"does not read .*model.jaxexport, which jax .* wrote") as refused:
        stce_jax.load_exported(copy)
    assert "\n" not in str(refused.value)


def test_what_is_no_export(tmp_path):
    for place in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ConfigError, match="is no exported model"):
            stce_jax.load_exported(place)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["a weight", "a NaN", "the normalisation"])
def test_a_program_that_differs_from_the_run_is_not_exported(capsys, tiny_run, tmp_path, monkeypatch, fault):
    make = jax_format._program

    def wrong(run, variables, platforms, batch):
        if fault == "the normalisation":
            return make(dataclasses.replace(run, mean=(0.3, 0.3, 0.3)), variables, platforms, batch)
        flat = weights.flatten(variables)
        kernel = flat["params/head/kernel"].copy()
        kernel[3, 4] = np.nan if fault == "a NaN" else kernel[3, 4] + 0.05
        return make(run, weights.unflatten(flat | {"params/head/kernel": kernel}), platforms, batch)

    monkeypatch.setattr(jax_format, "_program", wrong)
    words = (f"--workdir={tiny_run[0]}", f"--output={tmp_path / 'out'}", "--batch=2")
    code, _, error = run_cli(capsys, "export", *words)
    assert code == 4 and "the exported model differs from the run" in error and error.count("\n") == 1, error
    assert os.listdir(tmp_path) == [], "something was left"


def test_weights_that_are_read_back_otherwise_are_not_exported(capsys, tiny_run, tmp_path, monkeypatch):
    save = weights.save_weights

    def rounding(path, variables, class_ids):
        save(path, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(leaf.dtype), variables), class_ids)

    monkeypatch.setattr(jax_format, "save_weights", rounding)
    words = (f"--workdir={tiny_run[0]}", f"--output={tmp_path / 'out'}", "--batch=2")
    code, _, error = run_cli(capsys, "export", *words)
    assert code == 4 and "was read back with another " in error and error.count("\n") == 1, error
    assert os.listdir(tmp_path) == [], "something was left"


@pytest.mark.parametrize(
    "words, code, named",
    [
        (("--output=OUT",), 2, "required: --workdir"),
        (("--workdir=RUN",), 2, "required: --output"),
        (("--workdir=/no/where", "--output=OUT"), 2, "is no workdir of a run"),
        (("--workdir=RUN", "--output=OUT", "--checkpoint=17"), 4, "there is no checkpoint '17'"),
        (("--workdir=RUN", "--output=OUT", "--platforms=cpu,gpu"), 2, "there is no platform 'gpu'; give some of cpu"),
        (("--workdir=RUN", "--output=OUT", "--platforms=tpu"), 2, "put cpu among the platforms"),
        (("--workdir=RUN", "--output=OUT", "--batch=0"), 2, "batch is 0"),
        (("--workdir=RUN", "--output=OUT", "--batch=some"), 2, "'some' is neither a number of images nor symbolic"),
        (("--workdir=RUN", "--output=FULL"), 2, "FULL is there already"),
        (("--workdir=RUN", "--output=FULL/file"), 2, "FULL/file is there already"),
        (("--workdir=RUN", "--output=FULL/file/out"), 2, "cannot write"),
        (("--workdir=RUN", "--output=/proc/out"), 2, "cannot write /proc/out"),
        (("--workdir=RUN", "--output=memory://out"), 2, "give a local --output"),
    ],
)
def test_refusals(capsys, monkeypatch, tiny_run, tmp_path, words, code, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "file").write_text("mine")
    words = [word.replace("=RUN", f"={tiny_run[0]}") for word in words]
    found, out, error = run_cli(capsys, "export", *words)
    assert found == code, error
    assert named in error and error.count("\n") == 1 and out == "", error
    assert (os.listdir(tmp_path), os.listdir(tmp_path / "FULL")) == (["FULL"], ["file"]), "something was left"


def test_a_full_disk_leaves_nothing(capsys, tiny_run, small_disk):
    (small_disk / "other").write_bytes(bytes(3 * 2**20 - 60_000))
    code, _, error = run_cli(capsys, "export", f"--workdir={tiny_run[0]}", f"--output={small_disk / 'out'}")
    assert code == 2 and "No space left on device; make room, or give another" in error, error
    assert PREFIX not in error and error.count("\n") == 1, error
    assert os.listdir(small_disk) == ["other"], "something was left"


@pytest.mark.slow
def test_what_a_killed_export_left_is_no_hindrance(tiny_run, tmp_path):
    left = tmp_path / ".stce-export-0123456789abcdef" / "model.json"
    left.parent.mkdir()
    left.write_text("half")
    (tmp_path / "out").mkdir()  # an empty directory may be there
    verb.export(tiny_run[0], tmp_path / "out", batch=1, platforms=("cpu",))
    assert os.listdir(tmp_path) == ["out"] and sorted(os.listdir(tmp_path / "out")) == sorted([*FILES, "SHA256SUMS"])
    stce_jax.load_exported(tmp_path / "out")


def test_two_exports_to_one_output_do_not_mix(tmp_path):
    """The first to end has it; the other is refused, and neither removes what the other is writing."""
    with pytest.raises(ConfigError, match="cannot write"), verb.appearing(tmp_path / "out") as first:
        (first / "file").write_text("first")
        with verb.appearing(tmp_path / "out") as second:
            assert second != first and (first / "file").exists()
            (second / "file").write_text("second")
    assert os.listdir(tmp_path) == ["out"] and (tmp_path / "out" / "file").read_text() == "second"


def test_an_export_follows_no_link(tmp_path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "precious").write_text("mine")
    (tmp_path / ".stce-export-0123456789abcdef").symlink_to(tmp_path / "victim")
    with verb.appearing(tmp_path / "out") as directory:
        (directory / "file").write_text("new")
    assert (tmp_path / "victim" / "precious").exists() and (tmp_path / "out" / "file").exists()


def test_a_description_that_is_none_of_ours(copy):
    for text in ("[]", "{", '{"image": 1}', "[" * 100_000):
        (copy / "model.json").write_text(text)
        write_digests(open_path(copy))
        with pytest.raises(CheckpointError, match=r"cannot read .*model\.json") as error:
            stce_jax.load_exported(copy)
        assert "\n" not in str(error.value)
