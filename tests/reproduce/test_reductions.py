"""The study of token reductions: its rows, their order, and its part of the report."""

import math

import numpy as np
import pytest
from sweep_cells import finish

from stce_jax.analysis.costs import count_reduction
from stce_jax.analysis.tradeoff import Point, tradeoff
from stce_jax.configs.tables.reductions import METHODS, RATES
from stce_jax.data.catalog import open_dataset
from stce_jax.models.factory import create_model
from stce_jax.models.reductions import REDUCTIONS
from stce_jax.reproduce.cells import cells_of, load_rows
from stce_jax.reproduce.reductions import PUBLISHED, count_reduced
from stce_jax.reproduce.report import write_report
from stce_jax.training import assemble as runs

SCALES = ("paper", "small", "smoke")
DEIT_S = {"num_classes": 1000, "mlp_dim": 1536}  # 22 million parameters, 4.6 billion multiply-adds
# Of DeiT-S, billions as papers count them; for each method at the keep rates 0.25, 0.5, 0.7 and 0.9.
PUBLISHED_COUNTS = {
    "topk": (1.70, 2.28, 2.98, 3.96),
    "evit": (1.71, 2.29, 3.00, 3.98),
    "tome": (2.48, 2.28, 2.98, 3.96),
    "kmedoids": (1.56, 2.15, 2.88, 3.91),
    "dpcknn": (1.56, 2.15, 2.88, 3.91),
    "sit": (1.56, 2.15, 2.88, 3.91),
    "patchmerger": (1.56, 2.15, 2.88, 3.91),
    "sinkhorn": (1.56, 2.15, 2.88, 3.91),
}


def test_every_reduction_of_the_package_is_a_method_of_the_study():
    assert METHODS.keys() == REDUCTIONS.keys()


@pytest.mark.parametrize("scale", SCALES)
def test_the_rows_are_every_method_at_every_rate_in_both_bodies(scale):
    rows = load_rows("reductions", scale)
    assert len(rows) == len({row.run for row in rows}) == 2 * (1 + len(METHODS) * len(RATES[scale]))
    deciding = [row.run for row in rows if row.decides]
    assert deciding == [row.run for row in rows[: len(deciding)]], "those that decide do not come first"
    assert len(deciding) == 2 * (1 + 4 * (1 if scale == "smoke" else 2))
    known = {row.run for row in rows}
    assert all(set(row.against) <= known - {row.run} for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
def test_every_row_builds_a_model_and_equal_rates_leave_equal_tokens(scale):
    left = {}
    for row in load_rows("reductions", scale):
        config = row.config()
        model = runs.build_model(config, 10)
        _, *place = row.run.split("_")
        counts = model.token_counts(config.image_size, config.image_size)
        if len(place) == 2 and METHODS[place[0]][2]:
            assert left.setdefault(place[1], counts) == counts, f"{row.run} keeps other numbers than methods before it"
        if scale != "paper":
            assert counts[0] == 64 and counts[-1] >= 1
    assert len(left) == len(RATES[scale])


def test_cells_that_decide_come_first_with_all_seeds(tmp_path):
    rows = load_rows("reductions", "small")
    names = [cell.directory.name for cell in cells_of(rows, [0, 1], tmp_path)]
    assert len(names) == 2 * len(rows)
    assert [name.rpartition("_seed")[2] for name in names] == [*"0" * 18, *"1" * 18, *"0" * 72, *"1" * 72]
    assert names[:2] == ["patch_all_seed0", "patch_evit_70_seed0"]


@pytest.mark.slow
@pytest.mark.parametrize("method", PUBLISHED_COUNTS)
def test_multiply_adds_are_those_that_papers_count(method):
    """Blocks, patch embedding and head of DeiT-S, all tokens of the last block, without the method's own work.

    At all four rates for methods whose counts are nobody else's, at the lowest and the highest for the others.
    """
    options = {"counting": "initial"} if method == "evit" else {"blocks": (3, 6, 9)} if method == "tome" else {}
    step = 1 if method in ("topk", "tome", "sit") else 3
    rates = zip(sorted(RATES["paper"]), PUBLISHED_COUNTS[method], strict=True)
    for rate, published in list(rates)[::step]:
        model = create_model("vit_s_patch", reduction=method, keep_rate=rate, **options, **DEIT_S)
        counted = count_reduction(model, 224)
        assert round(counted["all_tokens"] / 1e9, 2) == published, f"{method} at {rate}"
        assert 0 <= counted["reduction"] < 0.2 * counted["all_tokens"]


def test_without_a_reduction_its_work_is_nothing():
    counted = count_reduction(create_model("vit_s_patch", **DEIT_S), 224)
    assert round(counted["all_tokens"] / 1e9, 2) == 4.60 and counted["reduction"] == 0


def test_the_report_has_tokens_costs_the_figure_and_how_much_is_done(tmp_path, data_dir):
    rows = [
        row for row in load_rows("reductions", "smoke") if row.run in ("patch_all", "patch_evit_50", "patch_sit_50")
    ]
    cells = {cell.directory.name: cell for cell in cells_of(rows, [0, 1], tmp_path)}
    images = np.arange(100)
    for seed in (0, 1):
        finish(cells[f"patch_all_seed{seed}"], images % 4 > 0)
    finish(cells["patch_evit_50_seed0"], images % 2 > 0)
    dataset = open_dataset("digits", str(data_dir))
    text = write_report(tmp_path, rows, [0, 1], command="stce ...", dataset=dataset, speed={}).read_text()
    assert "Of the runs that decide" in text and "3 of 4 are finished; of all runs 3 of 6" in text
    assert "| patches, EViT, 0.5 * | 64, 33, 17, 9 |" in text, text
    assert "| patches, SiT, 0.5 | 64, 32, 16, 8 |" in text
    assert "patches, EViT, 0.5 * less patches, all tokens" in text
    assert f"| {PUBLISHED[1][0]} | 79.8 | 4G |" in text and "another" not in text.partition("Published figures")[0]
    assert "(reductions.png)" in text and (tmp_path / "reductions.png").stat().st_size > 10_000
    counted = count_reduced(rows[1], 10)
    assert f"{counted['all_tokens'] / 1e6:,.1f}M" in text and counted["reduction"] > 0


def test_a_figure_of_one_point_without_an_interval_is_drawn(tmp_path):
    points = {"body": {"all tokens": [Point(10.0, 0.5, math.nan, math.nan)], "a $ b": [Point(5.0, 0.4, 0.3, 0.5)]}}
    path = tradeoff(points, tmp_path / "figure.png", cost="multiply-adds", whole="all tokens")
    assert path.stat().st_size > 5_000
