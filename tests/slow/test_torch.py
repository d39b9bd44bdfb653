"""Whatever PyTorch has too, the package computes as PyTorch does: layers, whole models, gradients, AdamW.

Weights are pseudo-random throughout, biases, norms and running statistics included: at their initial zeros and ones
half of all mistakes would not show.
"""

import jax
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")

import torch_reference  # noqa: E402
import torch_timm  # noqa: E402
from golden_bodies import golden_body  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from stce_jax.models.bodies.block import Block  # noqa: E402
from stce_jax.models.conv_layers import ConvModule, EarlyConvModule  # noqa: E402
from stce_jax.models.embeddings.patch import PatchEmbed  # noqa: E402
from stce_jax.models.factory import create_model  # noqa: E402
from stce_jax.models.ops.activations import gelu  # noqa: E402
from stce_jax.models.ops.attention import attention_weights, dot_product_attention  # noqa: E402
from stce_jax.models.ops.positions import resize_bicubic, resize_position_embedding  # noqa: E402
from stce_jax.models.ops.supertoken import cluster_super_tokens  # noqa: E402
from stce_jax.models.tokens import Tokens  # noqa: E402

pytestmark = pytest.mark.torch

SMALL = {"width": 48, "depth": 2, "heads": 3, "mlp_dim": 96}
STAGES = {"widths": (12, 16, 24), "depths": (1, 1, 1), "heads": (1, 2, 3), "cells": ((4, 3), 2, 1), "drop_path": 0.0}
STAGES |= {"layer_scale": (0.0, 0.0, 0.5), "head_width": 40, "association_iterations": 2}
CLASSES = 10

TWO = {"mlp_ratio": 2, "drop_path": 0.0}  # of two stages
FOCAL = {**TWO, "widths": (16, 24), "depths": (1, 1), "heads": (2, 3), "window": 4, "focal_windows": (3, 5)}
FOCAL |= {"expands": (2, 1), "layer_scale": (0.0, 0.0)}
CMT = {"widths": (12, 16), "depths": (1, 1), "heads": (2, 4), "key_strides": (2, 1), "mlp_ratios": (2.0, 1.5)}
MOBILEVIT = {"width": 16, "widths": (24, 24), "token_widths": (16, 20), "depths": (1, 2), "heads": (4, 2)}
MOBILEVIT |= {"strides": (2, 2), "stem_widths": (8, 16, 16), "stem_blocks": 2, "stem_expansion": 2}
MOBILEVIT |= {"expansion": 2, "head_width": 24, "drop_path": 0.0, "dropout": 0.0, "head_dropout": 0.0}
DAT = {**TWO, "widths": (16, 32), "heads": (2, 4), "windows": (4, 4), "groups": (1, 2), "kernels": (5, 3)}
DATPP = {**DAT, "kinds": ("ND", "LD"), "strides": (2, 1), "neighbourhoods": (3, 5), "layer_scale": (0.0, 0.5)}
BODIES = {  # (name, image_size, options) of each body that has an embedding of its own
    "swin": ("swin_t", 36, {**TWO, "widths": (16, 32), "depths": (2, 2), "heads": (2, 4), "window": 4}),  # padded
    "cvt": ("cvt_13", 36, {**TWO, "widths": (12, 16, 24), "depths": (1, 1, 2), "heads": (1, 2, 3)}),
    "focal": ("focal_t", 40, FOCAL),  # padded, 3x3 and 2x2 windows
    "focal_conv": ("focal_conv_t", 40, FOCAL),
    "cmt": ("cmt_s", 32, {**CMT, "stem_widths": (8, 8, 8), "head_width": 24, "drop_path": 0.0}),
    "mobilevit": ("mobilevit_s", 40, MOBILEVIT),  # odd maps; timm rounds widths to multiples of 8
    "dat": ("dat_t", 32, {**DAT, "kinds": ("LS", "LD"), "strides": (1, 1), "offset_ranges": (2.0, 2.0)}),
    "dat-anywhere": ("dat_t", 32, {**DAT, "kinds": ("D", "D"), "strides": (1, 1), "offset_ranges": (0.0, 0.0)}),
    "datpp": ("datpp_t", 32, {**DATPP, "offset_ranges": (0.0, 0.0)}),
    "datpp-in-reach": ("datpp_t", 32, {**DATPP, "offset_ranges": (1.0, 2.0)}),
    "deit": ("deit_s", 32, {**SMALL, "drop_path": 0.0}),
    "deit-distilled": ("deit_s_distilled", 32, {**SMALL, "drop_path": 0.0}),
}


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def to_torch(images):
    """[B, H, W, C] -> PyTorch's [B, C, H, W]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).contiguous()


def from_torch(images):
    """[B, C, H, W] -> [B, H, W, C]."""
    return images.detach().permute(0, 2, 3, 1).numpy()


def random_variables(module, inputs, seed=0, **arguments):
    """Variables like those of `module.init`, but no leaf at its initial value; running variances stay positive."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), inputs, train=False, **arguments))
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        kind = path[-1].key
        values = random.normal(size=leaf.shape).astype(np.float32)
        if kind == "kernel":
            return values / np.sqrt(np.prod(leaf.shape[:-1]))  # keeps activations near unit variance
        if kind in ("scale", "var"):
            return np.exp(0.3 * values)
        return 0.2 * values

    return jax.tree_util.tree_map_with_path(draw, {key: shapes[key] for key in shapes if key != "intermediates"})


