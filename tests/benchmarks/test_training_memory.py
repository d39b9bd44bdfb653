"""What XLA plans for a training step of a small model: 1,000 classes and large images stay within what is stated."""

import functools

import pytest
import training_memory

MEGABYTE = 2**20
SMALL = (
    "--config.model.name=vit_ti_stce",
    "--config.model.body.vit.depth=2",
    "--config.augment.rand_augment=",
    "--config.augment.erase=0",
    "--config.batch_size=4",
)


@functools.cache
def planned(size, *words):
    return training_memory.planned_bytes([*SMALL, f"--config.image_size={size}", *words], 1000)


@pytest.mark.slow
def test_a_step_takes_what_is_stated():
    """Parameters, two moments and an average; beside them 25 MB an image, most of it the stem's and the blocks'."""
    state, temporary = planned(224)
    parameters = 1_093_000
    assert state == pytest.approx(4 * 4 * parameters, rel=0.01)
    assert temporary < 4 * 25 * MEGABYTE


@pytest.mark.slow
def test_micro_batches_hold_one_at_a_time():
    state, temporary = planned(224)
    same, less = planned(224, "--config.accumulate=4")
    assert same == state
    assert less < temporary / 2, f"{less / MEGABYTE:.0f} of {temporary / MEGABYTE:.0f} MiB"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["remat", "remat, scan_layers"])
def test_blocks_computed_again_are_not_kept(way):
    deep = "--config.model.body.vit.depth=8"
    state, temporary = planned(224, deep)
    same, less = planned(224, deep, *training_memory.WAYS[way])
    assert same == state
    assert less < 0.75 * temporary, f"{less / MEGABYTE:.0f} of {temporary / MEGABYTE:.0f} MiB"
