"""Every shipped module under what JAX and flax offer: derivatives, lifted transforms, named axes, settings, any input.

By shapes or lowered programs wherever they show the fault; numbers of the hand-written gradients in forward mode are
tested with the operations.
"""

import dataclasses
import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec

import stce_jax
from stce_jax.errors import ConfigError
from stce_jax.models import batch_norms, conv_layers, downsampling, layers
from stce_jax.models.bodies import BODIES
from stce_jax.models.embeddings import EMBEDDINGS
from stce_jax.models.factory import model_options, presets
from stce_jax.models.reductions import REDUCTIONS, acts_before
from stce_jax.models.tokens import Tokens

SIZE = 18  # cells and blocks of the clustering do not divide the features of the stem
TINY = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 24, "patch_size": 6, "stem_widths": (8, 16)}
TINY |= {"stem_strides": (2, 1), "cell": 2, "iterations": 2, "blocks": (1,)}
STAGES = {"widths": (16, 12), "depths": (1, 1), "heads": (2, 3), "cells": (2, 1), "layer_scale": (0.0, 0.1)}
STAGES |= {"mlp_ratio": 2, "head_width": 8, "drop_path": 0.0, "key_strides": (2, 1), "mlp_ratios": (2.0, 1.5)}
STAGES |= {"token_widths": (8, 6), "expansion": 2, "stem_blocks": 2, "stem_expansion": 2}
STAGES |= {"window": 2, "focal_windows": (3, 1), "expands": (1, 1)}
STAGES |= {"windows": (2, 2), "groups": (1, 1), "kernels": (3, 3), "strides": (1, 1), "offset_ranges": (2.0, 0.0)}
STAGES |= {"kinds": ("S", "D"), "neighbourhoods": (3, 3)}
IMAGES = jax.ShapeDtypeStruct((2, SIZE, SIZE, 3), jnp.float32)
FEATURES = jax.ShapeDtypeStruct((2, 5, 4, 3), jnp.float32)
VALUES = jax.ShapeDtypeStruct((2, 5, 16), jnp.float32)
LAYERS = {  # name -> (options, inputs)
    "LayerNorm": ({}, VALUES),
    "RMSNorm": ({}, VALUES),
    "MLP": ({"hidden": 24}, VALUES),
    "SwiGLU": ({"hidden": 24}, VALUES),
    "Attention": ({"heads": 2}, Tokens(VALUES)),
    **dict.fromkeys(("BatchNorm", "BatchNormSilu", "GeluBatchNorm"), ({}, FEATURES)),
    "ConvModule": ({"features": 6, "stride": 2}, FEATURES),
    "EarlyConvModule": ({"features": 6, "stride": 2}, FEATURES),
    "DepthwiseResidual": ({}, FEATURES),
    "DepthwiseConvolution": ({"stride": 2}, FEATURES),
    "ConvFFN": ({"hidden": 6}, FEATURES),
    "ConvMerging": ({"features": 6}, FEATURES),
    "NormedHalving": ({"features": 6}, FEATURES),
    "LayerScale": ({"initial": 0.1}, FEATURES),
    "PatchMerging": ({"features": 6}, FEATURES),
    "SuperTokenDownsample": ({"features": 6}, FEATURES),
}
KINDS = {
    name: value
    for file in (layers, batch_norms, conv_layers, downsampling)
    for name, value in vars(file).items()
    if inspect.isclass(value) and issubclass(value, nn.Module) and value.__module__ == file.__name__
}


def tiny(module, **options):
    """A module of a table with the options of `TINY` that it has."""
    known = inspect.signature(module).parameters
    return module(**{name: value for name, value in {**TINY, **options}.items() if name in known})


def model(name, **options):
    known = model_options(name, **{part: options[part] for part in ("embedding", "reduction") if part in options})
    sizes = {**TINY, **STAGES} if "widths" in known else TINY
    sizes = {**sizes, "kinds": ("N", "D")} if "neighbourhoods" in known else sizes
    options |= {key: value for key, value in sizes.items() if key in known}
    if "reduction" in options and not acts_before(REDUCTIONS[options["reduction"]]):
        options |= {"depth": 1, "blocks": (0,)}  # which is enough, and traced in half the time
    return stce_jax.create_model(name, num_classes=3, image_size=SIZE, **options)


