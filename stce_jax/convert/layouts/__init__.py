"""Layouts of other libraries' weights: how each names and shapes the parameters of a body of this package.

A layout is a module of this package, a line in `LAYOUTS`, with

- TITLE: what people call it, such as "timm's ViT";
- PRESET: a name of `stce_jax.list_models()` whose other options `options` gives;
- IGNORED: regular expressions of names that hold no weight, such as tables of indices;
- recognise(names): whether a file with these names is of this layout;
- options(arrays, config): the model's options as `create_model` takes them, read off the arrays and, where shapes do
  not tell, off config.json, a dict, {} if there is none: the library's own, or one that has options by their names
  here; else off the published size of the same shapes. What cannot be known is a CheckpointError of one line.
  `reading` has what this needs of arrays, `said` of config.json;
- rules(options): a `Rule` for each parameter of a model with these options; the same rules read and write.

and, where it has them,

- REFUSED: {regular expression of names: what they are} of variants that the body does not have;
- GUESSED: options that are a guess where no config.json tells them;
- NORMALIZATION: (mean, std) that all weights of this layout want;
- normal(arrays): the arrays under the names of the rules, from other versions of the library;
- for_writing(arrays): a model's arrays as the rules write them, where several of ours are one of theirs.

Heads may be missing: the model then has none.
"""

import re
from collections.abc import Iterable, Mapping, Set
from typing import Any, Protocol

import numpy as np

from stce_jax.convert.layouts import (
    augreg_npz,
    cmt,
    cvt,
    dat,
    datpp,
    focal,
    hf_swin,
    hf_vit,
    mobilevit,
    swin,
    timm_naflex,
    timm_swin,
    timm_vit,
)
from stce_jax.convert.layouts.rules import Rule
from stce_jax.errors import CheckpointError, shown

Arrays = Mapping[str, np.ndarray]


class Layout(Protocol):
    """See this module's docstring."""

    TITLE: str
    PRESET: str
    IGNORED: tuple[str, ...]

    def recognise(self, names: Set[str]) -> bool: ...

    def options(self, arrays: Arrays, config: Mapping[str, Any]) -> dict[str, Any]: ...

    def rules(self, options: Mapping[str, Any]) -> Iterable[Rule]: ...


LAYOUTS: dict[str, Layout] = {
    "timm_vit": timm_vit,
    "timm_naflex": timm_naflex,
    "hf_vit": hf_vit,
    "augreg_npz": augreg_npz,
    "swin": swin,
    "timm_swin": timm_swin,
    "hf_swin": hf_swin,
    "cvt": cvt,
    "focal": focal,
    "cmt": cmt,
    "mobilevit": mobilevit,
    "dat": dat,
    "datpp": datpp,
}


def recognise(names: Set[str]) -> str | None:
    """The name of the layout of a file with these names, the first of `LAYOUTS` that knows them; None: no known one."""
    return next((name for name, layout in LAYOUTS.items() if layout.recognise(names)), None)


def options_of(layout: str, arrays: Arrays, config: Mapping[str, Any]) -> dict[str, Any]:
    """The model's options, see the layout's `options`.

    Args:
      layout: a name of `LAYOUTS`.
      arrays: by the other library's names, see the layout's `normal`.
      config: config.json; {} if there is none.

    Raises:
      CheckpointError: an option cannot be known, or the arrays have what the body does not have (`REFUSED`), such as
        register tokens.
    """
    for pattern, what in getattr(LAYOUTS[layout], "REFUSED", {}).items():
        if name := next((name for name in sorted(arrays) if re.search(pattern, name)), None):
            raise CheckpointError(f"it has {what} ({shown(name)}), which the model here has not")
    return LAYOUTS[layout].options(arrays, config)


def to_ours(layout: str, arrays: Arrays, options: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], list[str]]:
    """({path in the model's variables: array}, names that were left out) of another library's arrays.

    Args:
      layout: a name of `LAYOUTS`.
      arrays, options: of `options_of`.

    Raises:
      CheckpointError: an array is missing or has another shape than its rule wants.
    """
    found: dict[str, np.ndarray] = {}
    used: set[str] = set()
    for rule in LAYOUTS[layout].rules(options):
        missing = [name for name in rule.theirs if name not in arrays]
        if rule.optional and len(missing) == len(rule.theirs):
            continue
        if missing:
            raise CheckpointError(f"{shown(missing[0])} is missing, which {LAYOUTS[layout].TITLE} has")
        found[rule.ours] = rule.read([arrays[name] for name in rule.theirs])
        used.update(rule.theirs)
    return found, sorted(arrays.keys() - used - without_weight(layout, arrays.keys()))


def without_weight(layout: str, names: Set[str]) -> set[str]:
    """Those of the names that hold no weight in this layout, such as tables of indices."""
    return {name for name in names if any(re.fullmatch(one, name) for one in LAYOUTS[layout].IGNORED)}


def to_theirs(layout: str, arrays: Arrays, options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{name in the other library: array} of a model's variables by path; undoes `to_ours`.

    PyTorch's counts of batches (`num_batches_tracked`) are not written: it loads files without them, strictly, too.

    Raises:
      CheckpointError: the model has a parameter that the layout has not, or lacks one that it has.
    """
    arrays = getattr(LAYOUTS[layout], "for_writing", dict)(arrays)
    found: dict[str, np.ndarray] = {}
    used: set[str] = set()
    for rule in LAYOUTS[layout].rules(options):
        if rule.ours not in arrays:
            if rule.optional:
                continue
            raise CheckpointError(f"the model has no {rule.ours}, which {LAYOUTS[layout].TITLE} has")
        found |= dict(zip(rule.theirs, rule.write(arrays[rule.ours]), strict=True))
        used.add(rule.ours)
    if left := sorted(arrays.keys() - used):
        raise CheckpointError(f"{LAYOUTS[layout].TITLE} has no place for {left[0]}")
    return found
