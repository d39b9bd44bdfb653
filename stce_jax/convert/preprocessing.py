"""What is done to images before weights see them, read off what lies beside the weights."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from stce_jax.convert.layouts import said
from stce_jax.data.resizing import INTERPOLATIONS
from stce_jax.errors import CheckpointError, shown
from stce_jax.models.factory import LARGEST_SIDE

# What timm's other ways of cropping do; here the central square is seen.
CROPS = {
    "center": "",
    "squash": "there whole images are squeezed into a square",
    "border": "there images get borders that make them square",
}
HERE = ", here the central square is seen"
SQUEEZED = CROPS["squash"] + HERE
CONVNEXT, CONVNEXT_SHARE, CONVNEXT_SQUEEZES = "ConvNext", 224 / 256, 384  # its processor: from so many pixels on
# Keys of preprocessor_config.json under which pixels become what they are nowhere here.
NEVER = {"do_flip_channel_order": "channels are blue, green, red", "rescale_offset": "1 is taken off pixels"}
PILLOW = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by the numbers of Hugging Face's "resample"
Channels = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What weights were trained or evaluated with; None: it is not known.

    Attributes:
      image_size: (height, width) in pixels.
      mean, std: of pixels scaled to 0..1, for red, green and blue.
      interpolation: one of `resizing.INTERPOLATIONS`.
      crop_fraction: share of the short side that the central square covers.
      note: what cannot be done as it was, for people; "" if all can.
    """

    image_size: tuple[int, int] | None = None
    mean: Channels | None = None
    std: Channels | None = None
    interpolation: str | None = None
    crop_fraction: float | None = None
    note: str = ""

    def summary(self) -> str:
        """The known values in a few words, such as "mean 0.5,0.5,0.5, std 0.5,0.5,0.5, bicubic, crop 0.9"."""
        words = [f"{name} {numbers(values)}" for name, values in (("mean", self.mean), ("std", self.std)) if values]
        words += [self.interpolation] if self.interpolation else []
        words += [f"crop {self.crop_fraction:g}"] if self.crop_fraction else []
        return ", ".join(words)


def numbers(values: Iterable[float]) -> str:
    """Numbers in a message, such as "0.5,0.5,0.5"."""
    return ",".join(f"{value:g}" for value in values)


def of_timm(config: Mapping[str, Any]) -> Preprocessing:
    """Of timm's config.json, see its "pretrained_cfg"; raises CheckpointError for values that cannot be."""
    own = said.section(config, "pretrained_cfg") or config  # early folders have all of it side by side
    arguments, size = said.section(config, "model_args"), own.get("input_size")
    image_size = _size(arguments.get("img_size"), "img_size")
    if image_size is None and size is not None:
        if not isinstance(size, list) or len(size) != 3:
            raise CheckpointError(f"its config.json says input_size={shown(size)}, not channels, height and width")
        image_size = _size(size[1:], "input_size")
    crop = own.get("crop_mode") or "center"
    if not isinstance(crop, str) or crop not in CROPS:
        raise CheckpointError(f"its config.json says crop_mode={shown(crop)}; timm has {', '.join(CROPS)}")
    return Preprocessing(
        image_size=image_size,
        mean=_channels(own, "mean", -10.0),
        std=_channels(own, "std", 1e-4),
        interpolation=_interpolation(own.get("interpolation")),
        crop_fraction=_fraction(own.get("crop_pct"), "crop_pct"),
        note=CROPS[crop] and CROPS[crop] + HERE,
    )


