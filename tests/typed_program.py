"""A user's program over the whole of `stce_jax`'s surface, for mypy alone (tests/test_types.py): what it says of types.

An ignored error that is none any more is an error, too, so that a name that is not there is seen.
"""

# mypy: warn-unused-ignores, disallow-untyped-defs

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, assert_type

import jax
import numpy as np
from PIL import Image

import stce_jax
from stce_jax import augment, embeddings, errors, reductions
from stce_jax.models.bodies import Body


def train_and_use(folder: Path) -> list[str]:
    config = stce_jax.load_config("small_folder", ["--config.epochs=3"])
    config.data_dir = str(folder)
    scores = stce_jax.train(config, folder / "run", allow_config_change=True)
    assert_type(scores, dict[str, float])
    assert_type(stce_jax.train("digits", "runs/digits"), dict[str, float])
    assert_type(stce_jax.evaluate(folder / "run", "best", split="val"), dict[str, Any])
    assert_type(stce_jax.predict([folder, "more"], folder / "run"), Iterator[dict[str, Any]])
    assert_type(stce_jax.features(folder, "run", kind="tokens"), dict[str, np.ndarray])
    stce_jax.features(folder)  # type: ignore[call-arg]
    run = stce_jax.load_run(folder / "run", 100, ema=True)
    assert_type(run, stce_jax.Run)
    assert_type(run.class_names, tuple[str, ...])
    encoded, pixels = b"", np.zeros((4, 4, 3), np.uint8)
    for image in (
        "one.png",
        folder,
        encoded,
        bytearray(encoded),
        pixels,
        jax.numpy.asarray(pixels),
        Image.new("L", (1, 1)),
    ):
        np.stack([run.preprocess(image)])
    run.preprocess(3)  # type: ignore[arg-type]
    run.preproces("one.png")  # type: ignore[attr-defined]
    return [name.upper() for name in run.class_names]


def build(key: jax.Array) -> stce_jax.Tokens:
    assert_type(stce_jax.list_models("vit_*"), list[str])
    model = stce_jax.create_model("vit_s_stce", num_classes=10, iterations=1)
    assert_type(model, Body)
    stce_jax.create_model("vit_s_stce")  # type: ignore[call-arg]
    weights = stce_jax.load_weights("deit_small")
    assert_type(weights.model, Body)
    tokens, affinity = stce_jax.cluster_super_tokens(jax.numpy.ones((1, 8, 8, 3)), cell=2)
    assert_type(affinity.shape, tuple[int, ...])
    assert_type(stce_jax.SuperTokenConvEmbed(width=8).grid(32, 32), tuple[int, int])
    assert_type(embeddings.PatchEmbed(width=8).grid(32, 32), tuple[int, int])
    reductions.ToMe()
    return stce_jax.Tokens(tokens)


def loop(config: Any, step: Callable[[np.ndarray, np.ndarray], float]) -> list[float]:
    dataset = stce_jax.open_dataset(config)
    assert_type(dataset, stce_jax.Dataset)
    with stce_jax.train_batches(config, dataset, step=3) as batches:
        losses = [step(batch["image"], batch["label"]) for batch in batches]
    with stce_jax.eval_batches(config, dataset, "val") as batches:
        for batch in batches:
            assert_type(batch, dict[str, np.ndarray])
            augment.normalize(batch["image"], mean=dataset.mean, std=dataset.std)
    stce_jax.build_augment(config, dataset)
    try:
        stce_jax.load_exported("exported").preprocess(b"")
    except errors.StceError as error:
        assert_type(error.exit_code, int)
    stce_jax.creat_model()  # type: ignore[attr-defined]
    return losses
