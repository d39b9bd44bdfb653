"""Several processes, one run: found, agreed, equal to one process, stopped together, ended together.

The scenarios run real processes, many at the same time: those in which somebody falls silent take half a minute each.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import slurm, triple, wait_for

from stce_jax.processes.heartbeat import PEER_TIMEOUT

PROGRAM = Path(__file__).parents[1] / "process_program.py"
LIMIT = 60  # seconds within which every other process ends
PATIENCE = 150  # seconds for what is not itself measured


def free_ports():
    """Ports that nobody has, outside of the range from which the kernel gives others away."""
    port = 20000 + os.getpid() * 37 % 8000
    while True:
        port += 1
        with contextlib.closing(socket.socket()) as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        yield port


class Scenario:
    """Two processes (or one) of the program, and what became of them.

    Attributes:
      codes, errors, lasts: of each process its exit code, stderr, and last line of that.
      seconds: of each process, from the fault to its end.
      results: of each process, what it wrote at its proper end, or None.
    """

    def __init__(self, folder, port, count=2):
        folder.mkdir()
        self.folder, self.port, self.count, self.running = folder, port, count, []
        self.seconds, self.codes = [None] * count, [None] * count

    def start(self, *words, only=None, env=None, prefix=None, address="127.0.0.1", own_cache=False):
        """Starts the processes; `only` is {process: words} for some, `env` and `prefix` are functions of the id."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "JAX_NUM_"))}
        environment["JAX_NUM_CPU_DEVICES"] = str(4 // self.count)
        if own_cache:
            environment["JAX_COMPILATION_CACHE_DIR"] = str(self.folder / "cache")
        for index in range(self.count):
            own = {
                "JAX_COORDINATOR_ADDRESS": f"{address}:{self.port}",
                "JAX_NUM_PROCESSES": str(self.count),
                "JAX_PROCESS_ID": str(index),
            }
            own = env(index) if env else own
            command = [*(prefix(index) if prefix else ()), sys.executable, str(PROGRAM), str(self.folder), *words]
            command += (only or {}).get(index, [])
            with (self.folder / f"{index}.err").open("wb") as err:
                self.running.append(
                    subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err, env=environment | own)
                )
        return self

    def when_training(self):
        """Waits until all processes have made a few steps."""
        end = time.monotonic() + PATIENCE
        while len(list(self.folder.glob("*.training"))) < self.count:
            assert time.monotonic() < end, f"{self.folder.name} never trained: {self.all_errors()}"
            time.sleep(0.1)
        time.sleep(1)
        return self

    def signal(self, number, index):
        self.running[index].send_signal(number)
        return self

    def watch_end(self, timeout=PATIENCE, spare=()):
        """Waits for the processes to end, all but those in `spare`, and measures how long they take."""
        start = time.monotonic()
        waiting = set(range(self.count)) - set(spare)
        while waiting and time.monotonic() < start + timeout:
            for index in list(waiting):
                if self.running[index].poll() is not None:
                    self.seconds[index] = time.monotonic() - start
                    waiting.remove(index)
            time.sleep(0.05)
        return self.close()

    def close(self):
        """Ends whoever is left, and reads what they said."""
        for index, process in enumerate(self.running):
            self.codes[index] = process.poll()
            if self.codes[index] is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
        self.errors = [(self.folder / f"{index}.err").read_text() for index in range(len(self.running))]
        # JAX counts its connections on stdout; a line on stderr is ours, or a warning of JAX's.
        self.lasts = [(text.strip().splitlines() or [""])[-1] for text in self.errors]
        paths = [self.folder / f"{index}.json" for index in range(self.count)]
        self.results = [json.loads(path.read_text()) if path.exists() else None for path in paths]
        return self

    def all_errors(self):
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.err")))