def assert_trees_close(actual, expected, tolerance, what):
    """Every leaf equal to `tolerance` times its largest value, or a hundredth of the tree's largest."""
    actual, expected = (
        {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (actual, expected))
    )
    assert actual.keys() == expected.keys(), f"{what}: JAX and PyTorch have different parameters"
    # The gradient of a bias in front of BatchNorm is but rounding: nothing is compared with less than that.
    rounding = 1e-2 * max(np.abs(value).max() for value in expected.values())
    for name, value in expected.items():
        assert actual[name].shape == value.shape, f"{what} of {name}: {actual[name].shape}, PyTorch has {value.shape}"
        limit = tolerance * max(np.abs(value).max(), rounding)
        error = np.abs(actual[name] - value).max()
        assert error <= limit, f"{what} of {name}: differs from PyTorch by {error:.2e}, more than {limit:.2e}"


def jax_logits_and_gradients(model, variables, images, labels):
    """Training mode: logits, gradients of the mean cross-entropy, and the updated batch statistics."""

    @jax.jit
    def run(variables, images, labels):
        def loss(params):
            logits, updates = model.apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), (logits, updates.get("batch_stats", {}))

        gradients, (logits, statistics) = jax.grad(loss, has_aux=True)(variables["params"])
        return logits, gradients, statistics

    return run(variables, images, labels)


def torch_logits_and_gradients(model, images, labels):
    logits = model.train()(to_torch(images))
    F.cross_entropy(logits, torch.from_numpy(labels)).backward()
    return logits.detach().numpy(), torch_reference.gradients(model)


def paired_models(name, image_size, batch, **options):
    """(linen model, its variables, the PyTorch model with the same weights, images, labels)."""
    images = normal((batch, image_size, image_size, 3), seed=1)
    labels = np.arange(batch) * 7 % CLASSES
    model = create_model(name, num_classes=CLASSES, image_size=image_size, **options)
    variables = random_variables(model, images)
    reference = torch_reference.build(name, CLASSES, image_size, **options)
    torch_reference.copy_parameters(reference, variables)
    return model, variables, reference, images, labels


