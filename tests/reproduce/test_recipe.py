"""The search for a recipe: its rows and their order, equal time, the forward selection, the final comparison."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from study_results import keep

from stce_jax.configs.tables import _recipe_steps, _recipe_times, recipe
from stce_jax.configs.tables.recipe import BASE, INGREDIENTS
from stce_jax.errors import DataError
from stce_jax.reproduce import documents, kept, recipe_protocol
from stce_jax.reproduce.cells import cell_of, cells_of, load_rows
from stce_jax.reproduce.kept_folders import merge, read_folder, results_of
from stce_jax.reproduce.recipe import choices, search_blocks, test_blocks
from stce_jax.reproduce.recipe_protocol import SEEDS, gains, outcomes, select, verdict
from stce_jax.reproduce.results import Result
from stce_jax.workdir import config as configuration

test_blocks.__test__ = False  # pytest takes it for a test
DECIDING = [name for name, ingredient in INGREDIENTS.items() if ingredient.decides]
IMAGES = 1000
RESULTS = Path(__file__).parents[2] / "docs" / "recipe"


def results(shares, seeds=SEEDS, table="recipe", scale="small"):
    """{run: Result} of runs that have these shares of the images right, the same images first."""
    rows = {row.run: row for row in load_rows(table, scale)}
    found = {}
    for run, share in shares.items():
        row = rows.get(run) or dataclasses.replace(rows[BASE], run=run, label=run)
        hits = np.stack([np.arange(IMAGES) < round(IMAGES * share) + seed for seed in seeds])
        empty = [None] * len(seeds)
        top1 = hits.mean(axis=1).tolist()
        found[run] = Result(row, list(seeds), top1, top1, hits, [[]] * len(seeds), empty, empty, {}, {})
    return found


@pytest.fixture
def steps(monkeypatch):
    """Steps of the scale `small`, to be added to."""
    found = []
    monkeypatch.setitem(_recipe_steps.STEPS, "small", found)
    return found


@pytest.mark.parametrize("scale", recipe.VARIANTS)
def test_rows_that_decide_come_first_with_all_seeds(scale, tmp_path):
    rows = load_rows("recipe", scale)
    assert len({row.run for row in rows}) == len(rows) and rows[0].run == BASE
    deciding = [row.run for row in rows if row.decides]
    second = [f"second_{name}" for name in recipe.SECOND] if _recipe_steps.FIRST[scale] else []
    assert deciding[1 + len(DECIDING) :][: len(second)] == second
    assert deciding[: 1 + len(DECIDING)] == [BASE, *DECIDING] and len(DECIDING) == 14
    names = [cell.directory.name for cell in cells_of(rows, SEEDS, tmp_path)]
    assert names[: 3 * len(deciding)] == [f"{run}_seed{seed}" for seed in SEEDS for run in deciding]
    assert ("large_cells" in {row.run for row in rows}) is (scale == "medium")


def test_the_base_is_small_folder_as_shipped_but_for_its_length_and_the_images():
    shipped = configuration.load_config("small_folder")
    changed = configuration.differences(shipped, load_rows("recipe", "small")[0].config())
    assert {line.partition(":")[0] for line in changed} == {"holdout", "epochs", "eval_every"}
    changed = configuration.differences(shipped, load_rows("recipe_test", "small")[0].config())
    assert {line.partition(":")[0] for line in changed} == {"epochs", "eval_every"}


def test_modern_is_what_the_search_selected():
    runs = read_folder(RESULTS / "small", "small", "recipe")
    kept_now = select({result.row.run: result for result in results_of("recipe", runs, "small", SEEDS)}, "small").kept
    expected = configuration.load_config("small_folder")
    with expected.unlocked():
        expected.plan = "class_folders"
        for name in kept_now:
            expected.update_from_flattened_dict(INGREDIENTS[name].overrides)
    assert configuration.differences(expected, configuration.load_config("modern")) == []


def test_every_row_trains_for_as_long_as_the_base(monkeypatch, steps):
    steps.append(("muon", "conv"))
    monkeypatch.setitem(_recipe_times.MS, "small", {"base": 4.0, "muon": 5.0, "conv": 3.0, "modern": 2.0})
    epochs = {row.run: row.overrides.get("epochs") for row in load_rows("recipe", "small")}
    whole = recipe.EPOCHS["small"]
    assert epochs["muon"] == round(whole / 1.25, 2) and epochs["conv"] == round(whole / 0.75, 2)
    assert epochs["step_1"] == round(whole / (1.25 * 0.75), 2) and epochs["sam"] == whole, "not measured"
    monkeypatch.setitem(_recipe_times.MS["small"], "step_1", 8.0)
    assert {row.run: row for row in load_rows("recipe", "small")}["step_1"].overrides["epochs"] == whole / 2
    (modern,) = (row for row in load_rows("recipe_test", "small") if row.run == "modern")
    assert modern.overrides["epochs"] == 20.0


@pytest.mark.parametrize("scale", recipe.VARIANTS)
def test_times_are_of_rows_that_there_are(scale):
    rows = {row.run for table in recipe_protocol.TABLES for row in load_rows(table, scale)}
    measured = _recipe_times.MS[scale]
    assert set(measured) <= rows and all(value > 0 for value in measured.values())
    test = {"modern"} & set(measured)
    assert set(measured) == {BASE} | test or {BASE, *DECIDING} <= set(measured) or not measured, (
        "a table is measured wholly or not at all"
    )
    for step in _recipe_steps.STEPS[scale]:
        families = [family for part in step for family in INGREDIENTS[part].families]
        assert len(families) == len(set(families)), step


def test_cells_are_evaluated_on_what_is_held_out_and_the_average_where_that_is_the_row(tmp_path):
    rows = {row.run: row for row in load_rows("recipe", "smoke")}
    train, evaluate = cell_of(rows[BASE], 1, tmp_path).commands("images")
    assert "--config.seed=1" in train and {"--split=holdout", "--data_dir=images"} <= set(evaluate)
    assert "--ema" not in evaluate and rows["ema"].ema
    (base, *_) = load_rows("recipe_test", "smoke")
    assert not [word for word in cell_of(base, 0, tmp_path).commands("")[1] if word.startswith(("--split", "--ema"))]


def test_gains_are_paired_by_seed_and_image_and_ordered():
    found = gains(results({BASE: 0.5, "muon": 0.6, "conv": 0.55, "swiglu": 0.55}))
    assert [own.run for own in found] == ["muon", "conv", "swiglu"], "of equal ones the table's order"
    assert found[0].mean == pytest.approx(0.1) and found[0].seeds == SEEDS and found[0].difference.p_value < 1e-6
    one = gains(results({BASE: 0.5}, (0, 7)) | results({"muon": 0.6}, (0, 1)))
    assert [(own.seeds, own.difference) for own in one] == [((0,), None)]
    assert gains(results({"muon": 0.6})) == []


def test_the_forward_selection_by_its_rule(steps):
    shares = dict.fromkeys([BASE, *DECIDING], 0.5)
    assert "are finished" in select(results({BASE: 0.5}), "small").why
    assert select(results(shares), "small").why == "no ingredient is better than the base"
    shares |= {"muon": 0.60, "schedule_free": 0.59, "conv": 0.55, "swiglu": 0.52, "mean_pooling": 0.51}
    expected = [
        (("muon", "conv"), 0.65, ("muon", "conv")),  # schedule-free is another optimizer
        (("muon", "conv", "swiglu"), 0.654, ("muon", "conv")),  # adds less than the margin
        (("muon", "conv", "mean_pooling"), 0.655, ("muon", "conv", "mean_pooling")),
    ]
    for number, (step, share, kept_now) in enumerate(expected, 1):
        found = select(results(shares), "small")
        assert found.next == step and not found.why
        steps.append(step)
        assert select(results(shares), "small").next == step, "it is not trained yet"
        shares[f"step_{number}"] = share
        assert select(results(shares), "small").kept == kept_now
    done = select(results(shares), "small")
    assert (done.next, done.refused, done.why) == ((), ("swiglu",), "no candidate is left")
    said = choices(results(shares), "small")
    assert said[0].startswith("Largest gain: Muon, +10.00") and "Refused: SwiGLU." in said
    assert said[-1] == "No next step: no candidate is left."


def test_the_selection_goes_on_after_refusals_and_ends_after_eight_trained(steps):
    gaining = ["muon", "conv", "swiglu", "mean_pooling", "rope_axial", "progressive", "light_mixing", "three_augment"]
    gaining += ["patch_dropout", "batch_50", "light_crop", "rate_double"]
    shares = dict.fromkeys([BASE, *DECIDING], 0.5) | {name: 0.62 - 0.01 * at for at, name in enumerate(gaining)}
    for number in range(1, 9):
        found = select(results(shares), "small")
        assert not found.why and found.next[-1] == gaining[number]
        steps.append(found.next)
        shares[f"step_{number}"] = 0.62 if number < 4 else 0.60 + 0.01 * number
    found = select(results(shares), "small")
    assert found.why == "8 steps are trained" and found.refused == tuple(gaining[1:4]), found
    assert found.kept == ("muon", *gaining[4:9])


def test_the_second_round_begins_with_what_the_first_gave(steps, monkeypatch):
    first = ("schedule_free", "patch_dropout")
    shares = dict.fromkeys([BASE, *DECIDING], 0.5) | {"schedule_free": 0.6, "patch_dropout": 0.55, "step_1": 0.65}
    steps.append(first)
    monkeypatch.setitem(_recipe_steps.FIRST, "small", ())
    assert not [row for row in load_rows("recipe", "small") if row.run.startswith("second_")]
    found = select(results(shares), "small")
    assert (found.kept, found.first, found.why) == (first, first, "no candidate is left")
    monkeypatch.setitem(_recipe_steps.FIRST, "small", first)
    rows = {row.run: row for row in load_rows("recipe", "small")}
    assert rows["second_clip"].against == ("step_1",) and rows["second_clip"].decides
    half = rows["second_patch_dropout_half"].overrides
    assert half["model.body.vit.patch_dropout"] == 0.5 and half["optimizer.name"] == "schedule_free_adamw"
    assert "not all seeds of second_rate_double, " in select(results(shares), "small").why
    shares |= {f"second_{name}": 0.6 for name in recipe.SECOND}
    assert select(results(shares), "small").kept == first, "nothing is better"
    assert "nothing adds the margin" in select(results(shares | {"second_clip": 0.654}), "small").why
    shares |= {"second_patch_dropout_half": 0.7, "second_clip": 0.68, "second_no_smoothing": 0.67}
    found = select(results(shares), "small")
    assert found.next == ("schedule_free", "patch_dropout_half", "clip") and found.first == first
    steps.append(found.next)
    for share, kept_now in (
        (0.704, ("patch_dropout_half", "no_smoothing")),
        (0.71, (*found.next[1:], "no_smoothing")),
    ):
        assert select(results(shares | {"step_2": share}), "small").next == ("schedule_free", *kept_now)
    steps.append(("schedule_free", "patch_dropout_half", "no_smoothing"))
    done = select(results(shares | {"step_2": 0.704, "step_3": 0.704}), "small")
    assert (done.next, done.refused, done.why) == ((), ("clip", "no_smoothing"), "no candidate is left")
    assert done.kept == ("schedule_free", "patch_dropout_half") and done.first == first


def test_the_final_comparison_counts_errors():
    own = results({BASE: 0.6, "modern": 0.7, "base_patch": 0.5, "modern_patch": 0.5}, table="recipe_test")
    first, patch, conv = outcomes(own)
    assert first.fewer[0] == pytest.approx(0.1 / 0.399) and first.fewer[1] < first.fewer[0] < first.fewer[2]
    assert [verdict(each) for each in (first, patch, conv)] == ["yes", "undecided", "not run"]
    assert first.corrected == pytest.approx(3 * first.gain.difference.p_value)
    few = outcomes(results({BASE: 0.6, "modern": 0.9}, (0, 1), table="recipe_test"))[0]
    assert verdict(few) == "undecided" and few.corrected is None


def test_results_of_another_table_are_refused(tmp_path):
    rows = {row.run: row for row in load_rows("recipe", "smoke")}
    hits = np.arange(100) < 60
    keep(tmp_path, rows[BASE], 0, hits, table="recipe")
    (found,) = read_folder(tmp_path, "smoke", "recipe")
    assert found["hits"].mean() == 0.6 and found["table"] == "recipe"
    with pytest.raises(DataError, match=r"of the table 'recipe', not clustering"):
        read_folder(tmp_path, "smoke")
    keep(tmp_path / "new", rows["mean_pooling"], 0, hits, table="recipe")
    assert merge(tmp_path / "new", tmp_path, "smoke", "recipe") == (["mean_pooling_seed0"], [])
    keep(tmp_path / "old", rows[BASE], 0, hits, table="recipe", protocol=7)
    with pytest.raises(DataError, match=f"version 7 of the protocol, not {kept.VERSIONS['recipe']}"):
        read_folder(tmp_path / "old", "smoke", "recipe")
    keep(tmp_path / "earlier", rows[BASE], 0, hits, table="recipe", protocol=1)
    assert read_folder(tmp_path / "earlier", "smoke", "recipe"), "its rows are as they were in version 1"


@pytest.mark.slow
def test_both_reports_are_drawn(tmp_path):
    rng = np.random.default_rng(0)
    for table, names, blocks in (
        ("recipe", (BASE, "mean_pooling"), search_blocks),
        ("recipe_test", (BASE,), test_blocks),
    ):
        rows = {row.run: row for row in load_rows(table, "smoke")}
        for place, name in enumerate(names):
            for seed in SEEDS:
                keep(tmp_path / table, rows[name], seed, rng.random(200) < 0.5 + 0.1 * place, table=table)
        runs = read_folder(tmp_path / table, "smoke", table)
        text = documents.to_markdown(blocks(runs, None, "smoke", SEEDS, tmp_path))
        assert "scale `smoke`. Times of this scale are not measured" in text
        assert "Largest gain: mean pooling" in text if table == "recipe" else "not run yet" in text
        assert blocks([], None, "smoke", SEEDS, tmp_path)
