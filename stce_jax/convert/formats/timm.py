"""The format `timm`: a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads.

Files: model.safetensors, in timm's names, and config.json. `TARGETS` says which bodies timm has a module for; the
layouts of `convert.layouts` translate the weights, and read them again.
"""

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from etils import epath
from flax import traverse_util

from stce_jax.convert import layouts
from stce_jax.convert.comparison import Logits, compare_arrays, compare_logits, logits_of_source
from stce_jax.convert.files import CONFIG, HUB_WEIGHTS
from stce_jax.convert.formats import UNKNOWN_LICENSE, check_license, others
from stce_jax.convert.sources import open_source
from stce_jax.errors import ConfigError
from stce_jax.models.factory import model_options
from stce_jax.paths import first_line, plain_path, write_bytes, write_text
from stce_jax.training.assemble import Run
from stce_jax.training.preprocessing import view_options
from stce_jax.training.state import abstract_variables
from stce_jax.workdir import parts
from stce_jax.workdir.weights import flatten

OPTIONS = ("license",)
TIMM_EPSILON = 1e-6  # of its ViT's LayerNorms
MOST_EPSILON = 2 * TIMM_EPSILON  # smaller ones, such as Hugging Face's 1e-12, give the same logits but for rounding
Options = Mapping[str, Any]


class Architecture(NamedTuple):
    """What timm calls a model.

    Attributes:
      name: of the function that timm registers.
      arguments: of that function, all that the weights depend on.
      pooling: timm's `global_pool`.
      features: width of what the classifier reads.
      classifier, first_conv: names of these modules.
    """

    name: str
    arguments: dict[str, Any]
    pooling: str
    features: int
    classifier: str | list[str]
    first_conv: str = "patch_embed.proj"


class Target(NamedTuple):
    """How a body becomes a module of timm's.

    Attributes:
      layout: a name of `layouts.LAYOUTS`.
      embedding: the one that timm's module has.
      architecture: (the model's options, side of the images) -> `Architecture`; raises ConfigError where timm computes
        something else.
    """

    layout: str
    embedding: str
    architecture: Callable[[Options, int], Architecture]


def check(*, license: str = UNKNOWN_LICENSE) -> None:
    """Raises ConfigError for what can be no name of a licence."""
    check_license(license)


