"""What augmenting on the device costs: each operation and part, the whole recipe, and its share of a train step.

    python benchmarks/augmentation_cost.py --json augmentation_cost.json

All of them work on the same batch of smooth made-up images with some noise, uint8 (erasing and mixing on normalised
ones), vmapped and jitted as in training, with options drawn for each image. The train step is the model's forward and
backward pass and AdamW. On a CPU a step with the whole batch takes too long to be repeated; `--step_batch` measures it
with fewer images and scales it up in proportion. On a GPU pass the whole batch: `--step_batch 128`.
"""

import argparse
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
from measure import interleave, machine, markdown_table, median_estimate

from stce_jax.models.factory import create_model
from stce_jax.recipe import augment, rand_augment

CLASSES = 100
FILL = (124, 116, 104)
POLICY = "rand-m9-mstd0.5-inc1"
ERASING = {"area": (0.02, 1 / 3), "ratio": (0.3, 3.3)}
PAPER = {  # DeiT's recipe, with the paper's mixing
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "flip": 0.5,
    "shift": 0,
    "rand_augment": POLICY,
    "three_augment": False,
    "color_jitter": 0.0,
    "erase": 0.25,
    "erase_area": ERASING["area"],
    "erase_ratio": ERASING["ratio"],
    "mixup": 1.0,
    "cutmix": 0.8,
    "switch_probability": 0.5,
    "label_smoothing": 0.1,
}
RECIPES = {
    "the paper's (DeiT)": PAPER,
    "three_augment and jitter 0.3 (DeiT III)": PAPER
    | {"rand_augment": "", "three_augment": True, "color_jitter": 0.3, "erase": 0.0},
    "flip and mix alone": PAPER | {"rand_augment": "", "erase": 0.0},
}


def made_up_images(batch, size):
    """uint8 [batch, size, size, 3]: coarse noise, enlarged smoothly, and fine noise on it."""
    coarse_key, fine_key = jax.random.split(jax.random.key(0))
    coarse = jax.image.resize(jax.random.uniform(coarse_key, (batch, 8, 8, 3)), (batch, size, size, 3), "cubic")
    fine = jax.random.normal(fine_key, coarse.shape)
    return jnp.clip(255 * coarse + 8 * fine, 0, 255).astype(jnp.uint8)


def subjects(batch, size):
    """All that is timed: dict (group, name) -> function without arguments."""
    images = made_up_images(batch, size)
    floats = augment.normalize(images, mean=PAPER["mean"], std=PAPER["std"])
    labels = jnp.arange(batch) % CLASSES
    targets = augment.soft_targets(labels, CLASSES, smoothing=0.1)
    keys = jax.random.split(jax.random.key(1), batch)
    share = jnp.linspace(0, 1, batch)
    functions = {}

    def add(group, name, function, *arguments):
        functions[group, name] = functools.partial(jax.jit(function), *arguments)

    def add_each(group, name, function, *arguments):
        add(group, name, jax.vmap(function), *arguments)

    for name in ("invert", "autocontrast", "equalize", "grayscale"):
        add_each("operation", name, getattr(augment, name), images)
    for name, option, values in (
        ("posterize", "bits", jnp.arange(batch) % 9),
        ("solarize", "threshold", 256 * share),
        ("solarize_add", "amount", 110 * share),
        ("brightness", "factor", 2 * share),
        ("contrast", "factor", 2 * share),
        ("color", "factor", 2 * share),
        ("sharpness", "factor", 2 * share),
        ("gaussian_blur", "radius", 0.1 + 1.9 * share),
    ):
        one = getattr(augment, name)
        add_each(
            "operation",
            name,
            lambda image, value, one=one, option=option: one(image, **{option: value}),
            images,
            values,
        )
    for name, option, values in (
        ("rotate", "degrees", 60 * share - 30),
        ("shear_x", "factor", 0.6 * share - 0.3),
        ("shear_y", "factor", 0.6 * share - 0.3),
        ("translate_x", "pixels", 0.9 * size * share - 0.45 * size),
        ("translate_y", "pixels", 0.9 * size * share - 0.45 * size),
    ):
        one = getattr(augment, name)
        add_each(
            "operation",
            name,
            lambda image, value, one=one, option=option: one(image, fill=FILL, **{option: value}),
            images,
            values,
        )

    policy = augment.parse_policy(POLICY)
    draws = jax.vmap(lambda key: rand_augment.draw(key, policy=policy))(keys)
    amounts = jax.vmap(
        lambda operation, magnitude, sign: rand_augment.amount(
            operation, magnitude=magnitude, sign=sign, increasing=True, height=size, width=size
        )
    )(draws.operation[:, 0], draws.magnitude[:, 0], draws.sign[:, 0])
    for name, part, options in (
        ("geometric part", rand_augment.warp, {"fill": FILL}),
        ("lookup-table part", rand_augment.recolor, {"names": rand_augment.TABLES}),
        ("blending part", rand_augment.enhance, {"names": rand_augment.ENHANCEMENTS}),
        ("all three: one operation", rand_augment.apply, {"fill": FILL}),
    ):
        add_each(
            "RandAugment",
            name,
            lambda image, operation, amount, part=part, options=options: part(
                image, operation=operation, amount=amount, **options
            ),
            images,
            draws.operation[:, 0],
            amounts,
        )
    whole = functools.partial(augment.rand_augment, policy=POLICY, fill=FILL)
    add_each("RandAugment", f"whole, {POLICY}", whole, keys, images)
    for name, chosen in (("each image by what it drew", True), ("each image by all parts", False)):

        def in_form(keys, images, chosen=chosen):
            with rand_augment.sorted_operations(chosen):
                return jax.vmap(whole)(keys, images)

        add("RandAugment", f"whole, {name}", in_form, keys, images)

    add_each("part", "flip", functools.partial(augment.random_flip, probability=0.5), keys, images)
    add_each("part", "three_augment", augment.three_augment, keys, images)
    add_each("part", "color_jitter", functools.partial(augment.color_jitter, strength=0.3), keys, images)
    add("part", "normalize", functools.partial(augment.normalize, mean=PAPER["mean"], std=PAPER["std"]), images)
    add_each(
        "part", "random_erasing", functools.partial(augment.random_erasing, probability=0.25, **ERASING), keys, floats
    )
    mix = functools.partial(augment.mix, mixup=1.0, cutmix=0.8, switch_probability=0.5)
    add("part", "mix", mix, jax.random.key(2), floats, targets)

    for name, options in RECIPES.items():
        add("recipe", name, augment.make_augment(CLASSES, **options), jax.random.key(3), 5, images, labels)
    return functions


