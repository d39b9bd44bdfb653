"""labels.csv: what it says in either form, what is refused, and what becomes of the images it names."""

import pickle

import numpy as np
import pytest
from image_sources import picture

from stce_jax.data.catalog import check_options, open_dataset
from stce_jax.data.holdout import hold_out
from stce_jax.data.label_sets import read_table
from stce_jax.data.views import Views
from stce_jax.errors import ConfigError, DataError
from stce_jax.verbs.prepare import prepare

LISTED = """path,labels
train/a.png,cat;dog
train/b.png, dog
train/deep/c.png,cat; sea lion ;cat
val/d.png,sea lion;dog
"""
MARKED = """path,sea lion,cat,dog
train/a.png,0,1,1
train/b.png,0,0,1
train/deep/c.png,1,1,0
val/d.png,1,0,1
"""
NAMES = ("train/a.png", "train/b.png", "train/deep/c.png", "val/d.png")


@pytest.fixture
def images(tmp_path):
    for place, name in enumerate(NAMES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture(place, "PNG", (8, 8)))
    (tmp_path / "labels.csv").write_text(LISTED)
    return tmp_path


def opened(root, splits=("train", "val")):
    return open_dataset("folder", root, splits=splits, task="multi_label")


@pytest.mark.parametrize("text", [LISTED, MARKED, "\ufeff" + MARKED, LISTED.replace("\n", "\r\n"), LISTED + "\n\n"])
def test_both_forms_say_the_same(images, text):
    (images / "labels.csv").write_text(text, newline="")
    found = opened(images)
    assert found.class_ids == found.class_names == ("cat", "dog", "sea lion")
    records = [*map(found.train.__getitem__, range(3)), found.val[0]]
    assert [tuple(record["label"].tolist()) for record in records] == [(1, 1, 0), (0, 1, 0), (1, 0, 1), (0, 1, 1)]
    assert [record["name"] for record in records] == [str(images / name) for name in NAMES]
    image, label = Views(found.train, size=8, crop="center", fraction=1.0).view(2)
    assert image.shape == (8, 8, 3) and label.dtype == np.int32 and label.tolist() == [1, 0, 1]


def test_an_image_may_have_no_label(images):
    (images / "labels.csv").write_text(LISTED.replace(", dog", ","))
    assert opened(images).train[1]["label"].tolist() == [0, 0, 0]


def test_the_fingerprint_is_of_labels_and_images(images):
    before = opened(images).fingerprint
    (images / "labels.csv").write_text(MARKED)
    assert opened(images).fingerprint == before, "another form of the same"
    (images / "labels.csv").write_text(LISTED.replace("a.png,cat;dog", "a.png,dog"))
    assert opened(images).fingerprint != before
    (images / "labels.csv").write_text(LISTED)
    (images / "train/a.png").write_bytes(picture(9, "PNG", (9, 9)))
    assert opened(images).fingerprint != before


def test_one_split_needs_no_other(images):
    (images / "val/d.png").unlink()
    assert len(opened(images, ("train",)).train) == 3
    with pytest.raises(DataError, match=r"line 5: there is no image 'val/d\.png'"):
        opened(images)


TABLES = [
    ("", "the first line is ''; it must be `path,labels`, or `path` and the name of each class, once"),
    ("file,labels\ntrain/a.png,cat\n", "the first line is 'file,labels'"),
    ("path\ntrain/a.png\n", "the first line is 'path'"),
    ("path,cat,cat\ntrain/a.png,0,1\n", "the first line is 'path,cat,cat'"),
    ("path,cat,\ntrain/a.png,0,1\n", "the first line is 'path,cat,'"),
    ("path,cat,dog\ntrain/a.png,1\n", "line 2: there are 2 values, and 3 in the first line"),
    ("path,labels\ntrain/a.png,cat,dog\n", "line 2: there are 3 values, and 2 in the first line"),
    ("path,cat,dog\ntrain/a.png,1,yes\n", "line 2: 'yes' is neither 0 nor 1"),
    ("path,labels\na.png,cat\n", "line 2: 'a.png' is no path that begins with train/ or val/"),
    ("path,labels\n/train/a.png,cat\n", "line 2: '/train/a.png' is no path"),
    ("path,labels\ntrain/../a.png,cat\n", "line 2: 'train/../a.png' is no path"),
    ("path,labels\ntrain/a.png,cat\ntrain/./a.png,dog\n", "line 3: 'train/a.png' is in line 2, too; remove one"),
    ("path,labels\ntrain/a.png,\ntrain/b.png, ;\n", "gives no image a label"),
    ("path,labels\n", "gives no image a label"),
    ('path,labels\n"train/a.png' + "x" * 200_000, "cannot read"),
]


