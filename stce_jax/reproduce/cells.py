"""The paper's tables as training runs: which rows a table has, which runs they need, and where each run lies.

A sweep is a directory: `cells/<run>_seed<seed>/` holds a run each, `claims/` says which job works on which.
"""

import dataclasses
import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stce_jax.analysis.files import IN_RUN, PREDICTIONS, SCORES
from stce_jax.data.holdout import HOLDOUT
from stce_jax.errors import ConfigError
from stce_jax.paths import read_json
from stce_jax.training.assemble import load_config
from stce_jax.training.timetable import is_last

TABLES = ("table1", "table6", "table7", "table8", "readings")  # of the paper
STUDIES = ("reductions", "bodies", "clustering", "recipe", "recipe_test")  # what it prints no figures for
TRAINED = (*TABLES[1:], *STUDIES)  # of the others no row needs a run
CELL_FILE = "cell.json"
_NAME = re.compile(r"([a-z0-9_]+)_seed([0-9]{1,10})")  # a seed is below 2^32


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
      table, run, label, overrides, against, paper, decides, ema: see `configs/tables/__init__.py`.
      scale: one of `configs/tables/scales.py`, such as "paper" or "small".
      more: words such as "--config.image_size=128", for every row alike.
      ema: whether the weights' moving average is what is evaluated.
    """

    table: str
    run: str
    label: str
    overrides: dict[str, Any]
    against: tuple[str, ...]
    paper: dict[str, Any]
    scale: str
    more: tuple[str, ...] = ()
    decides: bool = False
    ema: bool = False

    def words(self) -> list[str]:
        """The words of `stce train` that give the row's config."""
        return [f"--config={self._name()}", *self._overrides()]

    def config(self, *words: str) -> Any:
        """The row's ConfigDict, with further overrides; raises ConfigError."""
        return load_config(self._name(), [*self._overrides(), *words])

    def _name(self) -> str:
        return f"tables/{self.table}:{self.scale}"

    def _overrides(self) -> list[str]:
        return [*(f"--config.{key}={_spelled(value)}" for key, value in self.overrides.items()), *self.more]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A run to be trained: a row with a seed.

    Attributes:
      row: the first row that needs it.
      seed: config.seed.
      directory: its workdir.
      claim: directory that is locked by the job that works on it.
    """

    row: Row
    seed: int
    directory: Path
    claim: Path

    def commands(self, data_dir: str) -> tuple[list[str], list[str]]:
        """The words of the two `stce` commands that make the cell: training, evaluating.

        Rows with `config.holdout` are evaluated on what is held out, the others on the test images.
        """
        data = [f"--data_dir={data_dir}"] if data_dir else []
        workdir = f"--workdir={self.directory}"
        train = ["train", *self.row.words(), f"--config.seed={self.seed}", *data, workdir]
        images = [f"--split={HOLDOUT}"] * bool(self.row.config().holdout) + ["--ema"] * self.row.ema
        return train, ["evaluate", workdir, *data, *images, f"--output={self.directory / IN_RUN}"]

    def finished(self) -> bool:
        """Whether it is trained to the end, and the last epoch's weights are evaluated on the images of its row."""
        kinds = {"checkpoint": str, "ema": bool, "split": str, "step": float, "epoch": float, "top1": float}
        found = _read_json(self.directory / IN_RUN / SCORES, kinds)
        if not found or not found["epoch"] > 0 or not (self.directory / IN_RUN / PREDICTIONS).exists():
            return False
        kind = found["checkpoint"], found["ema"], found["split"], found.get("reduction", ""), found.get("tta", "")
        config = self.row.config()
        of_last_epoch = kind == ("last", self.row.ema, HOLDOUT if config.holdout else "val", "", "")
        return of_last_epoch and is_last(found["step"], found["epoch"], config.epochs)

    def record(self) -> dict[str, Any]:
        """What `reproduce` has written about it, {} if nothing."""
        return _read_json(self.directory / CELL_FILE, {"exit_code": int, "error": str, "seconds": float, "place": str})


def load_rows(table: str, scale: str = "paper", more: Iterable[str] = ()) -> list[Row]:
    """The rows of a table, in its order.

    Args:
      table: one of TABLES or STUDIES.
      scale: one of `configs/tables/scales.py`, such as "paper" or "small".
      more: config overrides for every row alike, words of the command line.

    Raises:
      ConfigError: an unknown table or scale.
    """
    if scale not in scales_of(table):
        raise ConfigError(f"there is no scale {scale!r}; there are {', '.join(scales_of(table))}")
    return [Row(table=table, scale=scale, more=tuple(more), **entry) for entry in _module(table).sweep(scale)]


def scales_of(table: str) -> tuple[str, ...]:
    """The scales that a table has; ConfigError if there is no such table."""
    return tuple(_module(table).VARIANTS)


def _module(table: str) -> Any:
    if table not in (*TABLES, *STUDIES):
        raise ConfigError(f"there is no table {table!r}; there are {', '.join((*TABLES, *STUDIES))}, and all")
    return importlib.import_module(f"stce_jax.configs.tables.{table}")


def cells_of(rows: Iterable[Row], seeds: Sequence[int], workdir: Path) -> list[Cell]:
    """The cells that rows need, each once, in the order in which they are trained.

    All rows of a seed come before the next seed, so that pairs are complete early; but those that decide a study come
    first, with all seeds.

    Args:
      rows: of `load_rows`, of one table or more.
      seeds: of the runs.
      workdir: an absolute path, of the sweep.
    """
    first: dict[str, Row] = {}
    for row in rows:
        if row.table in TRAINED:
            first.setdefault(row.run, row)
    parts = ([row for row in first.values() if row.decides is decides] for decides in (True, False))
    return [cell_of(row, seed, workdir) for part in parts for seed in seeds for row in part]


def cell_of(row: Row, seed: int, workdir: Path) -> Cell:
    """The cell of a row and a seed."""
    name = cell_name(row.run, seed)
    return Cell(row, seed, workdir / "cells" / name, workdir / "claims" / name)


def cell_name(run: str, seed: int) -> str:
    """What a cell is called: its directories, its file of kept results, and in `--cell`."""
    return f"{run}_seed{seed}"


def split_name(name: str) -> tuple[str, int] | None:
    """(run, seed) of a cell's name; None if it is none."""
    found = _NAME.fullmatch(name)
    return (found[1], int(found[2])) if found else None


def _read_json(path: Path, kinds: Mapping[str, type]) -> dict[str, Any]:
    """What a file holds, {} if it is not there or damaged: without these keys, or with values of another kind."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict) or not found.keys() >= kinds.keys():
        return {}
    right = (isinstance(found[key], (int, float) if kind is float else kind) for key, kind in kinds.items())
    return found if all(right) else {}


def _spelled(value: Any) -> str:
    """A config value as a command line spells it."""
    if isinstance(value, tuple) and len(value) > 1:
        return ",".join(map(repr, value))  # texts need their quotes
    return str(value)
