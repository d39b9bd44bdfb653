"""The training and the evaluation step: the same on any devices, equal to what they are when written by hand."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference
import optax
import pytest
from flax import linen as nn

from stce_jax.errors import ConfigError
from stce_jax.models.factory import create_model
from stce_jax.recipe.augment import make_augment
from stce_jax.recipe.optimizers import make_optimizer
from stce_jax.recipe.schedules import make_schedule
from stce_jax.training.mesh import batch_sharding, make_mesh, state_shardings
from stce_jax.training.state import TrainState, abstract_variables, init_state
from stce_jax.training.step import check_accumulation, make_eval_step, make_train_step, run_key

SEED, CLASSES, SIZE, BATCH, EMA_DECAY = 3, 10, 16, 16, 0.9
MODEL = create_model(
    "vit_ti_stce",
    num_classes=CLASSES,
    image_size=SIZE,
    width=16,
    depth=2,
    heads=2,
    mlp_dim=32,
    stem_widths=(8, 16),
    stem_strides=(2, 2),
    cell=2,
    drop_path=0.2,
)
AUGMENT = make_augment(
    CLASSES,
    mean=(0.5, 0.4, 0.6),
    std=(0.25, 0.3, 0.2),
    flip=0.5,
    shift=0,
    mixup=1.0,
    cutmix=0.0,
    switch_probability=0.5,
    label_smoothing=0.1,
    rand_augment="",
    three_augment=False,
    color_jitter=0.0,
    erase=0.0,
    erase_area=(0.02, 1 / 3),
    erase_ratio=(0.3, 3.3),
)
# Some gradients (the keys' biases) are zero but for rounding. Adam would blow that up to the size of the others; an
# epsilon between the two does not.
ADAMW = {"weight_decay": 0.05, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-5, "clip_norm": 1.0}
OPTIMIZER = make_optimizer(
    make_schedule(peak=5e-3, warmup_from=1e-3, final=1e-4, warmup_steps=4, total_steps=200), **ADAMW
)
LEARNING_RATE = 0.1
SGD = optax.sgd(LEARNING_RATE)  # compiles faster, where the optimizer does not matter
pytestmark = pytest.mark.usefixtures("eight_devices", "everything_is_split")
TOPOLOGIES = {"1 device": (1, 1), "8 devices": (8, 1), "fsdp 2": (8, 2), "fsdp 8": (8, 8)}


def host(tree):
    """A copy on the host."""
    return jax.tree.map(np.array, tree)


def make_batch(seed, rows=BATCH):
    """Noise that brightens from row to row: each device's share has statistics of its own."""
    rng = np.random.default_rng(seed)
    brightness = np.linspace(0.1, 1.0, rows).reshape(rows, 1, 1, 1)
    images = (brightness * rng.integers(0, 256, (rows, SIZE, SIZE, 3))).astype(np.uint8)
    return {"image": images, "label": rng.integers(0, CLASSES, rows).astype(np.int32)}


def assert_trees_close(actual, expected, what, **tolerance):
    pairs = zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True)
    for (path, left), right in pairs:
        np.testing.assert_allclose(left, right, err_msg=f"{what}: {jax.tree_util.keystr(path)}", **tolerance)


def assert_same_bits(actual, expected, what):
    pairs = zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True)
    for (path, left), right in pairs:
        same = np.asarray(left).tobytes() == np.asarray(right).tobytes()
        assert same, f"{what}: {jax.tree_util.keystr(path)} differs"


class Topology:
    """The tiny STCE-ViT's training step on some devices, compiled once."""

    def __init__(self, name, initial):
        devices, fsdp = TOPOLOGIES[name]
        self.mesh = make_mesh(fsdp, jax.devices()[:devices])
        self._initial = initial
        self._run = None
        self._key = run_key(SEED, self.mesh)
        self.train_step = make_train_step(
            MODEL,
            OPTIMIZER,
            AUGMENT,
            ema_decay=EMA_DECAY,
            accumulate=1,
            deterministic=False,
            state=initial,
            mesh=self.mesh,
        )

    def step(self, state, batch):
        return self.train_step(state, batch, self._key)

    def place(self, state):
        return jax.device_put(state, state_shardings(state, self.mesh))

    def initial(self):
        return self.place(self._initial)

    def batch(self, seed=0):
        return jax.device_put(make_batch(seed), batch_sharding(self.mesh))

    def six_steps(self):
        """(losses, state) after six steps from the initial state, each on a batch of its own."""
        if self._run is None:
            state, losses = self.initial(), []
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message=".*donated.*")  # buffers that could not be reused
                for step in range(6):
                    state, metrics = self.step(state, self.batch(step))
                    losses.append(float(metrics["loss"]))
            self._run = losses, state
        return self._run


