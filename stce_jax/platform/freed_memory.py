"""Memory that XLA frees after a step on a CPU stays with the process, so that the next step need not request it again.

glibc returns large buffers to the kernel at once, and the kernel then clears every page again: up to a third of a
training step. Only for commands, as the `compile_cache`, and not with an accelerator: XLA's buffers are elsewhere then.

glibc keeps buffers of any size in the heap of the process's first thread alone. So the first thread computes, where JAX
would have another one compute while the first goes on. XLA's threads have heaps of their own for their small buffers:
in a common one they wait for one another, and search the gaps that compiling has left there, a sixth to a third of a
training step. Where JAX insists on threads that compute, with several CPU devices or processes, all share one heap.
"""

import contextlib
import os
import re

# The numbers of <malloc.h>: how many buffers may be outside the heaps, how many heaps there are; in bytes, how much may
# be free at a heap's end before it shrinks (-1: any amount), how much more than needed it grows.
M_MMAP_MAX, M_ARENA_MAX, M_TRIM_THRESHOLD, M_TOP_PAD = -4, -8, -1, -2
SETTINGS = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 2**26}
ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/accel0")
# How many devices, or processes that each have some, a run on CPUs has.
COUNTS = ("JAX_NUM_CPU_DEVICES", "JAX_NUM_PROCESSES", "SLURM_NTASKS")
_first_thread_computes = False


def keep(devices: int | None = None) -> None:
    """Configures glibc, unless the environment configures it; other C libraries are left alone.

    To be called in the process's first thread, and before there are others, whose heaps would stay.

    Args:
      devices: how many CPU devices JAX will have in all processes; None: as many as the environment says.
    """
    global _first_thread_computes
    configured = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if configured or any(map(os.path.exists, ACCELERATORS)):
        return
    import ctypes  # here, for `stce --help` keeps nothing

    several = (_devices_of_environment() if devices is None else devices) > 1
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for setting, size in (SETTINGS | {M_ARENA_MAX: 1} if several else SETTINGS).items():
            library.mallopt(setting, size)
        _first_thread_computes = not several


def configure_jax() -> None:
    """Has the thread that calls a program compute it, if `keep` relies on that; JAX reads no variable for it.

    To be called before JAX's first computation.
    """
    import jax

    if _first_thread_computes:
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def _devices_of_environment() -> int:
    """More than one where there are several devices or processes, not their product."""
    named = [os.environ.get(name, "") for name in COUNTS]
    named += re.findall(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    return max([1, *(int(count) for count in named if count.isdecimal())])
