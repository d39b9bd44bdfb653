"""Weights that a run begins with, fitted to its model: those of another run, of a file, of another library."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from stce_jax.convert.sources import Source, listed, open_source
from stce_jax.errors import CheckpointError, StceError
from stce_jax.models.bodies import Body
from stce_jax.recipe.optimizers import Optimizer
from stce_jax.recipe.schedule_free import Averaging
from stce_jax.training.state import TrainState, abstract_variables
from stce_jax.workdir.mismatch import first_mismatch
from stce_jax.workdir.weights import unflatten


def read_weights(
    source: str | Source, expected: Mapping[str, Any], model: Body, class_ids: Sequence[str]
) -> tuple[dict[str, np.ndarray], str]:
    """Reads weights and fits them to a model, see the body's `fit_weights`.

    The classifier is taken over only if it is known to be of the same classes in the same order; a .npz file does not
    say.

    Args:
      source: what `open_source` takes, or has opened.
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
    own: Any = model
    opened = source if isinstance(source, Source) else open_source(source, own.unshaped_options())
    notes = _check_options(opened, model)
    flat = traverse_util.flatten_dict(expected, sep="/")
    found, note = _fitted(opened, model, flat)
    classifier = _classifier_paths(model, flat)
    old, new = found.keys() & classifier, flat.keys() & classifier
    found_ids = None if opened.labels is None else list(opened.labels.ids)
    same = found_ids == list(class_ids) and not first_mismatch(_only(flat, new), _only(found, old))
    if not same:
        found, flat = _only(found, found.keys() - old), _only(flat, flat.keys() - new)
    _check_arrays(opened, flat, found)
    head = f"head of the same {len(class_ids)} classes"
    if not same:
        why = "of other classes" if found_ids is not None else "of classes that it does not name"
        head = f"new head for {len(class_ids)} classes (there: {why if old else 'none'})"
    return found, ", ".join(filter(None, (f"begins with {_beginning(opened, len(found))}", note, head, *notes)))


def fit_all(
    opened: Source, model: Body, expected: Mapping[str, Any], given: Collection[str] = ()
) -> tuple[dict[str, np.ndarray], str]:
    """`read_weights` of a source whose head is kept, whatever its classes are.

    Args:
      opened, model, expected: see `read_weights`.
      given: options of the model that the user gave, which are no guesses.

    Raises:
      CheckpointError: it is of another model.
    """
    flat = traverse_util.flatten_dict(expected, sep="/")
    found, note = _fitted(opened, model, flat)
    _check_arrays(opened, flat, found)
    notes = [f"left out: {listed(opened.left_out)}"] if opened.left_out else []
    guessed = [f"{name} {getattr(model, name)}" for name in opened.guessed if name not in given]
    if guessed:
        notes.append(f"nothing says {', '.join(guessed)}: a guess by its width, give it if it is wrong")
    if opened.labels is not None and opened.labels.note:
        notes.append(opened.labels.note)
    return found, ", ".join(filter(None, (f"read {_beginning(opened, len(found))}", note, *notes, *opened.notes)))


def _beginning(opened: Source, count: int) -> str:
    recognised = f" ({opened.kind})" if opened.preset is not None else ""
    return f"{count} arrays of {opened.place}{recognised}"


def _fitted(opened: Source, model: Body, flat: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], str]:
    module: Any = model
    try:
        return module.fit_weights(opened.arrays, flat, opened.grid)
    except StceError as error:
        raise CheckpointError(f"{opened.place} does not fit the model: {error}") from error


def _check_arrays(opened: Source, expected: Mapping[str, Any], found: Mapping[str, np.ndarray]) -> None:
    if mismatch := first_mismatch(expected, found):
        raise CheckpointError(f"{opened.place} does not fit the model: {mismatch}")
    for path, array in found.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise CheckpointError(
                f"{opened.place} does not fit the model: {path} is of type {array.dtype}, not of a float"
            )


def _check_options(opened: Source, model: Body) -> list[str]:
    """Refuses weights of other options that no shape tells; notes for people on the rest."""
    notes = [f"left out: {listed(opened.left_out)}"] if opened.left_out else []
    if opened.model is None and opened.preset is None:
        return notes
    theirs: Any = opened.model or opened.build()
    own: Any = model
    mine, others = own.unshaped_options(), theirs.unshaped_options()
    for name in mine.keys() & others.keys():
        if mine[name] != others[name] and name not in opened.guessed:
            raise CheckpointError(
                f"{opened.place} does not fit the model: {name} is {others[name]!r} in it, the model wants "
                f"{mine[name]!r}; give the config the same"
            )
    epsilon = getattr(theirs, "norm_epsilon", None)
    if epsilon is not None and epsilon != getattr(own, "norm_epsilon", epsilon):
        notes.append(f"note: norm_epsilon is {epsilon:g} in it, the model has {own.norm_epsilon:g}")
    return notes + list(opened.notes)


def initialize(state: TrainState, arrays: Mapping[str, np.ndarray], optimizer: Optimizer | None = None) -> TrainState:
    """A state of step 0 with other weights, at which a moving average begins; the optimizer's state stays.

    Works when the state is spread over several processes: each of them calls it with the same arrays.

    Args:
      state: of step 0.
      arrays: of `read_weights`; what is not among them keeps its value.
      optimizer: if its state holds weights, they begin there, too.

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
    if isinstance(optimizer, Averaging):
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state.optimizer)
        begin = jax.jit(optimizer.init, out_shardings=shardings)
        state = dataclasses.replace(state, optimizer=begin(variables["params"]))
    if state.ema is None:
        return dataclasses.replace(state, variables=variables)
    # Arrays of its own: a step donates the state, and no buffer can be donated twice.
    copy = jax.jit(
        lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=jax.tree.map(lambda leaf: leaf.sharding, state.ema)
    )
    return dataclasses.replace(state, variables=variables, ema=copy(variables))


def _classifier_paths(model: Body, flat: Mapping[str, Any]) -> Set[str]:
    """The paths of what depends on the number of classes; `flat` are the model's own variables by path."""
    module: Any = model
    other = abstract_variables(module.clone(num_classes=model.num_classes + 1), model.image_size[0])
    other = traverse_util.flatten_dict(other, sep="/")
    return {path for path, leaf in other.items() if path not in flat or flat[path].shape != leaf.shape}


def _only(tree: Mapping[str, Any], paths: Set[str]) -> dict[str, Any]:
    return {path: tree[path] for path in tree if path in paths}
