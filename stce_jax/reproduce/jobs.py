"""The cells of a sweep as jobs of a scheduler, through submitit: an array of Slurm's, or processes of this machine.

A job is the command `stce reproduce ... --cell=NAME`, see `cell_job`. What submitit keeps, and the jobs' output, lies
in a new directory for each submission: its pickles are read by these jobs and by nobody else.
"""

import collections
import contextlib
import dataclasses
import io
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import stce_jax
from stce_jax.errors import ConfigError, check_choice, check_whole, shown
from stce_jax.paths import first_line, write_text
from stce_jax.platform import terminal
from stce_jax.processes.stopping import StopSignals
from stce_jax.reproduce import cell_job
from stce_jax.reproduce.cells import Cell
from stce_jax.reproduce.states import state_of
from stce_jax.reproduce.subprocesses import RUN, SAFE

ENGINES = ("slurm", "local")
JOBS = "jobs"  # directory in a sweep's workdir
INDEX_FILE = "cells.txt"  # which job is which cell
DAY = 24 * 60  # minutes
LONGEST = 366 * DAY
NOTICE = 120  # seconds before its time is up in which a job saves its state
TIMES_UP = 1000  # how often a job that ran out of time is queued again; every time it gets further
# What the options here, or submitit, say to sbatch themselves.
_TAKEN = {
    **dict.fromkeys(("array", "error", "job_name", "nodes", "ntasks", "ntasks_per_node", "open_mode", "output"), ""),
    **{"requeue": "", "signal": "", "cpus_per_task": "--cpus", "gpus_per_node": "--gpus", "partition": "--partition"},
    "time": "--time",
}


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a job asks its scheduler for.

    Attributes:
      partition: of Slurm; "" for its default one.
      gpus: of a job; None for what the scheduler gives, and for processes of this machine all.
      cpus: cores of a job; None for what the scheduler gives.
      minutes: its time limit; a job that reaches it saves its state and is queued again.
      parallel: most jobs at a time; None: 256 on Slurm, 1 on this machine.
      sbatch: further options of sbatch: {"account": "me"}; True for one without a value.
    """

    partition: str = ""
    gpus: int | None = None
    cpus: int | None = None
    minutes: int = DAY
    parallel: int | None = None
    sbatch: Mapping[str, str | bool] = dataclasses.field(default_factory=dict)

    def check(self, engine: str) -> None:
        """Raises ConfigError for what is out of range, or not for this engine."""
        check_choice("--submit", engine, ENGINES)
        if engine == "local" and (self.partition or self.sbatch or self.cpus is not None):
            raise ConfigError("--partition, --cpus and --sbatch are for --submit=slurm; leave them out here")
        check_whole("--time", self.minutes, 5, LONGEST)
        for option, value, smallest in (("--gpus", self.gpus, 0), ("--cpus", self.cpus, 1)):
            if value is not None:
                check_whole(option, value, smallest, 4096)
        if self.parallel is not None:
            check_whole("--parallel", self.parallel, 1, 10_000)
        texts = {"--partition": self.partition} | {f"--sbatch={key}": value for key, value in self.sbatch.items()}
        for option, text in texts.items():
            if not isinstance(text, bool) and not text.isprintable():  # a line of the job's script would end there
                raise ConfigError(f"{option}={shown(text)} has characters that cannot be printed")


def read_minutes(text: str) -> int:
    """The minutes of a time as Slurm takes it: "90", "24:00:00" or "2-12:00:00"; raises ConfigError."""
    found = re.fullmatch(r"(\d{1,6})|(?:(\d{1,3})-)?(\d{1,4}):([0-5]\d):([0-5]\d)", text, re.ASCII)
    if not found:
        raise ConfigError(f"--time={shown(text)} must be minutes, HOURS:MM:SS or DAYS-HOURS:MM:SS: 90, 1:30:00")
    minutes, days, hours, more, seconds = (int(part or 0) for part in found.groups())
    return minutes + days * DAY + hours * 60 + more + (seconds > 0)


def read_sbatch(words: Sequence[str]) -> dict[str, str | bool]:
    """{option of sbatch: value} of words such as "account=me" and "exclusive"; raises ConfigError."""
    options: dict[str, str | bool] = {}
    for word in words:
        key, equals, value = word.partition("=")
        name = key.removeprefix("--").replace("-", "_")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name, re.ASCII):
            raise ConfigError(f"--sbatch={shown(word)} must be a long option of sbatch: account=NAME, mem=32G")
        if name in _TAKEN:
            advice = f"give {_TAKEN[name]} instead" if _TAKEN[name] else "--submit says that itself; leave it out"
            raise ConfigError(f"--sbatch={shown(word)}: {advice}")
        options[name] = value if equals else True
    return options


def command_of(words: Sequence[str]) -> list[str]:
    """What runs a `stce` command in a process of its own, with this very package and interpreter."""
    return [sys.executable, *SAFE, RUN, stce_jax.__file__, *words[1:]]


def import_submitit() -> Any:
    """The package; raises ConfigError if it is not installed."""
    try:
        import submitit
    except ImportError as error:
        raise ConfigError('--submit needs submitit: pip install "stce_jax[submit]"') from error
    return submitit


def check_workdir(workdir: Path) -> None:
    """Refuses a sweep's workdir whose name Slurm or submitit would not take for that directory."""
    if odd := next((letter for letter in str(workdir) if letter in "%\\" or not letter.isprintable()), ""):
        raise ConfigError(f"--workdir={workdir}: {odd!r} means something else in paths of jobs; give another name")


