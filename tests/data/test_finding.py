"""Which files are images, by suffix or content, in folders and archives alike; the others are counted and said."""

import io
import multiprocessing.context
import os
import pwd
import socket
import sys
import types
import zipfile

import numpy as np
import pytest
from helpers import run_cli
from image_sources import tar_of
from PIL import Image, ImageFile, features

from stce_jax import paths
from stce_jax.data import catalog, finding, formats, mirror, places
from stce_jax.data.decode import decode_image
from stce_jax.data.files import list_images, read_image
from stce_jax.data.finding import PassedOver, find_images
from stce_jax.errors import ConfigError, DataError
from stce_jax.prepare.sources.recognition import open_source
from stce_jax.prepare.sources.tars import TRAIN, VAL

ENCODED = {"JPEG": "JPEG", "PNG": "PNG", "GIF": "GIF", "WEBP": "WEBP", "BMP": "BMP", "TIFF": "TIFF", "PPM": "PPM"}
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
IMAGES = ("jpeg.jfif", "JPEG.JPG", "png", "png.part", "gif.txt", "webp.img", "bmp.dat", "tiff.image", "ppm.raster")
OTHERS = {
    "notes.txt": b"BM is how this text begins",
    "more": b"P5 is a name",
    "empty": b"",
    "phone.heic": HEIC,
    "camera.nef": b"II*\0" + bytes(60),
    ".hidden.png": b"",
    "film.mp4": b"\0\0\0\x18ftypmp42" + bytes(40),
}


def encoded(format, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format)
    return stream.getvalue()


def files(seed=0):
    """{name: content} of images under names that say nothing or something else, and of other files."""
    images = {name: encoded(name.partition(".")[0].upper(), seed + k) for k, name in enumerate(IMAGES)}
    return images | OTHERS


@pytest.fixture
def root(tmp_path):
    for split in ("train", "val"):
        for k, name in enumerate("ab"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for file, content in files(10 * k + 100 * (split == "val")).items():
                (folder / file).write_bytes(content)
    return tmp_path / "images"


def reasons(passed_over):
    return {os.path.basename(name): reason for name, reason in passed_over.files}


EXPECTED = {
    "notes.txt": "no image",
    "more": "no image",
    "empty": "no image",
    "film.mp4": "no image",
    "phone.heic": "HEIC, which the package pillow-heif reads",
    "camera.nef": "a camera's raw file",
    ".hidden.png": "hidden",
}


def test_folders_of_training_prediction_and_preparing_hold_the_same_images(root, monkeypatch):
    monkeypatch.setattr(formats, "pillow_formats", without_plugins)
    folder, lines = root / "train" / "a", []
    passed_over = PassedOver()
    found = find_images(folder, passed_over)
    assert {os.path.basename(path) for path in found} == set(IMAGES)
    assert reasons(passed_over) == EXPECTED
    assert list_images(folder, lines.append) == found
    assert len(lines) == 1 and lines[0].startswith("passed over 7 files: 4 no image ("), lines
    assert "1 HEIC, which the package pillow-heif reads" in lines[0], "what would read them is not said"
    dataset = catalog.open_dataset("folder", root)
    assert [dataset.train.name(index) for index in range(9)] == found and len(dataset.val) == 18
    assert dataset.passed_over.startswith("passed over 28 files: 16 no image")
    source = open_source(root)
    assert {ref.place for ref in source.references if (ref.split, ref.class_id) == ("train", "a")} == set(found)
    assert source.passed_over.reasons == {reason: 4 * count for reason, count in passed_over.reasons.items()}


def without_plugins(name):
    return () if name in ("HEIC", "JPEG XL") else formats.FORMATS


def test_archives_hold_the_same_images_as_folders(root, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "pillow_formats", without_plugins)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, path.relative_to(root))
    with_folders, zipped = open_source(root), open_source(tmp_path / "images.zip")
    assert sorted(map(str, zipped.references)) == sorted(map(str, with_folders.references))
    assert zipped.passed_over.reasons == with_folders.passed_over.reasons
    assert {zipped.read(each) for each in zipped.references} == {
        with_folders.read(each) for each in with_folders.references
    }
    zipped.close()


