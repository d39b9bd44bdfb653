"""Runs that were never trained: any model with weights of noise, in place of a training of its own."""

import functools

import jax
import numpy as np
from ml_collections import config_dict

from stce_jax.configs import default
from stce_jax.training import assemble as runs
from stce_jax.training.preprocessing import preprocess, view_options
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
        tree = functools.reduce(lambda tree, word: tree[word], section.split("."), config)
        of_one = tree.get_type(last) is tuple and isinstance(value, int | float)  # as on the command line
        tree[last] = (value,) if of_one else value
    for key, value in (config_values or {}).items():
        config[key] = value
    return run_of(runs.build_model(config, classes), config.lock(), class_names=class_names)


def run_of(model, config=None, *, class_names=None, seed=0, interpolation=None):
    """A `Run` of a model with weights of noise, of which no part is small enough to be missed.

    Args:
      model: a body.
      config: of the run; None: what is read of one, with a crop of 0.875.
      class_names: for people; None: those of the ids.
      seed: of the noise.
      interpolation: of the evaluation's view, without a config.
    """
    size, classes = model.image_size[0], model.num_classes
    if config is None:
        view = {"eval_crop_fraction": 0.875, "eval_interpolation": interpolation}
        config = config_dict.ConfigDict(
            {"image_size": size, "task": "single_label", "augment": view, "model": {"name": "tiny"}}
        )
    rng = np.random.default_rng(seed)

    def noise(path, leaf):
        name = path[-1].key
        center, spread = {"var": (1.0, 0.1), "scale": (1.0, 0.3), "mean": (0.0, 0.1)}.get(name, (0.0, 0.15))
        drawn = center + spread * rng.standard_normal(leaf.shape)
        if name == "kernel":  # so that signals neither die nor grow
            drawn *= 6.0 * max(1, np.prod(leaf.shape[:-1])) ** -0.5
        return (np.abs(drawn) if name == "var" else drawn).astype(leaf.dtype)

    ids = tuple(f"n{number:08}" for number in range(classes))
    return runs.Run(
        config=config,
        model=model,
        variables=jax.tree_util.tree_map_with_path(noise, abstract_variables(model, size)),
        class_ids=ids,
        class_names=tuple(class_names or ids),
        preprocess=functools.partial(preprocess, mean=MEAN, std=STD, **view_options(config)),
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
