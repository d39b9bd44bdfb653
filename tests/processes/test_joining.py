"""How processes find one another, with threads in the place of processes."""

import contextlib
import json
import socket
import threading
import time

import pytest

from stce_jax.errors import ConfigError, PreemptedError
from stce_jax.processes import joining

HOST = socket.gethostname()


@pytest.fixture
def address(monkeypatch):
    """An address that nobody has."""
    monkeypatch.setattr(joining, "TAKEN", 0.2)
    monkeypatch.setattr(joining, "POLL", 0.1)
    monkeypatch.delenv("JAX_COORDINATOR_BIND_ADDRESS", raising=False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


class Process(threading.Thread):
    """One that joins the others; `error` is what it raised, None if all came."""

    def __init__(self, address, count, index, timeout=20):
        super().__init__(daemon=True)
        self.arguments, self.error, self.took = (address, count, index, timeout), None, None
        self.start()

    def run(self):
        begin = time.monotonic()
        try:
            joining.join(*self.arguments)
        except Exception as error:
            self.error = error
        self.took = time.monotonic() - begin


def ended(*processes):
    """The errors of processes, all of which end within ten seconds."""
    for process in processes:
        process.join(10)
        assert not process.is_alive(), f"process {process.arguments[2]} still waits"
    return [process.error for process in processes]


@contextlib.contextmanager
def service(address):
    """What JAX starts at process 0's address when all have come, and what the others wait for."""
    deadline = time.monotonic() + 10
    while True:
        with contextlib.suppress(OSError):
            listener = socket.create_server(("127.0.0.1", int(address.rpartition(":")[2])))
            break
        assert time.monotonic() < deadline, "the port is never free"
        time.sleep(0.01)
    with listener:
        yield listener


def test_all_come_in_any_order_and_the_port_is_free_then(address):
    others = [Process(address, 3, 2), Process(address, 3, 1)]
    time.sleep(0.1)
    first = Process(address, 3, 0)
    assert ended(first) == [None]
    assert all(process.is_alive() for process in others), "JAX is not there yet"
    with service(address):
        assert ended(*others) == [None, None]


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_whose_peers_never_come_says_so(address, index):
    [error] = ended(Process(address, 2, index, timeout=0.3))
    assert isinstance(error, PreemptedError)
    assert str(error) == (
        f"process {index} of 2 could not join the others at {address} within 0.3 s; see whether all 2 were started"
    )


def test_different_numbers_of_processes_are_refused_by_all(address):
    """By all that process 0 has met; one that comes when it has gone waits for its time."""
    errors = ended(Process(address, 3, 0), Process(address, 3, 1, timeout=3), Process(address, 2, 1))
    for error in errors[::2]:
        assert isinstance(error, ConfigError)
        assert str(error) == (
            f"process 1 on {HOST} was started as one of 2 processes, process 0 on {HOST} as one of 3; start all with "
            "the same number"
        )


def test_two_processes_with_one_number_are_refused_by_all(address):
    errors = ended(Process(address, 3, 0), Process(address, 3, 1), Process(address, 3, 1))
    for error in errors:
        assert isinstance(error, ConfigError)
        assert str(error) == (
            f"two processes were started as process 1, on {HOST} and on {HOST}; number them from 0, each with another "
            "JAX_PROCESS_ID"
        )


def test_a_second_process_0_finds_its_port_taken(address):
    first = Process(address, 2, 0)
    time.sleep(0.1)
    [error] = ended(Process(address, 2, 0))
    assert isinstance(error, ConfigError) and "another program has it; give all processes another port" in str(error)
    assert first.is_alive(), "the first is disturbed"


def test_a_port_that_is_taken_for_a_moment_is_waited_for(address, monkeypatch):
    monkeypatch.setattr(joining, "TAKEN", 20)
    with service(address):
        first = Process(address, 2, 0)
        time.sleep(0.1)
    ended_later = Process(address, 2, 1)
    assert ended(first) == [None]
    with service(address):
        assert ended(ended_later) == [None]


@pytest.mark.parametrize("answer", [None, b"", b"220 mail.example ESMTP\r\n", b"\x00\x00\x12\x04" + bytes(9)])
def test_another_program_at_the_address_is_given_up(address, monkeypatch, answer):
    """Silent, closing, another one's greeting, or an HTTP/2 server: such as another run's service."""
    monkeypatch.setattr(joining, "STRANGER", 0.4)  # in other tests a busy machine's process 0 would be one
    with service(address) as listener:
        listener.settimeout(0.1)
        process, connections = Process(address, 2, 1), []
        while process.is_alive():
            with contextlib.suppress(TimeoutError):
                connections.append(listener.accept()[0])
                if answer is not None:
                    connections[-1].sendall(answer)
                    connections[-1].close()
    [error] = ended(process)
    assert isinstance(error, ConfigError)
    assert str(error).startswith(f"process 1 of 2 finds another program at {address}, or a run that it is no part of")


def test_who_ends_while_others_wait_may_come_again(address):
    first = Process(address, 3, 0)
    time.sleep(0.1)
    with joining._connect(address) as killed:
        joining._send(killed, json.dumps({"index": 1, "count": 3, "host": "h"}))
        assert joining._line(killed, time.monotonic() + 5) == joining.WELCOME
    time.sleep(0.2)
    others = [Process(address, 3, 1), Process(address, 3, 2)]
    assert ended(first) == [None]
    with service(address):
        assert ended(*others) == [None, None]


@pytest.mark.parametrize("text", [b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"index": "x"}\n', bytes(5000), b"\xff\n"])
def test_what_is_no_process_does_not_disturb_process_0(address, text):
    first = Process(address, 2, 0)
    time.sleep(0.1)
    with joining._connect(address) as stranger:
        stranger.sendall(text)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(100) == b"", "it is answered"
    other = Process(address, 2, 1)
    assert ended(first) == [None]
    with service(address):
        assert ended(other) == [None]


def test_process_0_that_ends_meanwhile_ends_the_others(address):
    other = Process(address, 3, 1)
    [first] = ended(Process(address, 3, 0, timeout=0.5))
    assert isinstance(first, PreemptedError)
    [error] = ended(other)
    assert isinstance(error, PreemptedError)
    assert str(error) == f"process 0 at {address} ended before all processes had come; run all again"


def test_an_address_that_cannot_be_used_is_one_line(address, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "192.0.2.1:1234")
    [error] = ended(Process(address, 2, 0))
    assert isinstance(error, ConfigError) and "process 0 cannot listen at 192.0.2.1:1234: " in str(error)
