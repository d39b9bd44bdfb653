"""The words of `stce import`."""

import argparse
from collections.abc import Sequence

from stce_jax.platform import terminal

HELP = "make a run of weights of timm, DeiT, Hugging Face, vision_transformer or big_vision"
EXAMPLES = """
  stce import downloads/deit_small_patch16_224 --workdir=runs/deit_s
  stce import B_16.npz --workdir=runs/augreg_b --config.image_size=384
  stce import model.safetensors --workdir=runs/own --config.model.body.deit.heads=3

in Python:
  loaded = stce_jax.load_weights("downloads/deit_small_patch16_224")
  logits = loaded.model.apply(loaded.variables, images, train=False)

Such a run is evaluated, predicted with, drawn and exported as any other; begin another with it to train on:
stce train --config=CONFIG --workdir=DIR --init_from=SOURCE, which takes the same sources."""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("source", metavar="SOURCE", help="a .safetensors or .npz file, or a folder of the hub")
    verb.add_argument("--workdir", required=True, help="directory of the run to make")
    verb.set_defaults(takes_overrides=True)
    verb.usage = "stce import SOURCE --workdir=DIR [--config.KEY=VALUE ...]"


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    from stce_jax.verbs.import_weights import import_weights

    done = import_weights(arguments.source, arguments.workdir, overrides)
    seen = f", {done['preprocessing']}" if done["preprocessing"] else ""
    terminal.say(
        done["said"],
        f"{arguments.workdir}: step 0, {done['model']}, {done['parameters']:,} parameters, {done['classes']} classes, "
        f"images of {done['image_size']} pixels{seen}",
    )
    if done["unknown"]:
        terminal.warn(
            f"note: nothing says how images were prepared; assumed: {'; '.join(done['unknown'])}: "
            "give what is wrong by --config.augment.mean, .std, .eval_interpolation, .eval_crop_fraction"
        )
