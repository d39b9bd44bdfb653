"""Orders of the training images: exact counts of classes and images, whatever the seed, the classes and the place."""

import collections
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import COUNT, as_process, assert_equal, train

from stce_jax.data.order import check_options, make_order
from stce_jax.errors import ConfigError

class_sizes = st.lists(st.integers(1, 30), min_size=1, max_size=12)
seeds = st.integers(0, 2**32 - 1)


def labels_of(sizes, seed=0):
    """Labels of classes of these sizes, in any order."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


def ordered(sampling, labels, *, seed=0, salt=0, repeats=1):
    return make_order(sampling, labels, count=len(labels), seed=seed, salt=salt, repeats=repeats)


def taken(order, start, stop):
    return np.array([order(position) for position in range(start, stop)])


@given(class_sizes, seeds)
def test_balanced_draws_each_class_once_a_round(sizes, seed):
    labels, classes = labels_of(sizes, seed), len(sizes)
    drawn = labels[taken(ordered("balanced", labels, seed=seed), 0, 3 * len(labels) // classes * classes)]
    rounds = drawn.reshape(-1, classes)
    np.testing.assert_array_equal(np.sort(rounds, axis=1), np.tile(np.arange(classes), (len(rounds), 1)))
    for epoch in range(3):
        window = labels[taken(ordered("balanced", labels, seed=seed), epoch * len(labels), (epoch + 1) * len(labels))]
        counts = np.bincount(window, minlength=classes)
        assert counts.max() - counts.min() <= 2, f"epoch {epoch}: {counts}"


@given(class_sizes, seeds, st.sampled_from(["balanced", "sqrt"]))
def test_a_class_deals_out_each_image_before_any_comes_again(sizes, seed, sampling):
    labels = labels_of(sizes, seed)
    drawn = taken(ordered(sampling, labels, seed=seed), 0, 4 * len(labels))
    for label, size in enumerate(sizes):
        own = drawn[labels[drawn] == label]
        for start in range(0, len(own) - size + 1, size):
            deck = own[start : start + size]
            assert len(set(deck.tolist())) == size, f"class {label} of {size} repeats within {deck}"


@given(class_sizes, seeds)
def test_sqrt_draws_classes_by_the_root_of_their_images(sizes, seed):
    labels, epochs = labels_of(sizes, seed), 20
    drawn = labels[taken(ordered("sqrt", labels, seed=seed), 0, epochs * len(labels))]
    shares = np.sqrt(sizes) / np.sqrt(sizes).sum()
    quotas = np.maximum(1, np.rint(len(labels) * shares))
    counts, rounds = np.bincount(drawn, minlength=len(sizes)), epochs * len(labels) / quotas.sum()
    # Whole rounds are exact; of one that is not over, a class has drawn anything up to its quota.
    assert (np.floor(rounds) * quotas <= counts).all() and (counts <= np.ceil(rounds) * quotas).all()
    assert np.abs(quotas - np.maximum(1, len(labels) * shares)).max() <= 0.5


@given(class_sizes, seeds, st.integers(1, 4), st.sampled_from(["", "balanced", "sqrt"]), st.integers(0, 200))
def test_a_position_has_the_same_image_wherever_one_starts(sizes, seed, repeats, sampling, start):
    labels = labels_of(sizes, seed)
    options = {"seed": seed, "repeats": repeats, "salt": 1}
    whole = taken(ordered(sampling, labels, **options), 0, start + 40)
    order = pickle.loads(pickle.dumps(ordered(sampling, labels, **options)))  # as in another process
    np.testing.assert_array_equal([order(position) for position in reversed(range(start, start + 40))], whole[:-41:-1])


@given(class_sizes, seeds, st.integers(2, 4), st.sampled_from(["balanced", "sqrt"]))
def test_repeated_images_come_in_a_row_of_the_same_draws(sizes, seed, repeats, sampling):
    labels = labels_of(sizes, seed)
    count = len(labels)
    plain = taken(ordered(sampling, labels, seed=seed), 0, 3 * count)
    found = taken(ordered(sampling, labels, seed=seed, repeats=repeats), 0, 3 * count)
    draws = -(-count // repeats)
    for epoch in range(3):
        expected = np.repeat(plain[epoch * draws : (epoch + 1) * draws], repeats)[:count]
        np.testing.assert_array_equal(found[epoch * count : (epoch + 1) * count], expected, f"epoch {epoch}")


@pytest.mark.parametrize("sampling", ["", "balanced", "sqrt"])
def test_seed_salt_and_epoch_change_the_order(sampling):
    labels = labels_of([20, 10, 5])
    orders = [ordered(sampling, labels, **draws) for draws in ({}, {"seed": 1}, {"salt": 1})]
    seen = [tuple(taken(order, 35 * epoch, 35 * (epoch + 1)).tolist()) for order in orders for epoch in range(3)]
    assert len(set(seen)) == len(seen)


def test_without_sampling_the_order_is_that_of_earlier_versions():
    """A run that began with one of them resumes with it."""
    order = ordered("", np.zeros(10, int), seed=7, salt=2)
    expected = [
        np.random.Generator(np.random.Philox(key=(7, epoch), counter=(0, 0, 2, 1))).permutation(10) for epoch in (0, 1)
    ]
    np.testing.assert_array_equal(taken(order, 0, 20), np.concatenate(expected))


@pytest.mark.parametrize(
    ("sampling", "sizes", "expected"),
    [
        ("balanced", [4, 2, 1], [4, 3, 6, 5, 6, 2, 6, 4, 1, 6, 5, 0, 4, 6]),
        ("sqrt", [9, 1], [4, 3, 1, 8, 6, 2, 9, 7, 9, 5, 0, 6, 5, 4]),
    ],
)
def test_the_order_of_a_seed_stays_in_later_versions(sampling, sizes, expected):
    found = taken(ordered(sampling, np.repeat(np.arange(len(sizes)), sizes), seed=3), 0, 14)
    assert found.tolist() == expected, "runs that sample would not resume with the same images"


@pytest.mark.parametrize(
    "options", [{"threads": 4}, {"batch_size": 6}, pytest.param({"workers": 1}, marks=pytest.mark.slow)]
)
def test_batches_are_the_same_however_they_are_loaded(options):
    drawn = {"sampling": "balanced", "labels": labels_of([6, 3, COUNT - 9])}
    plain = train(6, **drawn)["label"].ravel()
    np.testing.assert_array_equal(train(4, **drawn, **options)["label"].ravel()[:16], plain[:16])


def test_processes_have_their_shares_from_any_position_on():
    drawn = {"sampling": "sqrt", "labels": labels_of([6, 3, COUNT - 9]), "batch_size": 8}
    whole, shares = train(9, **drawn), []
    for process in range(4):
        with as_process(process, 4):
            shares.append(train(4, **drawn, position=40))
    together = {name: np.concatenate([share[name] for share in shares], axis=1) for name in whole}
    assert_equal(together, {name: values[5:] for name, values in whole.items()}, "4 processes from step 5 on")


@pytest.mark.parametrize("sampling", ["balance", "Sqrt"])
def test_other_words_are_refused(sampling):
    with pytest.raises(ConfigError, match=r'config\.sampling is .*; it must be one of "", balanced, sqrt'):
        check_options(sampling=sampling)


def test_rare_images_are_repeated_and_common_ones_are_not():
    labels = np.repeat([0, 1], [90, 10])
    counts = collections.Counter(taken(ordered("balanced", labels), 0, 100).tolist())
    assert {counts[image] for image in range(90, 100)} == {5} and max(counts[image] for image in range(90)) == 1
    assert sum(counts[image] for image in range(90)) == 50
