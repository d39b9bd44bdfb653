"""Python looks for unreachable objects in cycles less often: importing and tracing make many objects that stay.

By Python's own settings it looks through them again and again: a tenth of the CPU time up to a small model's first
step, though few of the objects that are there by then are unreachable. Only for commands. Arrays are not kept longer:
those of a step are in no cycle, and are freed when it ends.
"""

import gc

# Objects made since the last look, after which the youngest are looked at; looks at one age between two at the next.
THRESHOLDS = 1_000_000, 20, 100


def collect_rarely() -> None:
    """Configures the collector of this process."""
    gc.set_threshold(*THRESHOLDS)
