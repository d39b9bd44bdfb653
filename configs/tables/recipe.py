"""The search for a recipe for small data: one change at a time from `small_folder`, then the good ones together.

docs/recipe.md has the protocol, which was there before the runs. Every row trains for the same time: its epochs are the
base's, times the base's time for an image over its own (`_recipe_times`, measured in turn). Choices are made on a part
of the training images; no row of this table sees a test image.

stce reproduce recipe --scale=small --data_dir=DIR --workdir=runs/recipe        class folders at 32 pixels
stce reproduce recipe --scale=medium --data_dir=DIR --workdir=runs/recipe_64    the same at 64 pixels
stce reproduce recipe --scale=smoke --seeds=0 --workdir=runs/smoke              minutes

Rows that decide come first, with all seeds: the base, fourteen ingredients, ten more on top of what these gave (the
second round), and the steps of the forward selections. `benchmarks/recipe_steps.py` adds to `_recipe_steps` what the
first round gave, and one step after the other.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ml_collections import config_dict

from .. import digits, small_folder
from . import _recipe_steps, _recipe_times, scales

VARIANTS = ("smoke", "small", "medium")
HOLDOUT = 0.2  # of each class's training images: a standard error of about a point at 2,000 images
EPOCHS = {"smoke": 1.0, "small": 6.0, "medium": 3.0}  # of the base: three to four minutes on two cores at small
BASE = "base"
_VIT, _STCE = "model.body.vit", "model.embedding.stce"


class Ingredient(NamedTuple):
    """A change to the base.

    Attributes:
      label: in the report.
      families: of these at most one ingredient can be in a recipe.
      overrides: {key of the config: value}, or a function of the scale that gives it.
      decides: whether it is among the deciding rows of the first round.
      ema: whether the weights' average is evaluated.
    """

    label: str
    families: tuple[str, ...]
    overrides: Any
    decides: bool = False
    ema: bool = False


def _sizes(scale: str) -> scales.Options:
    """Three image sizes for equal shares of the epochs, up to the row's own; all are multiples of the tokens' cells."""
    side = get_config(scale).image_size
    return {"progressive_sizes": (side // 2, side * 3 // 4, side)}


def _last_share(share: float) -> Any:
    """Mixing, switched off for a share of the base's epochs at the end."""
    return lambda scale: MIXING | {"augment.mixing_off_epochs": share * EPOCHS[scale]}


def _times(key: str, factor: float) -> Any:
    """A number of the base times a factor."""

    def overrides(scale: str) -> scales.Options:
        section, _, name = key.partition(".")
        return {key: get_config(scale)[section][name] * factor}

    return overrides


