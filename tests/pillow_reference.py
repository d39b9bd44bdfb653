"""What the augmentation must equal, in plain Pillow and Python, apart from the shipped code; and test images."""

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

FILL = (124, 116, 104)


def transformed(image, matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=FILL)


def posterized(image, bits):
    """ImageOps.posterize; Pillow 13 refuses 0 bits, of which earlier ones make black."""
    if bits == 0:
        return Image.new("RGB", image.size)
    return ImageOps.posterize(image, int(bits)) if bits < 8 else image


def solarized_below(image, amount):
    return image.point([min(255, value + int(amount)) if value < 128 else value for value in range(256)] * 3)


# Name of our function -> the same on a Pillow image, with the function's one option.
PILLOW = {
    "invert": lambda image, _: ImageOps.invert(image),
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "grayscale": lambda image, _: image.convert("L").convert("RGB"),
    "posterize": posterized,
    "solarize": lambda image, threshold: ImageOps.solarize(image, int(threshold)),
    "solarize_add": solarized_below,
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "gaussian_blur": lambda image, radius: image.filter(ImageFilter.GaussianBlur(radius)),
    "rotate": lambda image, degrees: image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=FILL),
    "shear_x": lambda image, factor: transformed(image, (1, factor, 0, 0, 1, 0)),
    "shear_y": lambda image, factor: transformed(image, (1, 0, 0, factor, 1, 0)),
    "translate_x": lambda image, pixels: transformed(image, (1, 0, pixels, 0, 1, 0)),
    "translate_y": lambda image, pixels: transformed(image, (1, 0, 0, 0, 1, pixels)),
}


def pillow(name, image, amount=None):
    """Applies one of PILLOW to a NumPy image uint8 [H, W, 3]."""
    amount = amount if amount is None else float(amount)
    return np.asarray(PILLOW[name](Image.fromarray(np.asarray(image)), amount))


def timm_amount(name, magnitude, sign, increasing, height, width):
    """What timm makes of a RandAugment magnitude, in Python's numbers."""
    level = float(magnitude) / 10
    if name in ("color", "contrast", "brightness", "sharpness"):
        return max(0.1, 1 + sign * level * 0.9) if increasing else level * 1.8 + 0.1
    if name == "posterize":
        return 4 - int(level * 4) if increasing else int(level * 4)
    if name == "solarize":
        return 256 - min(256, int(level * 256)) if increasing else min(256, int(level * 256))
    if name == "solarize_add":
        return min(128, int(level * 110))
    side = {"translate_x": width, "translate_y": height}.get(name, 1)
    most = {"rotate": 30, "shear_x": 0.3, "shear_y": 0.3, "translate_x": 0.45, "translate_y": 0.45}
    return sign * level * most[name] * side if name in most else 0.0


def assert_equal_or_close(found, expected, exact, what):
    """Exactly equal, or: mean difference at most 0.25 levels, and 99% of the pixels within 2."""
    assert found.dtype == np.uint8 and found.shape == expected.shape, f"{what}: {found.dtype} {found.shape}"
    difference = np.abs(found.astype(int) - expected)
    if exact:
        assert not difference.any(), f"{what}: {(difference > 0).mean():.2%} differ, by up to {difference.max()}"
    share = (difference.max(axis=2) <= 2).mean()
    assert difference.mean() <= 0.25, f"{what}: {difference.mean():.3f} levels apart on average"
    assert share >= 0.99, f"{what}: {share:.2%} of the pixels within 2 levels"


def synthetic_images(height, width):
    """dict name -> uint8 [height, width, 3]: what photographs hardly show."""
    rng = np.random.default_rng(0)
    rows, columns = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    flat_channel = rng.integers(0, 256, (height, width, 3))
    flat_channel[..., 1] = 200
    images = {
        "noise": rng.integers(0, 256, (height, width, 3)),
        "gradient": (3 * rows + columns + 40 * np.arange(3)) % 256,
        "narrow": rng.integers(90, 99, (height, width, 3)),
        "flat": np.full((height, width, 3), 77),
        "one flat channel": flat_channel,
        "black": np.zeros((height, width, 3)),
        "white": np.full((height, width, 3), 255),
        "black and white": 255 * rng.integers(0, 2, (height, width, 1)) * np.ones(3),
        "extreme colours": 255 * rng.integers(0, 2, (height, width, 3)),
        "dark but one": np.where((rows == 0) & (columns == 0), 250, rng.integers(0, 3, (height, width, 3))),
    }
    return {name: image.astype(np.uint8) for name, image in images.items()}