@contextlib.contextmanager
def two_hosts(folder, name):
    """Two network namespaces joined by a cable, each with a host name; yields their prefixes and what cuts the cable.

    Without names of their own both would call themselves 127.0.0.1 to each other.
    """
    spaces = [f"{name}{index}" for index in range(2)]

    def ip(*words, **options):
        return subprocess.run(["ip", *words], capture_output=True, text=True, **options)

    hosts = folder / "hosts"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"10.213.7.{i + 1} stce-host{i}\n" for i in range(2)))

    def prefix(index):
        script = f'hostname stce-host{index} && mount --bind {hosts} /etc/hosts && exec "$@"'
        return ["ip", "netns", "exec", spaces[index], "unshare", "-u", "-m", "sh", "-c", script, "sh"]

    try:
        for space in spaces:
            ip("netns", "add", space, check=True)
            ip("-n", space, "link", "set", "lo", "up", check=True)
        ip(*f"-n {spaces[0]} link add cable type veth peer name cable netns {spaces[1]}".split(), check=True)
        for index, space in enumerate(spaces):
            ip(*f"-n {space} addr add 10.213.7.{index + 1}/24 dev cable".split(), check=True)
            ip(*f"-n {space} link set cable up".split(), check=True)
        for index in range(2):
            subprocess.run([*prefix(index), "true"], check=True, capture_output=True)
        yield prefix, lambda: ip(*f"-n {spaces[0]} link set cable down".split(), check=True)
    finally:
        for space in spaces:
            ip("netns", "del", space)


def why_no_hosts():
    """Why two hosts cannot be played here, or ""."""
    if os.name != "posix" or os.geteuid() != 0:
        return "network namespaces need root"
    if not (shutil.which("ip") and shutil.which("unshare")):
        return "network namespaces need ip (iproute2) and unshare"
    probe = f"stce-probe{os.getpid()}"
    added = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", probe], capture_output=True)
    return f"network namespaces are not permitted: {added.stderr.strip()}" if added.returncode else ""


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory):
    """{name: a function that waits for a scenario's end and returns it}; all are under way at the same time."""
    root, ports, lock = tmp_path_factory.mktemp("processes"), free_ports(), threading.Lock()
    made = []

    def scenario(name, count=2):
        with lock:
            made.append(Scenario(root / name, next(ports), count))
        return made[-1]

    def struck(name, number, index, count=2):
        started = scenario(name, count).start().when_training().signal(number, index)
        return started.watch_end(LIMIT + 20, spare=[index] if number == signal.SIGSTOP else [])

    def paused():
        started = scenario("paused").start().when_training().signal(signal.SIGSTOP, 0)
        time.sleep(PEER_TIMEOUT / 2)
        started.signal(signal.SIGCONT, 0)
        time.sleep(2)
        return started.signal(signal.SIGTERM, 0).watch_end()

    def killed_leaving():
        started = scenario("killed leaving").start("steps=20", "finish=100").when_training()
        while not (started.folder / "1.json").exists():
            time.sleep(0.1)
        time.sleep(2)
        return started.signal(signal.SIGKILL, 1).watch_end(LIMIT + 20)

    def cable():
        if why_no_hosts():
            return None
        with two_hosts(root, f"stce{os.getpid()}x") as (prefix, cut):
            started = scenario("cable").start(prefix=prefix, address="stce-host0").when_training()
            cut()
            return started.watch_end(LIMIT + 20)

    def waiting():
        started = scenario("waiting", 1).start(env=lambda _: triple(f"127.0.0.1:{next(ports)}"))
        wait_for(lambda: list(started.folder.glob("*.starting")), "a process that waits", started.running[0], PATIENCE)
        time.sleep(1)
        return started.signal(signal.SIGTERM, 0).watch_end(LIMIT)

    def voted():
        return scenario("voted").start().when_training().signal(signal.SIGTERM, 1).watch_end()

    def played(name, *words, count=2, **options):
        return lambda: scenario(name, count).start(*words, **options).watch_end()

    def by_slurm():
        started = scenario("slurm")
        return started.start("steps=3", env=slurm(started.port)).watch_end()

    late = ("steps=3", "compiles_slowly=1", f"compiles={PEER_TIMEOUT + 5}")
    slow = {
        "killed 1": lambda: struck("killed 1", signal.SIGKILL, 1),
        "killed 0": lambda: struck("killed 0", signal.SIGKILL, 0),
        "stopped 1": lambda: struck("stopped 1", signal.SIGSTOP, 1),
        "stopped 0": lambda: struck("stopped 0", signal.SIGSTOP, 0),
        "of four": lambda: struck("of four", signal.SIGKILL, 2, count=4),
        "paused": paused,
        "finish": played("finish", "steps=20", f"finish={PEER_TIMEOUT + 5}"),
        "killed leaving": killed_leaving,
        "cable": cable,
        "late": played("late", *late, own_cache=True),
        "gone 0": played("gone 0", "steps=3", "dies_leaving=0"),
        "gone 1": played("gone 1", "steps=3", "dies_leaving=1"),
    }
    other_config = "config=a: 1\nb: 5\nc: 3"
    quick = {
        "one": played("one", "steps=20", "pause=0", count=1),
        "two": played("two", "steps=20", "pause=0"),
        "fsdp": played("fsdp", "steps=20", "pause=0", "fsdp=4"),
        "config": played("config", only={1: [other_config]}),
        "code": played("code", only={0: ["code=two"]}),
        "data": played("data", only={1: ["data=two"]}),
        "raising 0": played("raising 0", "raise_in=0", "raises=bug"),
        "raising 1": played("raising 1", "raise_in=1"),
        "slow step": played("slow step", "steps=8", "sleep=4", "step_timeout=1"),
        "voted": voted,
        "slurm": by_slurm,
        "waiting": waiting,
    }
    try:
        with ThreadPoolExecutor(len(slow)) as first, ThreadPoolExecutor(2) as second:
            futures = {name: first.submit(run) for name, run in slow.items()}
            futures |= {name: second.submit(run) for name, run in quick.items()}
            yield {name: future.result for name, future in futures.items()}
    finally:
        for scenario in made:
            scenario.close()


