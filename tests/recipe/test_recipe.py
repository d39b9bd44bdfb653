"""The paper's configs from `stce prepare` to a trained model, cut down to a few steps; pictures of their batches."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import stce_jax
from stce_jax.data.catalog import open_dataset
from stce_jax.errors import ConfigError
from stce_jax.verbs import show_data as show_data_module
from stce_jax.verbs.show_data import show_data
from stce_jax.workdir.config import load_config

WNIDS = ("n01443537", "n01514668", "n01531178")
SMALL = (
    "--config.image_size=32",
    "--config.batch_size=8",
    "--config.eval_batch_size=8",
    "--config.epochs=2",
    "--config.log_every=1",
    "--config.model.body.vit.width=16",
    "--config.model.body.vit.depth=1",
    "--config.model.body.vit.heads=2",
    "--config.model.body.vit.mlp_dim=16",
)


@pytest.fixture(scope="module")
def imagenet(stce, tmp_path_factory):
    """(data_dir, file of classes): three classes of noise in ImageNet's folders, prepared as imagenet100."""
    root = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for wnid in WNIDS:
            folder = root / "tree" / split / wnid
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (40 + number, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{wnid}_{split}_{number}.JPEG")
    classes = root / "three.txt"
    classes.write_text("\n".join(reversed(WNIDS)))
    done = stce("prepare", "imagenet100", f"--source={root}/tree", f"--classes={classes}", f"--data_dir={root}/data")
    assert done.returncode == 0, done.stderr
    return root / "data", classes


@pytest.fixture(scope="module")
def trained(stce, imagenet, tmp_path_factory):
    """A run of the STCE's config, three steps an epoch."""
    workdir = tmp_path_factory.mktemp("runs") / "stce"
    done = train(stce, imagenet, "stce_vit_s", workdir)
    assert done.returncode == 0, done.stderr
    return workdir


def train(stce, imagenet, config, workdir, *words):
    data_dir, classes = imagenet
    words = (*SMALL, f"--config.classes={classes}", f"--data_dir={data_dir}", *words)
    return stce("train", f"--config={config}", f"--workdir={workdir}", *words)


def test_the_run_knows_ids_names_and_fingerprint(trained):
    run = stce_jax.load_run(trained)
    assert run.step == 6 and run.class_ids == WNIDS
    assert run.class_names == ("goldfish, Carassius auratus", "cock", "goldfinch, Carduelis carduelis")
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 8 and all(np.isfinite(line["loss"]) for line in lines)


def test_a_run_needs_no_file_of_classes_once_the_data_are_prepared(stce, imagenet, trained, tmp_path):
    data_dir, classes = imagenet
    moved = classes.rename(tmp_path / "elsewhere.txt")
    try:
        done = stce("evaluate", f"--workdir={trained}")
        assert done.returncode == 0 and "9 images" in done.stdout, done.stderr
    finally:
        moved.rename(classes)
    assert open_dataset("imagenet100", data_dir, "three").class_ids == WNIDS
    with pytest.raises(ConfigError, match="cannot read the class list 'four'"):
        open_dataset("imagenet100", data_dir, "four")


@pytest.mark.parametrize("config", ["conv_vit_s", "patch_vit_s"])
def test_the_other_embeddings_train(stce, imagenet, tmp_path, config):
    done = train(stce, imagenet, config, tmp_path / "run", "--config.epochs=1", "--config.model.dtype=bfloat16")
    assert done.returncode == 0, done.stderr
    assert "finished: top-1" in done.stdout


def test_worker_processes_train_the_same_model(stce, imagenet, trained, tmp_path):
    done = train(stce, imagenet, "stce_vit_s", tmp_path / "run", "--config.loader_workers=2")
    assert done.returncode == 0, done.stderr
    losses = [
        [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        for workdir in (trained, tmp_path / "run")
    ]
    assert losses[0] == losses[1]


def test_going_on_with_other_images_is_refused(stce, imagenet, trained, tmp_path):
    """The same classes, the same number of images; one image differs."""
    data_dir, classes = imagenet
    shutil.copytree(data_dir.parent / "tree", tmp_path / "tree")
    file = next((tmp_path / "tree" / "train").rglob("*_0.JPEG"))
    Image.new("RGB", (40, 50), "red").save(file)
    other = tmp_path / "data"
    done = stce("prepare", "imagenet100", f"--source={tmp_path}/tree", f"--classes={classes}", f"--data_dir={other}")
    assert done.returncode == 0, done.stderr
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")  # as if it had been stopped before the last epoch
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    done = train(stce, (other, classes), "stce_vit_s", tmp_path / "run")
    assert done.returncode == 3, done.stderr
    assert "the images are not those the run was trained on" in done.stderr and done.stderr.count("\n") == 1
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    done = train(stce, imagenet, "stce_vit_s", tmp_path / "run")
    assert done.returncode == 0 and "resuming from step 3" in done.stdout, done.stderr


def test_show_data_draws_the_batch(stce, imagenet, tmp_path):
    data_dir, classes = imagenet
    picture = tmp_path / "batch.png"
    words = (*SMALL, f"--config.classes={classes}", f"--data_dir={data_dir}", f"--output={picture}", "--step=2")
    done = stce("show-data", "--config=stce_vit_s", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{picture}: the 8 images of step 2\n"
    image = Image.open(picture)
    assert image.width > 4 * 112 and image.height > 2 * 112, "eight tiles in two rows"


def tiles(picture):
    """The eight 128-pixel tiles of a sheet, each reduced to the 32 pixels it was enlarged from."""
    sheet = np.asarray(Image.open(picture))
    places = [(4 + row * 164, 4 + column * 132) for row in range(2) for column in range(4)]
    return [sheet[top : top + 128 : 4, left : left + 128 : 4] for top, left in places]


def test_show_data_without_augmentation_draws_the_images_and_their_classes(imagenet, tmp_path):
    data_dir, classes = imagenet
    plain = ("mixup=0", "cutmix=0", "erase=0", "flip=0", "rand_augment=", "repeats=1", "crop=center")
    words = [*SMALL, f"--config.classes={classes}", f"--config.data_dir={data_dir}"]
    config = load_config("stce_vit_s", [*words, *(f"--config.augment.{word}" for word in plain)])
    labels = show_data(config, tmp_path / "plain.png")
    from stce_jax.training import assemble as runs

    dataset = runs.open_dataset(config)
    views = runs.eval_views(config, dataset)
    views._source = dataset.train
    known = {views.view(index)[0].tobytes(): dataset.class_names[views.view(index)[1]] for index in range(24)}
    drawn = [known.get(tile.tobytes()) for tile in tiles(tmp_path / "plain.png")]
    assert [name for [(name, _)] in labels] == drawn, "the labels below the images are not theirs"
    assert all(weight == pytest.approx(0.9 + 0.1 / 3) for [(_, weight)] in labels)


def test_show_data_tells_both_classes_of_a_mixed_image(imagenet, tmp_path):
    data_dir, classes = imagenet
    words = [*SMALL, f"--config.classes={classes}", f"--config.data_dir={data_dir}"]
    labels = show_data(load_config("stce_vit_s", words), tmp_path / "mixed.png", step=1)
    assert len(labels) == 8 and max(len(names) for names in labels) == 2
    for names in labels:
        assert sum(weight for _, weight in names) <= 1 and names == sorted(names, key=lambda name: -name[1])


@pytest.mark.parametrize("target, named", [((0.665, 0.335), ["a", "b"]), ((0.95, 0.05), ["a"]), ((1.0,), ["a"])])
def test_heaviest_classes_where_there_are_few(target, named):
    smoothing = 0.1 / len(target)
    assert [name for name, _ in show_data_module._heaviest(np.array(target), "ab", smoothing)] == named


def test_show_data_refuses(stce, imagenet, tmp_path):
    data_dir, classes = imagenet
    words = (*SMALL, f"--config.classes={classes}", f"--data_dir={data_dir}")
    for extra, named in (
        (f"--output={tmp_path}/no/such/folder.png", "cannot write"),
        (f"--output={tmp_path}/picture.xyz", "cannot write"),
        ("--step=-1", "there is no step -1"),
    ):
        done = stce("show-data", "--config=stce_vit_s", *words, extra)
        assert done.returncode == 2 and named in done.stderr and done.stderr.count("\n") == 1, done.stderr
