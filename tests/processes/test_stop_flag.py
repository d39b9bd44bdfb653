"""A stop request that the devices carry from one process to all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stce_jax.processes.stop_flag import FLAG, carries_flag, flagged
from stce_jax.training.mesh import batch_sharding, make_mesh

pytestmark = pytest.mark.usefixtures("eight_devices")


def add(total, batch):
    return total + batch["label"].sum(), {"count": batch["label"].shape[0] * jnp.float32(1)}


def count(total, batch):
    assert FLAG not in batch, "the step sees the flag"
    return {"count": total + batch["label"].shape[0]}


def test_each_batch_is_flagged_at_the_moment_it_is_taken():
    requested = []
    batches = flagged(({"label": np.zeros(4)} for _ in range(2)), lambda: requested)
    first = next(batches)
    requested.append("SIGTERM")
    second = next(batches)
    assert first[FLAG].tolist() == [0] * 4 and second[FLAG].tolist() == [1] * 4
    assert first[FLAG].dtype == np.int32 and set(first) == {"label", FLAG}


@pytest.mark.parametrize("row", [None, 0, 5])
def test_one_device_s_request_reaches_all(row):
    flags = np.zeros(8, np.int32)
    if row is not None:
        flags[row] = 1
    batch = jax.device_put({"label": np.arange(8, dtype=np.int32), FLAG: flags}, batch_sharding(make_mesh()))
    total, metrics = jax.jit(carries_flag(add))(jnp.int32(1), batch)
    assert int(total) == 29 and float(metrics["count"]) == 8
    assert float(metrics[FLAG]) == (row is not None)


def test_a_batch_without_a_flag_gives_what_the_step_gives():
    step = jax.jit(carries_flag(add))
    total, metrics = step(jnp.int32(1), {"label": jnp.arange(8)})
    assert set(metrics) == {"count"} and int(total) == 29
    assert "jit_add" in step.lower(jnp.int32(1), {"label": jnp.arange(8)}).as_text()[:200], "the program's name is lost"


@pytest.mark.parametrize("before, now, expected", [(0, 0, 0), (1, 0, 1), (0, 1, 1)])
def test_a_request_of_an_earlier_step_is_kept(before, now, expected):
    batch = {"label": jnp.zeros(2), FLAG: jnp.full(2, now, jnp.int32)}
    metrics = jax.jit(carries_flag(count))(jnp.float32(1), batch, after=jnp.float32(before))
    assert float(metrics["count"]) == 3 and float(metrics[FLAG]) == expected
