"""RandAugment: the policy's text, what magnitudes mean, how often what is drawn, and the pictures, against Pillow."""

import functools
import io
import math
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from collectives import Program
from PIL import Image
from pillow_reference import FILL, PILLOW, assert_equal_or_close, pillow, synthetic_images, timm_amount

from stce_jax.errors import ConfigError
from stce_jax.recipe import drawn as by_draw
from stce_jax.recipe import rand_augment
from stce_jax.recipe.policy import WEIGHTS, Policy, parse_policy
from stce_jax.recipe.rand_augment import OPERATIONS
from stce_jax.training.mesh import batch_sharding, make_mesh

DEIT = "rand-m9-mstd0.5-inc1"
DRAWS = 20_000
SIZE = (37, 53)
INEXACT = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


@functools.cache
def drawn(text):
    """Draws for many keys: arrays [DRAWS, n]."""
    policy = parse_policy(text)
    keys = jax.random.split(jax.random.key(0), DRAWS)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda key: rand_augment.draw(key, policy=policy)))(keys))


def p_of_counts(values, shares):
    """p of a chi-square test that whole numbers 0.. occur with the given shares."""
    counts = np.bincount(np.ravel(values), minlength=len(shares))
    return scipy.stats.chisquare(counts, np.asarray(shares) * counts.sum()).pvalue


# --- the policy's text


@pytest.mark.parametrize(
    "text, policy",
    [
        (DEIT, Policy(operations=2, magnitude=9, deviation=0.5, max_magnitude=10, increasing=True, probability=0.5)),
        ("rand", Policy(operations=2, magnitude=10, deviation=0, max_magnitude=10, increasing=False, weighted=False)),
        ("rand-n3-m7-inc0-p0.25", Policy(operations=3, magnitude=7, increasing=False, probability=0.25)),
        (
            "rand-p1-inc1-mmax15-m12-n1",
            Policy(operations=1, magnitude=12, max_magnitude=15, increasing=True, probability=1),
        ),
        ("rand-m9-mstd101", Policy(magnitude=9, deviation=math.inf)),
        ("rand-m9-mstd100", Policy(magnitude=9, deviation=100)),
        ("rand-mmax8", Policy(magnitude=8, max_magnitude=8)),
        ("rand-w0", Policy(weighted=True)),
        ("rand-m0-mstd.5", Policy(magnitude=0, deviation=0.5)),
    ],
)
def test_policies_are_read(text, policy):
    assert parse_policy(text) == policy


@pytest.mark.parametrize(
    "text, named",
    [
        ("", "''"),
        ("augmix-m3", "'augmix-m3'"),
        ("rand-x3", "'x3'"),
        ("rand-m", "'m'"),
        ("rand-m9-mstdx", "'mstdx'"),
        ("rand-m9--inc1", "''"),
        ("rand-m-9", "'m'"),
        ("rand-m9-m8", "'m'"),
        ("rand-m11", "'m'"),
        ("rand-n0", "'n'"),
        ("rand-n1.5", "'n'"),
        ("rand-n14-w0", "'n'"),
        ("rand-p1.5", "'p'"),
        ("rand-inc2", "'inc'"),
        ("rand-w1", "'w'"),
        ("rand-m9-increasing1", "'increasing1'"),
    ],
)
def test_others_are_refused_in_one_line_that_names_the_option(text, named):
    with pytest.raises(ConfigError) as caught:
        parse_policy(text)
    assert named in str(caught.value) and "\n" not in str(caught.value), caught.value


# --- what magnitudes mean