@pytest.mark.parametrize(("text", "said"), TABLES)
def test_tables_that_cannot_be_read_are_refused_with_their_line(tmp_path, text, said):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError) as error:
        read_table(tmp_path / "labels.csv")
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("train/b.png, dog\n", "", "'train/b.png' of {} has no line in labels.csv; add it, or move the image away"),
        ("train/b.png", "train/e.png", "'train/b.png' of {} has no line"),
        (
            "val/d.png",
            "val/d.png,dog\nval/e.png",
            "labels.csv, line 6: there is no image 'val/e.png'; take the line out",
        ),
        ("val/d.png,sea lion", "val/d.png,horse", "no training image has the label 'horse' of {}/labels.csv; add some"),
        ("val/d.png,sea lion;dog", "val/d.png,", "no image of {}/val has a label; nothing can be measured on them"),
    ],
)
def test_images_and_lines_that_do_not_fit_are_named(images, old, new, said):
    (images / "labels.csv").write_text(LISTED.replace(old, new))
    with pytest.raises(DataError) as error:
        opened(images)
    assert said.format(images) in str(error.value) and "\n" not in str(error.value)


def test_without_a_table_the_way_out_is_said(images):
    (images / "labels.csv").unlink()
    with pytest.raises(DataError, match=r"has no labels\.csv, which gives each image its labels where config\.task is"):
        opened(images)
    (images / "labels.csv").mkdir()
    with pytest.raises(DataError, match=r"cannot read .*labels\.csv"):
        opened(images)


@pytest.mark.parametrize(
    "options", [{"dataset": "digits"}, {"raw_short_side": 64}, {"classes": "cmc"}, {"task": "multilabel"}]
)
def test_options_of_other_data_sets_are_refused(options):
    given = {"dataset": "folder", "task": "multi_label", "raw_short_side": 0, "data_dir": "", "classes": ""} | options
    with pytest.raises(
        ConfigError, match=rf"config\.{next(iter(options))} is .*; (with config\.task multi_label )?it must"
    ):
        check_options(**given)


def test_remote_images_are_refused():
    with pytest.raises(ConfigError, match="are read from a local folder; give its path"):
        opened("gs://bucket/data")


def test_a_share_of_all_images_is_held_out(images):
    found = opened(images, ("train",))
    part = hold_out(found, 0.4)
    assert (len(part.train), len(part.val)) == (2, 1) and part.val.label_shape == (3,)
    everything = [*map(part.train.__getitem__, range(2)), part.val[0]]
    own = {found.train[place]["name"]: found.train[place]["label"].tolist() for place in range(3)}
    assert {record["name"]: record["label"].tolist() for record in everything} == own
    assert pickle.loads(pickle.dumps(part.val)).labels().tolist() == [own[part.val.name(0)]]


def test_images_without_labels_alone_are_not_held_out(images):
    held = hold_out(opened(images, ("train",)), 0.4).val.name(0).removeprefix(f"{images}/")
    lines = [f"{name},{'' if name == held else 'cat;dog'}" for name in NAMES]
    (images / "labels.csv").write_text("\n".join(["path,labels", *lines]))
    with pytest.raises(DataError, match=r"no image that is held out has a label; hold out more, config\.holdout"):
        hold_out(opened(images, ("train",)), 0.4)


def test_they_are_not_prepared(images, tmp_path):
    with pytest.raises(ConfigError, match=r"has a labels\.csv: images with several labels are not prepared but read"):
        prepare("folder", images, data_dir=tmp_path / "data")
