"""What a model's arithmetic and memory traffic allow at best, and how near the program comes to it.

    python benchmarks/roofline.py                                    measured and predicted, on this machine
    python benchmarks/roofline.py --device gpu --dtype bfloat16 --batch 128 --attention fused
    python benchmarks/roofline.py --dtype bfloat16 --batch 128 --peak 790e12 --bandwidth 3.0e12    an H100, on paper

Operations are counted by hand, see `roofline_model`. The two ceilings are what a big matrix product and a big copy
reach in the same dtype, measured in the same rounds as the models; or given. Time is the process's CPU time on a CPU,
where it does not matter what else runs, and by the wall clock on a GPU.
"""

import argparse
import functools
import json

import documents
import jax
import jax.numpy as jnp
import numpy as np
import optax
from embedding_cost import passes
from measure import interleave, machine, markdown_table, median_estimate
from roofline_model import CLASSES, embedding_work, model_work, part_rows, predicted_seconds

from stce_jax.analysis.costs import count_parameters
from stce_jax.models.factory import create_model, list_models, model_options
from stce_jax.recipe.optimizers import make_optimizer

MODELS = ["vit_s_patch", "vit_s_conv", "vit_s_stce"]


def ceilings(dtype):
    """What a big product and a big copy run, and what they count: dict name -> (function, FLOPs or bytes).

    The copy writes over its own memory: on a CPU fresh memory costs page faults, which are no limit of the hardware.
    """
    small = jax.default_backend() == "cpu"
    side, numbers = (1024, 2**26) if small else (8192, 2**29)
    matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
    vector = jnp.zeros(numbers, dtype)
    multiply, add = jax.jit(jnp.dot), jax.jit(lambda x: x + 1, donate_argnums=0)

    def copy():
        nonlocal vector
        vector = add(vector)
        return vector

    return {
        "peak": (functools.partial(multiply, matrix, matrix), 2 * side**3),
        "bandwidth": (copy, 2 * vector.nbytes),
    }


def training_step(model, variables, images):
    """A step of AdamW on one batch, as a function without arguments; the state is not kept."""
    optimizer = make_optimizer(1e-3, weight_decay=0.05, beta1=0.9, beta2=0.999, epsilon=1e-8, clip_norm=0.0)
    labels = jnp.zeros(len(images), jnp.int32)

    def loss(params, rest):
        logits, rest = model.apply({"params": params, **rest}, images, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), rest

    @jax.jit
    def step(params, rest, state):
        gradients, rest = jax.grad(loss, has_aux=True)(params, rest)
        norm = optax.tree.norm(gradients)
        changes, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, changes), rest, state, norm

    params = variables["params"]
    rest = {"batch_stats": variables["batch_stats"]} if "batch_stats" in variables else {}
    return functools.partial(step, params, rest, jax.jit(optimizer.init)(params))


def measured_rows(options, names):
    """Runs models and their embeddings in turn with the two ceilings: (rows, ceilings by name, work by subject)."""
    size = jnp.dtype(options.dtype).itemsize
    images = jax.random.normal(jax.random.key(0), (options.batch, options.image_size, options.image_size, 3))
    tops = ceilings(jnp.dtype(options.dtype))
    functions, work = {name: function for name, (function, _) in tops.items()}, {}
    for name in names:
        model = create_model(name, num_classes=CLASSES, image_size=options.image_size, dtype=options.dtype)
        variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(1), images[:1])
        own = {kind: collection["embedding"] for kind, collection in variables.items()}
        embedding = passes(model.embedding.clone(parent=None), own, images.astype(options.dtype))
        functions[name, "inference", "model"] = passes(model, variables, images)["inference"]
        functions[name, "training", "model"] = training_step(model, variables, images)
        counted = {"batch": options.batch, "size": size}
        for mode in ("inference", "training"):
            training = mode == "training"
            functions[name, mode, "embedding"] = embedding[mode]
            work[name, mode, "embedding"], _ = embedding_work(
                name, model_options(name), image=(options.image_size,) * 2, training=training, **counted
            )
            work[name, mode, "model"] = model_work(
                name,
                image_size=options.image_size,
                training=training,
                fused=options.attention == "fused",
                parameters=count_parameters(variables["params"]),
                **counted,
            )
    seconds = interleave(functions, options.rounds)
    clock = "cpu" if jax.default_backend() == "cpu" else "wall"  # a shared processor counts only what is ours
    times = {key: getattr(value, clock) for key, value in seconds.items()}
    by_round = {name: [count / time for time in times[name]] for name, (_, count) in tops.items()}
    rows = []
    for (name, mode, what), own in work.items():
        predicted = [predicted_seconds(own, *tops) for tops in zip(*by_round.values(), strict=True)]
        rows.append(
            {
                "model": name,
                "mode": mode,
                "what": what,
                "GFLOP an image": f"{sum(one.flops for one in own) / options.batch / 1e9:.2f}",
                "MB an image": f"{sum(one.bytes for one in own) / options.batch / 1e6:.0f}",
                "predicted, ms": f"{1e3 * np.median(predicted):.1f}",
                "measured, ms": f"{1e3 * np.median(times[name, mode, what]):.1f}",
                "measured / predicted": f"{np.median(np.divide(times[name, mode, what], predicted)):.2f}",
            }
        )
    return rows, {name: median_estimate(values) for name, values in by_round.items()}, work