# --- equal to one process


@pytest.mark.parametrize("name", ["two", "fsdp"])
def test_two_processes_of_two_devices_learn_what_one_of_four_does(scenarios, name):
    one, two = scenarios["one"](), scenarios[name]()
    assert one.codes == [0] and two.codes == [0, 0], one.all_errors() + two.all_errors()
    losses = one.results[0]["losses"]
    assert losses[-1] < losses[0] / 20, "nothing was learnt, so nothing is compared"
    for result in two.results:
        assert result["devices"] == 4 and result["processes"] == 2
        np.testing.assert_allclose(result["losses"], losses, rtol=1e-5)
    assert [result["main"] for result in two.results] == [True, False]


@pytest.mark.parametrize("name", ["two", "fsdp"])
def test_a_process_holds_its_part_of_every_batch(scenarios, name):
    assert [result["rows"] for result in scenarios[name]().results] == [[0, 4], [8, 12]]


# --- agreeing


@pytest.mark.parametrize(
    "fact, more", [("config", ": b: 5 instead of b: 2"), ("code", ""), ("data", "")], ids=["config", "code", "data"]
)
def test_processes_started_with_something_else_refuse(scenarios, fact, more):
    done = scenarios[fact]()
    host = socket.gethostname()
    expected = (
        f"stce: process 1 on {host} was started with another {fact} than process 0 on {host}{more}; "
        "start all processes with the same"
    )
    for code, errors in zip(done.codes, done.errors, strict=True):
        assert code == 2, errors
        assert errors.strip().splitlines() == [expected], "not one line"


# --- ending together


def check_end(done, index, pattern, code):
    """Process `index` ended in time, with the code, and its last line matches."""
    print(f"{done.folder.name}: process {index} ended after {done.seconds[index]} s: {done.lasts[index]}")
    assert done.codes[index] is not None, f"process {index} was still there after {LIMIT + 20} s"
    assert done.seconds[index] < LIMIT, f"process {index} took {done.seconds[index]:.0f} s"
    assert re.fullmatch(pattern, done.lasts[index]), done.errors[index]
    assert done.codes[index] == code


@pytest.mark.parametrize("how", ["killed", "stopped"])
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_other_which_names_it(scenarios, how, lost):
    done = scenarios[f"{how} {lost}"]()
    silent = r"does not answer since 30 s \(killed, stopped, or its link is cut\)"
    gone = r"has ended or cannot be reached \(see above what JAX says\)" if (how, lost) == ("killed", 0) else silent
    host = re.escape(socket.gethostname())
    check_end(done, 1 - lost, f"stce: process {lost} on {host} {gone}; run again to resume", 75)
    assert "Traceback" not in done.errors[1 - lost]


def test_of_four_processes_all_others_name_the_lost_one(scenarios):
    done = scenarios["of four"]()
    for index in (0, 1, 3):
        check_end(done, index, r"stce: process 2 on \S+ does not answer since 30 s .*", 75)


