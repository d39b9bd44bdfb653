"""The picture of differences: it is drawn, whatever the labels, and says which it is of."""

import numpy as np
from PIL import Image

from stce_jax.analysis.curves import over_epochs
from stce_jax.analysis.differences import Line, forest


def test_each_line_adds_to_the_height_and_odd_labels_are_text(tmp_path):
    lines = [Line("a $difference\n", 1.0, -0.5, 2.5), Line("another", -1.0, -1.5, -0.5, group=9)]
    heights = [
        Image.open(forest(lines[:count], "points", tmp_path / f"{count}.png", margin=1)).height for count in (1, 2)
    ]
    assert heights[0] < heights[1]


def test_one_number_over_epochs_is_drawn_of_the_runs_that_have_it(tmp_path):
    lines = [{"split": "eval", "epoch": epoch, "entropy": 2 - epoch, "loss": 1.0, "top1": 0.5} for epoch in (1.0, 2.0)]
    without = [{"split": "eval", "epoch": 1.0, "loss": 1.0, "top1": 0.5}]
    path = over_epochs({"one": [lines, lines], "other": [without]}, "entropy", "nats", tmp_path / "entropy.png")
    assert np.asarray(Image.open(path)).std() > 0
