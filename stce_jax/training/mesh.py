"""Where arrays live: one mesh over all devices, batches split over it, parameters replicated or split over `fsdp`."""

import collections

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from stce_jax.errors import ConfigError

# Splitting an array smaller than this saves no memory worth the communication.
SMALLEST_SPLIT = 2**14


def make_mesh(fsdp_devices=1, devices=None):
    """A mesh with the axes "data" and "fsdp" over all (or the given) devices; each device gets a part of every batch.

    The devices stand process by process: of P processes, process p holds the p-th of P parts of every batch's rows.

    Args:
      fsdp_devices: over how many devices parameters, optimizer state and EMA are split; 1 keeps a copy on each.
      devices: the devices, by default all of all processes.

    Raises:
      ConfigError: the number of devices is no multiple of `fsdp_devices`, or the processes have unequal numbers.
    """
    devices = jax.devices() if devices is None else devices
    if fsdp_devices < 1 or len(devices) % fsdp_devices:
        raise ConfigError(f"fsdp_devices is {fsdp_devices}, which does not divide the {len(devices)} devices")
    counts = collections.Counter(device.process_index for device in devices)
    if len(set(counts.values())) > 1:
        (most, count), *_, (least, fewer) = counts.most_common()
        raise ConfigError(
            f"process {most} has {count} devices, process {least} has {fewer}; every process must have equally many"
        )
    # Not jax.make_mesh, which orders devices by their connections, across processes.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    grid = np.array(ordered).reshape(len(devices) // fsdp_devices, fsdp_devices)
    return Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def check_batch_size(batch_size, mesh):
    """Refuses a global batch that the mesh's devices cannot share evenly, naming one that they can."""
    count = mesh.size
    if batch_size < 1 or batch_size % count:
        fitting = max(1, round(batch_size / count)) * count
        raise ConfigError(f"batch_size {batch_size} cannot be divided among {count} devices; {fitting} can")


def batch_sharding(mesh):
    """Splits the leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh):
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state, mesh):
    """A sharding for each array of a state: its longest axis that `fsdp` divides is split, small arrays are not.

    Args:
      state: pytree of arrays or ShapeDtypeStructs.
      mesh: see `make_mesh`.
    """
    parts = mesh.shape["fsdp"]

    def sharding(leaf):
        dividable = [axis for axis, length in enumerate(leaf.shape) if length % parts == 0]
        if parts == 1 or np.prod(leaf.shape) < SMALLEST_SPLIT or not dividable:
            return replicated(mesh)
        longest = max(dividable, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, "fsdp"))

    return jax.tree.map(sharding, state)