@pytest.fixture(scope="module")
def born():
    """The initial state as `init_state` makes it on eight devices, split over all of them."""
    return init_state(MODEL, OPTIMIZER, seed=SEED, image_size=SIZE, with_ema=True, mesh=make_mesh(8))


@pytest.fixture(scope="module")
def topologies(born):
    return {name: Topology(name, host(born)) for name in TOPOLOGIES}


@pytest.fixture(scope="module")
def one(topologies):
    return topologies["1 device"]


class Toy(nn.Module):
    """Compiles in a moment: the engine does not care what it trains."""

    dropout: float = 0.0
    batch_norm: bool = True

    @nn.compact
    def __call__(self, images, *, train):
        features = nn.Dense(8)(images.reshape(len(images), -1))
        if self.batch_norm:
            features = nn.BatchNorm(use_running_average=not train, momentum=0.9)(features)
        features = nn.Dropout(self.dropout)(features, deterministic=not train)
        return nn.Dense(CLASSES)(features)


def plain_augment(key, step, images, labels):
    del key, step
    return images / 255.0, jax.nn.one_hot(labels, CLASSES)


def noisy_augment(key, step, images, labels):
    noise = jax.random.normal(jax.random.fold_in(key, step), images.shape)
    return images / 255.0 + noise, jax.nn.one_hot(labels, CLASSES)


# --- devices


@pytest.mark.slow
@pytest.mark.parametrize("name", ["8 devices", "fsdp 2", "fsdp 8"])
def test_training_does_not_depend_on_the_devices(topologies, name):
    losses, state = topologies[name].six_steps()
    expected_losses, expected = topologies["1 device"].six_steps()
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5, err_msg=f"losses of six steps, {name} against one")
    assert len(set(losses)) == 6 and np.isfinite(losses).all(), losses
    assert int(state.step) == 6
    assert_trees_close(state.variables, expected.variables, "variables after six steps", rtol=1e-4, atol=1e-5)
    assert_trees_close(state.ema, expected.ema, "their average", rtol=1e-4, atol=1e-5)


def shares(tree, parts):
    """How many arrays are split into that many parts, and the share of all numbers that one device holds."""
    held = total = split = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.addressable_shards[0].data.shape
        assert {shard.data.shape for shard in leaf.addressable_shards} == {shape}, "devices hold unequal parts"
        held, total = held + np.prod(shape), total + leaf.size
        split += np.prod(shape) * parts == leaf.size and parts > 1
    return split, held / total


@pytest.mark.slow
@pytest.mark.parametrize("name, parts", [("8 devices", 1), ("fsdp 2", 2), ("fsdp 8", 8)])
def test_fsdp_splits_the_whole_state_and_it_stays_split(topologies, name, parts):
    _, state = topologies[name].six_steps()
    for what, tree in (("variables", state.variables), ("optimizer", state.optimizer), ("average", state.ema)):
        split, share = shares(tree, parts)
        assert 1 / parts <= share < 1 / parts + 0.05, f"one of {parts} devices holds {share:.0%} of the {what}"
        assert (split > 20) == (parts > 1), f"{split} arrays of the {what} are split into {parts} parts"
    kernel = state.variables["params"]["blocks_0"]["mlp"]["in"]["kernel"]
    assert kernel.shape == (16, 32)
    assert [shard.data.shape for shard in kernel.addressable_shards] == [(16, 32 // parts)] * 8


@pytest.mark.slow
def test_parameters_are_born_sharded(born):
    expected = state_shardings(born, make_mesh(8))
    for (path, leaf), sharding in zip(jax.tree.leaves_with_path(born), jax.tree.leaves(expected), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim), jax.tree_util.keystr(path)
    split, share = shares(born, 8)
    assert split > 60 and share < 1 / 8 + 0.05
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract_variables(MODEL, SIZE))
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), born.variables)
    assert_same_bits(born.ema, born.variables, "the average does not start at the variables")
    assert int(born.step) == 0


