"""Every body trained on eight devices, stopped and resumed: the same bits as a run that was not stopped."""

import numpy as np
import pytest
from helpers import leaves
from tiny_models import OWN, config_of

from stce_jax.models.bodies import BODIES
from stce_jax.verbs.train import train

STEPS, IMAGES = 5, 1437


@pytest.mark.slow
@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("body", BODIES)
def test_a_stopped_run_has_the_bits_of_one_that_was_not(body, seen, data_dir, tmp_path):
    config = config_of({"body": body, "embedding": OWN[body], "reduction": None}, data_dir)
    with config.unlocked():
        config.epochs = STEPS * config.batch_size / IMAGES
        config.optimizer.warmup_epochs = 0.0
        config.augment.mixup = 0.5
        if "drop_path" in config.model.body[body]:
            config.model.body[body].drop_path = 0.2
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    final = train(config, whole)
    with seen.stopped_at(3):
        train(config, stopped)
    again = train(config, stopped)
    assert final == again, f"{body}: {final} of the whole run, {again} of the resumed one"
    for one, other in zip(leaves(whole), leaves(stopped), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=body)
