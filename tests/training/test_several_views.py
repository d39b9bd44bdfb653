"""Test-time augmentation: each view computed by itself gives the same mean, and nobody takes it for a plain one."""

import csv
import json

import jax
import numpy as np
import pytest
from helpers import run_cli
from PIL import Image
from scipy.special import softmax
from sweep_cells import finish

import stce_jax
from stce_jax.data.catalog import open_dataset
from stce_jax.data.crops import center_crop
from stce_jax.data.decode import decode_image, pixels_of
from stce_jax.errors import ConfigError
from stce_jax.reproduce.cells import cell_of, load_rows
from stce_jax.training.several_views import count, cuts, parse, square
from stce_jax.verbs.evaluate import evaluate
from stce_jax.verbs.export import _evaluation
from stce_jax.verbs.predict import predict

SIDE, LARGE = 16, 18  # pixels of the tiny run's views, and of the square that crops are cut from


def in_numpy(run, images, kinds):
    """Mean probabilities [n, K] of uint8 images of any size, each view cut, mirrored and computed by itself."""
    views = []
    for pixels in images:
        if "crops" in kinds:
            wide, end, mid = center_crop(pixels, LARGE, 1.0), LARGE - SIDE, (LARGE - SIDE) // 2
            corners = [(0, 0), (0, end), (end, 0), (end, end), (mid, mid)]
            own = [wide[top : top + SIDE, left : left + SIDE] for top, left in corners]
        else:
            own = [center_crop(pixels, SIDE, 1.0)]
        views.append(own + [view[:, ::-1] for view in own] * ("flip" in kinds))
    views = np.array(views, np.float32)  # [n, V, S, S, 3]
    inputs = ((views / 255 - np.float32(run.mean)) / np.float32(run.std)).reshape(-1, SIDE, SIDE, 3)
    logits = jax.jit(lambda x: run.model.apply(run.variables, x, train=False))(inputs)
    probabilities = softmax(np.asarray(logits, np.float64), axis=1)
    return probabilities.reshape(*views.shape[:2], -1).mean(axis=1)


@pytest.fixture(scope="module")
def run(tiny_run):
    return stce_jax.load_run(tiny_run[0])


@pytest.fixture(scope="module")
def evaluated(tiny_run, stce_here, tmp_path_factory):
    """(the command's output, the directory it wrote) of ten views of each of the digits."""
    output = tmp_path_factory.mktemp("evaluation")
    done = stce_here("evaluate", f"--workdir={tiny_run[0]}", "--tta=crops,flip", f"--output={output}")
    assert done.returncode == 0, done.stderr
    return done.stdout, output


@pytest.mark.slow
def test_ten_views_of_a_split_are_averaged_as_probabilities(run, data_dir, evaluated):
    text, output = evaluated
    source = open_dataset("digits", data_dir).val
    images = [decode_image(source[index]["image"], "") for index in range(len(source))]
    expected = in_numpy(run, images, ("flip", "crops"))
    with np.load(output / "predictions.npz") as saved:
        np.testing.assert_allclose(np.exp(saved["logits"]), expected, rtol=2e-5, atol=1e-7)
        labels = saved["labels"]
    found = json.loads((output / "evaluation.json").read_text())
    assert found["top1"] == pytest.approx(np.mean(expected.argmax(axis=1) == labels))
    assert found["loss"] == pytest.approx(-np.log(expected[np.arange(360), labels]).mean(), rel=1e-5)
    assert "affinity_entropy" in found["metrics"] and "test-time augmentation flip,crops: means of" in text