@pytest.mark.slow
def test_batch_norm_keeps_the_global_batchs_statistics(topologies):
    """Against NumPy over the whole batch, for the first module, whose input is known."""
    topology = topologies["8 devices"]
    initial = topology.initial()
    params = host(initial.variables["params"])["embedding"]["module_1"]["convolution"]
    augment_key, _ = draws(SEED, 0)
    batch = make_batch(0)
    images, _ = jax.jit(AUGMENT)(augment_key, 0, batch["image"], batch["label"])
    features = numpy_reference.convolution(np.asarray(images, float), params["kernel"], 2, 1) + params["bias"]
    features = numpy_reference.gelu(features)  # [B, H, W, C]
    state, _ = topology.step(initial, topology.batch(0))
    running = host(state.variables["batch_stats"]["embedding"]["module_1"]["norm"])
    variance = features.var(axis=(0, 1, 2))
    local = features.reshape(8, 2, *features.shape[1:]).var(axis=(1, 2, 3)).mean(axis=0)  # of each device's two images
    assert np.abs(local - variance).max() > 0.01, "the test cannot tell local from global statistics"
    np.testing.assert_allclose(running["mean"], 0.1 * features.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(running["var"], 0.9 + 0.1 * variance, rtol=1e-5)


def test_the_step_compiles_once(one):
    one.six_steps()
    assert one.train_step._cache_size() == 1, "six like steps were compiled more than once"


def test_the_step_is_traced_for_the_devices_that_compute_it_and_no_others(one):
    jaxpr = one.train_step.trace(one.initial(), one.batch(), run_key(SEED, one.mesh)).jaxpr
    assert "conv_general_dilated" in str(jaxpr) and "platform_index" not in str(jaxpr)


def test_the_old_state_is_donated(one):
    state = one.initial()
    jax.block_until_ready(one.step(state, one.batch()))
    kept = [jax.tree_util.keystr(path) for path, leaf in jax.tree.leaves_with_path(state) if not leaf.is_deleted()]
    assert not kept, f"these buffers of the old state are still held: {kept}"


# --- against a step written by hand


def step_by_hand(model, optimizer, before, images, targets, rngs):
    """(loss, logits, variables, optimizer state, gradients) of one step, with nothing of `engine.step` in it."""

    def cross_entropy(params):
        variables = {"params": params, "batch_stats": before.variables["batch_stats"]}
        logits, updates = model.apply(variables, images, train=True, rngs=rngs, mutable=["batch_stats"])
        log_probabilities = logits - jnp.log(jnp.exp(logits).sum(axis=1, keepdims=True))
        return -(targets * log_probabilities).sum(axis=1).mean(), (logits, updates["batch_stats"])

    params = before.variables["params"]
    (loss, (logits, statistics)), gradients = jax.value_and_grad(cross_entropy, has_aux=True)(params)
    changes, optimizer_state = optimizer.update(gradients, before.optimizer, params)
    variables = {"params": optax.apply_updates(params, changes), "batch_stats": statistics}
    return loss, logits, variables, optimizer_state, gradients


def assert_step_equals(after, metrics, before, targets, expected):
    loss, logits, variables, optimizer_state, gradients = expected
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-6)
    norm = np.sqrt(sum(np.square(np.asarray(leaf, float)).sum() for leaf in jax.tree.leaves(gradients)))
    assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-5)
    assert float(metrics["skipped"]) == 0.0
    assert_trees_close(after.variables, variables, "variables", rtol=1e-5, atol=1e-6)
    assert_trees_close(after.optimizer, optimizer_state, "optimizer", rtol=1e-4, atol=1e-6)
    changes = jax.tree.map(lambda new, old: np.abs(new - old).max(), variables["params"], before.variables["params"])
    assert max(jax.tree.leaves(changes)) > 1e-3, "the step is too small for this test to tell anything"
    ranked = np.argsort(-np.asarray(logits), axis=1)
    hits = ranked == np.asarray(targets).argmax(axis=1)[:, None]  # against each image's heaviest target
    assert float(metrics["top1"]) == pytest.approx(hits[:, 0].mean())
    assert float(metrics["top5"]) == pytest.approx(hits[:, :5].any(axis=1).mean())
    assert int(after.step) == int(before.step) + 1


def draws(seed, step):
    """(the augmentation's key, the model's rngs): every draw comes from (seed, step)."""
    augment_key, dropout_key = jax.random.split(jax.random.key(seed))
    return augment_key, {"dropout": jax.random.fold_in(dropout_key, step)}


@pytest.mark.slow
def test_a_step_of_the_vision_transformer_equals_one_written_by_hand(one):
    """Compiled apart from the augmentation, for one device and with nothing donated."""
    state = one.initial()
    for step in range(3):  # away from the beginning, where moments are zero
        state, _ = one.step(state, one.batch(step))
    before = host(state)
    after, metrics = one.step(state, one.batch(3))
    augment_key, rngs = draws(SEED, 3)
    batch = make_batch(3)
    images, targets = jax.jit(AUGMENT)(augment_key, 3, batch["image"], batch["label"])
    by_hand = jax.jit(step_by_hand, static_argnums=(0, 1))
    assert_step_equals(after, metrics, before, targets, by_hand(MODEL, OPTIMIZER, before, images, targets, rngs))


@pytest.mark.slow
def test_a_step_equals_one_written_by_hand_without_any_compilation():
    mesh, model = make_mesh(1, jax.devices()[:1]), Toy(dropout=0.5)
    state = init_state(model, SGD, seed=0, image_size=SIZE, with_ema=False, mesh=mesh)
    train_step = make_train_step(
        model,
        SGD,
        plain_augment,
        ema_decay=EMA_DECAY,
        accumulate=1,
        deterministic=False,
        state=state,
        mesh=mesh,
    )
    state, _ = train_step(state, make_batch(0), run_key(SEED, mesh))
    before = host(state)
    after, metrics = train_step(state, make_batch(1), run_key(SEED, mesh))
    _, rngs = draws(SEED, 1)
    images, targets = plain_augment(None, 1, *make_batch(1).values())
    assert_step_equals(after, metrics, before, targets, step_by_hand(model, SGD, before, images, targets, rngs))


