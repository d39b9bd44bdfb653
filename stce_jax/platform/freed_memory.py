"""Memory that XLA frees after a step on a CPU stays with the process, so that the next step need not request it again.

glibc returns large buffers to the kernel at once, and the kernel then clears every page again: a quarter of the time of
small models, a seventh of ViT-S's. Only for commands, as the `compile_cache`, and not with an accelerator, where XLA's
buffers are elsewhere.
"""

import contextlib
import os

# The numbers of <malloc.h>: how many buffers may be outside the heap, how many heaps there are (threads' own heaps hold
# only small buffers); in bytes, how much may be free at its end before it shrinks, how much more than needed it grows.
M_MMAP_MAX, M_ARENA_MAX, M_TRIM_THRESHOLD, M_TOP_PAD = -4, -8, -1, -2
SETTINGS = {M_MMAP_MAX: 0, M_ARENA_MAX: 1, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26}
ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/accel0")


def keep() -> None:
    """Configures glibc, unless the environment configures it; other C libraries are left alone."""
    configured = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if configured or any(map(os.path.exists, ACCELERATORS)):
        return
    import ctypes  # here, for `stce --help` keeps nothing

    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for setting, size in SETTINGS.items():
            library.mallopt(setting, size)
