"""Progressive resizing: which size each step has, which models can, and runs that are stopped in either phase."""

import logging
import shutil

import jax
import numpy as np
import pytest
from body_checks import noise
from helpers import SMALLEST_VIT, leaves

from stce_jax.analysis.costs import count_model, work_of_sizes
from stce_jax.data.views import Views
from stce_jax.errors import ConfigError
from stce_jax.models.factory import create_model
from stce_jax.training import assemble as runs
from stce_jax.training.options import check_options
from stce_jax.training.phases import Phases, mixed_steps
from stce_jax.training.progress import TrainProgress
from stce_jax.training.sizes import Sizes, check_model, check_sizes
from stce_jax.training.timetable import Origin, Timetable
from stce_jax.verbs import train as verb
from stce_jax.workdir.config import load_config
from stce_jax.workdir.metric_lines import read_metrics

TINY = {"num_classes": 10, "width": 8, "depth": 1, "heads": 2, "mlp_dim": 8, "image_size": 16, "patch_size": 4}
# 18 steps of 45 an epoch; the second size begins after nine of them, the last six do not mix.
RESIZED = (
    *SMALLEST_VIT,
    "--config.epochs=0.4",
    "--config.eval_every=0.2",
    "--config.image_size=16",
    "--config.progressive_sizes=8,16",
    "--config.log_every=6",
    "--config.model.body.vit.depth=1",
    "--config.augment.mixup=0.2",
    "--config.augment.mixing_off_epochs=0.134",
)


def config_of(data_dir, *words):
    return load_config("digits:patch", [*RESIZED, f"--config.data_dir={data_dir}", *words])


def test_each_size_has_an_equal_share_of_the_epochs():
    sizes = Sizes.of((8, 8, 16, 32), Timetable(100, 10, 4.0, 1.0))
    assert sizes == Sizes((8, 16, 32), (0, 20, 30))
    assert [sizes.after(step) for step in (0, 19, 20, 29, 30, 99)] == [8, 8, 16, 16, 32, 32]
    assert [sizes.seen_from(25).after(batch) for batch in (0, 4, 5)] == [16, 16, 32]
    assert sizes.starts_from(0) == [0, 20, 30] and sizes.starts_from(20) == [20, 30] and sizes.starts_from(35) == [35]
    assert sizes.work(40, (1.0, 2.0, 5.0)) == 20 + 20 + 50 and sizes.work(25, (1.0, 2.0, 5.0)) == 30
    short = Sizes.of((8, 16, 32), Timetable(100, 100, 1.0, 1.0))
    assert [short.after(0), short.after(1)] == [8, 32], "a run of one step, whose first size begins it"


def test_sizes_stay_at_their_epochs_when_the_batch_changes():
    table = Timetable(100, 10, 4.0, 1.0, Origin(10, 200))  # 20 images a step until the tenth
    assert table.first_step(2.0) == 10 and table.first_step(3.0) == 20
    assert Sizes.of((8, 16), table).starts[1] == 10


@pytest.mark.parametrize(
    "sides, words",
    [
        ((16, 8), "sizes must not fall"),
        ((8, 12), "the last must be config.image_size, 16"),
        ((8,) * 20 + (16,), "at most 16 sizes"),
        ((0, 16), "each of config.progressive_sizes is 0"),
        ((8.0, 16), "each of config.progressive_sizes is 8.0"),
        ("8,16", "config.progressive_sizes is '8,16'"),
    ],
)
def test_sizes_that_cannot_work_are_refused(sides, words):
    with pytest.raises(ConfigError, match=words):
        check_sizes(sides, 16)


def test_a_shift_is_checked_at_the_smallest_size():
    config = load_config("digits", ["--config.progressive_sizes=16,32", "--config.augment.shift=20"])
    with pytest.raises(ConfigError, match="more than the image's 16 pixels"):
        check_options(config)


def small(name, size, **more):
    embedding = {"patch_size": 4} if name.endswith("_patch") else {}
    return create_model(name, num_classes=3, image_size=size, **embedding, **more)


STAGES = {"widths": (8, 8), "depths": (1, 1), "heads": (2, 2)}
VIT = {"width": 8, "depth": 2, "heads": 2, "mlp_dim": 8}
STCE = {"stem_widths": (4, 8), "stem_strides": (2, 1), "cell": (2, 2)}
CMT = {"key_strides": (2, 1), "mlp_ratios": (1, 1), "head_width": 8, "stem_widths": (4, 4, 4)}
FITTING = {
    "learned positions": lambda: small("vit_ti_patch", 16, **VIT),
    "sincos2d, mean": lambda: small("vit_ti_patch", 16, **VIT, position_embedding="sincos2d", pooling="mean"),
    "stce": lambda: small("vit_ti_stce", 16, **VIT, **STCE),
    "distilled": lambda: small("deit_ti_distilled", 16, **VIT, patch_size=4),
    "scanned": lambda: small("vit_ti_patch", 16, **VIT, scan_layers=True),
    "evit": lambda: small("vit_ti_patch", 16, **VIT, reduction="evit", blocks=(1,)),
    "tome": lambda: small("vit_ti_patch", 16, **VIT, reduction="tome", keep_rate=0.5),
    "swin": lambda: small("swin_t", 16, **STAGES, window=2, patch_size=2),
    "cvt": lambda: small("cvt_13", 16, **STAGES),
}


