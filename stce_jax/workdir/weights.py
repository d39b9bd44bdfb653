"""Weights to begin with: of a run, or of a .safetensors or .npz file. Nothing is ever unpickled.

A file holds arrays under their path in the model's variables, such as "params/embedding/projection/kernel" or
"batch_stats/embedding/module_1/norm/mean".
"""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath
from flax import traverse_util

from stce_jax.errors import CheckpointError, ConfigError, StceError
from stce_jax.paths import write_bytes
from stce_jax.training import assemble as runs
from stce_jax.workdir import layout
from stce_jax.workdir.mismatch import first_mismatch

SUFFIXES = (".safetensors", ".npz")
HEAD = "params/head/"


def flatten(variables):
    """{"params/norm/scale": np.ndarray, ...} of nested variables; arrays of this process's devices are copied off."""
    flat = traverse_util.flatten_dict(variables, sep="/")
    return {path: np.asarray(leaf, order="C") for path, leaf in flat.items()}


def unflatten(flat):
    """The nested variables {"params": ..., "batch_stats": ...} that `flatten` took apart."""
    return traverse_util.unflatten_dict(flat, sep="/")


def save_weights(path, variables, class_ids):
    """Writes a .safetensors file that `read_weights` takes, head included.

    Args:
      path: of the file; one that is there is replaced once the new one is whole.
      variables: {"params": ..., "batch_stats": ...}, arrays of this process's devices or of the host.
      class_ids: ids of the classes in the order of the logits, kept in the file's metadata.

    Raises:
      ConfigError: the file cannot be written.
    """
    content = safetensors.numpy.save(flatten(variables), metadata={"class_ids": json.dumps(list(class_ids))})
    try:
        write_bytes(path, content)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; give another path") from error


def read_weights(source, expected, model, class_ids):
    """Reads weights and fits them to a model.

    The position embedding is interpolated to the model's grid. The head is taken over only if it is known to be of the
    same classes in the same order; a .npz file does not say. Blocks are stacked or unstacked as the model's
    scan_layers wants.

    Args:
      source: workdir of `stce train` (its last checkpoint, no moving average), or a .safetensors or .npz file; the
        position embedding of a file must be of a square grid.
      expected: the model's variables as arrays or ShapeDtypeStructs.
      model: `VisionTransformer`.
      class_ids: ids of the classes to be trained, in the order of the logits.

    Returns:
      (arrays, line): {path: np.ndarray} of everything in `expected`, the head left out where it stays new; and what
      was taken over, for people.

    Raises:
      ConfigError: there is nothing at `source`.
      CheckpointError: it is damaged, of no kind that is read, or of another model; names the first parameter that
        does not fit.
    """
    found, found_ids, old_grid = _read(source, model)
    expected = traverse_util.flatten_dict(expected, sep="/")
    try:
        found, note = model.fit_weights(found, expected, old_grid)
    except CheckpointError as error:
        raise CheckpointError(f"{source} does not fit the model: {error}") from error
    old_head, new_head = ({path for path in tree if path.startswith(HEAD)} for tree in (found, expected))
    same_head = found_ids == list(class_ids) and not first_mismatch(_only(expected, new_head), _only(found, old_head))
    if not same_head:
        found, expected = _only(found, found.keys() - old_head), _only(expected, expected.keys() - new_head)
    if mismatch := first_mismatch(expected, found):
        raise CheckpointError(f"{source} does not fit the model: {mismatch}")
    for path, array in found.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise CheckpointError(f"{source} does not fit the model: {path} is of type {array.dtype}, not of a float")
    head = f"head of the same {len(class_ids)} classes"
    if not same_head:
        why = "of other classes" if found_ids is not None else "of classes that it does not name"
        head = f"new head for {len(class_ids)} classes (there: {why if old_head else 'none'})"
    return found, f"begins with {len(found)} arrays of {source}{note and f', {note}'}, {head}"


def initialize(state, arrays):
    """A state of step 0 with other weights; the optimizer's state stays, a moving average begins at the weights.

    Works when the state is spread over several processes: each of them calls it with the same arrays.

    Args:
      state: TrainState.
      arrays: of `read_weights`; what is not among them keeps its value.

    Returns:
      A TrainState whose arrays have the shapes, dtypes and shardings of `state`.
    """

    def put(path, leaf):
        if path not in arrays:
            return leaf
        array = arrays[path].astype(leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])

    flat = traverse_util.flatten_dict(state.variables, sep="/")
    variables = unflatten({path: put(path, leaf) for path, leaf in flat.items()})
    if state.ema is None:
        return state.replace(variables=variables)
    # Arrays of its own: a step donates the state, and no buffer can be donated twice.
    copy = jax.jit(
        lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=jax.tree.map(lambda leaf: leaf.sharding, state.ema)
    )
    return state.replace(variables=variables, ema=copy(variables))


def _read(source, model):
    """({path: np.ndarray}, class ids or None, grid of the position embedding or None) of a run or a file."""
    path = epath.Path(source).expanduser()
    if not path.exists():
        raise ConfigError(f"there is no {source} to begin with; --init_from takes a workdir, a .safetensors or .npz")
    if layout.is_workdir(path):
        return _read_run(source, path, model)
    if path.suffix not in SUFFIXES:
        raise CheckpointError(
            f"{source} is neither a workdir of stce train nor a .safetensors or .npz file; "
            "others, such as .pt, .pth and .ckpt, are not read: unpickling them can run any code"
        )
    try:
        read = _read_safetensors if path.suffix == ".safetensors" else _read_npz
        arrays, class_ids = read(path.read_bytes())
    except Exception as error:  # safetensors, zipfile, zlib and NumPy each have their own for damaged files
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(f"cannot read {source}: {reason}; give a whole file without Python objects") from error
    return arrays, class_ids, None


def _read_run(source, path, model):
    try:
        run = runs.load_run(str(path), "last")
    except StceError as error:
        raise CheckpointError(f"cannot begin with {source}: {error}") from error
    if run.model.heads != model.heads:  # the one thing that no shape shows: all heads lie in one matrix
        raise CheckpointError(
            f"{source} does not fit the model: its blocks have {run.model.heads} heads, the model wants {model.heads}"
        )
    return flatten(run.variables), list(run.class_ids), run.model.embedding.grid(*run.model.image_size)


def _read_safetensors(content):
    arrays = safetensors.numpy.load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    if "__metadata__" not in header or "class_ids" not in header["__metadata__"]:
        return arrays, None
    return arrays, json.loads(header["__metadata__"]["class_ids"])


def _read_npz(content):
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = {path: archive[path] for path in archive.files}
    for path, array in arrays.items():
        if not isinstance(array, np.ndarray):  # NumPy gives what is no .npy file as bytes
            raise ValueError(f"{path} is no array")
    return arrays, None


def _only(tree, paths):
    return {path: tree[path] for path in tree if path in paths}
