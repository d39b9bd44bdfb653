"""Runs side by side: each figure is that of the run's own files, and what is not there yet is said to be."""

import json
import re
import shutil
import types

import jax
import numpy as np
import pytest
from helpers import run_cli
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from stce_jax.analysis.curves import COLOURS
from stce_jax.errors import CheckpointError, ConfigError, DataError
from stce_jax.training import assemble as runs
from stce_jax.training.timetable import is_last
from stce_jax.verbs import compare as module
from stce_jax.verbs.compare import compare, short_names
from stce_jax.workdir import layout
from stce_jax.workdir.config import load_config

TRAIN = {"split": "train", "loss": 1.5, "top1": 0.25, "top5": 0.75, "learning_rate": 1e-3}


def make_run(workdir, *overrides, evaluations=(), speeds=(), config="digits"):
    """A workdir as a run of four epochs of ten steps leaves it.

    Args:
      workdir: the directory.
      *overrides: of the config.
      evaluations: (step, loss, top1) of each.
      speeds: images a second of each line of training, written every ten steps.
    """
    workdir.mkdir(parents=True)
    layout.write_config(workdir, load_config(config, ["--config.epochs=4", *overrides]))
    lines = [
        {"step": 10 * place, "epoch": float(place)} | TRAIN | {"images_per_second": speed}
        for place, speed in enumerate(speeds, 1)
    ]
    lines += [
        {"step": step, "epoch": step / 10, "split": "eval", "loss": loss, "top1": top1, "top5": 1.0}
        for step, loss, top1 in evaluations
    ]
    lines.sort(key=lambda line: (line["step"], line["split"] == "eval"))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return workdir


def write_predictions(workdir, predicted, labels, class_ids="abcd", **more):
    """evaluation/predictions.npz whose logits are the greatest at the predicted class of each image."""
    (workdir / "evaluation").mkdir()
    logits = np.eye(len(class_ids), dtype=np.float32)[predicted] + np.float32(0.5)  # [n, C]
    path = workdir / "evaluation" / "predictions.npz"
    np.savez(path, labels=np.array(labels, np.int32), logits=logits, class_ids=np.array(list(class_ids)), **more)
    return path


@pytest.fixture
def finished(tmp_path):
    evaluations = [(20, 1.0, 0.5), (30, 0.5, 0.875), (40, 0.75, 0.8125)]
    return make_run(tmp_path / "finished", evaluations=evaluations, speeds=[10, 1000, 1200, 1100])


@pytest.fixture
def going_on(tmp_path):
    return make_run(tmp_path / "going_on", "--config.seed=1", evaluations=[(10, 2.0, 0.25)], speeds=[900, 1000])


# --- figures


def test_figures_are_those_of_the_log(finished, going_on):
    first, second = compare([finished, going_on])["runs"]
    assert first == {
        "run": str(finished),
        "model": "vit_ti_stce",
        "epoch": 4.0,
        "epochs": 4.0,
        "finished": True,
        "step": 40,
        "loss": 0.75,
        "top1": 0.8125,
        "best_step": 30,
        "best_top1": 0.875,
        "parameters": None,
        "images_per_second": 1050.0,  # the median: the first line holds the compilation
        "differences": [],
        "predictions": False,
    }
    assert (second["finished"], second["epoch"], second["top1"], second["images_per_second"]) == (False, 2, 0.25, 950)
    assert second["differences"] == ["seed: 0 -> 1"]


def test_the_evaluation_shown_is_the_one_asked_for(finished, going_on):
    for checkpoint, expected in (("last", 0.8125), ("best", 0.875), (20, 0.5), ("20", 0.5)):
        (row,) = compare([finished], checkpoint=checkpoint)["runs"]
        assert row["top1"] == expected and row["best_top1"] == 0.875, checkpoint
    with pytest.raises(CheckpointError, match=r"going_on was not evaluated at step '20'; it was at last, best, 10"):
        compare([finished, going_on], checkpoint="20")


def test_of_equally_good_evaluations_the_last_is_best(tmp_path):
    """As of checkpoints."""
    workdir = make_run(tmp_path / "run", evaluations=[(10, 1.0, 0.5), (20, 0.9, 0.5), (30, 0.8, 0.25)])
    assert compare([workdir])["runs"][0]["best_step"] == 20


