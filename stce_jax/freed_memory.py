"""What XLA frees after a step on a CPU stays the process's, so that the next step need not ask the kernel for it again.

glibc gives large buffers back at once, and the kernel then clears every page anew: a quarter of the time of small
models. For commands alone, as the `compile_cache`.
"""

import contextlib
import ctypes
import os

# The numbers of <malloc.h>, and in bytes: below what size buffers come from the heap, how much may be free at its end
# before it shrinks, and by how much more than needed it grows.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD = -3, -1, -2
SETTINGS = {M_MMAP_THRESHOLD: 2**30, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26}


def keep():
    """Tells glibc so, unless the environment tells it something; other C libraries are left alone."""
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for setting, size in SETTINGS.items():
            library.mallopt(setting, size)
