"""`stce show-data`: a picture of one training batch as the model sees it."""

from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stce_jax.errors import ConfigError
from stce_jax.training import assemble as runs
from stce_jax.training.step import step_keys

SMALLEST_TILE = 112  # pixels; smaller images are enlarged, or there is no room for their labels
LINE = 14  # pixels, height of a line of text
MARGIN = 4  # pixels between tiles


def show_data(config, output, *, step=0):
    """Draws the batch of one training step, cropped, augmented and mixed, to an image file.

    Args:
      config: a ConfigDict of `load_config`.
      output: the file; its suffix says the format.
      step: the training step that would use the batch; 0 is the first.

    Returns:
      The drawn targets: for each image [(class name, weight), ...], the heaviest first, without what label smoothing
      spreads over all classes.

    Raises:
      StceError: see `stce_jax.errors`.
    """
    if step < 0:
        raise ConfigError(f"there is no step {step}; the first is 0")
    dataset = runs.open_dataset(config)
    with runs.train_batches(config, dataset, step) as batches:
        batch = next(batches)
    augment_key, _ = step_keys(jax.random.key(config.seed))
    augment = jax.jit(runs.build_augment(config, dataset))
    images, targets = jax.device_get(augment(augment_key, step, batch["image"], batch["label"]))
    pixels = 255 * (images * np.array(dataset.std) + np.array(dataset.mean))  # [B, S, S, 3]
    pixels = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
    smoothing = config.augment.label_smoothing / len(dataset.class_names)
    labels = [_heaviest(target, dataset.class_names, smoothing) for target in targets]
    try:
        _grid(pixels, labels).save(Path(output))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write {output}: {error}; give another --output") from error
    return labels


def _heaviest(target, class_names, smoothing):
    """[(name, weight)] of the at most two classes that have more than label smoothing gives to all."""
    places = np.argsort(target)[::-1][:2]
    return [(class_names[place], float(target[place])) for place in places if target[place] > smoothing + 1e-3]


def _grid(pixels, labels):
    """The tiles, about twice as many beside as above one another, each with its targets below."""
    count, side, _, _ = pixels.shape
    tile = side * -(-SMALLEST_TILE // side)
    columns = min(count, round(np.sqrt(2 * count)))
    rows = -(-count // columns)
    width, height = tile + MARGIN, tile + 2 * LINE + MARGIN
    sheet = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for place, (image, names) in enumerate(zip(pixels, labels, strict=True)):
        left, top = MARGIN + place % columns * width, MARGIN + place // columns * height
        sheet.paste(Image.fromarray(image).resize((tile, tile), Image.Resampling.NEAREST), (left, top))
        for line, (name, weight) in enumerate(names):
            text = _shortened(f"{100 * weight:.0f}% {name}", font, tile)
            draw.text((left, top + tile + line * LINE), text, fill="black", font=font)
    return sheet


def _shortened(text, font, width):
    while font.getlength(text) > width:
        text = text[:-2] + "…"
    return text