def train_step(name, batch, size):
    """A function without arguments: loss, gradients and an AdamW update of a model for one batch."""
    model = create_model(name, num_classes=CLASSES, image_size=size)
    images = jax.random.normal(jax.random.key(0), (batch, size, size, 3))
    targets = jax.nn.one_hot(jnp.arange(batch) % CLASSES, CLASSES)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(1), images)
    optimizer = optax.adamw(1e-3, weight_decay=0.05)
    params = variables["params"]
    rest = {kind: collection for kind, collection in variables.items() if kind != "params"}
    slots = optimizer.init(params)

    @jax.jit
    def step(params, rest, slots):
        def loss(params):
            rngs = {"dropout": jax.random.key(2)}
            logits, updates = model.apply({"params": params, **rest}, images, train=True, rngs=rngs, mutable=list(rest))
            return optax.softmax_cross_entropy(logits, targets).mean(), updates

        (_, updates), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        changes, new_slots = optimizer.update(gradients, slots, params)
        return optax.apply_updates(params, changes), updates, new_slots

    return functools.partial(step, params, rest, slots)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--model", default="vit_s_stce")
    parser.add_argument("--step_batch", type=int, default=8, help="images in the train step that is measured; 0: none")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--step_rounds", type=int, default=7)
    parser.add_argument("--json")
    options = parser.parse_args()
    print(machine(), flush=True)

    seconds = interleave(subjects(options.batch, options.image_size), options.rounds)
    rows = [
        {
            "what": group,
            "name": name,
            f"ms per batch of {options.batch}": round(1e3 * np.median(each.wall).item(), 2),
            "CPU ms": round(1e3 * np.median(each.cpu).item(), 2),
        }
        for (group, name), each in seconds.items()
    ]
    print(markdown_table(rows))
    result = {"machine": machine(), "options": vars(options), "rows": rows}

    if options.step_batch:
        recipes = {
            name: subject
            for (group, name), subject in subjects(options.batch, options.image_size).items()
            if group == "recipe"
        }
        step = train_step(options.model, options.step_batch, options.image_size)
        seconds = interleave({**recipes, "step": step}, options.step_rounds)
        scale = options.batch / options.step_batch
        step_seconds = seconds.pop("step")
        shares = [
            {
                "recipe": name,
                "ms": round(1e3 * np.median(each.wall).item(), 1),
                f"step of {options.model}, ms": round(1e3 * scale * np.median(step_seconds.wall).item(), 1),
                "share by the clock": str(
                    median_estimate(
                        own / (scale * whole) for own, whole in zip(each.wall, step_seconds.wall, strict=True)
                    )
                ),
                "share of CPU time": str(
                    median_estimate(
                        own / (scale * whole) for own, whole in zip(each.cpu, step_seconds.cpu, strict=True)
                    )
                ),
            }
            for name, each in seconds.items()
        ]
        print(f"\nThe step was measured with {options.step_batch} images and scaled by {scale:g}.\n")
        print(markdown_table(shares))
        result["shares"] = shares
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
