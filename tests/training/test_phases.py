"""Runs whose reduction keeps fewer tokens from epoch to epoch: which step each epoch has, stopping and resuming."""

import numpy as np
import pytest
from flax import linen as nn
from helpers import SMALLEST_VIT, leaves

from stce_jax.models.bodies import at_epoch
from stce_jax.models.factory import create_model
from stce_jax.models.reductions import evit
from stce_jax.training import stepping
from stce_jax.training.phases import Phases
from stce_jax.verbs import train as verb
from stce_jax.workdir.config import load_config
from stce_jax.workdir.metric_lines import read_metrics

TINY = {"num_classes": 10, "width": 8, "depth": 2, "heads": 2, "mlp_dim": 8, "image_size": 16, "patch_size": 4}
# 45 steps an epoch. The keep rate begins to shrink after the first step's images, and is the configured one when two
# thirds are over.
SCHEDULED = (
    *SMALLEST_VIT,
    "--config.epochs=0.4",
    "--config.eval_every=0.2",
    "--config.image_size=16",
    "--config.log_every=6",
    "--config.model.body.vit.depth=1",
    "--config.model.reduction.name=evit",
    "--config.model.reduction.evit.blocks=0",
    "--config.model.reduction.evit.keep_rate=0.5",
    "--config.model.reduction.evit.shrink_start_epoch=0.02",
    "--config.model.reduction.evit.shrink_epochs=0.25",
)


def test_each_step_is_made_once_and_found_again():
    model = create_model("vit_ti_patch", reduction="evit", blocks=(1,), shrink_epochs=2.0, **TINY)
    made = []
    phases = Phases(model, lambda body: made.append(body) or len(made))
    seen = [phases.at_epoch(epoch) for epoch in (*np.linspace(0, 3, 200), 0.0, 3.0)]
    assert len(made) == evit.MOST_PROGRAMS == len({phase.step for phase in seen})
    assert (seen[0].step, seen[199].step, seen[200].step, seen[201].step) == (1, 8, 1, 8)
    assert [body.reduction.keep_rate[0] for body in made] == pytest.approx(1 - 0.3 * np.arange(8) / 7)
    assert phases.says(seen[0]) == "keep rate 1" and phases.says(seen[-1]) == "keep rate 0.7"


def test_without_a_schedule_it_is_the_model_itself():
    for options in ({}, {"reduction": "evit", "blocks": (1,)}, {"reduction": "topk", "blocks": (1,)}):
        model = create_model("vit_ti_patch", **options, **TINY)
        phases = Phases(model, lambda body: body)
        assert phases.at_epoch(0.0).step is model and phases.at_epoch(7.0) is phases.at_epoch(0.0)
        assert phases.says(phases.at_epoch(7.0)) == ""


def test_several_rates_are_all_said_and_a_body_may_have_a_schedule_of_its_own():
    model = create_model(
        "vit_ti_patch", reduction="evit", keep_rate=(0.5, 0.25), blocks=(0, 1), shrink_epochs=1, **TINY
    )
    phases = Phases(model, lambda body: body)
    assert phases.says(phases.at_epoch(5.0)) == "keep rate 0.5, 0.25"

    class Growing(nn.Module):
        depth: int = 4

        def at_epoch(self, epoch):
            return self.clone(depth=min(self.depth, 1 + int(epoch)))

    assert at_epoch(Growing(), 1.5).depth == 2
    phases = Phases(Growing(), lambda body: body.depth)
    assert [phases.at_epoch(epoch).step for epoch in (0.0, 0.9, 1.0, 9.0)] == [1, 1, 2, 4]
    assert phases.says(phases.at_epoch(0.0)) == "another form of the model"


@pytest.mark.slow
def test_a_run_stopped_in_the_middle_of_its_schedule_resumes_to_the_same_bits(
    monkeypatch, no_picture, seen, data_dir, tmp_path, capfd
):
    monkeypatch.setattr(evit, "MOST_PROGRAMS", 3)
    made, make = [], stepping.make_train_step
    monkeypatch.setattr(
        stepping, "make_train_step", lambda body, **more: made.append(body.reduction.keep_rate[0]) or make(body, **more)
    )
    config = load_config("digits:patch", [*SCHEDULED, f"--config.data_dir={data_dir}"])
    verb.train(config, tmp_path / "whole")
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("keep rate")]
    assert made == [1.0, 0.75, 0.5], "each keep rate is to be compiled once"
    assert said == ["keep rate 1 from step 1 on", "keep rate 0.75 from step 6 on", "keep rate 0.5 from step 10 on"]

    made.clear()
    with seen.stopped_at(8, match=r"at step [678], which is saved"):
        verb.train(config, tmp_path / "stopped")
    assert made == [1.0, 0.75]
    verb.train(config, tmp_path / "stopped")
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("keep rate")]
    assert made == [1.0, 0.75, 0.75, 0.5] and said[2].startswith("keep rate 0.75 from step ")
    for ours, theirs in zip(leaves(tmp_path / "stopped"), leaves(tmp_path / "whole"), strict=True):
        assert ours.tobytes() == theirs.tobytes()
    ours, theirs = (
        {line["step"]: line for line in read_metrics(tmp_path / name) if line["split"] == "eval"}
        for name in ("stopped", "whole")
    )
    assert ours == theirs and len(ours) == 2