@pytest.mark.parametrize(
    ("name", "image_size", "batch", "options"),
    [
        ("vit_s_patch", 64, 3, SMALL),
        ("vit_s_patch", 64, 3, {**SMALL, "pooling": "mean"}),
        ("vit_ti_patch", 224, 2, {}),  # full width and depth
        ("vit_s_conv", 64, 3, SMALL),
        ("vit_s_conv1x1", 64, 3, SMALL),
        ("vit_s_earlyconv", 64, 3, SMALL),
        ("vit_s_stce", 64, 3, SMALL),
        ("vit_s_stce", 72, 3, {**SMALL, "border": "mask", "differentiable": True, "iterations": 2}),  # 9x9, padded
        ("svit_s", 72, 3, STAGES),  # 18x18, padded
    ],
    ids=[
        "patch",
        "patch-mean",
        "patch-full-depth",
        "conv",
        "conv1x1",
        "earlyconv",
        "stce",
        "stce-other-readings",
        "svit",
    ],
)
def test_model_and_gradients_equal_pytorch(name, image_size, batch, options):
    model, variables, reference, images, labels = paired_models(name, image_size, batch, **options)

    evaluated = jax.jit(lambda variables: model.apply(variables, images, train=False))(variables)
    with torch.no_grad():
        expected = reference.eval()(to_torch(images)).numpy()
    np.testing.assert_allclose(evaluated, expected, rtol=0, atol=1e-4, err_msg=f"{name}: logits in evaluation mode")

    logits, gradients, _ = jax_logits_and_gradients(model, variables, images, labels)
    expected, expected_gradients = torch_logits_and_gradients(reference, images, labels)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4, err_msg=f"{name}: logits in training mode")
    assert_trees_close(gradients, expected_gradients, 1e-4, f"{name}: gradient")


@pytest.mark.parametrize("body", BODIES)
def test_bodies_and_their_gradients_equal_pytorch(body):
    name, image_size, options = BODIES[body]
    if name.split("_")[0] in torch_timm.FIXED:
        try:
            torch_timm.import_timm()
        except ImportError as error:
            pytest.skip(str(error))
    test_model_and_gradients_equal_pytorch(name, image_size, 3, options)


def options_of(config):
    """(name, options) of the model of a golden file's configuration."""
    if config["model"] == "cvt":
        spec = config["spec"]
        return "cvt_13", {"widths": spec["DIM_EMBED"], "depths": spec["DEPTH"], "heads": spec["NUM_HEADS"]}
    if config["model"] == "cmt":
        taken = {"embed_dims": "widths", "depths": "depths", "num_heads": "heads", "sr_ratios": "key_strides"}
        taken |= {"mlp_ratios": "mlp_ratios", "fc_dim": "head_width"}
        options = {own: config[theirs] for theirs, own in taken.items()}
        return "cmt_s", {**options, "stem_widths": (config["stem_channel"],) * 3}
    if config["model"] == "focal":
        stages = range(len(config["depths"]))
        options = {"widths": [config["embed_dim"] * 2**stage for stage in stages], "layer_scale": [0.0 for _ in stages]}
        taken = {"depths": "depths", "num_heads": "heads", "window_size": "window", "expand_sizes": "expands"}
        options |= {own: config[theirs] for theirs, own in {**taken, "focal_windows": "focal_windows"}.items()}
        return "focal_conv_t" if config.get("use_conv_embed") else "focal_t", options
    plus = config["model"] == "dat++"
    options = {
        "widths": config["dims"],
        "heads": config["heads"],
        "kinds": ["".join(letters) for letters in config["stage_spec"]],
        "windows": config["window_sizes"],
        "groups": [max(count, 1) for count in config["groups"]],
        "strides": [max(stride, 1) for stride in config["strides"]],
        "offset_ranges": [max(float(reach), 0.0) for reach in config["offset_range_factor"]],
    }
    if plus:
        options |= {"kernels": config["ksizes"]}
        options |= {"layer_scale": [max(value, 0.0) for value in config["layer_scale_values"]]}
    return "datpp_t" if plus else "dat_t", options