def test_the_average_follows_variables_and_statistics(one):
    state = one.initial()
    mean = jax.tree.map(lambda leaf: leaf.astype(np.float64), host(state.variables))
    for step in range(3):
        state, _ = one.step(state, one.batch(step))
        new = host(state.variables)
        mean = jax.tree.map(lambda old, new: EMA_DECAY * old + (1 - EMA_DECAY) * new, mean, new)
    assert set(state.ema) == {"params", "batch_stats"}
    assert_trees_close(state.ema, mean, "the average after three steps", rtol=1e-5, atol=1e-7)
    moved = jax.tree.map(
        lambda average, raw: float(np.abs(average - raw).max()), host(state.ema), host(state.variables)
    )
    assert all(value > 0 for value in jax.tree.leaves(moved["batch_stats"])), "the statistics are not averaged"


def test_one_batch_can_be_learned_by_heart(one):
    """Labels read the same backwards, so that mixup, whose partner is the reversed batch, changes no target."""
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(8), np.arange(8)[::-1]]).astype(np.int32)
    colours = rng.integers(0, 256, (8, 1, 1, 3))[labels]
    images = (0.9 * colours + 0.1 * rng.integers(0, 256, (BATCH, SIZE, SIZE, 3))).astype(np.uint8)
    batch = jax.device_put({"image": images, "label": labels}, batch_sharding(one.mesh))
    state, history = one.initial(), []
    for _ in range(120):
        state, metrics = one.step(state, batch)
        history.append({name: float(value) for name, value in metrics.items()})
    first, last = history[0], {name: np.mean([step[name] for step in history[-10:]]) for name in history[0]}
    assert first["loss"] > 2.0 and last["loss"] < 1.0, f"the loss only fell from {first['loss']} to {last['loss']}"
    assert last["top1"] > 0.9, f"{last['top1']:.0%} of the one batch are classified correctly"


# --- steps that are not finite


class Fragile(nn.Module):
    """Its gradient is NaN where an image is black, its loss finite: a length's gradient at 0 is 0 / 0."""

    batch_norm: bool

    @nn.compact
    def __call__(self, images, *, train):
        features = nn.Dense(8, use_bias=False)(images.reshape(len(images), -1))
        lengths = jnp.sqrt(jnp.square(features).sum(axis=1, keepdims=True))
        if self.batch_norm:
            features = nn.BatchNorm(use_running_average=not train, momentum=0.9)(features)
        return nn.Dense(CLASSES)(jnp.concatenate([features, lengths], axis=1))


NAN_IMAGE, INFINITE_LOSS, NAN_GRADIENT = -1, -2, -3  # labels that cause them, one image is enough


def breaking_augment(key, step, images, labels):
    """As `noisy_augment`, breaking the images that are labelled for it."""
    images, targets = noisy_augment(key, step, images, labels)
    kinds = labels[:, None, None, None]
    images = jnp.where(kinds == NAN_IMAGE, jnp.nan, jnp.where(kinds == NAN_GRADIENT, 0.0, images))
    return images, jnp.where(labels[:, None] == INFINITE_LOSS, jnp.inf, targets)


# devices, fsdp, whether an average is kept, whether there is BatchNorm, micro-batches
BREAKABLE = {
    "1 device": (1, 1, True, True, 1),
    "8 devices": (8, 1, True, True, 1),
    "fsdp 8": (8, 8, True, True, 1),
    "micro-batches": (8, 2, True, True, 2),
    "no average, no BatchNorm": (8, 1, False, False, 1),
}


@pytest.fixture(scope="module", params=BREAKABLE.values(), ids=BREAKABLE)
def breakable(request):
    """(mesh, state of step 0 on the host, train step) of a model that can be broken."""
    devices, fsdp, with_ema, batch_norm, accumulate = request.param
    mesh, model = make_mesh(fsdp, jax.devices()[:devices]), Fragile(batch_norm)
    state = init_state(model, OPTIMIZER, seed=0, image_size=SIZE, with_ema=with_ema, mesh=mesh)
    train_step = make_train_step(
        model,
        OPTIMIZER,
        breaking_augment,
        ema_decay=EMA_DECAY,
        accumulate=accumulate,
        deterministic=False,
        state=state,
        mesh=mesh,
    )
    return mesh, host(state), train_step


