"""Decoding against Pillow, and files that are broken; for the crops see `test_crops`."""

import csv
import io
import re
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stce_jax.data import decode
from stce_jax.data.crops import center_crop, random_resized_crop
from stce_jax.data.decode import MAX_PIXELS, decode_image
from stce_jax.errors import DataError

LIBRARIES = 3  # levels of 0..255 by which two JPEG decoders may differ
INCEPTION = {"area": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}


def photo(height=40, width=56):
    """A smooth image, [height, width, 3], that JPEG keeps almost unchanged and whose channels cannot be mixed up."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    channels = (40 + 200 * columns, 200 - 150 * rows, 90 + 60 * np.sin(4 * rows + 3 * columns))
    return np.stack(channels, axis=2).round().astype(np.uint8)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image, format, **options):
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, format=format, **options)
    return stream.getvalue()


def with_pillow(encoded):
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB"))


def difference(one, other):
    assert one.shape == other.shape, f"{one.shape} is not {other.shape}"
    return np.abs(one.astype(int) - other.astype(int)).max()


# --- decoding


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_come_back_exactly(format):
    image = noise(11, 7)
    decoded = decode_image(encode(image, format), "x")
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, image)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_jpeg_is_pillows(subsampling, progressive):
    image = photo(41, 57)  # not a multiple of the JPEG's blocks
    encoded = encode(image, "JPEG", quality=95, subsampling=subsampling, progressive=progressive)
    decoded = decode_image(encoded, "x")
    assert decoded.dtype == np.uint8
    assert difference(decoded, with_pillow(encoded)) <= LIBRARIES
    assert difference(decoded, image) <= 12, "far from what was encoded: are the channels red, green, blue?"


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_grey_images_get_three_equal_channels(format):
    grey = photo()[:, :, 0]
    encoded = encode(grey, format)
    decoded = decode_image(encoded, "x")
    assert decoded.shape == (*grey.shape, 3)
    assert (decoded == decoded[:, :, :1]).all()
    assert difference(decoded, with_pillow(encoded)) <= (LIBRARIES if format == "JPEG" else 0)


@pytest.mark.parametrize("adobe", [True, False])
def test_cmyk_jpeg_is_not_inverted(adobe):
    """Adobe's marker says that the four inks are stored inverted; Pillow writes and heeds it."""
    image = photo()
    encoded = encode(Image.fromarray(image).convert("CMYK"), "JPEG", quality=95)
    if not adobe:
        start = encoded.index(b"\xff\xee")
        length = int.from_bytes(encoded[start + 2 : start + 4], "big")
        encoded = encoded[:start] + encoded[start + 2 + length :]
    decoded = decode_image(encoded, "x")
    assert difference(decoded, with_pillow(encoded)) <= LIBRARIES
    assert not adobe or difference(decoded, image) <= 16


def test_palette_images_take_their_palettes_colours():
    colours = np.array([[255, 0, 0], [0, 128, 0], [1, 2, 3], [250, 251, 252]], np.uint8)
    indices = np.random.default_rng(0).integers(0, 4, (9, 5), dtype=np.uint8)
    image = Image.frombytes("P", (5, 9), indices.tobytes())
    image.putpalette(colours.tobytes())
    for format in ("PNG", "GIF"):
        np.testing.assert_array_equal(decode_image(encode(image, format), "x"), colours[indices], err_msg=format)


def test_alpha_is_dropped():
    image = noise(6, 8)
    alpha = np.arange(48, dtype=np.uint8).reshape(6, 8, 1)
    np.testing.assert_array_equal(decode_image(encode(np.concatenate([image, alpha], 2), "PNG"), "x"), image)
    grey_alpha = Image.merge("LA", [Image.fromarray(image[:, :, 0]), Image.fromarray(alpha[:, :, 0])])
    np.testing.assert_array_equal(decode_image(encode(grey_alpha, "PNG"), "x"), image[:, :, :1].repeat(3, 2))