@pytest.mark.slow
def test_an_augmented_evaluation_is_taken_for_no_plain_one(evaluated, tmp_path):
    """By reproduce's cells and by model cards; tests/verbs/test_compare.py has compare."""
    _, output = evaluated
    assert json.loads((output / "evaluation.json").read_text())["tta"] == "flip,crops"
    cell = cell_of(load_rows("table6", "smoke")[0], 0, tmp_path)
    finish(cell, [1, 0])
    assert cell.finished()
    finish(cell, [1, 0], tta="flip")
    assert not cell.finished(), "reproduce would report an augmented accuracy"
    found = json.loads((output / "evaluation.json").read_text())
    (tmp_path / "run" / "evaluation").mkdir(parents=True)
    (tmp_path / "run" / "evaluation" / "evaluation.json").write_text(json.dumps(found))
    assert _evaluation(tmp_path / "run", 90, False) is None, "a model card would show it"
    found["tta"] = ""
    (tmp_path / "run" / "evaluation" / "evaluation.json").write_text(json.dumps(found))
    assert _evaluation(tmp_path / "run", 90, False)["top1"] == found["top1"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Images that are wider, taller and smaller than the views."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number, shape in enumerate([(40, 30), (20, 50), (12, 12)]):
        Image.fromarray(random.integers(0, 256, (*shape, 3)).astype(np.uint8)).save(root / f"{number}.png")
    return sorted(map(str, root.iterdir()))


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("flip",), ("crops",)])
def test_files_are_predicted_by_the_mean_of_their_views(kinds, tiny_run, run, pictures):
    records = list(predict(pictures, tiny_run[0], topk=10, tta=kinds[0]))
    expected = in_numpy(run, [pixels_of(path) for path in pictures], kinds)
    for record, probabilities in zip(records, expected, strict=True):
        found = [one["probability"] for one in sorted(record["classes"], key=lambda one: one["id"])]
        np.testing.assert_allclose(found, probabilities, rtol=2e-5, atol=1e-7)
        assert record["tta"] == kinds[0]


@pytest.mark.slow
def test_predictions_of_the_command_say_that_they_are_augmented(tiny_run, pictures, tmp_path, capsys):
    words = ("predict", pictures[0], f"--workdir={tiny_run[0]}", "--topk=1", "--tta=flip", f"--csv={tmp_path}/a.csv")
    code, out, _ = run_cli(capsys, *words, f"--json={tmp_path}/a.json")
    assert code == 0 and out.splitlines()[-1].startswith("test-time augmentation flip: probabilities are means")
    (record,) = json.loads((tmp_path / "a.json").read_text())
    (row,) = csv.DictReader((tmp_path / "a.csv").read_text().splitlines())
    assert record["tta"] == row["tta"] == "flip"


def test_crops_are_of_a_square_that_is_larger_than_a_view():
    """224 of 256 pixels, or of more where the evaluation's own crop is smaller; AlexNet's corners and centre."""
    view = {"size": 224, "fraction": 0.875, "interpolation": "bicubic"}
    assert square(("crops",), view) == view | {"size": 256, "fraction": 1.0} and square(("flip",), view) is view
    assert square(("crops",), view | {"fraction": 0.5})["size"] == 448
    corners = [(0, 0, 0), (0, 32, 0), (32, 0, 0), (32, 32, 0), (16, 16, 0)]
    assert list(cuts(("crops",), view).places) == corners
    assert list(cuts(("flip", "crops"), view).places) == corners + [(*place[:2], 1) for place in corners]
    assert cuts(("flip",), view).places == ((0, 0, 0), (0, 0, 1)) and cuts((), view) is None
    counted = [count(kinds) for kinds in ((), ("flip",), ("crops",), ("flip", "crops"))]
    assert counted == [1, *(len(cuts(kinds, view).places) for kinds in (("flip",), ("crops",), ("flip", "crops")))]


@pytest.mark.parametrize("text", ["mirror", "flip,flip", "flip,", "FLIP", "crops,flip,ten"])
def test_other_kinds_are_refused_before_anything_is_read(text):
    assert parse("crops,flip") == parse("flip,crops") == ("flip", "crops") and parse("") == ()
    for function in (lambda: evaluate("nowhere", tta=text), lambda: predict("nowhere", "nowhere", tta=text)):
        with pytest.raises(ConfigError, match=r"^tta is .*; it must be flip, crops, or flip,crops for both$"):
            function()