MIXING = {"augment.mixup": 0.8, "augment.cutmix": 1.0}  # DeiT's
LIGHT = {"augment.mixup": 0.2, "augment.cutmix": 0.2}  # Beta(0.2, 0.2): most images stay almost whole
# A tenth of the rate, ten times the decay: within the ranges of Lion's authors.
LION = {"optimizer.name": "lion", "optimizer.learning_rate": 1e-4, "optimizer.weight_decay": 0.5}
LION |= {"optimizer.beta2": 0.99}
SCHEDULE_FREE = {"optimizer.name": "schedule_free_adamw", "optimizer.schedule": "constant"}
# In the order in which they are trained and, of equal gains, taken.
INGREDIENTS: dict[str, Ingredient] = {
    "muon": Ingredient("Muon", ("optimizer",), {"optimizer.name": "muon"}, True),
    "rope_axial": Ingredient("RoPE, axial", ("positions",), {f"{_VIT}.position_embedding": "rope_axial"}, True),
    "mean_pooling": Ingredient("mean pooling", ("pooling",), {f"{_VIT}.pooling": "mean"}, True),
    "conv": Ingredient("convolution stem", ("embedding",), {"model.name": "vit_ti_conv"}, True),
    "light_mixing": Ingredient("mixup 0.2, CutMix 0.2", ("mixing",), LIGHT, True),
    "three_augment": Ingredient("3-Augment", ("policy",), {"augment.three_augment": True}, True),
    "schedule_free": Ingredient("schedule-free AdamW", ("optimizer", "schedule", "average"), SCHEDULE_FREE, True),
    "progressive": Ingredient("progressive resizing", ("sizes",), _sizes, True),
    "swiglu": Ingredient("SwiGLU", ("mlp",), {f"{_VIT}.mlp": "swiglu"}, True),
    "patch_dropout": Ingredient("patch dropout 0.25", ("tokens",), {f"{_VIT}.patch_dropout": 0.25}, True),
    # Candidates since version 2 of the protocol.
    "batch_50": Ingredient("batches of 50", ("batch",), {"batch_size": 50}, True),
    "batch_25": Ingredient("batches of 25", ("batch",), {"batch_size": 25}, True),
    "light_crop": Ingredient("crops of 70% or more", ("crop",), {"augment.crop_area": (0.7, 1.0)}, True),
    "rate_double": Ingredient("twice the learning rate", ("rate",), _times("optimizer.learning_rate", 2.0), True),
    # Candidates of the second round, since version 3.
    "warmup_quarter": Ingredient("warm-up of 0.25 epochs", ("warmup",), {"optimizer.warmup_epochs": 0.25}),
    "clip": Ingredient("gradients clipped to 1", ("clip",), {"optimizer.clip_norm": 1.0}),
    "no_smoothing": Ingredient("no label smoothing", ("smoothing",), {"augment.label_smoothing": 0.0}),
    "rate_quadruple": Ingredient("four times the rate", ("rate",), _times("optimizer.learning_rate", 4.0)),
    "decay_quadruple": Ingredient("four times the weight decay", ("decay",), _times("optimizer.weight_decay", 4.0)),
    "patch_dropout_half": Ingredient("patch dropout 0.5", ("tokens",), {f"{_VIT}.patch_dropout": 0.5}),
    "one_iteration": Ingredient("one round of clustering", ("iterations",), {f"{_STCE}.iterations": 1}),
    "linear": Ingredient("linear schedule", ("schedule",), {"optimizer.schedule": "linear"}),
    "wsd": Ingredient("warm-up, stable, decay", ("schedule",), {"optimizer.schedule": "wsd"}),
    "rate_half": Ingredient("half the learning rate", ("rate",), _times("optimizer.learning_rate", 0.5)),
    "decay_double": Ingredient("twice the weight decay", ("decay",), _times("optimizer.weight_decay", 2.0)),
    "mixing": Ingredient("mixup 0.8, CutMix 1.0", ("mixing",), MIXING),
    "mixing_off": Ingredient("the same, off for the last 20%", ("mixing",), _last_share(0.2)),
    "rand_augment": Ingredient("RandAugment", ("policy",), {"augment.rand_augment": "rand-m9-mstd0.5-inc1"}),
    "repeated": Ingredient("repeated augmentation", ("repeats",), {"augment.repeats": 3}),
    "ema": Ingredient("moving average of weights", ("average",), {"optimizer.ema_share": 0.1}, ema=True),
    "sincos2d": Ingredient("sin-cos positions", ("positions",), {f"{_VIT}.position_embedding": "sincos2d"}),
    "rope_mixed": Ingredient("RoPE, mixed", ("positions",), {f"{_VIT}.position_embedding": "rope_mixed"}),
    "registers": Ingredient("four registers", ("registers",), {f"{_VIT}.registers": 4}),
    "layer_scale": Ingredient("LayerScale 1e-4", ("layer_scale",), {f"{_VIT}.layer_scale": 1e-4}),
    "rmsnorm": Ingredient("RMSNorm", ("norm",), {f"{_VIT}.norm": "rmsnorm"}),
    "qk_norm": Ingredient("QK-norm", ("qk_norm",), {f"{_VIT}.qk_norm": True}),
    "lion": Ingredient("Lion", ("optimizer",), LION),
    "sam": Ingredient("SAM 0.05", ("sam",), {"optimizer.sam_rho": 0.05}),
    "patch": Ingredient("patches", ("embedding",), {"model.name": "vit_ti_patch"}),
    "average_pooling": Ingredient("average pooling for clustering", ("embedding",), {f"{_STCE}.iterations": 0}),
    "large_cells": Ingredient("cells of 4x4, a quarter of the tokens", ("embedding",), {f"{_STCE}.cell": (4, 4)}),
}
# On top of the recipe of the first round, where they replace what is of their family.
SECOND = (
    *("rate_double", "rate_quadruple", "warmup_quarter", "clip", "decay_quadruple"),
    *("no_smoothing", "batch_25", "patch_dropout_half", "one_iteration", "sincos2d"),
)