@pytest.mark.parametrize(
    "file",
    [
        "cvt_img36x44",
        "cmt_img32",
        "cmt_img64",
        "focal_img32_w4",
        "focal_img64_w4_convembed",
        "dat_v1_img64",
        "datpp_img64",
    ],
)
def test_pytorchs_bodies_equal_the_golden_numbers_of_their_published_codes(file):
    arrays, config, weights = golden_body(file)
    name, options = options_of(config)
    image_size = arrays["x"].shape[1:3]
    model = torch_reference.build(name, config["num_classes"], image_size, drop_path=0.0, **options).double().eval()
    weights = {name: torch.from_numpy(array) for name, array in weights.items()}
    own = model.state_dict()
    weights = {name: array.reshape(own[name].shape) for name, array in weights.items()}  # one has an axis of 1 in front
    missing, _ = model.load_state_dict(weights, strict=False)
    assert all(name.endswith("num_batches_tracked") for name in missing)

    # Twice: of one image the gradient of PyTorch 2.13's BatchNorm on CPUs is wrong where its layout is another's.
    images, cotangent = (np.concatenate(2 * [arrays[key].astype(np.float64)]) for key in ("x", "cot"))
    inputs = to_torch(images).requires_grad_()
    logits = model(inputs)
    (logits * torch.from_numpy(cotangent)).sum().backward()
    batch = len(arrays["x"])
    np.testing.assert_allclose(logits[:batch].detach(), arrays["logits"], rtol=0, atol=1e-7, err_msg="logits")
    found = {"x": from_torch(inputs.grad)[:batch]}
    found |= {name: tensor.grad.numpy() / 2 for name, tensor in model.named_parameters()}
    for key, expected in arrays.items():
        if key.startswith("grad/"):
            actual = found[key.removeprefix("grad/")].reshape(expected.shape)
            limit = 1e-6 * np.abs(expected).max()
            np.testing.assert_allclose(actual, expected, rtol=0, atol=limit, err_msg=key)


def test_a_model_that_pytorch_does_not_have_is_refused_in_one_line():
    for name, options in (("swin_t_stce", {}), ("cvt_13", {"projection": "average"}), ("cmt_s", {"drop_path": 0.1})):
        with pytest.raises(NotImplementedError) as error:
            torch_reference.build(name, CLASSES, 64, **{"drop_path": 0.0, **options})
        assert "the PyTorch reference" in str(error.value) and "\n" not in str(error.value)


def test_a_swin_of_fewer_places_than_a_window_is_refused_before_timm_shortens_its_tables():
    with pytest.raises(NotImplementedError, match="stage 3 is 4x4, windows are 7; take larger images"):
        torch_timm._swin(None, CLASSES, (64, 64), torch_reference.model_options("swin_t"))


def test_the_class_token_alone_has_the_same_logits_and_gradients():
    _, variables, reference, images, labels = paired_models("vit_s_patch", 64, 3, **SMALL)
    spared = torch_reference.build("vit_s_patch", CLASSES, 64, class_token_alone=True, **SMALL)
    torch_reference.copy_parameters(spared, variables)
    (logits, gradients), (expected, expected_gradients) = (
        torch_logits_and_gradients(model, images, labels) for model in (spared, reference)
    )
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    assert_trees_close(gradients, expected_gradients, 1e-4, "gradient")


def encoder_layer_sharing(block, options):
    """PyTorch's own transformer block over the very parameters of a block of the reference."""
    layer = torch.nn.TransformerEncoderLayer(
        options["width"],
        options["heads"],
        options["mlp_dim"],
        dropout=0.0,
        activation="gelu",
        layer_norm_eps=1e-6,
        batch_first=True,
        norm_first=True,
    )
    layer.norm1, layer.norm2 = block.attention_norm, block.mlp_norm
    layer.self_attn.in_proj_weight = block.attention.qkv.weight
    layer.self_attn.in_proj_bias = block.attention.qkv.bias
    layer.self_attn.out_proj.weight = block.attention.out.weight
    layer.self_attn.out_proj.bias = block.attention.out.bias
    layer.linear1.weight, layer.linear1.bias = block.mlp["in"].weight, block.mlp["in"].bias
    layer.linear2.weight, layer.linear2.bias = block.mlp["out"].weight, block.mlp["out"].bias
    return layer


