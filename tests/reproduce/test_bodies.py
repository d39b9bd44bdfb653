"""The study of bodies: its rows, their order, and its part of the report."""

import numpy as np
import pytest
from study_results import keep
from sweep_cells import finish

from stce_jax.configs.tables.bodies import BODIES, DECIDING
from stce_jax.data.catalog import open_dataset
from stce_jax.models.bodies import BODIES as ALL
from stce_jax.reproduce import documents
from stce_jax.reproduce.bodies import embedding_costs, study_blocks
from stce_jax.reproduce.cells import cells_of, load_rows
from stce_jax.reproduce.kept_folders import read_folder
from stce_jax.reproduce.report import write_report
from stce_jax.training import assemble as runs

SCALES = ("paper", "small", "smoke")
# Of 224 pixels, counted by hand: parameters and millions of multiply-adds of convolutions, clustering and linear layer.
OWN = {"swin": (4_704, 14.5), "cvt": (9_472, 29.5), "cmt": (27_840, 267.7), "datpp": (19_456, 68.6)}
SUPER_TOKENS = {"swin": (8_352, 94.5), "cvt": (7_296, 91.3), "cmt": (7_296, 91.3), "datpp": (7_296, 91.3)}


def test_every_body_with_an_embedding_of_its_own_is_in_the_study():
    assert set(BODIES) == {name for name, module in ALL.items() if hasattr(module, "EMBEDDING")} - {"focal_conv"}
    assert all(own == ALL[body].EMBEDDING for body, (_, _, own) in BODIES.items())


@pytest.mark.parametrize("scale", SCALES)
def test_each_body_has_three_rows_with_one_grid_and_those_that_decide_come_first(scale):
    rows = load_rows("bodies", scale)
    assert len(rows) == len({row.run for row in rows}) == 3 * len(BODIES)
    assert [row.decides for row in rows] == [True] * 3 * len(DECIDING) + [False] * 3 * (len(BODIES) - len(DECIDING))
    grids = {}
    for row in rows:
        config = row.config()
        model = runs.build_model(config, 10)
        size = (config.image_size, config.image_size)
        body = row.run.rpartition("_")[0]
        assert grids.setdefault(body, model.embedding.grid(*size)) == model.embedding.grid(*size), row.run
        assert min(model.grid(*size)) >= 2, row.run
        assert (config.model.embedding.stce.iterations == 0) == row.run.endswith("_pooling")


@pytest.mark.slow
@pytest.mark.parametrize(("run", "counts"), [("own", OWN), ("stce", SUPER_TOKENS)])
def test_embeddings_cost_what_was_counted_by_hand(run, counts):
    rows = {row.run: row for row in load_rows("bodies", "paper")}
    for body, (parameters, millions) in counts.items():
        found = embedding_costs(rows[f"{body}_{run}"])
        assert found["parameters"] == parameters, f"{body}_{run}"
        assert round(found["multiply_adds"] / 1e6, 1) == millions, f"{body}_{run}"


def test_the_report_begins_with_where_the_saving_does_not_carry_over(tmp_path, data_dir):
    rows = [row for row in load_rows("bodies", "smoke") if row.run.startswith(("swin_", "cvt_"))]
    cells = {cell.directory.name: cell for cell in cells_of(rows, [0, 1], tmp_path)}
    images = np.arange(100)
    for seed in (0, 1):
        finish(cells[f"swin_own_seed{seed}"], images % 4 > 0)
        finish(cells[f"swin_stce_seed{seed}"], images % 5 > 0)
    dataset = open_dataset("digits", str(data_dir))
    text = write_report(tmp_path, rows, [0, 1], command="stce ...", dataset=dataset, speed={}).read_text()
    opening = text.partition("| row |")[0]
    assert (
        "does not carry over" in opening
        and "more before Swin (8,352 for 4,704 parameters, 6.5 times the work)" in opening
    ), opening
    assert "fewer before CvT (7,296 for 9,472 parameters" in opening, opening
    assert "Of the runs that decide" in text and "4 of 12 are finished; of all runs 4 of 12" in text
    assert "Swin, super tokens less Swin, its own embedding" in text
    assert "| Swin-T | 81.3 | 28.3M | 4.5G |" in text


def test_kept_runs_give_answers_accuracies_and_costs(tmp_path):
    rows = {row.run: row for row in load_rows("bodies", "smoke")}
    images = np.arange(100)
    for run, seeds, hits in (
        ("swin_own", (0, 1), images % 4 > 0),
        ("swin_stce", (0, 1), images % 5 > 0),
        ("swin_pooling", (0,), images % 10 > 0),
    ):
        for seed in seeds:
            keep(tmp_path, rows[run], seed, hits, table="bodies")
    blocks = study_blocks(read_folder(tmp_path, "smoke", "bodies"), None, "smoke", (0, 1), tmp_path)
    text = documents.to_markdown(blocks)
    assert "5 of 24 are finished; of all runs 5 of 54" in text, text
    answer = (
        "Swin: super tokens less its own embedding +5.00 [+5.00, +5.00] (2 seeds); average pooling less super tokens "
    )
    assert answer + "+10.00 (one seed); average pooling less its own embedding +15.00 (one seed)." in text, text
    assert "| Swin, super tokens | – | 80.00 [80.00, 80.00] |" in text and "CvT" not in text.partition("continues.")[2]
    assert "Computed on: 2 cores" in text and study_blocks([], None, "smoke", (0, 1), tmp_path)[1:] == []
