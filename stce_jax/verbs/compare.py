"""`stce compare`: curves and figures of runs side by side, and how sure the difference of two is."""

import json
import os

import numpy as np

from stce_jax.analysis import files
from stce_jax.analysis.curves import curves
from stce_jax.analysis.intervals import bootstrap_difference, mcnemar
from stce_jax.errors import CheckpointError, ConfigError
from stce_jax.paths import first_line, open_path
from stce_jax.training import assemble as runs
from stce_jax.training.state import abstract_variables
from stce_jax.training.timetable import is_last
from stce_jax.verbs.summary import count_parameters
from stce_jax.workdir import config as configuration
from stce_jax.workdir import layout
from stce_jax.workdir.checkpoints import Checkpoints
from stce_jax.workdir.metrics import read_metrics, training_speed


def compare(workdirs, output="", *, checkpoint="last"):
    """Compares runs, finished or not, by what they have logged; the first is the one that the others are held against.

    Args:
      workdirs: of the runs, at least one.
      output: picture to draw their curves to, its suffix says the format; "" for none.
      checkpoint: whose evaluation is shown: "last", "best" (by top-1, of equals the last), or a step.

    Returns:
      {"runs": [...], "pairs": [...]}. What there is not yet is None. A run is {"run", "model", "epoch": of the last
      line logged, "epochs": of the config, "finished", "step", "loss", "top1": of the evaluation shown, "best_step",
      "best_top1": chosen on the images of the evaluation, so no independent estimate, "parameters",
      "images_per_second": median in training, "differences": of its config from the first run's,
      "predictions": whether there is its evaluation/predictions.npz, of whatever checkpoint that was written}.
      A pair is the first run and another, by these predictions: {"first", "second", "images", "first_top1",
      "second_top1", "difference": the latter less the former, "low", "high": 95% interval of the paired bootstrap over
      images, "only_first", "only_second": images that one alone has right, "p_value": of McNemar's exact test}; where
      they cannot be compared, {"first", "second", "reason"}. Accuracies are fractions.

    Raises:
      ConfigError: a workdir is none of a run, or the picture cannot be written.
      CheckpointError: a run was not evaluated at the step.
      DataError: predictions are damaged.
    """
    workdirs = [os.fspath(workdir) for workdir in workdirs]
    if len(set(workdirs)) < len(workdirs):
        raise ConfigError("a run is named twice; name each once")
    configs = [_read_config(workdir) for workdir in workdirs]
    metrics = [read_metrics(workdir) for workdir in workdirs]
    predictions = [files.read_predictions(open_path(workdir) / files.IN_RUN) for workdir in workdirs]
    counts = {}  # seeds of one model are counted once
    rows = [
        _row(workdir, config, lines, checkpoint, counts)
        | {"differences": configuration.differences(configs[0], config), "predictions": hits is not None}
        for workdir, config, lines, hits in zip(workdirs, configs, metrics, predictions, strict=True)
    ]
    pairs = [
        {"first": workdirs[0], "second": workdir, **_difference(predictions[0], others)}
        for workdir, others in zip(workdirs[1:], predictions[1:], strict=True)
    ]
    if output:
        groups = {label: [lines] for label, lines in zip(short_names(workdirs), metrics, strict=True)}
        try:
            curves(groups, open_path(output))
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot write {output}: {first_line(error)}; give another --output") from error
    return {"runs": rows, "pairs": pairs}


def short_names(workdirs):
    """The last parts of paths, as many as it takes to tell them apart."""
    parts = [os.path.normpath(workdir).split(os.sep) for workdir in workdirs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-count:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    return workdirs


def _read_config(workdir):
    try:
        return layout.read_config(workdir)
    except ConfigError as error:
        raise error if workdir in str(error) else ConfigError(f"{workdir}: {error}") from error


def _row(workdir, config, lines, checkpoint, counts):
    """What is said about a run; `counts` keeps the parameters of models already counted."""
    evaluations = [line for line in lines if line["split"] == "eval"]
    best = max(evaluations, key=lambda line: (line["top1"], line["step"]), default={})
    if checkpoint in ("last", "best") or not evaluations:
        shown = best if checkpoint == "best" else next(reversed(evaluations), {})
    else:
        shown = next((line for line in evaluations if str(line["step"]) == str(checkpoint)), None)
        if shown is None:
            steps = ", ".join(str(line["step"]) for line in evaluations)
            raise CheckpointError(f"{workdir} was not evaluated at step {checkpoint!r}; it was at last, best, {steps}")
    return {
        "run": workdir,
        "model": config.model.name,
        "epoch": max((line["epoch"] for line in lines), default=0.0),
        "epochs": config.epochs,
        "finished": bool(evaluations) and is_last(evaluations[-1]["step"], evaluations[-1]["epoch"], config.epochs),
        "step": shown.get("step"),
        "loss": shown.get("loss"),
        "top1": shown.get("top1"),
        "best_step": best.get("step"),
        "best_top1": best.get("top1"),
        "parameters": _count_parameters(workdir, config, counts),
        "images_per_second": training_speed(lines),
    }


def _count_parameters(workdir, config, counts):
    """None before the first checkpoint: that knows how many classes the head has."""
    checkpoints = Checkpoints(layout.checkpoints_in(workdir))
    try:
        classes = len(checkpoints.restore_meta(checkpoints.steps()[-1])["class_names"])
    except (IndexError, CheckpointError):  # none yet, or deleted meanwhile by the run that writes them
        return None
    key = f"{classes} {config.image_size} {config.model}"
    if key not in counts:
        variables = abstract_variables(runs.build_model(config, classes), config.image_size)
        counts[key] = count_parameters(variables["params"])
    return counts[key]


def _difference(first, second):
    """What two runs' predictions say about the difference of their accuracies."""
    if first is None or second is None:
        return {"reason": "no predictions"}
    if not all(np.array_equal(first[name], second[name]) for name in ("labels", "class_ids")):
        return {"reason": "other images"}
    mean, low, high = bootstrap_difference(second["hits"], first["hits"])
    only_first, only_second, p_value = mcnemar(first["hits"], second["hits"])
    return {
        "images": len(first["labels"]),
        "first_top1": float(first["hits"].mean()),
        "second_top1": float(second["hits"].mean()),
        "difference": mean,
        "low": low,
        "high": high,
        "only_first": only_first,
        "only_second": only_second,
        "p_value": p_value,
    }


def to_json(result):
    """What `compare` returns, as JSON text."""
    return json.dumps(result, indent=2, allow_nan=False)
