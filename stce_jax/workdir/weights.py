"""Files of weights: .safetensors, which keeps the class ids too, and .npz. Nothing is ever unpickled.

A file holds arrays under their path in the model's variables, such as "params/embedding/projection/kernel" or
"batch_stats/embedding/module_1/norm/mean".
"""

import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath
from flax import traverse_util

from stce_jax.errors import CheckpointError
from stce_jax.paths import named_failures, read_bytes, write_bytes

_MAX_BYTES = 2**40  # of a file: no real one is as large
_MAX_RATIO, _MAX_UNPACKED = 20, 2**30  # weights are not packed as tightly, unless there are few of them
SUFFIXES = (".safetensors", ".npz")
PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".pkl")
CONVERTER = "python -m stce_jax.convert.pth_to_safetensors IN OUT"
# Types of numbers in a .safetensors file; bfloat16, which NumPy has not, is the upper half of a float32.
_TYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "u2", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1"}
_TYPES |= {"U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1", "BOOL": "?"}


def flatten(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{"params/norm/scale": array, ...} of nested variables; arrays on this process's devices are copied off."""
    flat = traverse_util.flatten_dict(variables, sep="/")
    return {path: np.asarray(leaf, order="C") for path, leaf in flat.items()}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested variables {"params": ..., "batch_stats": ...} of flat ones."""
    return traverse_util.unflatten_dict(flat, sep="/")


def save_weights(path: epath.PathLike, variables: Mapping[str, Any], class_ids: Iterable[str]) -> None:
    """Writes a .safetensors file that `read_file` takes.

    Args:
      path: of the file; one that is there is replaced once the new one is whole.
      variables: {"params": ..., "batch_stats": ...}, arrays of this process's devices or of the host.
      class_ids: ids of the classes in the order of the logits, kept in the file's metadata.

    Raises:
      ConfigError: the file cannot be written.
    """
    content = safetensors.numpy.save(flatten(variables), metadata={"class_ids": json.dumps(list(class_ids))})
    with named_failures(f"write {path}", "give another path"):
        write_bytes(path, content)


def read_file(path: epath.PathLike) -> tuple[dict[str, np.ndarray], list[str] | None]:
    """({path in the variables: array}, class ids) of a .safetensors or .npz file; a .npz file has no class ids.

    Raises:
      CheckpointError: the file is damaged, or of another kind.
    """
    file = epath.Path(path).expanduser()
    if file.suffix not in SUFFIXES:
        converted = f"; where PyTorch is installed, `{CONVERTER}` makes a .safetensors file"
        raise CheckpointError(
            f"{path} is neither a workdir of stce train nor a .safetensors or .npz file; "
            "others, such as .pt, .pth and .ckpt, are not read: unpickling them can run any code"
            + (converted if file.suffix in PICKLED else "")
        )
    try:
        return (_read_safetensors if file.suffix == ".safetensors" else _read_npz)(read_bytes(file, _MAX_BYTES))
    except Exception as error:  # safetensors, zipfile, zlib and NumPy each have their own for damaged files
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(f"cannot read {path}: {reason}; give a whole file without Python objects") from error


def _read_safetensors(content: bytes) -> tuple[dict[str, np.ndarray], list[str] | None]:
    arrays = {name: _array(part) for name, part in safetensors.deserialize(content)}
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    if "__metadata__" not in header or "class_ids" not in header["__metadata__"]:
        return arrays, None
    return arrays, json.loads(header["__metadata__"]["class_ids"])


def _array(part: Mapping[str, Any]) -> np.ndarray:
    """An array of what safetensors gives of it; bfloat16 as float32."""
    if part["dtype"] not in _TYPES:
        raise ValueError(f"numbers of type {part['dtype']} are not read")
    array = np.frombuffer(part["data"], np.dtype(_TYPES[part["dtype"]]).newbyteorder("<"))
    if part["dtype"] == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.reshape(part["shape"])


def _read_npz(content: bytes) -> tuple[dict[str, np.ndarray], None]:
    with zipfile.ZipFile(io.BytesIO(content)) as parts:
        unpacked = sum(part.file_size for part in parts.infolist())
    if unpacked > max(_MAX_UNPACKED, _MAX_RATIO * len(content)):
        raise ValueError(f"{len(content):,} bytes would become {unpacked:,}")
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = {path: archive[path] for path in archive.files}
    for path, array in arrays.items():
        if not isinstance(array, np.ndarray):  # NumPy gives what is no .npy file as bytes
            raise ValueError(f"{path} is no array")
    return arrays, None