def test_a_process_that_is_stopped_for_a_while_is_waited_for(scenarios):
    done = scenarios["paused"]()
    assert done.codes == [0, 0], done.all_errors()


def test_a_process_that_is_done_waits_for_the_others_and_is_not_missed(scenarios):
    done = scenarios["finish"]()
    assert done.codes == [0, 0] and done.errors == ["", ""], done.all_errors()
    assert min(done.seconds) > PEER_TIMEOUT, "process 1 did not wait"


def test_a_process_that_is_lost_while_it_waits_for_the_others_is_named(scenarios):
    check_end(scenarios["killed leaving"](), 0, r"stce: process 1 on \S+ does not answer since 30 s .*", 75)


@pytest.mark.parametrize("index, message, code", [(0, "a bug", 1), (1, "no such flower", 2)])
def test_a_raising_process_ends_the_other_which_says_why(scenarios, index, message, code):
    done = scenarios[f"raising {index}"]()
    assert done.lasts[index] == f"stce: {message}" and done.codes[index] == code
    assert ("ValueError: a bug" in done.errors[index]) == (index == 0), "a traceback is for bugs alone, and for them"
    check_end(done, 1 - index, rf"stce: process {index} on \S+ ended: {message}", code)


def test_a_cut_link_ends_both_hosts(scenarios):
    done = scenarios["cable"]()
    if done is None:
        pytest.skip(why_no_hosts())
    for index in (0, 1):
        other = f"stce: process {1 - index} on stce-host{1 - index} does not answer since 30 s .*"
        if index:  # on a busy machine the kernel may give process 0's connection up before that, and JAX ends at once
            other = rf"{other}|stce: process 0 on stce-host0 has ended or cannot be reached .*"
        check_end(done, index, other, 75)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed_when_the_work_is_done_costs_the_other_seconds(scenarios, killed):
    done = scenarios[f"gone {killed}"]()
    assert done.codes[1 - killed] == 0 and done.codes[killed] == -signal.SIGKILL, done.all_errors()
    assert done.errors[1 - killed] == "", "nothing is wrong with it"


# --- waiting for one another


def test_one_that_compiles_for_longer_than_collectives_wait_is_waited_for(scenarios):
    done = scenarios["late"]()
    assert done.codes == [0, 0], done.all_errors()
    assert done.errors == ["", ""], "something is wrong with them"


def test_each_process_keeps_what_it_compiles(scenarios):
    kept = [path.name for path in (scenarios["late"]().folder / "cache").glob("jit_update_late-*-cache")]
    assert len(kept) == 2, f"the next start finds {kept}; of two processes, each has its own"


def test_a_signal_is_heard_while_a_process_waits_for_the_others(scenarios):
    done = scenarios["waiting"]()
    assert done.codes == [75], done.all_errors()
    assert done.errors == ["stce: stopped by SIGTERM before its first step; run again to resume\n"]
    assert done.seconds[0] < 10


# --- stopping together


def test_a_signal_to_one_process_stops_all_at_the_same_step(scenarios):
    done = scenarios["voted"]()
    assert done.codes == [0, 0], done.all_errors()
    assert [result["stop_requested"] for result in done.results] == [False, True]
    steps = [result["stopped_at"] for result in done.results]
    assert steps[0] == steps[1] and steps[0] is not None


# --- steps that take too long


def test_a_slow_step_has_its_stacks_printed_once_and_goes_on(scenarios):
    done = scenarios["slow step"]()
    assert done.codes == [0, 0], done.all_errors()
    for index, errors in enumerate(done.errors):
        # Process 0 sleeps after it has computed step 5; process 1 waits for it in step 6.
        line = rf"stce: process {index} on \S+: step {5 + index} has taken 1 s; all threads:"
        assert len(re.findall(line, errors)) == 1 and errors.count("has taken") == 1, errors
        assert re.search(r"process_program.py\", line \d+ in work", errors), "the main thread's stack is missing"
        assert errors.count("Thread 0x") >= 3, "not all threads"


# --- being found


def test_processes_of_a_slurm_step_start_together(scenarios):
    done = scenarios["slurm"]()
    assert done.codes == [0, 0], done.all_errors()
    assert [(result["processes"], result["devices"]) for result in done.results] == [(2, 4), (2, 4)]
