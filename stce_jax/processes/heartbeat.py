"""Signs of life of a run's processes: who has ended or does not answer ends the run everywhere, in one line.

Every process publishes a state every two seconds through JAX's coordination service, which process 0 holds, and reads
the others'. Once a process is silent, or reports its end, the others end too: no collective could work without it.

JAX is not imported here.
"""

import json
import os
import socket
import sys
import threading
import time
from typing import Any

from stce_jax.errors import PreemptedError
from stce_jax.platform import terminal
from stce_jax.platform.c_signals import on_abort

BEAT = 2.0  # seconds between two signs of life
PEER_TIMEOUT = 30.0  # seconds of silence after which a process is given up
FAREWELL = 10.0  # the same, once this process and process 0 have come to their end: nothing is lost with it
POLL = 0.5  # seconds between two checks of how long the others have been silent
STOPPED = PreemptedError.exit_code
_STATES = "stce/state/"


class Heartbeat:
    """Signs of life from two threads of its own; ends this process once another is lost.

    Args:
      client: the client of JAX's coordination service.
      index, count: this process's id, and how many there are.
      coordinator: "host:port" of process 0's coordination service.
    """

    def __init__(self, client: Any, index: int, count: int, coordinator: str) -> None:
        self.client, self.index, self.count = client, index, count
        self._coordinator = coordinator
        self._own: dict[str, Any] = {
            "host": socket.gethostname(),
            "beat": 0,
            "left": 0,  # phases of leaving, see `leave`
            "end": None,
        }
        self._states = {index: self._own}
        # Seconds of each process without a sign of life, and of the coordination service without an answer.
        self._silence, self._unanswered = dict.fromkeys(range(count), 0.0), 0.0
        self._ending, self._closed = threading.Lock(), threading.Event()
        self._publishing, self._published_leaving = threading.Lock(), 0
        self._missing: set[int] = set()  # those that ended after the run's work was done
        targets = (self._beat, self._watch_others)
        self._threads = [threading.Thread(target=target, name="stce peers", daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()
        while len(self._states) < count:  # the thread gives up a process that does not come
            time.sleep(POLL / 5)
        on_abort(self._explain_abort)

    def name(self, index: int) -> str:
        """A process for people: "process 1 on node7"."""
        return f"process {index} on {self._states[index]['host']}" if index in self._states else f"process {index}"

    def fail(self, message: str, exit_code: int) -> None:
        """Prints why this process ends, notifies the others, and ends it."""
        self._end(message, exit_code, f"{self.name(self.index)} ended: {message}")

    def leave(self, phase: int) -> None:
        """Waits until all processes have come to their proper end, still watching: phase 1.

        Phase 2: until all know that of all others. Who is killed between the two is not waited for.
        """
        self._own["left"] = phase
        if phase == 2:
            on_abort(self._outlive_abort)
        while self._published_leaving < phase or not all(
            index in self._missing or self._states[index]["left"] >= phase for index in range(self.count)
        ):
            time.sleep(POLL / 5)

    def close(self) -> bool:
        """Ends the signs of life, after both phases of `leave`; returns whether all processes are still there."""
        self._closed.set()
        for thread in self._threads:
            thread.join(2 * BEAT)  # of a coordinator that is gone, a call may never return
        return not self._missing

    def _work_is_done(self) -> bool:
        return bool(self._own["left"] and self._states[0]["left"])  # process 0 leaves when all is written

    def _beat(self) -> None:
        while not self._closed.is_set():
            try:
                self._publish()
                states = self.client.key_value_dir_get(_STATES)
            except Exception:
                # The coordinator does not answer; the other thread counts for how long.
                self._closed.wait(POLL)
                continue
            self._unanswered = 0.0
            for key, text in states:
                index, state = int(key.rpartition("/")[2]), json.loads(text)
                if index != self.index and self._states.get(index) != state:
                    self._states[index], self._silence[index] = state, 0.0
            # While it leaves, and until all are known, somebody waits for it.
            busy = self._own["left"] or len(self._states) < self.count
            self._closed.wait(POLL / 5 if busy else BEAT)

    def _publish(self) -> None:
        with self._publishing:  # in order
            self._own["beat"] += 1
            state = dict(self._own)
            self.client.key_value_set(f"{_STATES}{self.index}", json.dumps(state), allow_overwrite=True)
            self._published_leaving = state["left"]

    def _watch_others(self) -> None:
        # In a thread of its own: calls to a coordinator that is stopped do not return.
        before = time.monotonic()
        while not self._closed.wait(POLL):
            now = time.monotonic()
            passed, before = min(now - before, 2 * POLL), now  # if this process was stopped, nobody else was silent
            self._unanswered += passed
            for index in range(self.count):
                if index == self.index:
                    continue
                state = self._states.get(index)
                if state and state["end"]:
                    time.sleep(BEAT)  # a main thread that has the same reason to end explains it better
                    message, exit_code = state["end"]
                    self._end(message, exit_code, message)
                if index == 0 or self._unanswered < 2 * BEAT:  # nothing is known of the others without process 0
                    self._silence[index] += passed
                if self._work_is_done():
                    if self._silence[index] > FAREWELL:
                        self._missing.add(index)
                elif self._silence[index] > PEER_TIMEOUT:
                    self._lost(index)

    def _lost(self, index: int) -> None:
        message = (
            f"{self.name(index)} does not answer since {PEER_TIMEOUT:.0f} s (killed, stopped, or its link is cut); "
            "run again to resume"
        )
        self._end(message, STOPPED, message)

    def _end(self, message: str, exit_code: int, message_to_others: str) -> None:
        self._ending.acquire()  # never released: one line, and a second caller waits for the end
        sys.stdout.flush()
        terminal.warn(message)
        self._own["end"] = [message_to_others[:2000], exit_code]
        notifying = threading.Thread(target=self._notify, daemon=True)
        notifying.start()
        notifying.join(3 * BEAT)
        os._exit(exit_code)

    def _notify(self) -> None:
        self._publish()
        if self.index == 0:  # once its service is gone, the others can no longer read why
            while not all(self._is_over(index) for index in range(1, self.count)):
                time.sleep(POLL)

    def _is_over(self, index: int) -> bool:
        state = self._states.get(index)
        return not state or state["left"] or state["end"] or self._silence[index] > PEER_TIMEOUT / 2

    def _outlive_abort(self) -> None:
        # In a thread of JAX's, when process 0 is gone: the main thread leaves all the same.
        self._missing.add(0)
        while threading.current_thread() is not threading.main_thread():
            time.sleep(PEER_TIMEOUT)

    def _explain_abort(self) -> None:
        # JAX aborts as soon as it loses process 0's service, and names nobody.
        try:
            host, _, port = self._coordinator.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=2 * BEAT).close()
        except OSError:
            message = f"{self.name(0)} has ended or cannot be reached (see above what JAX says); run again to resume"
            self._end(message, STOPPED, message)
