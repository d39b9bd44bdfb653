"""What the super-token embedding costs: by iterations T (Table 8 of the paper), and beside the other embeddings.

    python benchmarks/embedding_cost.py --json embedding_cost.json

Times ViT-S at 224 pixels, in inference and in a training step without its optimizer (forward and backward pass): with
the super-token embedding for T = 1 to 4, with the patch embedding and with the convolution stem, and each embedding
alone. One more iteration changes a step by less than a shared machine's clock repeats. So changes are ratios of process
CPU time within a round, and beside them stands a direct measurement: what the clustering alone takes longer than at
T = 1, as a share of the whole model's time.
"""

import argparse
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from measure import interleave, machine, markdown_table, median_estimate

from stce_jax.models.factory import create_model
from stce_jax.models.ops.supertoken import cluster_super_tokens

IMAGE_SIZE = 224
CLASSES = 100
FEATURES = (28, 28, 64)  # what the clustering of vit_s_stce works on, H, W, C
CELL = 2
DEFAULT_ITERATIONS = 3
ITERATIONS = (1, 2, 3, 4)
EMBEDDINGS = ("patch", "conv", "stce")
MODES = ("inference", "training")


def passes(module, variables, images):
    """How to run a linen module on images: dict mode -> function without arguments.

    Training is the forward and backward pass with respect to the parameters, for a loss linear in the outputs.
    """
    infer = jax.jit(lambda variables, images: module.apply(variables, images, train=False))
    direction = jax.random.normal(jax.random.key(2), jax.eval_shape(infer, variables, images).shape)

    def loss(params, variables, images):
        tracked = {**variables, "params": params}
        outputs, updates = module.apply(tracked, images, train=True, mutable=["batch_stats"])
        return jnp.vdot(outputs, direction), updates

    train = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return {
        "inference": functools.partial(infer, variables, images),
        "training": functools.partial(train, variables["params"], variables, images),
    }


def clustering_passes(features, iterations):
    """As `passes`, for the clustering alone on features [B, H, W, C]."""

    def cluster(features):
        return cluster_super_tokens(features, CELL, iterations)[0]

    infer = jax.jit(cluster)
    direction = jax.random.normal(jax.random.key(2), jax.eval_shape(infer, features).shape)
    train = jax.jit(jax.value_and_grad(lambda features: jnp.vdot(cluster(features), direction)))
    return {"inference": functools.partial(infer, features), "training": functools.partial(train, features)}


def subjects(batch):
    """All that is timed: dict (what, which, mode) -> function, where what is "model", "embedding" or "clustering"."""
    image_key, feature_key, init_key = jax.random.split(jax.random.key(0), 3)
    images = jax.random.normal(image_key, (batch, IMAGE_SIZE, IMAGE_SIZE, 3))
    features = jax.random.normal(feature_key, (batch, *FEATURES))
    functions = {}

    def add(what, which, by_mode):
        functions.update({(what, which, mode): function for mode, function in by_mode.items()})

    for name in EMBEDDINGS:
        model = create_model(f"vit_s_{name}", num_classes=CLASSES, image_size=IMAGE_SIZE)
        variables = jax.jit(functools.partial(model.init, train=False))(init_key, images)
        own = {kind: collection["embedding"] for kind, collection in variables.items()}
        add("embedding", name, passes(model.embedding.clone(parent=None), own, images))
        if name != "stce":
            add("model", name, passes(model, variables, images))
            continue
        for iterations in ITERATIONS:
            model = create_model("vit_s_stce", num_classes=CLASSES, image_size=IMAGE_SIZE, iterations=iterations)
            add("model", iterations, passes(model, variables, images))
            add("clustering", iterations, clustering_passes(features, iterations))
    return functions


def iteration_rows(seconds, batch):
    """One row a mode and T: throughput, its change from T = 1, and the direct measurement of that change."""
    rows = []
    for mode in MODES:
        base_model, base_clustering = seconds["model", 1, mode].cpu, seconds["clustering", 1, mode].cpu
        for iterations in ITERATIONS:
            model, clustering = seconds["model", iterations, mode], seconds["clustering", iterations, mode]
            by_round = list(zip(model.cpu, base_model, clustering.cpu, base_clustering, strict=True))
            rows.append(
                {
                    "mode": mode,
                    "T": iterations,
                    "images/s": round(batch / np.median(model.wall).item(), 2),
                    "images/CPU s": round(batch / np.median(model.cpu).item(), 2),
                    "change from T=1": median_estimate(base / own - 1 for own, base, _, _ in by_round),
                    "clustering alone, CPU ms": round(1e3 * np.median(clustering.cpu).item(), 2),
                    "its share of the model": median_estimate(alone / own for own, _, alone, _ in by_round),
                    "direct change from T=1": median_estimate(
                        base / (base + alone - base_alone) - 1 for _, base, alone, base_alone in by_round
                    ),
                }
            )
    return rows


def embedding_rows(seconds, batch):
    """One row a mode and embedding: the model's throughput, and the embedding's share of its time."""
    rows = []
    for mode in MODES:
        for name in EMBEDDINGS:
            model = seconds["model", DEFAULT_ITERATIONS if name == "stce" else name, mode]
            embedding = seconds["embedding", name, mode]
            rows.append(
                {
                    "mode": mode,
                    "embedding": name,
                    "images/s": round(batch / np.median(model.wall).item(), 2),
                    "model, CPU ms": round(1e3 * np.median(model.cpu).item(), 1),
                    "embedding, CPU ms": round(1e3 * np.median(embedding.cpu).item(), 1),
                    "share, CPU": median_estimate(a / b for a, b in zip(embedding.cpu, model.cpu, strict=True)),
                    "share, wall": median_estimate(a / b for a, b in zip(embedding.wall, model.wall, strict=True)),
                }
            )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="images at once")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", metavar="PATH", help="also write the rows there; estimates as [median, margin]")
    arguments = parser.parse_args()

    print(f"{machine()}; batch {arguments.batch}, {arguments.rounds} rounds", flush=True)
    seconds = interleave(subjects(arguments.batch), arguments.rounds)
    by_iterations = iteration_rows(seconds, arguments.batch)
    by_embedding = embedding_rows(seconds, arguments.batch)
    print(f"\nvit_s_stce by iterations T of the clustering:\n\n{markdown_table(by_iterations)}")
    print(f"\nThe embedding in ViT-S (stce with T={DEFAULT_ITERATIONS}):\n\n{markdown_table(by_embedding)}")
    if arguments.json:
        contents = {"machine": machine(), "iterations": by_iterations, "embeddings": by_embedding}
        with open(arguments.json, "w") as file:
            json.dump({**contents, "batch": arguments.batch, "rounds": arguments.rounds}, file, indent=2)


if __name__ == "__main__":
    main()
