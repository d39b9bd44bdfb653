"""`stce show-data`: pictures of a batch of the paper's recipe, on three small classes."""

import numpy as np
import pytest
from helpers import SMALL
from PIL import Image

from stce_jax.verbs import show_data as show_data_module
from stce_jax.verbs.show_data import show_data
from stce_jax.workdir.config import load_config


def test_show_data_draws_the_batch(stce_here, imagenet, tmp_path):
    data_dir, classes = imagenet
    picture = tmp_path / "batch.png"
    words = (*SMALL, f"--config.classes={classes}", f"--data_dir={data_dir}", f"--output={picture}", "--step=2")
    done = stce_here("show-data", "--config=stce_vit_s", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{picture}: the 8 images of step 2; its last lines explain the targets\n"
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


def test_the_caption_explains_smoothing_and_mixing():
    words = [f"--config.augment.{word}" for word in ("mixup=0.5", "cutmix=2", "switch_probability=0.3")]
    found = " ".join(show_data_module.caption(load_config("stce_vit_s", words), 4))
    assert "smoothing 0.1 gives 2.50% to each of the 4 classes; so 92.5% is one class, unmixed" in found
    assert (
        "mixup blends both (alpha 0.5) or CutMix pastes a part of the other (alpha 2), CutMix with probability 0.3"
        in found
    )
    words = [f"--config.augment.{word}" for word in ("mixup=0", "cutmix=0", "label_smoothing=0")]
    found = " ".join(show_data_module.caption(load_config("stce_vit_s", words), 4))
    assert "no label smoothing: 100% is one class" in found and "No images are mixed." in found


@pytest.mark.slow
def test_show_data_refuses(stce_here, imagenet, tmp_path):
    data_dir, classes = imagenet
    words = (*SMALL, f"--config.classes={classes}", f"--data_dir={data_dir}")
    for extra, named in (
        (f"--output={tmp_path}/no/such/folder.png", "cannot write"),
        (f"--output={tmp_path}/picture.xyz", "cannot write"),
        ("--step=-1", "step is -1; it must be a whole number between 0"),
    ):
        done = stce_here("show-data", "--config=stce_vit_s", *words, extra)
        assert done.returncode == 2 and named in done.stderr and done.stderr.count("\n") == 1, done.stderr
