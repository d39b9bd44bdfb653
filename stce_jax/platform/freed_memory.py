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
_first_thread_computes = False


def keep(devices: int | None = None) -> None:
    """Configures glibc, unless the environment configures it; other C libraries are left alone.

    To be called in the process's first thread.

    Args:
      devices: how many CPU devices JAX will have; None: as many as the environment says.
    """
    global _first_thread_computes
    configured = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if configured or any(map(os.path.exists, ACCELERATORS)) or not _set(SETTINGS):
        return
    _first_thread_computes = True
    if (_devices_of_environment() if devices is None else devices) > 1:
        share_one_heap()


def share_one_heap() -> None:
    """Has threads that start from now on share the first thread's heap, if `keep` gave them their own."""
    global _first_thread_computes
    if _first_thread_computes:
        _set({M_ARENA_MAX: 1})
        _first_thread_computes = False


def configure_jax() -> None:
    """Has the thread that calls a program compute it, if `keep` relies on that; JAX reads no variable for it.

    To be called before JAX's first computation.
    """
    import jax

    if _first_thread_computes:
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def _set(settings: dict[int, int]) -> bool:
    import ctypes  # here, for `stce --help` keeps nothing

    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        return all([library.mallopt(setting, size) for setting, size in settings.items()])
    return False


def _devices_of_environment() -> int:
    flag = re.search(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    named = os.environ.get("JAX_NUM_CPU_DEVICES", "")
    return max(int(flag[1]) if flag else 1, int(named) if named.isdecimal() else 1)
