"""The calls of plain blocks with options that the original ViT has not, see `bodies.vit.VisionTransformer`."""

from typing import Any

from stce_jax.convert.torch_source.call import Call
from stce_jax.errors import ConfigError
from stce_jax.models.layers import gated_width
from stce_jax.models.ops.rotary import ROTARY

NORMS = {"layernorm": "Norm", "rmsnorm": "RMSNorm"}
NOTHING = Call("nn.Identity")


def is_plain(model: Any) -> bool:
    """Whether a body has none of these options.

    Raises:
      ConfigError: it has some, and a token reduction, which has pieces for plain blocks alone.
    """
    given = {
        model.position_embedding: model.position_embedding in ROTARY,
        "registers": model.registers,
        "layer_scale": model.layer_scale,
        model.norm: model.norm != "layernorm",
        "qk_norm": model.qk_norm,
        model.mlp: model.mlp != "gelu",
    }
    found = [name for name, is_given in given.items() if is_given]
    if found and model.reduction is not None:
        raise ConfigError(f"there is no PyTorch form of a token reduction beside {found[0]}; take another --format")
    return not found


def composed(model: Any, options: dict[str, Any]) -> Call:
    """The call of a body with some of these options; `options` are those of a plain one, but for its blocks."""
    norm = Call(NORMS[model.norm], {"width": model.width})
    registers = NOTHING
    if model.registers:
        registers = Call("Registers", {"width": model.width, "count": model.registers, "behind": model.heads_read})
        if model.pooling == "mean":
            reader = options["reader"]
            options = {**options, "reader": Call("ImageMeanHead", {**reader.options, "leading": model.registers})}
    blocks = [_block(model)] * model.depth
    return Call("ComposedVisionTransformer", {"norm": norm, "registers": registers, **options, "blocks": blocks})


def _block(model: Any) -> Call:
    width = model.width
    norm = Call(NORMS[model.norm], {"width": width})
    scale = Call("LayerScale", {"channels": width}) if model.layer_scale else NOTHING
    mlp = Call("MLP", {"width": width, "hidden": model.mlp_dim})
    if model.mlp == "swiglu":
        mlp = Call("SwiGLU", {"width": width, "hidden": gated_width(model.mlp_dim)})
    of_head = Call(NORMS[model.norm], {"width": width // model.heads}) if model.qk_norm else NOTHING
    attention = Call("Attention", {"width": width, "heads": model.heads})
    if model.qk_norm or model.position_embedding in ROTARY:
        parts = {"query_norm": of_head, "key_norm": of_head, "rotation": _rotation(model)}
        attention = Call("ComposedAttention", {**attention.options, **parts})
    return Call(
        "ComposedBlock",
        {
            "attention_norm": norm,
            "attention": attention,
            "attention_scale": scale,
            "mlp_norm": norm,
            "mlp": mlp,
            "mlp_scale": scale,
        },
    )


def _rotation(model: Any) -> Call:
    grid = model.embedding.grid(*model.image_size)
    options = {"width": model.width // model.heads, "grid": grid, "leading": model.leading}
    if model.position_embedding == "rope_mixed":
        return Call("MixedRotation", {"heads": model.heads, **options})
    return Call("AxialRotation", options) if model.position_embedding == "rope_axial" else NOTHING
