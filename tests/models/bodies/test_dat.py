"""DAT against the golden numbers of its published code, its sizes, and what its options refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_bodies import check_body, count_parameters, flat
from golden_dat import activations, as_product, check_positions, golden_model

from stce_jax.analysis.costs import count_model, count_multiply_adds
from stce_jax.errors import ConfigError
from stce_jax.models.factory import create_model, list_models, model_options
from stce_jax.training.state import abstract_variables

TINY = {"widths": (8, 12), "heads": (2, 2), "kinds": ("S", "D"), "windows": (2, 2), "groups": (1, 2), "kernels": (3, 3)}
TINY |= {"strides": (1, 1), "offset_ranges": (2.0, 2.0), "mlp_ratio": 2, "drop_path": 0.0}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_model_equals_the_golden_numbers(dtype):
    arrays, model, variables, paths = golden_model("dat_v1_img64", dtype)
    gradients = {key.removeprefix("grad/"): array for key, array in arrays.items() if key.startswith("grad/")}
    expected = {
        "embedding/projection/kernel": as_product(gradients, "patch_proj.0")["kernel"],
        "blocks_4/attention/offset_depthwise/kernel": gradients["stages.2.attns.1.conv_offset.0.weight"].transpose(
            2, 3, 1, 0
        ),
        "blocks_4/attention/bias_table": gradients["stages.2.attns.1.rpe_table"],
    }
    single = dtype == np.float32
    check_body(arrays, model, variables, dtype, expected, activations={} if single else activations(arrays, paths))
    if not single:
        check_positions(arrays, model, variables, paths)


def test_the_published_size_has_its_parameters():
    model = create_model("dat_t", num_classes=1000)
    assert count_parameters(model, 224) == 28_319_138
    assert model.stage_grids(224, 224) == [(56, 56), (28, 28), (14, 14), (7, 7)]


@pytest.mark.slow
def test_the_published_size_has_its_multiply_adds():
    """Sampling is counted apart: as products here, while others, who gather, count nothing."""
    model = create_model("dat_t", num_classes=1000)
    every = count_model(model, 224)["multiply_adds"]
    variables = abstract_variables(model, 224)
    inputs = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    run = functools.partial(model.apply, train=False)
    sampling = count_multiply_adds(run, variables, inputs, scope="sampling")
    assert round((every - sampling) / 1e9, 2) == 4.56
    assert 0 < sampling / 1e9 < 0.2


def test_its_names_are_those_of_the_published_model_and_those_with_another_embedding():
    assert {"dat_t", "dat_t_stce", "dat_t_patch"} < set(list_models("dat_*"))
    assert model_options("dat_t")["patch_size"] == 4 and model_options("dat_t")["drop_path"] == 0.2


def tiny(image_size=16, **options):
    """(a tiny model, variables of noise, which need not be compiled)."""
    model = create_model("dat_t", num_classes=3, image_size=image_size, **{**TINY, **options})
    rng = np.random.default_rng(0)
    inputs = jnp.zeros((1, image_size, image_size, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), inputs, train=False))
    return model, jax.tree.map(lambda leaf: jnp.asarray(0.5 + 0.2 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


def images(*size, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, *size, 3)), jnp.float32)


@pytest.mark.slow
def test_any_image_size_and_embedding_and_bfloat16():
    model, variables = tiny(embedding="stce", stem_widths=(8,), stem_strides=(2,), cell=2, dtype="bfloat16")
    assert model.grid(37, 32) == (5, 4)
    tokens = jax.jit(lambda variables: model.apply(variables, images(37, 32), train=False, method="tokens"))(variables)
    assert tokens.grid == (5, 4) and tokens.values.dtype == jnp.bfloat16
    assert np.isfinite(tokens.values.astype(np.float32)).all()


@pytest.mark.slow
def test_drop_path_draws_paths_and_remat_changes_nothing():
    model, variables = tiny(drop_path=0.9)

    def loss(model, variables, key):
        return (model.apply(variables, images(16, 16), train=True, rngs={"dropout": key}) ** 2).sum()

    run = jax.jit(jax.grad(functools.partial(loss, model)))
    plain = run(variables, jax.random.key(1))
    again = jax.jit(jax.grad(functools.partial(loss, model.clone(remat=True))))(variables, jax.random.key(1))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5), plain, again)
    other = run(variables, jax.random.key(5))
    assert any(jax.tree.leaves(jax.tree.map(lambda one, other: bool((one != other).any()), plain, other)))


def test_samples_lie_within_their_range_of_the_grid():
    """And anywhere in the map without one."""
    model, _ = tiny()
    attention = model.bind({}).blocks[1].attention
    far = 100.0 * jnp.ones((1, 2, 4, 2))
    grid = np.stack(np.meshgrid([-0.5, 0.5], [-0.75, -0.25, 0.25, 0.75], indexing="ij"), axis=-1)[None]
    np.testing.assert_allclose(attention.positions(0.0 * far), grid, atol=1e-6)
    np.testing.assert_allclose(
        attention.positions(far), grid + np.array([1.0, 0.5]), atol=1e-6
    )  # two steps of 1/2 and 1/4
    np.testing.assert_allclose(attention.clone(offset_range=0.0).positions(far), 1.0, atol=1e-6)


def test_weights_of_another_image_size():
    (_, found), (model, expected) = tiny(16), tiny(32)
    found, expected = (
        {f"params/{key}": np.asarray(leaf) for key, leaf in flat(tree["params"]).items()} for tree in (found, expected)
    )
    table = "params/blocks_1/attention/bias_table"
    assert found[table].shape == (2, 3, 3) and expected[table].shape == (2, 7, 7)
    fitted, note = model.fit_weights(found, expected, None)
    assert {path: array.shape for path, array in fitted.items()} == {key: leaf.shape for key, leaf in expected.items()}
    assert note == "tables of relative positions interpolated"
    np.testing.assert_allclose(fitted[table].mean(axis=(1, 2)), found[table].mean(axis=(1, 2)), rtol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": ()}, "widths is (); it must be a list"),
        ({"heads": (3, 2)}, "width 8 cannot be divided among 3 heads"),
        ({"kinds": ("L",)}, "kinds has 1 entries, widths 2"),
        ({"kinds": ("L", "LN")}, "kinds is 'LN'; it must be a letter for each block, of L, S, D, such as 'LD'"),
        ({"kinds": ("", "D")}, "kinds is ''"),
        ({"kinds": (1, "D")}, "kinds is 1"),
        ({"windows": (0, 2)}, "windows is 0"),
        ({"groups": (1, 3)}, "2 heads of a stage with D cannot be divided among 3 groups"),
        ({"kernels": (3, 0)}, "kernels is 0"),
        ({"strides": (3, 0)}, "strides is 0"),
        ({"offset_ranges": (-1.0, 2.0)}, "offset_ranges is -1.0"),
        ({"mlp_ratio": 0}, "mlp_ratio is 0"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
        ({"reduction": "topk"}, "the body 'dat' takes no token reduction"),
        ({"image_size": 4}, "an image of 4x4 pixels is too small for 2 stages; 8x8 would work"),
    ],
)
def test_options_that_cannot_work_are_refused_in_one_line(options, message):
    with pytest.raises(ConfigError) as error:
        create_model("dat_t", num_classes=3, **{"image_size": 32, **TINY, **options})
    assert message in str(error.value) and "\n" not in str(error.value)
