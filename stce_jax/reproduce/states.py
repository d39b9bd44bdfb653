"""How far the cells of a sweep are, read from its workdir without touching it."""

from typing import NamedTuple

from stce_jax.errors import PreemptedError
from stce_jax.reproduce.cells import Cell
from stce_jax.reproduce.running import accuracy
from stce_jax.workdir.claim import owner_of

STATES = {  # in the order in which a report counts them
    "done": "trained to the end and evaluated",
    "running": "a living job is at work on it",
    "stopped": "begun; it resumes where it was",
    "failed": "its last try failed; the next one resumes, too",
    "planned": "not begun",
}


class State(NamedTuple):
    """How far a cell is.

    Attributes:
      name: the cell's, such as "stce_seed0".
      state: one of `STATES`.
      note: the accuracy, who is at work, or why it failed.
    """

    name: str
    state: str
    note: str


def state_of(cell: Cell) -> State:
    """The `State` of a cell, whose rows and workdir need not exist yet."""
    return State(cell.directory.name, *_state_and_note(cell))


def _state_and_note(cell: Cell) -> tuple[str, str]:
    if cell.finished():
        return "done", accuracy(cell)
    if owner := owner_of(cell.claim):
        return "running", owner
    record = cell.record()
    if not record:
        return "planned", ""
    if record["exit_code"] in (0, PreemptedError.exit_code):  # 0: stopped between training and evaluating
        return "stopped", ""
    return "failed", record["error"]
