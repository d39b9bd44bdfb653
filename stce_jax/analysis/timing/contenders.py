"""The models that `stce benchmark` measures against one another: each compiled, warm, and with its arrays in place.

Shape letters: B batch, S image side.
"""

import collections
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, UInt8

from stce_jax.analysis.timing.model_specs import ModelSpec
from stce_jax.analysis.timing.train_step import timed_train_step
from stce_jax.analysis.timing.turns import calls_lasting
from stce_jax.data import catalog
from stce_jax.paths import first_line
from stce_jax.platform import lack_of_memory
from stce_jax.recipe import augment
from stce_jax.training.mesh import batch_sharding, replicated
from stce_jax.training.state import TrainState
from stce_jax.training.step import run_key

IN_FLIGHT = 2  # calls that are on the device at a time; more would only fill the memory
LEARNING_RATE = 1e-9  # or the loss of the one batch would vanish, and with it the gradients: other numbers to multiply


class Contender:
    """A model in one combination, and what is measured of it.

    Attributes:
      row: what `benchmark` returns of it.
      call: runs it once and gives device arrays to wait for; None once it failed.
      rates, latencies: images a second of each round; seconds of each single call.
    """

    call: Callable[[], Any] | None
    calls: int
    rates: list[float]
    latencies: list[float]

    def __init__(
        self, spec: ModelSpec, counts: Mapping[str, int], dtype: str | None, batch_size: int, what: str
    ) -> None:
        self.spec, self.model = spec, spec.build(**({"dtype": dtype} if dtype else {}))
        self.row: dict[str, Any] = {
            "model": spec.label,
            "dtype": jnp.dtype(self.model.dtype).name,
            "batch_size": batch_size,
            "image_size": spec.image_size,
            "what": what,
            **dict.fromkeys(
                ("images_per_second", "latency_ms", "latency_ms_p95", "compile_seconds", "peak_bytes", "memory_kind")
            ),
            **counts,
            "ratio": None,
            "ratio_margin": None,
            "device": jax.devices()[0].device_kind,
            "error": "",
        }
        self.call, self.calls, self.rates, self.latencies = None, 1, [], []

    def attempt(self, function: Callable[..., None], *arguments: Any, **options: Any) -> None:
        """Runs a part of the measurement; if it fails, the row has the error and the model takes no further part."""
        try:
            function(self, *arguments, **options)
        except Exception as error:  # of memory that runs out, and whatever a model raises
            self.row["error"] = lack_of_memory.in_words(error) or f"{type(error).__name__}: {first_line(error)}"
            self.call = None  # with it goes what it holds on the device


def prepare(contender: Contender, mesh: jax.sharding.Mesh, *, seconds: float, accumulate: int) -> None:
    """Compiles a contender, puts its arrays on the device, warms it up and measures its memory."""
    device, row = mesh.devices.flat[0], contender.row
    in_use, _ = _memory_stats(device)
    image = np.random.default_rng(0).integers(0, 256, (row["image_size"], row["image_size"], 3), np.uint8)
    batch = {  # on the host these take no memory, however large the batch
        "image": np.broadcast_to(image, (row["batch_size"], *image.shape)),
        "label": np.broadcast_to(np.int32(0), (row["batch_size"],)),
    }
    training = row["what"] == "training"
    step, state = (_make_training if training else _make_inference)(contender, mesh, accumulate)
    key = (run_key(0, mesh),) if training else ()
    start = time.perf_counter()
    compiled = step.lower(_lying(state, replicated(mesh)), _lying(batch, batch_sharding(mesh)), *key).compile()
    row["compile_seconds"] = time.perf_counter() - start
    _, peak = _memory_stats(device)
    state, batch = jax.device_put((state, batch), (replicated(mesh), batch_sharding(mesh)))
    if training:

        def call() -> Any:
            nonlocal state
            state, metrics = compiled(state, batch, *key)  # the old state is donated
            return metrics
    else:
        call = functools.partial(compiled, state, batch)
    jax.block_until_ready(call())
    row["peak_bytes"], row["memory_kind"] = peak_memory(
        compiled.memory_analysis(), in_use, peak, _memory_stats(device)[1]
    )
    contender.calls = calls_lasting(call, seconds)
    contender.call = call


