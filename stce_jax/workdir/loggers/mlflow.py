"""MLflow: on the server of MLFLOW_TRACKING_URI, else in a file of the workdir.

The experiment is that of MLFLOW_EXPERIMENT_NAME, "stce" by default.
"""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stce_jax.workdir.loggers import LoggedRun

TAG = "stce_id"  # of the run's id, for MLflow chooses its own
LONGEST = 500  # characters of a parameter that every version takes
MOST = 100  # parameters of a request


def open_log(run: LoggedRun) -> "MLflow":
    """The log of a run; see `loggers`."""
    return MLflow(run)


class MLflow:
    """The log of a run; see `loggers`. Each line is in the store once it is written."""

    seconds = 0.0

    def __init__(self, run: LoggedRun) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it reports that it makes tables
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # and each try to reach a server
        place = None if "MLFLOW_TRACKING_URI" in os.environ else run.place
        self._client = MlflowClient(tracking_uri=_database(Path(place)) if place else None)
        self._step = 0
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "stce")
        experiment = self._client.get_experiment_by_name(name)
        inside = experiment.experiment_id if experiment else self._client.create_experiment(name)
        found = self._client.search_runs([inside], f"tags.{TAG} = '{run.id}'")
        made = found[0] if found else self._client.create_run(inside, run_name=run.name, tags={TAG: run.id})
        self._id, self.is_new = made.info.run_id, not found
        self._client.update_run(self._id, status="RUNNING")
        params = [Param(key, str(run.config[key])[:LONGEST]) for key in run.config if key not in made.data.params]
        for start in range(0, len(params), MOST):
            self._client.log_batch(self._id, params=params[start : start + MOST])

    def write(self, line: Mapping[str, Any]) -> None:
        self._step = line["step"]
        self._log(line["split"], {key: value for key, value in line.items() if key not in ("step", "split")})

    def close(self, summary: Mapping[str, float] | None) -> None:
        if summary:
            self._log("final", summary)
        self._client.set_terminated(self._id, "FINISHED" if summary else "KILLED")

    def _log(self, group: str, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        metrics = [Metric(f"{group}/{name}", float(value), now, self._step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)


def _database(place: Path) -> str:
    """The URI of a directory's database, which is there whole or not at all: MLflow cannot open a half-made one."""
    from mlflow import MlflowClient

    path, partial = place / "mlflow.db", place / "mlflow.db.partial"
    if not path.exists():
        partial.unlink(missing_ok=True)
        MlflowClient(tracking_uri=f"sqlite:///{partial}").search_experiments()
        partial.replace(path)
    return f"sqlite:///{path}"
