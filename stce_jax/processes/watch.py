"""Watching a run: whether the other processes still answer, and whether this one's steps still end.

Every process publishes a state every two seconds through JAX's coordination service, which process 0 holds, and reads
the others'. Whoever is silent, or says that it ended, ends the run everywhere: no collective could go on without it.
"""

import ctypes
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time

from stce_jax.errors import ConfigError

BEAT = 2.0  # seconds between two signs of life
PEER_TIMEOUT = 30.0  # seconds of silence after which a process is given up
LOOK = 0.5  # seconds between two looks at how long all have been silent
STOPPED = 75  # exit code: what the last checkpoint holds is kept, and the same command goes on
_STATES = "stce/state/"


_on_abort = None  # C holds no reference


def on_abort(explain):
    """Has a function called when C++ code aborts the process, which then ends thus; None: no longer.

    JAX aborts where an error could be raised. Python's own handlers would run in the main thread, that is never.
    """
    global _on_abort

    def handle(number):
        ctypes.CDLL(None).signal(number, None)  # the default, once this returns
        explain()

    _on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle) if explain else None
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)


class Peers:
    """Signs of life of a run's processes, from two threads of its own; ends this process once another is lost.

    Args:
      client: the coordination service's client.
      index, count: this process's id, and how many there are.
      coordinator: "host:port" of process 0's coordination service.
    """

    def __init__(self, client, index, count, coordinator):
        self.index, self.count = index, count
        self._client, self._coordinator = client, coordinator
        self._own = {"host": socket.gethostname(), "count": count, "beat": 0, "left": False, "end": None}
        self._states = {index: self._own}
        # Seconds of each process without a sign of life, and of the coordination service without an answer.
        self._silence, self._unanswered = dict.fromkeys(range(count), 0.0), 0.0
        self._ending, self._closed = threading.Lock(), threading.Event()
        self._publishing, self._told_left = threading.Lock(), False
        runs = (self._beat, self._judge)
        self._threads = [threading.Thread(target=run, name="stce peers", daemon=True) for run in runs]
        for thread in self._threads:
            thread.start()
        while len(self._states) < count:  # whoever does not come is given up by the thread
            self._compare_counts()
            time.sleep(LOOK / 5)
        self._compare_counts()
        on_abort(self._explain_abort)

    def name(self, index):
        """A process for people: "process 1 on node7"."""
        return f"process {index} on {self._states[index]['host']}" if index in self._states else f"process {index}"

    def fail(self, message, exit_code):
        """Prints why this process ends, tells the others, and ends it."""
        self._end(message, exit_code, f"{self.name(self.index)} ended: {message}")

    def leave(self):
        """Waits until all processes have come to their proper end, still watching; then nobody is missed any more."""
        self._own["left"] = True
        while not (self._told_left and all(self._states[index]["left"] for index in range(self.count))):
            time.sleep(LOOK / 5)
        self._closed.set()
        for thread in self._threads:
            thread.join()
        on_abort(None)

    def _compare_counts(self):
        for index, state in list(self._states.items()):
            if state["count"] != self.count:
                message = (
                    f"{self.name(index)} was started as one of {state['count']} processes, "
                    f"{self.name(self.index)} as one of {self.count}; start all with the same number"
                )
                self._end(message, ConfigError.exit_code, message)

    def _beat(self):
        while not self._closed.is_set():
            try:
                self._publish()
                states = self._client.key_value_dir_get(_STATES)
            except Exception:
                # The coordinator does not answer; the other thread counts for how long.
                self._closed.wait(LOOK)
                continue
            self._unanswered = 0.0
            for key, text in states:
                index, state = int(key.rpartition("/")[2]), json.loads(text)
                if index != self.index and self._states.get(index) != state:
                    self._states[index], self._silence[index] = state, 0.0
            # Leaving, and until all are known, somebody waits for it.
            busy = self._own["left"] or len(self._states) < self.count
            self._closed.wait(LOOK / 5 if busy else BEAT)

    def _publish(self):
        with self._publishing:  # in order
            self._own["beat"] += 1
            state = dict(self._own)
            self._client.key_value_set(f"{_STATES}{self.index}", json.dumps(state), allow_overwrite=True)
            self._told_left = state["left"]

    def _judge(self):
        # In a thread of its own: calls to a coordinator that is stopped do not return.
        before = time.monotonic()
        while not self._closed.wait(LOOK):
            now = time.monotonic()
            passed, before = min(now - before, 2 * LOOK), now  # if this process was stopped, nobody else was silent
            self._unanswered += passed
            for index in range(self.count):
                state = self._states.get(index)
                if index == self.index:
                    continue
                if state and state["end"]:
                    time.sleep(BEAT)  # a main thread that has the same reason to end says it better
                    message, exit_code = state["end"]
                    self._end(message, exit_code, message)
                if index == 0 or self._unanswered < 2 * BEAT:  # nothing is known of the others without process 0
                    self._silence[index] += passed
                if self._silence[index] > PEER_TIMEOUT:
                    self._lost(index)

    def _lost(self, index):
        message = (
            f"{self.name(index)} does not answer since {PEER_TIMEOUT:.0f} s (killed, stopped, or its link is cut); "
            "run again to go on"
        )
        self._end(message, STOPPED, message)

    def _end(self, message, exit_code, told):
        self._ending.acquire()  # never released: one line, and whoever comes second waits for the end
        sys.stdout.flush()
        print(f"stce: {message}", file=sys.stderr, flush=True)
        self._own["end"] = [told[:2000], exit_code]
        telling = threading.Thread(target=self._tell, daemon=True)
        telling.start()
        telling.join(3 * BEAT)
        os._exit(exit_code)

    def _tell(self):
        self._publish()
        if self.index == 0:  # once its service is gone, the others can no longer read why
            while not all(self._is_over(index) for index in range(1, self.count)):
                time.sleep(LOOK)

    def _is_over(self, index):
        state = self._states.get(index)
        return not state or state["left"] or state["end"] or self._silence[index] > PEER_TIMEOUT / 2

    def _explain_abort(self):
        # JAX aborts as soon as it loses process 0's service, and names nobody.
        try:
            host, _, port = self._coordinator.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=2 * BEAT).close()
        except OSError:
            message = f"{self.name(0)} has ended or cannot be reached (see above what JAX says); run again to go on"
            self._end(message, STOPPED, message)


class Watch:
    """Prints what all threads are doing when a step takes too long; the run goes on waiting. A context manager.

    Args:
      step_timeout: seconds.
      name: of this process, for people; "" if there is but one.
    """

    def __init__(self, step_timeout, name=""):
        self._timeout, self._name = step_timeout, f"{name}: " if name else ""
        self._now = None  # (what, since), replaced as a whole
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stce watch", daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._closed.set()
        self._thread.join()

    def step(self, step, what="step"):
        """Says that something begins: step 7, evaluation 7; what was before it has ended."""
        self._now = (f"{what} {step}", time.monotonic())

    def pause(self):
        """Says that something begins which may take any time, such as compilation."""
        self._now = None

    def _run(self):
        reported = None
        while not self._closed.wait(min(LOOK, self._timeout / 4)):
            now = self._now
            if now and now is not reported and time.monotonic() - now[1] > self._timeout:
                reported = now
                line = f"stce: {self._name}{now[0]} has taken {self._timeout:g} s; all threads:"
                print(line, file=sys.stderr, flush=True)
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
