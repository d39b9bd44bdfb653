"""Where arrays live: one mesh over all devices, batches split over it, parameters replicated or split over `fsdp`."""

import collections
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from stce_jax.errors import ConfigError
from stce_jax.platform import freed_memory
from stce_jax.processes import peers as processes

# Splitting an array smaller than this saves no memory worth the communication.
SMALLEST_SPLIT = 2**14

freed_memory.configure_jax()  # here, for every command that computes imports this module first; does nothing elsewhere


def all_devices() -> list[jax.Device]:
    """Those of all processes, over which a mesh lies unless it is given others."""
    return jax.devices()


def make_mesh(fsdp_devices: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes "data" and "fsdp" over all (or the given) devices; each device gets a part of every batch.

    The devices are ordered by process: of P processes, process p holds the p-th of P parts of every batch's rows.

    Args:
      fsdp_devices: over how many devices parameters, optimizer state and EMA are split; 1 keeps a copy on each.
      devices: by default all devices of all processes.

    Raises:
      ConfigError: the number of devices is no multiple of `fsdp_devices`, or the processes have unequal numbers.
    """
    devices = all_devices() if devices is None else devices
    if fsdp_devices < 1 or len(devices) % fsdp_devices:
        raise ConfigError(f"fsdp_devices is {fsdp_devices}, which does not divide the {len(devices)} devices")
    counts = collections.Counter(device.process_index for device in devices)
    if len(set(counts.values())) > 1:
        (larger, count), *_, (smaller, fewer) = counts.most_common()
        raise ConfigError(
            f"process {larger} has {count} devices, process {smaller} has {fewer}; every process needs the same number"
        )
    # Not jax.make_mesh, which orders devices by their connections, across processes.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    grid = np.array(ordered).reshape(len(devices) // fsdp_devices, fsdp_devices)
    return Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def connect(mesh: Mesh) -> None:
    """Has all processes connect their devices now, after they have met, along each axis of the mesh and as Orbax does.

    On CPUs Gloo connects a group of devices at its first collective, and gives up a process that comes half a minute
    later: it may still compile, read its part of a checkpoint, or compute what comes before that collective.
    """
    if jax.process_count() == 1:
        return
    every = ("data", "fsdp")

    def sums(x: Any) -> Any:
        return [jax.lax.psum(x, axes) for axes in ("data", "fsdp", every)]

    sharding = batch_sharding(mesh)
    spread = jax.make_array_from_callback((mesh.size,), sharding, lambda index: np.ones(1, np.float32))
    outputs = [PartitionSpec("fsdp"), PartitionSpec("data"), PartitionSpec()]
    summed = jax.jit(jax.shard_map(sums, mesh=mesh, in_specs=sharding.spec, out_specs=outputs))
    jax.block_until_ready(processes.compile_together(summed)(spread))
    multihost_utils.sync_global_devices("stce connected")


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises ConfigError for a global batch that the devices cannot share evenly; it names a size that they can."""
    count = mesh.size
    if batch_size < 1 or batch_size % count:
        fitting = max(1, round(batch_size / count)) * count
        raise ConfigError(f"batch_size {batch_size} cannot be divided among {count} devices; {fitting} can")


def round_up(batch_size: int, mesh: Mesh) -> int:
    """The smallest batch of at least this size that the devices can share evenly."""
    return -(-batch_size // mesh.size) * mesh.size


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """A sharding for each array of a state: its longest axis that `fsdp` divides is split, small arrays are not.

    Args:
      state: pytree of arrays or ShapeDtypeStructs.
      mesh: see `make_mesh`.
    """
    parts = mesh.shape["fsdp"]

    def sharding(leaf: Any) -> NamedSharding:
        divisible = [axis for axis, length in enumerate(leaf.shape) if length % parts == 0]
        if parts == 1 or np.prod(leaf.shape) < SMALLEST_SPLIT or not divisible:
            return replicated(mesh)
        longest = max(divisible, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, "fsdp"))

    return jax.tree.map(sharding, state)


def sharded_shapes(state: Any, mesh: Mesh) -> Any:
    """ShapeDtypeStructs of a state's arrays, each with its sharding on a mesh: what a checkpoint is restored onto."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        state_shardings(state, mesh),
    )
