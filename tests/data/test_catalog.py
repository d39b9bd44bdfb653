"""Datasets: the digits against scikit-learn's own, prepared once whoever asks; class folders and their mistakes."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from image_sources import make_unreadable
from PIL import Image
from sklearn.datasets import load_digits

from stce_jax.data import catalog
from stce_jax.data import digits as digits_module
from stce_jax.data import records as records_module
from stce_jax.errors import ConfigError, DataError
from stce_jax.verbs.prepare import prepare

# Opens the digits as a user would and says what it saw, and whether anything tried to import TensorFlow.
OPENER = """
import json, sys
tried = []  # to import TensorFlow, there or not
sys.addaudithook(lambda event, args: tried.append(args[0]) if event == "import" and
                 args[0].partition(".")[0] == "tensorflow" else None)
from stce_jax.data.catalog import open_dataset
digits = open_dataset("digits", sys.argv[1])
records = [digits.train[0], digits.val[len(digits.val) - 1]]
print(json.dumps({
    "train": len(digits.train), "val": len(digits.val), "labels": [record["label"] for record in records],
    "tried": tried, "tensorflow": "tensorflow" in sys.modules, "jax": "jax" in sys.modules,
}))
"""


@pytest.fixture(scope="module")
def preparation(tmp_path_factory):
    """(data directory, what each of three processes printed that opened the digits there at the same time)."""
    directory = tmp_path_factory.mktemp("prepared")
    leftover = directory / "digits" / "incomplete.ABC123_1.0.0"
    leftover.mkdir(parents=True)
    (leftover / "digits-train.array_record-00000-of-00001").write_bytes(b"half a file")
    command = [sys.executable, "-c", OPENER, str(directory)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]
    results = [(process, *process.communicate(timeout=120)) for process in processes]
    for process, _, errors in results:
        assert process.returncode == 0, f"a process that opened the digits at the same time failed:\n{errors}"
    return directory, [json.loads(output) for _, output, _ in results]


@pytest.fixture(scope="module")
def digits_dir(tmp_path_factory):
    """A data directory with the digits, prepared where a killed process left something."""
    directory = tmp_path_factory.mktemp("digits")
    (directory / "digits" / "incomplete.ABC123_1.0.0").mkdir(parents=True)
    catalog.open_dataset("digits", directory)
    return directory


@pytest.fixture(scope="module")
def digits(digits_dir):
    return catalog.open_dataset("digits", digits_dir)


def everything(source):
    return [source[index] for index in range(len(source))]


def pixels(record):
    with Image.open(io.BytesIO(record["image"])) as image:
        return np.asarray(image)


def write_images(root, *names):
    """Tiny images, each of a colour of its own, at the given paths below root."""
    for index, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), (index, 0, 0)).save(path, format="PNG")
    return root


def refusal(call, *args, kind=DataError):
    """The message of the error that the call ends with: of the right kind, one line, no stack of wrapped texts."""
    with pytest.raises(kind) as caught:
        call(*args)
    message = str(caught.value)
    assert message and "\n" not in message, f"not one line: {message!r}"
    return message


# --- digits


@pytest.mark.slow
def test_processes_that_come_at_the_same_time_make_one_dataset(preparation):
    directory, outputs = preparation
    for output in outputs:
        assert (output["train"], output["val"]) == (1437, 360)
        assert output["labels"] == outputs[0]["labels"], "the processes saw different datasets"
    versions = sorted(path.name for path in (directory / "digits").iterdir())
    assert versions == ["1.0.0"], f"beside the prepared version something is left: {versions}"


@pytest.mark.slow
def test_neither_tensorflow_nor_jax_is_imported(preparation):
    for output in preparation[1]:
        assert not output["tensorflow"] and not output["tried"], "opening the digits imports TensorFlow"
        assert not output["jax"], "opening the digits starts JAX; stce_jax.data.catalog should not"


def test_files_are_array_records(digits_dir):
    names = sorted(path.name for path in (digits_dir / "digits" / "1.0.0").glob("*record*"))
    assert names == [f"digits-{split}.array_record-00000-of-00001" for split in ("train", "val")]


def test_prepared_digits_are_not_prepared_again(digits_dir, monkeypatch):
    def prepare(data_dir):
        raise AssertionError(f"{data_dir} is prepared a second time")

    monkeypatch.setattr(digits_module, "_write_digits", prepare)
    assert len(catalog.open_dataset("digits", str(digits_dir)).train) == 1437


def test_digits_are_scikit_learns_each_exactly_once(digits):
    """Train and val together hold every scan once, with its label and its 17 grey levels spread over 0..255."""
    reference = load_digits()
    levels = (reference.images.astype(int) * 255 + 8) // 16  # 255/16 a level, halves up
    expected = Counter(
        (np.repeat(image[:, :, None], 3, axis=2).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(levels, reference.target, strict=True)
    )
    found = Counter()
    for record in everything(digits.train) + everything(digits.val):
        image = pixels(record)
        assert image.shape == (8, 8, 3) and image.dtype == np.uint8
        found[image.tobytes(), record["label"]] += 1
    assert found == expected, f"{(expected - found).total()} scans missing, {(found - expected).total()} not theirs"


def test_digits_are_split_class_by_class(digits):
    assert (len(digits.train), len(digits.val)) == (1437, 360)
    assert digits.class_names == tuple("0123456789")
    train, val = (Counter(record["label"] for record in everything(split)) for split in (digits.train, digits.val))
    for label in range(10):
        share = (train[label] + val[label]) * 360 / 1797
        assert abs(val[label] - share) < 1, f"digit {label}: {val[label]} in val, a fair share is {share:.1f}"


def test_digits_mean_and_deviation_are_those_of_the_training_images(digits):
    images = np.stack([pixels(record) for record in everything(digits.train)]) / 255
    np.testing.assert_allclose(images.mean(axis=(0, 1, 2)), digits.mean, atol=1e-3)
    np.testing.assert_allclose(images.std(axis=(0, 1, 2)), digits.std, atol=1e-3)


def test_records_are_plain_and_named(digits):
    record = digits.val[7]
    assert set(record) == {"image", "label", "name"}
    assert type(record["image"]) is bytes and type(record["label"]) is int
    assert "7" in record["name"] and "digits" in record["name"] and "val" in record["name"]


@pytest.mark.parametrize("damage", ["records cut off", "records emptied", "description gone"])
def test_damaged_digits_are_named_with_the_way_out(digits_dir, tmp_path, damage):
    copy = tmp_path / "digits" / "1.0.0"
    shutil.copytree(digits_dir / "digits" / "1.0.0", copy)
    [records] = copy.glob("digits-train.array_record*")
    if damage == "description gone":
        (copy / "dataset_info.json").unlink()
    else:
        records.write_bytes(records.read_bytes()[: 200_000 if damage == "records cut off" else 0])

    def open_and_read():
        everything(catalog.open_dataset("digits", tmp_path).train)

    message = refusal(open_and_read)
    assert str(copy) in message and "delete" in message, message


def test_a_data_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("no directory")
    message = refusal(catalog.open_dataset, "digits", tmp_path / "file")
    assert str(tmp_path / "file") in message and "--data_dir" in message


def test_default_data_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert catalog.default_data_dir() == tmp_path / "stce_jax"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert catalog.default_data_dir() == tmp_path / ".local" / "share" / "stce_jax"


def test_the_digits_fingerprint_is_of_their_records(digits, digits_dir):
    again = catalog.open_dataset("digits", digits_dir)
    assert again.fingerprint == digits.fingerprint and re.fullmatch("[0-9a-f]{64}", digits.fingerprint)
    assert digits.class_ids == digits.class_names


# --- prepared data sets

TWO = ("n01440764", "n02012849")  # tench, crane


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(data directory, path of a list of two classes) of a prepared data set; its images are a pixel each."""
    root = tmp_path_factory.mktemp("prepared_images")
    (root / "two.txt").write_text("\n".join(TWO))
    source = write_images(
        root / "in", *(f"{split}/{c}/{k}.png" for split in ("train", "val") for c in TWO for k in "01")
    )
    prepare("imagenet100", str(source), classes=str(root / "two.txt"), data_dir=str(root / "data"))
    return root / "data", str(root / "two.txt")