def test_tars_hold_the_same_images_and_count_links(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "pillow_formats", without_plugins)
    val = {f"ILSVRC2012_val_0000000{k}{end}": encoded("JPEG", k) for k, end in enumerate(("", ".jfif"), 1)}
    (tmp_path / TRAIN).write_bytes(tar_of({"n01440764.tar": tar_of(files())}))
    (tmp_path / VAL).write_bytes(tar_of({**val, "readme.txt": b"none", "phone.heic": HEIC}))
    (tmp_path / "LOC_val_solution.csv").write_text("".join(f"{name.partition('.')[0]},n01440764 1 2\n" for name in val))
    source = open_source(tmp_path)
    assert {ref.name for ref in source.references} == {*IMAGES, *val}
    assert all(source.read(ref) == {**files(), **val}[ref.name] for ref in source.references)
    assert reasons(source.passed_over).keys() == {
        *(f"{VAL}: {name}" for name in ("readme.txt", "phone.heic")),
        *(f"{TRAIN}: n01440764.tar: {name}" for name in OTHERS),
    }
    source.close()


def test_files_whose_suffix_says_that_they_are_images_are_not_opened(tmp_path, monkeypatch):
    for name in ("1.png", "2.JPEG", "3.jfif", "deep/4.tiff"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"damaged, and to be named when it is read")
    monkeypatch.setattr(finding, "open_regular", pytest.fail)
    assert len(find_images(tmp_path, PassedOver())) == 4


def test_what_is_no_regular_file_is_passed_over_or_refused_and_never_waited_for(tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "1.png").write_bytes(encoded("PNG"))
    os.mkfifo(folder / "2.png")
    os.mkfifo(folder / "pipe")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / "3.jpg"))
    os.symlink("/dev/zero", folder / "4.png")
    os.symlink(folder / "gone", folder / "5.png")  # to be named when it is read: the disk may be the cause
    passed_over = PassedOver()
    assert [os.path.basename(path) for path in find_images(folder, passed_over)] == ["1.png", "5.png"]
    assert passed_over.reasons == {"no regular file": 4}
    for name in ("2.png", "3.jpg", "4.png"):
        with pytest.raises(DataError, match=r"no regular file|No such device"):
            read_image(folder / name)
    listening.close()


def test_a_pipe_that_takes_the_place_of_an_image_is_refused_when_it_is_read(root):
    dataset = catalog.open_dataset("folder", root)
    path = dataset.train.name(0)
    os.remove(path)
    os.mkfifo(path)
    with pytest.raises(DataError, match="it is no regular file"):
        dataset.train[0]


def test_the_command_says_once_what_was_passed_over(root, tmp_path, capsys):
    words = ("show-data", "--config=small_folder", f"--data_dir={root}", f"--output={tmp_path}/x.png")
    code, _, error = run_cli(capsys, *words, "--config.batch_size=8", "--config.image_size=32")
    assert code == 0, error
    assert error.count("passed over 28 files") == 1 and error.count("\n") == 1, error


