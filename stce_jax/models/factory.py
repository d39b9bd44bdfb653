"""Models by name: `vit_{ti,s,b}_{patch,conv,conv1x1,earlyconv,stce}`, every option a plain dict entry.

Sizes: S is EarlyConv's ViT-S, whose MLP ratio of 3 fits the paper's parameter counts at depth 12; Ti and B are the ViT
family's. Stems follow the model's width except the super-token embedding's, which stays at 16-64.
"""

import fnmatch

import jax.numpy as jnp

from stce_jax.errors import ConfigError
from stce_jax.models.bodies.vit import VisionTransformer
from stce_jax.models.embeddings.stce import ConvEmbed, EarlyConvEmbed, PatchEmbed, SuperTokenConvEmbed
from stce_jax.models.ops.supertoken import BORDERS, cell_shape

SIZES = {
    "ti": {"width": 192, "depth": 12, "heads": 3, "mlp_dim": 576},
    "s": {"width": 384, "depth": 12, "heads": 6, "mlp_dim": 1152},
    "b": {"width": 768, "depth": 12, "heads": 12, "mlp_dim": 3072},
}
BODY_OPTIONS = {
    "pooling": "class",
    "position_embedding": "learned",
    "drop_path": 0.0,
    "dropout": 0.0,
    "dtype": "float32",
    "remat": False,
    "scan_layers": False,
}
# stem_widths None: derived from the model's width, see `_stem_widths`.
EMBEDDING_OPTIONS = {
    "patch": {"patch_size": 16},
    "conv": {"stem_widths": None, "stem_strides": (2, 2, 2, 2, 1)},
    "conv1x1": {"stem_widths": None, "stem_strides": (2, 2, 2, 2, 1)},
    "earlyconv": {"stem_widths": None, "stem_strides": (2, 2, 2, 2)},
    "stce": {
        "stem_widths": (16, 32, 32, 64, 64, 64),
        "stem_strides": (2, 1, 2, 1, 2, 1),
        "cell": 2,
        "iterations": 3,
        "border": "zero",
        "differentiable": False,
    },
}
CHOICES = {
    "pooling": ("class", "mean"),
    "position_embedding": ("learned", "sincos2d"),
    "dtype": ("float32", "bfloat16"),
    "border": BORDERS,
}


def list_models(pattern="*"):
    """The names that `create_model` knows, optionally only those that fit a shell pattern such as "*_s_*"."""
    names = [f"vit_{size}_{embedding}" for size in SIZES for embedding in EMBEDDING_OPTIONS]
    return fnmatch.filter(names, pattern)


def model_options(name, **overrides):
    """Every option of the named model as one flat dict, overrides applied and checked.

    Raises:
      ConfigError: an unknown name, an option that the model does not have, or a value out of range.
    """
    if name not in list_models():
        raise ConfigError(f"there is no model {name!r}; the models are {', '.join(list_models())}")
    _, size, embedding = name.split("_")
    options = {**SIZES[size], **BODY_OPTIONS, **EMBEDDING_OPTIONS[embedding]}
    for key in overrides:
        if key not in options:
            raise ConfigError(f"{name} has no option {key!r}; its options are {', '.join(options)}")
    options |= overrides
    if "stem_widths" in options and options["stem_widths"] is None:
        options["stem_widths"] = _stem_widths(embedding, options["width"])
    _check(name, options)
    return options


def create_model(name, *, num_classes, image_size=224, **overrides):
    """Builds a named vision transformer.

    Args:
      name: one of `list_models()`.
      num_classes: classes of the head, >= 0; with 0 the model returns its pooled features.
      image_size: side of the (square) images in pixels, or (height, width).
      **overrides: any key of `model_options(name)`, such as depth=6, iterations=1 or dtype="bfloat16".

    Returns:
      A `VisionTransformer`: `model.init(key, images, train=False)` gives variables, and
      `model.apply(variables, images, train=False)` logits [B, num_classes].

    Raises:
      ConfigError: an unknown name or option, a value out of range, or an image size the embedding cannot divide.

    Example:
      >>> model = create_model("vit_s_stce", num_classes=100, iterations=1)
    """
    options = model_options(name, **overrides)
    if num_classes < 0:
        raise ConfigError(f"num_classes is {num_classes}; it must be at least 0")
    image_size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if min(image_size) < 1:
        raise ConfigError(f"image_size is {image_size}; an image has at least one pixel")
    embedding_name = name.split("_")[2]
    own = {key: options.pop(key) for key in EMBEDDING_OPTIONS[embedding_name]}
    options["dtype"] = own["dtype"] = jnp.dtype(options["dtype"])
    width = options["width"]
    if embedding_name == "patch":
        embedding = PatchEmbed(width, **own)
    elif embedding_name == "earlyconv":
        embedding = EarlyConvEmbed(width, **own)
    elif embedding_name == "stce":
        embedding = SuperTokenConvEmbed(width, **own)
    else:
        embedding = ConvEmbed(last_kernel=1 if embedding_name == "conv1x1" else 3, **own)
    embedding.grid(*image_size)  # refuses sizes that cannot be cut, before anything compiles
    return VisionTransformer(embedding, num_classes, image_size, **options)


def _stem_widths(embedding, width):
    """A convolution stem's channels at model width D: D/4, D/2, D, D, D, or EarlyConv's D/8, D/4, D/2, D."""
    divisors = (8, 4, 2, 1) if embedding == "earlyconv" else (4, 2, 1, 1, 1)
    return tuple(width // divisor for divisor in divisors)


def _check(name, options):
    for key, choices in CHOICES.items():
        if key in options and options[key] not in choices:
            raise ConfigError(f"model option {key} is {options[key]!r}; it must be one of {', '.join(choices)}")
    for key, least in {"width": 1, "depth": 1, "heads": 1, "mlp_dim": 1, "patch_size": 1, "iterations": 0}.items():
        if key in options and options[key] < least:
            raise ConfigError(f"model option {key} is {options[key]}; it must be at least {least}")
    for key in ("drop_path", "dropout"):
        if not 0.0 <= options[key] < 1.0:
            raise ConfigError(f"model option {key} is {options[key]}; it must be at least 0 and below 1")
    if options["width"] % options["heads"]:
        raise ConfigError(f"width {options['width']} cannot be divided among {options['heads']} heads")
    if options["position_embedding"] == "sincos2d" and options["width"] % 4:
        raise ConfigError(f"width {options['width']} is no multiple of 4, which sincos2d positions need")
    if "cell" in options:
        cell_shape(options["cell"])
    if "stem_widths" in options:
        _check_stem(name, options)


def _check_stem(name, options):
    widths, strides = options["stem_widths"], options["stem_strides"]
    positive = all(isinstance(entry, int) and entry > 0 for entry in (*widths, *strides))
    if len(widths) != len(strides) or not positive:
        raise ConfigError(f"stem_widths {widths} and stem_strides {strides} need one positive entry a module each")
    if name.split("_")[2] in ("conv", "conv1x1") and (not widths or widths[-1] != options["width"]):
        raise ConfigError(f"stem_widths {widths} must end with the model's width, {options['width']}")