@pytest.fixture
def copy(prepared, tmp_path):
    """A copy of the prepared data set to be tampered with, and its list."""
    shutil.copytree(prepared[0], tmp_path / "data")
    return tmp_path / "data", prepared[1]


def test_a_prepared_data_set_is_opened(prepared):
    dataset = catalog.open_dataset("imagenet100", str(prepared[0]), classes=prepared[1])
    assert dataset.class_ids == TWO and dataset.class_names == ("tench, Tinca tinca", "crane")
    assert len(dataset.train) == len(dataset.val) == 4 and re.fullmatch("[0-9a-f]{64}", dataset.fingerprint)
    assert dataset.mean == (0.485, 0.456, 0.406) and dataset.std == (0.229, 0.224, 0.225)
    record = dataset.train[0]
    assert type(record["image"]) is bytes and type(record["label"]) is int and pixels(record).shape == (2, 3, 3)


def test_it_is_found_by_its_classes_whatever_the_list_is_called(prepared, tmp_path):
    (tmp_path / "other.txt").write_text("\n".join(TWO[::-1]))
    dataset = catalog.open_dataset("imagenet100", str(prepared[0]), classes=str(tmp_path / "other.txt"))
    assert dataset.class_ids == TWO


@pytest.mark.parametrize(
    "name, classes, command",
    [
        ("imagenet100", "", "stce prepare imagenet100 --source=PATH --classes=kaggle --data_dir="),
        ("imagenet100", "cmc", "stce prepare imagenet100 --source=PATH --classes=cmc --data_dir="),
        ("imagenet2012", "", "stce prepare imagenet2012 --source=PATH --data_dir="),
    ],
)
def test_what_is_not_prepared_says_how_to(prepared, name, classes, command):
    """Another list is there, and must not be taken for it."""
    message = refusal(catalog.open_dataset, name, str(prepared[0]), classes)
    assert f"{command}{prepared[0]}" in message and "not prepared" in message


