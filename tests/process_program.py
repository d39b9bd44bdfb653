"""The program of the tests with several processes: a small regression that uses `processes` as training does.

Arguments: a folder, in which process p writes p.json, and KEY=VALUE of `OPTIONS`.
"""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from stce_jax.data.loader import to_devices
from stce_jax.errors import ConfigError, StceError
from stce_jax.processes import leaving
from stce_jax.processes import peers as processes
from stce_jax.processes.stop_flag import FLAG, carries_flag, flagged
from stce_jax.processes.stopping import exit_on_signal
from stce_jax.processes.watch import Watch
from stce_jax.training.mesh import batch_sharding, connect, make_mesh, replicated

OPTIONS = {
    "steps": 1000000,
    "fsdp": 1,
    "pause": 0.05,  # seconds a step
    "config": "a: 1\nb: 2\nc: 3",
    "code": "one",
    "data": "one",
    "raise_in": -1,  # the process that raises after ten steps
    "raises": "data",  # or: bug
    "step_timeout": 600.0,
    "sleep": 0.0,  # seconds that the fifth step of process 0 takes
    "start_timeout": 60,
    "compiles_slowly": -1,  # the process whose compilation takes longer
    "compiles": 0.0,  # by so many seconds
    "dies_leaving": -1,  # the process that is killed when the others have come to their end, too
    "finish": 0.0,  # seconds that process 0 takes after its last step
}
BATCH, WIDTH = 16, 8


def batch(step):
    """The rows of a global batch: features [16, 8] and targets [16]."""
    random = np.random.default_rng(step)
    x = random.normal(size=(BATCH, WIDTH)).astype(np.float32)
    return x, x @ np.arange(WIDTH, dtype=np.float32)


def work(options, folder):
    processes.agree({name: options[name] for name in ("config", "code", "data")})
    requested = []
    signal.signal(signal.SIGTERM, lambda *_: requested.append(True))
    mesh = make_mesh(options["fsdp"])
    connect(mesh)
    index, count = jax.process_index(), jax.process_count()

    def update(weights, batch):
        loss, gradient = jax.value_and_grad(lambda w: jnp.mean((batch["x"] @ w - batch["y"]) ** 2))(weights)
        return weights - 0.1 * gradient, {"loss": loss}

    def update_late(*arguments):
        if index == options["compiles_slowly"]:  # this is called while JAX traces it, before it compiles
            time.sleep(options["compiles"])
        return update(*arguments)

    train = processes.compile_together(jax.jit(carries_flag(update_late), out_shardings=replicated(mesh)))
    weights = jax.device_put(np.zeros(WIDTH, np.float32), replicated(mesh))
    losses, rows, stopped_at = [], [], None
    with Watch(options["step_timeout"], processes.own_name()) as watch:
        for step in range(options["steps"]):
            if step:  # the first one compiles
                watch.step(step)
            x, y = batch(step)
            own = slice(index * BATCH // count, (index + 1) * BATCH // count)
            [parts] = flagged([{"x": x[own], "y": y[own], "label": y[own]}], lambda: requested)
            [parts] = to_devices([parts], batch_sharding(mesh))
            rows = sorted({shard.index[0].start for shard in parts["x"].addressable_shards})
            weights, metrics = train(weights, parts)
            losses.append(float(metrics["loss"]))
            time.sleep(options["sleep"] if step == 5 and index == 0 else options["pause"])
            if step == 1:
                (folder / f"{index}.training").touch()
            if step == 10 and options["raise_in"] == index:
                raise ConfigError("no such\nflower") if options["raises"] == "data" else ValueError("a bug")
            if metrics[FLAG]:
                stopped_at = step
                break
    result = {"losses": losses, "rows": rows, "stopped_at": stopped_at, "stop_requested": bool(requested)}
    result |= {"devices": mesh.size, "main": processes.is_main(), "processes": count}
    (folder / f"{index}.json").write_text(json.dumps(result))
    if index == 0:
        time.sleep(options["finish"])


def exit_process(message, code):
    print(f"stce: {message}", file=sys.stderr, flush=True)
    os._exit(code)


@contextlib.contextmanager
def die():
    """In the place of what is done once all have come to their end."""
    time.sleep(1)  # until all the others know it
    os.kill(os.getpid(), signal.SIGKILL)
    yield


def main():
    folder, *words = sys.argv[1:]
    options = dict(OPTIONS)
    for word in words:
        key, _, value = word.partition("=")
        options[key] = type(OPTIONS[key])(value)
    try:
        with exit_on_signal(exit_process):
            (Path(folder) / f"{os.environ.get('JAX_PROCESS_ID', '0')}.starting").touch()
            processes.start(timeout=options["start_timeout"])
        with processes.together():
            work(options, Path(folder))
        if options["dies_leaving"] == jax.process_index():
            leaving.without_stderr = die
        processes.leave()
    except StceError as error:
        print(f"stce: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