def test_black_and_white_images_are_0_and_255():
    bits = np.random.default_rng(0).random((9, 5)) < 0.5
    expected = np.where(bits, 255, 0).astype(np.uint8)[:, :, None].repeat(3, 2)
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(bits), "PNG"), "x"), expected)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_high_byte(format):
    """As Pillow itself does with 16-bit colour. Its plain convert("RGB") clips almost all of 0..65535 to white."""
    grey = np.random.default_rng(0).integers(0, 65536, (9, 5), dtype=np.uint16)
    decoded = decode_image(encode(Image.fromarray(grey), format), "x")
    np.testing.assert_array_equal(decoded, (grey // 256).astype(np.uint8)[:, :, None].repeat(3, 2))


@pytest.mark.parametrize("maximum", [256, 1023, 4095, 65534, 65535])
@pytest.mark.parametrize("kind", [b"P2", b"P3", b"P5", b"P6"])
def test_netpbm_of_more_than_8_bits_is_scaled_to_16_and_keeps_its_high_byte(kind, maximum):
    """10, 12 and 16 bits, grey and colour, binary and as numbers; with comments, as GIMP writes them."""
    shape = (3, 5, 3 if kind in (b"P3", b"P6") else 1)
    values = np.random.default_rng(0).integers(0, maximum + 1, shape)
    values.flat[:2] = 0, maximum
    plain = b" ".join(b"%d" % value for value in values.flat) + b"\n"
    pixels = plain if kind in (b"P2", b"P3") else values.astype(">u2").tobytes()
    encoded = kind + b"\n# by hand\n5 3 # columns, rows\n%d\n" % maximum + pixels
    expected = np.array([round(int(value) * 65535 / maximum) >> 8 for value in values.flat]).reshape(shape)
    decoded = decode_image(encoded, "x")
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, np.broadcast_to(expected, (3, 5, 3)))
    with pytest.raises(DataError, match="x: it is cut off"):
        decode_image(encoded[: -len(pixels) // 2], "x")


@pytest.mark.parametrize("change", [b"P5 0 3 4095 ", b"P5 99999 99999 4095 ", b"P2 1 1 4095 -1 ", b"P2 1 1 4095 x "])
def test_odd_netpbm_of_more_than_8_bits_is_refused(change):
    with pytest.raises(DataError, match="cannot decode x"):
        decode_image(change, "x")


def tiff(values, bits, kind="u", signed=False, photometric=1):
    """A grey TIFF with one strip; of 12 bits, two pixels in three bytes."""
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(int)
        first, second = pairs.T
        pixels = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()
    else:
        pixels = values.astype(f"<{kind}2").tobytes()
    height, width = values.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height)]
    tags += [(279, len(pixels)), (339, 2 if signed else 1)]
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag == 273 else 3, 1, value) for tag, value in tags)
    padded = pixels + bytes(len(pixels) % 2)
    header = struct.pack("<2sHI", b"II", 42, 8 + len(padded))
    return header + padded + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_signed_16_bit_grey_keeps_its_order():
    values = np.array([[-32768, -1, 0], [255, 256, 32767]])
    decoded = decode_image(tiff(values, 16, "i", signed=True), "x")
    np.testing.assert_array_equal(decoded[:, :, 0], (values + 32768) >> 8)


def test_12_bit_tiff_is_scaled_to_16():
    values = np.array([[0, 4095], [17, 2048]])
    np.testing.assert_array_equal(decode_image(tiff(values, 12), "x")[:, :, 0], [[0, 255], [1, 128]])


def test_16_bit_tiff_whose_white_is_0_is_inverted_as_that_of_8_bits_is():
    values = np.array([[0, 65535], [256, 32768]])
    np.testing.assert_array_equal(decode_image(tiff(values, 16, photometric=0), "x")[:, :, 0], [[255, 0], [254, 127]])