@pytest.mark.parametrize("name", FITTING)
def test_models_whose_variables_do_not_depend_on_the_size_can(name):
    check_model(FITTING[name](), (8, 16))


def test_models_that_cannot_are_refused_with_a_size_that_works():
    with pytest.raises(ConfigError, match=r"progressive_sizes: 8 works; at 10 pixels the model says: .*10"):
        check_model(FITTING["learned positions"](), (10, 16))
    cmt = create_model("cmt_ti", num_classes=3, image_size=32, widths=(8, 8), depths=(1, 1), heads=(1, 1), **CMT)
    with pytest.raises(ConfigError, match=r"none but 32 works near it, give config.progressive_sizes=\(\)") as error:
        check_model(cmt, (16, 32))
    assert "\n" not in str(error.value)


def test_learned_positions_of_a_smaller_grid_are_resampled_and_learn():
    """Against the resize as one matrix a side; the gradient of a linear map is its transpose."""
    model = small("vit_ti_patch", 16, **VIT)
    variables = noise(model)
    positions = np.asarray(variables["params"]["position_embedding"])  # class token, then 4x4
    side = np.asarray(jax.image.resize(np.eye(4, dtype=np.float32), (2, 4), method="bicubic"))  # [2, 4]

    def own(positions):
        changed = {**variables, "params": {**variables["params"], "position_embedding": positions}}
        return model.apply(changed, (2, 2), method="_positions")

    found, pull = jax.vjp(own, positions)
    expected = np.einsum("ah,bw,hwd->abd", side, side, positions[0, 1:].reshape(4, 4, -1)).reshape(4, -1)
    np.testing.assert_allclose(found[0], np.concatenate([positions[0, :1], expected]), atol=1e-6)
    pulled = np.random.default_rng(0).standard_normal(found.shape).astype(np.float32)
    (gradient,) = pull(pulled)
    expected = np.einsum("ah,bw,abd->hwd", side, side, pulled[0, 1:].reshape(2, 2, -1)).reshape(16, -1)
    np.testing.assert_allclose(gradient[0], np.concatenate([pulled[0, :1], expected]), atol=1e-6)


class Grey:
    """Four grey images of 20x20 pixels."""

    def __init__(self):
        self.read = 0

    def __len__(self):
        return 4

    def name(self, index):
        return f"image {index}"

    def __getitem__(self, index):
        self.read += 1
        pixels = np.full((20, 20, 3), 10 * index, np.uint8)
        return {"image": b"P6\n20 20\n255\n" + pixels.tobytes(), "label": index, "name": f"image {index}"}


def test_views_of_another_size_are_cut_from_the_same_pixels():
    source = Grey()
    options = {"fraction": 1.0, "area": (0.3, 1.0), "ratio": (1.0, 1.0), "cache_bytes": 10**6}
    views = Views(source, size=16, crop="random_resized", **options)
    for size in (None, 8, 16):
        view, label = views.view(2, np.random.default_rng(1), size)
        assert view.shape == (size or 16, size or 16, 3) and label == 2 and view[0, 0, 0] == 20
    assert source.read == 4 + 1, "decoded four times for the estimate, and once to be kept"


def test_central_views_keep_one_size_at_a_time():
    source = Grey()
    views = Views(source, size=16, crop="center", fraction=1.0, cache_bytes=4 * 16 * 16 * 3)
    for size in (8, 8, 16, 16, 8):
        for index in range(4):
            assert views.view(index, None, size)[0].shape == (size, size, 3)
    assert source.read == 4 + 3 * 4
    assert views._room == 4 * (16 * 16 - 8 * 8) * 3


def test_phases_are_one_for_each_size_and_say_it():
    model, made = create_model("vit_ti_patch", **TINY), []
    phases = Phases(model, lambda body: made.append(body) or len(made), Sizes((8, 16), (0, 9)))
    found = [phases.at_epoch(0.0, step) for step in (0, 8, 9, 20, 0)]
    assert [phase.step for phase in found] == [1, 1, 2, 2, 1] and [phase.side for phase in found] == [8, 8, 16, 16, 8]
    assert [phases.says(phase) for phase in found[1:3]] == ["8 pixels", "16 pixels"]


def test_the_last_epochs_do_not_mix(data_dir):
    table = Timetable(1437, 32, 0.4, 0.2)
    assert mixed_steps(config_of(data_dir), table) == 12
    assert mixed_steps(config_of(data_dir, "--config.augment.mixing_off_epochs=9"), table) == 0
    assert mixed_steps(config_of(data_dir, "--config.augment.mixing_off_epochs=0"), table) is None
    assert mixed_steps(config_of(data_dir, "--config.augment.mixup=0"), table) is None