def test_data_are_never_served_under_other_labels(copy):
    """Neither if a directory is renamed, nor if the labels in it are exchanged."""
    data, listed = copy
    [directory] = (data / "imagenet100").glob("two-*/1.0.0")
    labels = directory / "label.labels.txt"
    labels.write_text("\n".join(TWO[::-1]) + "\n")
    assert "other labels" in refusal(catalog.open_dataset, "imagenet100", str(data), listed)
    labels.write_text("n01440764\nn02014999\n")
    assert "other labels" in refusal(catalog.open_dataset, "imagenet100", str(data), listed)
    labels.write_text("\n".join(TWO) + "\n")
    catalog.open_dataset("imagenet100", str(data), listed)
    directory.parent.rename(data / "imagenet100" / "kaggle-82b5291a")
    assert "other labels" in refusal(catalog.open_dataset, "imagenet100", str(data), "kaggle")


@pytest.mark.parametrize("damage", ["metadata.json", "dataset_info.json", "*train.array_record*"])
def test_damaged_prepared_data_are_named_with_the_way_out(copy, damage):
    data, listed = copy
    [path] = (data / "imagenet100").glob(f"two-*/1.0.0/{damage}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = refusal(lambda: everything(catalog.open_dataset("imagenet100", str(data), listed).train))
    assert str(path.parent) in message and "delete" in message


def test_a_half_made_data_set_is_not_seen(copy):
    data, listed = copy
    [directory] = (data / "imagenet100").glob("two-????????")
    directory.rename(data / "imagenet100" / f"incomplete.{directory.name}")
    assert "not prepared" in refusal(catalog.open_dataset, "imagenet100", str(data), listed)


def test_class_folders_are_prepared_or_not(tmp_path):
    names = [f"{split}/{c}/{k}.png" for split in ("train", "val") for c in ("cat", "dog") for k in "012"]
    raw = catalog.open_dataset("folder", str(write_images(tmp_path / "pets", *names)))
    prepare("folder", str(tmp_path / "pets"), data_dir=str(tmp_path / "data"))
    for classes in ("", "pets"):
        dataset = catalog.open_dataset("folder", str(tmp_path / "data"), classes)
        assert dataset.class_ids == raw.class_ids == ("cat", "dog")
        assert {record["image"] for record in everything(dataset.train)} == {r["image"] for r in everything(raw.train)}


# --- names


def test_unknown_datasets_and_a_missing_data_dir_are_mistakes_in_the_config():
    message = refusal(catalog.open_dataset, "imagenet", kind=ConfigError)
    assert "'imagenet'" in message and "digits" in message and "folder" in message
    message = refusal(catalog.open_dataset, "folder", "", kind=ConfigError)
    assert "--data_dir" in message


@pytest.mark.parametrize("name", ["digits", "imagenet2012"])
def test_only_some_datasets_have_a_choice_of_classes(name, tmp_path):
    assert "'cmc'" in refusal(catalog.open_dataset, name, str(tmp_path), "cmc", kind=ConfigError)


def test_classes_are_compared_by_their_ids(tmp_path):
    """Not by their names, of which two may be equal."""
    cranes = ("n02012849", "n03126707")
    dataset = catalog.open_folder(write_images(tmp_path, *(f"{s}/{c}/0.png" for s in ("train", "val") for c in cranes)))
    assert dataset.class_names == ("crane", "crane") and dataset.class_ids == cranes
    catalog.check_class_names(dataset, list(cranes))
    assert "n02012849" in refusal(catalog.check_class_names, dataset, ["n02012850", "n03126707"])


def test_a_dataset_of_other_classes_is_refused(tmp_path):
    dataset = catalog.open_folder(write_images(tmp_path, *(f"{s}/{c}/0.png" for s in ("train", "val") for c in "ab")))
    catalog.check_class_names(dataset, ["a", "b"])
    message = refusal(catalog.check_class_names, dataset, ["a", "c"])
    assert "'b'" in message and "--data_dir" in message
    assert "order" in refusal(catalog.check_class_names, dataset, ["b", "a"])


# --- class folders


def test_labels_are_the_sorted_names_and_files_are_found_at_any_depth(tmp_path):
    classes = ["zebra", "10", "9", "Bear", "cat", "été"]
    files = {"zebra": ["b.png", "a.png"], "10": ["deep/er/x.PNG"], "9": ["y.JpEg"], "Bear": ["1.jpg", "2.GIF"]}
    names = [f"{split}/{c}/{file}" for split in ("train", "val") for c in classes for file in files.get(c, ["1.webp"])]
    write_images(tmp_path, *names)
    for other in ("train/readme.txt", "train/cat/notes.txt", "train/cat/labels.csv", "val/Thumbs.db"):
        (tmp_path / other).write_text("no image")
    dataset = catalog.open_dataset("folder", str(tmp_path))
    assert dataset.class_names == ("10", "9", "Bear", "cat", "zebra", "été"), "labels must be sorted as Python sorts"
    for split, source in (("train", dataset.train), ("val", dataset.val)):
        records = everything(source)
        found = sorted(str(Path(record["name"]).relative_to(tmp_path)) for record in records)
        assert found == sorted(name for name in names if name.startswith(split)), "not exactly the split's images"
        for record in records:
            assert Path(record["name"]).relative_to(tmp_path).parts[1] == dataset.class_names[record["label"]]
            assert record["image"] == Path(record["name"]).read_bytes()
        labels = [record["label"] for record in records]
        assert labels == sorted(labels), "classes must come in the order of their labels"


def test_order_of_files_does_not_depend_on_the_order_of_their_making(tmp_path):
    names = [f"{split}/{c}/{i}.png" for split in ("train", "val") for c in "ab" for i in (3, 10, 1)]
    one = catalog.open_folder(write_images(tmp_path / "one", *names))
    two = catalog.open_folder(write_images(tmp_path / "two", *reversed(names)))
    for first, second in ((one.train, two.train), (one.val, two.val)):
        relative = [
            [str(Path(record["name"]).relative_to(tmp_path / root)) for record in everything(source)]
            for root, source in (("one", first), ("two", second))
        ]
        assert relative[0] == relative[1]


def test_a_folders_fingerprint_notices_files_that_change(tmp_path):
    names = [f"{split}/{c}/{k}.png" for split in ("train", "val") for c in "ab" for k in "01"]
    root = write_images(tmp_path / "one", *names)
    before = catalog.open_folder(root).fingerprint
    assert before == catalog.open_folder(write_images(tmp_path / "two", *names)).fingerprint, (
        "the place does not matter"
    )
    changes = {
        "another size": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        "another name": lambda path: path.rename(path.with_name("2.png")),
        "another class": lambda path: path.rename(path.parents[1] / "b" / "2.png"),
        "another split": lambda path: path.rename(path.parents[2] / "val" / "a" / "2.png"),
        "gone": lambda path: path.unlink(),
    }
    for name, change in changes.items():
        shutil.copytree(root, tmp_path / name)
        change(tmp_path / name / "train" / "a" / "1.png")
        assert catalog.open_folder(tmp_path / name).fingerprint != before, name


def test_a_file_of_a_class_folder_takes_few_bytes_of_memory(tmp_path, monkeypatch):
    """A million files are to be opened in each process that loads them."""

    def listed(folder, passed_over):
        return [f"{folder}/{folder.name}_{number}.JPEG" for number in range(5000)]

    monkeypatch.setattr(records_module, "find_images", listed)
    tracemalloc.start()
    source = records_module.FolderSource(tmp_path, ["n01440764", "n01443537"])
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) == 10_000 and held / len(source) < 64
    assert source.name(5001) == str(tmp_path / "n01443537" / "n01443537_1.JPEG")
    assert source.name(-1) == source.name(9999) and source.labels()[[0, -1]].tolist() == [0, 1]
    with pytest.raises(IndexError):
        source.name(10_000)


