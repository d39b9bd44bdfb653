"""The stream of batches: a pure function of seed and position, whatever the threads, processes and restarts."""

import itertools
import threading
import time

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import (
    COUNT,
    SOURCE,
    CountingSource,
    DamagedSource,
    SlowSource,
    Source,
    UnevenSource,
    as_process,
    assert_equal,
    feeder,
    train,
    undisturbed,
)

from stce_jax.data import feeder as feeding
from stce_jax.data import loader
from stce_jax.data.catalog import open_dataset
from stce_jax.data.views import Views
from stce_jax.errors import DataError, PreemptedError
from stce_jax.training.mesh import batch_sharding, make_mesh

pytestmark = pytest.mark.usefixtures("eight_devices")


def stream(steps, **options):
    """The same as one stream, positions first."""
    return {name: values.reshape(-1, *values.shape[2:]) for name, values in train(steps, **options).items()}


# --- training


def test_batches_are_bytes_of_the_asked_size():
    batches = train(2)
    assert batches["image"].shape == (2, 4, 6, 6, 3) and batches["image"].dtype == np.uint8
    assert batches["label"].shape == (2, 4) and batches["label"].dtype == np.int32
    blue = batches["image"][..., 2]
    assert (blue == batches["label"][:, :, None, None]).all(), "labels and images do not belong together"


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_the_number_of_threads_changes_nothing(threads):
    expected = {name: values[:6] for name, values in undisturbed().items()}
    assert_equal(train(6, threads=threads), expected, f"{threads} threads")


@hypothesis.settings(max_examples=10)
@given(start=st.integers(0, 42))
def test_a_run_resumed_at_any_step_goes_on_as_the_undisturbed_one(start):
    expected = {name: values[start : start + 3] for name, values in undisturbed().items()}
    assert_equal(train(3, position=4 * start), expected, f"resumed at step {start}")


