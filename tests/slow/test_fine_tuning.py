"""Ways to use weights on other images, end to end on real photos: layer-wise rates, and a frozen body."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY

import stce_jax
from stce_jax.workdir.metric_lines import read_metrics

CLASSES, OF_EACH = 4, {"train": 24, "val": 12}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Some photos of some classes; skipped without STCE_TEST_DATA."""
    folder = os.environ.get("STCE_TEST_DATA")
    if not folder:
        pytest.skip("needs STCE_TEST_DATA")
    root, taken = tmp_path_factory.mktemp("photos"), {}
    with zipfile.ZipFile(Path(folder) / "data" / "small_real.zip") as archive:
        names = [name for name in sorted(archive.namelist()) if name.startswith(("train/", "val/")) and name[-1] != "/"]
        classes = sorted({name.split("/")[1] for name in names})[:CLASSES]
        for name in names:
            split, class_name, _ = name.split("/")
            place = split, class_name
            if class_name in classes and taken.setdefault(place, 0) < OF_EACH[split]:
                taken[place] += 1
                archive.extract(name, root)
    return root


def parameters(workdir):
    """{path: array} of the last checkpoint."""
    import flax

    run = stce_jax.load_run(workdir)
    return {
        "/".join(path): np.asarray(value)
        for path, value in flax.traverse_util.flatten_dict(run.variables["params"]).items()
    }


@pytest.mark.parametrize(
    ("option", "frozen"),
    [
        ("layer_decay=0.65", ()),
        ("freeze=embedding,position_embedding,class_token,blocks,norm", ("embedding", "blocks", "norm")),
    ],
)
def test_weights_are_tuned_on_other_photos(tiny_run, photos, tmp_path, stce_here, option, frozen):
    source, _ = tiny_run
    words = ("--config.dataset=folder", f"--data_dir={photos}", "--config.holdout=0.25", "--config.eval_every=2")
    words += (f"--init_from={source}", f"--config.optimizer.{option}", "--config.optimizer.ema_decay=0")
    done = stce_here("train", *TINY, *words, f"--workdir={tmp_path / 'tuned'}")
    assert done.returncode == 0, done.stderr
    assert "training on 72 images, evaluating on 24 held out of them" in done.stdout
    assert len([line for line in read_metrics(tmp_path / "tuned") if line["split"] == "eval"]) == 1
    before, after = parameters(source), parameters(tmp_path / "tuned")
    same = {path for path in before if before[path].shape == after[path].shape and (before[path] == after[path]).all()}
    assert {path for path in before if path.startswith(frozen)} <= same if frozen else not same, sorted(same)
    assert not {path for path in same if path.startswith("head")}
    evaluated = stce_here("evaluate", f"--workdir={tmp_path / 'tuned'}")
    assert evaluated.returncode == 0 and "  48 images  " in evaluated.stdout, evaluated.stderr