@pytest.mark.slow
@pytest.mark.parametrize("fault", [NAN_IMAGE, INFINITE_LOSS, NAN_GRADIENT], ids=["image", "loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_steps_number(breakable, fault):
    """One image of sixteen is broken, on one device and in one micro-batch; all devices decide alike."""
    mesh, initial, train_step = breakable
    key = run_key(SEED, mesh)

    def take(state, batch):
        placed = jax.device_put(state, state_shardings(state, mesh))
        state, metrics = train_step(placed, jax.device_put(batch, batch_sharding(mesh)), key)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(placed)), "the old state is not donated"
        return state, {name: float(value) for name, value in metrics.items()}

    before, metrics = take(initial, make_batch(0))
    assert metrics["skipped"] == 0.0 and np.isfinite(list(metrics.values())).all(), metrics
    before = host(before)
    broken = make_batch(1)
    broken["label"][-1] = fault
    after, metrics = take(before, broken)
    assert metrics["skipped"] == 1.0, f"the step was applied, with {metrics}"
    assert np.isfinite(metrics["loss"]) == (fault == NAN_GRADIENT), metrics
    assert not np.isfinite(metrics["gradient_norm"]), metrics
    assert int(after.step) == int(before.step) + 1, "the step's number must go on: the data's place follows from it"
    assert_same_bits(after.replace(step=before.step), before, "a skipped step")
    assert optax.tree_utils.tree_get_all_with_path(after.optimizer, "count"), "the test compares no counts"

    after_next, metrics = take(after, make_batch(2))
    never_broken, _ = take(before.replace(step=np.int32(2)), make_batch(2))
    assert metrics["skipped"] == 0.0 and np.isfinite(list(metrics.values())).all(), metrics
    assert_same_bits(after_next, never_broken, "the step after a skipped one")
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), host(after_next.variables), before.variables)
    assert min(jax.tree.leaves(moved)) > 0, "the step after a skipped one trains nothing"


class Large(nn.Module):
    """One array that is larger than a processor's nearest memory."""

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(CLASSES)(nn.Dense(1000)(images.reshape(len(images), -1)))


@pytest.mark.slow
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_the_update_passes_once_over_what_it_changes_and_copies_nothing(clip_norm):
    """On CPUs. Two moments, parameters with their decay, and the average: each is written where it lay.

    Before that, clipping makes another gradient.
    """
    optimizer = make_optimizer(lambda step: 1e-3, **ADAMW | {"clip_norm": clip_norm})
    mesh, model = make_mesh(1, jax.devices()[:1]), Large()
    state = init_state(model, optimizer, seed=0, image_size=SIZE, with_ema=True, mesh=mesh)
    train_step = make_train_step(model, optimizer, plain_augment, ema_decay=EMA_DECAY, state=state, mesh=mesh)
    jax.config.update("jax_disable_most_optimizations", False)  # as users compile
    try:
        program = train_step.lower(state, make_batch(0), run_key(SEED, mesh)).compile()
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    passes = re.findall(r"= f32\[768,1000\]\S* (fusion|copy)\(", program.as_text())
    gradients = 2 if clip_norm else 1
    assert passes == ["fusion"] * (3 + gradients), f"what the program does with whole arrays of parameters: {passes}"
    large = 4 * 768 * 1000  # bytes
    assert program.memory_analysis().temp_size_in_bytes < (0.5 + gradients) * large, "more than gradients is held"


# --- micro-batches

ROWS = 64  # in a batch that is accumulated: eight a device
PATCH = create_model(
    "vit_ti_patch", num_classes=CLASSES, image_size=SIZE, width=16, depth=2, heads=2, mlp_dim=32, patch_size=4
)


@pytest.fixture(scope="module")
def accumulating():
    """The patch model's compiled steps on eight devices, by number of micro-batches, with losses and state of six."""
    mesh = make_mesh(1)
    state = init_state(PATCH, OPTIMIZER, seed=SEED, image_size=SIZE, with_ema=True, mesh=mesh)
    initial, batches = host(state), [jax.device_put(make_batch(n, ROWS), batch_sharding(mesh)) for n in range(6)]
    runs = {}
    for accumulate in (1, 2, 4):
        train_step = make_train_step(
            PATCH,
            OPTIMIZER,
            AUGMENT,
            ema_decay=EMA_DECAY,
            accumulate=accumulate,
            deterministic=False,
            state=state,
            mesh=mesh,
        )
        state = jax.device_put(initial, state_shardings(initial, mesh))
        key = run_key(SEED, mesh)
        compiled, history = train_step.lower(state, batches[0], key).compile(), []
        for batch in batches:
            state, metrics = compiled(state, batch, key)
            history.append(host(metrics))
        runs[accumulate] = compiled, history, state
    return runs


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_add_up_to_the_batch(accumulating, accumulate):
    """Without BatchNorm, dropout and drop path."""
    (_, expected_history, expected), (_, history, state) = accumulating[1], accumulating[accumulate]
    for name in ("loss", "gradient_norm", "top1", "top5", "skipped"):
        actual, wanted = ([metrics[name] for metrics in steps] for steps in (history, expected_history))
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, err_msg=f"{name} of six steps")
    assert len({metrics["loss"].item() for metrics in history}) == 6
    assert_trees_close(state.variables, expected.variables, "variables after six steps", rtol=1e-4, atol=1e-5)
    assert_trees_close(state.ema, expected.ema, "their average", rtol=1e-4, atol=1e-5)