def test_blocks_equal_pytorchs_own_transformer_encoder_layer():
    model, variables, reference, images, labels = paired_models("vit_s_patch", 64, 3, **SMALL)
    logits, gradients, _ = jax_logits_and_gradients(model, variables, images, labels)

    own_blocks = reference.blocks
    reference.blocks = torch.nn.ModuleList(encoder_layer_sharing(block, SMALL) for block in own_blocks)
    expected = reference.train()(to_torch(images))
    F.cross_entropy(expected, torch.from_numpy(labels)).backward()
    reference.blocks = own_blocks  # whose parameters, being shared, hold the gradients

    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=0, atol=1e-4, err_msg="logits")
    assert_trees_close(gradients, torch_reference.gradients(reference), 1e-4, "gradient")


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_a_block_equals_pytorchs_own_at_any_scale(scale):
    """Tokens so small that LayerNorm's epsilon shows in their norm."""
    tokens = scale * normal((2, 17, SMALL["width"]))
    module = Block(SMALL["heads"], SMALL["mlp_dim"])
    reference = torch_reference.Block(SMALL["width"], SMALL["heads"], SMALL["mlp_dim"])
    variables = random_variables(module, Tokens(tokens), context=None, scales=None)
    torch_reference.copy_parameters(reference, variables)
    outputs = module.apply(variables, Tokens(tokens), None, None, False)
    expected = encoder_layer_sharing(reference, SMALL)(torch.from_numpy(tokens))
    np.testing.assert_allclose(outputs.values, expected.detach().numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (9, 7)], ids=["even", "odd"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("module_class", "reference_class"),
    [(ConvModule, torch_reference.ConvModule), (EarlyConvModule, torch_reference.EarlyConvModule)],
    ids=["ConvModule", "EarlyConvModule"],
)
def test_convolution_modules_equal_pytorchs(module_class, reference_class, stride, size):
    images = normal((4, *size, 3))
    module, reference = module_class(16, stride), reference_class(3, 16, stride)
    variables = random_variables(module, images)
    torch_reference.copy_parameters(reference, variables)

    outputs = module.apply(variables, images, train=False)
    expected = from_torch(reference.eval()(to_torch(images)))
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-5, err_msg="outputs in evaluation mode")

    outputs, updates = module.apply(variables, images, train=True, mutable=["batch_stats"])
    expected = from_torch(reference.train()(to_torch(images)))
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-5, err_msg="outputs in training mode")

    new, old = updates["batch_stats"]["norm"], variables["batch_stats"]["norm"]
    running_mean, running_var = reference.norm.running_mean.numpy(), reference.norm.running_var.numpy()
    np.testing.assert_allclose(new["mean"], running_mean, rtol=0, atol=1e-5, err_msg="running mean")
    # What the batch added to the running variance: linen keeps the biased variance, PyTorch the unbiased one.
    count = np.prod(outputs.shape[:-1])
    added, torch_added = new["var"] - 0.9 * old["var"], running_var - 0.9 * old["var"]
    np.testing.assert_allclose(
        added * count / (count - 1), torch_added, rtol=1e-5, atol=1e-6, err_msg="running variance"
    )


def test_patch_embedding_of_flat_images_equals_pytorchs():
    """LayerNorm where the variance is far smaller than the squared mean, such as a patch of clear sky."""
    colours = np.array([[2.2, 2.4, 2.6], [-2.1, -2.0, -1.8], [2.0, 2.0, 2.0]], np.float32)
    images = colours[:, None, None, :] + 0.01 * normal((3, 32, 32, 3))
    module, reference = PatchEmbed(48), torch_reference.PatchEmbed(48, 16)
    variables = random_variables(module, images)
    torch_reference.copy_parameters(reference, variables)
    expected = reference(to_torch(images)).detach().numpy()
    np.testing.assert_allclose(module.apply(variables, images, train=False), expected, rtol=0, atol=1e-3)


