"""What is held out of the training images: exact counts of each class, always the same ones, never a test image."""

import collections
import pickle

import numpy as np
import pytest
from helpers import TINY
from image_sources import make_images, tree

from stce_jax.data import holdout
from stce_jax.data.catalog import open_dataset
from stce_jax.data.holdout import hold_out
from stce_jax.data.labels import labels_of
from stce_jax.errors import ConfigError, DataError
from stce_jax.training import assemble as runs
from stce_jax.verbs.prepare import prepare
from stce_jax.workdir.metric_lines import read_metrics


def names(source):
    return [source.name(place) for place in range(len(source))]


def counts(source):
    return collections.Counter(int(source[place]["label"]) for place in range(len(source)))


@pytest.fixture
def folders(tmp_path):
    """Class folders whose test images cannot be read."""
    tree(tmp_path / "images", make_images(train=10, val=2))
    for path in (tmp_path / "images" / "val").rglob("*.*"):
        path.write_bytes(b"no image")
    return tmp_path / "images"


@pytest.mark.parametrize(("share", "held"), [(0.1, 1), (0.2, 2), (0.24, 2), (0.25, 3), (0.01, 1), (0.9, 9)])
def test_exact_counts_of_each_class_are_held_out(folders, share, held):
    whole = open_dataset("folder", folders)
    found = hold_out(whole, share)
    assert set(counts(found.val).values()) == {held} and set(counts(found.train).values()) == {10 - held}
    assert sorted(names(found.train) + names(found.val)) == sorted(names(whole.train))
    assert [name for name in names(whole.train) if name in set(names(found.val))] == names(found.val), "another order"
    assert found.class_ids == whole.class_ids


def test_the_same_images_are_held_out_always_and_more_of_them_include_fewer(folders):
    whole = open_dataset("folder", folders)
    two, again, five = (hold_out(whole, share) for share in (0.2, 0.2, 0.5))
    assert names(two.val) == names(again.val) and two.fingerprint == again.fingerprint
    assert set(names(two.val)) < set(names(five.val))
    places = [names(whole.train).index(name) for name in names(two.val)]
    assert places != sorted(range(len(whole.train)), key=lambda place: place % 10)[: len(places)]
    assert [place % 10 for place in places] != [places[0] % 10, places[1] % 10] * (len(places) // 2), "alike in classes"
    assert len({whole.fingerprint, two.fingerprint, five.fingerprint}) == 3
    assert hold_out(whole, 0.0) is whole


def test_a_part_is_that_of_another_process_and_of_another_version_of_numpy():
    labels = np.arange(40) % 4
    held = np.flatnonzero(holdout.held_out(labels, ("a", "b", "c", "d"), 0.2))
    assert held.tolist() == [2, 4, 13, 16, 25, 30, 35, 39]


def test_a_class_with_one_image_is_refused_by_name():
    with pytest.raises(DataError, match=r"class 'b' has 1 training image, of which none"):
        holdout.held_out(np.array([0, 0, 1]), ("a", "b"), 0.5)


def test_a_part_goes_to_loader_processes(folders):
    part = hold_out(open_dataset("folder", folders), 0.2).train
    copy = pickle.loads(pickle.dumps(part))
    assert names(copy) == names(part) and copy[3]["image"] == part[3]["image"]
    assert copy.labels().tolist() == [record["label"] for record in map(part.__getitem__, range(len(part)))]


def test_labels_of_prepared_images_are_read_once(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    whole = hold_out(open_dataset("folder", folders), 0.3)
    tree(tmp_path / "again", make_images(train=10, val=2))
    prepare("folder", tmp_path / "again", data_dir=tmp_path / "data")
    prepared = open_dataset("folder", tmp_path / "data")
    found = hold_out(prepared, 0.3)
    assert counts(found.val) == counts(whole.val) and counts(found.train) == counts(whole.train)
    (kept,) = (tmp_path / "cache").rglob("*.u4")
    own = [int(prepared.train[place]["label"]) for place in range(len(prepared.train))]
    monkeypatch.setattr(type(prepared.train), "__getitem__", lambda *_: pytest.fail("an image was read again"))
    assert labels_of(prepared).tolist() == own
    monkeypatch.undo()
    for damage in (b"", b"12", kept.read_bytes()[:-4], b"\xff" * len(kept.read_bytes())):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        kept.write_bytes(damage)
        assert labels_of(prepared).tolist() == own
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    assert labels_of(prepared).tolist() == own


@pytest.mark.parametrize("share", [-0.1, 0.91, float("nan")])
def test_shares_out_of_range_are_refused(share):
    with pytest.raises(ConfigError, match=r"config\.holdout"):
        holdout.check_options(holdout=share)


def with_holdout(words, place, share):
    config = runs.load_config(words[0], [*words[1:], f"--config.holdout={share}"])
    return config, runs.open_dataset(config, str(place))


@pytest.mark.parametrize("kind", [pytest.param("digits", marks=pytest.mark.slow), "imagenet100"])
def test_prepared_data_sets_are_opened_with_their_part(kind, data_dir, request):
    place, words = data_dir, ("digits",)
    if kind == "imagenet100":
        place, classes = request.getfixturevalue("imagenet")
        words = ("stce_vit_s", f"--config.classes={classes}")
    (_, whole), (_, found) = (with_holdout(words, place, share) for share in (0.0, 0.25))
    of_class = counts(whole.train)
    assert counts(found.val) == {label: int(0.25 * count + 0.5) for label, count in of_class.items()}
    assert len(found.train) + len(found.val) == len(whole.train) and found.fingerprint != whole.fingerprint


@pytest.mark.slow
def test_a_run_is_evaluated_on_its_part_and_says_so(stce_here, data_dir, tmp_path):
    words = ("train", *TINY, "--config.holdout=0.25", f"--data_dir={data_dir}", f"--workdir={tmp_path}")
    done = stce_here(*words)
    assert done.returncode == 0, done.stderr
    assert "training on 1,076 images, evaluating on 361 held out of them" in done.stdout
    logged = [line for line in read_metrics(tmp_path) if line["split"] == "eval"][-1]
    own = {split: stce_here("evaluate", f"--workdir={tmp_path}", f"--split={split}").stdout for split in HELD_OF}
    for split, (images, sentence) in HELD_OF.items():
        assert f"  {images} images  " in own[split] and f"split {split}: {sentence}" in own[split], own[split]
    assert f"361 images  loss {logged['loss']:.4f}  top-1 {100 * logged['top1']:.2f}%" in own["holdout"]
    assert own["holdout"] != own["val"]
    changed = stce_here(*words, "--config.holdout=0.5", "--allow_config_change")
    assert changed.returncode == 3 and "the images are not those the run was trained on" in changed.stderr
    again = stce_here(*words)
    assert again.returncode == 0 and "already finished" in again.stdout


HELD_OF = {
    "holdout": (361, "the training images that were held out"),
    "train": (1076, "the training images, without those"),
    "val": (360, "the test images"),
}


def test_the_part_of_a_run_that_has_none_is_refused(tiny_run, stce_here):
    done = stce_here("evaluate", f"--workdir={tiny_run[0]}", "--split=holdout")
    assert done.returncode == 2 and "this one was trained on all of them; give --split=val or train" in done.stderr
