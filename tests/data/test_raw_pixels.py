"""Raw pixels in place of files: the same views to the bit, never taken for one another, verified like the rest."""

import io
import json
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import wait_for
from hypothesis import given
from hypothesis import strategies as st
from image_sources import WANTED, WNIDS, left_in, start_slowly, tree, write
from PIL import Image

from stce_jax import cli
from stce_jax.data import catalog, places
from stce_jax.data.crops import center_crop, random_resized_crop, raw_file
from stce_jax.data.decode import decode_image
from stce_jax.data.views import Views
from stce_jax.errors import ConfigError, DataError
from stce_jax.training import assemble as runs
from stce_jax.verbs import evaluate
from stce_jax.verbs.prepare import prepare
from stce_jax.workdir import config as configuration

INCEPTION = {"area": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}
SIDE = 32  # pixels of the raw images' short side; those of image_sources are 48 x 40
SHAPES = [(375, 500), (500, 333), (256, 347), (256, 256), (257, 300), (200, 300), (100, 40), (600, 299), (300, 3000)]


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def resized(image, short_side):
    """The image as Pillow makes it so small that its short side has so many pixels; as it is if it has no more."""
    height, width, _ = image.shape
    short = min(height, width)
    if short <= short_side:
        return image
    size = (int(short_side * width / short), int(short_side * height / short))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


# --- the file


@pytest.mark.parametrize("shape", SHAPES)
def test_a_raw_file_is_the_small_image_that_any_reader_knows(shape):
    image = noise(*shape)
    encoded = raw_file(image, 256)
    with Image.open(io.BytesIO(encoded)) as opened:
        assert opened.format == "PPM" and opened.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(opened), resized(image, 256))
    np.testing.assert_array_equal(decode_image(encoded, "x"), resized(image, 256))


def test_raw_pixels_are_neither_decoded_nor_copied(monkeypatch):
    encoded = raw_file(noise(9, 7), 256)
    monkeypatch.setattr(Image, "open", pytest.fail)
    decoded = decode_image(encoded, "x")
    assert np.shares_memory(decoded, np.frombuffer(encoded, np.uint8)), "the pixels were copied"


def test_black_pixels_at_the_end_are_kept():
    """Bytes of 0, which NumPy drops from the end of its own strings."""
    image = np.zeros((4, 5, 3), np.uint8)
    assert decode_image(raw_file(image, 256), "x").shape == image.shape


@pytest.mark.parametrize(
    "header", ["P6 7 9 255 ", "P6\n# made by hand\n7 9\n255\n", "P6\n7\n9\n255\n", "P6\n7 9\n127\n"]
)
def test_other_headers_are_left_to_pillow(header):
    pixels = noise(9, 7) // 3
    encoded = header.encode() + pixels.tobytes()
    with Image.open(io.BytesIO(encoded)) as opened:
        np.testing.assert_array_equal(decode_image(encoded, "x"), np.asarray(opened))


@pytest.mark.parametrize(
    "encoded",
    [b"P6\n7 9\n255\n", b"P6\n7 9\n255", b"P6\n0 9\n255\n", b"P6\n7 9\n255\n" + bytes(188), b"P6\n7 -9\n255\n", b"P6"],
    ids=["no pixels", "no end of the header", "no width", "a pixel cut off", "a height below 0", "the kind alone"],
)
def test_odd_raw_files_are_refused_by_name(encoded):
    with pytest.raises(DataError, match=r"^cannot decode some/cat.ppm: .*; repair or remove it$") as caught:
        decode_image(encoded, "some/cat.ppm")
    assert "\n" not in str(caught.value)


def test_raw_files_that_claim_too_much_are_refused():
    with pytest.raises(DataError, match="9460 x 9460 pixels"):
        decode_image(b"P6\n9460 9460\n255\n" + bytes(300), "x")


# --- the views


@pytest.mark.parametrize("shape", SHAPES)
def test_the_evaluations_view_is_the_same_to_the_bit(shape):
    """At a short side of 256, which is where the view of size 224 and fraction 0.875 begins."""
    image = noise(*shape)
    np.testing.assert_array_equal(
        center_crop(decode_image(raw_file(image, 256), "x"), 224, 0.875), center_crop(image, 224, 0.875)
    )


