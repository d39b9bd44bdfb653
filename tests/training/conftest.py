"""Whole runs in this process: what they are given batch by batch, and a signal between two batches."""

import contextlib
import os
import signal

import numpy as np
import pytest

from stce_jax.errors import PreemptedError
from stce_jax.recipe.mixing import place_in_batch
from stce_jax.training import loop


class Seen:
    """What the batches held that runs have taken, in order: `labels` of all images, `sides` of each batch's images."""

    def __init__(self, monkeypatch):
        self.labels, self.sides, self._stop_at = [], [], None
        send = loop.to_devices
        monkeypatch.setattr(loop, "to_devices", lambda batches, sharding: send(self._look(batches), sharding))

    def _look(self, batches):
        for number, batch in enumerate(batches, start=1):
            order = np.argsort(place_in_batch(np.arange(len(batch["label"])), len(batch["label"])))
            self.labels += batch["label"][order].tolist()  # as in the stream
            self.sides.append(batch["image"].shape[1])
            if number == self._stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    @contextlib.contextmanager
    def stopped_at(self, batch, match="stopped by SIGTERM"):
        """Expects that the run within ends by a signal that comes as it takes that batch, from 1."""
        self._stop_at = batch
        with pytest.raises(PreemptedError, match=match):
            yield
        self._stop_at = None


@pytest.fixture
def seen(monkeypatch):
    return Seen(monkeypatch)
