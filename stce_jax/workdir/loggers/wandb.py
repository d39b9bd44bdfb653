"""Weights & Biases: online where somebody is logged in, else offline in the workdir, for `wandb sync`.

WANDB_PROJECT ("stce" by default), WANDB_ENTITY, WANDB_MODE, WANDB_DIR and all others are its own.
"""

import os
from collections.abc import Mapping
from typing import Any

from stce_jax.platform import terminal
from stce_jax.workdir.loggers import PATIENCE, LoggedRun

FLUSH = 1.0  # seconds after which it has a line on disk; a process that is killed takes its own with it


def open_log(run: LoggedRun) -> "Wandb":
    """The log of a run; see `loggers`."""
    return Wandb(run)


class Wandb:
    """The log of a run; see `loggers`. Steps are a column, for its own count cannot go back or stand still."""

    seconds = 2 * FLUSH

    def __init__(self, run: LoggedRun) -> None:
        import wandb

        begin: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT", "stce"),
            "name": os.environ.get("WANDB_NAME", run.name),
            "id": run.id,
            "resume": "allow",
            "config": dict(run.config),
            "reinit": "create_new",  # a notebook may have a run of its own
            "settings": wandb.Settings(
                console="off",
                silent=True,
                init_timeout=PATIENCE,
                finish_timeout=PATIENCE,
                x_transaction_log_flush_interval=FLUSH,
            ),
        }
        if run.place and "WANDB_DIR" not in os.environ:
            begin["dir"] = run.place
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")
        try:
            self._run = wandb.init(**begin, mode=mode)
        except wandb.errors.CommError:  # nobody answers
            wandb.teardown()  # or the id is in use
            self._run = wandb.init(**begin, mode="offline")
        if not self._run.offline:
            terminal.say(f"wandb: {self._run.url}")
        self.is_new = not self._run.offline and not self._run.resumed
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, line: Mapping[str, Any]) -> None:
        split = line["split"]
        values = {f"{split}/{name}": value for name, value in line.items() if name not in ("step", "epoch", "split")}
        self._run.log({"step": line["step"], "epoch": line["epoch"], **values})

    def close(self, summary: Mapping[str, float] | None) -> None:
        self._run.summary.update({f"final/{name}": value for name, value in (summary or {}).items()})
        self._run.finish()