def test_names_that_are_no_text_are_read_by_their_bytes(tmp_path):
    folder = write_images(tmp_path, "train/a/0.png", "val/a/0.png")
    (folder / "train" / "a" / "0.png").rename(os.fsdecode(bytes(folder / "train" / "a") + b"/\xff.png"))
    dataset = catalog.open_folder(folder)
    assert dataset.train[0]["image"].startswith(b"\x89PNG") and len(dataset.fingerprint) == 64


def test_a_file_that_vanished_is_named_when_sizes_are_asked_for(tmp_path):
    dataset = catalog.open_folder(write_images(tmp_path, "train/a/0.png", "train/a/1.png", "val/a/0.png"))
    (tmp_path / "train" / "a" / "1.png").unlink()
    with pytest.raises(DataError, match=r"cannot read .*/train/a/1.png: No such file"):
        dataset.fingerprint  # noqa: B018


def test_folders_are_normalised_as_imagenet(tmp_path):
    dataset = catalog.open_folder(write_images(tmp_path, "train/a/0.png", "val/a/0.png"))
    assert dataset.mean == (0.485, 0.456, 0.406) and dataset.std == (0.229, 0.224, 0.225)
    assert dataset.class_names == ("a",) and len(dataset.train) == len(dataset.val) == 1


