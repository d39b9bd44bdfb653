"""On the device, inside the jitted step: normalisation, flips, shifts, mixup and CutMix, for whole batches.

Every random function takes its key first and its options by keyword. `make_augment` puts them together so that an
image's draws depend on the seed and its position in the stream alone (position = step x batch + row), and the batch's
mixing on the seed and the step: the same under any sharding.

Shape letters: B batch, H W image height and width.
"""

import jax
import jax.numpy as jnp


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


def make_augment(num_classes, *, mean, std, flip, shift, mixup, cutmix, switch_probability, label_smoothing):
    """The training augmentation: (key, step, images uint8 [B, H, W, 3], labels [B]) -> (images float32, targets).

    See the functions above for the options; `flip` is the probability, `shift` the most pixels.
    """

    def augment(key, step, images, labels):
        image_key, batch_key = jax.random.split(key)
        positions = step * images.shape[0] + jnp.arange(images.shape[0])
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(image_key, positions)  # [B]
        flip_keys, shift_keys = jax.vmap(jax.random.split, out_axes=1)(keys)  # each [B]
        if flip:
            images = jax.vmap(lambda key, image: random_flip(key, image, probability=flip))(flip_keys, images)
        if shift:
            images = jax.vmap(lambda key, image: random_shift(key, image, pixels=shift))(shift_keys, images)
        return mix(
            jax.random.fold_in(batch_key, step),
            normalize(images, mean=mean, std=std),
            soft_targets(labels, num_classes, smoothing=label_smoothing),
            mixup=mixup,
            cutmix=cutmix,
            switch_probability=switch_probability,
        )

    return augment
