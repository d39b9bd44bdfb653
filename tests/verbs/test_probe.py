"""`stce probe`: a linear classifier on frozen features, of the run's own classes and of others."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import run_cli
from image_sources import make_images, tree

from stce_jax.verbs.features import features


@pytest.fixture(scope="module")
def small_real(tmp_path_factory):
    """Ten classes of real photos, 24 for training and 12 for testing each; skipped without STCE_TEST_DATA."""
    folder = os.environ.get("STCE_TEST_DATA")
    if not folder:
        pytest.skip("needs STCE_TEST_DATA")
    root = tmp_path_factory.mktemp("small_real")
    taken = {}
    with zipfile.ZipFile(Path(folder) / "data" / "small_real.zip") as archive:
        for name in archive.namelist():
            split, _, rest = name.partition("/")
            if split in ("train", "val") and not name.endswith("/"):
                place = split, rest.partition("/")[0]
                taken[place] = taken.get(place, 0) + 1
                if taken[place] <= {"train": 24, "val": 12}[split]:
                    archive.extract(name, root)
    assert len(taken) == 20
    return root


@pytest.mark.slow
def test_other_classes_than_the_runs_are_probed_and_the_probe_is_written(tiny_run, small_real, tmp_path, capsys):
    workdir, _ = tiny_run
    words = (f"--workdir={workdir}", f"--data_dir={small_real}", f"--output={tmp_path / 'probe.npz'}")
    code, out, errors = run_cli(capsys, "probe", *words)
    assert code == 0, errors
    assert "step 90  240 training images, 10 classes, 16 features  C " in out and "120 test images  top-1 " in out
    with np.load(tmp_path / "probe.npz") as probe:
        kernel, bias, ids = probe["kernel"], probe["bias"], probe["class_ids"].tolist()
    images = sorted((small_real / "val").rglob("*.*"))
    found = features(images, workdir)
    hits = [
        ids[place] == Path(name).parent.name
        for name, place in zip(found["names"], np.argmax(found["features"] @ kernel + bias, axis=1), strict=True)
    ]
    assert f"top-1 {100 * np.mean(hits):.2f}%" in out and np.mean(hits) > 0.1, "not better than chance"


@pytest.mark.slow
def test_the_runs_own_images_are_the_default_and_a_probe_is_no_worse_than_a_young_head(tiny_run, data_dir, capsys):
    workdir, _ = tiny_run
    code, out, errors = run_cli(capsys, "probe", f"--workdir={workdir}")
    assert code == 0, errors
    head = run_cli(capsys, "evaluate", f"--workdir={workdir}")[1]
    percents = [float(text.partition("top-1 ")[2].partition("%")[0]) for text in (out.splitlines()[-1], head)]
    assert "1437 training images, 10 classes" in out and percents[0] >= percents[1] - 2


def test_one_class_one_image_and_no_images_are_refused(tiny_run, tmp_path, capsys):
    workdir, _ = tiny_run
    images = make_images(train=3, val=2)
    first, second, *_ = sorted({wnid for _, wnid, _ in images})
    tree(tmp_path / "one", {key: content for key, content in images.items() if key[1] == first})
    single = {key: content for key, content in images.items() if key[1] in (first, second)}
    tree(tmp_path / "single", {key: content for key, content in single.items() if key[:2] != ("train", second)})
    tree(tmp_path / "single", dict([next(item for item in single.items() if item[0][:2] == ("train", second))]))
    refused = {"one": "there is one class alone", "none": "has no folder 'train'", "single": "has 1 training image, "}
    for place, words in ((tmp_path / name, words) for name, words in refused.items()):
        code, _, errors = run_cli(capsys, "probe", f"--workdir={workdir}", f"--data_dir={place}")
        assert code == 3 and words in errors and errors.count("\n") == 1, errors
