"""What the golden files of DAT and DAT++ have beside those of other bodies."""

import jax
import jax.numpy as jnp
import numpy as np
from golden_files import assert_close, last


def paths_of(model):
    """{the authors' name of a module: path here}."""
    paths, done = {"patch_proj": "embedding_norm"}, 0
    for stage, kinds in enumerate(model.kinds):
        for index in range(len(kinds)):
            paths[f"stages.{stage}.attns.{index}"] = f"blocks_{done}/attention"
            paths[f"stages.{stage}"] = f"blocks_{done}"  # its last block's
            done += 1
    return paths


def activations(arrays, model):
    """{path: what the golden file has of its module}."""
    paths = paths_of(model)
    return {paths[key[4:]]: last(array) for key, array in arrays.items() if key.startswith("act/")}


def check_positions(arrays, model, variables):
    """Compares the places of samples in float64."""
    paths = paths_of(model)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        variables = jax.tree.map(jnp.asarray, variables)

        @jax.jit
        def run(variables, images):
            return model.apply(variables, images, train=False, mutable="intermediates")[1]["intermediates"]

        sown = run(variables, jnp.asarray(arrays["x"], jnp.float64))
    compared = 0
    for key, expected in arrays.items():
        if key.startswith("pos/"):
            name, part = paths[key.removeprefix("pos/")].split("/")
            assert_close(np.asarray(sown[name][part]["positions"][0]), expected, 1e-12, key)
            compared += 1
    assert compared
