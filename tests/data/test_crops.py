"""The crops against torchvision's definitions written out here, by Pillow, by vector instructions, of large photos."""

import io
import math
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.stats
import simplejpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from stce_jax.data import resizing
from stce_jax.data.crops import _draw_box, center_crop, open_for_crops, random_resized_crop
from stce_jax.data.decode import decode_image
from stce_jax.data.large_jpegs import LARGE, LargeJpeg
from stce_jax.data.views import Views
from stce_jax.errors import ConfigError, DataError

INCEPTION = {"area": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}
LIBRARIES = 3  # levels of 0..255 by which two JPEG decoders may differ


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- the evaluation view


def torchvision_view(image, size, fraction):
    """Resize(int(size / fraction), bicubic) and CenterCrop(size) as torchvision computes them."""
    height, width, _ = image.shape
    short = int(size / fraction)
    if width <= height:
        resized_width, resized_height = short, int(short * height / width)
    else:
        resized_width, resized_height = int(short * width / height), short
    resized = np.asarray(Image.fromarray(image).resize((resized_width, resized_height), Image.Resampling.BICUBIC))
    top = round((resized_height - size) / 2.0)  # halves to the even
    left = round((resized_width - size) / 2.0)
    return resized[top : top + size, left : left + size]


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size=st.integers(1, 40),
    fraction=st.one_of(st.just(0.875), st.just(1.0), st.floats(0.3, 1.0)),
)
def test_center_crop_is_torchvisions(height, width, size, fraction):
    image = noise(height, width)
    cropped = center_crop(image, size, fraction)
    assert cropped.shape == (size, size, 3) and cropped.dtype == np.uint8
    np.testing.assert_array_equal(cropped, torchvision_view(image, size, fraction))


@pytest.mark.parametrize("shape", [(375, 500), (332, 500), (500, 333), (256, 347), (600, 300)])
def test_center_crop_at_imagenets_sizes(shape):
    np.testing.assert_array_equal(center_crop(noise(*shape), 224, 0.875), torchvision_view(noise(*shape), 224, 0.875))


def test_center_crop_without_resizing_is_a_slice():
    image = noise(20, 31)
    np.testing.assert_array_equal(center_crop(image, 20, 1.0), image[:, 6:26])  # (31 - 20) / 2 = 5.5, to the even


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (200, 3), (5, 7)])
def test_center_crop_of_tiny_and_elongated_images(shape):
    image = np.broadcast_to(np.array([10, 100, 200], np.uint8), (*shape, 3)).copy()
    cropped = center_crop(image, 32, 0.875)
    assert cropped.shape == (32, 32, 3)
    assert (cropped == [10, 100, 200]).all(), "a plain image must stay plain: nothing may be filled in"


# --- the random view


def boxes(height, width, area, ratio, draws, seed=0):
    """[draws, 4]: top, left, height, width."""
    rng = np.random.default_rng(seed)
    return np.array([_draw_box(rng, height, width, area, ratio) for _ in range(draws)])


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    area=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)).map(lambda pair: tuple(sorted(pair))),
    ratio=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(lambda pair: tuple(sorted(pair))),
    seed=st.integers(0, 1000),
)
def test_boxes_lie_within_the_image(height, width, area, ratio, seed):
    for top, left, box_height, box_width in boxes(height, width, area, ratio, 5, seed):
        assert box_height >= 1 and box_width >= 1, "an empty box"
        assert top >= 0 and top + box_height <= height, "beyond the top or bottom"
        assert left >= 0 and left + box_width <= width, "beyond the left or right"


@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (1.2, 2.0)])
def test_boxes_are_drawn_as_inceptions(ratio):
    """Where every first try fits: area uniform, ratio log-uniform, place uniform, all four independent."""
    side, area = 2000, (0.1, 0.3)
    top, left, height, width = boxes(side, side, area, ratio, 4000).T
    samples = {
        "area": (height * width / side**2 - area[0]) / (area[1] - area[0]),
        "log of width over height": np.log(width / height / ratio[0]) / np.log(ratio[1] / ratio[0]),
        "top": top / (side - height),
        "left": left / (side - width),
    }
    for name, values in samples.items():
        assert values.min() > -0.02 and values.max() < 1.02, f"{name} out of range"
        p = scipy.stats.kstest(values, "uniform").pvalue
        assert p > 1e-3, f"{name} is not uniform (p = {p:.1e})"
    correlations = np.corrcoef(list(samples.values()))
    assert np.abs(correlations - np.eye(4)).max() < 0.06, f"the draws depend on one another:\n{correlations.round(3)}"