INGREDIENTS = {"position_embedding": "rope_mixed", "registers": 2, "layer_scale": 0.1, "norm": "rmsnorm"}
INGREDIENTS |= {"qk_norm": True, "mlp": "swiglu", "patch_dropout": 0.25}
# Each entry makes the module that has some options (such as axis_name), if it has them.
MODULES = {
    **{
        f"layer {name}": (functools.partial(tiny, KINDS[name], **options), inputs)
        for name, (options, inputs) in LAYERS.items()
    },
    **{f"embedding {name}": (functools.partial(tiny, module), IMAGES) for name, module in EMBEDDINGS.items()},
    **{
        f"body {name}": (functools.partial(model, next(one for one in presets() if one.startswith(f"{name}_"))), IMAGES)
        for name in BODIES
    },
    "options of blocks": (functools.partial(model, "vit_ti_patch", depth=1, **INGREDIENTS), IMAGES),
    **{f"reduction {name}": (functools.partial(model, "vit_ti_patch", reduction=name), IMAGES) for name in REDUCTIONS},
}
# Convolution stems are all alike: the quick tier does with one.
SLOW = {
    "options of blocks",
    "embedding conv1x1",
    "embedding earlyconv",
    "layer ConvModule",
    "layer EarlyConvModule",
    "body vit",
}
SLOW |= {*(f"body {name}" for name in BODIES), "embedding hcformer"}
SLOW |= {f"embedding {name}" for name in ("cmt", "datpp", "mobilevit", "svit")}
each = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in MODULES]
)

# Tracing whole bodies of stages again and again takes minutes: these stand for the others, with windows, BatchNorm,
# strided keys, deformable and neighbourhood attention between them.
STAND_FOR_ALL = {"body vit", "body swin", "body cvt", "body datpp", "body focal"}
REST = {f"body {name}" for name in BODIES} - STAND_FOR_ALL
each_kind = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in MODULES if name not in REST],
)


def made(name, **options):
    make, inputs = MODULES[name]
    return make(**options), inputs


def words(module, train):
    """`train` by keyword, of a module that has it."""
    return {"train": train} if "train" in inspect.signature(type(module).__call__).parameters else {}


def variables_of(module, inputs):
    return jax.eval_shape(lambda key, x: module.init(key, x, **words(module, False)), jax.random.key(0), inputs)


@functools.cache
def variables(name):
    """Those of `made(name)`, which many tests want: traced once."""
    return variables_of(*made(name))


def outputs(module, variables, inputs, *positional, **keywords):
    """(the outputs' floats, what changed in training)."""
    rngs = {"dropout": jax.random.key(0)}
    return module.apply(variables, inputs, *positional, **keywords, mutable=["batch_stats"], rngs=rngs)


def sum_of(module, train=True):
    """A function (parameters, other variables, inputs) -> (a number, what `outputs` gives)."""

    def total(params, rest, inputs):
        given = outputs(module, {"params": params, **rest}, inputs, **words(module, train))
        return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves(given[0])), given

    return total


def split(variables):
    return variables["params"], {name: part for name, part in variables.items() if name != "params"}


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), tree)


def test_every_layer_is_here():
    assert KINDS.keys() == LAYERS.keys(), "list the new layer with a tiny size, and its inputs"


@each_kind
def test_forward_mode_and_strict_promotion(name):
    """jacfwd, and a Hessian-vector product by jvp of grad with a checkpoint policy; JAX promotes nothing by itself."""
    module, inputs = made(name)
    total, (params, rest) = sum_of(module), split(variables(name))
    tangent = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), params)

    def derivatives(params, rest, inputs):
        def of_params(params):
            return total(params, rest, inputs)[0]

        kept = jax.checkpoint(of_params, policy=jax.checkpoint_policies.dots_saveable)
        hessian_vector = jax.jvp(jax.grad(kept), (params,), (tangent,))[1]
        return hessian_vector, jax.jacfwd(lambda scale: of_params(jax.tree.map(scale.__mul__, params)))(jnp.float32(1))

    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(derivatives, params, rest, inputs)
        jax.eval_shape(sum_of(module, train=False), params, rest, inputs)


