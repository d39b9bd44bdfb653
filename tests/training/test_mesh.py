"""The mesh and the shardings: who holds which part of what."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, PartitionSpec

from stce_jax.errors import ConfigError
from stce_jax.training import mesh as mesh_module
from stce_jax.training.mesh import batch_sharding, check_batch_size, make_mesh, replicated, state_shardings

pytestmark = pytest.mark.usefixtures("eight_devices")


def shape_only(*shape):
    """An array that takes no memory."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def spec(sharding):
    """The partition as a tuple, trailing Nones left out."""
    axes = list(sharding.spec)
    while axes and axes[-1] is None:
        axes.pop()
    return tuple(axes)


# --- the mesh


@pytest.mark.parametrize("fsdp", [1, 2, 4, 8])
def test_axes_and_sizes(fsdp):
    mesh = make_mesh(fsdp)
    assert mesh.axis_names == ("data", "fsdp")
    assert dict(mesh.shape) == {"data": 8 // fsdp, "fsdp": fsdp}
    assert set(mesh.devices.flat) == set(jax.devices()), "a device is left out, or stands twice"
    assert set(mesh.axis_types) == {AxisType.Auto}, "linen's modules need axes of type Auto"


def test_one_copy_of_everything_is_the_default():
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1}


def test_given_devices_alone_are_used():
    devices = jax.devices()[2:6]
    mesh = make_mesh(2, devices)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2}
    assert set(mesh.devices.flat) == set(devices)


class Device:
    """What `make_mesh` looks at in a device of another process."""

    def __init__(self, process_index, id):
        self.process_index, self.id = process_index, id


@pytest.mark.parametrize("fsdp", [1, 2, 4, 8])
def test_devices_stand_process_by_process(fsdp):
    """The loader gives process p the p-th part of every batch's rows."""
    devices = [Device(process, 10 * number + 3 - process) for number in (1, 0) for process in (3, 1, 0, 2)]
    flat = list(make_mesh(fsdp, devices).devices.flat)
    assert [device.process_index for device in flat] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert all(first.id < second.id for first, second in zip(flat[::2], flat[1::2], strict=True))


def test_processes_with_unequal_numbers_of_devices_are_refused():
    with pytest.raises(ConfigError) as error:
        make_mesh(1, [Device(0, 0), Device(1, 1), Device(1, 2), Device(2, 3), Device(2, 4)])
    message = str(error.value)
    assert "process 1 has 2 devices" in message and "process 0 has 1" in message and "\n" not in message


@pytest.mark.parametrize("fsdp", [0, -1, -8, 3, 5, 16])
def test_fsdp_that_does_not_divide_the_devices_is_refused(fsdp):
    with pytest.raises(ConfigError) as error:
        make_mesh(fsdp)
    message = str(error.value)
    assert f"fsdp_devices is {fsdp}" in message and "8 devices" in message and "\n" not in message
    assert error.value.exit_code == 2


# --- batches


@pytest.mark.parametrize("fsdp", [1, 2, 8])
def test_a_batch_is_split_over_all_devices(fsdp):
    batch = np.arange(16 * 3).reshape(16, 3)
    array = jax.device_put(batch, batch_sharding(make_mesh(fsdp)))
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start)
    assert len({shard.device for shard in shards}) == 8, "not every device has a part of the batch"
    assert [shard.data.shape for shard in shards] == [(2, 3)] * 8, "the parts are not equal"
    np.testing.assert_array_equal(np.concatenate([shard.data for shard in shards]), batch)


def test_replicated_is_a_whole_copy_on_every_device():
    array = jax.device_put(np.arange(6), replicated(make_mesh(2)))
    assert len(array.addressable_shards) == 8
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(shard.data, np.arange(6))


@given(batch_size=st.integers(-20, 5000), devices=st.integers(1, 8))
def test_a_batch_that_cannot_be_shared_is_refused_naming_one_that_can(batch_size, devices):
    mesh = make_mesh(1, jax.devices()[:devices])
    if batch_size >= 1 and batch_size % devices == 0:
        check_batch_size(batch_size, mesh)
        return
    with pytest.raises(ConfigError) as error:
        check_batch_size(batch_size, mesh)
    message = str(error.value)
    assert f"batch_size {batch_size} " in message and f"{devices} devices" in message and "\n" not in message
    named = int(re.search(r"(\d+) can$", message)[1])
    assert named >= 1 and named % devices == 0, f"it names {named}, which {devices} devices cannot share"
    check_batch_size(named, mesh)
    assert abs(named - batch_size) < devices or batch_size < 1, f"it names {named}, though a nearer number fits"


def test_fsdp_counts_among_the_devices_that_share_a_batch():
    check_batch_size(16, make_mesh(8))
    with pytest.raises(ConfigError, match="among 8 devices; 8 can"):
        check_batch_size(4, make_mesh(8))


# --- states


@pytest.mark.parametrize(
    "shape, expected",
    [
        ((1024, 512), ("fsdp",)),
        ((512, 1024), (None, "fsdp")),
        ((3, 3, 64, 256), (None, None, None, "fsdp")),
        ((12, 768, 3, 768), (None, "fsdp")),  # of two equally long axes the first
        ((1001, 36), (None, "fsdp")),  # the longest cannot be divided by 4
        ((2**14,), ("fsdp",)),
        ((1001, 35), ()),  # none can
        ((2**14 - 4,), ()),  # too small
        ((64, 64), ()),
        ((), ()),
    ],
    ids=str,
)
def test_the_longest_axis_that_can_be_divided_is_split(shape, expected):
    assert spec(state_shardings(shape_only(*shape), make_mesh(4))) == expected


@given(shape=st.lists(st.integers(1, 40), max_size=4), parts=st.sampled_from([2, 4, 8]))
def test_property_of_every_split(shape, parts):
    """Whatever the shape: split once, evenly, along an axis at least as long as any other that could be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh_module, "SMALLEST_SPLIT", 64)
        sharding = state_shardings(shape_only(*shape), make_mesh(parts))
    axes = spec(sharding)
    dividable = [length for length in shape if length % parts == 0]
    if math.prod(shape) < 64 or not dividable:
        assert axes == (), f"{shape} is split {axes}"
    else:
        assert axes[-1] == "fsdp" and set(axes[:-1]) <= {None}, f"{shape} is split {axes}"
        assert shape[len(axes) - 1] == max(dividable), f"{shape} is not split along its longest axis: {axes}"
        assert math.prod(sharding.shard_shape(tuple(shape))) * parts == math.prod(shape)


def test_without_fsdp_everything_is_replicated():
    tree = {"large": shape_only(4096, 4096), "scalar": shape_only()}
    for sharding in jax.tree.leaves(state_shardings(tree, make_mesh(1))):
        assert sharding.spec == PartitionSpec() and sharding.is_fully_replicated


def test_a_state_keeps_its_structure_and_lies_where_its_shardings_say():
    state = {"kernel": np.arange(2**14.0).reshape(64, 256), "more": [np.zeros(8), None]}
    mesh = make_mesh(4)
    placed = jax.device_put(state, state_shardings(state, mesh))
    assert [shard.data.shape for shard in placed["kernel"].addressable_shards] == [(64, 64)] * 8
    parts = {str(shard.index) for shard in placed["kernel"].addressable_shards}
    assert len(parts) == 4, "each part belongs on two devices, one of each data row"
    np.testing.assert_array_equal(placed["kernel"], state["kernel"])
    assert placed["more"][0].sharding.is_fully_replicated and placed["more"][1] is None
