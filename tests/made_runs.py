"""Runs that were never trained: any model with weights of noise, in place of a training of its own."""

import functools

import jax
import numpy as np

from stce_jax.configs import default
from stce_jax.data import decode
from stce_jax.recipe import augment
from stce_jax.training import assemble as runs
from stce_jax.training.state import abstract_variables
from stce_jax.workdir import parts

TINY_VIT = {"width": 24, "depth": 2, "heads": 3, "mlp_dim": 40}
MEAN, STD = (0.4, 0.5, 0.45), (0.2, 0.25, 0.3)  # nobody's defaults


def made_run(name, *, image_size=32, classes=5, crop_fraction=0.8, class_names=None, config_values=None, **options):
    """A `Run` of a preset, step 7.

    Args:
      name: a preset, such as "deit_ti".
      image_size, classes: of the model.
      crop_fraction: of the evaluation's view.
      class_names: for people; None: those of the ids.
      config_values: {key: value} of the config.
      **options: of the model; body, embedding and reduction are names of modules.
    """
    config = default.get_config().unlock()
    config.image_size, config.augment.eval_crop_fraction, config.dataset = image_size, crop_fraction, "digits"
    config.model.name = name
    for part in parts.TABLES:
        if part in options:
            config.model[part].name = options.pop(part)
    for key, value in options.items():
        section, _, last = f"model.{parts.place(key, config.model)}".rpartition(".")
        functools.reduce(lambda tree, word: tree[word], section.split("."), config)[last] = value
    for key, value in (config_values or {}).items():
        config[key] = value
    model = runs.build_model(config, classes)
    rng = np.random.default_rng(0)

    def drawn(path, leaf):
        centre = float(path[-1].key in ("scale", "var"))
        noise = rng.uniform(-0.3, 0.3, leaf.shape)
        return (centre + noise).astype(leaf.dtype)

    variables = jax.tree_util.tree_map_with_path(drawn, abstract_variables(model, image_size))
    ids = tuple(f"n{number:08}" for number in range(classes))
    return runs.Run(
        config=config.lock(),
        model=model,
        variables=variables,
        class_ids=ids,
        class_names=tuple(class_names or ids),
        preprocess=lambda image: np.asarray(
            augment.normalize(decode.read_view(image, size=image_size, fraction=crop_fraction), mean=MEAN, std=STD)
        ),
        mean=MEAN,
        std=STD,
        step=7,
        epoch=1.5,
    )


def logits_of(run, pixels):
    """What a run's model gives for uint8 pixels."""
    images = ((pixels / 255 - np.array(run.mean)) / np.array(run.std)).astype(np.float32)
    return np.asarray(jax.jit(functools.partial(run.model.apply, train=False))(run.variables, images))


def random_pixels(count, size, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)
