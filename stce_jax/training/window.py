"""Metrics of the training steps since the last log line, read without making the devices wait."""

import collections
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from stce_jax.processes.stop_flag import FLAG


class Window:
    """The training steps since the last log line: mean metrics, images per second, share of time without data."""

    IN_FLIGHT = 2  # steps that the host may be ahead of the devices; more would only hold more batches in memory

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._in_flight: collections.deque[tuple[int, dict[str, Any]]] = collections.deque()  # metrics on the devices
        self._finished: list[dict[str, float]] = []
        self._last: Any = None  # the newest step's loss, on the devices
        self._compiled = False
        self._total_time, self._total_waited = 0.0, 0.0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves what came between the steps until now out of the next speed and share."""
        self._timed_steps, self._waited, self._start = 0, 0.0, time.monotonic()

    def compiles(self) -> None:
        """Leaves the next step, which compiles, and those before it out of the speed and the share."""
        self._compiled = False

    def next(self, batches: Iterator[Any]) -> Any:
        """The next batch; the time it takes counts as waiting if the devices have run out of work by then.

        They may have run out only towards the end of that time, so the share is an upper bound.
        """
        start = time.monotonic()
        batch = next(batches)
        if self._last is not None and self._last.is_ready():
            self._waited += time.monotonic() - start
        return batch

    def add(self, step: int, metrics: dict[str, Any]) -> Iterator[tuple[int, dict[str, float]]]:
        """Takes a step's metrics, still on the devices; yields (step, metrics as floats) of those now finished."""
        self._in_flight.append((step, metrics))
        self._last = metrics["loss"]
        self._timed_steps += 1
        if not self._compiled:
            jax.block_until_ready(metrics)
            self._compiled = True
            self.restart_clock()
            return self._finish(0)
        return self._finish(self.IN_FLIGHT)

    def drain(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Waits for the devices; yields (step, metrics as floats) of all steps not yet yielded."""
        return self._finish(0)

    def _finish(self, in_flight: int) -> Iterator[tuple[int, dict[str, float]]]:
        while len(self._in_flight) > in_flight:
            step, metrics = self._in_flight.popleft()
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            self._finished.append({name: value for name, value in values.items() if name != FLAG})
            yield step, values

    def close(self) -> dict[str, float]:
        """Means over the window, which must be drained before; the next window begins.

        Skipped steps count only in "skipped", their number. "images_per_second" and "data_wait" (0..1) leave out the
        steps that compile, such as the run's first; if one is its window's last step, the speed is 0.
        """
        elapsed = time.monotonic() - self._start
        applied = [values for values in self._finished if not values["skipped"]]
        names = dict.fromkeys(name for values in self._finished for name in values)  # not all steps need have the same
        means = {name: _mean([values[name] for values in applied if name in values]) for name in names}
        means["skipped"] = len(self._finished) - len(applied)
        means["images_per_second"] = self._timed_steps * self._batch_size / elapsed
        means["data_wait"] = self._waited / elapsed
        self._total_time, self._total_waited = self._total_time + elapsed, self._total_waited + self._waited
        self._finished = []
        self.restart_clock()
        return means

    def data_wait(self) -> float:
        """Share of the time of all closed windows that was spent waiting for data, 0..1; 0 if there was none."""
        return self._total_waited / self._total_time if self._total_time else 0.0


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