@pytest.mark.parametrize("batch_size", [1, 2, 8, 12])
def test_order_and_crops_belong_to_the_position_not_to_the_batch(batch_size):
    expected = {name: values.reshape(-1, *values.shape[2:])[:48] for name, values in undisturbed().items()}
    assert_equal(stream(48 // batch_size, batch_size=batch_size), expected, f"batches of {batch_size}")


def test_keeping_pixels_in_memory_changes_nothing():
    expected = {name: values[:20] for name, values in undisturbed().items()}
    assert_equal(train(20, cache_bytes=10**6), expected, "with a cache")


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("start", [0, 40, 43])
def test_processes_together_load_the_global_batch_row_by_row(processes, start):
    """JAX lays the processes' rows one after the other; so each must load its run of rows, not every P-th.

    Only then is an image's row its place in the stream, on which flips, shifts and mixup's partner depend.
    """
    expected = train(6, batch_size=8, position=start)
    shares = []
    for process in range(processes):
        with as_process(process, processes):
            shares.append(train(6, batch_size=8, position=start))
        assert shares[-1]["label"].shape == (6, 8 // processes)
    together = {name: np.concatenate([share[name] for share in shares], axis=1) for name in expected}
    assert_equal(together, expected, f"{processes} processes from position {start} on")


@pytest.mark.parametrize("processes", [1, 2])
def test_rows_may_hold_a_batchs_images_in_another_order(processes):
    places, expected = np.array([0, 7, 1, 6, 2, 5, 3, 4]), train(4, batch_size=8, position=3)
    shares = []
    for process in range(processes):
        with as_process(process, processes):
            shares.append(train(4, batch_size=8, position=3, places=places))
    together = {name: np.concatenate([share[name] for share in shares], axis=1) for name in expected}
    expected = {name: values[:, places] for name, values in expected.items()}
    assert_equal(together, expected, f"{processes} processes, rows in another order")


@pytest.mark.parametrize("count", [1, 2, 7, 10])
def test_every_image_comes_exactly_once_in_each_epoch(count):
    labels = stream(-(-6 * count // 4), source=Source(count))["label"]
    for epoch in range(6):
        window = labels[epoch * count : (epoch + 1) * count]
        assert sorted(window) == list(range(count)), f"epoch {epoch} of {count} images: {window}"


def test_epochs_and_seeds_differ_in_order_and_in_crops():
    positions = {seed: stream(15, seed=seed) for seed in (0, 1)}
    orders = {}
    crops = {}  # image: its crops, one an epoch and seed
    for seed, values in positions.items():
        for epoch in range(6):
            window = slice(epoch * COUNT, (epoch + 1) * COUNT)
            orders[seed, epoch] = tuple(values["label"][window])
            for image, label in zip(values["image"][window], values["label"][window], strict=True):
                crops.setdefault(int(label), []).append(image.tobytes())
    assert len(set(orders.values())) == len(orders), "an order comes twice"
    for label, seen in crops.items():
        assert len(set(seen)) >= len(seen) - 1, f"image {label} is cut the same again and again"


@pytest.mark.parametrize("repeats", [2, 3])
def test_repeated_images_come_one_after_the_other_and_keep_the_epoch_s_length(repeats):
    positions = stream(15, repeats=repeats)
    plain = stream(15)["label"]
    for epoch in range(6):
        window = positions["label"][epoch * COUNT : (epoch + 1) * COUNT]
        expected = np.repeat(plain[epoch * COUNT : (epoch + 1) * COUNT], repeats)[:COUNT]
        np.testing.assert_array_equal(window, expected, err_msg=f"epoch {epoch}")
    crops = [image.tobytes() for image in positions["image"]]
    copies = [crops[place] != crops[place + 1] for place in range(0, 60, 10)]
    assert sum(copies) >= 5, "an image's repetitions are cut alike"


def test_repeated_images_go_on_at_any_step_and_over_processes():
    whole = train(9, batch_size=8, repeats=3)
    shares = []
    for process in range(4):
        with as_process(process, 4):
            shares.append(train(4, batch_size=8, repeats=3, position=40))
    together = {name: np.concatenate([share[name] for share in shares], axis=1) for name in whole}
    assert_equal(together, {name: values[5:] for name, values in whole.items()}, "4 processes from step 5 on")


def test_a_center_crop_draws_nothing():
    batches = train(5, crop="center", size=24)
    for image, label in zip(batches["image"].reshape(-1, 24, 24, 3), batches["label"].reshape(-1), strict=True):
        np.testing.assert_array_equal(image, SOURCE.images[label])


def test_threads_read_a_prepared_dataset_alike(data_dir):
    source = open_dataset("digits", data_dir).train
    options = {"source": source, "batch_size": 64, "size": 8}
    assert_equal(train(4, threads=4, **options), train(4, threads=0, **options), "4 threads")


@pytest.mark.parametrize("threads", [0, 4])
def test_a_damaged_image_ends_training_by_name(threads):
    with pytest.raises(DataError, match=r"picture 7\b"):
        train(3, source=DamagedSource(), threads=threads)


# --- trouble


@pytest.mark.slow
@pytest.mark.parametrize("threads", [0, 2])
def test_an_image_that_never_comes_is_named(threads, monkeypatch, capsys):
    monkeypatch.setattr(feeding, "REPORT", 0.3)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"no data came for \d+ s: picture 7 has been read for \d+ s"):
        train(3, source=SlowSource(), threads=threads, timeout=1.0)
    assert time.monotonic() - start < 20
    assert "stce: waiting for data for" in capsys.readouterr().err


def test_an_error_stays_one():
    with feeder(DamagedSource(), threads=0) as batches:
        for _ in range(3):
            with pytest.raises(DataError, match=r"picture 7\b"):
                list(itertools.islice(batches, 3))


@pytest.mark.slow
def test_nobody_waits_who_is_to_stop():
    start = time.monotonic()
    with feeder(SlowSource(), stop=lambda: True) as batches, pytest.raises(PreemptedError):
        list(itertools.islice(batches, 3))
    assert time.monotonic() - start < 20


def test_a_closed_loader_leaves_no_thread():
    before = set(threading.enumerate())
    with feeder(threads=4) as batches:
        next(batches)
    deadline = time.monotonic() + 20
    while left := set(threading.enumerate()) - before:
        assert time.monotonic() < deadline, f"left: {left}"
        time.sleep(0.05)


# --- memory


@pytest.mark.parametrize("crop", ["center", "random_resized"])
def test_small_sources_are_read_once(crop):
    source = CountingSource()
    train(25, source=source, crop=crop, cache_bytes=24 * 24 * 3 * COUNT)
    assert source.reads <= 2 * COUNT, "the samples and every image once"
    source.reads = 0
    train(25, source=source, crop=crop, cache_bytes=6 * 6 * 3 * COUNT - 1)
    assert source.reads >= 100, "what does not fit is not kept"


def test_no_more_is_kept_than_was_allowed():
    source = UnevenSource()
    views = Views(source, size=24, crop="random_resized", fraction=1.0, area=(1, 1), ratio=(1, 1), cache_bytes=20_000)
    for _ in range(2):
        for index in range(len(source)):
            views.view(index, np.random.default_rng(0))
    kept = [pixels.nbytes for pixels, _ in filter(None, views._cache)]
    assert 10_000 < sum(kept) <= 20_000


# --- evaluation


def evaluation(source=SOURCE, *, size=24, batch_size=4, threads=2, cache_bytes=0):
    views = Views(source, size=size, crop="center", fraction=1.0, cache_bytes=cache_bytes)
    with loader.eval_batches(views, batch_size=batch_size, threads=threads, timeout=60.0) as batches:
        return list(batches)


@given(
    count=st.integers(1, 14), processes=st.sampled_from([1, 2, 4]), rows=st.integers(1, 5), threads=st.integers(0, 2)
)
def test_evaluation_counts_every_image_exactly_once(count, processes, rows, threads):
    source = Source(count, side=4)
    batch_size = rows * processes
    labels, lengths = [], []
    for process in range(processes):
        with as_process(process, processes):
            batches = evaluation(source, batch_size=batch_size, size=4, threads=threads)
        lengths.append(len(batches))
        for batch in batches:
            assert batch["image"].shape == (rows, 4, 4, 3) and batch["image"].dtype == np.uint8
            assert batch["label"].shape == batch["weight"].shape == (rows,), "processes need batches of equal size"
            assert batch["label"].dtype == np.int32 and batch["weight"].dtype == np.float32
            assert set(batch["weight"]) <= {0.0, 1.0}
            for image, label, weight in zip(batch["image"], batch["label"], batch["weight"], strict=True):
                np.testing.assert_array_equal(image, source.images[label] if weight else np.zeros((4, 4, 3)))
            labels += batch["label"][batch["weight"] == 1].tolist()
    assert sorted(labels) == list(range(count)), "not every image exactly once"
    assert set(lengths) == {-(-count // batch_size)}, f"unequal numbers of batches: {lengths}; the processes would wait"


@pytest.mark.parametrize("threads", [0, 4])
def test_a_damaged_image_ends_evaluation_by_name(threads):
    with pytest.raises(DataError, match=r"picture 7\b"):
        evaluation(DamagedSource(), threads=threads)


# --- to the devices


def numbered(count, pulled=None):
    for number in range(count):
        if pulled is not None:
            pulled.append(number)
        yield {"image": np.full((8, 2, 2, 3), number, np.uint8), "label": np.arange(8, dtype=np.int32) + 100 * number}


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_devices_get_every_batch_in_order(count):
    found = list(loader.to_devices(numbered(count), batch_sharding(make_mesh())))
    assert len(found) == count
    for batch, expected in zip(found, numbered(count), strict=True):
        assert_equal(jax.device_get(batch), expected, "changed on the way")


def test_a_batch_is_sent_when_it_is_asked_for_and_not_held_back():
    pulled = []
    batches = loader.to_devices(numbered(5, pulled), batch_sharding(make_mesh()))
    for number in range(5):
        assert pulled == list(range(number)), f"before batch {number} is asked for"
        next(batches)


@pytest.mark.parametrize("fsdp_devices", [1, 4])
def test_each_device_holds_its_rows(fsdp_devices):
    mesh = make_mesh(fsdp_devices)
    assert mesh.size == 8
    [batch] = loader.to_devices(numbered(1), batch_sharding(mesh))
    for array in batch.values():
        assert array.sharding.is_equivalent_to(batch_sharding(mesh), array.ndim)
        assert len({shard.device for shard in array.addressable_shards}) == 8
        assert {shard.data.shape[0] for shard in array.addressable_shards} == {1}
    assert sorted(int(shard.data[0]) for shard in batch["label"].addressable_shards) == list(range(8))


def test_a_damaged_image_reaches_the_caller_through_the_threads():
    with feeder(DamagedSource(), batch_size=8, threads=4) as batches, pytest.raises(DataError, match=r"picture 7\b"):
        list(itertools.islice(loader.to_devices(batches, batch_sharding(make_mesh())), 3))


def test_another_salt_is_another_order_of_the_same_images():
    """In which a run goes on after it has diverged; crops stay those of the positions."""

    def labels(salt):
        with feeder(salt=salt, batch_size=1) as batches:
            return [int(next(batches)["label"][0]) for _ in range(len(SOURCE))]

    first, again, other = labels(0), labels(0), labels(1)
    assert first == again != other
    assert sorted(first) == sorted(other), "an epoch has other images"
