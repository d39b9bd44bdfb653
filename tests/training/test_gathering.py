"""What eight devices send each other in a training step, read from the compiled program: nothing runs here."""

import functools
import math

import jax
import jax.numpy as jnp
import optax
import pytest
from collectives import Program

from stce_jax.models.factory import create_model
from stce_jax.recipe.augment import make_augment
from stce_jax.training.mesh import batch_sharding, make_mesh, replicated, sharded_shapes
from stce_jax.training.state import abstract_state
from stce_jax.training.step import make_eval_step, make_train_step

SIZE, CLASSES, BATCH, WIDTH, DEPTH = 16, 8, 32, 32, 3
SMALLEST = 1000  # numbers of an array that is split: matrices are, biases, norms and the head are not
MODEL = functools.partial(
    create_model, "vit_ti_patch", num_classes=CLASSES, image_size=SIZE, width=WIDTH, depth=DEPTH, heads=2, mlp_dim=64
)
MIXING = {"mixup": 1.0, "cutmix": 1.0, "switch_probability": 0.5}
ALONE = {"flip": 0.5, "shift": 0, "rand_augment": "", "three_augment": False, "color_jitter": 0.0, "erase": 0.0}
AUGMENT = make_augment(
    CLASSES,
    mean=(0.5, 0.5, 0.5),
    std=(0.2, 0.2, 0.2),
    label_smoothing=0.1,
    erase_area=(0.02, 1 / 3),
    erase_ratio=(0.3, 3.3),
    **ALONE,
    **MIXING,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("eight_devices", "matrices_are_split")]


@pytest.fixture(scope="module")
def matrices_are_split():
    from stce_jax.training import mesh

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh, "SMALLEST_SPLIT", SMALLEST)
        yield


def shapes(mesh):
    """A batch."""
    split = batch_sharding(mesh)
    image = jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), jnp.uint8, sharding=split)
    return {"image": image, "label": jax.ShapeDtypeStruct((BATCH,), jnp.int32, sharding=split)}


@functools.cache
def compiled(fsdp, **options):
    """(the program of a training step, sides of the parameters that it splits)."""
    mesh, model, optimizer = make_mesh(fsdp), MODEL(**options), optax.sgd(0.1, momentum=0.9)
    state = sharded_shapes(abstract_state(model, optimizer, image_size=SIZE, with_ema=True), mesh)
    step = make_train_step(model, optimizer, AUGMENT, ema_decay=0.9, state=state, mesh=mesh)
    key = jax.ShapeDtypeStruct((), jax.eval_shape(lambda: jax.random.key(0)).dtype, sharding=replicated(mesh))
    program = Program(step.lower(state, shapes(mesh), key).compile().as_text())
    sides = [leaf.shape for leaf in jax.tree.leaves(state.variables["params"])]
    return program, [shape for shape in sides if math.prod(shape) >= SMALLEST]


def in_any_order(shapes):
    """Sorted, and each shape's sides too: XLA may transpose what it gathers or adds up."""
    return sorted(tuple(sorted(sides)) for sides in shapes)


def gathers(program):
    """Those of more than the batch's logits, which top-5 sorts on every device."""
    return [made for made in program.of_kind("all-gather") if made.results[0][0] != (BATCH, CLASSES)]


@pytest.mark.parametrize("fsdp, options", [(2, {}), (8, {"remat": True})], ids=["2", "8, remat"])
def test_parameters_are_gathered_one_by_one_forward_and_backward(fsdp, options):
    program, split = compiled(fsdp, **options)
    assert len(split) == 4 * DEPTH + 1
    found = [made.results[0][0] for made in gathers(program)]
    assert in_any_order(found) == in_any_order(2 * split), "not every split array, and nothing else, is gathered twice"
    stem, *blocks = sorted((4 * math.prod(sides) for sides in split), reverse=True)
    assert program.most_gathered() <= max(stem, sum(blocks) / DEPTH), "more than a block's parameters are held at once"
    kinds = {kind for kind, *_ in program.collectives()}
    assert "all-to-all" not in kinds, "activations travel to parameters"


@pytest.mark.parametrize("fsdp, options", [(2, {}), (8, {"remat": True})], ids=["2", "8, remat"])
def test_of_each_gradients_sum_a_device_reads_its_part(fsdp, options):
    program, split = compiled(fsdp, **options)
    sums = [(made, number) for made in program.of_kind("all-reduce") for number in range(len(made.results))]
    scattered = [made.results[number][0] for made, number in sums if program.is_scattered(made, number)]
    # The last block computes the class token alone: of queries, and of keys and values, sums of their own.
    expected = [*split, (WIDTH, 3 * WIDTH)]
    assert in_any_order(sides for sides in scattered if math.prod(sides) >= SMALLEST) == in_any_order(expected)
    whole = {math.prod(made.results[number][0]) for made, number in sums if not program.is_scattered(made, number)}
    parts = {math.prod(sides) // fsdp for sides in split}  # are added up over the axis "data"
    unexpected = {count for count in whole if count >= SMALLEST} - parts
    assert not unexpected, "a gradient or an activation is added up whole on every device"


def test_evaluation_gathers_parameters_once():
    mesh, model = make_mesh(8), MODEL()
    state = sharded_shapes(abstract_state(model, optax.sgd(0.1), image_size=SIZE, with_ema=False), mesh)
    weight = jax.ShapeDtypeStruct((BATCH,), jnp.float32, sharding=batch_sharding(mesh))
    step = make_eval_step(model, lambda images: images / 255.0, mesh=mesh)
    program = Program(step.lower(state.variables, shapes(mesh) | {"weight": weight}).compile().as_text())
    found = [made.results[0][0] for made in gathers(program)]
    assert in_any_order(found) == in_any_order(compiled(8, remat=True)[1])
