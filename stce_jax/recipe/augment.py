"""On the device, inside the jitted step: everything that is done to a batch between the loader and the model.

Every random function takes its key first and its options by keyword. `make_augment` puts them together so that an
image's draws depend on the seed and its position in the stream alone (position = step x batch + row), part by part,
and the batch's mixing on the seed and the step: the same under any sharding. Operations that draw nothing are in
`pixels`, RandAugment is in `rand_augment`; both can be had from here, too.

Shape letters: B batch, H W image height and width.
"""

import functools
import math

import jax
import jax.numpy as jnp

from stce_jax.errors import check_pair, check_range
from stce_jax.recipe import pixels
from stce_jax.recipe.pixels import (  # noqa: F401
    affine,
    autocontrast,
    brightness,
    color,
    contrast,
    equalize,
    gaussian_blur,
    grayscale,
    invert,
    posterize,
    rotate,
    sharpness,
    shear_x,
    shear_y,
    solarize,
    solarize_add,
    translate_x,
    translate_y,
)
from stce_jax.recipe.rand_augment import parse_policy, rand_augment


def normalize(images, *, mean, std):
    """uint8 [B, H, W, 3] in 0..255 -> float32, scaled to 0..1, minus `mean` and divided by `std` channel by channel."""
    scale = 1.0 / (255.0 * jnp.asarray(std, jnp.float32))
    return images.astype(jnp.float32) * scale - jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)


def random_flip(key, image, *, probability):
    """Mirrors an image [H, W, 3] left to right with the given probability, 0..1."""
    return jnp.where(jax.random.bernoulli(key, probability), image[:, ::-1], image)


def random_shift(key, image, *, pixels):
    """Moves an image [H, W, 3] by up to `pixels` >= 0 in both directions; the edge is repeated into the gap."""
    height, width, _ = image.shape
    padded = jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), mode="edge")
    top, left = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), (height, width, 3))


def three_augment(key, image):
    """One of grayscale, solarize at 128 and blur by 0.1 to 2 pixels, equally likely, of an image uint8 [H, W, 3].

    DeiT III's (Touvron et al. 2022), in place of RandAugment.
    """
    choice_key, radius_key = jax.random.split(key)
    choice = jax.random.randint(choice_key, (), 0, 3)
    blurred = pixels.gaussian_blur(image, radius=jax.random.uniform(radius_key, minval=0.1, maxval=2.0))
    solarized = pixels.solarize(image, threshold=128)
    return jnp.where(choice == 0, pixels.grayscale(image), jnp.where(choice == 1, solarized, blurred))


def color_jitter(key, image, *, strength):
    """Changes brightness, contrast and colour of an image uint8 [H, W, 3], in random order.

    Each by a factor of its own, uniform over 1 - strength (but at least 0) to 1 + strength; strength >= 0. As
    torchvision's ColorJitter without hue on Pillow images.
    """
    order_key, factor_key = jax.random.split(key)
    order = jax.random.permutation(order_key, 3)
    factors = jax.random.uniform(factor_key, (3,), minval=max(0.0, 1.0 - strength), maxval=1.0 + strength)

    def change(place, image):
        which = order[place]
        tinted = jnp.where(which == 1, pixels.mean_luma(image).astype(jnp.int32), pixels.luma(image)[:, :, None])
        return pixels.blend(jnp.where(which == 0, 0, tinted), image, factor=factors[which])

    return jax.lax.fori_loop(0, 3, change, image)