@each_kind
def test_lifted_by_flax(name):
    """nn.remat, nn.jit and nn.vmap, with `train` by position; `VisionTransformer` itself uses nn.scan."""
    module, inputs = made(name)
    if not words(module, True) or name == "layer Attention":  # whose context comes before
        return
    expected_variables, kind = variables(name), type(module)
    fields = {field.name for field in dataclasses.fields(module)} - {"parent", "name"}
    options = {field: getattr(module, field) for field in fields}
    expected = shapes(jax.eval_shape(lambda v, x: outputs(module, v, x, train=True), expected_variables, inputs))

    def lifted(transform, inputs):
        own = transform(**options)
        found = jax.eval_shape(lambda x: own.init(jax.random.key(0), x, False), inputs)
        assert shapes(found) == shapes(expected_variables)
        return jax.eval_shape(lambda v, x: outputs(own, v, x, True), expected_variables, inputs)

    assert shapes(lifted(nn.remat(kind, static_argnums=(2,)), inputs)) == expected
    assert shapes(lifted(nn.jit(kind, static_argnums=(2,)), inputs)) == expected
    stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((3, *leaf.shape), leaf.dtype), inputs)
    shared = {"variable_axes": {"params": None, "batch_stats": None}, "split_rngs": {"params": False, "dropout": True}}
    options |= {"axis_name": "copies"} if "axis_name" in fields else {}
    if hasattr(options.get("embedding"), "axis_name"):
        options["embedding"] = options["embedding"].clone(axis_name="copies", parent=None, name=None)
    given, new = lifted(nn.vmap(kind, in_axes=(0, None), axis_name="copies", **shared), stacked)
    assert shapes(new) == expected[1]
    assert shapes(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), given)) == expected[0]


@each
def test_a_missing_or_traced_train_is_one_line(name):
    """While variables are made it makes no difference; then it does, and flax's own modules refuse it, too."""
    module, inputs = made(name)
    plain = {f"embedding {kind}" for kind in ("patch", "linear_patch", "overlap_patch", "datpp")}
    if not words(module, True) or name in plain:  # nothing in it depends on `train`
        return
    expected = shapes(variables(name))
    assert shapes(jax.eval_shape(lambda x: module.init(jax.random.key(0), x), inputs)) == expected
    assert shapes(jax.eval_shape(lambda x, t: module.init(jax.random.key(0), x, train=t), inputs, True)) == expected
    for call, cause in (
        (lambda v, x, t: outputs(module, v, x), "by position in nn.vmap"),
        (lambda v, x, t: outputs(module, v, x, train=t), "static_argnums"),
    ):
        with pytest.raises(TypeError, match=cause) as refusal:
            jax.eval_shape(call, variables(name), inputs, True)
        assert "\n" not in str(refusal.value)


@each
def test_an_empty_batch(name):
    module, inputs = made(name)
    none = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((0, *leaf.shape[1:]), leaf.dtype), inputs)
    assert shapes(variables_of(module, none)) == shapes(variables(name))
    of_training = jax.grad(sum_of(module), has_aux=True)
    for function in (sum_of(module, train=False), of_training):
        _, (given, _) = jax.eval_shape(function, *split(variables(name)), none)
        assert all(leaf.shape[0] == 0 for leaf in jax.tree.leaves(given))


