"""The stream of batches: a pure function of seed and position, whatever the threads, processes and restarts."""

import contextlib
import functools
import io
import itertools
from unittest import mock

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stce_jax.data import loader
from stce_jax.data.catalog import open_dataset
from stce_jax.engine.mesh import batch_sharding, make_mesh
from stce_jax.errors import DataError

COUNT = 10  # images of the usual source; no batch size below divides it but 2


class Source:
    """PNGs whose pixels tell their place: red is the column, green the row, blue the image, whose label it is."""

    def __init__(self, count=COUNT, side=24):
        rows, columns = np.mgrid[:side, :side].astype(np.uint8)
        self.images = [np.stack([columns * 10, rows * 10, 0 * rows + index], axis=2) for index in range(count)]

    def __len__(self):
        return len(self.images)

    @functools.cache  # noqa: B019
    def __getitem__(self, index):
        stream = io.BytesIO()
        Image.fromarray(self.images[index]).save(stream, format="PNG")
        return {"image": stream.getvalue(), "label": index, "name": f"picture {index}"}


class DamagedSource(Source):
    def __getitem__(self, index):
        record = super().__getitem__(index)
        return record | {"image": record["image"][:60]} if index == 7 else record


SOURCE = Source()
OPTIONS = {
    "batch_size": 4,
    "size": 6,
    "crop": "random_resized",
    "area": (0.2, 0.8),
    "ratio": (0.75, 4 / 3),
    "fraction": 1.0,
    "seed": 3,
    "start_step": 0,
    "threads": 2,
}


def train(steps, source=SOURCE, **options):
    """The first batches as {"image": [steps, rows, ...], "label": [steps, rows]}."""
    batches = list(itertools.islice(loader.train_batches(source, **(OPTIONS | options)), steps))
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def stream(steps, **options):
    """The same as one stream, positions first."""
    return {name: values.reshape(-1, *values.shape[2:]) for name, values in train(steps, **options).items()}


def assert_equal(found, expected, message):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=f"{message}: {name}")


@contextlib.contextmanager
def as_process(index, count):
    """As if this process were number `index` of `count`."""
    with mock.patch.object(jax, "process_index", lambda: index), mock.patch.object(jax, "process_count", lambda: count):
        yield


@functools.cache
def undisturbed():
    return train(45)


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
    assert_equal(train(3, start_step=start), expected, f"resumed at step {start}")


@pytest.mark.parametrize("batch_size", [1, 2, 8, 12])
def test_order_and_crops_belong_to_the_position_not_to_the_batch(batch_size):
    expected = {name: values.reshape(-1, *values.shape[2:])[:48] for name, values in undisturbed().items()}
    assert_equal(stream(48 // batch_size, batch_size=batch_size), expected, f"batches of {batch_size}")


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("start", [0, 5])
def test_processes_together_load_the_global_batch_row_by_row(processes, start):
    """JAX lays the processes' rows one after the other; so each must load its run of rows, not every P-th.

    Only then is an image's row its place in the stream, on which flips, shifts and mixup's partner depend.
    """
    expected = train(6, batch_size=8, start_step=start)
    shares = []
    for process in range(processes):
        with as_process(process, processes):
            shares.append(train(6, batch_size=8, start_step=start))
        assert shares[-1]["label"].shape == (6, 8 // processes)
    together = {name: np.concatenate([share[name] for share in shares], axis=1) for name in expected}
    assert_equal(together, expected, f"{processes} processes from step {start} on")


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


# --- evaluation


def evaluation(source=SOURCE, **options):
    return list(loader.eval_batches(source, **({"batch_size": 4, "size": 24, "fraction": 1.0, "threads": 2} | options)))


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


def test_one_batch_is_kept_ahead():
    pulled = []
    batches = loader.to_devices(numbered(5, pulled), batch_sharding(make_mesh()))
    assert pulled == [], "nothing is loaded before it is asked for"
    for number in range(5):
        next(batches)
        assert pulled == list(range(min(number + 2, 5))), f"when batch {number} is in use"


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
    batches = loader.train_batches(DamagedSource(), **(OPTIONS | {"batch_size": 8, "threads": 4}))
    with pytest.raises(DataError, match=r"picture 7\b"):
        list(itertools.islice(loader.to_devices(batches, batch_sharding(make_mesh())), 3))