@pytest.mark.slow
@pytest.mark.parametrize("increasing", [True, False], ids=["inc1", "inc0"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_magnitudes_mean_what_they_do_in_timm(name, increasing):
    magnitudes = np.float32([*range(11), 12, 15, *np.random.default_rng(0).uniform(0, 10, 50)])
    signs = np.float32([-1, 1])
    found = amounts(OPERATIONS.index(name), magnitudes[:, None], signs, increasing)
    for row, magnitude in enumerate(magnitudes):
        for column, sign in enumerate(signs):
            expected = timm_amount(name, magnitude, sign, increasing, 37, 53)
            if name == "posterize":
                expected = max(expected, 0)  # timm goes on below 0 bits where the magnitude may exceed 10
            what = f"{name} of magnitude {magnitude} x {sign}"
            np.testing.assert_allclose(found[row, column], expected, rtol=1e-5, atol=1e-6, err_msg=what)


@functools.partial(jax.jit, static_argnums=3)
def amounts(operation, magnitudes, signs, increasing):
    amount = functools.partial(rand_augment.amount, increasing=increasing, height=37, width=53)
    one = jnp.vectorize(lambda magnitude, sign: amount(operation, magnitude=magnitude, sign=sign))
    return one(magnitudes, signs)


def test_magnitude_9_is_the_papers_table():
    """A few numbers worked out by hand for rand-m9-inc1 on 224 x 224 pixels."""
    expected = {"rotate": 27, "posterize": 1, "solarize": 26, "solarize_add": 99, "color": 1.81, "shear_x": 0.27}
    expected |= {"translate_x": 0.405 * 224, "translate_y": 0.405 * 224, "sharpness": 1.81, "invert": 0}
    for name, number in expected.items():
        found = rand_augment.amount(
            OPERATIONS.index(name), magnitude=jnp.float32(9), sign=1.0, increasing=True, height=224, width=224
        )
        np.testing.assert_allclose(found, number, rtol=1e-5, err_msg=name)


# --- how often what is drawn


def test_the_operations_are_the_papers_fifteen():
    assert len(OPERATIONS) == len(set(OPERATIONS)) == 15
    assert set(OPERATIONS) == set(PILLOW) - {"grayscale", "gaussian_blur"}


def test_operations_are_drawn_alike_with_replacement_and_independently():
    operation = drawn(DEIT).operation
    assert operation.shape == (DRAWS, 2)
    p = p_of_counts(operation[:, 0] * 15 + operation[:, 1], np.full(225, 1 / 225))
    assert p > 1e-3, f"not all 15 x 15 pairs are equally likely: p = {p:.1e}"


@pytest.mark.slow
@pytest.mark.parametrize("text, probability", [(DEIT, 0.5), ("rand-p0.2", 0.2), ("rand-p0", 0.0), ("rand-p1", 1.0)])
def test_each_is_applied_with_its_probability_independently(text, probability):
    applied = drawn(text).applied
    one = [1 - probability, probability]
    expected = np.outer(one, one).ravel()
    found = np.bincount(2 * applied[:, 0] + applied[:, 1], minlength=4) / DRAWS
    margin = 4 * np.sqrt(expected * (1 - expected) / DRAWS)
    assert (np.abs(found - expected) <= margin).all(), f"none, second, first, both: {found}, not {expected}"


def test_magnitudes_are_normal_and_clipped():
    magnitude = drawn(DEIT).magnitude
    assert magnitude.min() >= 0 and magnitude.max() == 10
    normal = scipy.stats.norm(9, 0.5)
    for slot in range(2):
        share, expected = (magnitude[:, slot] == 10).mean(), normal.sf(10)
        assert abs(share - expected) < 4 * np.sqrt(expected / DRAWS), f"{share:.4f} clipped, not {expected:.4f}"
        inner = magnitude[:, slot][magnitude[:, slot] < 10]
        p = scipy.stats.kstest(inner, lambda x: normal.cdf(x) / normal.cdf(10)).pvalue
        assert p > 1e-3, f"not N(9, 0.5) below 10: p = {p:.1e}"
    correlation = np.corrcoef(magnitude.T)[0, 1]
    assert abs(correlation) < 4 / np.sqrt(DRAWS), f"an image's magnitudes correlate: {correlation:.3f}"


@pytest.mark.slow
def test_magnitudes_without_deviation_are_constant_and_with_an_infinite_one_uniform():
    assert (drawn("rand-m7").magnitude == 7).all()
    p = scipy.stats.kstest(drawn("rand-m8-mstd101").magnitude[:, 0], scipy.stats.uniform(0, 8).cdf).pvalue
    assert p > 1e-3, f"not uniform over 0..8: p = {p:.1e}"
    wide = drawn("rand-m12-mstd50-mmax15").magnitude
    assert wide.min() == 0 and wide.max() == 15, "clipped otherwise than to 0..mmax"


def test_signs_are_even_and_independent_of_the_operation():
    draws = drawn(DEIT)
    assert set(np.unique(draws.sign)) == {-1, 1}
    p = p_of_counts(draws.operation * 2 + (draws.sign > 0), np.full(30, 1 / 30))
    assert p > 1e-3, f"signs are uneven: p = {p:.1e}"


def test_weighted_draws_are_without_replacement():
    operation = drawn("rand-n2-w0").operation
    assert (operation[:, 0] != operation[:, 1]).all(), "an operation is drawn twice"
    weights = np.array([WEIGHTS.get(name, 0) for name in OPERATIONS])
    weights = weights / weights.sum()
    second = (weights[:, None] * weights / (1 - weights[:, None]) * (1 - np.eye(15))).sum(axis=0)
    for slot, shares in enumerate((weights, second)):
        drawable = shares > 0
        assert set(np.unique(operation[:, slot])) <= set(np.flatnonzero(drawable)), "one of weight 0 is drawn"
        counts = np.bincount(operation[:, slot], minlength=15)[drawable]
        p = scipy.stats.chisquare(counts, shares[drawable] / shares.sum() * DRAWS).pvalue
        assert p > 1e-3, f"operation {slot + 1} is not drawn by the weights: p = {p:.1e}"


# --- the pictures


# At 30 degrees places lie halfway between two pixels, and rounding decides. As LLVM compiles for users, not for tests.
AS_SHIPPED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}


@functools.partial(jax.jit, compiler_options=AS_SHIPPED)
@functools.partial(jax.vmap, in_axes=(None, 0, 0))
def applied(image, operation, amount):
    return rand_augment.apply(image, operation=operation, amount=amount, fill=FILL)


@pytest.mark.slow
@pytest.mark.parametrize("increasing", [True, False], ids=["inc1", "inc0"])
def test_each_operation_is_pillows_over_the_whole_range(increasing):
    cases = [(name, m, sign) for name in OPERATIONS for m in (0.0, 2.7, 6.1, 9.3, 10.0) for sign in (-1, 1)]
    numbers = np.array([OPERATIONS.index(name) for name, _, _ in cases])
    values = np.float32([timm_amount(name, m, sign, increasing, *SIZE) for name, m, sign in cases])
    for what, image in synthetic_images(*SIZE).items():
        for found, value, (name, m, sign) in zip(applied(image, numbers, values), values, cases, strict=True):
            expected = pillow(name, image, value)
            label = f"{name} of magnitude {m} x {sign} on {what}"
            assert_equal_or_close(np.asarray(found), expected, name not in INEXACT, label)


@pytest.mark.slow
def test_none_of_the_operations_changes_nothing():
    for what, image in synthetic_images(*SIZE).items():
        found = np.asarray(applied(image, np.full(150, -1), np.linspace(-30, 256, 150, dtype=np.float32)))
        assert (found == image).all(), f"{what} is changed"


@functools.partial(jax.jit, static_argnums=2)
def augmented(keys, image, policy):
    """(pictures, draws) for many keys; the draws are made anew, as the second time must give the same."""
    pictures = jax.vmap(lambda key: rand_augment.rand_augment(key, image, policy=policy, fill=FILL))(keys)
    return pictures, jax.vmap(lambda key: rand_augment.draw(key, policy=parse_policy(policy)))(keys)


def check_chains(image, policy, count, what):
    """Every picture is the one that Pillow's calls give one after the other."""
    pictures, draws = augmented(jax.random.split(jax.random.key(count), count), image, policy)
    draws = jax.tree.map(np.asarray, draws)
    increasing = parse_policy(policy).increasing
    for place, picture in enumerate(np.asarray(pictures)):
        expected, chain = image, []
        for operation, used, magnitude, sign in zip(*(each[place] for each in draws), strict=True):
            if used:
                name = OPERATIONS[operation]
                amount = np.float32(timm_amount(name, magnitude, sign, increasing, *image.shape[:2]))
                chain.append(f"{name} {amount:.4f}")
                expected = pillow(name, expected, amount)
        exact = not any(part.split()[0] in INEXACT for part in chain)
        assert_equal_or_close(picture, expected, exact, f"{' then '.join(chain) or 'nothing'} on {what}")


@pytest.mark.slow
@pytest.mark.parametrize("policy", [DEIT, "rand-m6-mstd101-n3-p1"])
@pytest.mark.parametrize("what", ["noise", "narrow", "one flat channel"])
def test_chains_are_pillows_on_made_up_images(what, policy):
    check_chains(synthetic_images(*SIZE)[what], policy, 100, what)


@pytest.mark.slow
@pytest.mark.parametrize("place, policy", [(7, DEIT), (400, "rand-m10-mstd101-inc1-p1")])
def test_chains_are_pillows_on_photographs(place, policy, test_data):
    with zipfile.ZipFile(test_data / "data" / "imagenet_samples.zip") as archive:
        names = sorted(each for each in archive.namelist() if "one_per_class/" in each and each.endswith(".JPEG"))
        image = Image.open(io.BytesIO(archive.read(names[place]))).convert("RGB").resize((131, 97))
    check_chains(np.asarray(image), policy, 60, names[place])


@pytest.mark.slow
def test_pictures_without_probability_are_untouched_and_a_policy_is_checked():
    image = synthetic_images(*SIZE)["noise"]
    assert (np.asarray(augmented(jax.random.split(jax.random.key(0), 8), image, "rand-p0")[0]) == image).all()
    with pytest.raises(ConfigError, match="'z1'"):
        rand_augment.rand_augment(jax.random.key(0), image, policy="rand-z1", fill=FILL)


# --- each image by the part that it drew alone

WILD = "rand-m6-mstd101-n3-p1"


def noise(batch, height, width):
    return np.random.default_rng(batch).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)


