"""What a run measures: `metrics.jsonl` (one object a line), TensorBoard events, and the learning-curve plot."""

import json
import os
from pathlib import Path

FILE_NAME = "metrics.jsonl"


class MetricsLog:
    """Appends to a workdir's metrics.jsonl and TensorBoard events.

    Args:
      workdir: the directory; must exist.
      after_step: the step that training goes on from. Lines of later steps, left by a run that died after writing
        them, are removed, so that each (split, step) stands once.
    """

    def __init__(self, workdir, *, after_step):
        from tensorboardX import SummaryWriter

        self._path = Path(workdir) / FILE_NAME
        kept = [line for line in read_metrics(workdir) if line["step"] <= after_step]
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(partial, self._path)
        self._file = self._path.open("a")
        self._events = SummaryWriter(str(workdir), purge_step=after_step + 1)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._file.close()
        self._events.close()

    def write(self, *, step, epoch, split, **values):
        """Writes one line; `values` are floats: loss, top1, top5 (fractions), learning_rate, images_per_second."""
        self._file.write(json.dumps({"step": step, "epoch": epoch, "split": split, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(f"{split}/{name}", value, step)


def read_metrics(workdir):
    """The lines of a workdir's metrics.jsonl as dicts; a last line cut short by a crash is left out."""
    path = Path(workdir) / FILE_NAME
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def plot_curves(workdir):
    """Draws loss and top-1 over epochs, training and evaluation, to workdir/plots/curves.png."""
    from matplotlib.figure import Figure

    lines = read_metrics(workdir)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, name, title in zip(figure.subplots(1, 2), ("loss", "top1"), ("loss", "top-1 (%)"), strict=True):
        for split in ("train", "eval"):
            of_split = [line for line in lines if line["split"] == split]
            factor = 100 if name == "top1" else 1
            epochs, values = [line["epoch"] for line in of_split], [factor * line[name] for line in of_split]
            axes.plot(epochs, values, marker="o" if len(values) == 1 else None, label=split)
        axes.set(xlabel="epoch", title=title)
        axes.grid(alpha=0.3)
        axes.legend()
    plots = Path(workdir) / "plots"
    plots.mkdir(exist_ok=True)
    figure.savefig(plots / "curves.png", dpi=120)
    return plots / "curves.png"
