"""The final comparison of docs/recipe.md: `modern` beside `small_folder` as shipped, on the test images.

stce reproduce recipe_test --scale=small --data_dir=DIR --workdir=runs/recipe_test        class folders at 32 pixels

All are trained on all training images. Both of a pair, with super tokens, patches or a convolution stem, train for the
same time: the epochs of `modern` follow from `_recipe_times`. The pair with super tokens decides. `first_round` is what
`modern` was when it was looked at first. `medium_128` has other rows: `modern_vit_s` at 128 pixels on an accelerator,
20 and 80 epochs, beside the records of fastai's Imagenette.
"""

from collections.abc import Iterator

from ml_collections import config_dict

from .. import digits, modern, modern_vit_s, small_folder
from . import _recipe_steps, _recipe_times, recipe, scales

VARIANTS = ("smoke", "small", "medium", "medium_128")
RECORDS = {20: 91.57, 80: 93.55}  # epochs -> top-1, github.com/fastai/imagenette, of its own 3,925 images
EPOCHS = {"smoke": 1.0, "small": 10.0, "medium": 5.0}  # of the base: six to eight minutes on two cores at small


def get_config(scale: str = "small") -> config_dict.ConfigDict:
    """`small_folder` as shipped, but for its length."""
    return _accelerator() if scale == "medium_128" else _base(scale, "stce")


def sweep(scale: str = "small") -> Iterator[scales.Row]:
    if scale == "medium_128":
        for epochs, record in RECORDS.items():
            overrides = {"epochs": float(epochs), "eval_every": float(epochs)}
            row = scales.row(f"modern_{epochs}", f"modern, ViT-S, {epochs} epochs", overrides, top1=record)
            yield row | {"decides": True}
        return
    for embedding, ending in (("stce", ""), ("patch", "_patch"), ("conv", "_conv")):
        words = f", {embedding}" if ending else ""
        whole, base, own = get_config(scale), _base(scale, embedding), _modern(scale, embedding)
        decides = {"decides": not ending}
        yield scales.row(f"base{ending}", f"small_folder as shipped{words}", _differences(whole, base)) | decides
        time = _recipe_times.ratio(scale, f"modern{ending}", ()) / _recipe_times.ratio(scale, f"base{ending}", ())
        # A command line may not set options of embeddings that the model does not have.
        others = tuple(f"model.embedding.{name}." for name in own.model.embedding if name != embedding)
        overrides = {key: value for key, value in _differences(whole, own).items() if not key.startswith(others)}
        overrides |= {"epochs": round(EPOCHS[scale] / time, 2)}
        ema = own.optimizer.ema_decay > 0 or own.optimizer.get("ema_share", 0.0) > 0
        yield scales.row(f"modern{ending}", f"modern{words}", overrides, (f"base{ending}",)) | decides | {"ema": ema}
    if "first_round" in _recipe_times.MS[scale]:
        overrides = recipe.overrides_of(_recipe_steps.FIRST[scale], scale) | {"plan": "class_folders"}
        overrides |= {"epochs": round(EPOCHS[scale] / _recipe_times.ratio(scale, "first_round", ()), 2)}
        yield scales.row("first_round", "what the first round gave", overrides, ("base",))


def _accelerator() -> config_dict.ConfigDict:
    """`modern_vit_s` at 128 pixels for few epochs, with four times the tokens of its stack: 16x16."""
    config = modern_vit_s.get_config()
    config.image_size = 128
    config.eval_batch_size = 400
    config.keep_checkpoints = 1
    config.augment.eval_crop_fraction = 1.0
    config.augment.crop_area = (0.35, 1.0)  # fastai's for runs of this length
    # What the search found to lose in short runs.
    config.augment.three_augment = False
    config.augment.color_jitter = 0.0
    config.augment.mixup = 0.0
    config.augment.cutmix = 0.0
    config.model.embedding.stce.stem_strides = (2, 1, 2, 1, 1, 1)
    return config


def _base(scale: str, embedding: str) -> config_dict.ConfigDict:
    config = (digits if scale == "smoke" else small_folder).get_config(embedding)
    config.image_size = 64 if scale == "medium" else 32
    config.epochs = EPOCHS[scale]
    config.eval_every = EPOCHS[scale]
    config.keep_checkpoints = 1
    if scale == "smoke":
        config.optimizer.warmup_epochs = 0.2
    return config


def _modern(scale: str, embedding: str) -> config_dict.ConfigDict:
    """`modern` with what the base of this comparison has of the data, the image size and the evaluations."""
    base, config = _base(scale, embedding), modern.get_config(embedding)
    for key in ("dataset", "image_size", "eval_every", "keep_checkpoints", "eval_batch_size"):
        config[key] = base[key]
    if scale == "smoke":
        config.optimizer.warmup_epochs = base.optimizer.warmup_epochs
    return config


def _differences(base: config_dict.ConfigDict, own: config_dict.ConfigDict, prefix: str = "") -> scales.Options:
    """{key: value of `own`} where two configs differ."""
    found: scales.Options = {}
    for key in base:
        before, after = base[key], own[key]
        if isinstance(before, config_dict.ConfigDict):
            found |= _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found[f"{prefix}{key}"] = after
    return found
