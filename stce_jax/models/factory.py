"""Models by name: `BODY_SIZE_EMBEDDING`, such as vit_s_stce, or `BODY_SIZE`; every option overridable.

A model is a body over an embedding, with a token reduction or without. The three tables `BODIES`, `EMBEDDINGS` and
`REDUCTIONS` find the modules by name; their options are the modules' own fields, checked by the modules themselves.
"""

import dataclasses
import difflib
import fnmatch
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from stce_jax.errors import ConfigError, check_choice, check_whole, shown
from stce_jax.models.bodies import BODIES, Body
from stce_jax.models.contracts import check_contract
from stce_jax.models.embeddings import EMBEDDINGS
from stce_jax.models.reductions import REDUCTIONS

TABLES: dict[str, dict[str, Any]] = {"body": BODIES, "embedding": EMBEDDINGS, "reduction": REDUCTIONS}
MOST_CLASSES = 2**20
LARGEST_SIDE = 8192  # pixels
DTYPES = ("float32", "bfloat16")
STRIDE = 16  # pixels between two tokens of the embedding, if the body does not say
# Fields that are no options: what linen adds, and what `build_model` sets itself.
NO_OPTIONS = {
    "body": {"parent", "name", "embedding", "num_classes", "image_size", "dtype", "reduction", "axis_name"},
    "embedding": {"parent", "name", "width", "dtype", "axis_name", "remat"},
    "reduction": {"parent", "name", "stage", "stages"},
}
Options = Mapping[str, Any]


class Preset(NamedTuple):
    """What a model's name stands for.

    Attributes:
      body, embedding: names in `BODIES` and `EMBEDDINGS`.
      options: the body's options that differ from its defaults.
    """

    body: str
    embedding: str
    options: Options


class Resolved(NamedTuple):
    """The three modules of a model by name (no reduction: None or ""), and every option of each."""

    names: dict[str, str | None]
    options: dict[str, dict[str, Any]]


def presets() -> dict[str, Preset]:
    """All models by name: every size of every body that has sizes, with every embedding of the table.

    A body that comes with an embedding has names without it, too: swin_t, swin_t_stce. Embeddings that some body comes
    with are in no other names; a config, or `create_model(..., embedding=...)`, puts together what it likes.
    """
    own = {body: module.EMBEDDING for body, module in BODIES.items() if getattr(module, "EMBEDDING", None)}
    free = [embedding for embedding in EMBEDDINGS if embedding not in own.values()]
    named = {}
    for body, module in BODIES.items():
        for size, options in getattr(module, "SIZES", {}).items():
            if body in own:
                named[f"{body}_{size}"] = Preset(body, own[body], options)
            named |= {f"{body}_{size}_{embedding}": Preset(body, embedding, options) for embedding in free}
    return named


def list_models(pattern: str = "*") -> list[str]:
    """The names that `create_model` knows, optionally only those that fit a shell pattern such as "*_s_*"."""
    return fnmatch.filter(presets(), pattern)


def takes_reductions(name: str) -> bool:
    """Whether a named model's body takes token reductions."""
    return "reduction" in {field.name for field in dataclasses.fields(BODIES[_preset(name).body])}


def create_model(
    name: str, *, num_classes: int, image_size: int | tuple[int, int] = 224, axis_name: Any = None, **overrides: Any
) -> Body:
    """Builds a named model.

    Args:
      name: one of `list_models()`.
      num_classes: classes of the head, >= 0; with 0 the model returns its pooled features.
      image_size: side of the (square) images in pixels, or (height, width).
      axis_name: as flax.linen.BatchNorm's, for `jax.shard_map` and `jax.pmap`: BatchNorm takes its statistics over this
        axis of devices, too. `stce train` needs none: under `jax.jit` statistics are those of the whole batch.
      **overrides: any key of `model_options(name)`, such as depth=6, iterations=1 or dtype="bfloat16"; or another
        module by name: body, embedding or reduction.

    Returns:
      A body: `model.init(key, images, train=False)` gives variables, and `model.apply(variables, images, train=False)`
      logits [B, num_classes]. See `bodies` for what else it gives.

    Raises:
      ConfigError: an unknown name or option, a value out of range, or an image size the embedding cannot divide.

    Example:
      >>> model = create_model("vit_s_stce", num_classes=100, iterations=1)
    """
    parts, dtype = _parts(name, overrides)
    model: Any = build_model(name, num_classes=num_classes, image_size=image_size, dtype=dtype, **parts)
    if axis_name is not None:
        given = {"axis_name": axis_name}  # modules without that field have no BatchNorm
        embedding = model.embedding.clone(**given) if hasattr(model.embedding, "axis_name") else model.embedding
        model = model.clone(embedding=embedding, **(given if hasattr(model, "axis_name") else {}))
    return model


