"""The model card of an exported run: README.md as the Hugging Face hub shows it, filled in from the run.

Names of classes and data sets, and values of the config, are anybody's text. In the front matter they are quoted, in
the text they are code, where no mark means anything. Paths of this machine are left out.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from stce_jax.convert.formats import UNKNOWN_LICENSE
from stce_jax.convert.markdown import code, quoted
from stce_jax.training.assemble import Run
from stce_jax.training.preprocessing import view_options
from stce_jax.workdir import parts
from stce_jax.workdir.meta import IMPORTED

MAX_NAMES = 100  # classes that are named
# Keys of a config that say where things are, or how fast they are loaded, and not what was trained.
_NOT_SHOWN = re.compile(
    r"(model|divergence)\..*|data_dir|init_from|classes|loader_.*|cache_megabytes|log_every|eval_.*|keep_.*|"
    r"step_timeout|fsdp_devices"
)
CITATION = r"""@article{lee2024stce,
  title   = {Lightweight convolutional embedding module of {ViT} based on super-token clustering},
  author  = {Lee and Lee and Kim},
  journal = {Journal of Digital Contents Society},
  volume  = {25},
  number  = {2},
  pages   = {485--494},
  year    = {2024},
  doi     = {10.9728/dcs.2024.25.2.485},
  note    = {In Korean}
}
@software{stce_jax,
  title   = {stce\_jax: train, compare and reuse vision-transformer embeddings in {JAX}},
  version = {0.1.0},
  license = {Apache-2.0}
}"""
_PAGE = """{front}

# {title}

An image classifier: the model {model}, {parameters:,} parameters, for images of {size}x{size} pixels and {classes} \
classes. {origin}

## Use

**JAX.** `pip install stce_jax`; `model.json` has every option, `{weights}` the weights. To train on from them: \
`stce train --init_from={weights} ...`.

```python
import json

import flax
import jax
import numpy as np
import safetensors.numpy
import stce_jax
from stce_jax.data.crops import read_view

folder, picture = ".", "picture.jpg"
description = json.load(open(f"{{folder}}/model.json"))
image, classes = description["image"], description["class_names"]
model = stce_jax.create_model(num_classes=len(classes), image_size=image["size"], **description["model"])
weights = safetensors.numpy.load_file(f"{{folder}}/{weights}")
variables = flax.traverse_util.unflatten_dict(weights, sep="/")
view = {{"size": image["size"], "fraction": image["crop_fraction"], "interpolation": image["interpolation"]}}
pixels = read_view(picture, **view)
images = (pixels[None] / 255 - np.array(image["mean"])) / np.array(image["std"])
logits = jax.jit(model.apply, static_argnames="train")(variables, images.astype(np.float32), train=False)
print(classes[int(logits[0].argmax())])
```

{others}

## Preprocessing

{preprocessing}. Normalisation: mean {mean}, standard deviation {std} of pixels scaled to 0..1. Other preprocessing \
gives other, worse answers without a word.

## Data

{data}

Classes, in the order of the logits: {names}.

## Metrics

{metrics}

## Recipe

{recipe}

## Limits

- It knows these {classes} classes alone, and names one of them for any picture.
- It is one run with one seed; other seeds give other numbers. Images of another kind than the training images \
were not looked at, nor what the model does to different groups of people.
- The softmax of the logits is a confidence; whether it is calibrated is not said here.

## Licence

{licence}

## Citation

The super-token convolution embedding, and the software that wrote this:

```bibtex
{citation}
```
"""


def write_card(
    run: Run, *, ema: bool, weights: str, license: str, known: Mapping[str, Any], include: Sequence[str]
) -> str:
    """The text of a model card.

    Args:
      run: of `load_run`.
      ema: whether the run's variables are the moving average.
      weights: name of the file of weights.
      license: of the weights, by its name on the hub.
      known: what the workdir says, {"fingerprint", "during_training", "evaluation"}, see `verbs.export`.
      include: formats that lie in folders beside it.
    """
    config, view = run.config, view_options(run.config)
    imported = known.get("fingerprint") == IMPORTED
    model, dataset = code(config.model.name), code(config.dataset)
    return _PAGE.format(
        front=_front_matter(run, license, known),
        title=model if imported else f"{model} on {dataset}",
        model=model,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(run.variables["params"])),
        size=view["size"],
        classes=len(run.class_ids),
        origin=_imported(config.init_from) if imported else _trained(run, ema),
        weights=weights,
        others=_others(include),
        preprocessing=f"Decode to 8-bit RGB, resize the short side to {int(view['size'] / view['fraction'])} pixels "
        f"({view['interpolation']}), cut out the central {view['size']}x{view['size']}",
        mean=_numbers(run.mean),
        std=_numbers(run.std),
        data="Not known: these weights were imported." if imported else _data(run, known),
        names=_names(run.class_names),
        metrics=_metrics(known),
        recipe="Not known: these weights were imported." if imported else _recipe_table(config),
        licence=_licence(license),
        citation=CITATION,
    )


def _trained(run: Run, ema: bool) -> str:
    trained = (
        f"It was trained with stce_jax on the data set {code(run.config.dataset)} and exported at step {run.step:,}"
    )
    average = "; the weights are their moving average" if ema else ""
    return f"{trained}, after {run.epoch:.2f} epochs{average}."


def _imported(init_from: str) -> str:
    return (
        f"Its weights are those of {code(_last_name(init_from) or 'another library')}, imported with stce_jax and not "
        "trained on. Who trained them, on what and how is said where they come from; name it here."
    )


def _data(run: Run, known: Mapping[str, Any]) -> str:
    return (
        f"| | |\n|---|---|\n| data set | {code(run.config.dataset)} |\n"
        "| fingerprint of the training images, their labels and order | "
        f"{code(known.get('fingerprint') or 'not known')} |\n| classes | {len(run.class_ids)} |"
    )


def _recipe_table(config: Any) -> str:
    rows = "\n".join(f"| {code(key)} | {code(value)} |" for key, value in _recipe(config))
    name = _last_name(config.init_from)
    began = f"The run began with other weights, {code(name)}.\n\n" if name else ""
    return f"{began}| key | value |\n|---|---|\n{rows}"


def _last_name(init_from: str) -> str:
    """What weights are called; their place is this machine's."""
    return init_from.rstrip("/").rpartition("/")[2]