def in_form(chosen, policy=DEIT):
    """(keys, images) -> pictures, where `sorted_operations` is `chosen`."""

    def augmented(keys, images):
        with rand_augment.sorted_operations(chosen):
            return jax.vmap(functools.partial(rand_augment.rand_augment, policy=policy, fill=FILL))(keys, images)

    return augmented


def check_forms(keys, images, policy=DEIT, **options):
    sorts, plain = (np.asarray(jax.jit(in_form(form, policy), **options)(keys, images)) for form in (True, False))
    np.testing.assert_array_equal(sorts, plain)
    return plain


def test_images_computed_by_what_they_drew_are_the_same_to_the_bit():
    """In three groups of 32 images; and nearly every one is changed."""
    keys, images = jax.random.split(jax.random.key(3), 96), noise(96, 13, 10)
    changed = (check_forms(keys, images, WILD) != images).any(axis=(1, 2, 3))
    assert changed.mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy, batch, devices",
    [
        (DEIT, 1, 8),
        (DEIT, 100, 8),
        ("rand-m9-inc1-n1-w0-p1", 64, 8),
        ("rand-p0", 32, 8),
        (WILD, 101, 1),
        ("rand-m10-mstd101-inc1-p1", 3, 1),
    ],
)
def test_so_they_are_for_other_policies_and_batches(policy, batch, devices, monkeypatch):
    """On one device a batch is one group."""
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    check_forms(jax.random.split(jax.random.key(4), batch), noise(batch, 9, 14), policy)