def model_options(name: str, **overrides: Any) -> dict[str, Any]:
    """Every option of a named model as one flat dict, overrides applied and checked; raises as `create_model`."""
    parts, dtype = _parts(name, overrides)
    resolved = resolve(name, **parts)
    _assemble(resolved, num_classes=1, image_size=None, dtype=dtype)  # built for its checks
    own = resolved.options
    return {**own["body"], "dtype": dtype or DTYPES[0], **own["embedding"], **own["reduction"]}


def build_model(
    name: str,
    *,
    num_classes: int,
    image_size: int | tuple[int, int] = 224,
    dtype: str | None = None,
    body: Options | None = None,
    embedding: Options | None = None,
    reduction: Options | None = None,
) -> Body:
    """Builds a model of parts, as configs name them.

    Args:
      name: a preset, one of `list_models()`.
      num_classes, image_size: see `create_model`.
      dtype: of the computation, "float32" (also None) or "bfloat16".
      body, embedding, reduction: {"name": of another module than the preset's, OPTION: value, ...}; None, for the name
        or an option, leaves the preset's.

    Raises:
      ConfigError: see `create_model`.
    """
    check_whole("num_classes", num_classes, 0, MOST_CLASSES)
    pair = image_size if isinstance(image_size, tuple | list) and len(image_size) == 2 else (image_size, image_size)
    for side in pair:
        check_whole("image_size", side, 1, LARGEST_SIDE)
    size = (int(pair[0]), int(pair[1]))
    resolved = resolve(name, body=body, embedding=embedding, reduction=reduction)
    return _assemble(resolved, num_classes=num_classes, image_size=size, dtype=dtype)


def resolve(
    name: str, *, body: Options | None = None, embedding: Options | None = None, reduction: Options | None = None
) -> Resolved:
    """The modules and options that a preset and the parts of `build_model` come to; unknown ones raise ConfigError."""
    preset = _preset(name)
    parts = {"body": dict(body or {}), "embedding": dict(embedding or {}), "reduction": dict(reduction or {})}
    names = {kind: part.pop("name", None) for kind, part in parts.items()}
    names["body"] = names["body"] or preset.body
    names["embedding"] = names["embedding"] or preset.embedding
    options: dict[str, dict[str, Any]] = {}
    for kind, table in TABLES.items():
        own = names[kind]
        if not own:
            options[kind] = {}
            continue
        if own not in table:
            raise ConfigError(f"there is no {kind} {shown(own)}; there are {', '.join(table) or 'none'}")
        options[kind] = _defaults(kind, table[own])
        check_contract(kind, own, table[own], options[kind])
        if kind == "body" and own == preset.body:
            options[kind] |= preset.options
        chosen = {key: _as_tuple(value) for key, value in parts[kind].items() if value is not None}
        for key in chosen:
            if key not in options[kind]:
                known = ", ".join(options[kind]) or "none"
                raise ConfigError(f"the {kind} {shown(own)} has no option {shown(key)}; its options are {known}")
        if clash := [key for key in options[kind] if kind != "body" and key in options["body"]]:
            raise ConfigError(f"the {kind} {own!r} and the body both have an option {clash[0]!r}; rename one of them")
        width, stride = _embedding_width(options["body"]), getattr(BODIES[names["body"]], "STRIDE", STRIDE)
        if kind == "embedding" and hasattr(table[own], "options_for") and width is not None:
            options[kind] |= table[own].options_for(width, stride)
        options[kind] |= chosen
        _check_types(kind, table[own], chosen)
    return Resolved(names, options)


