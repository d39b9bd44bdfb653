"""Batches made in the background; waiting for one too long ends with a message that names the cause.

A run that is killed leaves nothing behind: worker processes send their batches through pipes, not shared memory, and
end when their parent does, however it dies.
"""

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

import numpy as np

from stce_jax.data import views
from stce_jax.errors import DataError, PreemptedError
from stce_jax.platform import terminal

READY = 2  # batches that wait in memory to be taken
LOOK = 0.5  # seconds between two looks at the worker processes
REPORT = 10.0  # seconds after which a late batch is reported
_END = object()


class Feeder:
    """An iterator over a grain dataset, which a thread of its own reads ahead; a context manager, to be closed.

    Args:
      dataset: a grain IterDataset.
      timeout: seconds after which a missing element ends the iteration.
      stop: function, or None; once it returns true, `next` waits no longer.

    Raises:
      DataError: from `next`: an image cannot be read, a worker process died, or nothing came in time.
      PreemptedError: from `next`: it would have to wait, and `stop` is true.
    """

    def __init__(self, dataset: Any, *, timeout: float, stop: Callable[[], bool] | None = None) -> None:
        self._dataset, self._timeout, self._stop = dataset, timeout, stop
        self._ready: queue.Queue[Any] = queue.Queue(maxsize=READY)
        self._closed = threading.Event()
        self._others, self._started = _grain_processes(), False
        self._workers: set[BaseProcess] = set()
        self._thread = threading.Thread(target=self._fill, name="stce feeder", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        start = time.monotonic()
        reported = False
        while True:
            try:
                element = self._ready.get(timeout=LOOK)
                break
            except queue.Empty:
                self._look_at_workers()
                if self._stop and self._stop():
                    raise PreemptedError("stopped while waiting for data; run again to resume") from None
                waited = time.monotonic() - start
                if waited > self._timeout:
                    self._kill_workers()
                    raise DataError(
                        f"no data came for {waited:.0f} s{_culprit()}; see whether the disk answers, and run again"
                    ) from None
                if waited > REPORT and not reported:
                    terminal.warn(f"waiting for data for {waited:.0f} s{_culprit()}")
                    reported = True
        if element is _END:
            self._ready.put(element)  # so that the next call ends in the same way
            raise StopIteration
        if isinstance(element, BaseException):
            self._ready.put(element)
            if not isinstance(element, DataError):
                self._look_at_workers()  # whose death may have been the cause
            if isinstance(element, RuntimeError) and "Worker process" in str(element):  # it died before it was noticed
                raise DataError(f"a loader process died: {element}") from element
            raise element
        return element

    def close(self) -> None:
        """Ends the thread and the worker processes; what they are reading is dropped."""
        self._closed.set()
        while True:  # a full queue would block the thread
            try:
                self._ready.get_nowait()
            except queue.Empty:
                break
        self._ready.put(_END)
        self._thread.join(timeout=LOOK)
        self._find_workers()
        self._kill_workers()
        self._thread.join(timeout=10 * LOOK)

    def _fill(self) -> None:
        try:
            iterator = iter(self._dataset)
            try:
                for element in iterator:
                    self._find_workers()
                    self._started = True
                    if not self._put(element):
                        return
            finally:
                iterator.close()
            self._put(_END)
        except BaseException as error:
            self._put(error)

    def _put(self, element: Any) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(element, timeout=LOOK)
                return True
            except queue.Full:
                continue
        return False

    def _find_workers(self) -> None:
        """Remembers the processes that grain starts for this feeder; all of them run before the first element comes."""
        if not self._started:
            self._workers |= _grain_processes() - self._others

    def _look_at_workers(self) -> None:
        self._find_workers()
        for worker in self._workers:
            code = worker.exitcode
            if code is not None and code < 0:
                raise DataError(
                    f"loader process {worker.pid} was killed by signal {-code}; if memory ran out, use fewer "
                    "--config.loader_workers. Run again to resume"
                )
            if code:
                raise DataError(f"loader process {worker.pid} ended with code {code}; see what it printed")

    def _kill_workers(self) -> None:
        for worker in self._workers:
            worker.kill()


def _grain_processes() -> set[BaseProcess]:
    return {child for child in multiprocessing.active_children() if child.name.startswith("grain")}


def _culprit() -> str:
    work = views.slowest()
    return f": {work[0]} has been read for {work[1]:.0f} s" if work else ""


def prepare_worker(timeout: float, index: int, count: int) -> None:
    """Makes a loader process end with its parent, leave signals to it, and report which image it hangs on."""
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM):  # they often go to the whole group, and the parent has yet to save
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    threading.Thread(target=_report_stuck, args=(timeout,), daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is no worker process"
    parent.join()
    os._exit(1)


def _report_stuck(timeout: float) -> None:
    while True:
        time.sleep(LOOK)
        work = views.slowest()
        if work and work[1] > min(timeout, REPORT) / 2:  # before the parent's own timeout
            terminal.warn(f"a loader process is stuck{_culprit()}")
            time.sleep(timeout)
