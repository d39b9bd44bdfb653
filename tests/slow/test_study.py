"""The study of clustering from training to its page, at the smallest scale, in one process."""

import json
import sys

import numpy as np
import pytest
import study
from study_results import keep

from stce_jax.data.catalog import open_dataset
from stce_jax.errors import ConfigError, DataError
from stce_jax.reproduce import documents
from stce_jax.reproduce.cells import cell_of, load_rows
from stce_jax.reproduce.collecting import collect, sweep_blocks
from stce_jax.reproduce.kept_folders import read_folder, read_images
from stce_jax.training import assemble as runs
from stce_jax.verbs.evaluate import evaluate
from stce_jax.verbs.train import train

ROWS = {row.run: row for row in load_rows("clustering", "smoke")}
PAGE = "<!-- answers -->\n<!-- end of answers -->\n<!-- study -->\n<!-- end of study -->\n"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, data_dir):
    """A sweep whose one cell, super tokens of seed 0, is trained and evaluated."""
    workdir = tmp_path_factory.mktemp("sweep")
    cell = cell_of(ROWS["stce"], 0, workdir)
    train(cell.row.config("--config.seed=0", f"--config.data_dir={data_dir}"), cell.directory)
    evaluate(cell.directory, output=cell.directory / "evaluation")
    fingerprint = open_dataset("digits", str(data_dir)).fingerprint
    (workdir / "sweep.json").write_text(json.dumps({"scale": "smoke", "overrides": [], "images": fingerprint}))
    return workdir


def test_a_trained_run_is_kept_in_few_bytes_and_drawn_again(sweep, data_dir, tmp_path, monkeypatch):
    dataset = runs.open_dataset(ROWS["stce"].config(), str(data_dir))
    assert cell_of(ROWS["stce"], 0, sweep).finished()
    folder = collect(sweep, dataset)
    (run,) = read_folder(folder, "smoke")
    images = read_images(folder)
    assert (folder / "stce_seed0.json").stat().st_size < 10_000
    evaluation = json.loads((sweep / "cells" / "stce_seed0" / "evaluation" / "evaluation.json").read_text())
    assert run["hits"].mean() == pytest.approx(evaluation["top1"]) and len(images.labels) == len(run["hits"]) == 360
    entropies = run["curves"]["eval"]["affinity_entropy"]
    assert len(entropies) == 3 and all(0 < value <= np.log(9) for value in entropies)
    assert entropies[-1] == pytest.approx(evaluation["metrics"]["affinity_entropy"], rel=1e-3)
    assert {name: values.shape for name, values in run["clusters"].items()}["own"] == (256,)

    written = (folder / "stce_seed0.json").stat().st_mtime_ns
    blocks = sweep_blocks(sweep, dataset, [0])  # of what is there already
    text = documents.to_markdown(blocks)
    assert (folder / "stce_seed0.json").stat().st_mtime_ns == written
    assert "1 of 5 are finished; of all runs 1 of 22" in text and "![" in text and "clusters.png" in text

    page = tmp_path / "page.md"
    page.write_text(PAGE)
    words = ["--collect", sweep, "--data_dir", data_dir, "--results", tmp_path / "kept", "--document", page]
    monkeypatch.setattr(sys, "argv", ["study.py", *map(str, words)])
    study.main()
    assert (tmp_path / "kept" / "smoke" / "stce_seed0.json").read_bytes() == (folder / "stce_seed0.json").read_bytes()
    assert "Do clusters follow edges?" in page.read_text()


def test_runs_of_another_config_or_with_words_for_all_are_not_collected(sweep, data_dir):
    dataset = runs.open_dataset(ROWS["stce"].config(), str(data_dir))
    path = sweep / "sweep.json"
    own = path.read_text()
    path.write_text(json.dumps(json.loads(own) | {"overrides": ["--config.epochs=1"]}))
    with pytest.raises(ConfigError, match=r"changes the protocol: --config\.epochs=1"):
        collect(sweep, dataset)
    assert "There is no report by the protocol" in documents.to_markdown(sweep_blocks(sweep, dataset, [0]))
    path.write_text(own)
    (sweep / "results" / "stce_seed0.json").unlink(missing_ok=True)
    config = sweep / "cells" / "stce_seed0" / "config.json"
    before = config.read_text()
    config.write_text(before.replace('"learning_rate": 0.003', '"learning_rate": 0.004'))
    with pytest.raises(DataError, match=r"another config\.optimizer\.learning_rate"):
        collect(sweep, dataset)
    config.write_text(before)
    keep(sweep / "results", ROWS["patch"], 0, np.ones(360, bool))
    with pytest.raises(DataError, match="tested on other images"):
        read_folder(sweep / "results", "smoke")