@pytest.mark.slow
def test_so_they_are_as_compilers_optimize_for_users():
    """Every rotation, and at the angles at which rounding decides; compilers may not round them in two ways."""
    angles = np.float32([*np.linspace(-30, 30, 61), 29.037786, -28.716305, 24.37006])
    operation, images = np.full(64, OPERATIONS.index("rotate")), noise(64, 224, 224)

    def turned(chosen):
        with rand_augment.sorted_operations(chosen):
            apply = functools.partial(rand_augment.apply, fill=FILL)
            one = jax.vmap(lambda image, number, angle: apply(image, operation=number, amount=angle))
            return np.asarray(jax.jit(one, compiler_options=AS_SHIPPED)(images, operation, angles))

    np.testing.assert_array_equal(turned(True), turned(False))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [256, 40])
def test_devices_keep_their_images_where_each_has_whole_groups(batch):
    """They agree on how often five loops run, 4 bytes each; parts that are no groups cost more, but are right."""
    keys, images = jax.random.split(jax.random.key(5), batch), noise(batch, 8, 9)
    mesh = make_mesh(2, jax.devices())
    assert mesh.size == 8
    split = jax.device_put((keys, images), batch_sharding(mesh))
    compiled = jax.jit(in_form(True)).lower(*split).compile()
    np.testing.assert_array_equal(compiled(*split), jax.jit(in_form(False))(keys, images))
    if batch % (8 * by_draw.GROUP) == 0:
        sent = [(kind, size) for kind, size, _ in Program(compiled.as_text()).collectives()]
        assert {kind for kind, _ in sent} == {"all-reduce"}, f"devices send each other {sent}"
        assert sum(size for _, size in sent) == 5 * 4, f"devices send each other {sent}"
        assert not compiled.output_shardings.is_fully_replicated


