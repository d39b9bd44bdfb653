"""`stce show-data`: a picture of one training batch as the model sees it."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import config_dict
from PIL import Image

from stce_jax.analysis.drawing import pictures
from stce_jax.data.catalog import SINGLE_LABEL
from stce_jax.errors import ConfigError, check_whole
from stce_jax.training import assemble as runs
from stce_jax.training.step import step_keys

MIN_TILE = 112  # pixels; smaller images are enlarged, or there is no room for their labels


def show_data(config: config_dict.ConfigDict, output: str | Path, *, step: int = 0) -> list[list[tuple[str, float]]]:
    """Draws the batch of one training step, cropped, augmented and mixed, to an image file.

    Args:
      config: a run's config.
      output: the file; its suffix chooses the format.
      step: the training step that would use the batch; 0 is the first.

    Returns:
      The drawn targets: for each image up to two [(class name, weight), ...], the heaviest first, without what label
      smoothing gives to classes that an image does not have.

    Raises:
      StceError: see `stce_jax.errors`.
    """
    check_whole("step", step, 0, 2**31 - 1)
    dataset = runs.open_dataset(config)
    with runs.train_batches(config, dataset, step * config.batch_size) as batches:
        batch = next(batches)
    augment_key, _ = step_keys(jax.random.key(config.seed))
    augment = jax.jit(runs.build_augment(config, dataset))
    images, targets = jax.device_get(augment(augment_key, step, batch["image"], batch["label"]))
    pixels = 255 * (images * np.array(dataset.std) + np.array(dataset.mean))  # [B, S, S, 3]
    pixels = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
    smoothing = smoothed(config, len(dataset.class_names))
    labels = [_heaviest(target, dataset.class_names, smoothing) for target in targets]
    try:
        _sheet(pixels, labels, caption(config, len(dataset.class_names))).save(Path(output))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write {output}: {error}; give another --output") from error
    return labels


def caption(config: config_dict.ConfigDict, class_count: int) -> list[str]:
    """Sentences that explain the percentages below the images: smoothing, and what mixing did to a batch."""
    augment = config.augment
    shown = "the one or two classes" if config.task == SINGLE_LABEL else "the first two of its labels, those"
    sentences = [f"Below each image its target: {shown} that have more than smoothing gives to every class."]
    if smoothing := augment.label_smoothing:
        other = smoothed(config, class_count)
        sentences.append(
            f"Label smoothing {smoothing:g} gives {other:.2%} to each of the {class_count} classes; so "
            f"{1 - smoothing + other:.1%} is one class, unmixed."
        )
    else:
        sentences.append("There is no label smoothing: 100% is one class, unmixed.")
    kinds = {"mixup": "mixup blends both", "cutmix": "CutMix pastes a part of the other"}
    mixing = [f"{does} (alpha {augment[name]:g})" for name, does in kinds.items() if augment[name]]
    if mixing:
        chance = f", CutMix with probability {augment.switch_probability:g}" if len(mixing) > 1 else ""
        sentences.append(
            "Mixing goes with the batch in reverse order, the first image with the last: "
            f"{' or '.join(mixing)}{chance}. Both classes share the target as their pixels share the image."
        )
    else:
        sentences.append("No images are mixed.")
    return sentences


def smoothed(config: config_dict.ConfigDict, class_count: int) -> float:
    """What label smoothing gives to a class that an image does not have."""
    return config.augment.label_smoothing / (class_count if config.task == SINGLE_LABEL else 2)


def _heaviest(
    target: Float[np.ndarray, "classes"], class_names: Sequence[str], smoothing: float
) -> list[tuple[str, float]]:
    """[(name, weight)] of up to two classes that have more than label smoothing gives to all."""
    places = np.argsort(target)[::-1][:2]
    return [(class_names[place], float(target[place])) for place in places if target[place] > smoothing + 1e-3]


def _sheet(
    pixels: UInt8[np.ndarray, "B S S 3"], labels: Sequence[Sequence[tuple[str, float]]], footer: Sequence[str]
) -> Image.Image:
    """The images, about twice as many in a row as in a column, each with its targets below; then what they mean."""
    count, side, _, _ = pixels.shape
    scale = -(-MIN_TILE // side)
    tiles = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    captions = ["\n".join([*(f"{100 * weight:.0f}% {name}" for name, weight in names), "", ""][:2]) for names in labels]
    columns = min(count, round(np.sqrt(2 * count)))
    drawn = list(zip(tiles, captions, strict=True))
    return pictures.sheet([drawn[first : first + columns] for first in range(0, count, columns)], footer=footer)
