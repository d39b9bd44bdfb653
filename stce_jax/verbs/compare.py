"""`stce compare`: curves and figures of runs side by side, and how sure the difference of two is."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from stce_jax.analysis import files
from stce_jax.analysis.costs import count_parameters
from stce_jax.analysis.curves import curves
from stce_jax.analysis.intervals import bootstrap_difference, mcnemar
from stce_jax.data.catalog import MULTI_LABEL, SINGLE_LABEL
from stce_jax.errors import CheckpointError, ConfigError
from stce_jax.paths import named_failures, open_path
from stce_jax.training import assemble as runs
from stce_jax.training.patience import ran_out
from stce_jax.training.timetable import is_last
from stce_jax.workdir import config as configuration
from stce_jax.workdir import layout
from stce_jax.workdir.checkpoints import Checkpoints
from stce_jax.workdir.metric_lines import read_metrics, training_speed
from stce_jax.workdir.score import score

_SCORE = {SINGLE_LABEL: "top1", MULTI_LABEL: "map"}  # by config.task


def compare(
    workdirs: Iterable[epath.PathLike], output: epath.PathLike = "", *, checkpoint: str | int = "last"
) -> dict[str, Any]:
    """Compares runs, finished or not, by what they have logged; the others are compared with the first.

    Args:
      workdirs: of the runs, at least one.
      output: picture to draw their curves to, its suffix says the format; "" for none.
      checkpoint: whose evaluation is shown: "last", "best" (by the score, of equals the last), or a step.

    Returns:
      {"score": "top1", or "map" of runs whose images have several labels, "runs": [...], "pairs": [...], none of such
      runs}. What is not there yet is None. A run is {"run", "model", "epoch": of the last line logged, "epochs": of the
      config, "finished", "step", "loss", "top1" or "map": of the evaluation shown, "best_step", "best_top1" or
      "best_map": chosen on the images of the evaluation, so no independent estimate, "parameters", "images_per_second":
      median in training, "differences": of its config from the first run's, "predictions": whether there is its
      evaluation/predictions.npz, of whatever checkpoint that was written}.
      A pair is the first run and another, compared by these predictions: {"first", "second", "images", "first_top1",
      "second_top1", "difference": the latter less the former, "low", "high": 95% interval of the paired bootstrap over
      images, "only_first", "only_second": images that one alone has right, "p_value": of McNemar's exact test, "tta":
      the test-time augmentation of both}; where they cannot be compared, {"first", "second", "reason"}. Accuracies are
      fractions.

    Raises:
      ConfigError: a workdir is none of a run, runs have different tasks, or the picture cannot be written.
      CheckpointError: a run was not evaluated at the step.
      DataError: predictions are damaged.
    """
    paths = [os.fspath(workdir) for workdir in workdirs]
    if len(set(paths)) < len(paths):
        raise ConfigError("a run is named twice; name each once")
    configs = [_read_config(path) for path in paths]
    check_same_task(configs, paths)
    metrics = [read_metrics(path) for path in paths]
    single = configs[0].task == SINGLE_LABEL
    predictions = [files.read_predictions(open_path(path) / files.IN_RUN) if single else None for path in paths]
    counts: dict[str, int] = {}  # seeds of one model are counted once
    rows = [
        _row(path, config, lines, checkpoint, counts)
        | {"differences": configuration.differences(configs[0], config), "predictions": hits is not None}
        for path, config, lines, hits in zip(paths, configs, metrics, predictions, strict=True)
    ]
    pairs = [
        {"first": paths[0], "second": path, **_difference(predictions[0], others)}
        for path, others in zip(paths[1:], predictions[1:], strict=True)
        if single
    ]
    if output:
        groups = {label: [lines] for label, lines in zip(short_names(paths), metrics, strict=True)}
        with named_failures(f"write {output}", "give another --output", (OSError, ValueError)):
            curves(groups, open_path(output))
    return {"score": _SCORE[configs[0].task], "runs": rows, "pairs": pairs}


def check_same_task(configs: Sequence[Any], workdirs: Sequence[str]) -> None:
    """Raises ConfigError for runs of which some have one label an image and others several: no score is of both."""
    for config, workdir in zip(configs, workdirs, strict=True):
        if config.task != configs[0].task:
            raise ConfigError(
                f"{workdir} has config.task {config.task}, and {workdirs[0]} {configs[0].task}: their scores cannot be "
                "compared; leave one out"
            )


def short_names(workdirs: Sequence[str]) -> Sequence[str]:
    """The last parts of paths, enough to tell them apart."""
    parts = [os.path.normpath(workdir).split(os.sep) for workdir in workdirs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-count:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    return workdirs


def _read_config(workdir: str) -> Any:
    try:
        return layout.read_config(workdir)
    except ConfigError as error:
        raise error if workdir in str(error) else ConfigError(f"{workdir}: {error}") from error


def _row(
    workdir: str, config: Any, lines: Sequence[dict[str, Any]], checkpoint: str | int, counts: dict[str, int]
) -> dict[str, Any]:
    """What is reported about a run; `counts` keeps the parameters of models already counted."""
    shown: Mapping[str, Any] | None
    evaluations = [line for line in lines if line["split"] == "eval"]
    best: Mapping[str, Any] = max(evaluations, key=lambda line: (score(line) or 0.0, line["step"]), default={})
    if checkpoint in ("last", "best") or not evaluations:
        shown = best if checkpoint == "best" else next(reversed(evaluations), {})
    else:
        shown = next((line for line in evaluations if str(line["step"]) == str(checkpoint)), None)
        if shown is None:
            steps = ", ".join(str(line["step"]) for line in evaluations)
            raise CheckpointError(f"{workdir} was not evaluated at step {checkpoint!r}; it was at last, best, {steps}")
    name = _SCORE[config.task]
    return {
        "run": workdir,
        "model": config.model.name,
        "epoch": max((line["epoch"] for line in lines), default=0.0),
        "epochs": config.epochs,
        "finished": is_finished(lines, config),
        "step": shown.get("step"),
        "loss": shown.get("loss"),
        name: score(shown),
        "best_step": best.get("step"),
        f"best_{name}": score(best),
        "parameters": _count_parameters(workdir, config, counts),
        "images_per_second": training_speed(lines),
    }


def is_finished(lines: Sequence[dict[str, Any]], config: Any) -> bool:
    """Whether the last evaluation is the run's last; a run whose batch has changed has its present one since then."""
    evaluations = [line for line in lines if line["split"] == "eval"]
    if not evaluations:
        return False
    last = evaluations[-1]
    earlier = (line for line in reversed(lines) if line["step"] < last["step"] and line["epoch"] < last["epoch"])
    before = next(earlier, {"step": 0, "epoch": 0.0})
    rate = (last["step"] - before["step"]) / (last["epoch"] - before["epoch"])
    return is_last(last["step"], last["epoch"], config.epochs, rate) or ran_out(config, evaluations)