def test_boxes_reach_every_place_equally_often():
    top, left, height, width = boxes(4, 5, (0.2, 0.2), (1.0, 1.0), 2000).T
    assert set(height) == set(width) == {2}
    found = np.bincount(top * 4 + left, minlength=12)
    assert len(found) == 12 and found.min() > 0, f"of 3 x 4 places some are never taken: {found}"
    p = scipy.stats.chisquare(found).pvalue
    assert p > 1e-3, f"places are not equally likely (p = {p:.1e}): {found}"


def test_inceptions_boxes_keep_to_their_area_and_ratio():
    _, _, height, width = boxes(300, 400, **INCEPTION, draws=2000).T
    rounding = 1.05  # whole pixels
    share, aspect = height * width / (300 * 400), width / height
    assert share.min() > 0.08 / rounding and share.max() <= 1.0
    assert aspect.min() > 3 / 4 / rounding and aspect.max() < 4 / 3 * rounding
    assert np.quantile(share, 0.1) < 0.2 and np.quantile(share, 0.9) > 0.7, "the areas bunch together"


@pytest.mark.parametrize("shape", [(1000, 20), (20, 1000), (1, 500), (500, 1), (97, 31)])
def test_elongated_images_fall_back_to_torchvisions_central_box(shape):
    height, width = shape
    low, high = ratio = (3 / 4, 4 / 3)
    if width / height < low:
        expected_width, expected_height = width, round(width / low)
    else:
        expected_width, expected_height = round(height * high), height
    expected = (
        (height - expected_height) // 2,
        (width - expected_width) // 2,
        expected_height,
        expected_width,
    )
    for box in boxes(height, width, (1.0, 1.0), ratio, 3):
        assert tuple(box) == expected


def test_an_image_whose_ratio_is_allowed_is_never_cut_smaller_than_asked():
    for box in boxes(30, 40, (1.0, 1.0), (4 / 3, 4 / 3), 5):
        assert tuple(box) == (0, 0, 30, 40)


@given(height=st.integers(1, 60), width=st.integers(1, 60), size=st.integers(1, 24), seed=st.integers(0, 1000))
def test_random_crop_is_the_box_resized(height, width, size, seed):
    image = noise(height, width)
    top, left, box_height, box_width = _draw_box(np.random.default_rng(seed), height, width, **INCEPTION)
    part = Image.fromarray(image[top : top + box_height, left : left + box_width])
    cropped = random_resized_crop(np.random.default_rng(seed), image, size, **INCEPTION)
    assert cropped.shape == (size, size, 3) and cropped.dtype == np.uint8
    np.testing.assert_array_equal(cropped, np.asarray(part.resize((size, size), Image.Resampling.BICUBIC)))


