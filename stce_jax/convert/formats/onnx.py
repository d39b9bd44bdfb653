"""The format `onnx`: the model with its weights, normalisation and clustering as an ONNX graph, for ONNX Runtime.

Files: model.onnx, uint8 pixels [batch, S, S, 3] -> float32 logits [batch, classes], any number of images; and
model.json. jax2onnx converts, ONNX Runtime is compared with the run.

Shape letters: B batch, S image side.
"""

import contextlib
import importlib
import importlib.metadata
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, Float, UInt8

from stce_jax.convert.comparison import Logits, compare_logits, in_float32
from stce_jax.convert.description import describe, write_description
from stce_jax.convert.formats import others
from stce_jax.errors import ConfigError
from stce_jax.paths import first_line, write_bytes
from stce_jax.recipe import augment
from stce_jax.training.assemble import Run
from stce_jax.workdir.weights import flatten, unflatten

MODEL = "model.onnx"
PIXELS, LOGITS = "pixels", "logits"  # names of the graph's input and output
LARGEST = 2**31 - 2**20  # bytes that a file of ONNX can have, less what is no weight
PACKAGES = ("jax2onnx", "onnx", "onnxruntime")


def check() -> None:
    """Raises ConfigError if a package is missing that converts, or that runs what was converted."""
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"--format=onnx needs {name}, which is not there ({first_line(error)}): "
                'pip install "stce_jax[onnx]", then pip install --no-deps jax2onnx'
            ) from error


def write(directory: Path, run: Run, *, ema: bool) -> dict[str, Any]:
    """Writes a run as an ONNX graph; see `formats`.

    Raises:
      ConfigError: the converter or ONNX Runtime has no counterpart of an operation, or the graph is too large.
    """
    own = in_float32(run)  # ONNX Runtime lacks half of the operations in bfloat16
    graph = _convert(own, unflatten(flatten(run.variables)))
    write_bytes(directory / MODEL, graph)
    versions = {name: _version(name) for name in PACKAGES}
    more = {"inputs": [PIXELS], "outputs": [LOGITS], "converted_by": versions}
    write_description(directory, describe(own, ema=ema, normalised_inside=True, more=more))
    compared = compare_logits(run, _by_onnxruntime(directory / MODEL))
    return {
        "step": run.step,
        "dtype": "float32",
        "bytes": len(graph),
        "only_logits": True,  # the graph has its weights in another form
        "by": f"ONNX Runtime {versions['onnxruntime']}",
        "notes": [] if own is run else [f"computes in float32, the run in {run.config.model.dtype}"],
        **compared,
    }


def _convert(run: Run, variables: Mapping[str, Any]) -> bytes:
    """The graph of pixels -> logits, weights inside."""
    size = run.config.image_size
    if (weight := sum(array.nbytes for array in jax.tree.leaves(variables))) > LARGEST:
        raise ConfigError(f"the weights have {weight:,} bytes, an ONNX file at most 2 GiB; give {others('onnx')}")

    def logits(pixels: UInt8[Array, "B S S 3"]) -> Float[Array, "B classes"]:
        return run.model.apply(variables, augment.normalize(pixels, mean=run.mean, std=run.std), train=False)

    jax2onnx: Any = importlib.import_module("jax2onnx")
    (batch,) = jax.export.symbolic_shape("batch")
    pixels = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    options = {"model_name": "stce_jax", "input_names": [PIXELS], "output_names": [LOGITS]}
    with _refused(f"jax2onnx {_version('jax2onnx')} cannot convert this model"), _default_branches(), _quiet():
        try:
            model = jax2onnx.to_onnx(logits, inputs=[pixels], **options)
        except Exception:
            # It traces with functions of its own in place of some of JAX's, which take less than those do. What JAX
            # traces without them, and without what only `stce visualize` reads, it may take all the same.
            model = jax2onnx.to_onnx(_traced(logits, pixels), inputs=[pixels], **options)
    _drop_unused(model.graph)
    return model.SerializeToString()


def _drop_unused(graph: Any) -> set[str]:
    """Removes constants that the converter left over; ONNX Runtime warns of each wherever the file is opened.

    Returns:
      The names that a graph reads, those within its loops and branches included.
    """
    read = {output.name for output in graph.output}
    for node in graph.node:
        read |= set(node.input)
        for attribute in node.attribute:
            inner = [attribute.g] if attribute.HasField("g") else attribute.graphs
            read = read.union(*(_drop_unused(each) for each in inner))
    kept = [constant for constant in graph.initializer if constant.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return read


def _traced(function: Callable[..., Any], inputs: jax.ShapeDtypeStruct) -> Callable[..., Any]:
    """The same function as operations that JAX has traced, without those that its output does not need."""
    closed = jax.make_jaxpr(function)(inputs)
    needed, _ = dce_jaxpr(closed.jaxpr, [True], instantiate=True)
    call = jaxpr_as_fun(ClosedJaxpr(needed, closed.consts))
    return lambda array: call(array)[0]


@contextlib.contextmanager
def _default_branches() -> Iterator[None]:
    """Within it `jax.lax.platform_dependent` takes the default branch: ONNX has no word for the platform.

    What JAX traced and kept meanwhile is dropped, so that nothing else in this process takes that branch.
    """
    real = jax.lax.platform_dependent

    def default_branch(*operands: Any, default: Callable[..., Any] | None = None, **branches: Any) -> Any:
        return real(*operands, **branches) if default is None else default(*operands)

    jax.clear_caches()
    jax.lax.platform_dependent = default_branch
    try:
        yield
    finally:
        jax.lax.platform_dependent = real
        jax.clear_caches()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the converter's remarks on every model from standard error; what it raises is kept."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _by_onnxruntime(path: Path) -> Logits:
    """Pixels -> logits of the graph; raises ConfigError where ONNX Runtime does not take or compute it."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    with _refused("ONNX Runtime does not take what jax2onnx made of this model"):
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def logits(pixels: np.ndarray) -> np.ndarray:
        with _refused("ONNX Runtime does not compute what jax2onnx made of this model"):
            return session.run([LOGITS], {PIXELS: pixels})[0]

    return logits


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
    """Turns any error of the two libraries, which have many kinds, into one line."""
    try:
        yield
    except Exception as error:
        raise ConfigError(f"{what}: {type(error).__name__}: {first_line(error)}; give {others('onnx')}") from error


def _version(name: str) -> str:
    module = importlib.import_module(name)
    return getattr(module, "__version__", None) or importlib.metadata.version(name)
