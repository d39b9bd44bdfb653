"""The format huggingface: the card is filled in and says what is true, anybody's text in it means nothing."""

import json
import os
import re

import numpy as np
import pytest
import yaml
from made_runs import TINY_VIT, logits_of, made_run, random_pixels
from PIL import Image

from stce_jax.convert import card, formats
from stce_jax.convert.initial import read_weights
from stce_jax.convert.markdown import code, quoted
from stce_jax.verbs.export import _evaluation
from stce_jax.workdir.meta import IMPORTED
from stce_jax.workdir.weights import flatten

DEIT = {"patch_size": 8, **TINY_VIT}
NASTY = ("plain", "[x](javascript:alert(1))", "a|b", "tick ` and ``", "<script>x</script>\n---\nlicense: mit")
KNOWN = {
    "fingerprint": "0123abc",
    "during_training": {"top1": 0.5, "top5": 0.9, "loss": 1.25},
    "evaluation": {
        "images": 200,
        "top1": 0.75,
        "top5": 1.0,
        "split": "val",
        "dataset": "di`g",
        "interval": (0.686, 0.805),
    },
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(directory, run, card's metadata, card's text, what was said)."""
    values = {"init_from": "/home/me/secret/start.safetensors", "data_dir": "/home/me/images"}
    run = made_run("deit_ti", class_names=NASTY, config_values=values, **DEIT)
    directory = tmp_path_factory.mktemp("out")
    options = {"license": "cc-by-4.0", "include": ("timm",), "known": KNOWN}
    done = formats.write("huggingface", directory, run, ema=True, **options)
    _, front, text = (directory / "README.md").read_text().split("---\n", 2)
    return directory, run, yaml.safe_load(front), text, done


def test_the_folder(written):
    directory, run, _, _, done = written
    assert sorted(os.listdir(directory)) == ["README.md", "SHA256SUMS", "model.json", "model.safetensors", "timm"]
    assert "timm/config.json" in (directory / "SHA256SUMS").read_text()
    assert json.loads((directory / "timm" / "config.json").read_text())["pretrained_cfg"]["license"] == "cc-by-4.0"
    assert any(note.startswith("timm/: logits by ") for note in done["notes"])
    found, line = read_weights(str(directory / "model.safetensors"), run.variables, run.model, run.class_ids)
    assert "head of the same 5 classes" in line
    for name, array in flatten(run.variables).items():
        assert found[name].tobytes() == array.tobytes(), name


def test_the_metadata(written):
    _, _, front, _, _ = written
    assert front["library_name"] == "stce_jax" and front["pipeline_tag"] == "image-classification"
    assert front["license"] == "cc-by-4.0" and front["metrics"] == ["accuracy"] and "deit" in front["tags"]
    (entry,) = front["model-index"]
    (result,) = entry["results"]
    assert result["task"]["type"] == "image-classification" and result["dataset"]["name"] == "digits"
    assert result["metrics"] == [{"type": "accuracy", "value": 0.75, "name": "top-1"}]


def test_the_text(written):
    _, run, _, text, _ = written
    count = sum(array.size for name, array in flatten(run.variables).items() if name.startswith("params/"))
    for said in (
        f"{count:,} parameters, for images of 32x32 pixels and 5 classes",
        "at step 7, after 1.50 epochs; the weights are their moving average",
        "`0123abc`",
        "top-1 | 75.00% (95% interval 68.60 to 80.50)",
        "| `optimizer.weight_decay` | `0.05` |",
        "mean 0.4, 0.5, 0.45, standard deviation 0.2, 0.25, 0.3",
        "resize the short side to 40 pixels",
        "The weights: `cc-by-4.0`.",
        "began with other weights, `start.safetensors`",
        'timm.create_model("local-dir:timm", pretrained=True)',
        "doi     = {10.9728/dcs.2024.25.2.485}",
    ):
        assert said in text, said
    assert "secret" not in text and "/home" not in text, "a path of this machine"
    without_code = re.sub(r"(`+).*?(?<!`)\1(?!`)", "", text, flags=re.DOTALL)
    assert "javascript" not in without_code and "script>" not in without_code
    assert "\n---\nlicense" not in text


def test_the_example_of_the_card_works(written, tmp_path, monkeypatch, capsys):
    directory, run, _, text, _ = written
    pixels = random_pixels(1, 40)[0]
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    example = example.replace('".", "picture.jpg"', f"{str(directory)!r}, {str(tmp_path / 'picture.png')!r}")
    scope = {}
    exec(example, scope)
    np.testing.assert_allclose(scope["images"][0], run.preprocess(pixels), atol=1e-5)
    np.testing.assert_allclose(scope["logits"], logits_of(run, pixels[None, 4:36, 4:36]), atol=1e-4)
    assert capsys.readouterr().out.strip() == str(run.class_names[int(np.argmax(scope["logits"]))]).strip()


def test_the_card_of_imported_weights_does_not_say_that_they_were_trained_here():
    run = made_run("deit_ti", **DEIT)
    with run.config.unlocked():
        run.config.init_from = "/home/me/downloads/deit_of_others/"
    text = card.write_card(run, ema=False, weights="w", license="unknown", known={"fingerprint": IMPORTED}, include=())
    assert "Its weights are those of `deit_of_others`, imported with stce_jax" in text and "/home/me" not in text
    assert text.count("Not known: these weights were imported.") == 2
    assert "trained with stce_jax" not in text and "rand_augment" not in text and "fingerprint" not in text


def test_without_a_licence_or_a_measurement_the_card_says_so():
    run = made_run("deit_ti", classes=130, **DEIT)
    text = card.write_card(run, ema=False, weights="w", license="unknown", known={}, include=())
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "unknown" and "model-index" not in front
    assert "Nobody has said under which licence" in text and "this checkpoint was not evaluated" in text
    assert "and 30 more, see `model.json`" in text and "began with other weights" not in text
    during = card.write_card(
        run, ema=False, weights="w", license="mit", known={**KNOWN, "evaluation": None}, include=("onnx",)
    )
    assert "| `top1` | 0.5 |" in during and "no interval is known" in during and "onnxruntime" in during


@pytest.mark.parametrize("text", ["", "`", "a`b``c", "x|y", " s ", "a\nb\x1b[31m", "\ud800", "é‮", "x" * 500])
def test_code_and_quoted_are_one_line_that_means_nothing(text):
    made = code(text)
    assert "\n" not in made and made.isprintable() and len(made) < 300
    fence = re.match("`+", made)[0]
    assert fence not in made[len(fence) : -len(fence)] and made.endswith(fence)
    loaded = yaml.safe_load(f"key: {quoted(text)}")["key"]
    assert loaded.isprintable() and (loaded == text or not text.isprintable() or len(text) > 200)


def test_an_evaluation_of_other_weights_or_a_damaged_one_is_not_taken(tmp_path):
    path = tmp_path / "evaluation" / "evaluation.json"
    assert _evaluation(tmp_path, 7, False) is None
    path.parent.mkdir()
    whole = {"step": 7, "ema": False, "reduction": "", "images": 200, "top1": 0.75, "top5": 1.0}
    whole |= {"split": "val", "dataset": "digits"}
    path.write_text(json.dumps(whole))
    found = _evaluation(tmp_path, 7, False)
    assert found["images"] == 200 and 0.68 < found["interval"][0] < 0.75 < found["interval"][1] < 0.82
    assert _evaluation(tmp_path, 8, False) is None and _evaluation(tmp_path, 7, True) is None
    for broken in ({"top1": None}, {"images": 0}, {"top1": 3.0}, {"images": 1e400}):
        path.write_text(json.dumps({**whole, **broken}))
        assert _evaluation(tmp_path, 7, False) is None, broken
    for text in ("", "[]", "{}", "[" * 100_000):
        path.write_text(text)
        assert _evaluation(tmp_path, 7, False) is None


def test_the_citation_is_the_readmes():
    from pathlib import Path

    assert card.CITATION in (Path(__file__).parents[3] / "README.md").read_text()