def submit(
    cells: Sequence[Cell],
    words: Sequence[str],
    workdir: Path,
    engine: str,
    resources: Resources,
    stop: StopSignals,
) -> None:
    """Hands cells to a scheduler; on this machine ("local") it also waits for them.

    Args:
      cells: at least one, in the order in which they are to begin.
      words: of the sweep's command, with absolute paths: ["stce", "reproduce", ...].
      workdir: the sweep's absolute path, checked.
      engine: one of `ENGINES`.
      resources: of each job, checked.
      stop: ends the waiting: the jobs of this machine then save their state.

    Raises:
      ConfigError: submitit or Slurm are not there, or Slurm refuses the jobs.
    """
    commands = [command_of([*words, f"--cell={cell.directory.name}"]) for cell in cells]
    with _folder(workdir / JOBS) as folder:
        executor = _executor(engine, folder, resources)
        if engine == "slurm":
            # submitit prints what sbatch says, and raises it.
            with _slurms_refusal(), contextlib.redirect_stderr(io.StringIO()):
                submitted = executor.map_array(cell_job.CellJob({}), commands)
    if engine == "slurm":
        _say_submitted(submitted, cells, folder)
        return
    _run_here(executor, cells, commands, folder, resources, stop)


@contextlib.contextmanager
def _folder(parent: Path) -> Iterator[Path]:
    """A new directory below `parent`; nothing is left of it if the body fails."""
    stamp, number = time.strftime("%Y-%m-%d_%H-%M-%S"), 1
    parent.mkdir(exist_ok=True)
    while True:
        folder = parent / (stamp if number == 1 else f"{stamp}_{number}")
        try:
            folder.mkdir()
            break
        except FileExistsError:
            number += 1
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            parent.rmdir()  # if there was no other
        raise


def _executor(engine: str, folder: Path, resources: Resources) -> Any:
    submitit = import_submitit()
    import cloudpickle

    cloudpickle.register_pickle_by_value(cell_job)
    own = {
        # -P: nothing is imported from the directory where the command was started.
        f"{engine}_python": f"{shlex.quote(sys.executable)} -P",
        f"{engine}_max_num_timeout": TIMES_UP,
    }
    cores = [f"--cpus-per-task={resources.cpus}"] if resources.cpus else []  # srun no longer asks sbatch
    with _slurms_refusal() if engine == "slurm" else contextlib.nullcontext():
        executor = submitit.AutoExecutor(folder=folder, cluster=engine, **own)
        executor.update_parameters(
            name="stce",
            timeout_min=resources.minutes,
            gpus_per_node=resources.gpus,
            cpus_per_task=resources.cpus,
            stderr_to_stdout=True,
            slurm_partition=resources.partition or None,
            slurm_array_parallelism=resources.parallel,
            slurm_signal_delay_s=NOTICE,
            slurm_srun_args=["--cpu-bind=none", *cores],
            slurm_additional_parameters={"requeue": True, **resources.sbatch},
        )
    return executor


@contextlib.contextmanager
def _slurms_refusal() -> Iterator[None]:
    """Turns what submitit raises where Slurm is not there, or says no, into one line."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        reason = first_line(error)
        if "srun" in reason or isinstance(error, FileNotFoundError):
            raise ConfigError(
                "--submit=slurm: there is no srun or sbatch here; run it where jobs are submitted, or --submit=local"
            ) from error
        raise ConfigError(
            f"Slurm does not take the jobs: {reason}; see --partition, --gpus, --time, --sbatch"
        ) from error


def _say_submitted(submitted: Sequence[Any], cells: Sequence[Cell], folder: Path) -> None:
    _write_index(folder, {job.job_id: cell for job, cell in zip(submitted, cells, strict=True)})
    number = submitted[0].job_id.partition("_")[0]
    terminal.say(
        f"{len(cells)} cells are submitted as job {number}; squeue and --list show them, scancel {number} ends them",
        f"output in {folder}, where {INDEX_FILE} says which job is which; of each run in cells/NAME/log.txt",
    )


def _write_index(folder: Path, cells: Mapping[str, Cell]) -> None:
    lines = [f"{number}\t{cell.directory.name}\n" for number, cell in cells.items()]
    write_text(folder / INDEX_FILE, "".join(lines))


def _run_here(
    executor: Any,
    cells: Sequence[Cell],
    commands: Sequence[Sequence[str]],
    folder: Path,
    resources: Resources,
    stop: StopSignals,
) -> None:
    """Runs jobs as processes of this machine, so many at a time, and waits for them."""
    # submitit hides all GPUs from a job that asks for none.
    visible = {} if resources.gpus is not None else {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")}
    waiting = collections.deque(zip(cells, commands, strict=True))
    started: dict[str, Cell] = {}
    running: dict[str, Any] = {}
    while running or (waiting and not stop.requested):
        while waiting and not stop.requested and len(running) < (resources.parallel or 1):
            cell, command = waiting.popleft()
            job = executor.submit(cell_job.CellJob(visible), list(command))
            running[job.job_id], started[job.job_id] = job, cell
            _write_index(folder, started)
            terminal.say(f"{cell.directory.name}: job {job.job_id}, output in {job.paths.stdout}")
        for number in [number for number, job in running.items() if job.done()]:
            now, output = state_of(started[number]), running.pop(number).paths.stdout
            terminal.say(f"{now.name}: {now.state}: {now.note or f'see {output}'}")
        if stop.requested:
            for number in running:
                # Again and again: one that is just starting may miss it.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(number), signal.SIGTERM)
        time.sleep(0.5)
