"""`stce lr-find`: a learning-rate range test, a short training in which the rate grows from step to step.

Source: Smith 2017, "Cyclical learning rates for training neural networks", arXiv 1506.01186.
"""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from stce_jax.analysis import learning_rates
from stce_jax.convert.initial import initialize
from stce_jax.data.loader import to_devices
from stce_jax.errors import ConfigError, check_range, check_whole
from stce_jax.processes import clusters
from stce_jax.processes.speaking import say
from stce_jax.recipe.optimizers import peak_learning_rate
from stce_jax.training import assemble as runs
from stce_jax.training import optimization
from stce_jax.training.memory import check_memory
from stce_jax.training.mesh import batch_sharding, check_batch_size, connect, make_mesh
from stce_jax.training.objective import build_objective, class_weights
from stce_jax.training.plan import with_keys
from stce_jax.training.step import check_accumulation, run_key
from stce_jax.training.stepping import build_stepping
from stce_jax.verbs.appearing import appearing
from stce_jax.verbs.first_weights import first_weights, follow_weights
from stce_jax.workdir import layout

FEWEST, MOST = 10, 1000  # steps
SMALLEST, LARGEST = 1e-12, 1e3  # rates
LINES = 10  # that are printed on the way
KEY = "--config.optimizer.learning_rate"


def lr_find(
    config: Any, output: epath.PathLike = "", *, lowest: float = 1e-6, highest: float = 1.0, steps: int = 100
) -> dict[str, Any]:
    """Trains a config's model from its beginning at rates that grow exponentially, until the loss diverges.

    Model, images, augmentation, optimizer and every draw are those of the run that the config begins, on images of
    `config.image_size`; only the learning rate is another, and no average is kept. Nothing but `output` is written.

    Args:
      config: of `load_config`.
      output: a directory for lr_find.json and lr_find.png, which must not be there or be empty; "": none.
      lowest, highest: of the rates, as `config.optimizer.learning_rate`.
      steps: from the one to the other, 10 to 1000.

    Returns:
      {"suggestion", "lowest", "steepest": see `learning_rates.suggest`, "words": the option that sets the suggestion,
      "" without one, "stopped": why before the highest rate, or "", "learning_rates", "losses", "smoothed": lists of a
      number a step, "optimizer", "batch_size", "seed": of the config}.

    Raises:
      StceError: the config cannot be trained, or the output not be written.
    """
    for name, rate in (("lowest", lowest), ("highest", highest)):
        check_range(f"the {name} learning rate", rate, SMALLEST, LARGEST)
    if not lowest < highest:
        raise ConfigError(f"the rates grow from {lowest:g} to {highest:g}; the second must be above the first")
    check_whole("steps", steps, FEWEST, MOST)
    runs.check_options(config)
    if clusters.detect():
        raise ConfigError("a range test is one process's; start it once, without the variables of several processes")
    if output and layout.is_workdir(output):
        raise ConfigError(f"{output} is the workdir of a run, which a range test leaves alone; give another --output")
    with appearing(output, "write") if output else contextlib.nullcontext() as directory:
        rates = learning_rates.growing(lowest, highest, steps)
        spread = learning_rates.SPREAD * steps
        losses, stopped = _train(config, output, rates, spread)
        if len(losses) < 2:
            raise ConfigError(f"the loss is not finite at the learning rate {lowest:g}; give a lower one")
        found = learning_rates.suggest(rates[: len(losses)], losses, spread)
        suggested = found["suggestion"]
        result = {
            **found,
            "words": "" if suggested is None else f"{KEY}={suggested:g}",
            "stopped": stopped,
            "learning_rates": rates[: len(losses)].tolist(),
            "losses": losses,
            "smoothed": learning_rates.smoothed(losses, spread).tolist(),
            "optimizer": config.optimizer.name,
            "batch_size": config.batch_size,
            "seed": config.seed,
        }
        if directory:
            _write(result, directory)
    return result


def _write(result: dict[str, Any], directory: Path) -> None:
    (directory / "lr_find.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    learning_rates.draw(result, directory / "lr_find.png")


def _train(config: Any, output: epath.PathLike, rates: Any, spread: float) -> tuple[list[float], str]:
    """(loss of each step, why it stopped before the last rate, or "") of a training that nothing keeps."""
    trial: Any = runs.build_model(config, 1)
    dataset = runs.open_dataset(config)
    config, dataset, source, followed = follow_weights(config, str(output), dataset, trial.unshaped_options())
    config = with_keys(config, {"optimizer.ema_decay": 0.0, "optimizer.ema_share": 0.0})
    mesh = make_mesh(config.fsdp_devices)
    check_batch_size(config.batch_size, mesh)
    check_accumulation(config.batch_size, config.accumulate, mesh)
    connect(mesh)
    model = runs.build_model(config, len(dataset.class_names))
    rules = optimization.parameter_rules(config, model)
    weights, begins = first_weights(config, source, model, dataset)
    for line in filter(None, (begins, *followed)):
        say(line)
    first, last = (
        peak_learning_rate(float(rate), config.optimizer.learning_rate_scaling, config.batch_size)
        for rate in (rates[0], rates[-1])
    )
    growth = math.log(last / first) / (len(rates) - 1)
    stepping = build_stepping(
        config,
        model,
        rules,
        runs.build_timetable(config, dataset),
        runs.build_augment(config, dataset),
        build_objective(config, class_weights(config, dataset)),
        mesh,
        schedule=lambda step: first * jnp.exp(growth * step),
    )
    check_memory(config, stepping.state_shapes, mesh)
    state = stepping.begin_state(config.seed)()
    if weights:
        state = initialize(state, weights, stepping.optimizer)
    step, key = stepping.make_step(model), run_key(config.seed, mesh)
    losses: list[float] = []
    with runs.train_batches(config, dataset, 0) as batches:
        for number, batch in zip(range(len(rates)), to_devices(batches, batch_sharding(mesh)), strict=False):
            state, metrics = step(state, batch, key)
            loss, skipped = (float(value) for value in jax.device_get((metrics["loss"], metrics["skipped"])))
            at = f"at the learning rate {rates[number]:.2g}"
            if skipped:
                return losses, f"the loss or its gradient is not finite {at}"
            losses.append(loss)
            if (number + 1) % max(1, len(rates) // LINES) == 0:
                say(f"step {number + 1}/{len(rates)}  learning rate {rates[number]:.2e}  loss {loss:.4g}")
            if learning_rates.has_diverged(losses, spread):
                return losses, f"the smoothed loss is {learning_rates.DIVERGED:g} times its lowest {at}"
    return losses, ""