def test_gelu_equals_pytorchs():
    inputs = np.linspace(-8, 8, 2001, dtype=np.float32)
    expected = F.gelu(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(gelu(inputs), expected, rtol=0, atol=1e-6)


def test_attention_equals_jaxs_and_pytorchs():
    query, key, value = (2 * normal((2, 17, 3, 16), seed) for seed in range(3))  # [B, N, A, E]
    outputs, weights = dot_product_attention(query, key, value), attention_weights(query, key)
    by_jax = jax.nn.dot_product_attention(query, key, value)
    np.testing.assert_allclose(outputs, by_jax, rtol=0, atol=1e-5, err_msg="outputs against JAX's")

    query, key, value = (torch.from_numpy(x.transpose(0, 2, 1, 3)) for x in (query, key, value))  # [B, A, N, E]
    by_torch = F.scaled_dot_product_attention(query, key, value).numpy().transpose(0, 2, 1, 3)
    np.testing.assert_allclose(outputs, by_torch, rtol=0, atol=1e-5, err_msg="outputs against PyTorch's")
    by_torch = torch.softmax(query @ key.transpose(2, 3) / 16**0.5, dim=-1).numpy()
    np.testing.assert_allclose(weights, by_torch, rtol=0, atol=1e-6, err_msg="weights")


@pytest.mark.parametrize("new_grid", [(9, 12), (3, 2)], ids=["larger", "smaller"])
def test_position_embedding_is_resized_as_by_pytorch(new_grid):
    embedding = normal((1, 6, 5, 8))  # [1, rows, columns, D]
    resized = resize_position_embedding(embedding.reshape(1, 30, 8), (6, 5), new_grid)
    expected = F.interpolate(to_torch(embedding), new_grid, mode="bicubic", antialias=True)
    np.testing.assert_allclose(resized.reshape(1, *new_grid, 8), from_torch(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("new_grid", [(9, 12), (3, 2), (6, 5)], ids=["larger", "smaller", "same"])
def test_bicubic_without_antialiasing_is_pytorchs(new_grid):
    grid = normal((6, 5, 8)).astype(np.float64)
    expected = F.interpolate(to_torch(grid[None]), new_grid, mode="bicubic", align_corners=False)
    np.testing.assert_allclose(resize_bicubic(grid, new_grid), from_torch(expected)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("differentiable", [False, True], ids=["constant-affinity", "differentiable"])
@pytest.mark.parametrize("border", ["zero", "mask"])
@pytest.mark.parametrize(
    ("size", "cell", "iterations"),
    [((8, 8), 2, 1), ((8, 8), 2, 3), ((7, 10), (2, 3), 3), ((3, 3), 4, 2)],
    ids=["once", "thrice", "padded", "one-cell"],
)
def test_clustering_equals_pytorchs(size, cell, iterations, border, differentiable):
    features = normal((2, *size, 16))
    options = {"border": border, "differentiable": differentiable}
    reference_features = to_torch(features).requires_grad_()
    expected, expected_affinity = torch_reference.cluster_super_tokens(reference_features, cell, iterations, **options)
    weights = normal(from_torch(expected).shape, seed=1)  # makes the scalar that is differentiated
    (expected * to_torch(weights)).sum().backward()

    @jax.jit
    def run(features):
        def scalar(features):
            tokens, affinity = cluster_super_tokens(features, cell, iterations, **options)
            return (tokens * weights).sum(), (tokens, affinity)

        return jax.grad(scalar, has_aux=True)(features)

    gradient, (tokens, affinity) = run(features)
    np.testing.assert_allclose(tokens, from_torch(expected), rtol=0, atol=1e-5, err_msg="super tokens")
    np.testing.assert_allclose(affinity, expected_affinity.detach().numpy(), rtol=0, atol=1e-5, err_msg="affinities")
    np.testing.assert_allclose(gradient, from_torch(reference_features.grad), rtol=0, atol=1e-5, err_msg="gradient")


def test_adamw_equals_pytorchs():
    optim = pytest.importorskip("stce_jax.recipe.optimizers")
    steps = 20
    schedule = optax.cosine_decay_schedule(1e-3, steps, alpha=0.1)
    _, variables, reference, images, labels = paired_models("vit_s_stce", 32, 2, **SMALL)

    layers = [module for module in reference.modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)]
    kernels = [layer.weight for layer in layers]
    others = [leaf for leaf in reference.parameters() if all(leaf is not kernel for kernel in kernels)]
    groups = [{"params": kernels, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    torch_optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    optimizer = optim.make_optimizer(schedule, weight_decay=0.05, beta1=0.9, beta2=0.999, epsilon=1e-8, clip_norm=0.0)

    @jax.jit
    def update(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params, state = variables["params"], optimizer.init(variables["params"])
    for step in range(steps):
        # PyTorch's gradients go to both: what is compared is the optimizer alone.
        torch_optimizer.zero_grad()
        _, gradients = torch_logits_and_gradients(reference, images, labels)
        params, state = update(params, state, gradients)
        for group in torch_optimizer.param_groups:
            group["lr"] = float(schedule(step))
        torch_optimizer.step()

    for (path, leaf), expected in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(torch_reference.parameters(reference)), strict=True
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        np.testing.assert_allclose(leaf, expected, rtol=0, atol=1e-6, err_msg=f"{name} after {steps} steps of AdamW")
