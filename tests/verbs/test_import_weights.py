"""`stce import`: weights of another library as a run that every verb opens, or nothing at all."""

import json
import os

import numpy as np
import pytest
import safetensors.numpy
from helpers import run_cli
from PIL import Image
from weight_sources import HUGGING_FACE, TIMM, noise, write_folder

import stce_jax
from stce_jax.errors import CheckpointError, ConfigError
from stce_jax.verbs import appearing
from stce_jax.verbs.import_weights import import_weights
from stce_jax.workdir import weights

KINDS = ["ant", "bee", "cat", "dog", "eel"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder as timm writes it, and its arrays by our paths."""
    theirs, ours, _ = noise()
    return write_folder(tmp_path_factory.mktemp("hub") / "vit", theirs, TIMM | {"label_names": KINDS}), ours


@pytest.fixture(scope="module")
def imported(hub, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "vit"
    return workdir, import_weights(hub[0], workdir)


def test_the_run_holds_the_weights_and_how_they_see(hub, imported):
    workdir, done = imported
    assert done["said"] == f"read 32 arrays of {hub[0]} (timm's ViT or DeiT)" and done["unknown"] == []
    assert done["image_size"] == 32 and done["classes"] == 5 and done["model"] == "deit_s"
    run = stce_jax.load_run(workdir)
    found = weights.flatten(run.variables)
    assert found.keys() == hub[1].keys()
    assert all(found[path].tobytes() == array.tobytes() for path, array in hub[1].items())
    assert run.class_ids == tuple(KINDS) and run.mean == (0.5, 0.4, 0.3) and run.std == (0.5, 0.25, 0.2)
    assert run.config.augment.eval_interpolation == "bilinear" and run.config.augment.eval_crop_fraction == 0.9
    assert run.config.model.body.deit.heads == 2 and run.config.init_from == str(hub[0]) and run.step == 0
    assert sorted(os.listdir(workdir)) == ["checkpoints", "config.json"]
    image = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    small = Image.fromarray(image).resize((35, 43), Image.Resampling.BILINEAR)
    expected = np.asarray(small)[6:38, 2:34] / 255
    np.testing.assert_allclose(run.preprocess(image), (expected - run.mean) / run.std, atol=1e-5)


def test_overrides_come_last(hub, tmp_path):
    words = ["--config.image_size=48", "--config.augment.mean=0,0,0", "--config.model.body.deit.remat=True"]
    done = import_weights(hub[0], tmp_path / "run", words)
    assert "position embedding interpolated from 4x4 to 6x6" in done["said"]
    run = stce_jax.load_run(tmp_path / "run")
    assert run.mean == (0, 0, 0) and run.model.remat and run.model.image_size == (48, 48)


def test_the_command_says_what_it_assumes(capsys, tmp_path):
    theirs, _, _ = noise("timm_vit")
    safetensors.numpy.save_file(theirs, tmp_path / "a.safetensors")
    words = ("import", tmp_path / "a.safetensors", f"--workdir={tmp_path / 'run'}")
    code, out, error = run_cli(capsys, *words, "--config.model.body.deit.heads=2")
    assert code == 0 and "a guess" not in out and "its classes have no names" in out
    assert error.startswith("stce: note: nothing says how images were prepared; assumed: mean 0.485,0.456,0.406;")
    assert error.count("\n") == 1
    code, _, error = run_cli(capsys, *words)
    assert code == 2 and "is there already; give another --workdir" in error and error.count("\n") == 1


def test_what_is_no_source_of_a_run_is_refused_and_leaves_nothing(hub, imported, tmp_path, monkeypatch):
    def refuse(source, words, error=CheckpointError, overrides=()):
        with pytest.raises(error) as caught:
            import_weights(source, tmp_path / "run", overrides)
        assert words in str(caught.value) and "\n" not in str(caught.value)
        assert not [name for name in os.listdir(tmp_path) if "run" in name or appearing.PREFIX in name]

    refuse(imported[0], "is a run already", ConfigError)
    refuse(tmp_path / "nothing", "there is no ", ConfigError)
    own = tmp_path / "own.safetensors"
    weights.save_weights(own, weights.unflatten(hub[1]), KINDS)
    refuse(own, "does not say of which model it is")
    theirs, _, _ = noise("hf_vit")
    bodies = {name: array for name, array in theirs.items() if not name.startswith("classifier")}
    refuse(write_folder(tmp_path / "headless", bodies, HUGGING_FACE), "has no head")
    refuse(hub[0], "params/blocks_2/attention/out/bias is not in it", overrides=["--config.model.body.deit.depth=3"])
    refuse(hub[0], "is an option of the body 'vit'", ConfigError, ["--config.model.body.vit.depth=3"])
    wide = json.loads(json.dumps(TIMM))
    wide["model_args"]["img_size"] = [16, 64]
    theirs, _, _ = noise()
    refuse(write_folder(tmp_path / "wide", {**theirs}, wide), "16x64 pixels, those of a run are squares")
    with monkeypatch.context() as patch:
        patch.setattr("stce_jax.verbs.import_weights.CheckpointWriter.save", fail)
        refuse(hub[0], "the disk is full; give another --workdir", ConfigError)
    with pytest.raises(ConfigError, match="cannot import to gs://bucket/run; give a local --workdir"):
        import_weights(hub[0], "gs://bucket/run")


def fail(*_):
    raise OSError("the disk is full")


@pytest.mark.parametrize("room, what", [(0, "write to workdir"), (10_000, "write a checkpoint in")])
def test_a_full_disk_is_one_line_and_leaves_nothing(capsys, hub, small_disk, room, what):
    (small_disk / "other").write_bytes(bytes(3 * 2**20 - 4096 - room))
    code, _, error = run_cli(capsys, "import", hub[0], f"--workdir={small_disk / 'run'}")
    assert code in (2, 4) and error.startswith(f"stce: cannot {what} {small_disk / 'run'}"), error
    assert "No space left on device" in error and "; make room, or " in error and error.count("\n") == 1, error
    assert appearing.PREFIX not in error and "stays" not in error and len(error) < 400, error
    assert os.listdir(small_disk) == ["other"], "something was left"


def test_training_in_its_workdir_is_refused_and_the_way_is_named(capsys, hub, imported, tmp_path):
    workdir, _ = imported
    before = sorted((path, path.stat().st_mtime_ns) for path in workdir.rglob("*"))
    for more in ((), (f"--init_from={hub[0]}",), ("--allow_config_change",)):
        code, _, error = run_cli(capsys, "train", "--config=digits", f"--workdir={workdir}", *more)
        assert code == 2 and error.count("\n") == 1, error
        assert f"{workdir} holds weights of `stce import`" in error and f"--init_from={workdir}" in error, error
    assert before == sorted((path, path.stat().st_mtime_ns) for path in workdir.rglob("*"))


@pytest.mark.slow
def test_every_verb_opens_it(hub, imported, tmp_path, stce_here, data_dir):
    workdir, _ = imported
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in KINDS:
            (tmp_path / split / kind).mkdir(parents=True)
            for number in range(2):
                pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / kind / f"{number}.png")
    photo, here = tmp_path / "val" / "ant" / "0.png", f"--workdir={workdir}"

    def run(*words):
        done = stce_here(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "10 images" in run("evaluate", here, f"--data_dir={tmp_path}")
    assert any(kind in run("predict", photo, here) for kind in KINDS)
    run("features", photo, here, f"--output={tmp_path / 'f.npz'}")
    run("visualize", photo, here, "--attention", f"--output={tmp_path / 'pictures'}")
    run("compare", workdir, f"--output={tmp_path / 'compare.png'}")
    run("export", here, f"--output={tmp_path / 'exported'}", "--platforms=cpu")
    exported = stce_jax.load_exported(tmp_path / "exported")
    assert exported.description["image"]["interpolation"] == "bilinear"
    run("import", tmp_path / "exported", f"--workdir={tmp_path / 'back'}")
    back, first = (stce_jax.load_run(path) for path in (tmp_path / "back", workdir))
    assert back.class_ids == first.class_ids and back.mean == first.mean
    for path, array in weights.flatten(back.variables).items():
        np.testing.assert_array_equal(array, weights.flatten(first.variables)[path])
    words = ["train", "--config=small_folder", f"--data_dir={tmp_path}", f"--workdir={tmp_path / 'tuned'}"]
    words += [f"--init_from={workdir}", "--config.model.name=deit_s", "--config.image_size=32"]
    words += ["--config.model.body.name=deit", "--config.model.embedding.name=linear_patch"]
    options = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 24, "pooling": "class"}
    words += [f"--config.model.body.deit.{key}={value}" for key, value in options.items()]
    words += ["--config.model.embedding.linear_patch.patch_size=8", "--config.epochs=2", "--config.batch_size=8"]
    words += ["--config.eval_batch_size=8", "--config.optimizer.warmup_epochs=0"]
    output = run(*words)
    assert "as the weights were trained: augment.mean 0.5,0.4,0.3" in output
    assert "head of the same 5 classes" in output
    assert "already finished" in run(*words)
    assert stce_jax.load_run(tmp_path / "tuned").mean == (0.5, 0.4, 0.3)