def test_the_activations_of_one_micro_batch_are_held(accumulating):
    held = {number: compiled.memory_analysis().temp_size_in_bytes for number, (compiled, *_) in accumulating.items()}
    assert held[2] < 0.75 * held[1] and held[4] < 0.75 * held[2], f"temporary bytes by number of micro-batches: {held}"


def rows_travel(compiled):
    """The instructions of a compiled program that send rows from device to device."""
    return re.findall(r"\b(?:all-to-all|collective-permute)(?:-start)?\(", compiled.as_text())


def test_devices_work_on_rows_of_their_own(accumulating):
    for accumulate, (compiled, *_) in accumulating.items():
        expected = rows_travel(accumulating[1][0])  # mixup's: an image's partner may be anywhere
        assert len(rows_travel(compiled)) == len(expected), f"rows travel to be split into {accumulate} micro-batches"
    rows = jax.device_put(np.zeros((ROWS, 3), np.float32), batch_sharding(make_mesh(1)))
    split = jax.NamedSharding(make_mesh(1), jax.P(None, ("data", "fsdp")))
    neighbours = jax.jit(lambda rows: rows.reshape(4, -1, 3), out_shardings=split).lower(rows).compile()
    assert rows_travel(neighbours), "the test does not see rows travel that must"


@pytest.mark.slow
def test_each_micro_batch_has_statistics_and_draws_of_its_own():
    """Against a plain loop: mixing comes before splitting, statistics one after another, draws from the number."""
    mesh, model, count = make_mesh(2), Toy(dropout=0.5), 4
    state = init_state(model, SGD, seed=0, image_size=SIZE, with_ema=False, mesh=mesh)
    train_step = make_train_step(
        model,
        SGD,
        AUGMENT,
        ema_decay=EMA_DECAY,
        accumulate=count,
        deterministic=False,
        state=state,
        mesh=mesh,
    )
    key = run_key(SEED, mesh)
    state, _ = train_step(state, jax.device_put(make_batch(0, ROWS), batch_sharding(mesh)), key)
    before, batch = host(state), make_batch(1, ROWS)
    after, metrics = train_step(state, jax.device_put(batch, batch_sharding(mesh)), key)

    augment_key, rngs = draws(SEED, 1)
    images, targets = jax.jit(AUGMENT)(augment_key, 1, batch["image"], batch["label"])
    unmixed = 0.9 * np.eye(CLASSES)[batch["label"]] + 0.01
    assert np.abs(targets - unmixed).max() > 0.1, "nothing is mixed, so that the test cannot tell when"
    statistics, all_gradients, losses, hits = before.variables["batch_stats"], [], [], []
    for number in range(count):
        own = before.replace(variables=before.variables | {"batch_stats": statistics})
        rows = slice(number, None, count)
        own_rngs = {"dropout": jax.random.fold_in(rngs["dropout"], number)}
        loss, logits, variables, _, gradients = step_by_hand(model, SGD, own, images[rows], targets[rows], own_rngs)
        statistics = variables["batch_stats"]
        all_gradients.append(gradients)
        losses.append(float(loss))
        hits.append(np.mean(logits.argmax(axis=1) == targets[rows].argmax(axis=1)))
    assert float(metrics["loss"]) == pytest.approx(np.mean(losses), rel=1e-6)
    assert float(metrics["top1"]) == pytest.approx(np.mean(hits))
    assert_trees_close(after.variables["batch_stats"], statistics, "running statistics", rtol=1e-5, atol=1e-6)
    expected = jax.tree.map(
        lambda old, *gradients: old - LEARNING_RATE * sum(gradients) / count, before.variables["params"], *all_gradients
    )
    assert_trees_close(after.variables["params"], expected, "parameters", rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "batch_size, accumulate, devices, fitting",
    [(32, 3, 8, 2), (32, 8, 8, 4), (16, 4, 8, 2), (24, 2, 8, 1), (60, 7, 1, 6), (8, 2, 8, 1)],
)
def test_micro_batches_that_devices_cannot_share_are_refused(batch_size, accumulate, devices, fitting):
    mesh = make_mesh(1, jax.devices()[:devices])
    share = batch_size // devices
    message = (
        f"accumulate {accumulate} does not divide the {share} images that each of {devices} devices gets of "
        f"batch_size {batch_size}; {fitting} does"
    )
    with pytest.raises(ConfigError, match=f"^{message}$"):
        check_accumulation(batch_size, accumulate, mesh)
    check_accumulation(batch_size, fitting, mesh)


# --- draws


