"""From a sweep's workdir to what is kept: which cells, which words, what of a place is said."""

import json

import numpy as np
import pytest
from made_runs import made_run
from sweep_cells import fail, finish

from stce_jax.errors import ConfigError
from stce_jax.reproduce import clusters, collecting
from stce_jax.reproduce.cells import cell_of, load_rows

ROWS = {row.run: row for row in load_rows("clustering", "smoke")}


def test_finished_cells_of_any_seed_come_in_the_rows_order(tmp_path):
    for run, seed in (("strided", 0), ("stce", 2**32 - 1), ("stce", 2), ("patch", 0)):
        finish(cell_of(ROWS[run], seed, tmp_path), np.arange(100) % 3 > 0)
    fail(cell_of(ROWS["conv"], 0, tmp_path))
    for name in ("other_seed0", "stce_seedx", "stce_seed-1"):
        (tmp_path / "cells" / name).mkdir()
    found = [cell.directory.name for cell in collecting.finished_cells(tmp_path, ROWS)]
    assert found == ["patch_seed0", "stce_seed2", "stce_seed4294967295", "strided_seed0"]


def test_a_scale_is_that_of_the_sweep(tmp_path):
    with pytest.raises(ConfigError, match="is no workdir of `stce reproduce`"):
        collecting.scale_of(tmp_path)
    (tmp_path / "sweep.json").write_text(json.dumps({"scale": "medium", "overrides": [], "images": None}))
    assert collecting.scale_of(tmp_path) == "medium"
    (tmp_path / "sweep.json").write_text(json.dumps({"scale": "medium", "overrides": ["--config.epochs=1"]}))
    with pytest.raises(ConfigError, match="changes the protocol"):
        collecting.scale_of(tmp_path)


def test_machines_are_not_named():
    place = "node7, 2 cores, 1 x cpu, Python 3.11.7, jax 0.10.2"
    assert collecting._without_names(f"{place}; {place.replace('node7', 'node8')}") == place.removeprefix("node7, ")
    assert collecting._without_names("") == ""


def test_images_are_spaced_from_the_first_to_the_last():
    assert clusters.spaced(1600, 256)[::255] == [0, 1599] and len(clusters.spaced(1600, 256)) == 256
    assert clusters.spaced(3, 256) == [0, 1, 2] and clusters.spaced(1, 6) == [0]


def test_only_rows_that_cluster_have_clusters():
    found = {run for run, row in ROWS.items() if clusters.has_clusters(row.config())}
    assert found == {run for run in ROWS if run.startswith(("stce", "iterations", "differentiable", "border"))}


@pytest.mark.slow
def test_each_pixel_belongs_to_one_of_the_nine_super_tokens_around_it():
    run = made_run("vit_ti_stce", width=24, depth=1, heads=3, mlp_dim=40, stem_widths=(8,), stem_strides=(2,))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    labels, cells = clusters.cluster_labels(run, images, 32)
    assert labels.shape == (2, 32, 32) and cells.shape == (32, 32) and set(np.unique(cells)) == set(range(64))
    assert np.all((labels >= 0) & (labels < 64)), "a pixel belongs to a super token beyond the grid"
    rows, columns = labels // 8 - cells // 8, labels % 8 - cells % 8
    assert max(abs(rows).max(), abs(columns).max()) <= 1, "a pixel belongs to none of its nine neighbours"