def get_config(scale: str = "small") -> config_dict.ConfigDict:
    """The base: `small_folder` as shipped, but for its length, the evaluations and the part that is held out."""
    if scale == "smoke":
        config = digits.get_config()
        body = config.model.body.vit
        body.width, body.depth, body.mlp_dim = 32, 2, 64
        config.model.embedding.conv.stem_widths = (8, 16, 32)
        config.optimizer.warmup_epochs = 0.2
    else:
        config = small_folder.get_config()
        config.image_size = 64 if scale == "medium" else 32
    config.holdout = HOLDOUT
    config.epochs = EPOCHS[scale]
    config.eval_every = EPOCHS[scale] / 2  # an evaluation takes a tenth of an epoch
    config.keep_checkpoints = 1
    return config


def sweep(scale: str = "small") -> Iterator[scales.Row]:
    yield scales.row(BASE, "base", {}) | {"decides": True}
    for decides in (True, False):
        for name, ingredient in INGREDIENTS.items():
            if ingredient.decides is decides and (name != "large_cells" or scale == "medium"):
                yield recipe_row(name, (name,), scale) | {"decides": decides}
        if decides:
            first = _recipe_steps.FIRST[scale]
            for name in SECOND if first else ():
                row = recipe_row(f"second_{name}", added(first, name), scale)
                against = (row_of(first, scale),)
                yield row | {"label": f"+ {INGREDIENTS[name].label}", "decides": True, "against": against}
            for number, parts in enumerate(_recipe_steps.STEPS[scale], 1):
                yield recipe_row(f"step_{number}", parts, scale) | {"decides": True}


def added(parts: Sequence[str], name: str) -> tuple[str, ...]:
    """A recipe with another ingredient, in place of those of its family."""
    families = set(INGREDIENTS[name].families)
    return (*(part for part in parts if not families & set(INGREDIENTS[part].families)), name)


def row_of(parts: tuple[str, ...], scale: str) -> str:
    """Name of the row of a recipe that comes from a selection; "" if there is none."""
    if len(parts) == 1:
        return parts[0]
    numbers = {step: number for number, step in enumerate(_recipe_steps.STEPS[scale], 1)}
    return f"step_{numbers[parts]}" if parts in numbers else ""


def overrides_of(parts: Sequence[str], scale: str) -> scales.Options:
    """What several ingredients set."""
    found: scales.Options = {}
    for part in parts:
        own = INGREDIENTS[part].overrides
        found |= own(scale) if callable(own) else own
    return found


def recipe_row(run: str, parts: Sequence[str], scale: str) -> scales.Row:
    """The base with several ingredients, trained for as long as the base.

    Args:
      run: name of the row.
      parts: names of ingredients, of no family more than one.
      scale: one of VARIANTS.
    """
    found = overrides_of(parts, scale)
    own_time = _recipe_times.ratio(scale, run, parts)
    label = " + ".join(INGREDIENTS[part].label for part in parts)
    row = scales.row(run, label, found | {"epochs": round(EPOCHS[scale] / own_time, 2)}, (BASE,))
    return row | {"ema": any(INGREDIENTS[part].ema for part in parts)}