def _lying(arrays: Any, sharding: jax.sharding.NamedSharding) -> Any:
    """Shapes of arrays that lie on the devices so."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), arrays)


def _make_inference(contender: Contender, mesh: jax.sharding.Mesh, accumulate: int) -> tuple[Any, Any]:
    """(jitted step, variables): (variables, batch) -> logits [B, classes]."""
    del accumulate  # of training

    def inference(variables: Any, batch: Mapping[str, Array]) -> Float[Array, "B classes"]:
        return contender.model.apply(variables, _normalize(batch["image"]), train=False)

    return jax.jit(inference, out_shardings=replicated(mesh)), _noise(contender.spec.shapes)


def _make_training(contender: Contender, mesh: jax.sharding.Mesh, accumulate: int) -> tuple[Any, TrainState]:
    """(jitted step, state of step 0), see `make_train_step`."""

    def only_normalize(
        key: Array, step: Array, images: UInt8[Array, "B S S 3"], labels: Int32[Array, "B"]
    ) -> tuple[Float[Array, "B S S 3"], Float[Array, "B classes"]]:
        del key, step
        return _normalize(images), augment.soft_targets(labels, contender.spec.num_classes, smoothing=0.0)

    return timed_train_step(
        contender.model,
        _noise(contender.spec.shapes),
        only_normalize,
        mesh,
        learning_rate=LEARNING_RATE,
        accumulate=accumulate,
    )


def _normalize(images: UInt8[Array, "B S S 3"]) -> Float[Array, "B S S 3"]:
    return augment.normalize(images, mean=catalog.IMAGENET_MEAN, std=catalog.IMAGENET_STD)


def _noise(shapes: Any) -> Any:
    """Variables drawn on the host, where compiling a model's own initialisation would take longer than measuring it."""
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key in ("scale", "var"):
            return np.ones(leaf.shape, leaf.dtype)
        return 0.02 * rng.standard_normal(leaf.shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def take_turn(contender: Contender) -> None:
    """One turn: a burst of calls for the rate, then the same number one by one for the latency.

    Of a model that is called once a turn, that call counts for both.
    """
    assert contender.call

    start = time.perf_counter()
    if contender.calls > 1:
        waited_for: collections.deque[Any] = collections.deque()
        for _ in range(contender.calls):
            waited_for.append(contender.call())
            if len(waited_for) > IN_FLIGHT:
                jax.block_until_ready(waited_for.popleft())
        jax.block_until_ready(list(waited_for))  # a deque itself would not be waited for
    else:
        jax.block_until_ready(contender.call())
    took = time.perf_counter() - start
    contender.rates.append(contender.calls * contender.row["batch_size"] / took)
    if contender.calls == 1:
        contender.latencies.append(took)
        return
    for _ in range(contender.calls):
        start = time.perf_counter()
        jax.block_until_ready(contender.call())
        contender.latencies.append(time.perf_counter() - start)


def _memory_stats(device: jax.Device) -> tuple[int, int]:
    """(bytes in use, their peak) on a device, (0, 0) where it does not tell, as CPUs do not."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_in_use", 0), stats.get("peak_bytes_in_use", 0)


def peak_memory(analysis: Any, in_use: int, peak_before: int, peak_after: int) -> tuple[int, str]:
    """(peak_bytes, memory_kind) of one call.

    "device peak": what the device's allocator counted, less what lay there before this model. A peak is of the whole
    process and never falls, so it describes a model only if the model raised it.
    "compiled program": otherwise, and on CPUs; arguments, outputs and temporaries of the program, as XLA planned them.

    Args:
      analysis: of the compiled program's `memory_analysis`.
      in_use: bytes in use before the model's arrays were put on the device.
      peak_before, peak_after: the device's peak after compiling, and after the first call.
    """
    if peak_after > peak_before:
        return peak_after - in_use, "device peak"
    new_outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes  # the others lie in donated arguments
    return analysis.argument_size_in_bytes + new_outputs + analysis.temp_size_in_bytes, "compiled program"
