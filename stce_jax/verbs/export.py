"""`stce export`: a run as files that are used without it, by JAX and by other libraries."""

from collections.abc import Sequence
from typing import Any

from etils import epath

from stce_jax.analysis.files import IN_RUN, SCORES
from stce_jax.analysis.intervals import wilson_interval
from stce_jax.convert import formats, hub
from stce_jax.data.catalog import check_single_label
from stce_jax.errors import ConfigError
from stce_jax.paths import absolute, open_path, read_json
from stce_jax.training import assemble as runs
from stce_jax.verbs.appearing import appearing
from stce_jax.workdir.checkpoints import Checkpoints
from stce_jax.workdir.layout import checkpoints_in


def export(
    workdir: epath.PathLike,
    output: epath.PathLike,
    *,
    format: str = "jax",
    checkpoint: str | int = "last",
    ema: bool = False,
    platforms: Sequence[str] | None = None,
    batch: int | None = None,
    license: str | None = None,
    include: Sequence[str] | None = None,
    push: str = "",
) -> dict[str, Any]:
    """Writes a run as a directory for deployment or for another library, and makes sure that it agrees with the run.

    A directory in the format `jax` holds

    - model.jaxexport: the model with its weights and the normalisation inside, as `jax.export` serialises it:
      uint8 pixels [B, S, S, 3], red green blue, 0..255 -> float32 logits [B, classes], in evaluation mode. JAX alone
      calls it: `jax.export.deserialize(open(path, "rb").read()).call(pixels)`. Nothing is unpickled.
    - model.json: what these pixels and logits are, the classes, and how an image file becomes pixels.
    - weights.safetensors: the weights alone, for `stce train --init_from` and other programs.
    - SHA256SUMS: digests of all other files, for `load_exported` and `sha256sum -c`.

    For the other formats see the modules of `convert.formats`. The files of each are read back and compared: weights to
    the bit, logits of photographs up to rounding, on this machine's platform. The directory appears when all is well;
    else nothing is left.

    Args:
      workdir, checkpoint, ema: see `load_run`.
      output: the local directory to make; one that is there must be empty.
      format: one of `convert.formats.FORMATS`.
      platforms: jax: where the program shall run, of "cpu", "cuda", "rocm" and "tpu"; this machine's must be among
        them. None: cpu, cuda and tpu.
      batch: jax: images in every call, >= 1; None: any number.
      license: timm, huggingface: of the weights, by its name on the hub, such as "apache-2.0"; None: unknown.
      include: huggingface: other formats to put into folders of their own.
      push: huggingface: the repository of the hub, OWNER/NAME, to upload the directory to; "": none. One that is not
        there is made, for its owner's eyes alone.

    Returns:
      {"step", "dtype", "bytes" (of the program or the weights), "batch_sizes" (compared), "difference" (the greatest
      of a logit), "greatest_logit"}, the last two None if what computes them is not installed; and, as the format has
      them, "platforms", "by", "notes", "only_logits" (see `convert.formats`), "url".

    Raises:
      ConfigError: the output is not empty or cannot be written, an option cannot be, or the format has no place for
        something that the run has; a package is missing; the upload failed, after the directory had appeared.
      CheckpointError: the run cannot be read, or what was read back differs from it.

    Example:
      >>> export("runs/digits", "exports/digits")["difference"]
      >>> model = load_exported("exports/digits")
      >>> model.class_names[model.logits(model.preprocess("seven.png")[None]).argmax()]
    """
    given = {"platforms": platforms, "batch": batch, "license": license, "include": include}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    formats.find(format, options)
    if push:
        if format != "huggingface":
            raise ConfigError(f"--push is an option of --format=huggingface; leave it out with --format={format}")
        hub.check(push)
    with appearing(output) as directory:
        run = runs.load_run(workdir, checkpoint, ema)
        if format == "huggingface":
            check_single_label(run.config.task, "--format=huggingface writes a model card", "take another format")
            options["known"] = _known(workdir, run.step, ema)
        done = formats.write(format, directory, run, ema=ema, **options)
    if push:
        done["url"] = hub.upload(absolute(output), push)
    return done


def _known(workdir: epath.PathLike, step: int, ema: bool) -> dict[str, Any]:
    """What a workdir says of a checkpoint, for its model card.

    Returns:
      {"fingerprint": of the training images; "during_training": the metrics of the last evaluation in training, or
      None; "evaluation": what `stce evaluate --output=WORKDIR/evaluation` measured of the same weights, {"images",
      "top1", "top5", "split", "dataset", "interval": ends of top-1's 95% interval}, or None}.
    """
    meta = Checkpoints(checkpoints_in(workdir)).restore_meta(step, "fingerprint")
    return {
        "fingerprint": meta["fingerprint"],
        "during_training": meta["metrics"],
        "evaluation": _evaluation(workdir, step, ema),
    }


def _evaluation(workdir: epath.PathLike, step: int, ema: bool) -> dict[str, Any] | None:
    """See `_known`; None, too, for a file that is damaged, of other weights, or of several views of an image."""
    try:
        found = read_json(open_path(workdir) / IN_RUN / SCORES)
        if (found["step"], found["ema"], found["reduction"], found.get("tta", "")) != (step, ema, "", ""):
            return None
        images, top1, top5 = int(found["images"]), float(found["top1"]), float(found["top5"])
        interval = wilson_interval(round(top1 * images), images)
        words = {name: str(found[name]) for name in ("split", "dataset")}
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return None
    return {"images": images, "top1": top1, "top5": top5, "interval": (interval.low, interval.high), **words}
