"""How long this process has lived, by Linux's own books, and whether Python can end it."""

import os
import threading
import time

MOST = 600.0  # seconds that a command can have taken to begin; more is a wrong clock
_may_hang = threading.Event()


def exit_may_hang() -> None:
    """Notes that something has been given up for which Python would wait at its exit, perhaps without end."""
    _may_hang.set()


def can_exit() -> bool:
    """Whether Python may end this process by itself."""
    return not _may_hang.is_set()


def seconds_of_life() -> float:
    """Seconds since this process began, imports included; 0 where the system does not tell."""
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])  # since the machine's start
        lived = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
    return lived if 0.0 <= lived <= MOST else 0.0