def estimate_rows(options, names):
    """Images a second that the ceilings given allow, on paper, and ratios of them."""
    size, speeds, rows = jnp.dtype(options.dtype).itemsize, {}, []
    variants = [(name, name, {}) for name in names] + [("vit_s_stce, T=1", "vit_s_stce", {"iterations": 1})]
    for label, name, overrides in variants:
        row = {"model": label}
        model = create_model(name, num_classes=CLASSES, image_size=options.image_size, **overrides)
        image = jax.ShapeDtypeStruct((1, options.image_size, options.image_size, 3), jnp.float32)
        shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)
        for mode in ("inference", "training"):
            for attention in ("separate", "fused"):
                work = model_work(
                    name,
                    batch=options.batch,
                    image_size=options.image_size,
                    size=size,
                    training=mode == "training",
                    fused=attention == "fused",
                    parameters=count_parameters(shapes["params"]),
                    **overrides,
                )
                speed = options.batch / predicted_seconds(work, options.peak, options.bandwidth)
                speeds[label, mode, attention] = speed
                row[f"{mode}, attention {attention}"] = f"{speed:,.0f}"
        rows.append(row)
    for one, other in (("vit_s_stce", "vit_s_patch"), ("vit_s_stce", "vit_s_stce, T=1")):
        if all((each, "training", "fused") in speeds for each in (one, other)):
            columns = [(mode, form) for mode in ("inference", "training") for form in ("separate", "fused")]
            ratios = {
                f"{mode}, attention {form}": f"{speeds[one, mode, form] / speeds[other, mode, form]:.3f}"
                for mode, form in columns
            }
            rows.append({"model": f"{one} / {other}", **ratios})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=list_models())
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image_size", type=int, default=224, help="side in pixels")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--attention", choices=("separate", "fused"), default="separate", help="as it is counted")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--peak", type=float, metavar="FLOP/S", help="with --bandwidth: an estimate; nothing runs")
    parser.add_argument("--bandwidth", type=float, metavar="BYTES/S")
    parser.add_argument("--json", metavar="PATH", help="also write the rows there")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/performance.md")
    options = parser.parse_args()
    if (options.peak is None) != (options.bandwidth is None):
        parser.error("--peak and --bandwidth go together")
    if options.device != "auto":
        jax.config.update("jax_platforms", {"cpu": "cpu", "gpu": "cuda"}[options.device])
    shown = f"batch {options.batch}, {options.image_size} pixels, {options.dtype}"
    if options.peak:
        peak, bandwidth, section = options.peak, options.bandwidth, "roofline on paper"
        rows = estimate_rows(options, options.models)
        where = f"On paper, {shown}; images/s at best, at {peak / 1e12:.0f} TFLOP/s and {bandwidth / 1e12:.1f} TB/s:"
        text = f"{where}\n\n{markdown_table(rows)}\n"
    else:
        rows, tops, work = measured_rows(options, options.models)
        peak, bandwidth, section = tops["peak"].value, tops["bandwidth"].value, "roofline"
        where = f"{machine()}; {shown}; {options.rounds} rounds; attention counted {options.attention}."
        where += f" Ceilings: {peak / 1e9:,.1f} GFLOP/s, {bandwidth / 1e9:,.1f} GB/s."
        text = f"{where}\n\n{markdown_table(rows)}\n"
        name = options.models[-1]
        parts = markdown_table(part_rows(work[name, "training", "model"], options.batch, peak, bandwidth))
        text += f"\nA training step of `{name}` by part, an image, and shares of the predicted time:\n\n{parts}\n"
    print(text)
    if options.write:
        documents.write_section(section, text)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"where": where, "peak": peak, "bandwidth": bandwidth, "rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
