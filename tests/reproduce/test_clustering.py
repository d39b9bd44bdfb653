"""The study of clustering: its rows, their order, what they have in common, and what decides its hypotheses."""

import numpy as np
import pytest
from study_results import drawn_hits, keep, keep_images

from stce_jax.analysis.crossed import crossed_mean
from stce_jax.configs.tables.clustering import EQUAL
from stce_jax.configs.tables.scales import VARIANTS, stack_widths
from stce_jax.reproduce import documents, protocol
from stce_jax.reproduce.cells import cells_of, load_rows
from stce_jax.reproduce.clustering import answers, study_blocks
from stce_jax.reproduce.costs import count_embedding
from stce_jax.reproduce.kept_folders import read_folder, read_images, to_results
from stce_jax.training import assemble as runs

DECIDING = ["patch", "conv", "stce", "pooling", "strided"]
ROWS = {row.run: row for row in load_rows("clustering", "smoke")}


@pytest.mark.parametrize("scale", VARIANTS)
def test_every_scale_has_the_protocols_rows_in_its_order(scale):
    rows = load_rows("clustering", scale)
    assert [row.run for row in rows] == list(ROWS) and len(rows) == 22
    assert [row.run for row in rows if row.decides] == DECIDING == list(ROWS)[:5]
    assert list(EQUAL) == list(VARIANTS)


def test_cells_come_in_the_protocols_order(tmp_path):
    cells = cells_of(load_rows("clustering", "medium"), [0, 1, 2, 3, 4], tmp_path)
    names = [cell.directory.name for cell in cells]
    assert len(names) == len(set(names)) == 110
    assert names[:25] == [f"{run}_seed{seed}" for seed in range(5) for run in DECIDING]
    assert names[25:42] == [f"{run}_seed0" for run in list(ROWS)[5:]]


def stem_parameters(widths):
    """Of convolution modules: kernel, bias, and BatchNorm's two."""
    return sum(9 * before * width + 3 * width for before, width in zip((3, *widths), widths, strict=False))


