"""Mixup and CutMix on the device, and the targets that they mix.

Shape letters: B batch, H W image height and width.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


def soft_targets(labels: Int[Array, "B"], num_classes: int, *, smoothing: float) -> Float[Array, "B classes"]:
    """1 - smoothing on the label, `smoothing` (0..1) spread evenly over all classes."""
    return jax.nn.one_hot(labels, num_classes) * (1.0 - smoothing) + smoothing / num_classes


def soft_label_sets(labels: Int[Array, "B classes"], *, smoothing: float) -> Float[Array, "B classes"]:
    """Targets of images with several labels, 0 or 1 for each class, moved by `smoothing` (0..1) towards 1/2.

    Each class is a choice of two, over which its smoothing is spread.
    """
    return labels * (1.0 - smoothing) + 0.5 * smoothing


def mix(
    key: PRNGKeyArray,
    images: Float[Array, "B H W 3"],
    targets: Float[Array, "B classes"],
    *,
    mixup: float,
    cutmix: float,
    switch_probability: float,
) -> tuple[Float[Array, "B H W 3"], Float[Array, "B classes"]]:
    """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) of a batch with itself in reverse order, as in DeiT.

    The image of place i is mixed with that of place B - 1 - i, its neighbour, see `place_in_batch`. One lambda for a
    batch; CutMix's is corrected to the area that its box keeps within the image.

    Args:
      key: of this batch.
      images, targets: to be mixed.
      mixup, cutmix: alpha of the Beta(alpha, alpha) that lambda is drawn from; 0 switches that one off.
      switch_probability: probability of CutMix where both are on, 0..1.

    Returns:
      (images, targets), mixed; unchanged if both are off.
    """
    if not mixup and not cutmix:
        return images, targets
    switch_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 4)
    other_images, other_targets = _partners(images), _partners(targets)
    _, height, width, _ = images.shape
    keep = jax.random.beta(mixup_key, mixup, mixup) if mixup else 1.0
    blend = keep
    inside: Bool[Array, "H W 1"] | bool = False
    if cutmix:
        box = cutmix_box(box_key, jax.random.beta(cutmix_key, cutmix, cutmix), height, width)  # [H, W, 1]
        use_cutmix = jax.random.bernoulli(switch_key, switch_probability) if mixup else True
        inside = box & use_cutmix
        keep = jnp.where(use_cutmix, 1.0 - box.mean(), keep)
        blend = jnp.where(use_cutmix, 1.0, blend)  # CutMix blends nothing outside its box
    images = jnp.where(inside, other_images, blend * images + (1.0 - blend) * other_images)
    return images, keep * targets + (1.0 - keep) * other_targets


def place_in_batch(row: Any, batch: int) -> Any:
    """Which image of a batch, counted in the order of the stream, stands in a row: 0, B - 1, 1, B - 2, ...

    Those that are mixed are neighbours, so that a device which holds an even number of rows has both, and no image
    travels. The order is the same for any number of devices.

    Args:
      row: a whole number or an array of them, 0..batch - 1.
      batch: images of the global batch, B.
    """
    odd = row % 2
    return odd * (batch - 1) + (1 - 2 * odd) * (row // 2)


def _partners(rows: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """Each pair of neighbouring rows the other way round; the last of an odd number stays."""
    paired = len(rows) // 2 * 2
    turned = rows[:paired].reshape(-1, 2, *rows.shape[1:])[:, ::-1].reshape(paired, *rows.shape[1:])
    return turned if paired == len(rows) else jnp.concatenate([turned, rows[paired:]])


def cutmix_box(key: PRNGKeyArray, keep: Float[Array, ""], height: int, width: int) -> Bool[Array, "H W 1"]:
    """CutMix's box: sides sqrt(1 - keep) of the image's, centred anywhere, cut at the border."""
    row_key, column_key = jax.random.split(key)
    side = jnp.sqrt(1.0 - keep)

    def inside(key: PRNGKeyArray, length: int) -> Bool[Array, "length"]:
        center = jax.random.randint(key, (), 0, length)
        half = (length * side).astype(jnp.int32) // 2
        positions = jnp.arange(length)
        return (positions >= center - half) & (positions < center + half)

    return (inside(row_key, height)[:, None] & inside(column_key, width)[None, :])[:, :, None]
