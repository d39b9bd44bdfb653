"""Which PyTorch piece an embedding is, with its options."""

from collections.abc import Callable
from typing import Any

from stce_jax.convert.torch_source.call import Call, Piece
from stce_jax.errors import ConfigError
from stce_jax.models.embeddings.cmt import CMTEmbed
from stce_jax.models.embeddings.conv import Conv1x1Embed, ConvEmbed
from stce_jax.models.embeddings.datpp import DATPlusEmbed
from stce_jax.models.embeddings.earlyconv import EarlyConvEmbed
from stce_jax.models.embeddings.hcformer import HCFormerEmbed
from stce_jax.models.embeddings.linear_patch import LinearPatchEmbed
from stce_jax.models.embeddings.max_pool import MaxPoolConvEmbed
from stce_jax.models.embeddings.mobilevit import MobileViTEmbed
from stce_jax.models.embeddings.overlap_patch import OverlapPatchEmbed
from stce_jax.models.embeddings.patch import PatchEmbed
from stce_jax.models.embeddings.stce import SuperTokenConvEmbed
from stce_jax.models.embeddings.svit import SViTEmbed
from stce_jax.models.ops.supertoken import cell_shape

STEM = ("stem_widths", "stem_strides")


def embedding(module: Any) -> Call:
    """The call of an embedding's piece; ConfigError if there is none of it."""
    if type(module) not in EMBEDDINGS:
        raise ConfigError(f"there is no PyTorch form of the embedding {type(module).__name__}; take another --format")
    return EMBEDDINGS[type(module)](module)


def taken(module: Any, *options: str) -> dict[str, Any]:
    """Options of a linen module, lists as tuples."""
    values = {name: getattr(module, name) for name in options}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _of(name: str, *options: str) -> Callable[[Any], Call]:
    """The maker of a piece whose options are called as those of the linen module."""
    return lambda module: Call(name, taken(module, *options))


def _conv1x1(module: Any) -> Call:
    return Call("ConvEmbed", {**taken(module, *STEM), "last_kernel": 1})


def _stce(module: Any) -> Call:
    options = {**taken(module, "width", *STEM), "cell": cell_shape(module.cell)}
    if not module.iterations:
        return Call("CellMeanConvEmbed", options)
    affinity = Piece("affinity_of" if module.border == "zero" else "masked_affinity_of")
    clustering = {"iterations": module.iterations, "affinity_of": affinity, "differentiable": module.differentiable}
    return Call("SuperTokenConvEmbed", options | clustering)


def _max_pool(module: Any) -> Call:
    return Call("MaxPoolConvEmbed", {**taken(module, "width", *STEM), "cell": cell_shape(module.cell)})


EMBEDDINGS: dict[Any, Callable[[Any], Call]] = {  # linen class -> call of its piece
    PatchEmbed: _of("PatchEmbed", "width", "patch_size"),
    LinearPatchEmbed: _of("LinearPatchEmbed", "width", "patch_size"),
    OverlapPatchEmbed: _of("OverlapPatchEmbed", "width", "patch_size", "patch_stride", "patch_padding"),
    ConvEmbed: _of("ConvEmbed", *STEM),
    Conv1x1Embed: _conv1x1,
    SViTEmbed: _of("ConvEmbed", *STEM),
    EarlyConvEmbed: _of("EarlyConvEmbed", "width", *STEM),
    SuperTokenConvEmbed: _stce,
    HCFormerEmbed: _of("HCFormerEmbed", "width", *STEM, "assignment_width"),
    MaxPoolConvEmbed: _max_pool,
    CMTEmbed: _of("CMTEmbed", "width", *STEM),
    MobileViTEmbed: _of("MobileViTEmbed", *STEM, "stem_blocks", "stem_expansion"),
    DATPlusEmbed: _of("DATPlusEmbed", "width"),
}
