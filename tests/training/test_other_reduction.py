"""Another token reduction for a trained model: what the word means, what the run's weights then compute, refusals."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import stce_jax
from stce_jax.errors import ConfigError
from stce_jax.models import factory, reductions
from stce_jax.models.reductions.topk import TopK
from stce_jax.training.assemble import describe
from stce_jax.training.other_reduction import only, parse, with_reduction
from stce_jax.workdir.config import load_config


class Weighted(TopK):
    """Has a parameter of its own."""

    @nn.compact
    def __call__(self, tokens, given, *, train):
        scale = self.param("scale", nn.initializers.ones, ())
        return super().__call__(tokens.with_values(tokens.values * scale), given, train=train)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", ("", {})),
        ("topk", ("topk", {})),
        ("tome:r=8", ("tome", {"r": 8})),
        ("topk:keep_rate=0.5,blocks=3,6,9", ("topk", {"keep_rate": 0.5, "blocks": (3, 6, 9)})),
        (
            "evit:blocks=3,6,fuse=False,counting=initial",
            ("evit", {"blocks": (3, 6), "fuse": False, "counting": "initial"}),
        ),
        ("tome:r=-1,curve=1e-3", ("tome", {"r": -1, "curve": 1e-3})),
    ],
)
def test_the_word(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text", [":", ":r=8", "topk:", "topk:3", "topk:r=", "topk:=3", "topk:r=1,r=2", "topk:r=1,", "none:r=1"]
)
def test_a_word_of_no_meaning_is_refused(text):
    with pytest.raises(
        ConfigError, match=r"give a name, a name with options such as topk:keep_rate=0.5,blocks=3,6, or"
    ):
        parse(text)


@given(st.text(alphabet="ab:=,.1-([{'\\\n", max_size=12))
def test_any_text_is_a_reduction_or_refused_in_one_line(text):
    try:
        name, options = parse(text)
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(name, str) and all(isinstance(option, str) for option in options)


def logits(run, images):
    return np.asarray(jax.jit(lambda variables, x: run.model.apply(variables, x, train=False))(run.variables, images))


@pytest.mark.slow
def test_a_run_computes_with_it_what_a_model_of_that_kind_does(tiny_run):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 16, 16, 3)), jnp.float32)
    run = stce_jax.load_run(tiny_run[0])
    reduced = stce_jax.load_run(tiny_run[0], reduction="topk:keep_rate=0.5,blocks=0")
    assert reduced.model.reduction == TopK(blocks=(0,), keep_rate=0.5) and reduced.config == run.config
    model = run.model.clone(reduction=TopK(blocks=(0,), keep_rate=0.5))
    expected = jax.jit(lambda variables, x: model.apply(variables, x, train=False))(run.variables, images)
    found = logits(reduced, images)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # With one block, class attention alone decides the logits; the tokens show what is left.
    left = jax.eval_shape(lambda x: reduced.model.apply(reduced.variables, x, train=False, method="tokens"), images)
    assert left.values.shape[1] == 1 + 2, "nothing is reduced"
    all_kept = stce_jax.load_run(tiny_run[0], reduction="evit:keep_rate=1.0,blocks=0")
    np.testing.assert_allclose(logits(all_kept, images), logits(run, images), atol=1e-5)
    assert stce_jax.load_run(tiny_run[0], reduction="none").model == run.model


@pytest.fixture(scope="module")
def trained():
    """(config, model, shapes of its variables) as of a run of two blocks."""
    config = load_config("digits:patch", ["--config.model.body.vit.depth=2"])
    return config, *describe(config, 10)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("tomee", "there is no reduction 'tomee'; there are topk, evit"),
        ("topk:keep_rat=0.5", "the reduction 'topk' has no option 'keep_rat'; its options are blocks, keep_rate"),
        ("topk:keep_rate=1.5,blocks=0", "keep_rate is 1.5; it must be above 0 and at most 1"),
        ("topk:keep_rate=much,blocks=0", "keep_rate is 'much'"),
        ("topk", "each of the reduction's blocks is 3; it must be a whole number between 0 and 1"),
        ("topk:", "the reduction is 'topk:'; give a name"),
        (
            "weighted:blocks=0",
            "the reduction 'weighted' has parameters that the run lacks, such as params/blocks_0/red",
        ),
    ],
)
def test_what_cannot_be_is_one_line(trained, monkeypatch, word, message):
    monkeypatch.setitem(reductions.REDUCTIONS, "weighted", Weighted)
    with pytest.raises(ConfigError) as refused:
        with_reduction(*trained, word)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_body_without_reductions_is_refused(trained, monkeypatch):
    body, fields = factory.BODIES["vit"], factory.dataclasses.fields
    monkeypatch.setattr(
        factory.dataclasses,
        "fields",
        lambda module: tuple(field for field in fields(module) if module is not body or field.name != "reduction"),
    )
    with pytest.raises(ConfigError, match="the body 'vit' takes no token reduction; leave out 'topk'"):
        with_reduction(*trained, "topk:blocks=0")


def test_a_reduction_with_parameters_can_be_taken_off(trained, monkeypatch):
    """And one that has the run's parameters can have other options; those that are not given are the run's."""
    monkeypatch.setitem(reductions.REDUCTIONS, "weighted", Weighted)
    config = trained[0].copy_and_resolve_references().unlock()
    config.model.reduction.name = "weighted"
    config.model.reduction.weighted = {"blocks": (0,), "keep_rate": 0.75}
    model, shapes = describe(config, 10)
    plain, wanted = with_reduction(config, model, shapes, "none")
    assert plain.reduction is None
    kept = only(shapes, wanted)
    assert "reduction" in shapes["params"]["blocks_0"] and "reduction" not in kept["params"]["blocks_0"]
    other, wanted = with_reduction(config, model, shapes, "weighted:keep_rate=0.25")
    assert other.reduction == Weighted(blocks=(0,), keep_rate=0.25)
    assert jax.tree.structure(wanted) == jax.tree.structure(shapes)


@pytest.mark.slow
def test_evaluate_and_predict_take_it(tiny_run, stce_here, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8)).save(tmp_path / "a.png")
    word = "--reduction=ats:keep_rate=0.5,blocks=0"
    done = stce_here("evaluate", f"--workdir={tiny_run[0]}", word, f"--output={tmp_path / 'evaluation'}")
    assert done.returncode == 0 and "tokens_block_0 " in done.stdout, done.stderr
    saved = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert saved["reduction"] == "ats:keep_rate=0.5,blocks=0" and saved["metrics"].keys() == {
        "affinity_entropy",
        "tokens_block_0",
    }
    probabilities = []
    for words in ((), (word,), ("--reduction=none",)):
        output = (f"--json={tmp_path / 'a.json'}", "--topk=10")
        done = stce_here("predict", tmp_path / "a.png", f"--workdir={tiny_run[0]}", *output, *words)
        assert done.returncode == 0, done.stderr
        (record,) = json.loads((tmp_path / "a.json").read_text())
        probabilities.append([one["probability"] for one in sorted(record["classes"], key=lambda one: one["id"])])
    assert probabilities[0] == probabilities[2]
    np.testing.assert_allclose(probabilities[1], probabilities[0], rtol=1e-5)  # of one block: class attention decides
    for words in (("evaluate",), ("predict", tmp_path / "a.png")):
        done = stce_here(*words, f"--workdir={tiny_run[0]}", "--reduction=tomee")
        assert done.returncode == 2 and done.stderr.startswith("stce: there is no reduction 'tomee'"), done.stderr