@given(height=st.integers(1, 90), width=st.integers(1, 90), side=st.integers(1, 60), seed=st.integers(0, 99))
def test_a_random_crop_is_one_of_the_small_image(height, width, side, seed):
    image = noise(height, width)
    if not 1 / 16 <= height / width <= 16:
        return
    draws = [np.random.default_rng(seed) for _ in range(2)]
    found = random_resized_crop(draws[0], decode_image(raw_file(image, side), "x"), 24, **INCEPTION)
    np.testing.assert_array_equal(found, random_resized_crop(draws[1], resized(image, side), 24, **INCEPTION))


# --- preparing


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(report of the files, report of the pixels, data directory that holds both, the list of classes)."""
    root = tmp_path_factory.mktemp("raw")
    (root / "four.txt").write_text("\n".join(WNIDS))
    tree(root / "in", WANTED)
    options = {"classes": str(root / "four.txt"), "data_dir": str(root / "out")}
    files = prepare("imagenet100", str(root / "in"), **options)
    return (
        files,
        prepare("imagenet100", str(root / "in"), **options, raw_short_side=SIDE),
        root / "out",
        root / "four.txt",
    )


def opened(both, raw_short_side):
    return catalog.open_dataset("imagenet100", str(both[2]), str(both[3]), raw_short_side=raw_short_side)


def test_both_kinds_lie_side_by_side_with_the_same_images(both):
    files, pixels, data_dir, _ = both
    assert Path(pixels.directory).parent.name == Path(files.directory).parent.name + f"-raw{SIDE}"
    assert pixels.counts == files.counts and pixels.class_ids == files.class_ids
    assert pixels.fingerprint != files.fingerprint, "a run could go on with the other kind"
    for split in catalog.SPLITS:
        encoded, raw = getattr(opened(both, 0), split), getattr(opened(both, SIDE), split)
        assert len(encoded) == len(raw) > 0
        for index in range(len(raw)):
            one, other = encoded[index], raw[index]
            assert one["image"][:3] == b"\xff\xd8\xff" and one["label"] == other["label"], split
            assert one["name"].partition(",")[0] == other["name"].partition(",")[0], split
            expected = resized(decode_image(one["image"], "x"), SIDE)
            assert min(expected.shape[:2]) == SIDE
            np.testing.assert_array_equal(decode_image(other["image"], "x"), expected)
    assert left_in(data_dir) == []


def test_views_of_raw_pixels_are_those_of_the_small_images(both):
    views = Views(opened(both, SIDE).train, size=24, crop="random_resized", fraction=0.875, **INCEPTION)
    files = opened(both, 0).train
    for index in range(len(views)):
        image = resized(decode_image(files[index]["image"], "x"), SIDE)
        expected = random_resized_crop(np.random.default_rng(index), image, 24, **INCEPTION)
        np.testing.assert_array_equal(views.view(index, np.random.default_rng(index))[0], expected)
    evaluated = [
        Views(opened(both, raw).val, size=28, crop="center", fraction=0.875) for raw in (0, SIDE)
    ]  # 28 / 0.875 = 32
    for index in range(len(evaluated[0])):
        np.testing.assert_array_equal(evaluated[0].view(index)[0], evaluated[1].view(index)[0])


def test_records_of_raw_pixels_are_not_compressed(both):
    """Decompressing would take longer than all the rest."""
    source = opened(both, SIDE).train
    shard = b"".join(path.read_bytes() for path in Path(both[1].directory).glob("*train.array_record*"))
    for index in range(len(source)):
        assert source[index]["image"] in shard, f"record {index} is not stored as it is"


def test_black_images_keep_all_their_bytes(tmp_path):
    black = io.BytesIO()
    Image.new("RGB", (50, 40)).save(black, format="PNG")
    for split in catalog.SPLITS:
        write(tmp_path / "in" / split / "a" / "black.png", black.getvalue())
    prepare("folder", str(tmp_path / "in"), data_dir=str(tmp_path), raw_short_side=SIDE)
    record = catalog.open_dataset("folder", str(tmp_path), raw_short_side=SIDE).train[0]
    np.testing.assert_array_equal(decode_image(record["image"], "x"), np.zeros((32, 40, 3), np.uint8))


def test_the_command_says_how_much_it_takes_and_is_not_done_twice(tmp_path, stce):
    tree(tmp_path / "in", WANTED)
    words = ("prepare", "folder", f"--source={tmp_path}/in", f"--data_dir={tmp_path}/out", f"--raw_short_side={SIDE}")
    done = stce(*words)
    assert done.returncode == 0, done.stderr
    assert f"raw pixels take up to {20 * SIDE**2 * 4 / 1e6:.1f} MB if the images are 4:3; " in done.stdout
    (directory,) = places.prepared(tmp_path / "out", "folder")
    size = sum(path.stat().st_size for path in directory.iterdir())
    assert f"\n{size / 1e6:.1f} MB on disk\n" in done.stdout
    assert "already prepared" in stce(*words).stdout


@pytest.mark.slow
def test_a_killed_run_is_started_again(tmp_path, both):
    source, out = tree(tmp_path / "in", WANTED), tmp_path / "out"
    words = ("prepare", "imagenet100", f"--source={source}", f"--classes={both[3]}", f"--data_dir={out}")
    process = start_slowly(*words, f"--raw_short_side={SIDE}", "--workers=1")
    wait_for(lambda: list(out.rglob("*array_record*")), "shard", process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not places.prepared(out, "imagenet100"), "half a data set under the final name"
    assert list(out.rglob("incomplete*")), "the test came too late"
    report = prepare("imagenet100", str(source), classes=str(both[3]), data_dir=str(out), raw_short_side=SIDE)
    assert report.fingerprint == both[1].fingerprint and left_in(out) == []


@pytest.mark.parametrize("value", ["-1", "1", "31", "many", "25.6"])
def test_wrong_short_sides_are_mistakes_in_the_command(tmp_path, value, capsys):
    tree(tmp_path / "in", WANTED)
    words = ["prepare", "folder", f"--source={tmp_path}/in", f"--data_dir={tmp_path}/out", f"--raw_short_side={value}"]
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(cli.main(words))
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "raw_short_side" in error and "Traceback" not in error, error
    assert not (tmp_path / "out").exists()


# --- one kind is never given for the other


def test_what_is_not_there_says_what_is_and_how_to_make_it(tmp_path, both):
    data_dir, listed = tmp_path / "data", str(both[3])
    place = Path(both[1].directory).parent
    shutil.copytree(place, data_dir / "imagenet100" / place.name)
    with pytest.raises(DataError) as caught:
        catalog.open_dataset("imagenet100", str(data_dir), listed)
    assert f"use what is there by --config.raw_short_side={SIDE}, or run stce prepare" in str(caught.value)
    with pytest.raises(
        DataError, match=r"only as raw pixels; run stce prepare"
    ):  # `stce evaluate` takes no --config.KEY
        catalog.open_dataset("imagenet100", str(data_dir), listed, of_run=True)
    for other in (SIDE + 1, 256):
        with pytest.raises(DataError) as caught:
            catalog.open_dataset("imagenet100", str(data_dir), listed, raw_short_side=other)
        command = f"run stce prepare imagenet100 --source=PATH --classes={listed} --raw_short_side={other} --data_dir="
        assert command in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["raw as files", "files as raw", "another short side"])
def test_a_renamed_data_set_is_refused(tmp_path, both, name):
    files, pixels = (Path(report.directory) for report in both[:2])
    source, ending, asked = {
        "raw as files": (pixels, "", 0),
        "files as raw": (files, f"-raw{SIDE}", SIDE),
        "another short side": (pixels, "-raw64", 64),
    }[name]
    shutil.copytree(source, tmp_path / "imagenet100" / f"{files.parent.name}{ending}" / places.VERSION)
    with pytest.raises(DataError, match="other labels or pixels than its name says"):
        catalog.open_dataset("imagenet100", str(tmp_path), str(both[3]), raw_short_side=asked)


def test_class_folders_have_both_kinds_too(tmp_path):
    source = tree(tmp_path / "pets", WANTED)
    with pytest.raises(DataError, match=f"run stce prepare folder --source=PATH --raw_short_side={SIDE}"):
        catalog.open_dataset("folder", str(source), raw_short_side=SIDE)
    prepare("folder", str(source), data_dir=str(source), raw_short_side=SIDE)
    assert catalog.open_dataset("folder", str(source)).train[0]["image"][:2] != b"P6", "raw pixels for plain folders"
    shutil.rmtree(source / "train")
    with pytest.raises(DataError, match=f"use what is there by --config.raw_short_side={SIDE}"):
        catalog.open_dataset("folder", str(source))
    with pytest.raises(DataError, match=r"short side 64; run stce prepare"):
        catalog.open_dataset("folder", str(source), raw_short_side=64, of_run=True)
    name = places.prepared(source, "folder")[0].parent.name
    for classes in ("", "pets", name):
        assert catalog.open_dataset("folder", str(source), classes, raw_short_side=SIDE).train[0]["image"][:2] == b"P6"


def test_a_trained_run_is_advised_by_what_evaluate_takes(tmp_path, both):
    data_dir, listed = tmp_path / "data", str(both[3])
    place = Path(both[0].directory).parent
    shutil.copytree(place, data_dir / "imagenet100" / place.name)
    with pytest.raises(DataError, match=r"use what is there by --dataset=imagenet100, or run stce prepare"):
        catalog.open_dataset("imagenet100", str(data_dir), listed, raw_short_side=SIDE, of_run=True)
    for name in ("one", "two"):
        shutil.copytree(place, data_dir / "folder" / f"{name}-4-0123456789")
    found = [path / places.VERSION for path in (data_dir / "folder").iterdir()]
    for of_run, option in ((True, "--classes"), (False, "--config.classes")):
        with pytest.raises(ConfigError, match=f"name one of them with {option}$"):
            catalog._choose_folder(data_dir, found, "", of_run)


def test_a_list_that_is_gone_is_found_by_its_name_among_its_own_kind(both):
    for raw, report in ((0, both[0]), (SIDE, both[1])):
        dataset = catalog.open_dataset("imagenet100", str(both[2]), "four", raw_short_side=raw)
        assert dataset.fingerprint == report.fingerprint


def test_the_digits_are_never_raw(tmp_path):
    with pytest.raises(ConfigError, match="raw_short_side=32"):
        catalog.open_dataset("digits", str(tmp_path), raw_short_side=32)


def test_a_config_chooses_and_evaluation_follows_it(both):
    words = [f"--config.classes={both[3]}", f"--config.data_dir={both[2]}", "--config.dataset=imagenet100"]
    config = configuration.load_config("small_folder", [*words, f"--config.raw_short_side={SIDE}"])
    assert runs.open_dataset(config).fingerprint == both[1].fingerprint
    assert runs.open_dataset(configuration.load_config("small_folder", words)).fingerprint == both[0].fingerprint
    own = evaluate._open_dataset(config, "", "", "", "val")
    assert own.fingerprint == both[1].fingerprint
    named = evaluate._open_dataset(config, "imagenet100", "", "", "val")
    assert named.fingerprint == both[0].fingerprint, "a dataset that is named means its images as they were"
    with pytest.raises(ConfigError, match=r"config\.raw_short_side is -1"):
        runs.load_config("small_folder", ["--config.raw_short_side=-1"])
    assert configuration.differences(config, configuration.load_config("small_folder", words)), "it changes the images"


# --- damage


def test_a_byte_that_changed_on_disk_is_noticed(tmp_path, both):
    """ArrayRecord keeps a hash of every chunk, of uncompressed ones, too."""
    place = Path(both[1].directory)
    copy = tmp_path / "imagenet100" / place.parent.name / place.name
    shutil.copytree(place, copy)
    image = opened(both, SIDE).train[1]["image"]
    (shard,) = copy.glob("*train.array_record*")
    content = bytearray(shard.read_bytes())
    content[content.index(image) + len(image) // 2] ^= 255
    shard.write_bytes(content)
    source = catalog.open_dataset("imagenet100", str(tmp_path), str(both[3]), raw_short_side=SIDE).train
    assert source[0]["image"] == opened(both, SIDE).train[0]["image"]
    with pytest.raises(DataError, match=re.escape(str(copy))) as caught:
        source[1]
    assert "delete it, and prepare it again" in str(caught.value) and "\n" not in str(caught.value)


def test_data_sets_prepared_before_there_were_raw_ones_still_open(both):
    """Their metadata know nothing of it."""
    assert "raw_short_side" not in json.loads((Path(both[0].directory) / "metadata.json").read_text())
    assert json.loads((Path(both[1].directory) / "metadata.json").read_text())["raw_short_side"] == SIDE


@pytest.mark.slow
def test_worker_processes_read_them(both):
    """Sources are sent to them, pickled."""
    code = (
        "import pickle, sys; source = pickle.load(sys.stdin.buffer); print(len(source[0]['image']), source[0]['label'])"
    )
    source = opened(both, SIDE).train
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(source), capture_output=True)
    assert done.stdout.split() == [str(len(source[0]["image"])).encode(), b"0"], done.stderr.decode()
