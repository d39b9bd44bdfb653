"""An image in every form that `run.preprocess` takes: all give the same pixels; what is none is refused in one line."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from stce_jax.data.crops import read_view
from stce_jax.data.decode import decode_image, pixels_of
from stce_jax.errors import DataError

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (9, 7, 4), dtype=np.uint8)
CHANNELS = {"L": COLOURS[:, :, 0], "LA": COLOURS[:, :, :2], "RGB": COLOURS[:, :, :3], "RGBA": COLOURS}


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", CHANNELS)
def test_every_form_gives_the_same_pixels(mode, tmp_path):
    array = CHANNELS[mode]
    picture = Image.fromarray(array, mode) if mode == "LA" else Image.fromarray(array)
    data = encoded(picture)
    path = tmp_path / "one.png"
    path.write_bytes(data)
    expected = array[:, :, :3] if mode.startswith("RGB") else np.stack([COLOURS[:, :, 0]] * 3, axis=2)
    forms = [path, str(path), data, bytearray(data), memoryview(data), picture, Image.open(path), array]
    forms += [jnp.asarray(array), np.asfortranarray(array), array[::-1][::-1], *([array[:, :, None]] * (mode == "L"))]
    for form in forms:
        pixels = pixels_of(form)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, expected, err_msg=type(form).__name__)
        assert read_view(form, size=4, fraction=1.0).shape == (4, 4, 3)


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "LAB", "I;16"])
def test_pillow_images_follow_the_rules_of_files(mode):
    grey = CHANNELS["L"]
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 256 + 7)
    else:
        picture = Image.fromarray(CHANNELS["RGB"]).convert(mode)
    data = encoded(picture, "TIFF")
    np.testing.assert_array_equal(pixels_of(picture), decode_image(data, "it"))
    if mode == "I;16":
        np.testing.assert_array_equal(pixels_of(picture)[:, :, 0], grey)


def test_a_palette_with_a_transparent_colour_stays_as_it_is():
    picture = Image.fromarray(CHANNELS["RGB"]).convert("P")
    picture.info["transparency"] = 3
    pixels = pixels_of(picture)
    assert picture.info["transparency"] == 3 and picture.mode == "P"
    np.testing.assert_array_equal(pixels, decode_image(encoded(picture, "PNG"), "it"))


def test_of_an_animation_the_present_frame_counts():
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (0, 255)]
    picture = Image.open(io.BytesIO(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    assert pixels_of(picture).max() == 0
    picture.seek(1)
    assert pixels_of(picture).min() == 255 and picture.tell() == 1


def closed():
    picture = Image.open(io.BytesIO(encoded(Image.fromarray(COLOURS))))
    picture.close()
    return picture


def cut_off():
    noise = RNG.integers(0, 256, (99, 99, 3), dtype=np.uint8)
    return Image.open(io.BytesIO(encoded(Image.fromarray(noise))[:2000]))


class Failing:
    def __array__(self):
        raise RuntimeError("it lies on another device\nand more")


WRONG = {
    "floats": (lambda: np.zeros((4, 4, 3), np.float32), r"pixels are float32; give uint8; of numbers from 0 to 1 make"),
    "whole numbers": (lambda: np.zeros((4, 4, 3), np.int64), r"pixels are int64; give uint8$"),
    "sixteen bits": (lambda: np.zeros((4, 4), np.uint16), r"pixels are uint16; give uint8$"),
    "truth": (lambda: np.zeros((4, 4), bool), r"pixels are bool; give uint8$"),
    "objects": (lambda: np.array([[None]]), r"pixels are object; give uint8$"),
    "a batch": (lambda: np.zeros((2, 4, 4, 3), np.uint8), r"shape \(2, 4, 4, 3\) holds several images; give one"),
    "channels first": (lambda: np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\) is no image; .*, channels last$"),
    "five channels": (lambda: np.zeros((8, 8, 5), np.uint8), r"shape \(8, 8, 5\) is no image; give \[H, W\]"),
    "a number": (lambda: np.uint8(3), r"shape \(\) is no image"),
    "nothing": (lambda: np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\) is no image"),
    "a failing array": (Failing, r"a Failing gives no array: it lies on another device; give one of NumPy"),
    "a list": (lambda: [[0, 1], [2, 3]], r"a list is no image; give a path, an image file's bytes, an array uint8"),
    "None": (lambda: None, r"a NoneType is no image"),
    "no image's bytes": (lambda: b"words", r"cannot decode the image"),
    "no bytes": (lambda: b"", r"cannot decode the image"),
    "a missing file": (lambda: "none.png", r"cannot read none.png: No such file"),
    "a path with a NUL": (lambda: "a\0b.png", r"cannot read a"),
    "a closed Pillow image": (closed, r"cannot read the Pillow image: .*; repair it, or open it again"),
    "half a Pillow image": (cut_off, r"cannot read the Pillow image: .*truncated"),
    "a Pillow image of floats": (lambda: Image.new("F", (4, 4)), r"cannot read the Pillow image: .* of mode F"),
    "a Pillow image of no pixels": (lambda: Image.new("RGB", (0, 4)), r"cannot read the Pillow image: it has no pixel"),
}


@pytest.mark.parametrize("make, message", WRONG.values(), ids=WRONG)
def test_what_is_no_image_is_refused_in_one_line(make, message):
    with pytest.raises(DataError, match=message) as refused:
        read_view(make(), size=4, fraction=1.0)
    assert "\n" not in str(refused.value)


def test_a_pillow_image_may_have_no_more_pixels_than_a_file(monkeypatch):
    monkeypatch.setattr("stce_jax.data.decode.MAX_PIXELS", 10)
    with pytest.raises(DataError, match="7 x 9 pixels, more than 10 altogether"):
        pixels_of(Image.fromarray(COLOURS))
