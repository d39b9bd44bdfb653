"""What XLA frees after a step on a CPU stays the process's, so that the next step need not ask the kernel for it again.

glibc gives large buffers back at once, and the kernel then clears every page anew: a quarter of the time of small
models, a seventh of ViT-S's. For commands alone, as the `compile_cache`, and not beside an accelerator, where XLA's
buffers lie elsewhere.
"""

import contextlib
import ctypes
import os

# The numbers of <malloc.h>: how many buffers may lie beside the heap, how many heaps there are (threads' own hold small
# buffers alone); in bytes, how much may be free at its end before it shrinks, by how much more than needed it grows.
M_MMAP_MAX, M_ARENA_MAX, M_TRIM_THRESHOLD, M_TOP_PAD = -4, -8, -1, -2
SETTINGS = {M_MMAP_MAX: 0, M_ARENA_MAX: 1, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26}
ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/accel0")


def keep():
    """Tells glibc so, unless the environment tells it something; other C libraries are left alone."""
    told = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if told or any(map(os.path.exists, ACCELERATORS)):
        return
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for setting, size in SETTINGS.items():
            library.mallopt(setting, size)