def test_a_class_of_which_nothing_is_left_says_what_was_there(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        (tmp_path / split / "a" / "1.heic").write_bytes(HEIC)
    with pytest.raises(DataError, match=r"holds no image \(passed over 1 files: 1 HEIC"):
        catalog.open_dataset("folder", tmp_path)


def test_names_cannot_reach_a_terminal_raw(tmp_path):
    (tmp_path / "a\x1b[31m\nb.txt").write_bytes(b"")
    passed_over = PassedOver()
    find_images(tmp_path, passed_over)
    assert passed_over.text().isprintable()


# --- formats


@pytest.mark.parametrize("format", ENCODED)
def test_formats_are_known_by_their_first_bytes(format):
    content = encoded(format)
    assert formats.format_of(content) == format and not formats.missing(format)
    assert formats.format_of(content[: formats.HEAD]) == format


@pytest.mark.parametrize("format", ["JPEG2000", "AVIF"])
def test_what_this_pillow_reads_besides_is_read(format):
    if not features.check({"JPEG2000": "jpg_2000", "AVIF": "avif"}[format]):
        pytest.skip(f"this Pillow cannot read {format}")
    content = encoded(format)
    assert decode_image(content, "x").shape == (12, 10, 3)
    assert formats.format_of(content) in ("JPEG 2000", "AVIF")


def test_what_nothing_here_reads_says_what_would(monkeypatch):
    monkeypatch.setattr(formats, "pillow_formats", without_plugins)
    for content, package in ((HEIC, "pillow-heif"), (b"\xff\x0a" + bytes(70), "pillow-jxl-plugin")):
        with pytest.raises(DataError, match=f"the package {package} reads; install that, or convert the image"):
            decode_image(content, "x")
    with pytest.raises(DataError, match="begins like no image that is read"):
        decode_image(b"text", "x")
    with pytest.raises(DataError, match="it is damaged"):
        decode_image(encoded("PNG")[:8] + bytes(80), "x")


def test_a_package_that_reads_heic_is_used_where_it_is_installed(monkeypatch):
    """A stand-in with the name and the function that pillow-heif has."""

    class Heif(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self):
            self._mode, self._size = "RGB", (3, 2)
            self.tile = [("raw", (0, 0, 3, 2), len(HEIC), ("RGB", 0, 1))]

    package = types.ModuleType("pillow_heif")
    package.register_heif_opener = lambda: Image.register_open("HEIF", Heif, lambda head: head[4:8] == b"ftyp")
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    formats.pillow_formats.cache_clear()
    try:
        assert decode_image(HEIC + bytes(range(18)), "x").tolist() == np.arange(18).reshape(2, 3, 3).tolist()
    finally:
        Image.OPEN.pop("HEIF", None)
        Image.ID.remove("HEIF")
        formats.pillow_formats.cache_clear()


# --- the door


def test_files_are_read_whole_within_a_bound(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert paths.read_regular(path, 5) == b"12345"
    assert paths.read_regular("/proc/self/status", 10**6).startswith(b"Name:"), "its size is said to be 0"
    for bad, limit, cause in (
        (path, 4, "more than 4 bytes"),
        ("/proc/self/status", 10, "more than 10 bytes"),
        ("/dev/zero", 10, "no regular file"),
        (tmp_path, 10, "directory"),
        (tmp_path / "none", 10, "No such file"),
    ):
        with pytest.raises(OSError, match=cause):
            paths.read_regular(bad, limit)


# --- machines that lack something


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch, tmp_path):
    """As in a container that runs under a number without an entry in the password file."""
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", dict().__getitem__)  # a KeyError, as there
    monkeypatch.chdir(tmp_path)
    for action, advice in (
        (places.default_data_dir, "set HOME or XDG_DATA_HOME, or give --data_dir"),
        (lambda: mirror.local_root("gs://bucket/x"), "set HOME or XDG_CACHE_HOME"),
        (lambda: paths.absolute("~/runs"), "set HOME, or give an absolute path"),
        (lambda: paths.absolute("~"), "set HOME, or give an absolute path"),
    ):
        with pytest.raises(ConfigError, match=advice):
            action()
    assert paths.absolute("~x/y") == tmp_path / "~x" / "y", "no user, but a name that a file may have"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert places.default_data_dir() == tmp_path / "stce_jax"


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(30, "Read-only file system"), ImportError()]
)
def test_loader_processes_where_nothing_can_be_shared_are_refused(imagenet, tmp_path, monkeypatch, capsys, error):
    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr(multiprocessing.context.BaseContext, "Semaphore", refuse)
    words = ("show-data", "--config=stce_vit_s", f"--data_dir={imagenet[0]}", f"--config.classes={imagenet[1]}")
    words += (f"--output={tmp_path}/x.png", "--config.loader_workers=1", "--config.batch_size=8")
    code, _, line = run_cli(capsys, *words, "--config.image_size=32")
    assert code == 2 and "/dev/shm" in line and "--config.loader_workers=0" in line and line.count("\n") == 1, line
