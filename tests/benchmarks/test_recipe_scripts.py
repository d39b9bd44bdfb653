"""The scripts of the search for a recipe: they add steps and times to its data, and draw its page."""

import sys

import numpy as np
import pytest
import recipe_steps
import recipe_times
import study
from study_results import keep

from stce_jax.configs.tables import _recipe_steps, _recipe_times
from stce_jax.reproduce.cells import load_rows

PAGE = "<!-- choices -->\n<!-- end of choices -->\n<!-- search -->\nold\n<!-- end of search -->\n"


def run(monkeypatch, module, *words):
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, words)])
    monkeypatch.setattr(study.jax_settings, "use_cpus_only", lambda: None)
    module.main()


def loaded(text):
    found = {}
    exec(compile(text, "data", "exec"), found)
    return found


def test_steps_are_added_behind_those_that_are_there():
    text = recipe_steps.DATA.read_text()
    own = {scale: steps for scale, steps in _recipe_steps.STEPS.items() if not steps}
    for scale in own:
        once = recipe_steps.with_step(text, scale, ("muon", "conv"))
        twice = recipe_steps.with_step(once, scale, ("muon", "conv", "swiglu"))
        steps = loaded(twice)["STEPS"]
        assert steps == _recipe_steps.STEPS | {scale: (("muon", "conv"), ("muon", "conv", "swiglu"))}
        assert loaded(once)["STEPS"][scale] == (("muon", "conv"),)


def test_what_the_first_round_gave_is_written_once():
    text = recipe_steps.DATA.read_text()
    for scale in [scale for scale, parts in _recipe_steps.FIRST.items() if not parts]:
        for recipe in (("muon",), ("muon", "conv")):
            found = loaded(recipe_steps.with_first(text, scale, recipe))
            assert found["FIRST"] == _recipe_steps.FIRST | {scale: recipe} and found["STEPS"] == _recipe_steps.STEPS


def test_times_are_written_and_read_again(monkeypatch):
    text = recipe_times.DATA.read_text()
    new = recipe_times.with_times(text, "small", {"base": 4.0, "muon": 5.00004})
    found = loaded(new)
    assert found["MS"] == _recipe_times.MS | {"small": {"base": 4.0, "muon": 5.0}}
    assert found["ratio"]("small", "muon", ()) == 1.25
    assert recipe_times.merged({"base": 4.0, "muon": 5.0}, {"base": 8.0, "conv": 4.0}) == {
        "base": 4.0,
        "muon": 5.0,
        "conv": 2.0,
    }


@pytest.mark.slow
def test_the_search_is_kept_drawn_and_asked_for_its_next_step(tmp_path, monkeypatch, capsys):
    rows, page = {row.run: row for row in load_rows("recipe", "smoke")}, tmp_path / "page.md"
    rng = np.random.default_rng(0)
    for name, share in (("base", 0.5), ("mean_pooling", 0.6)):
        for seed in range(3):
            keep(tmp_path / "theirs", rows[name], seed, rng.random(200) < share, table="recipe")
    page.write_text(PAGE)
    words = ("--table=recipe", "--merge", tmp_path / "theirs", "--results", tmp_path / "kept", "--document", page)
    run(monkeypatch, study, *words)
    text = page.read_text()
    assert "smoke: 6 runs added, 0 were there" in capsys.readouterr().out
    assert "Largest gain: mean pooling" in text and "\nold\n" not in text
    assert "python benchmarks/study.py --table=recipe" in text and "](recipe/smoke/gains.png)" in text
    before = recipe_steps.DATA.read_text()
    run(monkeypatch, recipe_steps, "--scale=smoke", "--results", tmp_path / "kept")
    assert "No next step: not all seeds of muon, rope_axial" in capsys.readouterr().out
    assert recipe_steps.DATA.read_text() == before