def _count_parameters(workdir: str, config: Any, counts: dict[str, int]) -> int | None:
    """None before the first checkpoint: that knows how many classes the head has."""
    checkpoints = Checkpoints(layout.checkpoints_in(workdir))
    try:
        classes = len(checkpoints.restore_meta(checkpoints.steps()[-1], "class_names")["class_names"])
    except (IndexError, CheckpointError):  # none yet, or deleted meanwhile by the run that writes them
        return None
    key = f"{classes} {config.image_size} {config.model}"
    if key not in counts:
        try:
            _, variables = runs.describe(config, classes)
        except ConfigError as error:
            raise ConfigError(f"{workdir}: {error}") from error
        counts[key] = count_parameters(variables["params"])
    return counts[key]


def _difference(first: dict[str, np.ndarray] | None, second: dict[str, np.ndarray] | None) -> dict[str, Any]:
    """The difference of two runs' accuracies by their predictions."""
    if first is None or second is None:
        return {"reason": "no predictions"}
    if not all(np.array_equal(first[name], second[name]) for name in ("labels", "class_ids")):
        return {"reason": "other images"}
    if first["tta"] != second["tta"]:
        return {"reason": "other test-time augmentation"}
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
        "tta": str(first["tta"]),
    }


def to_json(result: Mapping[str, Any]) -> str:
    """What `compare` returns, as JSON text."""
    return json.dumps(result, indent=2, allow_nan=False)
