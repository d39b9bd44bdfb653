"""What lies in a file or folder of weights: arrays by name, and the JSON files beside them. Nothing is unpickled.

A folder is one of the Hugging Face hub, with config.json and model.safetensors, whole or in shards; or what
`stce export` wrote, with model.json and weights.safetensors.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from stce_jax.errors import CheckpointError, shown
from stce_jax.paths import first_line, parse_json, read_bytes
from stce_jax.workdir.weights import CONVERTER, read_file

CONFIG, PROCESSOR, DESCRIPTION = "config.json", "preprocessor_config.json", "model.json"
HUB_WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"  # as the hub calls them
OWN_WEIGHTS = "weights.safetensors"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_MAX_JSON = 16 * 2**20  # bytes; that of ImageNet-21k's labels has 2 MiB
_MAX_SHARDS, _MAX_ARRAYS, _MAX_NAME = 1000, 100_000, 1000
_SHARD = re.compile(r"[\w.-]{1,200}\.safetensors")
PREFIXES = ("module.", "model.", "state_dict.", "_orig_mod.")  # of DataParallel, Lightning, torch.compile


class Found(NamedTuple):
    """What was read.

    Attributes:
      arrays: by their name in the file.
      class_ids: of a .safetensors file of this package; None: it does not say.
      config, processor, description: of config.json, preprocessor_config.json and model.json; {} if there is none.
    """

    arrays: dict[str, np.ndarray]
    class_ids: tuple[str, ...] | None
    config: Mapping[str, Any]
    processor: Mapping[str, Any]
    description: Mapping[str, Any]


def is_folder(path: epath.Path) -> bool:
    """Whether that is a folder of weights, not a workdir."""
    return any((path / name).exists() for name in (HUB_WEIGHTS, INDEX, OWN_WEIGHTS, *PICKLED))


def read(source: epath.PathLike) -> Found:
    """Reads a .safetensors or .npz file, or a folder.

    Raises:
      CheckpointError: it is damaged, of another kind, or larger than weights are.
    """
    path = epath.Path(source).expanduser()
    if not is_folder(path):
        return Found(*_of_file(path), {}, {}, {})
    config, processor, description = (_read_json(path / name) for name in (CONFIG, PROCESSOR, DESCRIPTION))
    for name in (OWN_WEIGHTS, HUB_WEIGHTS):
        if (path / name).exists():
            return Found(*_of_file(path / name), config, processor, description)
    if (path / INDEX).exists():
        return Found(_of_shards(path), None, config, processor, {})
    raise CheckpointError(
        f"{source} has its weights in {PICKLED[0]} alone, which is not read: unpickling it can run any code; where "
        f"PyTorch is installed, `{CONVERTER}` makes {HUB_WEIGHTS} of it"
    )


def without_prefix(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays without the prefixes that wrappers put in front of all names."""
    found = dict(arrays)
    while found and (prefix := next((one for one in PREFIXES if all(name.startswith(one) for name in found)), None)):
        found = {name.removeprefix(prefix): array for name, array in found.items()}
    return found


def _of_file(path: epath.Path) -> tuple[dict[str, np.ndarray], tuple[str, ...] | None]:
    arrays, ids = read_file(path)
    _check_number(path, len(arrays))
    if max(map(len, arrays), default=0) > _MAX_NAME:
        raise CheckpointError(f"{path} holds an array whose name has more than {_MAX_NAME:,} letters; that is no model")
    fits = isinstance(ids, list) and all(isinstance(one, str) for one in ids)
    return arrays, tuple(ids) if ids is not None and fits else None


def _of_shards(path: epath.Path) -> dict[str, np.ndarray]:
    """The arrays of all shards that an index names, each in the shard where it says."""
    places = _read_json(path / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{path / INDEX} has no weight_map of names; give a whole folder")
    shards = sorted(set(places.values()))
    _check_number(path / INDEX, len(places))
    if len(shards) > _MAX_SHARDS:
        raise CheckpointError(f"{path / INDEX} names {len(shards):,} files; that is no model")
    arrays: dict[str, np.ndarray] = {}
    for shard in shards:
        if not _SHARD.fullmatch(shard):  # nothing outside of the folder
            raise CheckpointError(f"{path / INDEX} names {shown(shard)}, which is no .safetensors file of its folder")
        if not (path / shard).exists():
            raise CheckpointError(f"{path} lacks {shard}, which its index names; give a whole folder")
        arrays |= {name: array for name, array in _of_file(path / shard)[0].items() if places.get(name) == shard}
    if missing := sorted(places.keys() - arrays.keys()):
        raise CheckpointError(f"{shown(missing[0])} is not in the shard that {path / INDEX} names; give a whole folder")
    return arrays


def _check_number(path: epath.Path, count: int) -> None:
    if count > _MAX_ARRAYS:
        raise CheckpointError(f"{path} holds {count:,} arrays; that is no model")


def _read_json(path: epath.Path) -> Mapping[str, Any]:
    """The object in a JSON file, {} if there is none; CheckpointError for anything else, such as a pipe."""
    try:
        found = parse_json(read_bytes(path, _MAX_JSON).decode())
    except FileNotFoundError as error:
        if os.path.islink(path):
            raise CheckpointError(f"cannot read {path}: it is a link to nothing; give a whole folder") from error
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {first_line(error)}; give a whole folder") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"cannot read {path}: it holds no object; give a whole folder")
    return found