def write(directory: Path, run: Run, *, ema: bool, license: str = UNKNOWN_LICENSE) -> dict[str, Any]:
    """Writes a run as timm's files; see `formats`.

    The two files are read back as `--init_from` would, the weights to the bit; the model that they make is compared,
    and where timm is installed the one that `timm.create_model` makes of them, too.

    Args:
      directory, run, ema: see `formats`.
      license: of the weights, by its name on the Hugging Face hub.

    Raises:
      ConfigError: timm has no module that computes the same.
    """
    del ema  # timm's config has no place for it
    own = run.config.model
    options = {"distilled": False, **parts.all_options(own), **parts.chosen(own)}
    target = _target(options)
    architecture = target.architecture(options, run.config.image_size)
    ours = _one_by_one(run)
    theirs = layouts.to_theirs(target.layout, ours, options)
    write_bytes(directory / HUB_WEIGHTS, safetensors.numpy.save(theirs, metadata={"format": "pt"}))
    config = _config(run, architecture, license)
    write_text(directory / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")

    opened = open_source(directory)
    compare_arrays(HUB_WEIGHTS, opened.arrays, ours)
    compared = compare_logits(run, logits_of_source(opened))
    by = "a model of this package made of the files alone"
    notes = [f"architecture {architecture.name}, every option in {CONFIG}; licence {license}"]
    timm = _timm()
    if isinstance(timm, str):
        notes.append(timm)
    elif timm:
        compared = compare_logits(run, _by_timm(timm, directory))
        by = f"timm {timm.__version__}"
    if options["dtype"] != "float32":
        notes.append(f"computes in float32, the run in {options['dtype']}")
    if options.get("norm_epsilon", TIMM_EPSILON) != TIMM_EPSILON:
        notes.append(f"timm's LayerNorms have an epsilon of {TIMM_EPSILON:g}, the run's {options['norm_epsilon']:g}")
    return {
        "step": run.step,
        "dtype": "float32",
        "bytes": (directory / HUB_WEIGHTS).stat().st_size,
        "by": by,
        "notes": notes,
        **compared,
    }


def _target(options: Options) -> Target:
    """The target of a model; ConfigError if timm has no such module."""
    body = options["body"]
    if body not in TARGETS:
        raise _no_module(f"the body {body}")
    target = TARGETS[body]
    if (embedding := options["embedding"]) != target.embedding:
        if embedding == "patch":
            raise _no_module("the embedding patch, whose LayerNorm of each patch is in no PatchEmbed")
        raise _no_module(f"the embedding {embedding}")
    if options.get("reduction"):
        raise _no_module(f"the token reduction {options['reduction']}")
    return target


def _no_module(what: str) -> ConfigError:
    return ConfigError(f"timm has no module for {what}; give another format: {others('timm')}")


def _vit(options: Options, size: int) -> Architecture:
    if options["position_embedding"] != "learned":
        raise _no_module(f"positions of the kind {options['position_embedding']}")
    if options["norm_epsilon"] > MOST_EPSILON:
        raise _no_module(f"LayerNorms with the epsilon {options['norm_epsilon']:g}, which timm has fixed")
    if options["mlp"] != "gelu":
        raise _no_module(f"MLPs of the kind {options['mlp']}, which it cannot be told in {CONFIG}")
    if options["registers"] and options["distilled"]:
        raise _no_module("registers beside a distillation token")
    width, distilled, mean = options["width"], options["distilled"], options["pooling"] == "mean"
    arguments = {
        "img_size": [size, size],
        "patch_size": options["patch_size"],
        "embed_dim": width,
        "depth": options["depth"],
        "num_heads": options["heads"],
        "mlp_ratio": _mlp_ratio(options["mlp_dim"], width),
        "global_pool": "avg" if mean else "token",
        "class_token": not mean,
        "fc_norm": False,  # the norm comes before the pooling; timm's default for "avg" has it behind
    }
    if options["registers"]:
        arguments["reg_tokens"] = options["registers"]
    if options["layer_scale"]:
        arguments["init_values"] = options["layer_scale"]
    if options["qk_norm"]:
        arguments["qk_norm"] = True
    if options["norm"] == "rmsnorm":
        arguments["norm_layer"] = "rmsnorm"
    of_width = {192: "tiny", 768: "base"}.get(width, "small")
    name = f"deit_{of_width}_distilled_patch16_224" if distilled else f"deit_{of_width}_patch16_224"
    classifier: str | list[str] = ["head", "head_dist"] if distilled else "head"
    return Architecture(name, arguments, arguments["global_pool"], width, classifier)


def _mlp_ratio(hidden: int, width: int) -> float:
    """The ratio of which timm, which rounds down, makes this hidden width."""
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width


def _swin(options: Options, size: int) -> Architecture:
    widths, window = options["widths"], options["window"]
    if options["downsample"] != "merging":
        raise _no_module(f"the downsampling {options['downsample']}")
    if any(width != widths[0] << stage for stage, width in enumerate(widths)):
        raise _no_module("a Swin whose widths do not double from stage to stage")
    side = size // options["patch_size"]
    for _ in widths:
        if side < window:
            raise _no_module(f"windows of {window} over a map of {side}x{side}, whose tables of biases it shrinks")
        side = -(-side // 2)
    arguments = {
        "img_size": [size, size],
        "patch_size": options["patch_size"],
        "embed_dim": widths[0],
        "depths": list(options["depths"]),
        "num_heads": list(options["heads"]),
        "window_size": window,
        "mlp_ratio": float(options["mlp_ratio"]),
    }
    return Architecture("swin_tiny_patch4_window7_224", arguments, "avg", widths[-1], "head.fc")


def _mobilevit(options: Options, size: int) -> Architecture:
    del size  # any
    in_training = {"name", "dropout", "head_dropout", "drop_path", "remat", "dtype", "distilled"}
    for published in ("xxs", "xs", "s"):
        own = model_options(f"mobilevit_{published}")
        if all(options[name] == value for name, value in own.items() if name not in in_training):
            return Architecture(f"mobilevit_{published}", {}, "avg", own["head_width"], "head.fc", "stem.conv")
    raise _no_module("a MobileViT of other options than mobilevit_xxs, _xs and _s")


TARGETS = {
    "vit": Target("timm_vit", "linear_patch", _vit),
    "deit": Target("timm_vit", "linear_patch", _vit),
    "swin": Target("timm_swin", "linear_patch", _swin),
    "mobilevit": Target("mobilevit", "mobilevit", _mobilevit),
}


def _config(run: Run, architecture: Architecture, license: str) -> dict[str, Any]:
    """What config.json says. Everything that timm would take from the architecture's defaults is here, too."""
    view, classes = view_options(run.config), len(run.class_ids)
    fixed = "img_size" in architecture.arguments
    return {
        "architecture": architecture.name,
        "num_classes": classes,
        "num_features": architecture.features,
        "global_pool": architecture.pooling,
        "label_names": list(run.class_ids),
        "label_descriptions": dict(zip(run.class_ids, run.class_names, strict=True)),
        "model_args": {**architecture.arguments, "num_classes": classes, "in_chans": 3},
        "pretrained_cfg": {
            "tag": "stce_jax",  # names no weights of timm's, whose mean and std would come with it
            "custom_load": False,
            "input_size": [3, view["size"], view["size"]],
            "fixed_input_size": fixed,
            "interpolation": view["interpolation"],
            "crop_pct": view["fraction"],
            "crop_mode": "center",
            "mean": list(run.mean),
            "std": list(run.std),
            "num_classes": classes,
            "pool_size": None,
            "first_conv": architecture.first_conv,
            "classifier": architecture.classifier,
            "license": license,
        },
    }


def _one_by_one(run: Run) -> dict[str, np.ndarray]:
    """The run's variables by path; those of blocks that are computed as one (scan_layers) a block at a time."""
    module: Any = run.model
    found = flatten(run.variables)
    if not getattr(module, "scan_layers", False):
        return found
    plain = module.clone(scan_layers=False)
    expected = traverse_util.flatten_dict(abstract_variables(plain, run.config.image_size), sep="/")
    return plain.fit_weights(found, expected, None)[0]


def _timm() -> Any:
    """The module timm, None where it is not installed; where it is and cannot be imported, a line that says why."""
    if importlib.util.find_spec("timm") is None:
        return None
    try:
        import timm
        import torch  # noqa: F401
    except Exception as error:  # torch, torchvision and timm may be of versions that do not fit each other
        return f"not compared with timm, which cannot be imported ({first_line(error)})"
    return timm


def _by_timm(timm: Any, directory: Path) -> Logits:
    """The model that timm makes of the folder, with the normalisation that timm takes from it."""
    import torch

    with plain_path(epath.Path(directory)) as plain:  # "local-dir:" is parsed as a URL
        model = timm.create_model(f"local-dir:{plain}", pretrained=True).eval()
    own = timm.data.resolve_model_data_config(model)
    mean, std = (np.asarray(own[name], np.float32) for name in ("mean", "std"))

    def logits(pixels: np.ndarray) -> np.ndarray:
        images = ((pixels.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
        with torch.inference_mode():
            return model(torch.from_numpy(np.ascontiguousarray(images))).numpy()

    return logits
