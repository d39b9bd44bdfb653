"""A stranger's prepared data set: nothing that it names is imported, nothing outside of it is read, nothing waits."""

import grp
import json
import os
import pwd
import shutil
import sys

import pytest
from etils import epath

from stce_jax.data import catalog
from stce_jax.data.builders import open_builder
from stce_jax.errors import DataError

IMAGE = "tensorflow_datasets.core.features.image_feature.Image"
CODE = "import builtins\nbuiltins.hostile_was_imported = True\n"


@pytest.fixture
def hostile(imagenet, tmp_path, monkeypatch):
    """A copy of a prepared data set, beside a module that notes that it was imported."""
    (found,) = (imagenet[0] / "imagenet100").glob("*/1.0.0")
    directory = shutil.copytree(found, tmp_path / "imagenet100" / found.parent.name / "1.0.0")
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "hostile.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield directory
    assert "hostile" not in sys.modules, "what a data set names was imported"


def change(directory, edit, name="features.json"):
    described = json.loads((directory / name).read_text())
    described = edit(described) or described
    (directory / name).write_text(json.dumps(described))


def refused(directory):
    with pytest.raises(DataError, match="; delete it, and prepare it again") as caught:
        catalog.open_prepared(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def inner(described):
    return described["featuresDict"]["features"]


def snake(described):
    inner(described)["image"]["python_class_name"] = inner(described)["image"].pop("pythonClassName")
    inner(described)["image"]["python_class_name"] = "hostile.Image"


LEGACY = {"type": "hostile.Dict", "content": {}}
NESTED = {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict"}
EDITS = {
    "the image's class": lambda d: inner(d)["image"].update(pythonClassName="hostile.Image"),
    "the label's class": lambda d: inner(d)["label"].update(pythonClassName="hostile.Label"),
    "the dictionary's class": lambda d: d.update(pythonClassName="hostile.Dict"),
    "a class in snake case": snake,
    "the older form": lambda d: LEGACY,
    "both forms": lambda d: d.update(LEGACY),
    "one more feature": lambda d: inner(d).update(more={"pythonClassName": "hostile.More", "text": {}}),
    "a feature that lies elsewhere": lambda d: inner(d).update({"../x": inner(d)["file_name"]}),
    "a class with the content of another": lambda d: inner(d)["image"].update(
        text=inner(d)["image"].pop("image") and {}
    ),
    "classes within JSON": lambda d: {**NESTED, "jsonFeature": {"json": json.dumps({"image": LEGACY})}},
    "a known class within JSON": lambda d: inner(d).update(
        image={"pythonClassName": IMAGE, "jsonFeature": {"json": json.dumps({"shape": LEGACY})}}
    ),
    "a list": lambda d: [d],
}


@pytest.mark.parametrize("edit", EDITS)
def test_only_the_features_that_are_written_here_are_opened(hostile, edit):
    open_builder(hostile)
    change(hostile, EDITS[edit])
    assert "features.json" in refused(hostile)


def test_features_that_nest_too_deeply_are_refused(hostile):
    (hostile / "features.json").write_text("[" * 100_000)
    refused(hostile)


SPLIT = {
    "files elsewhere": {"filepathTemplate": "../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"},
    "absolute paths": {"filepathTemplate": "/etc/passwd"},
    "more records than bytes": {"shardLengths": ["1000000000000"]},
    "files that are not there": {"shardLengths": ["1", "1"]},
}


@pytest.mark.parametrize("edit", SPLIT)
def test_files_are_those_of_the_directory_and_as_large_as_they_must_be(hostile, edit):
    change(hostile, lambda d: d["splits"][0].update(SPLIT[edit]), "dataset_info.json")
    refused(hostile)


def test_other_kinds_of_files_are_refused(hostile):
    change(hostile, lambda d: d.update(fileFormat="tfrecord"), "dataset_info.json")
    assert "array_record" in refused(hostile)


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json", "metadata.json", "label.labels.txt", "shard"])
@pytest.mark.parametrize("kind", ["pipe", "endless", "gone"])
def test_what_is_no_regular_file_is_refused_and_never_waited_for(hostile, name, kind):
    path = next(hostile.glob("*train.array_record*")) if name == "shard" else hostile / name
    os.remove(path)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    refused(hostile)


def test_digits_are_opened_by_the_same_door(hostile, data_dir, tmp_path):
    catalog.open_dataset("digits", data_dir)
    digits = shutil.copytree(data_dir / "digits", tmp_path / "digits") / "1.0.0"
    change(digits, EDITS["the image's class"])
    with pytest.raises(DataError, match=r"features\.json names other features"):
        catalog.open_dataset("digits", tmp_path)


def test_a_run_on_a_strangers_data_imports_nothing(hostile, tiny_run, data_dir, tmp_path, stce_here):
    """Here by --data_dir; a stranger's workdir leads there by itself, by the same door."""
    digits = shutil.copytree(data_dir / "digits", tmp_path / "theirs" / "digits") / "1.0.0"
    change(digits, EDITS["the image's class"])
    done = stce_here("evaluate", f"--workdir={tiny_run[0]}", f"--data_dir={tmp_path}/theirs")
    assert done.returncode == 3 and "features.json names other features" in done.stderr, done.stderr


def test_files_whose_owner_has_no_name_are_written_and_read(tmp_path, monkeypatch):
    """As for a user of a container who has a number alone."""
    monkeypatch.setattr(pwd, "getpwuid", dict().__getitem__)
    monkeypatch.setattr(grp, "getgrgid", dict().__getitem__)
    assert len(catalog.open_dataset("digits", tmp_path).train) == 1437
    with pytest.raises(KeyError):
        epath.Path(tmp_path).stat()  # left as it was
