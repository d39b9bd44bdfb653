"""`stce features`: exactly what the head reads, or the tokens before it."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from helpers import run_cli
from PIL import Image

import stce_jax
from stce_jax.errors import ConfigError, DataError
from stce_jax.models.factory import create_model
from stce_jax.verbs.features import features


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve images of several sizes."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number in range(12):
        pixels = random.integers(0, 256, (16 + 2 * number, 24, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{number:02}.png")
    return root


@pytest.fixture(scope="module")
def run(tiny_run):
    return stce_jax.load_run(tiny_run[0])


def inputs(run, photos):
    return np.stack([run.preprocess(photos / f"{number:02}.png") for number in range(12)])


def of_model(run, photos, **options):
    return np.asarray(jax.jit(lambda x: run.model.apply(run.variables, x, train=False, **options))(inputs(run, photos)))


@pytest.mark.slow
def test_pooled_features_are_what_the_head_reads(tiny_run, run, photos):
    found = features(photos, tiny_run[0], batch_size=8)
    assert found["names"].tolist() == [str(photos / f"{number:02}.png") for number in range(12)]
    assert found["features"].shape == (12, 16) and found["features"].dtype == np.float32
    head = run.variables["params"]["head"]
    logits = found["features"] @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(logits, of_model(run, photos), rtol=1e-5, atol=1e-5)
    assert set(found) == {"names", "features"}


@pytest.mark.slow
def test_tokens_are_the_last_blocks_row_by_row(tiny_run, run, photos):
    found = features(photos, tiny_run[0], kind="tokens", batch_size=5)
    tokens = of_model(run, photos, method="tokens")
    assert found["grid"].tolist() == [2, 2] and found["features"].shape == (12, 4, 16)
    np.testing.assert_allclose(found["features"], tokens[:, 1:], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["class_token"], tokens[:, 0], rtol=1e-5, atol=1e-5)
    pooled = features(photos, tiny_run[0])["features"]
    np.testing.assert_allclose(found["class_token"], pooled, rtol=1e-5, atol=1e-5, err_msg="the head reads it")


@pytest.mark.slow
def test_models_without_class_token_average_their_tokens(run, photos, monkeypatch):
    """In bfloat16, too, where the head reads rounded numbers."""
    options = {"width": 8, "depth": 1, "heads": 1, "mlp_dim": 8, "pooling": "mean", "dtype": "bfloat16"}
    model = create_model("vit_s_patch", num_classes=3, image_size=16, **options)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), inputs(run, photos))
    variables["params"]["head"]["bias"] = np.arange(3, dtype=np.float32)
    own = dataclasses.replace(run, model=model, variables=variables)
    monkeypatch.setattr("stce_jax.training.assemble.load_run", lambda *_: own)
    pooled, tokens = features(photos, "any")["features"], features(photos, "any", kind="tokens")
    assert set(tokens) == {"names", "features", "grid"} and pooled.shape == (12, 8)
    np.testing.assert_allclose(pooled, tokens["features"].mean(axis=1), atol=0.02, err_msg="not their mean")
    np.testing.assert_array_equal(pooled, pooled.astype("bfloat16").astype(np.float32), err_msg="not as the head reads")
    head = variables["params"]["head"]
    logits = pooled @ np.asarray(head["kernel"]) + head["bias"]
    np.testing.assert_allclose(logits, of_model(own, photos), atol=0.02)


@pytest.mark.slow
def test_the_moving_average_and_the_checkpoint_count(tiny_run, photos):
    found = [
        features(photos, tiny_run[0], *words)["features"] for words in ((), (45,), ("45",))
    ] + [features(photos, tiny_run[0], ema=True)["features"]]  # fmt: skip
    np.testing.assert_array_equal(found[1], found[2])
    assert not np.allclose(found[0], found[1]) and not np.allclose(found[0], found[3])


@pytest.mark.slow
def test_the_command_writes_what_python_returns(tiny_run, photos, tmp_path, capsys):
    output = tmp_path / "tokens.npz"
    (photos / "13.png").write_text("no image")
    try:
        words = (photos, f"--workdir={tiny_run[0]}", "--kind=tokens", f"--output={output}")
        code, out, error = run_cli(capsys, "features", *words)
        kept = features(photos, tiny_run[0], kind="tokens", unreadable=lambda error: None)
        with pytest.raises(DataError, match=r"13\.png"):
            features(photos, tiny_run[0])
    finally:
        (photos / "13.png").unlink()
    assert code == 3 and f"cannot decode {photos}/13.png" in error and "1 of 13 images" in error
    assert out == f"{output}: names 12, features 12x4x16, grid 2, class_token 12x16\n"
    with np.load(output, allow_pickle=False) as saved:
        assert set(saved.files) == set(kept)
        for name in saved.files:
            np.testing.assert_array_equal(saved[name], kept[name], err_msg=name)
    assert list(tmp_path.iterdir()) == [output], "something half written was left"


def test_refusals(tiny_run, photos, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("no image")
    output = tmp_path / "features.npz"
    output.write_bytes(b"old")
    cases = [
        ((tmp_path / "none",), 3, "there is no"),
        ((tmp_path / "text.jpg",), 3, "none of the 1 images can be read"),
        ((photos, "--kind=words"), 2, "--kind"),
        ((photos, "--output=/no/where/features.npz"), 2, "give another file"),
        ((photos, "--batch_size=-1"), 2, "batch_size"),
    ]
    for words, code, named in cases:
        found, out, error = run_cli(capsys, "features", f"--workdir={tiny_run[0]}", f"--output={output}", *words)
        assert (found, out) == (code, "") and named in error.splitlines()[-1], f"{words}: {found} {error}"
    assert output.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2, "something was written"
    with pytest.raises(ConfigError, match="no kind of features 'words'"):
        features(photos, tiny_run[0], kind="words")