@each_kind
def test_other_dtypes_of_inputs_and_64_bits(name):
    """Parameters and results have the dtype that the module states, whatever comes in.

    Gradients are those of the widest inputs; of the others it is the results alone.
    """
    module, inputs = made(name)
    total, parts = sum_of(module), split(variables(name))
    gradients = jax.grad(total, has_aux=True)
    expected = shapes(jax.eval_shape(gradients, *parts, inputs))
    with jax.enable_x64(True):
        for dtype in ("bfloat16", "float64", "uint8"):
            if "layer" in name and dtype == "uint8":
                continue
            typed = jax.tree.map(lambda leaf, dtype=dtype: jax.ShapeDtypeStruct(leaf.shape, dtype), inputs)
            if dtype == "float64":
                assert shapes(variables_of(module, typed)) == shapes(variables(name))
                assert shapes(jax.eval_shape(gradients, *parts, typed)) == expected
            else:
                assert shapes(jax.eval_shape(total, *parts, typed)[1]) == expected[1], dtype


@each
def test_a_named_axis_of_devices(name):
    """As one device with all inputs, in the shapes; JAX checks that what is alike on all devices stays so."""
    module, inputs = made(name)
    own, _ = made(name, axis_name="devices") if "axis_name" in has_axis(module) else (module, inputs)
    whole = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((8, *leaf.shape[1:]), leaf.dtype), inputs)
    params, rest = split(variables_of(own, inputs) if own is not module else variables(name))
    assert shapes((params, rest)) == shapes(split(variables(name)))

    def gradients(params, rest, inputs):
        def mean(params):
            given, new = outputs(own, {"params": params, **rest}, inputs, **words(own, True))
            return jax.lax.pmean(sum(leaf.sum() for leaf in jax.tree.leaves(given)), "devices"), new

        return jax.grad(mean, has_aux=True)(params)

    mesh, each_one, alike = Mesh(np.array(jax.devices()), ("devices",)), PartitionSpec("devices"), PartitionSpec()
    mapped = jax.shard_map(gradients, mesh=mesh, in_specs=(alike, alike, each_one), out_specs=alike)
    try:
        found = jax.eval_shape(mapped, params, rest, whole)
    except ValueError as error:
        if "Primitive polynomial requires varying manual axes" in str(error):
            pytest.skip("in this version of JAX jax.lax.erf does not work in jax.shard_map")
        raise
    assert shapes(found[0]) == shapes(params) and shapes(found[1]) == shapes(rest)


def has_axis(module):
    """The fields of a module, and of a body's embedding."""
    return {**module.__dataclass_fields__, **getattr(module, "embedding", module).__dataclass_fields__}


@pytest.mark.parametrize("name", ["BatchNorm", "BatchNormSilu", "GeluBatchNorm", "EarlyConvModule"])
def test_batch_norm_over_a_named_axis(name):
    """Outputs, statistics and gradients of the pieces are those of the whole."""
    options, _ = LAYERS[name]
    kind = KINDS[name]
    whole, pieces = kind(**options), kind(**options, axis_name="pieces")
    inputs = np.random.default_rng(0).normal(size=(4, 5, 4, 3)).astype(np.float32)
    variables = whole.init(jax.random.key(0), inputs, train=False)
    params, rest = split(variables)

    def total(module, params, inputs):
        given, new = module.apply({"params": params, **rest}, inputs, train=True, mutable=["batch_stats"])
        return jnp.sin(given).sum(), (given, new)

    @jax.jit
    def both(params, inputs):
        of_whole, given = jax.value_and_grad(functools.partial(total, whole), has_aux=True)(params, inputs)

        def mapped(params):
            cut = inputs.reshape(2, 2, *inputs.shape[1:])
            function = jax.vmap(functools.partial(total, pieces), in_axes=(None, 0), axis_name="pieces")
            sums, (given, new) = function(params, cut)
            return sums.sum(), (given.reshape(-1, *given.shape[2:]), jax.tree.map(lambda leaf: leaf[1], new))

        return (of_whole, given), jax.value_and_grad(mapped, has_aux=True)(params)

    expected, found = both(params, inputs)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)


def test_axis_name_reaches_every_batch_norm():
    for name in EMBEDDINGS:
        own = model("vit_ti_patch", embedding=name, axis_name="devices")
        assert getattr(own.embedding, "axis_name", "devices") == "devices", name
    with pytest.raises(ConfigError, match="axis_name"):
        model_options("vit_ti_stce", axis_name="devices")  # no option of a config: `stce train` needs none