def test_linked_class_folders_and_linked_folders_within_are_followed(tmp_path):
    """A subset of a large dataset is commonly a folder of links."""
    write_images(tmp_path / "all", "cat/0.png", "dog/0.png", "more/1.png")
    (tmp_path / "all" / "dog" / "more").symlink_to(tmp_path / "all" / "more", target_is_directory=True)
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for name in ("cat", "dog"):
            (tmp_path / split / name).symlink_to(tmp_path / "all" / name, target_is_directory=True)
    records = everything(catalog.open_folder(tmp_path).train)
    names = [str(Path(record["name"]).relative_to(tmp_path / "train")) for record in records]
    assert names == ["cat/0.png", "dog/0.png", "dog/more/1.png"]


def test_hidden_files_and_folders_named_like_images_are_no_images(tmp_path):
    write_images(tmp_path, "train/a/0.png", "val/a/0.png", "train/.ipynb_checkpoints/0.png", "train/a/album.jpg/1.png")
    (tmp_path / "train" / "a" / "._0.png").write_bytes(b"what macOS leaves beside 0.png")
    dataset = catalog.open_folder(tmp_path)
    assert dataset.class_names == ("a",)
    assert [Path(record["name"]).name for record in everything(dataset.train)] == ["0.png", "1.png"]


