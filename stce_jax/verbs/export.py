"""`stce export`: a run as files that are used without it, for any number of images, on CPUs, GPUs and TPUs."""

from collections.abc import Sequence
from typing import Any

import jax.export
from etils import epath

from stce_jax.convert.program import write_exported
from stce_jax.data.loader import LARGEST_BATCH
from stce_jax.errors import ConfigError, check_whole
from stce_jax.training import assemble as runs
from stce_jax.verbs.appearing import appearing

PLATFORMS = ("cpu", "cuda", "tpu")


def export(
    workdir: epath.PathLike,
    output: epath.PathLike,
    *,
    checkpoint: str | int = "last",
    ema: bool = False,
    platforms: Sequence[str] = PLATFORMS,
    batch: int | None = None,
) -> dict[str, Any]:
    """Writes a run as a directory for deployment, and makes sure that it agrees with the run.

    The directory holds

    - model.jaxexport: the model with its weights and the normalisation inside, as `jax.export` serialises it:
      uint8 pixels [B, S, S, 3], red green blue, 0..255 -> float32 logits [B, classes], in evaluation mode. JAX alone
      calls it: `jax.export.deserialize(open(path, "rb").read()).call(pixels)`. Nothing is unpickled.
    - model.json: what these pixels and logits are, the classes, and how an image file becomes pixels.
    - weights.safetensors: the weights alone, for `stce train --init_from` and other programs.
    - SHA256SUMS: digests of the three, for `load_exported` and `sha256sum -c`.

    The files are read back and compared: weights to the bit, logits at batches of 1 and 3 up to rounding, on this
    machine's platform. The directory appears when all is well; else nothing is left.

    Args:
      workdir, checkpoint, ema: see `load_run`.
      output: the local directory to make; one that is there must be empty.
      platforms: where the program shall run, of "cpu", "cuda", "rocm" and "tpu"; this machine's must be among them.
      batch: images in every call, >= 1; None: any number.

    Returns:
      {"step", "dtype", "platforms", "bytes" (of the program), "batch_sizes" (compared), "difference" (the greatest
      of a logit), "greatest_logit"}.

    Raises:
      ConfigError: the output is not empty or cannot be written, a platform or batch cannot be.
      CheckpointError: the run cannot be read, or what was read back differs from it.

    Example:
      >>> export("runs/digits", "exports/digits")["difference"]
      >>> model = load_exported("exports/digits")
      >>> model.class_names[model.logits(model.preprocess("seven.png")[None]).argmax()]
    """
    here = jax.export.default_export_platform()
    for platform in platforms:
        if platform not in (*PLATFORMS, "rocm"):
            raise ConfigError(f"there is no platform {platform!r}; give some of {', '.join(PLATFORMS)}, rocm")
    if here not in platforms:
        raise ConfigError(f"the exported model is compared here, on {here}: put {here} among the platforms, too")
    if batch is not None:
        check_whole("batch", batch, 1, LARGEST_BATCH)
    with appearing(output) as directory:
        run = runs.load_run(workdir, checkpoint, ema)
        return write_exported(directory, run, ema=ema, platforms=platforms, batch=batch)
