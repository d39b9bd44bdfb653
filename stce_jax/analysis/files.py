"""The files that `stce evaluate --output=DIR` writes: scores, logits of every image, tables and pictures of them."""

import csv
import io
import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from stce_jax.errors import DataError
from stce_jax.paths import encoded, first_line, is_remote, named_failures, open_path, read_bytes, write_bytes

SCORES = "evaluation.json"
PREDICTIONS = "predictions.npz"
BY = "by.json"
# Entries of a result that say what was evaluated, and how.
EVALUATED = ("step", "epoch", "checkpoint", "ema", "reduction", "tta", "dataset", "split")
IN_RUN = "evaluation"  # directory of a run in which others look for them
WITH_NUMBERS = 20  # max number of classes whose confusions are written into the cells
WITH_NAMES = 150  # max number of classes whose names can be read beside the picture
LONGEST = 24  # characters of such a name
_MAX_BYTES = 2**37  # of predictions: those of 100 million images are smaller
ADVICE = "give another --output"


def begin(directory: epath.PathLike) -> None:
    """Makes the directory; without evaluation.json, which is there only once all files belong together, and by.json.

    Raises:
      ConfigError: it cannot be written to.
    """
    with named_failures(f"write to {directory}", ADVICE):
        path = open_path(directory)
        if not is_remote(path):
            path.mkdir(parents=True, exist_ok=True)
        for name in (SCORES, BY):
            (path / name).unlink(missing_ok=True)


def write(
    directory: epath.PathLike,
    result: Mapping[str, Any],
    names: Iterable[str],
    labels: Int[np.ndarray, "n ..."],
    logits: Float[np.ndarray, "n C"],
) -> None:
    """Writes an evaluation to a directory, each file whole, evaluation.json last.

    evaluation.json has `result` without the confusion matrix, null for what is not finite; its groups, if it has any,
    are in by.json. predictions.npz has "labels" int32 [n], or [n, C] of several labels, "logits" float32 [n, C],
    "names" str [n], "class_ids" str [C], "tta" str []. Of one label an image, confusion.csv has true classes in rows,
    predicted ones in columns; confusion.png and reliability.png are pictures.

    Args:
      directory: local or remote.
      result: of `evaluate`.
      names: of the n images, in the order of the other two.
      labels, logits: of the images.

    Raises:
      ConfigError: it cannot be written to.
    """
    archive = io.BytesIO()
    arrays: dict[str, Any] = {"labels": labels.astype(np.int32), "logits": logits}
    texts: dict[str, Any] = {"names": names, "class_ids": result["class_ids"], "tta": result["tta"]}
    arrays |= {name: np.array(text, str) for name, text in texts.items()}
    np.savez(archive, **arrays)
    files = {PREDICTIONS: archive.getvalue()}
    if "confusion" in result:
        confusion, class_names = result["confusion"], result["class_names"]
        files |= {
            "confusion.csv": _table(confusion, class_names),
            "confusion.png": _draw_confusion(confusion, class_names),
            "reliability.png": _draw_reliability(result["reliability"], result["calibration_error"]),
        }
    if "by" in result:
        files[BY] = _json({name: result[name] for name in EVALUATED} | result["by"])
    files[SCORES] = _json({name: value for name, value in result.items() if name not in ("confusion", "by")})
    with named_failures(f"write to {directory}", ADVICE):
        for name, content in files.items():
            write_bytes(open_path(directory) / name, content)


def read_predictions(directory: epath.PathLike) -> dict[str, np.ndarray] | None:
    """{"labels" int [n], "hits" bool [n], "class_ids" [C], "tta" str []} of what `write` wrote; None if there is none.

    "tta" is "" of earlier versions, which had no test-time augmentation.

    Raises:
      DataError: it is damaged.
    """
    path = open_path(directory) / PREDICTIONS
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(read_bytes(path, _MAX_BYTES)), allow_pickle=False) as arrays:
            labels, logits, class_ids = (arrays[name] for name in ("labels", "logits", "class_ids"))
            tta = arrays["tta"] if "tta" in arrays else np.array("")
        return {"labels": labels, "hits": logits.argmax(axis=1) == labels, "class_ids": class_ids, "tta": tta}
    except Exception as error:  # of a zip file, its compression, NumPy's header, or its shapes
        raise DataError(
            f"cannot read {path}: {first_line(error)}; write it again: "
            f"stce evaluate --workdir={path.parents[1]} --output={path.parent}"
        ) from error


def _json(result: dict[str, Any]) -> bytes:
    def number(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: number(entry) for name, entry in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return (json.dumps(number(result), indent=2, allow_nan=False) + "\n").encode()


def _table(confusion: Int[np.ndarray, "C C"], class_names: Sequence[str]) -> bytes:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["true \\ predicted", *class_names])
    writer.writerows([name, *row] for name, row in zip(class_names, confusion.tolist(), strict=True))
    return encoded(table.getvalue())


def _draw_confusion(confusion: Int[np.ndarray, "C C"], class_names: Sequence[str]) -> bytes:
    """Shares of each true class, as colours; with few classes the numbers of images, too."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    count = len(class_names)
    side = min(20, 3 + count * (0.45 if count <= WITH_NUMBERS else 0.16))  # inches
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    share = confusion / np.maximum(1, confusion.sum(axis=1, keepdims=True))
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1))  # or rare confusions cannot be seen
    figure.colorbar(image, ax=axes, shrink=0.6, label="share of the true class")
    axes.set(xlabel="predicted", ylabel="true")
    if count <= WITH_NAMES:
        names = [_label(name) for name in class_names]
        size = 9 if count <= WITH_NUMBERS else 6
        axes.set_xticks(range(count), names, rotation=90, fontsize=size, parse_math=False)
        axes.set_yticks(range(count), names, fontsize=size, parse_math=False)
    if count <= WITH_NUMBERS:
        for (row, column), number in np.ndenumerate(confusion):
            colour = "white" if share[row, column] > 0.3 else "black"
            axes.text(column, row, number or "", ha="center", va="center", fontsize=8, color=colour)
    return _png(figure)


def _draw_reliability(bins: Sequence[Mapping[str, Any]], error: float) -> bytes:
    """Accuracy over confidence, and how many images have that confidence."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    left, width = [part["from"] for part in bins], 1 / len(bins)
    filled = [part for part in bins if part["images"]]
    upper.bar(
        left,
        [part["top1"] or 0 for part in bins],
        width,
        align="edge",
        edgecolor="white",
        label="a bin's accuracy, over its whole width",
    )
    means = [part["confidence"] for part in filled], [part["top1"] for part in filled]
    upper.plot(*means, "o", color="black", markersize=3, label="a bin's accuracy, at its mean confidence")
    upper.plot([0, 1], [0, 1], "--", color="grey", label="accuracy = confidence")
    upper.set(ylabel="top-1", ylim=(0, 1), xlim=(0, 1), title=f"calibration error {100 * error:.2f}%")
    upper.legend(loc="lower right", fontsize=8)
    lower.bar(left, [part["images"] for part in bins], width, align="edge", edgecolor="white")
    lower.set(xlabel="confidence", ylabel="images")
    return _png(figure)


def _label(name: str) -> str:
    name = name.encode(errors="replace").decode()  # names of folders may be no UTF-8
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _png(figure: Any) -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of names in scripts that matplotlib's font does not have
        figure.savefig(content, format="png", dpi=120, bbox_inches="tight")
    return content.getvalue()
