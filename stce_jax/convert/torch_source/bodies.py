"""Which PyTorch pieces a model is made of, with their options."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from stce_jax.convert.torch_source import ingredients, reductions
from stce_jax.convert.torch_source.call import Call
from stce_jax.convert.torch_source.embeddings import embedding, taken
from stce_jax.errors import ConfigError
from stce_jax.models.attentions.deformable import DeformableAttention
from stce_jax.models.attentions.neighbourhood import NeighbourhoodAttention
from stce_jax.models.attentions.window import WindowAttention
from stce_jax.models.bodies import Body
from stce_jax.models.bodies.cmt import CMT
from stce_jax.models.bodies.cvt import CvT
from stce_jax.models.bodies.dat import DAT
from stce_jax.models.bodies.datpp import DATPlus
from stce_jax.models.bodies.deit import DeiT
from stce_jax.models.bodies.focal import Focal, FocalConv
from stce_jax.models.bodies.mobilevit import MobileViT
from stce_jax.models.bodies.svit import SViT
from stce_jax.models.bodies.swin import Swin
from stce_jax.models.bodies.vit import VisionTransformer
from stce_jax.models.downsampling import SuperTokenDownsample
from stce_jax.models.ops.supertoken import cell_shape


def call_of(model: Body) -> Call:
    """The call that makes a model in PyTorch.

    Raises:
      ConfigError: a part of it has no PyTorch form.
    """
    if type(model) not in BODIES:
        raise ConfigError(f"there is no PyTorch form of the body {type(model).__name__}; take another --format")
    return BODIES[type(model)](model)


def _vit(model: Any) -> Call:
    width, classes = model.width, model.num_classes
    sized = reductions.carries_sizes(model.reduction)
    mean = model.pooling == "mean"
    if getattr(model, "distilled", False):
        leading, head = Call("ClassAndDistillationToken", {"width": width}), "ClassAndDistillationHead"
    elif mean:
        leading, head = Call("nn.Identity"), "WeightedMeanHead" if sized else "MeanHead"
    else:
        leading, head = Call("ClassToken", {"width": width}), "ClassHead"
    grid = model.embedding.grid(*model.image_size)
    positions = Call("nn.Identity")
    if model.position_embedding == "learned":
        positions = Call("LearnedPositions", {"count": math.prod(grid) + model.heads_read, "width": width})
    elif model.position_embedding == "sincos2d":
        positions = Call("SinCosPositions", {"grid": grid, "width": width, "leading": model.heads_read})
    options = {
        "width": width,
        "embedding": embedding(model.embedding),
        "leading": leading,
        "positions": positions,
        "blocks": [],
        "reader": Call(head, {"width": width, "classes": classes}),
    }
    if not ingredients.is_plain(model):
        return ingredients.composed(model, options)
    name = f"Sized{'Mean' if mean else ''}VisionTransformer" if sized else "VisionTransformer"
    return Call(name, {**options, "blocks": reductions.blocks(model)})


def _swin(model: Swin) -> Call:
    return Call(
        "Swin",
        {
            "embedding": embedding(model.embedding),
            **taken(model, "widths", "depths", "heads", "window", "mlp_ratio"),
            "downsampling": list(_downsampling(model, "PatchMerging", model.downsample_iterations)),
            "classes": model.num_classes,
        },
    )


def _downsampling(model: Any, plain: str, iterations: int) -> Iterator[Call]:
    """What lies between two stages: a plain piece, or super-token clustering."""
    for channels, features in zip(model.widths[:-1], model.widths[1:], strict=True):
        options = {"channels": channels, "features": features}
        if model.downsample == "stce":
            yield Call("SuperTokenDownsample", {**options, "iterations": iterations})
        else:
            yield Call(plain, options)


def _cvt(model: CvT) -> Call:
    attention = {"conv": "ConvAttention", "average": "AverageAttention"}[model.projection]
    mlp = {"quick_gelu": "QuickMLP", "gelu": "MLP"}[model.activation]
    blocks = []
    for width, depth, heads in zip(model.widths, model.depths, model.heads, strict=True):
        scale = (width if model.scale == "width" else width // heads) ** -0.5
        parts = {
            "attention": Call(attention, {"channels": width, "heads": heads, "scale": scale}),
            "mlp": Call(mlp, {"width": width, "hidden": model.mlp_ratio * width}),
        }
        blocks.append([Call("CvTBlock", {"channels": width, **parts})] * depth)
    return Call(
        "ClassCvT" if model.class_token else "CvT",
        {
            "embedding": embedding(model.embedding),
            **taken(model, "widths"),
            "blocks": blocks,
            "downsampling": list(_downsampling(model, "ConvDownsample", SuperTokenDownsample.iterations)),
            "classes": model.num_classes,
        },
    )


def _cmt(model: CMT) -> Call:
    blocks, biases = [], []
    grids = model.stage_grids(*model.image_size)
    stages = zip(model.widths, model.depths, model.heads, model.key_strides, model.mlp_ratios, grids, strict=True)
    for width, depth, heads, stride, ratio, (rows, columns) in stages:
        attention = Call("LightAttention", {"channels": width, "heads": heads})
        if stride > 1:
            attention = Call("StridedLightAttention", {"channels": width, "heads": heads, "key_stride": stride})
        options = {"channels": width, "attention": attention, "hidden": int(width * ratio)}
        blocks.append([Call("CMTBlock", options)] * depth)
        biases.append((heads, rows * columns, (rows // stride) * (columns // stride)))
    return Call(
        "CMT",
        {
            "embedding": embedding(model.embedding),
            **taken(model, "widths"),
            "blocks": blocks,
            "biases": tuple(biases),
            **taken(model, "head_width"),
            "classes": model.num_classes,
        },
    )


def _svit(model: SViT) -> Call:
    blocks = []
    stages = zip(model.widths, model.depths, model.heads, model.cells, model.layer_scale, strict=True)
    for width, depth, heads, cell, layer_scale in stages:
        attention = Call("MapAttention", {"channels": width, "heads": heads})
        if (shape := cell_shape(cell)) != (1, 1):
            clustering = {"cell": shape, "iterations": model.association_iterations}
            attention = Call("SuperTokenAttention", {**attention.options, **clustering})
        options = {"channels": width, "attention": attention, "hidden": model.mlp_ratio * width}
        blocks.append([Call("ScaledSViTBlock" if layer_scale else "SViTBlock", options)] * depth)
    return Call(
        "SViT",
        {
            "embedding": embedding(model.embedding),
            **taken(model, "widths"),
            "blocks": blocks,
            **taken(model, "head_width"),
            "classes": model.num_classes,
        },
    )


def _mobilevit(model: MobileViT) -> Call:
    options = ("width", "widths", "token_widths", "depths", "heads", "strides", "expansion", "head_width")
    own = {"embedding": embedding(model.embedding), **taken(model, *options), "classes": model.num_classes}
    return Call("MobileViT", own)


def _focal(model: Focal) -> Call:
    blocks = []
    for stage, sides in enumerate(model.stage_grids(*model.image_size)):
        width, window, expand = model.widths[stage], model.window, model.expands[stage]
        if min(sides) <= window:  # see `Focal`
            window, expand = min(sides), 0
        options = {"channels": width, "heads": model.heads[stage], "window": window}
        options |= {"focal_window": model.focal_windows[stage]}
        attention = Call("FocalAttention", options)
        if expand:
            name = "SurroundedFocalAttention" if model.wrap else "BorderedFocalAttention"
            attention = Call(name, {**options, "expand": expand})
        block = "ScaledFocalBlock" if model.layer_scale[stage] else "FocalBlock"
        own = {"channels": width, "attention": attention, "hidden": model.mlp_ratio * width}
        blocks.append([Call(block, own)] * model.depths[stage])
    return _staged(model, blocks, "NormedHalving" if model.halving_kernel == 2 else "NormedConvHalving", bias=True)


def _dat(model: DAT) -> Call:
    plus = isinstance(model, DATPlus)
    blocks = []
    for stage, size in enumerate(model.stage_grids(*model.image_size)):
        width, block = model.widths[stage], "DATBlock"
        if isinstance(model, DATPlus):
            block = "ScaledDATPlusBlock" if model.layer_scale[stage] else "DATPlusBlock"
        blocks.append(
            [
                Call(
                    block,
                    {
                        "channels": width,
                        "attention": _dat_attention(model.attention(stage, kind, size), width),
                        "hidden": model.mlp_ratio * width,
                    },
                )
                for kind in model.kinds[stage]
            ]
        )
    return _staged(model, blocks, "NormedConvHalving" if plus else "NormedHalving", bias=False)


def _dat_attention(module: Any, width: int) -> Call:
    """The call of one of DAT's attentions of maps with so many channels."""
    options = {"channels": width, **taken(module, "heads")}
    if isinstance(module, WindowAttention):
        return Call("WindowAttention", {**options, "window": module.window[0], "shift": module.shift[0]})
    if isinstance(module, NeighbourhoodAttention):
        return Call("NeighbourhoodAttention", {**options, "kernel": module.kernel})
    assert isinstance(module, DeformableAttention)
    padding = module.kernel // 2 if module.kernel != module.stride else 0
    options |= {**taken(module, "groups", "size", "kernel", "stride"), "padding": padding}
    free, corner = "" if module.offset_range else "Free", "Corner" if module.corners else ""
    return Call(f"{free}{corner}DeformableAttention", {**options, "offset_range": float(module.offset_range)})


def _staged(model: Any, blocks: Sequence[Any], halving: str, *, bias: bool) -> Call:
    between = [
        Call(halving, {"channels": channels, "features": features, "bias": bias})
        for channels, features in zip(model.widths[:-1], model.widths[1:], strict=True)
    ]
    return Call(
        "StagedTransformer",
        {
            "embedding": embedding(model.embedding),
            **taken(model, "widths"),
            "blocks": blocks,
            "halving": between,
            "classes": model.num_classes,
        },
    )


BODIES: dict[Any, Callable[[Any], Call]] = {  # linen class -> call of its piece
    VisionTransformer: _vit,
    DeiT: _vit,
    Swin: _swin,
    CvT: _cvt,
    CMT: _cmt,
    MobileViT: _mobilevit,
    Focal: _focal,
    FocalConv: _focal,
    DAT: _dat,
    DATPlus: _dat,
    SViT: _svit,
}