def _assemble(resolved: Resolved, *, num_classes: int, image_size: tuple[int, int] | None, dtype: str | None) -> Body:
    """Builds the modules, each checking its options; without an image size that is all."""
    dtype = dtype or DTYPES[0]
    check_choice("model option dtype", dtype, DTYPES)
    computed = jnp.dtype(dtype)
    names, options = resolved
    width = _embedding_width(options["body"])
    kind = EMBEDDINGS[str(names["embedding"])]
    given = {} if width is None else {"width": width}
    if "remat" in {field.name for field in dataclasses.fields(kind)}:
        given["remat"] = options["body"].get("remat", False)
    embedding = kind(**given, dtype=computed, **options["embedding"])
    shared = {"embedding": embedding, "num_classes": num_classes, "dtype": computed}
    if names["reduction"]:
        if "reduction" not in {field.name for field in dataclasses.fields(BODIES[str(names["body"])])}:
            raise ConfigError(f"the body {names['body']!r} takes no token reduction; leave out {names['reduction']!r}")
        shared["reduction"] = REDUCTIONS[str(names["reduction"])](**options["reduction"])
    if image_size is not None:
        shared["image_size"] = image_size
    body = BODIES[str(names["body"])](**shared, **options["body"])
    modules: tuple[Any, ...] = (body, embedding, shared.get("reduction"))
    for module in modules:
        if hasattr(module, "check"):
            module.check()
    if image_size is not None:  # refuses sizes that cannot be cut, or leave no token, before anything compiles
        body.grid(*image_size)
        if hasattr(body, "token_counts"):
            body.token_counts(*image_size)
    return body


def _embedding_width(options: Options) -> int | None:
    """How wide a body with these options wants its tokens; None: it does not say, or nothing that `check` accepts."""
    if "width" in options:
        return options["width"]
    widths = options.get("widths")
    first = widths[0] if isinstance(widths, tuple) and widths else None
    return first if isinstance(first, int) else None


def _parts(name: str, overrides: Options) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Flat keywords sorted into the parts of `build_model`, and the dtype."""
    preset, rest = _preset(name), dict(overrides)
    dtype = rest.pop("dtype", None)
    names: dict[str, str | None] = {"body": preset.body, "embedding": preset.embedding, "reduction": None}
    names |= {kind: own for kind in TABLES if (own := rest.pop(kind, None))}
    resolved = resolve(name, **{kind: {"name": names[kind]} for kind in TABLES})
    parts: dict[str, dict[str, Any]] = {kind: {"name": names[kind]} for kind in TABLES}
    for key, value in rest.items():
        owner = next((kind for kind in TABLES if key in resolved.options[kind]), None)
        if owner is None:
            known = ", ".join(key for options in resolved.options.values() for key in options)
            raise ConfigError(f"{name} has no option {shown(key)}; its options are {known}, dtype")
        parts[owner][key] = value
    return parts, dtype


def _preset(name: str) -> Preset:
    if name not in (known := presets()):
        near = difflib.get_close_matches(str(name), known, n=3)
        meant = f"did you mean {', '.join(near)}? " if near else ""
        raise ConfigError(f"there is no model {shown(name)}; {meant}`stce models` lists all")
    return known[name]


def _fields(kind: str, module: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(module) if field.name not in NO_OPTIONS[kind]]


def _defaults(kind: str, module: Any) -> dict[str, Any]:
    return {field.name: field.default for field in _fields(kind, module)}


def _as_tuple(value: Any) -> Any:
    """Lists as tuples, within lists, too: linen freezes lists, and modules are compared by value."""
    return tuple(map(_as_tuple, value)) if isinstance(value, tuple | list) else value


def _check_types(kind: str, module: Any, chosen: Options) -> None:
    """Refuses values of another type: 1.5 iterations, say, would run as one."""
    types = {field.name: field.type for field in _fields(kind, module)}
    for key, value in chosen.items():
        expected: Any = types[key]
        if expected not in (bool, int, float, str):
            continue
        accepted = (int, float) if expected is float else expected
        if not isinstance(value, accepted) or (expected is not bool and isinstance(value, bool)):
            raise ConfigError(f"model option {key} is {shown(value)}; it must be of type {expected.__name__}")
