"""A model's variables in PyTorch's names and layouts.

PyTorch's modules have the names of their linen twins, as far as they can: "in" is no name in Python, numbered modules
are lists there, and what a vision transformer puts in front of its tokens and reads of them are modules there.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from stce_jax.convert.torch_source.reductions import noises
from stce_jax.models.bodies import Body
from stce_jax.models.bodies.cmt import CMT
from stce_jax.models.bodies.vit import VisionTransformer
from stce_jax.models.embeddings.svit import SViTEmbed

LISTS = (
    "blocks|layers|merging|stage_norms|embedding_norms|downsampling|residuals|halving|position_bias"  # of bodies
    "|stem"  # of embeddings, see below
)
STACKED = "params/blocks/"  # of a model with scan_layers
STATISTICS = {"mean": "running_mean", "var": "running_var"}


def state_dict(model: Body, flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{PyTorch's name: float32 array} of a model's variables by path; what the file needs beside them is there, too."""
    unstacked = _unstacked(flat)
    found = {}
    for path, array in unstacked.items():
        name, changed = _translated(path, np.asarray(array, np.float32), unstacked)
        found[_renamed(model, name)] = np.asarray(changed, order="C")
    if isinstance(model, VisionTransformer):
        found |= noises(model)
    return found


def _unstacked(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stacked blocks one by one."""
    found: dict[str, np.ndarray] = {}
    for path, array in flat.items():
        if path.startswith(STACKED):
            rest = path.removeprefix(STACKED)
            found |= {f"params/blocks_{index}/{rest}": part for index, part in enumerate(array)}
        else:
            found[path] = array
    return found


def _translated(path: str, array: np.ndarray, flat: Mapping[str, Any]) -> tuple[str, np.ndarray]:
    """(path in the model, with PyTorch's name of the leaf; the array in PyTorch's order of axes)."""
    collection, _, inside = path.partition("/")
    module, _, leaf = inside.rpartition("/")
    if collection == "batch_stats":
        leaf = STATISTICS[leaf]
    elif leaf == "kernel":
        # [in, out] of a linear layer, [rows, columns, in, out] of a convolution
        leaf, array = "weight", array.T if array.ndim == 2 else array.transpose(3, 2, 0, 1)
    elif leaf == "scale" and f"params/{module}/bias" in flat:  # a norm's, no layer scale
        leaf = "weight"
    return f"{module}/{leaf}" if module else leaf, array


def _renamed(model: Body, path: str) -> str:
    """PyTorch's name of a path."""
    path = re.sub(r"(^|/)in/", r"\1into/", path)
    path = re.sub(r"/stage_(\d+)_block_(\d+)/", r"/stages.\1.\2/", path)
    path = re.sub(r"/module_(\d+)/", lambda found: f"/stem_{int(found[1]) - 1}/", path)
    if isinstance(model.embedding, SViTEmbed):
        path = re.sub(
            r"^embedding/(convolution|norm)_(\d+)/", lambda at: f"embedding/stem_{int(at[2]) - 1}/{at[1]}/", path
        )
    if isinstance(model, CMT):
        path = re.sub(r"/attention/(weight|bias)$", r"/attention/pooling/\1", path)
    if isinstance(model, VisionTransformer):
        path = re.sub(r"^(class_token|distillation_token)$", r"leading/\1", path)
        path = re.sub(r"^registers$", "registers/registers", path)
        path = re.sub(r"/attention/frequencies$", "/attention/rotation/frequencies", path)
        path = re.sub(r"^position_embedding$", r"positions/position_embedding", path)
        path = re.sub(r"^(head|distillation_head)/", r"reader/\1/", path)
    path = re.sub(rf"(^|/)({LISTS})_(\d+)(?=/|$)", r"\1\2.\3", path)
    return path.replace("/", ".")
