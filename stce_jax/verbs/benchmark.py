"""`stce benchmark`: images a second, latency and memory of models, timed in turn on one device.

Shape letters: B batch, S image side.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stce_jax.analysis.costs import count_model
from stce_jax.analysis.timing import contenders
from stce_jax.analysis.timing.contenders import Contender
from stce_jax.analysis.timing.model_specs import read_specs
from stce_jax.analysis.timing.turns import in_turn, median_estimate
from stce_jax.data.loader import LARGEST_BATCH
from stce_jax.errors import check_choice, check_range, check_whole
from stce_jax.models.factory import DTYPES, LARGEST_SIDE, MOST_CLASSES
from stce_jax.platform.cpu_library import ENOUGH_WORK, chosen_for
from stce_jax.training.mesh import make_mesh
from stce_jax.training.step import check_accumulation

WHAT = ("inference", "training")


def benchmark(
    models: str | Sequence[str],
    *,
    batch_sizes: Sequence[int] | None = None,
    dtypes: Sequence[str] | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
    what: Sequence[str] = WHAT,
    rounds: int = 10,
    seconds: float = 0.2,
    accumulate: int = 1,
    on_rows: Callable[[list[dict[str, Any]]], None] | None = None,
) -> list[dict[str, Any]]:
    """Measures models against one another on the first device, every combination of batch size, dtype and `what`.

    The models of one combination take turns, round by round, in an order drawn again each time: other load on the
    machine affects all of them, and the ratios within a round stay meaningful while its speed drifts.

    "inference" is uint8 pixels to logits. "training" is the whole step that `stce train` runs: forward, backward,
    AdamW, with an augmentation that normalises and does nothing else, and without a moving average. Batches lie on the
    device already: loading, augmentation and transfer from the host are not included, nor is compiling, which is
    reported separately. Weights are noise: speed does not depend on them.

    Args:
      models: names of models or shell patterns of them, workdirs of runs, or configs ("digits:patch", "my/config.py"),
        each optionally with options: "vit_s_stce,iterations=1".
      batch_sizes: images of a batch, each >= 1; None: 1, 8 and 32, for workdirs and configs their own.
      dtypes: of the computation, "float32" or "bfloat16"; None: each model's own.
      image_size: side in pixels; None: 224, for workdirs and configs their own.
      num_classes: of the head; None: 100, for runs with a checkpoint their own.
      what: "inference", "training" or both.
      rounds: turns of each model, >= 1.
      seconds: minimum length of a turn; quick models are called several times.
      accumulate: micro-batches of a training step, see `make_train_step`.
      on_rows: called with the rows of each combination once they are measured.

    Returns:
      A list of dicts, one for each model and combination:
      "model" (as given), "dtype", "batch_size", "image_size", "what", "images_per_second" (median over rounds, calls
      back to back), "latency_ms" and "latency_ms_p95" (of a batch: median and 95th percentile of calls one by one),
      "compile_seconds" (tracing and compiling; less where a persistent compilation cache knows the program, which one
      CPU device does not use here: see `platform.cpu_library`),
      "peak_bytes" and "memory_kind" (see `contenders.peak_memory`), "parameters", "embedding_parameters",
      "multiply_adds" (forward, an image),
      "ratio" and "ratio_margin" (of images_per_second to that of the combination's first model: median over rounds and
      half the width of its 95% interval), "device", and "error": "" or why there are no numbers. What was not measured
      is None; where one combination fails, by lack of memory say, the others are still measured.

    Raises:
      StceError: an impossible model, option or number; nothing was measured.

    Example:
      >>> rows = benchmark(["vit_s_patch", "vit_s_stce,iterations=1"], batch_sizes=[8], what=["inference"])
    """
    mesh = make_mesh(devices=jax.devices()[:1])
    _check(batch_sizes, dtypes, image_size, num_classes, what, rounds, seconds)
    check_whole("accumulate", accumulate, 1, LARGEST_BATCH)
    specs = read_specs(models, image_size=image_size, num_classes=num_classes)
    sizes = [batch_sizes or spec.batch_sizes for spec in specs]
    counts = [count_model(spec.build(), spec.image_size) for spec in specs]
    if "training" in what:
        for size in itertools.chain(*sizes):
            check_accumulation(size, accumulate, mesh)
    rows = []
    for size, dtype, task in itertools.product(sorted({*itertools.chain(*sizes)}), dtypes or (None,), what):
        rivals = [
            Contender(spec, own_counts, dtype, size, task)
            for spec, own_sizes, own_counts in zip(specs, sizes, counts, strict=True)
            if size in own_sizes
        ]
        in_float32 = any(rival.model.dtype == jnp.float32 for rival in rivals)
        with chosen_for(ENOUGH_WORK if in_float32 else 0.0):  # a CPU computes as in a long run
            rows += _measure(rivals, mesh, rounds=rounds, seconds=seconds, accumulate=accumulate)
        if on_rows:
            on_rows(rows[-len(rivals) :])
    return rows


def _check(
    batch_sizes: Sequence[int] | None,
    dtypes: Sequence[str] | None,
    image_size: int | None,
    num_classes: int | None,
    what: Sequence[str],
    rounds: int,
    seconds: float,
) -> None:
    for name, number, largest in (
        *(("batch size", size, LARGEST_BATCH) for size in batch_sizes or ()),
        ("image_size", 1 if image_size is None else image_size, LARGEST_SIDE),
        ("num_classes", 1 if num_classes is None else num_classes, MOST_CLASSES),
        ("rounds", rounds, 1_000_000),
    ):
        check_whole(name, number, 1, largest)
    check_range("seconds", seconds, 0, 86_400)
    for name, choices, chosen in (("dtype", DTYPES, dtypes or ()), ("what", WHAT, what)):
        for choice in chosen:
            check_choice(name, choice, choices)


def _measure(
    rivals: Sequence[Contender], mesh: jax.sharding.Mesh, *, rounds: int, seconds: float, accumulate: int
) -> list[dict[str, Any]]:
    """Measures the models of one combination against one another; their rows."""
    for rival in rivals:
        rival.attempt(contenders.prepare, mesh, seconds=seconds, accumulate=accumulate)
    for place in in_turn(range(len(rivals)), rounds):
        if rivals[place].call:
            rivals[place].attempt(contenders.take_turn)
    first = rivals[0]
    for rival in rivals:
        if rival.row["error"]:
            continue
        rival.row |= {
            "images_per_second": statistics.median(rival.rates),
            "latency_ms": 1e3 * statistics.median(rival.latencies),
            "latency_ms_p95": 1e3 * float(np.percentile(rival.latencies, 95)),
        }
        if not first.row["error"]:
            ratio = median_estimate(own / other for own, other in zip(rival.rates, first.rates, strict=True))
            margin = None if math.isnan(ratio.margin) else ratio.margin
            rival.row |= {"ratio": ratio.value, "ratio_margin": margin}
    return [rival.row for rival in rivals]