def test_every_draw_comes_from_the_seed_and_the_step(one):
    """Mixup, flips and stochastic depth are on; a copied state takes the same step to the bit."""
    _, state = one.six_steps()
    state = host(state)
    runs = [one.step(one.place(state), one.batch(9)) for _ in range(2)]
    assert_same_bits(*runs, "the same step taken twice")
    later = state.replace(step=np.int32(int(state.step) + 1))
    _, metrics = one.step(one.place(later), one.batch(9))
    assert float(metrics["loss"]) != float(runs[0][1]["loss"]), "two steps draw the same"
    assert one.train_step._cache_size() == 1


def toy_step(model, augment=plain_augment, *, seed=0, with_ema=False):
    """(state, metrics) after the first step."""
    mesh = make_mesh(1, jax.devices()[:1])
    state = init_state(model, SGD, seed=0, image_size=SIZE, with_ema=with_ema, mesh=mesh)
    train_step = make_train_step(
        model, SGD, augment, ema_decay=EMA_DECAY, accumulate=1, deterministic=False, state=state, mesh=mesh
    )
    return train_step(state, jax.device_put(make_batch(0), batch_sharding(mesh)), run_key(seed, mesh))


@pytest.mark.slow
@pytest.mark.parametrize(
    "model, augment", [(Toy(dropout=0.5), plain_augment), (Toy(), noisy_augment)], ids=["dropout", "augmentation"]
)
def test_the_seed_decides(model, augment):
    first, again, other = (toy_step(model, augment, seed=seed) for seed in (0, 0, 1))
    assert_same_bits(first, again, "the same seed, traced anew")
    assert float(first[1]["loss"]) != float(other[1]["loss"]), "two seeds draw the same"


def test_another_seed_compiles_nothing(one):
    """It is a value like any other, not a part of the program."""
    _, expected = one.step(one.initial(), one.batch())
    _, metrics = one.train_step(one.initial(), one.batch(), run_key(SEED + 1, one.mesh))
    assert float(metrics["loss"]) != float(expected["loss"]), "two seeds draw the same"
    assert one.train_step._cache_size() == 1, "another seed was compiled for"


@pytest.mark.slow
def test_initial_parameters_depend_on_the_seed_and_not_on_the_devices():
    states = {
        (seed, fsdp): init_state(
            Toy(), SGD, seed=seed, image_size=SIZE, with_ema=False, mesh=make_mesh(fsdp, jax.devices()[:fsdp])
        )
        for seed, fsdp in ((0, 1), (0, 8), (1, 1))
    }
    kernels = {key: np.asarray(state.variables["params"]["Dense_0"]["kernel"]) for key, state in states.items()}
    np.testing.assert_array_equal(kernels[0, 1], kernels[0, 8])
    assert (kernels[0, 1] != kernels[1, 1]).mean() > 0.99, "two seeds give the same parameters"
    assert len(states[0, 8].variables["params"]["Dense_0"]["kernel"].addressable_shards) == 8


def test_without_an_average_there_is_none():
    state, metrics = toy_step(Toy(), with_ema=False)
    assert state.ema is None and int(state.step) == 1 and np.isfinite(float(metrics["loss"]))


@pytest.mark.slow
def test_a_model_without_batch_norm_has_no_statistics():
    state, _ = toy_step(Toy(batch_norm=False), with_ema=True)
    assert set(state.variables) == set(state.ema) == {"params"}


# --- evaluation


class Lookup(nn.Module):
    """Gives the row of a table that the image's first number names: any logits at all."""

    rows: int
    classes: int
    trained: bool = False

    @nn.compact
    def __call__(self, images, *, train):
        assert train == self.trained, "evaluation must not train, and training must"
        table = self.param("table", nn.initializers.zeros, (self.rows, self.classes))
        return table[images[:, 0, 0, 0].astype(int)]