def test_pixels_that_are_no_bytes_are_refused_rather_than_clipped():
    image = Image.fromarray(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4))
    with pytest.raises(DataError, match=r"depth\.tiff"):
        decode_image(encode(image, "TIFF"), "depth.tiff")


def test_the_exif_orientation_is_not_applied():
    """As in ImageNet's usual pipelines, for training and evaluation alike."""
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encode(photo(20, 30), "JPEG", exif=exif), "x").shape == (20, 30, 3)


def test_the_content_decides_not_the_name():
    np.testing.assert_array_equal(decode_image(encode(noise(4, 4), "PNG"), "n02105855_2933.JPEG"), noise(4, 4))


# --- broken files


def refused(encoded):
    with pytest.raises(DataError) as caught:
        decode_image(encoded, "some/cat.jpg")
    message = str(caught.value)
    assert "some/cat.jpg" in message and "\n" not in message, message
    assert not re.search(r"0x[0-9a-f]{6}", message), f"an address in memory tells a user nothing: {message}"
    return message


@pytest.mark.parametrize("format", ["PNG", "GIF", "WEBP"])
def test_the_first_frame_of_an_animation_counts(format):
    frames = [Image.fromarray(np.full((20, 30, 3), level, np.uint8)) for level in (40, 200)]
    encoded = encode(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)
    assert difference(decode_image(encoded, "x"), np.full((20, 30, 3), 40, np.uint8)) <= LIBRARIES


def test_what_phones_call_jpeg():
    """Several pictures in one file; Pillow knows it as MPO."""
    encoded = encode(photo(), "MPO", save_all=True, append_images=[Image.fromarray(noise(40, 56))], quality=95)
    with Image.open(io.BytesIO(encoded)) as image:
        assert image.format == "MPO"
    assert difference(decode_image(encoded, "x"), photo()) <= 12


def test_transparent_colours_of_a_palette_are_dropped_without_a_warning(recwarn):
    image = Image.frombytes("P", (2, 1), b"\0\1")
    image.putpalette([255, 0, 0, 0, 0, 255])
    decoded = decode_image(encode(image, "PNG", transparency=b"\0\x80"), "x")
    np.testing.assert_array_equal(decoded, [[[255, 0, 0], [0, 0, 255]]])
    assert not recwarn.list


# --- images that claim too much


def claiming(format, width, height):
    """A small file whose header says it is width x height pixels."""
    data = bytearray(encode(noise(8, 8), format, **({"lossless": True} if format == "WEBP" else {})))
    if format == "JPEG":
        place = data.index(b"\xff\xc0")
        data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    elif format == "PNG":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif format == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    elif format == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif format == "WEBP":
        place = data.index(b"VP8L") + 9
        data[place : place + 4] = struct.pack("<I", (width - 1) | (height - 1) << 14)
    else:
        return b"P6 %d %d 255\n" % (width, height) + bytes(300)
    return bytes(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest undoes our own filter
@pytest.mark.parametrize("side", [9_460, 16_000, 60_000])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "PPM"])
def test_headers_that_claim_too_many_pixels_are_refused_before_anything_is_decoded(format, side, monkeypatch):
    """A bit above the limit, above twice the limit (where Pillow refuses by itself), and much."""
    if format == "WEBP":
        side = min(side, 16_383)  # more cannot be written
    assert side**2 > MAX_PIXELS
    encoded = claiming(format, side, side)
    monkeypatch.setattr(Image.Image, "convert", pytest.fail)
    message = refused(encoded)
    assert "pixels" in message and f"{MAX_PIXELS:,}" in message


@pytest.mark.slow
def test_pillow_does_not_warn_besides():
    """In a process of its own, for pytest has its own filters of warnings."""
    code = f"from stce_jax.data.decode import decode_image; decode_image({claiming('PNG', 9460, 9460)!r}, 'x')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "9460 x 9460 pixels" in done.stderr and "Warning" not in done.stderr, done.stderr
    exif = b"Exif\0\0II*\0\x08\0\0\0\x20\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0" + b"\xff" * 20  # 32 entries, not 1
    plain = encode(photo(), "JPEG")
    damaged = plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + plain[2:]
    code = f"from stce_jax.data.decode import open_image; open_image({damaged!r}).getexif().get(0x0112)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr


