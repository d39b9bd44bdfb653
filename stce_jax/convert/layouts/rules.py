"""Rules of a layout: one parameter of ours, the array or arrays of the other library, and how one becomes the other."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from stce_jax.errors import CheckpointError, shown

Change = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Form:
    """How an array changes its shape: `read` to ours and `write` to theirs, each of which undoes the other.

    Attributes:
      axes: how many axes theirs has; None: any number.
    """

    read: Change
    write: Change
    axes: int | None = None


@dataclasses.dataclass(frozen=True)
class Rule:
    """One parameter of ours.

    Attributes:
      ours: path in the model's variables, such as "params/blocks_0/attention/qkv/kernel".
      theirs: its names in the other library; several are joined along our last axis, of which each has an equal part.
      form: how each of them is brought over.
      optional: some models have it and others have not, without an option that says so: a head without classes, or what
        small images do without.
    """

    ours: str
    theirs: tuple[str, ...]
    form: Form
    optional: bool = False

    def read(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Our array of theirs; CheckpointError if one has another number of axes, or a shape that its form has not."""
        for name, array in zip(self.theirs, arrays, strict=True):
            if self.form.axes is not None and array.ndim != self.form.axes:
                raise CheckpointError(f"{name} has the shape {array.shape}, not {self.form.axes} axes")
        try:
            parts = [self.form.read(array) for array in arrays]
            return np.concatenate(parts, axis=-1) if parts[0].ndim else parts[0]
        except ValueError as error:
            shapes = " and ".join(str(array.shape) for array in arrays)
            raise CheckpointError(f"{self.theirs[0]} has the shape {shapes}, which gives no {self.ours}") from error

    def write(self, array: np.ndarray) -> list[np.ndarray]:
        """Their arrays of ours."""
        parts = np.split(array, len(self.theirs), axis=-1) if array.ndim else [array]
        return [np.ascontiguousarray(self.form.write(part)) for part in parts]


def _unchanged(array: np.ndarray) -> np.ndarray:
    return array


def _transposed(array: np.ndarray) -> np.ndarray:
    return array.T


def _patches(weight: np.ndarray) -> np.ndarray:
    return weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))


def _patch_convolution(kernel: np.ndarray) -> np.ndarray:
    return _cells(kernel, math.isqrt(len(kernel) // 3))


def _halving_convolution(kernel: np.ndarray) -> np.ndarray:
    return _cells(kernel, 2)


def _cells(kernel: np.ndarray, side: int) -> np.ndarray:
    return kernel.reshape(side, side, -1, kernel.shape[-1]).transpose(3, 2, 0, 1)


SAME = Form(_unchanged, _unchanged)
LINEAR = Form(_transposed, _transposed, 2)  # [out, in] and [in, out]
# Depth-wise ones, too: [C, 1, k, k] and [k, k, 1, C].
CONVOLUTION = Form(lambda weight: weight.transpose(2, 3, 1, 0), lambda kernel: kernel.transpose(3, 2, 0, 1), 4)
# As a product: [out, in, 1, 1] and [in, out].
POINTWISE = Form(lambda weight: weight.reshape(weight.shape[:2]).T, lambda kernel: kernel.T[:, :, None, None], 4)
PATCHES = Form(_patches, _patch_convolution, 4)  # of RGB images: [D, 3, p, p] and [p p 3, D]
HALVING = Form(_patches, _halving_convolution, 4)  # of a map, as a product: [D, C, 2, 2] and [4 C, D]
# [1, A, N, K] and [A, N, K].
FIRST_OF_ONE = Form(lambda array: array.reshape(array.shape[1:]), lambda array: array[None], 4)


def linear(ours: str, *theirs: str, bias: bool = True, form: Form = LINEAR, optional: bool = False) -> Iterable[Rule]:
    """The rules of a linear layer or a convolution; several of `theirs` are parts of one of ours."""
    yield Rule(f"params/{ours}/kernel", tuple(f"{name}.weight" for name in theirs), form, optional)
    if bias:
        yield Rule(f"params/{ours}/bias", tuple(f"{name}.bias" for name in theirs), SAME, optional)


def norm(ours: str, theirs: str, bias: bool = True) -> Iterable[Rule]:
    """The rules of a LayerNorm, or without a bias of an RMSNorm."""
    yield Rule(f"params/{ours}/scale", (f"{theirs}.weight",), SAME)
    if bias:
        yield Rule(f"params/{ours}/bias", (f"{theirs}.bias",), SAME)


def batch_norm(ours: str, theirs: str) -> Iterable[Rule]:
    """The rules of a BatchNorm with its running statistics."""
    yield from norm(ours, theirs)
    yield Rule(f"batch_stats/{ours}/mean", (f"{theirs}.running_mean",), SAME)
    yield Rule(f"batch_stats/{ours}/var", (f"{theirs}.running_var",), SAME)


def parameter(ours: str, theirs: str, form: Form = SAME) -> Rule:
    """The rule of a parameter of its own."""
    return Rule(f"params/{ours}", (theirs,), form)


def check_own(options: Mapping[str, Any], body: str, **values: Any) -> None:
    """Raises CheckpointError if a model's options differ from what a body is in its published code."""
    for name, value in values.items():
        if options.get(name, value) != value:
            raise CheckpointError(f"{body} with {name}={shown(options[name])} is in no other library")