def of_hugging_face(config: Mapping[str, Any], processor: Mapping[str, Any]) -> Preprocessing:
    """Of Hugging Face's config.json and preprocessor_config.json; raises CheckpointError for values that cannot be."""
    image_size = _size(config.get("image_size"), "image_size")
    if not processor:
        return Preprocessing(image_size=image_size)
    for key, what in NEVER.items():
        if processor.get(key):
            raise CheckpointError(
                f"its preprocessor_config.json says {key}={shown(processor[key])}: {what} there, not here"
            )
    fraction, note = _cropped(processor)
    number = processor.get("resample")
    if number is not None and (not isinstance(number, int) or number not in range(len(PILLOW))):
        raise CheckpointError(f"its preprocessor_config.json says resample={shown(number)}; Pillow has 0 to 5")
    if not processor.get("do_resize", True):
        note = "there images keep their size, here they are resized"
    normalizes = processor.get("do_normalize", True)
    mean = _channels(processor, "image_mean", -10.0) if normalizes else (0.0, 0.0, 0.0)
    std = _channels(processor, "image_std", 1e-4) if normalizes else (1.0, 1.0, 1.0)
    # There pixels of 0..255 are multiplied by a factor first, here always by 1/255.
    factor = said.number(processor, "rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    if not math.isclose(scale := 255 * factor, 1.0, rel_tol=1e-6):
        mean, std = (None if one is None else _divided(one, scale) for one in (mean, std))
    return Preprocessing(
        image_size=image_size,
        mean=mean,
        std=std,
        interpolation=None if number is None else PILLOW[number],
        crop_fraction=fraction,
        note=note,
    )


def _cropped(processor: Mapping[str, Any]) -> tuple[float | None, str]:
    """(share of the short side that is seen, note) of a preprocessor_config.json."""
    resized: Any = processor.get("size")
    if resized is None or (isinstance(resized, dict) and not (_is_square(resized) or "shortest_edge" in resized)):
        return None, ""
    squeezed = not isinstance(resized, int | dict) or _is_square(resized)
    short = min(_size(resized, "size") or (1, 1))
    share = _fraction(processor.get("crop_pct"), "crop_pct")
    kind = str(processor.get("image_processor_type") or processor.get("feature_extractor_type"))
    if kind.startswith(CONVNEXT):
        return (1.0, SQUEEZED) if short >= CONVNEXT_SQUEEZES else (share or CONVNEXT_SHARE, "")
    crop = _size(processor.get("crop_size"), "crop_size") if processor.get("do_center_crop") else None
    if crop is None:
        return 1.0, SQUEEZED if squeezed or isinstance(resized, int) else ""
    short = int(short / (share or 1.0))
    if min(crop) > short:
        raise CheckpointError(
            f"its preprocessor_config.json crops {min(crop)} pixels of {short}, which adds borders there; write a "
            f"crop_size of at most {short}"
        )
    return _fraction(min(crop) / short, "crop_size"), SQUEEZED if squeezed else ""


def of_description(image: Mapping[str, Any]) -> Preprocessing:
    """Of the section "image" of the model.json of `stce export`; raises CheckpointError for values that cannot be."""
    return Preprocessing(
        image_size=_size(image.get("size"), "size"),
        mean=_channels(image, "mean", -10.0),
        std=_channels(image, "std", 1e-4),
        interpolation=_interpolation(image.get("interpolation", INTERPOLATIONS[0])),
        crop_fraction=_fraction(image.get("crop_fraction"), "crop_fraction"),
    )


def _divided(channels: Channels, scale: float) -> Channels:
    red, green, blue = (value / scale for value in channels)
    return red, green, blue


def _is_square(size: Any) -> bool:
    return isinstance(size, dict) and "height" in size and "width" in size


def _size(value: Any, key: str) -> tuple[int, int] | None:
    """(height, width) of a number, of two, or of an object that names them."""
    if value is None:
        return None
    if isinstance(value, dict):
        value = [value.get("height"), value.get("width")] if _is_square(value) else value.get("shortest_edge")
    pair = value if isinstance(value, list) and len(value) == 2 else [value, value]
    if not all(isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= LARGEST_SIDE for side in pair):
        raise CheckpointError(f"its config says {key}={shown(value)}; sides of images are 1 to {LARGEST_SIDE} pixels")
    return pair[0], pair[1]


def _channels(config: Mapping[str, Any], key: str, minimum: float) -> Channels | None:
    value = config.get(key)
    if value is None:
        return None
    fits = isinstance(value, list) and len(value) == 3
    if not fits or not all(_is_number(entry) and minimum <= entry <= 10 for entry in value):
        raise CheckpointError(f"its config says {key}={shown(value)}, which are no three numbers of pixels in 0..1")
    return float(value[0]), float(value[1]), float(value[2])


def _fraction(value: Any, key: str) -> float | None:
    if value is None:
        return None
    if not _is_number(value) or not 0.01 <= value <= 1:
        raise CheckpointError(
            f"its config says {key}={shown(value)}, which is no share of an image; write one from 0.01 to 1 there"
        )
    return float(value)


def _interpolation(value: Any) -> str | None:
    if value is None or value == "random":  # timm's, in training
        return None
    if not isinstance(value, str) or value not in INTERPOLATIONS:
        raise CheckpointError(f"its config says interpolation={shown(value)}; there are {', '.join(INTERPOLATIONS)}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
