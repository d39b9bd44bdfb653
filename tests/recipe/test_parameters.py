"""Which parameters a pattern names, what is refused, and the average over a share of a run."""

import numpy as np
import pytest

from stce_jax.errors import ConfigError
from stce_jax.recipe import averages
from stce_jax.recipe.parameters import check_frozen, check_patterns, is_frozen, merge, split

PATHS = [
    ("class_token",),
    ("embedding", "module_1", "norm", "scale"),
    ("embedding_norm", "scale"),
    ("blocks_1", "attention", "qkv", "kernel"),
    ("blocks_1", "mlp", "in", "kernel"),
    ("blocks_10", "attention", "qkv", "kernel"),
    ("head", "kernel"),
]


@pytest.mark.parametrize(
    "patterns, named",
    [
        (["embedding"], [1]),
        (["embedding*"], [1, 2]),
        (["blocks"], [3, 4, 5]),
        (["blocks_1"], [3, 4]),
        (["blocks_?"], [3, 4]),
        (["blocks/attention"], [3, 5]),
        (["*/*/*/kernel"], [3, 4, 5]),
        (["blocks_1/mlp", "head"], [4, 6]),
        (["blocks_1/mlp,head"], [4, 6]),  # as the command line gives it
        (["class_token"], [0]),
        (["kernel"], []),
        (["Blocks"], []),
    ],
)
def test_patterns_name_parts_from_the_root(patterns, named):
    frozen = is_frozen(patterns)
    assert [number for number, path in enumerate(PATHS) if frozen(path)] == named


@pytest.mark.parametrize("patterns", ["blocks", ("",), ("/head",), ("a b",), ("[a]",), ("a" * 1001,), ("a",) * 101])
def test_what_is_no_pattern_is_refused(patterns):
    with pytest.raises(ConfigError, match=r"config\.optimizer\.freeze is .*must be a tuple of at most 100 names"):
        check_patterns(patterns)


def test_patterns_that_name_nothing_or_everything_are_refused():
    check_frozen(["blocks", "embedding"], PATHS)
    with pytest.raises(ConfigError) as error:
        check_frozen(["blocks", "stages_1"], PATHS)
    assert str(error.value) == (
        "config.optimizer.freeze names 'stages_1', and the model has no such part; it has blocks, class_token, "
        "embedding, embedding_norm, head"
    )
    with pytest.raises(ConfigError, match="leaves nothing to train; leave the head out"):
        check_frozen(["*"], PATHS)


def test_what_is_split_is_merged():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": {"f": 3}}
    trained, rest = split(tree, is_frozen(["a/c", "e"]))
    assert (trained, rest) == ({"a": {"b": 1}}, {"a": {"c": {"d": 2}}, "e": {"f": 3}})
    assert merge(trained, rest) == tree


# --- the average over a share of the run


def weights(share, steps, shift=0.0, first=0):
    """How much each step counts in the average after the last of them."""
    decay, weights = averages.power_decay(share, shift), np.zeros(0)
    for step in range(first, first + steps):
        kept = float(decay(np.int32(step)))
        weights = np.append(weights * kept, 1 - kept)
    return weights


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.28])
@pytest.mark.parametrize("steps", [100, 400])
def test_the_average_spans_its_share_of_a_run_of_any_length(share, steps):
    counted = weights(share, steps)
    assert counted.sum() == pytest.approx(1.0, abs=1e-5)
    time = (np.arange(steps) + 0.5) / steps
    mean = (counted * time).sum()
    assert np.sqrt((counted * (time - mean) ** 2).sum()) == pytest.approx(share, rel=0.06)
    power = averages.exponent(share)  # the profile is that power of time
    expected = (time**power) / (time**power).sum()
    np.testing.assert_allclose(counted[steps // 4 :], expected[steps // 4 :], rtol=0.05)


def test_the_first_step_is_the_average_of_itself():
    assert weights(0.1, 1).tolist() == [1.0]


def test_with_another_batch_size_time_is_that_of_images():
    """Twenty steps of one image, then ten of two: the same as twenty of two, from the tenth on."""
    share, first = 0.1, 20
    whole = averages.power_decay(share)
    after = averages.power_decay(share, shift=10.0)  # 20 steps took as many images as 10 do now
    assert float(after(np.int32(first))) == pytest.approx(float(whole(np.int32(10))), rel=1e-6)
