"""Finished cells of a sweep without training: what `stce train` and `stce evaluate` would have left there."""

import json

import numpy as np

PLACE = "node7, 2 cores, 1 x cpu, Python 3.11.7, jax 0.10.2"


def finish(cell, hits, *, best=None, seconds=90.0, **changes):
    """Writes a cell whose last epoch has right what `hits` [images] says; `best` is its best epoch's top-1.

    `changes` are entries of evaluation.json, as another evaluation would have them.
    """
    hits = np.asarray(hits, bool)
    top1 = float(hits.mean())
    cell.directory.mkdir(parents=True, exist_ok=True)
    train, evaluate = (["stce", *words] for words in cell.commands(""))
    record = {"commands": [" ".join(train), " ".join(evaluate)], "place": PLACE, "seconds": seconds}
    (cell.directory / "cell.json").write_text(json.dumps(record | {"exit_code": 0, "error": ""}))
    lines = [
        {"step": 10, "epoch": 1.0, "split": "train", "loss": 2.0, "top1": 0.2, "images_per_second": 100.0},
        {"step": 10, "epoch": 1.0, "split": "eval", "loss": 1.5, "top1": best or top1, "top5": 0.9},
        {"step": 20, "epoch": 2.0, "split": "train", "loss": 1.0, "top1": 0.6, "images_per_second": 300.0},
        {"step": 20, "epoch": 2.0, "split": "eval", "loss": 1.2, "top1": top1, "top5": 0.95},
    ]
    (cell.directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluation = cell.directory / "evaluation"
    evaluation.mkdir(exist_ok=True)
    labels = np.arange(len(hits)) % 10
    predicted = np.where(hits, labels, (labels + 1) % 10)
    logits = np.eye(10, dtype=np.float32)[predicted]
    np.savez(evaluation / "predictions.npz", labels=labels.astype(np.int32), logits=logits, class_ids=np.arange(10))
    found = {"top1": top1, "checkpoint": "last", "ema": False, "split": "val", **changes}
    found |= {"step": 20 * cell.row.config().epochs, "epoch": cell.row.config().epochs} if "step" not in changes else {}
    (evaluation / "evaluation.json").write_text(json.dumps(found))


def fail(cell, error="there is no GPU", exit_code=3):
    """Writes a cell whose training failed."""
    cell.directory.mkdir(parents=True, exist_ok=True)
    record = {"commands": ["stce train"], "place": PLACE, "seconds": 1.0, "exit_code": exit_code, "error": error}
    (cell.directory / "cell.json").write_text(json.dumps(record))
