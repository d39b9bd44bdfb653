"""DAT and DAT++ with the weights of their golden files."""

import jax
import jax.numpy as jnp
import numpy as np
from golden_bodies import golden_body
from golden_files import assert_close, convolution, last, linear, norm

from stce_jax.models.bodies.dat import DAT
from stce_jax.models.bodies.datpp import DATPlus
from stce_jax.models.embeddings.datpp import DATPlusEmbed
from stce_jax.models.embeddings.linear_patch import LinearPatchEmbed


def as_product(weights, name):
    """PyTorch's convolution, whose stride is its kernel, as a linear layer."""
    kernel = weights[f"{name}.weight"].transpose(2, 3, 1, 0)
    bias = {"bias": weights[f"{name}.bias"]} if f"{name}.bias" in weights else {}
    return {"kernel": kernel.reshape(-1, kernel.shape[-1]), **bias}


def attention(weights, name):
    if f"{name}.proj_qkv.weight" in weights:
        return {
            "qkv": linear(weights, f"{name}.proj_qkv"),
            "out": linear(weights, f"{name}.proj_out"),
            "bias_table": weights[f"{name}.relative_position_bias_table"],
        }
    return {
        "query": linear(weights, f"{name}.proj_q"),
        "key": linear(weights, f"{name}.proj_k"),
        "value": linear(weights, f"{name}.proj_v"),
        "out": linear(weights, f"{name}.proj_out"),
        "offset_depthwise": convolution(weights, f"{name}.conv_offset.0"),
        "offset_norm": norm(weights, f"{name}.conv_offset.1.norm"),
        "offset": linear(weights, f"{name}.conv_offset.3"),
        "bias_table": weights[f"{name}.rpe_table"],
    }


def block(weights, stage, index):
    plus = f"{stage}.mlps.{index}.dwc.weight" in weights
    layers = [f"{stage}.mlps.{index}.linear{number}.0" for number in (1, 2)]
    if not plus:
        layers = [f"{stage}.mlps.{index}.chunk.linear{number}" for number in (1, 2)]
    params = {
        "attention_norm": norm(weights, f"{stage}.layer_norms.{2 * index}.norm"),
        "attention": attention(weights, f"{stage}.attns.{index}"),
        "mlp_norm": norm(weights, f"{stage}.layer_norms.{2 * index + 1}.norm"),
        "mlp_in": linear(weights, layers[0]),
        "mlp_out": linear(weights, layers[1]),
    }
    if plus:
        params["position"] = convolution(weights, f"{stage}.local_perception_units.{index}")
        params["mlp_depthwise"] = convolution(weights, f"{stage}.mlps.{index}.dwc")
    if f"{stage}.layer_scales.0.weight" in weights:
        scales = [weights[f"{stage}.layer_scales.{2 * index + branch}.weight"] for branch in (0, 1)]
        params |= {"attention_scale": {"scale": scales[0]}, "mlp_scale": {"scale": scales[1]}}
    return params


def golden_model(name, dtype):
    """(arrays, model, variables, {PyTorch's name of a module: path here})."""
    arrays, config, weights = golden_body(name)
    plus, width = config["model"] == "dat++", config["dim_stem"]
    kinds = tuple("".join(letters) for letters in config["stage_spec"])
    options = {"layer_scale": tuple(max(value, 0.0) for value in config["layer_scale_values"])} if plus else {}
    model = (DATPlus if plus else DAT)(
        DATPlusEmbed(width, dtype=dtype) if plus else LinearPatchEmbed(width, config["patch_size"], dtype),
        num_classes=config["num_classes"],
        image_size=(config["img_size"],) * 2,
        widths=tuple(config["dims"]),
        heads=tuple(config["heads"]),
        kinds=kinds,
        windows=tuple(config["window_sizes"]),
        groups=tuple(max(count, 1) for count in config["groups"]),
        kernels=tuple(config.get("ksizes", (9, 7, 5, 3))),
        strides=tuple(max(stride, 1) for stride in config["strides"]),
        offset_ranges=tuple(max(reach, 0.0) for reach in map(float, config["offset_range_factor"])),
        mlp_ratio=config["expansion"],
        dtype=dtype,
        **options,
    )
    if plus:
        embedding = {
            "convolution_1": convolution(weights, "patch_proj.0"),
            "norm": norm(weights, "patch_proj.1.norm"),
            "convolution_2": convolution(weights, "patch_proj.3"),
        }
    else:
        embedding = {"projection": as_product(weights, "patch_proj.0")}
    params = {
        "embedding": embedding,
        "embedding_norm": norm(weights, "patch_proj.4.norm" if plus else "patch_proj.1.norm"),
        "norm": norm(weights, "cls_norm.norm"),
        "head": linear(weights, "cls_head"),
    }
    paths, done = {"patch_proj": "embedding_norm"}, 0
    for stage, letters in enumerate(kinds):
        for index in range(len(letters)):
            params[f"blocks_{done}"] = block(weights, f"stages.{stage}", index)
            paths[f"stages.{stage}.attns.{index}"] = f"blocks_{done}/attention"
            paths[f"stages.{stage}"] = f"blocks_{done}"  # its last block's
            done += 1
        if stage:
            make = convolution if plus else as_product
            params[f"halving_{stage - 1}"] = {
                "projection": make(weights, f"down_projs.{stage - 1}.0"),
                "norm": norm(weights, f"down_projs.{stage - 1}.1.norm"),
            }
    return arrays, model, {"params": params}, paths


def activations(arrays, paths):
    """{path: what the golden file has of its module}."""
    return {paths[key[4:]]: last(array) for key, array in arrays.items() if key.startswith("act/")}


def check_positions(arrays, model, variables, paths):
    """Compares the places of samples in float64."""
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
