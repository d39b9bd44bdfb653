"""Golden files of whole models by their authors' code: weights in PyTorch's names, images, logits, gradients.

Arrays: "w/NAME" weights as float16, "x" images [B, H, W, 3], "logits", "cot" a cotangent, "grad/NAME" gradients of
sum(logits * cot), "act/NAME" what a module gave in the original layout.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from golden_files import assert_close, golden

# Errors relative to max(1, max|reference|): of float64, of what is kept as float32, of float32.
LOGITS, STORED, SINGLE = 1e-10, 1e-6, 1e-4


def golden_body(name):
    """(arrays, configuration, {PyTorch's name: float64 array of weights}) of a file such as "swin_img32_w4"."""
    arrays = golden("bodies", name)
    weights = {key.removeprefix("w/"): array.astype(np.float64) for key, array in arrays.items() if key[:2] == "w/"}
    return arrays, json.loads(str(arrays["config_json"])), weights


def check_body(arrays, model, variables, dtype, gradients=None, logits=LOGITS, activations=None):
    """Compares logits, the gradient of the images and those of some parameters with a golden file.

    Args:
      arrays: of `golden_body`.
      model: a body.
      variables: {"params": tree, "batch_stats": tree} of float64 arrays.
      dtype: of the computation, float64 or float32.
      gradients: {path in the parameters, such as "embedding/projection/kernel": the expected gradient}.
      logits: tolerance of the logits in float64.
      activations: {path of a submodule, such as "blocks_0": what its call gives}; compared in float64 alone.
    """
    single, gradients, activations = dtype == np.float32, gradients or {}, activations or {}
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        own = jax.tree.map(lambda array: jnp.asarray(array, dtype), variables)
        rest = {kind: tree for kind, tree in own.items() if kind != "params"}
        images, cotangent = (jnp.asarray(arrays[key], dtype) for key in ("x", "cot"))

        @jax.jit
        def run(params, images):
            def loss(params, images):
                found, state = model.apply(
                    {"params": params, **rest}, images, train=False, capture_intermediates=True, mutable="intermediates"
                )
                kept = flat(state["intermediates"])
                return (found * cotangent).sum(), (found, {path: kept[f"{path}/__call__"][0] for path in activations})

            return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, images)

        (_, (found, captured)), (dparams, dimages) = run(own["params"], images)
    assert found.dtype == dtype
    assert_close(found, arrays["logits"], SINGLE if single else logits, "logits")
    tolerance = SINGLE if single else max(STORED, logits)
    assert_close(dimages, arrays["grad/x"], tolerance, "gradient of the images")
    found_gradients = flat(dparams)
    for path, expected in gradients.items():
        assert_close(found_gradients[path], expected, tolerance, f"gradient of {path}")
    for path, expected in activations.items():
        actual = np.asarray(captured[path].values if hasattr(captured[path], "values") else captured[path])
        assert_close(actual.reshape(expected.shape), expected, tolerance, path)


def flat(tree, prefix=""):
    """{"a/b": leaf} of nested dicts."""
    found = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def count_parameters(model, image_size):
    """Parameters of a body, without making any."""
    images = jnp.zeros((1, image_size, image_size, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