@pytest.mark.slow
@pytest.mark.usefixtures("no_picture")
def test_a_run_stopped_in_either_size_resumes_to_the_same_bits(seen, data_dir, tmp_path, capfd, caplog):
    config = config_of(data_dir)
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        verb.train(config, tmp_path / "whole")
    lines = capfd.readouterr().out.splitlines()
    assert seen.sides == [8] * 9 + [16] * 9
    compiled = [line.split(" in ")[0] for line in lines if line.startswith("compiled")]
    assert compiled == ["compiled the step for 8 pixels", "compiled the step for 16 pixels"]
    told = [line for line in lines if " from step " in line]
    off = "mixup and CutMix are off from step 13 on"
    assert told == ["8 pixels from step 1 on", "16 pixels from step 10 on", off]
    built = [record for record in caplog.records if "Compiling jit(train_step)" in record.getMessage()]
    assert len(built) == 2, "each size is compiled once"
    for batches in (4, 11, None):
        workdir = tmp_path / f"stopped_{batches}"
        if batches:
            with seen.stopped_at(batches):
                verb.train(config, workdir)
        else:  # as one that was killed after it had saved the last step of the first size
            shutil.copytree(tmp_path / "whole", workdir)
            shutil.rmtree(workdir / "checkpoints" / "18")
        capfd.readouterr()
        seen.sides.clear()
        verb.train(config, workdir)
        output = capfd.readouterr().out
        assert ("compiled the step for 8 pixels" in output) == (len(seen.sides) > 9), output
        for ours, theirs in zip(leaves(workdir), leaves(tmp_path / "whole"), strict=True):
            assert ours.tobytes() == theirs.tobytes(), f"stopped at batch {batches}"
        ours, theirs = (
            {line["step"]: line for line in read_metrics(run) if line["split"] == "eval"}
            for run in (workdir, tmp_path / "whole")
        )
        assert ours == theirs


@pytest.mark.slow
@pytest.mark.usefixtures("no_picture")
def test_with_another_batch_or_loader_processes_sizes_stay_at_their_epochs(seen, data_dir, tmp_path):
    with seen.stopped_at(5):
        verb.train(config_of(data_dir), tmp_path / "run")
    at = len([line for line in seen.sides if line == 8])
    shutil.copytree(tmp_path / "run", tmp_path / "workers")
    seen.sides.clear()
    verb.train(config_of(data_dir, "--config.batch_size=16"), tmp_path / "run", allow_config_change=True)
    boundary = [side for side in seen.sides].index(16)
    assert seen.sides == [8] * boundary + [16] * (len(seen.sides) - boundary)
    assert abs(32 * at + 16 * boundary - 0.2 * 1437) <= 32 + 16, "the size changes at its epoch"
    seen.sides.clear()
    verb.train(config_of(data_dir, "--config.loader_workers=1"), tmp_path / "workers")
    assert seen.sides[-9:] == [16] * 9 and set(seen.sides[:-9]) == {8}


@pytest.mark.slow
@pytest.mark.usefixtures("no_picture")
def test_a_model_that_cannot_take_a_size_is_refused_before_anything_is_made(data_dir, tmp_path):
    with pytest.raises(ConfigError, match="8 works; at 10 pixels"):
        verb.train(config_of(data_dir, "--config.progressive_sizes=10,16"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_batches_have_the_size_of_their_number(data_dir):
    config = config_of(data_dir)
    dataset = runs.open_dataset(config)
    with runs.train_batches(config, dataset, 0, size_of=Sizes((8, 16), (0, 2)).after) as batches:
        assert [next(batches)["image"].shape[1] for _ in range(4)] == [8, 8, 16, 16]


def test_the_time_left_counts_what_a_step_of_each_size_costs(capsys):
    """A tenth of the steps is less than a tenth of the work while images are small."""
    model = create_model("vit_ti_patch", **TINY)
    assert work_of_sizes(model, None) is None
    work = work_of_sizes(model, Sizes((8, 16), (0, 50)))
    costs = [count_model(model, side)["multiply_adds"] for side in (8, 16)]
    assert 2 * costs[0] < costs[1]
    assert [work(steps) for steps in (0, 10, 50, 100)] == [0, 10 * costs[0], 50 * costs[0], 50 * sum(costs)]
    with TrainProgress(100, 0, work=work) as progress:
        for step in (10, 20):
            progress.train(step, step / 10, {"loss": 1.0, "top1": 0.5, "images_per_second": 9.0, "data_wait": 0.0})
        assert progress._bar.tasks[0].percentage == pytest.approx(100 * work(20) / work(100))
    assert " left" in capsys.readouterr().out.splitlines()[-1]