def _front_matter(run: Run, license: str, known: Mapping[str, Any]) -> str:
    """The metadata that the hub reads."""
    names = parts.chosen(run.config.model)
    tags = ["image-classification", "vision-transformer", "jax", "flax", *filter(None, names.values())]
    lines = [
        "---",
        "library_name: stce_jax",
        "pipeline_tag: image-classification",
        f"license: {quoted(license)}",
        "tags:",
        *(f"- {quoted(tag)}" for tag in tags),
        "metrics:",
        "- accuracy",
    ]
    if (top1 := _top1(known)) is not None:
        dataset = quoted(run.config.dataset)
        lines += [
            "model-index:",
            f"- name: {quoted(run.config.model.name)}",
            "  results:",
            "  - task:",
            "      type: image-classification",
            "    dataset:",
            f"      name: {dataset}",
            f"      type: {dataset}",
            "    metrics:",
            "    - type: accuracy",
            f"      value: {top1:.6f}",
            "      name: top-1",
        ]
    return "\n".join([*lines, "---"])


def _top1(known: Mapping[str, Any]) -> float | None:
    """Top-1 on the validation images, a fraction; None: not known."""
    evaluation, during = known.get("evaluation"), known.get("during_training")
    if evaluation and evaluation["split"] == "val":
        return evaluation["top1"]
    return during["top1"] if during else None


def _metrics(known: Mapping[str, Any]) -> str:
    evaluation, during = known.get("evaluation"), known.get("during_training")
    if evaluation:
        low, high = (100 * end for end in evaluation["interval"])
        return (
            f"| | {code(evaluation['dataset'])}, {code(evaluation['split'])} |\n|---|---|\n"
            f"| images | {evaluation['images']:,} |\n"
            f"| top-1 | {100 * evaluation['top1']:.2f}% (95% interval {low:.2f} to {high:.2f}) |\n"
            f"| top-5 | {100 * evaluation['top5']:.2f}% |\n\n"
            "The interval is Wilson's: what this number of images leaves open, and nothing about other seeds."
        )
    if during:
        rows = "".join(f"| {code(name)} | {value:.4g} |\n" for name, value in sorted(during.items()))
        return (
            f"| on the validation images, during training | |\n|---|---|\n{rows}\n"
            "Of one run; no interval is known. (`stce evaluate --output=WORKDIR/evaluation` before the export adds it.)"
        )
    return "Not known: this checkpoint was not evaluated."


def _others(include: Sequence[str]) -> str:
    """How the model is used without JAX."""
    ways: list[str] = []
    if "torch" in include:
        ways.append("**PyTorch.** `torch/model.py` is the same model, without JAX; its first lines say how to use it.")
    else:
        ways.append("**PyTorch.** Whoever has the run makes one file of plain PyTorch: `stce export --format=torch`.")
    if "timm" in include:
        ways.append('**timm.** `timm.create_model("local-dir:timm", pretrained=True)`.')
    if "onnx" in include:
        ways.append(
            "**ONNX Runtime.** The normalisation is inside; `pixels` are uint8 [batch, row, column, (red, green, "
            'blue)].\n\n```python\nimport onnxruntime\n\nsession = onnxruntime.InferenceSession("onnx/model.onnx")\n'
            '(logits,) = session.run(["logits"], {"pixels": pixels})\n```'
        )
    else:
        ways.append("**ONNX.** Whoever has the run makes the graph: `stce export --format=onnx`.")
    return "\n\n".join(ways)


def _names(class_names: Sequence[str]) -> str:
    shown = ", ".join(map(code, class_names[:MAX_NAMES]))
    more = len(class_names) - MAX_NAMES
    return f"{shown} and {more:,} more, see `model.json`" if more > 0 else shown


def _recipe(config: Any) -> list[tuple[str, Any]]:
    """(key, value) of the recipe's options, without the model's and the places of this machine."""
    found = []
    for key, value in config.items():
        section = value.items() if hasattr(value, "items") else [("", value)]
        found += [(f"{key}.{name}" if name else key, one) for name, one in section]
    return [(key, value) for key, value in found if value is not None and not _NOT_SHOWN.fullmatch(key)]


def _licence(license: str) -> str:
    if license == UNKNOWN_LICENSE:
        return (
            "Nobody has said under which licence these weights are; ask whoever uploaded them. (The licence of the "
            "training images may bind it. `stce export --license=NAME` fills this in.)"
        )
    return f"The weights: {code(license)}. The software stce_jax: Apache-2.0."


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)
