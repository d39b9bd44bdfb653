"""Whether a run can fit into memory at all: a digit too many must not take the machine down."""

import math
import os
from typing import Any

import jax
from jax.sharding import Mesh

from stce_jax.errors import ConfigError


def check_memory(config: Any, state: Any, mesh: Mesh) -> None:
    """Refuses what is larger than the memory there is, before any of it is made. What fits may still be too much.

    Args:
      config: a run's.
      state: a TrainState of shapes and shardings.
      mesh: see `make_mesh`.

    Raises:
      ConfigError: this process's part of a batch, its cache of images, or the state is larger than the memory.
    """
    here, pixels = physical_memory(), config.image_size**2 * 3
    for key in ("batch_size", "eval_batch_size"):
        what = f"config.{key}: {config[key]} images of {config.image_size} pixels in float32"
        _check_fits(what, config[key] * pixels * 4 / jax.process_count(), here, "the machine")
    _check_fits(f"config.cache_megabytes={config.cache_megabytes}", config.cache_megabytes * 2**20, here, "the machine")
    shards = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)
    )
    known = mesh.local_devices[0].memory_stats()  # None of a CPU, whose devices share the machine's
    where, room = ("a device", known["bytes_limit"]) if known else ("the machine", here / len(mesh.local_devices))
    _check_fits("config.model: parameters, optimizer state and average", shards, room, where)


def physical_memory() -> int:
    """Bytes of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _check_fits(what: str, needed: float, room: float, where: str) -> None:
    if needed > room:
        raise ConfigError(
            f"{what} would take {needed / 2**30:,.1f} GiB, {where} has {room / 2**30:,.1f} GiB for it; give less"
        )
