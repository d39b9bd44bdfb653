"""How long this process has lived, by Linux's own books."""

import os
import time

MOST = 600.0  # seconds that a command can have taken to begin; more is a wrong clock


def seconds_of_life() -> float:
    """Seconds since this process began, imports included; 0 where the system does not tell."""
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])  # since the machine's start
        lived = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
    return lived if 0.0 <= lived <= MOST else 0.0