def numbered(rows):
    """Images whose first number is their row."""
    images = np.zeros((rows, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(rows)
    return images


def evaluate(logits, labels, weights, devices=1):
    """The sums of the evaluation step over a batch with these logits."""
    logits = np.asarray(logits, np.float32)
    rows, classes = logits.shape
    batch = {"image": numbered(rows), "label": np.asarray(labels, np.int32), "weight": np.asarray(weights, np.float32)}
    mesh = make_mesh(1, jax.devices()[:devices])
    batch = jax.device_put(batch, batch_sharding(mesh))
    step = make_eval_step(Lookup(rows, classes), lambda images: images.astype(jnp.float32), mesh=mesh)
    sums = step({"params": {"table": logits}}, batch)
    return {name: float(value) for name, value in sums.items()}


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("classes", [2, 3, 5, 6, 10])
def test_evaluation_equals_numpy(classes, devices):
    rng = np.random.default_rng(classes)
    logits = rng.normal(size=(40, classes))
    labels, weights = rng.integers(0, classes, 40), np.ones(40)
    hits = np.argsort(-logits, axis=1)[:, :5] == labels[:, None]
    losses = -np.log(numpy_reference.softmax(logits))[np.arange(40), labels]
    expected = {"loss": losses.sum(), "top1": hits[:, 0].sum(), "top5": hits.sum(), "count": 40}
    assert evaluate(logits, labels, weights, devices) == pytest.approx(expected, rel=1e-5)
    if classes <= 5:
        assert expected["top5"] == 40, "among five classes every label is among the first five"


def test_training_counts_hits_of_the_heaviest_target_and_not_of_the_label():
    """They differ where mixup gives an image less than half of its own."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, 10)).astype(np.float32)
    targets = rng.dirichlet(np.ones(10), 40).astype(np.float32)
    targets[:12] = np.eye(10)[logits[:12].argmax(axis=1)]  # a dozen hits at least
    mesh, model = make_mesh(1, jax.devices()[:1]), Lookup(40, 10, trained=True)
    variables = {"params": {"table": logits}}
    state = TrainState(np.int32(0), variables, SGD.init(variables["params"]), None)

    def augment(key, step, images, labels):
        return images, targets

    train_step = make_train_step(
        model, SGD, augment, ema_decay=0.0, accumulate=1, deterministic=False, state=state, mesh=mesh
    )
    labels = logits.argmin(axis=1).astype(np.int32)  # not one of them is hit
    _, metrics = train_step(state, {"image": numbered(40), "label": labels}, run_key(0, mesh))
    hits = np.argsort(-logits, axis=1) == targets.argmax(axis=1)[:, None]
    assert float(metrics["top1"]) == pytest.approx(hits[:, 0].mean()) and hits[:, 0].sum() >= 12
    assert float(metrics["top5"]) == pytest.approx(hits[:, :5].any(axis=1).mean())


def test_images_of_weight_0_are_not_there():
    """Whatever they show and whatever their label: not even a NaN of theirs gets into the sums."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(8, 10)), rng.integers(0, 10, 8)
    alone = evaluate(logits[:5], labels[:5], np.ones(5))
    weights = (np.arange(8) < 5).astype(float)
    assert evaluate(logits, labels, weights) == pytest.approx(alone, rel=1e-6)
    logits[5], logits[6, 3] = np.nan, np.inf
    labels[7] = -1  # no class at all
    assert evaluate(logits, labels, weights) == pytest.approx(alone, rel=1e-6)


def test_logits_that_are_no_numbers_are_never_right():
    """A diverged model would otherwise score with the first class."""
    logits = np.full((10, 10), np.nan)
    sums = evaluate(logits, np.arange(10), np.ones(10))
    assert (sums["top1"], sums["top5"]) == (0, 0), f"a model that answers NaN has {sums['top1']:.0f} of 10 right"
    logits = np.zeros((10, 10))
    logits[:, 4] = np.nan
    sums = evaluate(logits, np.full(10, 4), np.ones(10))
    assert (sums["top1"], sums["top5"]) == (0, 0), "NaN counts as the greatest of all numbers"


@pytest.mark.slow
def test_evaluation_on_eight_devices_uses_the_running_statistics(topologies):
    """The tiny STCE-ViT, its variables split over eight devices, against its plain application on one."""
    topology = topologies["fsdp 8"]
    _, state = topology.six_steps()
    variables = host(state.variables)
    batch = make_batch(5) | {"weight": np.ones(BATCH, np.float32)}
    step = make_eval_step(MODEL, lambda images: images / 255.0, mesh=topology.mesh)
    sums = step(state.variables, jax.device_put(batch, batch_sharding(topology.mesh)))
    logits = np.asarray(jax.jit(lambda v, x: MODEL.apply(v, x, train=False))(variables, batch["image"] / 255.0))
    losses = -np.log(numpy_reference.softmax(logits.astype(float)))[np.arange(BATCH), batch["label"]]
    assert float(sums["loss"]) == pytest.approx(losses.sum(), rel=1e-5)
    assert float(sums["top1"]) == (logits.argmax(axis=1) == batch["label"]).sum()
    assert float(sums["count"]) == BATCH


@pytest.mark.parametrize("deterministic", [False, True])
def test_deterministic_operations_are_an_option_for_xla(one, monkeypatch, deterministic):
    """Which is all that can be seen without a GPU: no other backend has slower operations to choose."""
    passed = []
    monkeypatch.setattr(jax, "jit", lambda function, compiler_options=None, **_: passed.append(compiler_options))
    state = one.initial()
    make_train_step(MODEL, OPTIMIZER, AUGMENT, ema_decay=0.9, deterministic=deterministic, state=state, mesh=one.mesh)
    make_eval_step(MODEL, lambda images: images / 255.0, mesh=one.mesh, deterministic=deterministic)
    assert [options.get("xla_gpu_deterministic_ops", False) for options in passed] == [deterministic] * 2
