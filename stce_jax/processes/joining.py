"""How the processes of a run find one another, before JAX does: over JAX's own address, which is free until then.

JAX waits for the others outside of Python, where no signal is heard; it aborts, with a wall of text, if two processes
have one number or the port is taken. So all come to process 0 first. It compares what they say of themselves, refuses
all in one line if that cannot work, and lets them go on to JAX together.

Each sends a line of JSON, gets "stce welcome" at once, and "stce go" or "stce refused MESSAGE" when all are there.
"""

import contextlib
import dataclasses
import errno
import json
import os
import socket
import time
from typing import Any

from stce_jax.errors import ConfigError, PreemptedError

PAUSE = 0.05  # seconds between two attempts to reach process 0, or two looks at who has come
POLL = 0.5  # seconds between two checks of the time
TAKEN = 10.0  # seconds that process 0 waits for its port: an earlier run may be ending
STRANGER = (
    45.0  # seconds that the others wait for what answers there to go away: an earlier run may be noticing its end
)
LONGEST = 4096  # bytes of a line
WELCOME, GO, REFUSED = "stce welcome", "stce go", "stce refused "


def join(address: str, count: int, index: int, timeout: float) -> None:
    """Returns once all processes have come to process 0, whose port is free again then.

    Args:
      address: "host:port" of process 0.
      count, index: how many processes there are, and which one this is.
      timeout: seconds to wait for all of them.

    Raises:
      ConfigError: the port is taken, two processes have one number, or were given different numbers of processes.
      PreemptedError: not all came in time, or process 0 ended meanwhile.
    """
    deadline = time.monotonic() + timeout
    own = {"index": index, "count": count, "host": socket.gethostname()}
    all_came = _receive_all(address, own, deadline) if index == 0 else _come(address, own, deadline)
    if not all_came:
        raise PreemptedError(
            f"process {index} of {count} could not join the others at {address} within {timeout:g} s; see whether all "
            f"{count} were started"
        )


# --- process 0


@dataclasses.dataclass
class _Guest:
    """A connection, and the process that it says it is; None: it has not said so yet."""

    connection: socket.socket
    text: bytes = b""
    process: dict[str, Any] | None = None

    def listen(self) -> bool:
        """Reads what has come; False if it has ended, or is no process of a run."""
        try:
            came = self.connection.recv(LONGEST)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.text += came
        if self.process or b"\n" not in self.text:
            return bool(came) and len(self.text) < LONGEST
        with contextlib.suppress(ValueError, TypeError, KeyError):
            said = json.loads(self.text)
            self.process = {"index": int(said["index"]), "count": int(said["count"]), "host": str(said["host"])[:100]}
        return self.process is not None

    def tell(self, line: str) -> None:
        _send(self.connection, line)


def _receive_all(address: str, own: dict[str, Any], deadline: float) -> bool:
    guests: list[_Guest] = []
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(address))
        listener.settimeout(PAUSE)
        while sum(guest.process is not None for guest in guests) < own["count"] - 1:
            if time.monotonic() > deadline:
                return False
            with contextlib.suppress(OSError):
                guests.append(_Guest(stack.enter_context(listener.accept()[0])))
                guests[-1].connection.setblocking(False)
            for guest in guests[:]:
                new = guest.process is None
                if not guest.listen():
                    guest.connection.close()
                    guests.remove(guest)
                elif new and guest.process:
                    guest.tell(WELCOME)
                    if problem := _problem(own, guest, guests):
                        for other in guests:
                            other.tell(REFUSED + problem)
                        raise ConfigError(problem)
        listener.close()
        for guest in guests:
            guest.tell(GO)
    return True


def _listen(address: str) -> socket.socket:
    """A socket at the place where JAX's coordination service will be."""
    place = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or f"[::]:{address.rpartition(':')[2]}"
    host, _, port = place.rpartition(":")
    host, both = host.strip("[]"), socket.has_dualstack_ipv6()
    until = time.monotonic() + TAKEN
    while True:
        try:
            if host == "::":  # all of this host's addresses
                family = socket.AF_INET6 if both else socket.AF_INET
                return socket.create_server(("", int(port)), family=family, dualstack_ipv6=both)
            return socket.create_server((host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except (OSError, OverflowError, ValueError) as error:
            taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            if taken and time.monotonic() < until:
                time.sleep(10 * PAUSE)
                continue
            reason = "another program has it" if taken else str(error)
            raise ConfigError(
                f"process 0 cannot listen at {place}: {reason}; give all processes another port in "
                "JAX_COORDINATOR_ADDRESS"
            ) from error


def _problem(own: dict[str, Any], guest: _Guest, guests: list[_Guest]) -> str:
    """Why a process cannot be one of this run; "" if it can."""
    process: Any = guest.process
    index, count = process["index"], process["count"]
    if count != own["count"]:
        return (
            f"process {index} on {process['host']} was started as one of {count} processes, process 0 on "
            f"{own['host']} as one of {own['count']}; start all with the same number"
        )
    known = [own, *(other.process for other in guests if other is not guest and other.process)]
    for other in known:
        if other["index"] == index:
            return (
                f"two processes were started as process {index}, on {other['host']} and on {process['host']}; number "
                "them from 0, each with another JAX_PROCESS_ID"
            )
    return ""


def _send(connection: socket.socket, line: str) -> None:
    with contextlib.suppress(OSError):  # who has ended need not know
        connection.sendall(f"{line}\n".encode())


# --- the others


def _come(address: str, own: dict[str, Any], deadline: float) -> bool:
    stranger_since = None
    while (begin := time.monotonic()) < deadline:
        try:
            connection = _connect(address)
        except OSError:  # nobody is there yet, or its name is not known yet
            stranger_since = None
            time.sleep(PAUSE)
            continue
        with connection:
            _send(connection, json.dumps(own))
            first = _line(connection, min(deadline, begin + STRANGER))
            answer = _line(connection, deadline) if first == WELCOME else first
        if answer == GO:
            _wait_for_service(address, deadline)
            return True
        if answer.startswith(REFUSED):
            raise ConfigError(answer.removeprefix(REFUSED))
        if first == WELCOME:
            if time.monotonic() < deadline:
                raise PreemptedError(f"process 0 at {address} ended before all processes had come; run all again")
            return False
        stranger_since = stranger_since or begin
        if time.monotonic() >= stranger_since + STRANGER:
            raise ConfigError(
                f"process {own['index']} of {own['count']} finds another program at {address}, or a run that it is no "
                "part of; give all processes another port in JAX_COORDINATOR_ADDRESS"
            )
        time.sleep(10 * PAUSE)
    return False


def _connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host.strip("[]"), int(port)), timeout=10 * POLL)
    connection.settimeout(POLL)
    return connection


def _line(connection: socket.socket, deadline: float) -> str:
    """The next line; "" if the other side has closed, or none comes in time."""
    text = b""
    while time.monotonic() < deadline and len(text) < LONGEST:
        try:
            came = connection.recv(1)
        except TimeoutError:
            continue
        except OSError:
            break
        if came in (b"", b"\n"):
            return text.decode(errors="replace") if came else ""
        text += came
    return ""


def _wait_for_service(address: str, deadline: float) -> None:
    """Waits until JAX has the port: its clients would wait for seconds before they try a second time."""
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), _connect(address):
            return
        time.sleep(PAUSE)
