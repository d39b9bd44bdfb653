"""Batches made in the background, under watch: whoever waits for one too long is told what holds it up.

A run that is killed leaves nothing behind: worker processes send their batches through pipes, not shared memory, and
end when their parent does, however it dies.
"""

import multiprocessing
import os
import queue
import signal
import sys
import threading
import time

from stce_jax.data import views
from stce_jax.errors import DataError, PreemptedError

READY = 2  # batches that wait in memory to be taken
LOOK = 0.5  # seconds between two looks at who is late
REPORT = 10.0  # seconds after which a late batch is reported, if it is still to come
_END = object()


class Feeder:
    """An iterator over a grain dataset that a thread of its own keeps ahead of; a context manager, to be closed.

    Args:
      dataset: a grain IterDataset.
      timeout: seconds after which a missing element ends the iteration.
      stop: function without arguments, or None; once it is true, nobody waits for an element any longer.

    Raises:
      DataError: from `next`: an image cannot be read, a worker process died, or nothing came in time.
      PreemptedError: from `next`: it would have to wait, and `stop` is true.
    """

    def __init__(self, dataset, *, timeout, stop=None):
        self._dataset, self._timeout, self._stop = dataset, timeout, stop
        self._ready = queue.Queue(maxsize=READY)
        self._closed = threading.Event()
        self._others, self._workers, self._started = _grain_processes(), set(), False
        self._thread = threading.Thread(target=self._fill, name="stce feeder", daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def __iter__(self):
        return self

    def __next__(self):
        start = time.monotonic()
        reported = False
        while True:
            try:
                element = self._ready.get(timeout=LOOK)
                break
            except queue.Empty:
                self._look_at_workers()
                if self._stop and self._stop():
                    raise PreemptedError("stopped while waiting for data; run again to go on") from None
                waited = time.monotonic() - start
                if waited > self._timeout:
                    self._kill_workers()
                    raise DataError(
                        f"no data came for {waited:.0f} s{_culprit()}; see whether the disk answers, and run again"
                    ) from None
                if waited > REPORT and not reported:
                    print(f"stce: waiting for data for {waited:.0f} s{_culprit()}", file=sys.stderr, flush=True)
                    reported = True
        if element is _END or isinstance(element, BaseException):
            self._ready.put(element)  # so that asking again ends alike
            if element is _END:
                raise StopIteration
            if not isinstance(element, DataError):
                self._look_at_workers()  # whose death may have been the cause
            if isinstance(element, RuntimeError) and "Worker process" in str(element):  # it died before it was known
                raise DataError(f"a loader process died: {element}") from element
            raise element
        return element

    def close(self):
        """Ends the thread and the worker processes; what they have in hand is dropped."""
        self._closed.set()
        while True:  # a full queue would hold the thread up
            try:
                self._ready.get_nowait()
            except queue.Empty:
                break
        self._ready.put(_END)
        self._thread.join(timeout=LOOK)
        self._know_workers()
        self._kill_workers()
        self._thread.join(timeout=10 * LOOK)

    def _fill(self):
        try:
            iterator = iter(self._dataset)
            try:
                for element in iterator:
                    self._know_workers()
                    self._started = True
                    if not self._put(element):
                        return
            finally:
                iterator.close()
            self._put(_END)
        except BaseException as error:
            self._put(error)

    def _put(self, element):
        while not self._closed.is_set():
            try:
                self._ready.put(element, timeout=LOOK)
                return True
            except queue.Full:
                continue
        return False

    def _know_workers(self):
        """Remembers the processes that grain starts for this feeder; all are there once the first element is."""
        if not self._started:
            self._workers |= _grain_processes() - self._others

    def _look_at_workers(self):
        self._know_workers()
        for worker in self._workers:
            code = worker.exitcode
            if code is not None and code < 0:
                raise DataError(
                    f"loader process {worker.pid} was killed by signal {-code}; if memory ran out, use fewer "
                    "--config.loader_workers. Run again to go on"
                )
            if code:
                raise DataError(f"loader process {worker.pid} ended with code {code}; see what it printed")

    def _kill_workers(self):
        for worker in self._workers:
            worker.kill()


def _grain_processes():
    return {child for child in multiprocessing.active_children() if child.name.startswith("grain")}


def _culprit():
    work = views.slowest()
    return f": {work[0]} has been read for {work[1]:.0f} s" if work else ""


def prepare_worker(timeout, index, count):
    """Makes a loader process end with its parent, leave signals to it, and say which image it hangs on."""
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM):  # they often go to the whole group, and the parent has yet to save
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    threading.Thread(target=_report_stuck, args=(timeout,), daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def _report_stuck(timeout):
    while True:
        time.sleep(LOOK)
        work = views.slowest()
        if work and work[1] > min(timeout, REPORT) / 2:  # before the parent loses its patience
            print(f"stce: a loader process is stuck{_culprit()}", file=sys.stderr, flush=True)
            time.sleep(timeout)
