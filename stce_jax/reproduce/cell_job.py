"""What a job of submitit runs: the command of one cell, whose exit code is the job's.

submitit pickles this module by value (see `jobs`): a job's process imports nothing of stce_jax, wherever that lies. So
nothing of it is imported here.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

STOPPED = 75  # exit code of a command that has saved its state


class CellJob:
    """Runs a command as `job(command)`; SIGTERM is passed on to it, and it is waited for.

    The job ends with the command's exit code. submitit has SIGUSR2 announce that the time is nearly up, and calls
    `checkpoint` then: the command saves its state, and the job is queued again. SIGTERM announces a preemption, or
    that somebody has cancelled the job: Slurm knows which, and a job that it still calls running is queued again, too.

    Args:
      variables: of the command's environment; None removes one.
    """

    def __init__(self, variables: Mapping[str, str | None]) -> None:
        self._variables = dict(variables)
        self._child: subprocess.Popen[bytes] | None = None
        self._terminated = False

    def __call__(self, command: Sequence[str]) -> None:
        signal.signal(signal.SIGTERM, self._pass_on)
        code = self._run(command)
        if code == STOPPED and _is_still_running():
            signal.raise_signal(_announcement())  # submitit's handler calls `checkpoint`, queues the job, and exits
        if code:
            sys.exit(code)

    def checkpoint(self, command: Sequence[str]) -> Any:
        """Has the command save its state, waits for it, and gives what the job is to do when it runs again."""
        import submitit

        if self._child:
            self._child.terminate()
            with contextlib.suppress(ChildProcessError):
                # `__call__` waits, too, further up in this very thread: so the child is left for it to reap.
                os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(type(self)(self._variables), command)

    __submitit_checkpoint__ = checkpoint  # what later versions of submitit look for

    def _run(self, command: Sequence[str]) -> int:
        environment = {**os.environ, **{name: value for name, value in self._variables.items() if value is not None}}
        for name, value in self._variables.items():
            if value is None:
                environment.pop(name, None)
        if self._terminated:
            return STOPPED
        # Slurm signals all processes of a job. SIGUSR2 would end those that know nothing of it: it stays blocked in
        # them, and comes to this process alone.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {_announcement()})
        try:
            self._child = subprocess.Popen(list(command), env=environment, stdin=subprocess.DEVNULL)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if self._terminated:  # meanwhile
            self._child.terminate()
        code = self._child.wait()
        return code if code >= 0 else 128 - code  # as shells do

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._terminated = True
        if self._child:
            self._child.terminate()


def _announcement() -> signal.Signals:
    """The signal by which submitit learns that a job is to be queued again."""
    return signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]


def _is_still_running() -> bool:
    """Whether Slurm has this job end and calls it running all the same: then it does not queue it again itself."""
    number = os.environ.get("SLURM_JOB_ID")
    if not number or os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return False
    command = ["squeue", "--noheader", f"--jobs={number}", "--format=%T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.stdout.strip() == "RUNNING"