def test_the_limit_of_pixels_is_meant_for_each_image(monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 99)
    assert decode_image(encode(noise(9, 11), "PNG"), "x").shape == (9, 11, 3)
    for format in ("PNG", "JPEG"):
        assert "10 x 10 pixels" in refused(encode(noise(10, 10), format))


def test_formats_that_pillow_would_hand_to_other_programs_are_not_tried(monkeypatch):
    """EPS starts Ghostscript, a language in which a file can do a lot."""
    encoded = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    with Image.open(io.BytesIO(encoded)) as image:
        assert image.format == "EPS"
    monkeypatch.setattr("subprocess.check_call", pytest.fail)
    refused(encoded)


@given(st.binary(max_size=300))
def test_garbage_is_refused_by_name(garbage):
    refused(garbage)


@given(st.sampled_from([b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF"]), st.binary(max_size=300))
def test_garbage_that_begins_like_an_image_is_refused_by_name(beginning, garbage):
    refused(beginning + garbage)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@given(share=st.floats(0, 0.9))
def test_truncated_files_are_refused_by_name(format, share):
    encoded = encode(noise(40, 56), format)
    refused(encoded[: int(share * len(encoded))])


@given(
    format=st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "WEBP"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12),
)
def test_damaged_files_decode_or_are_refused_and_nothing_else(format, changes):
    encoded = bytearray(encode(photo(24, 24), format))
    for place, value in changes:
        encoded[int(place * len(encoded))] = value
    try:
        assert decode_image(bytes(encoded), "x").dtype == np.uint8
    except DataError as error:
        assert str(error).startswith("cannot decode x")


def test_a_format_that_pillow_knows_only_in_part_is_refused_by_name():
    """Pillow's plugins raise more than OSError: here NotImplementedError."""
    encoded = bytearray(encode(noise(8, 8), "DDS"))
    encoded[80:88] = struct.pack("<I4s", 4, b"ABCD")  # a compression that does not exist
    refused(bytes(encoded))


def test_what_jpegs_allow_after_their_end_is_forgiven():
    encoded = encode(photo(), "JPEG", quality=95)
    assert difference(decode_image(encoded + b"trailing bytes", "x"), with_pillow(encoded)) <= LIBRARIES


def test_real_odd_files(test_data):
    """Awkward files as they come in ImageNet and elsewhere; the table beside them says what a correct decoder sees."""
    with zipfile.ZipFile(test_data / "data" / "imagenet_samples.zip") as archive:
        with archive.open("odd/ODD.csv") as file:
            rows = list(csv.DictReader(io.TextIOWrapper(file, encoding="utf-8")))
        decoded = 0
        for row in rows:
            path = row["path"]
            if "/decodable/" not in path:
                with pytest.raises(DataError, match=re.escape(path)):
                    decode_image(archive.read(path), path)
                continue
            image = decode_image(archive.read(path), path)
            width, height = map(int, row["size"].split("x"))
            assert image.shape == (height, width, 3), path
            expected = row["reference_mean_rgb"] or row["mean_rgb_after_convert"]
            error = np.abs(image.mean(axis=(0, 1)) - np.array(expected.split("/"), float)).max()
            assert error <= 2.5, f"{path}: mean colour {image.mean(axis=(0, 1)).round()}, expected {expected}"
            assert center_crop(image, 32, 0.875).shape == (32, 32, 3), path
            assert random_resized_crop(np.random.default_rng(0), image, 32, **INCEPTION).shape == (32, 32, 3), path
            decoded += 1
    assert (len(rows), decoded) == (60, 48)