def test_one_image_and_batches_of_batches_are_computed_alike():
    keys, images = jax.random.split(jax.random.key(6), 6), noise(6, 8, 9)
    expected = check_forms(keys, images, WILD)
    nested = jax.jit(jax.vmap(in_form(True, WILD)))(keys.reshape(2, 3), images.reshape(2, 3, 8, 9, 3))
    np.testing.assert_array_equal(nested.reshape(6, 8, 9, 3), expected)
    alone = jax.jit(functools.partial(rand_augment.rand_augment, policy=WILD, fill=FILL))(keys[4], images[4])
    np.testing.assert_array_equal(alone, expected[4])


@pytest.mark.parametrize(
    "platform, devices, processes, batch, chosen, sorts",
    [
        ("cpu", 1, 1, 5, None, True),
        ("cpu", 8, 1, 256, None, True),
        ("cpu", 8, 1, 128, None, False),
        ("cpu", 2, 2, 64, None, False),
        ("cuda", 1, 1, 64, None, False),
        ("cuda", 1, 1, 64, True, True),
        ("cpu", 1, 1, 5, False, False),
    ],
)
def test_it_is_the_default_where_it_was_measured(monkeypatch, platform, devices, processes, batch, chosen, sorts):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    monkeypatch.setattr(jax, "process_count", lambda: processes)

    def applied(images, operation, amount):
        with rand_augment.sorted_operations(chosen):
            one = functools.partial(rand_augment.apply, fill=FILL)
            return jax.vmap(lambda *of: one(of[0], operation=of[1], amount=of[2]))(images, operation, amount)

    shapes = [((batch, 8, 8, 3), jnp.uint8), ((batch,), jnp.int32), ((batch,), jnp.float32)]
    traced = jax.jit(applied).trace(*(jax.ShapeDtypeStruct(*each) for each in shapes))
    assert ("stablehlo.sort" in traced.lower(lowering_platforms=(platform,)).as_text()) == sorts


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_those_that_drew_it_are_changed_once_and_others_never(share, devices, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    images, amount = noise(64, 2, 3), np.arange(64, dtype=np.uint8)
    drew = np.random.default_rng(0).random(64) < share

    def add(image, amount):
        return image + amount

    found = by_draw.where_drawn(add, jnp.asarray(drew), jnp.asarray(images), amount=jnp.asarray(amount))
    np.testing.assert_array_equal(found, images + (amount * drew)[:, None, None, None])
    assert by_draw.where_drawn(add, jnp.zeros(0, bool), jnp.asarray(images[:0]), amount=amount[:0]).shape == (
        0,
        2,
        3,
        3,
    )