@pytest.mark.parametrize("speeds, epoch", [((), 0.0), ((100, 200), 2.0)])
def test_a_run_without_an_evaluation_has_no_figures_yet(tmp_path, finished, speeds, epoch):
    new = make_run(tmp_path / "new", speeds=speeds)
    for checkpoint in ("last", "best", "20"):
        row = compare([finished, new], checkpoint=checkpoint)["runs"][1]
        assert row["epoch"] == epoch and not row["finished"]
        assert [row[name] for name in ("step", "loss", "top1", "best_step", "best_top1", "parameters")] == [None] * 6


def test_a_run_that_has_not_logged_anything(tmp_path, finished):
    new = make_run(tmp_path / "new")
    (new / "metrics.jsonl").unlink()
    assert compare([finished, new])["runs"][1]["epoch"] == 0


@given(st.integers(1, 5000), st.integers(1, 512), st.integers(1, 300))
def test_a_run_is_finished_at_its_last_step_and_not_before(images, batch_size, epochs):
    config = types.SimpleNamespace(batch_size=batch_size, epochs=float(epochs), eval_every=1)
    config.optimizer = types.SimpleNamespace(warmup_epochs=0.0)
    halves, rest = divmod(2 * epochs * images, batch_size)
    assume(halves >= 2 and (rest or halves % 2 == 0))  # there is a step, and no two are equally near
    timetable = runs.build_timetable(config, types.SimpleNamespace(train=range(images)))
    for step, expected in ((timetable.total, True), (max(1, timetable.total - 1), timetable.total == 1)):
        assert is_last(step, step / timetable.epoch, config.epochs) == expected, f"step {step} of {timetable}"


def test_parameters_are_those_of_the_checkpoint(tiny_run):
    workdir, _ = tiny_run
    params = runs.load_run(workdir).variables["params"]
    expected = sum(np.asarray(leaf).size for leaf in jax.tree.leaves(params))
    (row,) = compare([workdir])["runs"]
    assert row["parameters"] == expected and row["finished"]


# --- pairs


@pytest.fixture
def pair(finished, going_on):
    """Runs that are right on 12 and on 7 of 16 images, 4 of them shared."""
    labels = np.arange(16) % 4
    wrong = (labels + 1) % 4
    first_hits, second_hits = np.arange(16) < 12, np.isin(np.arange(16), [0, 1, 2, 3, 12, 13, 14])
    write_predictions(finished, np.where(first_hits, labels, wrong), labels)
    write_predictions(going_on, np.where(second_hits, labels, wrong), labels)
    return finished, going_on


def test_the_difference_is_of_the_second_run_less_the_first(pair):
    result = compare(pair)
    (found,) = result["pairs"]
    assert (found["first"], found["second"]) == tuple(map(str, pair))
    assert (found["images"], found["first_top1"], found["second_top1"]) == (16, 12 / 16, 7 / 16)
    assert (found["only_first"], found["only_second"]) == (8, 3)
    assert found["difference"] == pytest.approx(-5 / 16)
    assert found["p_value"] == pytest.approx(stats.binomtest(3, 11).pvalue)
    # The 16 differences are 8 of -1, 3 of 1, 5 of 0; their sums over resamplings are 16 independent draws.
    share = np.array([8, 5, 3]) / 16
    law = np.array([1.0])
    for _ in range(16):
        law = np.convolve(law, share)
    ends = np.searchsorted(np.cumsum(law), [0.025, 0.975]) - 16
    np.testing.assert_allclose((found["low"], found["high"]), ends / 16, atol=1 / 16, err_msg="one image of 16")
    assert [row["predictions"] for row in result["runs"]] == [True, True]
    (swapped,) = compare(pair[::-1])["pairs"]
    assert swapped["difference"] == -found["difference"] and swapped["low"] == pytest.approx(-found["high"])


def test_a_run_does_not_differ_from_its_copy(pair, tmp_path):
    copy = shutil.copytree(pair[0], tmp_path / "copy")
    result = compare([pair[0], copy])
    found = result["pairs"][0]
    assert [found[name] for name in ("difference", "low", "high", "only_first", "only_second", "p_value")] == [
        0
    ] * 5 + [1]
    assert result["runs"][1]["differences"] == []


@pytest.mark.parametrize("other", ["labels", "number", "classes"])
def test_predictions_on_other_images_are_not_compared(finished, going_on, other):
    labels = np.arange(8) % 4
    write_predictions(finished, labels, labels)
    theirs = {"labels": labels[::-1], "number": labels[:4], "classes": labels}[other]
    write_predictions(going_on, theirs, theirs, "abdc" if other == "classes" else "abcd")
    (found,) = compare([finished, going_on])["pairs"]
    assert found == {"first": str(finished), "second": str(going_on), "reason": "other images"}


