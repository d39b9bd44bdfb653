"""Class weights against scikit-learn, Cui et al.'s formula and PyTorch's documented loss; files of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy_reference import weighted_cross_entropy
from sklearn.utils.class_weight import compute_class_weight

from stce_jax.errors import ConfigError
from stce_jax.recipe.class_weights import check_options, make_class_weights
from stce_jax.recipe.losses import soft_target_cross_entropy
from stce_jax.recipe.mixing import soft_targets

IDS = ("apple", "pear", "plum")
COUNTS = np.array([90, 9, 1])


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=50))
def test_balanced_is_scikit_learns(counts):
    labels = np.repeat(np.arange(len(counts)), np.minimum(counts, 60))
    own = np.bincount(labels)
    expected = compute_class_weight("balanced", classes=np.arange(len(own)), y=labels)
    np.testing.assert_allclose(make_class_weights("balanced", own, range(len(own))), expected, rtol=1e-12)
    weights = make_class_weights("balanced", np.array(counts), range(len(counts)))
    assert (weights * counts).sum() / sum(counts) == pytest.approx(1), "the loss does not keep its size"


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 1 - 1e-12])
def test_effective_numbers_are_those_of_the_paper(beta):
    """Equation 2: (1 - beta) / (1 - beta^n), by what it is the sum of: 1 / (1 + beta + ... + beta^(n - 1))."""
    inverse = np.array([1 / sum(beta**k for k in range(n)) for n in COUNTS])
    weights = make_class_weights(f"effective:{beta!r}", COUNTS, IDS)
    np.testing.assert_allclose(weights / weights[0], inverse / inverse[0], rtol=1e-9)
    assert (weights * COUNTS).sum() / COUNTS.sum() == pytest.approx(1)


def test_its_ends_are_no_weighting_and_balanced():
    np.testing.assert_array_equal(make_class_weights("effective:0", COUNTS, IDS), 1.0)
    near = make_class_weights("effective:0.999999999", COUNTS, IDS)
    np.testing.assert_allclose(near, make_class_weights("balanced", COUNTS, IDS), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_loss_of_mixed_and_smoothed_targets_is_pytorchs(dtype):
    rng = np.random.default_rng(0)
    logits = np.asarray(jnp.asarray(2 * rng.standard_normal((8, 3)), dtype), np.float32)
    targets = np.asarray(soft_targets(jnp.array([0, 1, 2, 0, 0, 1, 2, 2]), 3, smoothing=0.1))
    targets = 0.3 * targets + 0.7 * targets[::-1]
    weights = make_class_weights("balanced", COUNTS, IDS)
    expected, mean = weighted_cross_entropy(logits.astype(np.float64), targets, weights)
    found = soft_target_cross_entropy(jnp.asarray(logits), jnp.asarray(targets), weights)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.dtype == jnp.float32 and float(found.mean()) == pytest.approx(mean, rel=1e-5)


def test_a_mixed_image_has_the_mixed_loss_of_both():
    logits, weights = jnp.array([[0.3, -1.0, 2.0]]), np.array([0.2, 5.0, 1.0])
    one, other = jax.nn.one_hot(jnp.array([[0], [2]]), 3)
    loss = soft_target_cross_entropy
    mixed = loss(logits, 0.25 * one + 0.75 * other, weights)
    np.testing.assert_allclose(
        mixed, 0.25 * loss(logits, one, weights) + 0.75 * loss(logits, other, weights), rtol=1e-6
    )
    np.testing.assert_allclose(loss(logits, one, weights), 0.2 * loss(logits, one), rtol=1e-6)


@pytest.mark.torch
def test_it_is_pytorchs_own():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    logits, targets = rng.standard_normal((6, 3)), rng.dirichlet(np.ones(3), 6)
    weights = make_class_weights("balanced", COUNTS, IDS)
    expected = torch.nn.functional.cross_entropy(*map(torch.tensor, (logits, targets)), weight=torch.tensor(weights))
    found = soft_target_cross_entropy(jnp.asarray(logits), jnp.asarray(targets), weights).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def written(folder, text):
    (folder / "weights.csv").write_text(text)
    return str(folder / "weights.csv")


@pytest.mark.parametrize("header", ["", "class_id,weight\n", "\ufeffclass_id, weight\n"])
def test_a_file_gives_weights_in_any_order(tmp_path, header):
    file = written(tmp_path, f"{header}plum,8\napple, 0.5\n\npear,2e0\n")
    np.testing.assert_array_equal(make_class_weights(file, COUNTS, IDS), [0.5, 2.0, 8.0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("apple,1\npear,1\n", "has no weight for class 'plum'; add a line"),
        ("apple,1\npear,1\nplum,1\nfig,1\n", "line 4: the data have no class 'fig'; take the line out"),
        ("apple,1\napple,2\n", "line 2: class 'apple' is there twice; remove one"),
        ("apple,1,2\n", "line 1: there are 3 values; write `class id,weight`"),
        ("apple,heavy\n", "line 1: the weight is 'heavy'; it must be above 0"),
        ("apple,0\n", "line 1: the weight is '0'; it must be above 0"),
        ("apple,nan\n", "line 1: the weight is 'nan'"),
        ("apple,inf\n", "line 1: the weight is 'inf'"),
        ("apple\0,1\n", "line 1: the data have no class 'apple\\x00'"),
        ("", "has no weight for class 'apple'"),
    ],
)
def test_files_that_say_no_weights_are_refused_in_one_line(tmp_path, text, said):
    with pytest.raises(ConfigError) as error:
        make_class_weights(written(tmp_path, text), COUNTS, IDS)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        ConfigError, match=r"cannot read the class weights .*none\.csv: No such file or directory; give"
    ):
        make_class_weights(str(tmp_path / "none.csv"), COUNTS, IDS)


@pytest.mark.parametrize("text", ["balence", "effective:", "effective:1", "effective:nan", "effective:-0.1", "a.txt"])
def test_words_that_mean_nothing_are_refused(text):
    with pytest.raises(ConfigError, match=r"config\.class_weights"):
        check_options(class_weights=text)


@pytest.mark.parametrize("text", ["", "balanced", "effective:0.999", "effective:0", "~/weights.csv"])
def test_words_that_are_taken(text):
    check_options(class_weights=text)
