"""Golden files of whole models by their authors' code: weights in PyTorch's names, images, logits, gradients.

Arrays: "w/NAME" weights as float16, "x" images [B, H, W, 3], "logits", "cot" a cotangent, "grad/NAME" gradients of
sum(logits * cot), "act/NAME" what a module gave in the original layout.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from golden_files import assert_close, golden

from stce_jax.convert import layouts
from stce_jax.models.factory import create_model
from stce_jax.workdir.weights import unflatten

# Errors relative to max(1, max|reference|): of float64, of what is kept as float32.
LOGITS, STORED = 1e-10, 1e-6
# file: (its layout, what its config.json would say).
FILES = {
    "vit_timm_tiny": ("timm_vit", {"model_args": {"num_heads": 3}}),
    "deit_distilled_tiny": ("timm_vit", {"model_args": {"num_heads": 3}}),
    "swin_img32_w4": ("swin", {}),
    "swin_img64_w4_shift": ("swin", {}),
    "swin_timm_pad_img44x36_w4": ("timm_swin", {}),
    "swin_timm_pad_img44x52_w4": ("timm_swin", {}),
    "cvt_img32": ("cvt", {"heads": [1, 2, 3]}),
    "cvt_img36x44": ("cvt", {"heads": [1, 1, 2]}),
    "focal_img32_w4": ("focal", {}),
    "focal_img64_w4_convembed": ("focal", {}),
    "cmt_img32": ("cmt", {}),
    "cmt_img64": ("cmt", {}),
    "mobilevit_img48x80_interp": ("mobilevit", {}),
    "mobilevit_img64": ("mobilevit", {}),
    "dat_v1_img64": (
        "dat",
        {"kinds": ["LS", "L", "LD", "D"], "strides": [1, 1, 1, 1], "offset_ranges": [2.0, 2.0, 2.0, 2.0]},
    ),
    "datpp_img64": (
        "datpp",
        {"kinds": ["D", "D", "LD", "D"], "strides": [4, 2, 2, 1], "offset_ranges": [0.0, 0.0, 0.0, 0.0]},
    ),
}


def golden_body(name):
    """(arrays, configuration, {PyTorch's name: float64 array of weights}) of a file such as "swin_img32_w4"."""
    arrays = golden("bodies", name)
    weights = {key.removeprefix("w/"): array.astype(np.float64) for key, array in arrays.items() if key[:2] == "w/"}
    return arrays, json.loads(str(arrays["config_json"])), weights


def golden_model(name, dtype=np.float64):
    """(arrays, model, variables, gradients) of a file of `FILES`, by its layout.

    The gradients are those of parameters that the file has, {path such as "embedding/projection/kernel": array}.
    """
    arrays, _, weights = golden_body(name)
    layout, config = FILES[name]
    options = layouts.options_of(layout, weights, config)
    found, left = layouts.to_ours(layout, weights, options)
    assert not left, "names without a place"
    gradients = {}
    for rule in layouts.LAYOUTS[layout].rules(options):
        if all(f"grad/{theirs}" in arrays for theirs in rule.theirs):
            gradients[rule.ours.removeprefix("params/")] = rule.read([arrays[f"grad/{name}"] for name in rule.theirs])
    model = create_model(
        layouts.LAYOUTS[layout].PRESET,
        num_classes=arrays["logits"].shape[-1],
        image_size=arrays["x"].shape[1:3],
        drop_path=0.0,
        **options,
    )
    model = model.clone(dtype=dtype, embedding=model.embedding.clone(dtype=dtype))
    return arrays, model, unflatten(found), gradients


def check_body(arrays, model, variables, gradients, activations):
    """Compares logits, the gradient of the images, those of parameters and activations with a golden file in float64.

    Args:
      arrays, model, variables, gradients: of `golden_model`.
      activations: {path of a submodule, such as "blocks_0": what its call gives}.
    """
    assert gradients and activations
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        own = jax.tree.map(lambda array: np.asarray(array, np.float64), variables)
        rest = {kind: tree for kind, tree in own.items() if kind != "params"}
        images, cotangent = (np.asarray(arrays[key], np.float64) for key in ("x", "cot"))

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
    assert found.dtype == np.float64
    assert_close(found, arrays["logits"], LOGITS, "logits")
    assert_close(dimages, arrays["grad/x"], STORED, "gradient of the images")
    found_gradients = flat(dparams)
    for path, expected in gradients.items():
        assert_close(found_gradients[path], expected, STORED, f"gradient of {path}")
    for path, expected in activations.items():
        actual = np.asarray(captured[path].values if hasattr(captured[path], "values") else captured[path])
        assert_close(actual.reshape(expected.shape), expected, STORED, path)


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