@pytest.mark.parametrize("theirs, reason", [("flip", None), ("crops", "other test-time augmentation")])
def test_predictions_with_other_test_time_augmentation_are_not_compared(finished, going_on, theirs, reason, capsys):
    labels = np.arange(8) % 4
    write_predictions(finished, labels, labels, tta="flip")
    write_predictions(going_on, labels, labels, tta=theirs)
    (found,) = compare([finished, going_on])["pairs"]
    assert (found.get("reason"), found.get("tta")) == (reason, None if reason else "flip")
    code, out, _ = run_cli(capsys, "compare", finished, going_on, f"--output={finished}/picture.png")
    said = "evaluated with other test-time augmentation (--tta): no interval" if reason else "both with --tta=flip\n"
    assert code == 0 and said in out, out


def test_one_run_without_predictions_does_not_keep_the_others_from_being_compared(pair, tmp_path):
    third = make_run(tmp_path / "third")
    pairs = compare([*pair, third])["pairs"]
    assert "p_value" in pairs[0] and pairs[1]["reason"] == "no predictions"


class Harmful:
    """An object that says so when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("predictions were unpickled",))


@pytest.mark.parametrize("damage", ["text", "cut", "empty", "array missing", "pickle", "shape"])
def test_damaged_predictions_are_refused(pair, capsys, damage):
    path = pair[1] / "evaluation" / "predictions.npz"
    content, labels = path.read_bytes(), np.arange(16, dtype=np.int32)
    if damage in ("text", "cut", "empty"):
        path.write_bytes({"text": b"no archive", "cut": content[: len(content) // 2], "empty": b""}[damage])
    elif damage == "array missing":
        np.savez(path, labels=labels)
    elif damage == "pickle":
        np.savez(path, labels=labels, logits=np.array([Harmful()]), class_ids=labels)
    else:
        np.savez(path, labels=labels, logits=np.zeros(16), class_ids=labels)
    with pytest.raises(DataError, match=r"predictions\.npz: .*write it again: stce evaluate --workdir="):
        compare(pair)
    code, out, error = run_cli(capsys, "compare", *pair)
    assert code == 3 and out == "" and re.fullmatch(r"stce: .*\n", error), error


# --- the picture


def test_the_picture_has_the_curves_of_each_run_under_its_name(finished, going_on, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(module, "curves", lambda *words: drawn.append(words))
    compare([finished, going_on], tmp_path / "out.png")
    compare([finished, going_on])
    ((groups, path),) = drawn
    assert path == tmp_path / "out.png" and list(groups) == ["finished", "going_on"]
    for workdir, (lines,) in zip((finished, going_on), groups.values(), strict=True):
        assert lines == [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_the_picture_shows_each_run_in_its_colour(finished, going_on, tmp_path):
    compare([finished, going_on], tmp_path / "out.png")
    pixels = np.asarray(Image.open(tmp_path / "out.png").convert("RGB"), int)  # [H, W, 3]
    for place, colour in enumerate(COLOURS[:3]):
        rgb = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
        count = int((abs(pixels - rgb).max(axis=2) < 8).sum())
        assert (count > 100) == (place < 2), f"{count} pixels of {colour}, the colour of run {place}"


@pytest.mark.parametrize(
    "workdirs, names",
    [
        (["runs/a", "runs/b/"], ["a", "b"]),
        (["one/run", "two/run", "two/x"], ["one/run", "two/run", "two/x"]),
        (["run", "two/run"], ["run", "two/run"]),
        (["./a", "a"], ["./a", "a"]),
        (["gs://bucket/a", "gs://bucket/b"], ["a", "b"]),
        (["only/one"], ["one"]),
    ],
)
def test_names_are_short_and_differ(workdirs, names):
    assert short_names(workdirs) == names


# --- the command


def test_the_table(pair, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "patch", config="digits:patch")
    code, out, error = run_cli(capsys, "compare", "finished", "going_on", "patch")
    assert (code, error) == (0, ""), error
    header, first, second, third, note, speed, *rest = out.splitlines()
    columns = re.split(r"  +", header.strip())
    assert columns[4:7] == ["top-1, last", "best top-1*", "loss, last"]
    cells = [re.split(r"  +", line.strip()) for line in (first, second, third)]
    assert cells[0] == ["finished", "vit_ti_stce", "4.00/4", "finished", "81.25%", "87.50%", "0.7500", "-", "1,050"]
    assert cells[1][2:5] == ["2.00/4", "in progress", "25.00%"]
    assert cells[2] == ["patch", "vit_ti_patch", "0.00/4", "no evaluation yet", *"-----"]
    assert "chosen on the images of the evaluation" in note
    assert columns[-1] == "training images/s**" and speed.startswith("** median while it trained")
    assert rest[0] == "going_on differs from finished: seed: 0 -> 1"
    assert "patch differs from finished: " in rest[1] and "model.name: vit_ti_stce -> vit_ti_patch" in rest[1]
    assert re.fullmatch(
        r"going_on 43\.75% - finished 75\.00% = -31\.25 points, 95% interval -\d+\.\d\d to \+\d+\.\d\d; of 16 images 3 "
        r"are right in going_on alone, 8 in finished alone, McNemar p = 0\.227",
        rest[2],
    ), rest[2]
    assert rest[3].endswith("of patch:") and "stce evaluate --workdir=RUN --output=RUN/evaluation" in rest[4]
    assert rest[5:] == ["curves in compare.png"] and Image.open("compare.png").format == "PNG"


def test_one_run_is_shown_alone(finished, tmp_path, capsys):
    code, out, _ = run_cli(capsys, "compare", finished, f"--output={tmp_path / 'one.svg'}", "--checkpoint=best")
    assert code == 0 and "top-1, best" in out and "predictions" not in out
    assert (tmp_path / "one.svg").read_bytes().startswith(b"<?xml")


def test_json_is_what_the_function_returns(pair, tmp_path, capsys):
    code, out, _ = run_cli(capsys, "compare", *pair, "--json", f"--output={tmp_path / 'out.png'}")
    assert code == 0 and json.loads(out) == compare(pair) and (tmp_path / "out.png").exists()


@pytest.mark.slow
def test_what_evaluate_writes_is_compared(tiny_run, data_dir, tmp_path, capsys):
    workdir = shutil.copytree(tiny_run[0], tmp_path / "run")
    code, _, error = run_cli(
        capsys, "evaluate", f"--workdir={workdir}", f"--data_dir={data_dir}", f"--output={workdir / 'evaluation'}"
    )
    assert code == 0, error
    copy = shutil.copytree(workdir, tmp_path / "copy")
    result = compare([workdir, copy], checkpoint="last")
    (found,) = result["pairs"]
    assert found["images"] == 360 and found["first_top1"] == found["second_top1"] and found["p_value"] == 1
    assert found["first_top1"] == pytest.approx(result["runs"][0]["top1"], abs=1e-6), "not what the log says"


@pytest.mark.parametrize(
    "words, code, cause",
    [
        (["compare"], 2, "required: RUN"),
        (["compare", "finished", "nothing"], 2, "nothing is no workdir of a run"),
        (["compare", "finished", "finished/metrics.jsonl"], 2, "finished/metrics.jsonl is no workdir of a run"),
        (["compare", "finished", "finished"], 2, "named twice"),
        (["compare", "finished", "torn"], 2, "torn: config.json is damaged"),
        (["compare", "finished", "older"], 2, "older: config.json has other keys"),
        (["compare", "finished", "--checkpoint=17"], 4, "finished was not evaluated at step '17'"),
        (["compare", "finished", "--output=no/where.png"], 2, "cannot write no/where.png"),
        (["compare", "finished", "--output=out.doc"], 2, "give another --output"),
        (["compare", "finished", "--config.seed=1"], 2, "unknown argument"),
    ],
)
def test_refusals(finished, tmp_path, capsys, monkeypatch, words, code, cause):
    monkeypatch.chdir(tmp_path)
    config = (finished / "config.json").read_text()
    for name, text in (("torn", config[:100]), ("older", config.replace('"seed"', '"sed"'))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    found, out, error = run_cli(capsys, *words)
    assert found == code and cause in error, error
    assert re.fullmatch(r"stce: .*\n", error) and out == "", f"not one line: {error!r}"
    assert {path.name for path in tmp_path.iterdir()} == {"finished", "torn", "older"}, "something was written"


def test_the_same_error_from_python(tmp_path):
    with pytest.raises(ConfigError, match="is no workdir of a run"):
        compare([tmp_path])