@pytest.mark.parametrize("scale", VARIANTS)
def test_a_stem_with_as_many_parameters_has_as_many_by_hand(scale):
    config = load_rows("clustering", scale)[2].config()
    widths, width = stack_widths(scale), EQUAL[scale]["parameters"][-1]
    assert width == (config.model.body.vit.width or 384)
    own = stem_parameters(widths) + (widths[-1] + 1) * width
    assert stem_parameters(EQUAL[scale]["parameters"]) == pytest.approx(own, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("scale", VARIANTS)
def test_rows_have_the_tokens_parameters_and_multiply_adds_that_they_say(scale):
    rows = {row.run: row for row in load_rows("clustering", scale)}
    configs = {run: row.config() for run, row in rows.items()}
    costs = {run: count_embedding(config) for run, config in configs.items() if "other_mixing" not in run}
    own = costs["stce"]
    assert costs["conv_parameters"]["parameters"] == pytest.approx(own["parameters"], rel=0.01)
    assert costs["conv_multiply_adds"]["multiply_adds"] == pytest.approx(own["multiply_adds"], rel=0.01)
    for run in ("pooling", "max_pooling", "iterations_1", "differentiable", "border_mask"):
        assert costs[run]["parameters"] == own["parameters"], run
    for kind in ("fewer", "more"):
        assert costs[f"stce_{kind}"]["parameters"] == costs[f"pooling_{kind}"]["parameters"] == own["parameters"]
    usual = None
    for run, config in configs.items():
        embedding = runs.build_model(config, 10).embedding
        tokens = np.prod(embedding.grid(config.image_size, config.image_size))
        usual = usual or tokens
        factor = 1 / 4 if "fewer" in run else 4 if "more" in run else 1
        assert tokens == factor * usual, run
        assert ("other_mixing" in run) == ((config.augment.mixup > 0) != (configs["stce"].augment.mixup > 0)), run
    if scale.startswith("medium"):
        assert usual == 64


def test_a_pair_differs_in_the_clustering_alone():
    for run in (run for run in ROWS if run.startswith("stce")):
        first, second = (dict(ROWS[name].overrides) for name in (run, run.replace("stce", "pooling")))
        assert second.pop("model.embedding.stce.iterations") == 0 and first == second, run


@pytest.mark.parametrize("scale", VARIANTS)
def test_hypotheses_are_of_rows_and_of_three_families(scale):
    found = protocol.hypotheses(scale)
    assert [hypothesis.name for hypothesis in found] == [
        *(f"{letter}{number}" for letter, last in (("P", 4), ("C", 7), ("W", 7)) for number in range(1, last + 1))
    ]
    for hypothesis in found:
        assert hypothesis.signs.keys() <= ROWS.keys() and sum(hypothesis.signs.values()) == 0
    used = {run for hypothesis in found for run in hypothesis.signs}
    assert used == set(ROWS), "a row decides nothing"
    mixing = found[-1].signs
    base = load_rows("clustering", scale)[0].config().augment.mixup > 0
    assert mixing["stce"] == (1 if base else -1), "the gain with mixing must count as plus"


def results(tmp_path, hits):
    """{run: Result} of {run: [seeds, images]}."""
    for run, own in hits.items():
        for seed, of_seed in enumerate(own):
            keep(tmp_path, ROWS[run], seed, of_seed)
    found = to_results(read_folder(tmp_path, "smoke"), list(ROWS.values()), range(5))
    return {result.row.run: result for result in found if result.seeds}


def verdicts(decisions):
    return {decision.hypothesis.name: decision.verdict for decision in decisions}


def test_verdicts_are_the_protocols(tmp_path):
    """Far better is yes, far worse and hardly different no, a little better undecided, what is missing not run."""
    shares = {"stce": 0.70, "patch": 0.55, "conv": 0.78, "pooling": 0.70, "strided": 0.688}
    hits = drawn_hits(np.random.default_rng(0), shares, 3, 4000)
    hits["pooling"] = hits["stce"].copy()
    hits["pooling"][:, :4] ^= True
    decisions = protocol.decide(results(tmp_path, hits), "smoke")
    assert {name: verdict for name, verdict in verdicts(decisions).items() if verdict != "not run"} == {
        "P1": "yes",
        "P2": "no",
        "P3": "no",
        "P4": "undecided",
    }
    texts = answers(decisions)
    assert len(texts) == 5 and texts[0].startswith("Super tokens are better than patches: yes (+15.")
    assert "no, the reverse (-" in texts[1] and "no, not by 1 point (" in texts[2] and "undecided" in texts[3]
    assert texts[4] == "The 14 further hypotheses are not run yet."


def test_p_values_are_corrected_for_all_of_the_family(tmp_path):
    hits = drawn_hits(np.random.default_rng(1), {"stce": 0.70, "pooling": 0.68}, 3, 1000)
    (decision,) = (each for each in protocol.decide(results(tmp_path, hits), "smoke") if each.verdict != "not run")
    plain = crossed_mean(hits["stce"].astype(float) - hits["pooling"]).p_value
    assert decision.corrected == pytest.approx(min(1.0, 4 * plain))


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_seeds_than_the_first_look_has_decide_nothing(tmp_path, seeds):
    hits = drawn_hits(np.random.default_rng(2), {"stce": 0.9, "patch": 0.3}, seeds, 1000)
    (decision,) = (each for each in protocol.decide(results(tmp_path, hits), "smoke") if each.verdict != "not run")
    assert decision.verdict == "undecided" and decision.corrected is None
    assert f"undecided, +60.00 points with {seeds} seed" in protocol.sentence(decision)


def test_a_look_is_at_three_seeds_until_there_are_five():
    assert protocol.look([2, 0]) == (0, 2)
    assert protocol.look([0, 1, 2, 3]) == protocol.look([2, 1, 0]) == (0, 1, 2)
    assert protocol.look([5, 0, 1, 2, 3, 4]) == (0, 1, 2, 3, 4, 5)


def test_contrasts_add_up_and_need_all_their_rows(tmp_path):
    shares = {"stce_more": 0.9, "pooling_more": 0.6, "stce_fewer": 0.5, "pooling_fewer": 0.5}
    hits = drawn_hits(np.random.default_rng(3), shares, 3, 1000)
    found = {each.hypothesis.name: each for each in protocol.decide(results(tmp_path, hits), "smoke")}
    assert found["W6"].mean == pytest.approx(0.3, abs=0.01) and found["W6"].verdict == "yes"
    assert found["W7"].verdict == "not run" and found["W7"].mean is None


@pytest.mark.slow
def test_the_report_leads_with_sentences_and_says_how_many_runs_are_there(tmp_path):
    kept, shares = tmp_path / "kept", dict.fromkeys(DECIDING, 0.6) | {"stce": 0.7}
    for run, own in drawn_hits(np.random.default_rng(4), shares, 3, 300).items():
        for seed, of_seed in enumerate(own):
            keep(kept, ROWS[run], seed, of_seed, clusters=run == "stce")
    keep_images(kept, 300)
    blocks = study_blocks(read_folder(kept, "smoke"), read_images(kept), "smoke", range(5), tmp_path)
    text = documents.to_markdown(blocks)
    opening, _, rest = text.partition("\n#")
    assert "15 of 25 are finished; of all runs 15 of 110" in opening and "Version 1 of the protocol" in opening
    assert opening.count("\n- ") == 5 and "- Super tokens are better than patches: yes (+10." in opening
    assert "| P3 | Clustering is better than average pooling | +10." in rest
    assert "| W7 | Clustering gains more under mixup and CutMix | – | – | – | – | not run |" in rest
    assert "| super tokens, T = 3 | 60.0% | 40.0% | +20.00 [+20.00, +20.00] | 40.0% | 40.0% |" in rest
    assert "| few edges |" in rest and "| `class9` |" in rest and "Undecided or not run: C1, super tokens" in rest
    assert {path.name for path in tmp_path.glob("*.png")} == {"differences.png", "curves.png", "entropy.png"}


def test_a_report_of_nothing_says_so(tmp_path):
    text = documents.to_markdown(study_blocks([], None, "medium", range(5), tmp_path))
    assert "0 of 25 are finished; of all runs 0 of 110" in text and not list(tmp_path.iterdir())