def test_hidden_folders_within_a_class_and_links_upwards_are_passed_over(tmp_path):
    write_images(tmp_path, "train/a/0.png", "train/a/.thumbs/1.png", "train/b/0.png", "val/a/0.png", "val/b/0.png")
    (tmp_path / "train" / "a" / "up").symlink_to("..", target_is_directory=True)
    names = [
        record["name"].removeprefix(f"{tmp_path}/train/") for record in everything(catalog.open_folder(tmp_path).train)
    ]
    assert names == ["a/0.png", "b/0.png"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    write_images(tmp_path, "train/a/0.png", "train/a/more/1.png", "val/a/0.png")
    make_unreadable(monkeypatch, tmp_path / "train" / "a" / "more")
    assert str(tmp_path / "train" / "a" / "more") in refusal(catalog.open_folder, tmp_path)


def test_paths_are_absolute_whatever_they_begin_or_end_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "in").mkdir()
    assert catalog.absolute("in/..") == Path(os.path.realpath(tmp_path))
    assert catalog.absolute("~/x") == tmp_path / "home" / "x"
    assert catalog.absolute("~nosuchuser/x") == tmp_path / "~nosuchuser" / "x"


def test_a_missing_split_is_named(tmp_path):
    write_images(tmp_path, "train/a/0.png")
    message = refusal(catalog.open_folder, tmp_path)
    assert "'val'" in message and str(tmp_path) in message
    message = refusal(catalog.open_folder, tmp_path / "nowhere")
    assert "'train'" in message and "nowhere" in message


def test_images_without_class_folders_are_refused(tmp_path):
    write_images(tmp_path, "train/0.png", "val/0.png")
    message = refusal(catalog.open_folder, tmp_path)
    assert str(tmp_path / "train") in message and "class" in message


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_class_is_named(tmp_path, split):
    write_images(tmp_path, "train/a/0.png", "train/b/0.png", "val/a/0.png", "val/b/0.png")
    (tmp_path / split / "b" / "0.png").unlink()
    (tmp_path / split / "b" / "notes.txt").write_text("no image")
    assert str(tmp_path / split / "b") in refusal(catalog.open_folder, tmp_path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_of_one_split_alone_is_named(tmp_path, split):
    write_images(tmp_path, "train/a/0.png", "val/a/0.png", f"{split}/only/0.png")
    message = refusal(catalog.open_folder, tmp_path)
    assert "'only'" in message and f"only in {split}" in message


def test_an_image_that_vanishes_is_named(tmp_path):
    dataset = catalog.open_folder(write_images(tmp_path, "train/a/0.png", "val/a/0.png"))
    (tmp_path / "val" / "a" / "0.png").unlink()
    assert str(tmp_path / "val" / "a" / "0.png") in refusal(dataset.val.__getitem__, 0)


@pytest.mark.slow
def test_real_class_folders(test_data, tmp_path):
    """CIFAR-10 as JPEG files."""
    with zipfile.ZipFile(test_data / "data" / "small_real.zip") as archive:
        archive.extractall(tmp_path)
    dataset = catalog.open_dataset("folder", tmp_path)
    expected = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    assert dataset.class_names == expected
    for source, each in ((dataset.train, 1000), (dataset.val, 200)):
        assert len(source) == 10 * each
        for label in range(10):
            for index in (label * each, label * each + each - 1):
                record = source[index]
                assert record["label"] == label and f"/{expected[label]}/" in record["name"]
                assert pixels(record).shape == (32, 32, 3)


@pytest.mark.parametrize("name", ["x" * 300, "no UTF-8 \udcff"])
def test_a_data_dir_whose_name_cannot_be_used_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot use data_dir"):
        catalog.open_dataset("digits", tmp_path / name)
    assert not list(tmp_path.iterdir())
