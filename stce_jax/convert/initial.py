"""Weights that a run begins with: those of another run, or of a .safetensors or .npz file, fitted to the model."""

import dataclasses
from collections.abc import Mapping, Sequence, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util

from stce_jax.errors import CheckpointError, ConfigError, StceError
from stce_jax.models.bodies import Body
from stce_jax.training.assemble import load_run
from stce_jax.training.state import TrainState, abstract_variables
from stce_jax.workdir.layout import is_workdir
from stce_jax.workdir.mismatch import first_mismatch
from stce_jax.workdir.parts import NotRegisteredError
from stce_jax.workdir.weights import flatten, read_file, unflatten


def read_weights(
    source: str, expected: Mapping[str, Any], model: Body, class_ids: Sequence[str]
) -> tuple[dict[str, np.ndarray], str]:
    """Reads weights and fits them to a model, see the body's `fit_weights`.

    The classifier is taken over only if it is known to be of the same classes in the same order; a .npz file does not
    say.

    Args:
      source: workdir of `stce train` (its last checkpoint, no moving average), or a .safetensors or .npz file.
      expected: the model's variables as arrays or ShapeDtypeStructs.
      model: a body.
      class_ids: ids of the classes to be trained, in the order of the logits.

    Returns:
      (arrays, line): {path: array} of everything in `expected`, without the classifier where it stays new; and what was
      taken over, for people.

    Raises:
      ConfigError: there is nothing at `source`.
      CheckpointError: it is damaged, of no kind that is read, or of another model; names the first parameter that
        does not fit.
    """
    read, found_ids, old_grid = _read(source, model)
    flat = traverse_util.flatten_dict(expected, sep="/")
    module: Any = model
    try:
        found, note = module.fit_weights(read, flat, old_grid)
    except StceError as error:
        raise CheckpointError(f"{source} does not fit the model: {error}") from error
    classifier = _classifier_paths(model, flat)
    old, new = found.keys() & classifier, flat.keys() & classifier
    same = found_ids == list(class_ids) and not first_mismatch(_only(flat, new), _only(found, old))
    if not same:
        found, flat = _only(found, found.keys() - old), _only(flat, flat.keys() - new)
    if mismatch := first_mismatch(flat, found):
        raise CheckpointError(f"{source} does not fit the model: {mismatch}")
    for path, array in found.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise CheckpointError(f"{source} does not fit the model: {path} is of type {array.dtype}, not of a float")
    head = f"head of the same {len(class_ids)} classes"
    if not same:
        why = "of other classes" if found_ids is not None else "of classes that it does not name"
        head = f"new head for {len(class_ids)} classes (there: {why if old else 'none'})"
    return found, ", ".join(filter(None, (f"begins with {len(found)} arrays of {source}", note, head)))


def initialize(state: TrainState, arrays: Mapping[str, np.ndarray]) -> TrainState:
    """A state of step 0 with other weights; the optimizer's state stays, a moving average begins at the weights.

    Works when the state is spread over several processes: each of them calls it with the same arrays.

    Args:
      state: of step 0.
      arrays: of `read_weights`; what is not among them keeps its value.

    Returns:
      A TrainState whose arrays have the shapes, dtypes and shardings of `state`.
    """

    def put(path: str, leaf: jax.Array) -> jax.Array:
        if path not in arrays:
            return leaf
        array = arrays[path].astype(leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])

    flat = traverse_util.flatten_dict(state.variables, sep="/")
    variables = unflatten({path: put(path, leaf) for path, leaf in flat.items()})
    if state.ema is None:
        return dataclasses.replace(state, variables=variables)
    # Arrays of its own: a step donates the state, and no buffer can be donated twice.
    copy = jax.jit(
        lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=jax.tree.map(lambda leaf: leaf.sharding, state.ema)
    )
    return dataclasses.replace(state, variables=variables, ema=copy(variables))


def _read(source: str, model: Body) -> tuple[dict[str, np.ndarray], list[str] | None, tuple[int, int] | None]:
    """(arrays by path, class ids or None, grid of the image size it was trained at or None) of a run or a file."""
    path = epath.Path(source).expanduser()
    if not path.exists():
        raise ConfigError(f"there is no {source} to begin with; --init_from takes a workdir, a .safetensors or .npz")
    if not is_workdir(source):
        return *read_file(source), None
    try:
        run = load_run(str(path), "last")
    except NotRegisteredError as error:  # nothing is wrong with the checkpoint
        raise ConfigError(f"cannot begin with {source}: {error}") from error
    except StceError as error:
        raise CheckpointError(f"cannot begin with {source}: {error}") from error
    own, theirs = model.unshaped_options(), run.model.unshaped_options()
    for name in own.keys() & theirs.keys():
        if own[name] != theirs[name]:
            raise CheckpointError(
                f"{source} does not fit the model: {name} is {theirs[name]!r} in it, the model wants {own[name]!r}; "
                "give the config the same"
            )
    return flatten(run.variables), list(run.class_ids), run.model.grid(*run.model.image_size)


def _classifier_paths(model: Body, flat: Mapping[str, Any]) -> Set[str]:
    """The paths of what depends on the number of classes; `flat` are the model's own variables by path."""
    module: Any = model
    other = abstract_variables(module.clone(num_classes=model.num_classes + 1), model.image_size[0])
    other = traverse_util.flatten_dict(other, sep="/")
    return {path for path, leaf in other.items() if path not in flat or flat[path].shape != leaf.shape}


def _only(tree: Mapping[str, Any], paths: Set[str]) -> dict[str, Any]:
    return {path: tree[path] for path in tree if path in paths}
