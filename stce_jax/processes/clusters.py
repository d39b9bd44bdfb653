"""Whether a run has several processes, and where the others are, read from the environment without starting JAX."""

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from jax._src import clusters  # the detection of clusters has no public name

from stce_jax.errors import ConfigError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def detect() -> dict[str, Any] | None:
    """Reads from the environment whether this is a run of several processes.

    In this order: JAX_COORDINATOR_ADDRESS ("host:port" of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID; an srun
    step of several tasks; a TPU pod.

    Returns:
      None for a run of one process, or {"coordinator_address", "num_processes", "process_id", "local_device_ids"}; of
      the last, None means all devices that are visible.

    Raises:
      ConfigError: some of the variables are missing, or contradict each other.
    """
    given = [name for name in VARIABLES if os.environ.get(name)]
    if given:
        return _from_variables(given)
    if clusters.SlurmCluster.is_env_present():  # a batch script's own process has no step, and is a single process
        return _from_cluster(clusters.SlurmCluster, _slurm_devices)
    if "tpu" in (os.environ.get("JAX_PLATFORMS") or "tpu"):
        for cluster in (clusters.GkeTpuCluster, clusters.GceTpuCluster):
            if cluster.is_env_present():
                return _from_cluster(cluster, lambda: None)
    return None


def _from_variables(given: Sequence[str]) -> dict[str, Any] | None:
    missing = [name for name in VARIABLES if name not in given]
    if missing:
        raise ConfigError(f"{' and '.join(given)} set, but not {' and '.join(missing)}: set all three or none")
    address, count, index = (os.environ[name] for name in VARIABLES)
    for name, text in zip(VARIABLES[1:], (count, index), strict=True):
        if not text.isdecimal():
            raise ConfigError(f"{name} is {text!r}, which is no number")
    if int(count) == 0:
        raise ConfigError("JAX_NUM_PROCESSES is 0; there is at least this one")
    if not re.fullmatch(r".+:\d{1,5}", address) or int(address.rpartition(":")[2]) >= 2**16:
        raise ConfigError(f"JAX_COORDINATOR_ADDRESS is {address!r}; it must be HOST:PORT of process 0")
    if int(index) >= int(count):
        raise ConfigError(f"JAX_PROCESS_ID is {index}, but {count} processes are numbered from 0 to {int(count) - 1}")
    return _found(address, int(count), int(index), None) if int(count) > 1 else None


def _from_cluster(cluster: Any, devices: Callable[[], list[int] | None]) -> dict[str, Any] | None:
    count = cluster.get_process_count()
    if count == 1:
        return None
    # JAX waits up to 300 s until the name of process 0's host can be resolved.
    address = cluster.get_coordinator_address(300, os.environ.get("JAX_COORDINATOR_PORT"))
    return _found(address, count, cluster.get_process_id(), devices())


def _found(address: str, count: int, index: int, devices: list[int] | None) -> dict[str, Any]:
    return {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": index,
        "local_device_ids": devices,
    }


def _slurm_devices() -> list[int] | None:
    """The GPUs of this task, counted among those it sees; None: all of them.

    JAX would take the task's number on its node, whatever the task sees: one GPU of eight if the node has one task, and
    one that does not exist if Slurm shows each task its own.
    """
    tasks: list[int] = []
    for number, _, repeat in re.findall(r"(\d+)(\(x(\d+)\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")):
        tasks += [int(number)] * int(repeat or 1)
    here = tasks[int(os.environ.get("SLURM_NODEID", "0"))] if tasks else 1
    bound = ("SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_GPU_BIND")
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if here == 1 or len(visible) < here or any(name in os.environ for name in bound):
        return None
    if len(visible) % here:
        raise ConfigError(f"{here} tasks of a node cannot share its {len(visible)} GPUs; see srun --ntasks-per-node")
    share = len(visible) // here
    first = share * int(os.environ["SLURM_LOCALID"])
    return list(range(first, first + share))