def random_erasing(key, image, *, probability, area, ratio):
    """With the given probability, fills one box of an image with noise (Zhong et al. 2020, as timm's "pixel" mode).

    Args:
      key: PRNG key.
      image: float [H, W, 3], normalised: the noise is drawn from N(0, 1), value by value.
      probability: 0..1.
      area, ratio: least and most of the box's area, a share of the image's (0..1), and of its height over its width.

    Returns:
      float [H, W, 3].
    """
    height, width, _ = image.shape
    apply_key, box_key, noise_key = jax.random.split(key, 3)
    top, left, box_height, box_width = erasing_box(box_key, height, width, area=area, ratio=ratio)
    rows, columns = jnp.arange(height)[:, None] - top, jnp.arange(width) - left
    inside = (rows >= 0) & (rows < box_height) & (columns >= 0) & (columns < box_width)  # [H, W]
    inside &= jax.random.bernoulli(apply_key, probability)
    # Noise for the largest box there can be, its sides rounded up, not for the whole image: drawing it is what costs.
    largest = area[1] * height * width
    sides = max(math.sqrt(each) + 1 / math.sqrt(each) for each in ratio) * math.sqrt(largest)
    count = min(math.ceil(largest + sides / 2 + 1), height * width)
    # In a loop of two halves: compilers fuse what is in no loop, and would draw it anew for each use of the image.
    noise = jax.lax.map(lambda key: jax.random.normal(key, (-(-count // 2), 3)), jax.random.split(noise_key))
    entries = jnp.where(inside, rows * box_width + columns, 0)
    return jnp.where(inside[:, :, None], noise.reshape(-1, 3)[entries].astype(image.dtype), image)


def erasing_box(key, height, width, *, area, ratio):
    """Random erasing's box in an image of that height and width: int32 top, left, its height and its width.

    The first of ten draws, share uniform over `area` (0..1) and log of height over width uniform over `ratio` (above
    0), that is smaller than the image in both directions; an empty box if none is.
    """
    area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
    areas = height * width * jax.random.uniform(area_key, (10,), minval=area[0], maxval=area[1])
    low, high = (math.log(each) for each in ratio)
    ratios = jnp.exp(jax.random.uniform(ratio_key, (10,), minval=low, maxval=high))
    heights, widths = (jnp.round(jnp.sqrt(each)).astype(jnp.int32) for each in (areas * ratios, areas / ratios))
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits)
    box_height, box_width = (jnp.where(fits[first], sides[first], 0) for sides in (heights, widths))
    top = jax.random.randint(top_key, (), 0, height - box_height + 1)
    left = jax.random.randint(left_key, (), 0, width - box_width + 1)
    return top, left, box_height, box_width


def soft_targets(labels, num_classes, *, smoothing):
    """int [B] -> float32 [B, classes]: 1 - smoothing on the label, smoothing (0..1) spread evenly over all classes."""
    return jax.nn.one_hot(labels, num_classes) * (1.0 - smoothing) + smoothing / num_classes


def mix(key, images, targets, *, mixup, cutmix, switch_probability):
    """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) of a batch with itself in reverse order, as in DeiT.

    One lambda a batch; CutMix's is corrected to the area its box keeps within the image.

    Args:
      key: PRNG key.
      images: float [B, H, W, 3].
      targets: float [B, classes].
      mixup, cutmix: alpha of the Beta(alpha, alpha) that lambda is drawn from; 0 switches that one off.
      switch_probability: probability of CutMix where both are on, 0..1.

    Returns:
      (images, targets), mixed; unchanged if both are off.
    """
    if not mixup and not cutmix:
        return images, targets
    switch_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 4)
    other_images, other_targets = images[::-1], targets[::-1]
    _, height, width, _ = images.shape
    keep = jax.random.beta(mixup_key, mixup, mixup) if mixup else 1.0
    blend, inside = keep, False
    if cutmix:
        box = cutmix_box(box_key, jax.random.beta(cutmix_key, cutmix, cutmix), height, width)  # [H, W, 1]
        use_cutmix = jax.random.bernoulli(switch_key, switch_probability) if mixup else True
        inside = box & use_cutmix
        keep = jnp.where(use_cutmix, 1.0 - box.mean(), keep)
        blend = jnp.where(use_cutmix, 1.0, blend)  # CutMix blends nothing outside its box
    images = jnp.where(inside, other_images, blend * images + (1.0 - blend) * other_images)
    return images, keep * targets + (1.0 - keep) * other_targets


def cutmix_box(key, keep, height, width):
    """CutMix's box as bool [H, W, 1]: sides sqrt(1 - keep) of the image's, centred anywhere, cut at the border."""
    row_key, column_key = jax.random.split(key)
    side = jnp.sqrt(1.0 - keep)

    def inside(key, length):
        center = jax.random.randint(key, (), 0, length)
        half = (length * side).astype(jnp.int32) // 2
        positions = jnp.arange(length)
        return (positions >= center - half) & (positions < center + half)

    return (inside(row_key, height)[:, None] & inside(column_key, width)[None, :])[:, :, None]


def make_augment(
    num_classes,
    *,
    mean,
    std,
    flip,
    shift,
    rand_augment,
    three_augment,
    color_jitter,
    erase,
    erase_area,
    erase_ratio,
    mixup,
    cutmix,
    switch_probability,
    label_smoothing,
):
    """The training augmentation: (key, step, images uint8 [B, H, W, 3], labels [B]) -> (images float32, targets).

    In the order of the options. Parts that are switched off (0, False or "") cost nothing, and switching one on or off
    changes nothing in what the others draw.

    Args:
      num_classes: length of a target.
      mean, std: for each channel, of values scaled to 0..1. The mean fills what RandAugment draws in from outside.
      flip: probability of mirroring, 0..1.
      shift: most pixels that an image is moved, 0 or more.
      rand_augment: RandAugment's policy, see `parse_policy`.
      three_augment: whether to apply `three_augment`.
      color_jitter: strength of `color_jitter`, 0..1.
      erase: probability of `random_erasing`, 0..1; erase_area, erase_ratio: least and most of its box.
      mixup, cutmix, switch_probability: see `mix`.
      label_smoothing: 0..1, see `soft_targets`.

    Raises:
      ConfigError: an option is out of its range, or RandAugment's policy cannot be read.
    """
    check_range("config.augment.flip", flip, 0, 1)
    check_range("config.augment.shift", shift, 0)
    check_range("config.augment.color_jitter", color_jitter, 0, 1)
    check_range("config.augment.erase", erase, 0, 1)
    check_pair("config.augment.erase_area", erase_area, 1)
    check_pair("config.augment.erase_ratio", erase_ratio)
    check_range("config.augment.mixup", mixup, 0)
    check_range("config.augment.cutmix", cutmix, 0)
    check_range("config.augment.switch_probability", switch_probability, 0, 1)
    check_range("config.augment.label_smoothing", label_smoothing, 0, 1)
    fill = tuple(round(255 * each) for each in mean)
    of_bytes = _parts_of_bytes(flip, shift, rand_augment, three_augment, color_jitter, fill)
    erasing = (
        functools.partial(random_erasing, probability=erase, area=erase_area, ratio=erase_ratio) if erase else None
    )

    def augment(key, step, images, labels):
        image_key, batch_key = jax.random.split(key)
        batch = images.shape[0]
        positions = jnp.asarray(step).astype(jnp.uint32) * batch + jnp.arange(batch, dtype=jnp.uint32)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(image_key, positions)  # [B]
        part_keys = jax.vmap(lambda key: jax.random.split(key, len(of_bytes) + 1), out_axes=1)(keys)  # [parts, B]
        for part, function in enumerate(of_bytes):
            if function:
                images = jax.vmap(function)(part_keys[part], images)
        images = normalize(images, mean=mean, std=std)
        if erasing:
            images = jax.vmap(erasing)(part_keys[-1], images)
        return mix(
            jax.random.fold_in(batch_key, step),
            images,
            soft_targets(labels, num_classes, smoothing=label_smoothing),
            mixup=mixup,
            cutmix=cutmix,
            switch_probability=switch_probability,
        )

    return augment


def _parts_of_bytes(flip, shift, policy, three, jitter, fill):
    """The parts that work on uint8, in their order, each a function of (key, image), or None if switched off."""
    if policy:
        parse_policy(policy)  # now, not when the step is compiled
    return (
        functools.partial(random_flip, probability=flip) if flip else None,
        functools.partial(random_shift, pixels=shift) if shift else None,
        functools.partial(rand_augment, policy=policy, fill=fill) if policy else None,
        three_augment if three else None,
        functools.partial(color_jitter, strength=jitter) if jitter else None,
    )