def in_rows_first(image, size):
    """Pillow's resize in two steps, whose order it cannot choose by itself."""
    rows = Image.fromarray(image).resize((size, image.shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(rows.resize((size, size), Image.Resampling.BICUBIC))


@pytest.fixture
def simd():
    return pytest.importorskip("cykooz_resizer")


@given(height=st.integers(1, 300), width=st.integers(1, 300), size=st.integers(8, 64), seed=st.integers(0, 1000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_simd_crops_are_pillows_but_for_rounding(simd, height, width, size, seed):
    """On pixels that are 0 or 255, where every overshoot is cut off: the hardest case for another order or rounding."""
    image = (noise(height, width, seed) > 127).astype(np.uint8) * 255
    top, left, box_height, box_width = _draw_box(np.random.default_rng(seed), height, width, **INCEPTION)
    cropped = random_resized_crop(np.random.default_rng(seed), image, size, **INCEPTION, resize="simd")
    expected = in_rows_first(image[top : top + box_height, left : left + box_width], size)
    assert cropped.shape == (size, size, 3) and cropped.dtype == np.uint8
    assert np.abs(cropped.astype(int) - expected).max() <= 2
    assert np.abs(cropped.astype(int) - expected).mean() < 0.02, "more than rounding"


def test_simd_crops_can_be_drawn_in_threads(simd):
    image = noise(120, 160)
    with ThreadPoolExecutor(4) as pool:
        crops = list(
            pool.map(
                lambda k: random_resized_crop(np.random.default_rng(k % 8), image, 48, **INCEPTION, resize="simd"),
                range(64),
            )
        )
    for k in range(64):
        np.testing.assert_array_equal(crops[k], crops[k % 8], err_msg=f"crop {k} differs between threads")


def test_simd_that_is_not_installed_is_a_mistake_in_the_config(monkeypatch):
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    resizing.vector_resize.cache_clear()
    with pytest.raises(ConfigError, match=r"needs the package cykooz-resizer; install it, or use \"fast\""):
        random_resized_crop(np.random.default_rng(0), noise(9, 9), 8, **INCEPTION, resize="simd")
    resizing.vector_resize.cache_clear()


def test_random_crops_of_a_ramp_show_where_they_were_cut():
    """Red rises to the right, green downwards, by one a pixel: so the crop's colours tell its box."""
    side = 200
    rows, columns = np.mgrid[:side, :side].astype(np.uint8)
    ramp = np.stack([columns, rows, 0 * rows], axis=2)
    rng = np.random.default_rng(0)
    crops = np.stack([random_resized_crop(rng, ramp, 50, area=(0.1, 0.3), ratio=(0.5, 2.0)) for _ in range(500)])
    width = (crops[:, 25, 45, 0] - crops[:, 25, 5, 0].astype(float)) / 40 * 50
    height = (crops[:, 45, 25, 1] - crops[:, 5, 25, 1].astype(float)) / 40 * 50
    assert (width > 0).all() and (height > 0).all(), "a crop is mirrored"
    share, aspect = width * height / side**2, width / height
    assert share.min() > 0.09 and share.max() < 0.32, f"areas {share.min():.3f} to {share.max():.3f}, asked 0.1 to 0.3"
    assert 0.46 < aspect.min() < 0.6 and 1.7 < aspect.max() < 2.15, f"ratios {aspect.min():.2f} to {aspect.max():.2f}"
    assert abs(np.log(aspect).mean()) < 4 * math.log(4) / math.sqrt(12 * 500), "wide and tall are not equally likely"


def test_fast_takes_vector_instructions_where_they_are_and_pillow_elsewhere(monkeypatch, simd):
    image = noise(90, 70)

    def crop(resize):
        return random_resized_crop(np.random.default_rng(3), image, 24, **INCEPTION, resize=resize)

    np.testing.assert_array_equal(crop("fast"), crop("simd"))
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    resizing.vector_resize.cache_clear()
    np.testing.assert_array_equal(crop("fast"), crop("pillow"))
    resizing.vector_resize.cache_clear()


# --- photos of many pixels


class Photos:
    """A source of image files."""

    def __init__(self, *files):
        self.files = files

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return {"image": self.files[index], "label": 0, "name": self.name(index)}

    def name(self, index):
        return f"photo {index}"


@pytest.fixture(scope="module")
def sharp():
    """[1,500, 2,000, 3]: photographs side by side, each at its own size, so as sharp as photographs are."""
    tiles = [load_sample_image(name)[:375, :500] for name in ("china.jpg", "flower.jpg")]
    rows = [np.concatenate([tiles[(row + column) % 2] for column in range(4)], axis=1) for row in range(4)]
    return np.concatenate(rows)


@pytest.fixture(scope="module")
def large(sharp):
    return simplejpeg.encode_jpeg(sharp, quality=92, colorsubsampling="420")


def crop(image, size, seed, **options):
    return random_resized_crop(np.random.default_rng(seed), image, size, **INCEPTION, **options)


def test_only_large_jpegs_are_decoded_at_a_fraction_and_only_by_fast(sharp, large):
    assert sharp.shape[0] * sharp.shape[1] > LARGE
    assert isinstance(open_for_crops(large, "x", "fast"), LargeJpeg)
    for resize in ("pillow", "simd"):
        np.testing.assert_array_equal(open_for_crops(large, "x", resize), decode_image(large, "x"))
    others = [simplejpeg.encode_jpeg(np.ascontiguousarray(sharp[:1000]), colorsubsampling="420")]
    for format in ("PNG", "WEBP"):
        stream = io.BytesIO()
        Image.fromarray(sharp[:, ::4].repeat(4, axis=1)).save(stream, format=format)
        others.append(stream.getvalue())
    for other in others:
        assert isinstance(open_for_crops(other, "x", "fast"), np.ndarray)


def test_crops_of_large_photos_are_those_of_all_pixels_but_for_little(large):
    photo, whole = open_for_crops(large, "x", "fast"), decode_image(large, "x")
    for size in (64, 160):
        for seed in range(8):
            found, expected = crop(photo, size, seed, resize="fast"), crop(whole, size, seed)
            apart = np.abs(found.astype(int) - expected)
            assert apart.mean() < 1.1, f"size {size}, seed {seed}: {apart.mean():.2f} levels apart"
            assert np.quantile(apart, 0.99) <= 6, f"size {size}, seed {seed}"


@pytest.mark.parametrize(("side", "factor"), [(800, 1), (370, 2), (187, 4), (93, 8)])
def test_a_photo_is_decoded_at_the_least_fraction_that_keeps_two_pixels_for_one(large, side, factor):
    photo = open_for_crops(large, "x", "fast")
    pixels, box = photo.decoded((403.0, 0.0, 1899.0, 1500.0), (side, side))
    assert pixels.shape[:2] == (math.ceil(1500 / factor), math.ceil(1899 / factor) - 403 // factor)
    assert box == (403 / factor % 1, 0.0, 403 / factor % 1 + 1496 / factor, 1500 / factor)


def test_crops_of_a_large_ramp_lie_where_those_of_all_pixels_do():
    rows, columns = np.mgrid[:1501, :2003]
    ramp = np.stack([columns / 2003 * 255, rows / 1501 * 255, 0 * rows + 128], axis=2).round().astype(np.uint8)
    encoded = simplejpeg.encode_jpeg(ramp, quality=100, colorsubsampling="444")
    photo = open_for_crops(encoded, "x", "fast")
    for seed in range(12):
        found, expected = crop(photo, 48, seed, resize="fast"), crop(ramp, 48, seed)
        apart = (found.astype(float) - expected).mean(axis=(0, 1))
        assert np.abs(apart).max() < 0.3, f"seed {seed}: moved by {apart.round(2)} levels"  # 0.13 are a pixel


@pytest.mark.parametrize("megabytes", [0, 1, 100])
def test_what_is_kept_in_memory_has_no_effect_on_pixels(large, sharp, megabytes):
    small = simplejpeg.encode_jpeg(np.ascontiguousarray(sharp[:300, :400]))
    options = {"size": 48, "crop": "random_resized", "fraction": 1.0, "resize": "fast", **INCEPTION}
    views = Views(Photos(large, small), **options, cache_bytes=megabytes * 2**20)
    for index, file in enumerate((large, small)):
        for seed in (0, 1, 0):
            found, _ = views.view(index, np.random.default_rng(seed))
            expected = crop(open_for_crops(file, "x", "fast"), 48, seed, resize="fast")
            np.testing.assert_array_equal(found, expected)


def test_a_large_file_that_is_cut_off_is_named_or_forgiven_as_any_other(large):
    cut = large[: len(large) // 2]
    with pytest.raises(DataError, match="cannot decode photo 0"):
        decode_image(cut, "photo 0")
    views = Views(Photos(cut), size=48, crop="random_resized", fraction=1.0, resize="fast", **INCEPTION)
    with pytest.raises(DataError, match="cannot decode photo 0"):
        views.view(0, np.random.default_rng(0))
    found, expected = (open_for_crops(file, "x", "fast") for file in (large + bytes(100), large))
    np.testing.assert_array_equal(crop(found, 48, 0, resize="fast"), crop(expected, 48, 0, resize="fast"))


def test_what_libjpeg_does_not_convert_is_cut_from_all_pixels(large, monkeypatch):
    """Pillow decodes it then, and the crop is that of "simd" to the bit, where there are vector instructions."""
    expected = crop(decode_image(large, "x"), 48, 0, resize="fast")

    def refuse(*words, **options):
        raise ValueError("cannot convert")

    photo = open_for_crops(large, "x", "fast")
    monkeypatch.setattr(simplejpeg, "decode_jpeg", refuse)
    apart = np.abs(crop(photo, 48, 0, resize="fast").astype(int) - expected)
    assert apart.max() <= LIBRARIES, f"{apart.max()} levels apart"
