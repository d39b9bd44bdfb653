"""Every verb over every entry of the registries: what is registered works everywhere, by its protocol alone.

An entry a body with the embedding that it comes with, and one a reduction in the plainest body, with one of the other
embeddings as long as there are any; all in one process, on random weights.
"""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from page_checks import check_page
from PIL import Image
from tiny_models import OWN, PARTS, SIZE, config_of

import stce_jax
from stce_jax.convert.initial import initialize, read_weights
from stce_jax.errors import ConfigError
from stce_jax.models.bodies import BODIES
from stce_jax.models.embeddings import EMBEDDINGS
from stce_jax.models.reductions import REDUCTIONS
from stce_jax.models.tokens import Tokens
from stce_jax.training import assemble as runs
from stce_jax.training.mesh import make_mesh, replicated
from stce_jax.training.state import TrainState, abstract_variables
from stce_jax.verbs.benchmark import benchmark
from stce_jax.verbs.compare import compare
from stce_jax.verbs.evaluate import evaluate
from stce_jax.verbs.export import export
from stce_jax.verbs.features import features
from stce_jax.verbs.predict import predict
from stce_jax.verbs.visualize import open_run, visualize
from stce_jax.verbs.visualize_page import visualize_page, what_is_missing
from stce_jax.workdir import layout
from stce_jax.workdir.checkpoint_writer import CheckpointWriter
from stce_jax.workdir.meta import checkpoint_meta
from stce_jax.workdir.weights import flatten

LARGER = 32


class ToyEmbed(nn.Module):
    """Means of 4x4 pixels, projected."""

    width: int = 16
    dtype: jnp.dtype = jnp.float32

    def grid(self, height, width):
        return height // 4, width // 4

    def feature_places(self):
        return 4, 1.5

    @nn.compact
    def __call__(self, images, *, train):
        rows, columns = self.grid(*images.shape[1:3])
        pooled = nn.avg_pool(images, (4, 4), (4, 4)).reshape(images.shape[0], rows * columns, 3)
        return Tokens(nn.Dense(self.width, dtype=self.dtype, name="projection")(pooled), grid=(rows, columns))


class ToyReduction(nn.Module):
    """Keeps every second image token; they lie in no grid from there on."""

    blocks: tuple[int, ...] | None = (0,)
    needs = ()
    needs_class_token = False

    def __call__(self, tokens, given, *, train):
        kept = np.r_[: tokens.leading, tokens.leading : tokens.shape[1] : 2]
        sizes = 2.0 * jnp.ones((tokens.shape[0], len(kept)), jnp.float32)
        return Tokens(tokens.values[:, kept], sizes=sizes, grid=None, leading=tokens.leading)


class ToyBody(nn.Module):
    """No attention, no class token, a head that is not called so."""

    embedding: nn.Module
    num_classes: int
    image_size: tuple[int, int] = (SIZE, SIZE)
    hidden: int = 8
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.mix = nn.Dense(self.hidden, dtype=self.dtype)
        if self.num_classes:
            self.classifier = nn.Dense(self.num_classes, dtype=self.dtype)

    def __call__(self, images, *, train):
        features = self.features(images, train=train)
        return self.classifier(features).astype(jnp.float32) if self.num_classes else features

    def features(self, images, *, train):
        return self.tokens(images, train=train).pooled_mean().astype(jnp.float32)

    def tokens(self, images, *, train):
        tokens = self.embedding(images.astype(self.dtype), train=train)
        return tokens.with_values(nn.gelu(self.mix(tokens.values)))

    def grid(self, height, width):
        return self.embedding.grid(height, width)

    def check(self):
        pass

    def unshaped_options(self):
        return {}

    def fit_weights(self, found, expected, old_grid):
        return found, ""


TOYS = {"toy body": (BODIES, ToyBody), "toy embedding": (EMBEDDINGS, ToyEmbed), "toy": (REDUCTIONS, ToyReduction)}
# The embedding that each body comes with is tried with it, every other one with the plain body and a reduction.
OTHERS = [name for name in EMBEDDINGS if name not in OWN.values()]
WITH = {"evit": "stce", "topk": "conv", "kmedoids": "conv1x1", "dpcknn": "earlyconv", "dynamicvit": "hcformer"}
# All options of plain blocks that the original ViT has not, together.
INGREDIENTS = {"position_embedding": "rope_mixed", "registers": 2, "layer_scale": 0.1, "norm": "rmsnorm"}
INGREDIENTS |= {"qk_norm": True, "mlp": "swiglu", "patch_dropout": 0.25}
ENTRIES = {
    **{f"reduction {name}": {"reduction": name, "embedding": WITH.get(name, "patch")} for name in REDUCTIONS},
    **{f"embedding {name}": {"embedding": name} for name in OTHERS if name not in WITH.values()},
    **{f"body {name}": {"body": name, "embedding": own} for name, own in OWN.items() if name != "vit"},
    "ingredients": {"embedding": "stce", "options": INGREDIENTS},
    "toys": {"body": "toy body", "embedding": "toy embedding"},
    "toy reduction": {"reduction": "toy", "embedding": "patch"},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three images of several sizes."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (18 + number, 24, 3), np.uint8)).save(root / f"{number}.png")
    return root


# What others resemble the quick tier does without; the other tier has every entry.
SLOW = ENTRIES.keys() - {"reduction evit", "reduction tome", "toys", "toy reduction"}


def entries(names):
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]


# What only passes on what the model gives is tried with every body and embedding, and with reductions of all kinds
# (within and before a block, without and with parameters), not with each.
PASSED_ON = [name for name, parts in ENTRIES.items() if "reduction" not in parts or parts["embedding"] != "patch"]
PASSED_ON += ["reduction sit", "toy reduction"]
PASSED_ON.remove("ingredients")  # another form of the plain body
of_each_kind = pytest.mark.parametrize("entry", entries(PASSED_ON), indirect=True, scope="module")


@pytest.fixture(scope="module", params=entries(ENTRIES))
def entry(request, data_dir, tmp_path_factory):
    """(names of the parts, workdir of a run with random weights) of an entry."""
    with pytest.MonkeyPatch.context() as patch:
        for name, (table, module) in TOYS.items():
            patch.setitem(table, name, module)
        names = {"body": "vit", "embedding": "patch", "reduction": None, **ENTRIES[request.param]}
        workdir = tmp_path_factory.mktemp("runs") / request.param.replace(" ", "_")
        write_run(workdir, config_of(names, data_dir))
        yield names, workdir


def write_run(workdir, config):
    """What `stce train` leaves behind, without the training."""
    dataset = runs.open_dataset(config)
    model = runs.build_model(config, len(dataset.class_names))
    workdir.mkdir()
    layout.write_config(workdir, config)
    meta = checkpoint_meta(config, dataset) | {"epoch": 0.0, "salt": 0, "guard": {}}
    with CheckpointWriter(layout.checkpoints_in(workdir), keep=1) as checkpoints:
        checkpoints.save(noise_state(model, SIZE), meta, {"loss": 2.3, "top1": 0.1, "top5": 0.5})


def noise_state(model, image_size):
    """A state of step 0 of noise, which need not be compiled."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        noise = np.ones(leaf.shape) if path[-1].key in ("scale", "var") else 0.1 * rng.standard_normal(leaf.shape)
        return noise.astype(leaf.dtype)

    variables = jax.tree_util.tree_map_with_path(draw, abstract_variables(model, image_size))
    # On one device: of arrays that several devices have, each saves a slice, which is compiled for each.
    alone = replicated(make_mesh(1, jax.devices()[:1]))
    return jax.device_put(TrainState(np.int32(0), variables, None, None), alone)


@functools.cache
def applied(workdir, photos):
    """(logits, tokens) that the run's model makes of the photos: one program for the tests of an entry."""
    run = stce_jax.load_run(workdir)
    images = np.stack([run.preprocess(photos / f"{number}.png") for number in range(3)])

    @jax.jit
    def both(variables):
        return tuple(run.model.apply(variables, images, train=False, method=name) for name in ("__call__", "tokens"))

    return both(jax.device_get(run.variables))


def test_its_protocol(entry):
    """Logits, features, tokens and their grid agree in shape and meaning."""
    _, workdir = entry
    run = stce_jax.load_run(workdir)
    model, images = run.model, jnp.asarray(np.random.default_rng(0).normal(size=(2, SIZE, SIZE, 3)), jnp.float32)

    def shapes(method):
        return jax.eval_shape(lambda v: model.apply(v, images, train=False, method=method), run.variables)

    assert model.image_size == (SIZE, SIZE) and model.num_classes == 10 and model.dtype == jnp.float32
    logits, pooled, tokens = shapes("__call__"), shapes("features"), shapes("tokens")
    assert logits.shape == (2, 10) and logits.dtype == jnp.float32
    assert pooled.shape[0] == 2 and pooled.ndim == 2 and pooled.dtype == jnp.float32
    assert isinstance(tokens, Tokens) and tokens.values.shape[0] == 2
    assert len(model.grid(SIZE, SIZE)) == len(model.embedding.grid(SIZE, SIZE)) == 2
    if tokens.grid is not None:
        assert tokens.grid == model.grid(SIZE, SIZE)
        assert tokens.values.shape[1] == tokens.leading + math.prod(tokens.grid), "not a token for each place"
    for part in (tokens.sizes, tokens.mask):
        assert part is None or part.shape == tokens.values.shape[:2]
    stride, first = model.embedding.feature_places()
    assert stride >= 1 and 0 <= first < stride
    json.dumps(model.unshaped_options())
    headless = runs.build_model(run.config, 0)
    without = jax.eval_shape(lambda v: headless.apply(v, images, train=False), run.variables)
    assert without.shape == pooled.shape, "with 0 classes a model gives its pooled features"


def test_evaluate_predict_and_compare(entry, photos, data_dir):
    _, workdir = entry
    result = evaluate(workdir)
    assert result["images"] > 300 and math.isfinite(result["loss"])
    records = list(predict(photos, workdir, batch_size=2, topk=3))
    assert len(records) == 3 and all(len(record["classes"]) == 3 for record in records)
    (row,) = compare([workdir])["runs"]
    assert row["parameters"] > 0 and row["differences"] == []


@of_each_kind
def test_features(entry, photos):
    _, workdir = entry
    pooled, tokens = features(photos, workdir), features(photos, workdir, kind="tokens")
    _, expected = applied(workdir, photos)
    np.testing.assert_allclose(tokens["features"], expected.image_values(), atol=1e-4)
    assert pooled["features"].shape == (3, tokens["features"].shape[2])
    assert ("grid" in tokens) == (expected.grid is not None) and ("sizes" in tokens) == (expected.sizes is not None)
    assert ("class_token" in tokens) == (expected.leading == 1)
    if expected.leading == 0 and expected.sizes is expected.mask is None:
        np.testing.assert_allclose(pooled["features"], tokens["features"].mean(axis=1), atol=1e-4)


def test_visualize(entry, photos, tmp_path):
    """Drawn is what is sown; what is not is refused with the reason."""
    names, workdir = entry
    subject, picture = open_run(workdir), photos / "0.png"
    drawn = {}
    kinds = {"attention": {"attention": True}, "token_0_1": {"token": (0, 1)}, "reduction": {"reduced": True}}
    for kind, options in {"super_tokens": {}, **kinds}.items():
        try:
            *_, path = paths = visualize([picture], subject, str(tmp_path), tile=160, **options)
        except ConfigError as error:
            assert "\n" not in str(error)
            drawn[kind] = str(error)
        else:
            drawn[kind] = ""
            if kind == "super_tokens" and path.endswith("0_reduction.png"):  # by default whatever there is
                drawn[kind] = "" if len(paths) == 2 else "no super tokens; use --attention"
                (path, *_) = paths
            else:
                assert len(paths) == 1 and path.endswith(f"0_{kind}.png")
            assert Image.open(path).width > 160
    assert (drawn["reduction"] == "") == (names["reduction"] in REDUCTIONS and names["reduction"] != "toy"), drawn
    missing = what_is_missing(subject.model, subject.size)
    assert {kind for kind in ("super_tokens", "attention", "reduction") if drawn[kind]} == missing.keys() - {
        "affinities"
    }
    if len(missing.keys() - {"affinities"}) < 3:
        page = visualize_page([picture], subject, str(tmp_path), tile=160)
        content = check_page((tmp_path / "index.html").read_text())
        (shown,) = content.data["images"]
        assert page.images == 1 and shown.keys() - {"name", "picture"} == {
            kind for kind in shown if not drawn.get(kind, "other")
        }
        assert all(why in content.texts for why in missing.values()), "it is not said why something is missing"
    has_super_tokens, has_attention = names["embedding"] == "stce", names["body"] != "toy body"
    if names["embedding"] in ("patch", "conv", "stce", "toy embedding"):
        assert (drawn["super_tokens"] == drawn["token_0_1"] == "") == has_super_tokens, drawn
        assert has_super_tokens or "no super tokens; use --attention" in drawn["super_tokens"]
    if names["body"] in ("vit", "cvt", "deit", "toy body"):
        assert (drawn["attention"] == "") == has_attention, drawn
        assert has_attention or "no class token" in drawn["attention"]


def test_export(entry, photos, tmp_path):
    names, workdir = entry
    done = export(workdir, tmp_path / "out", platforms=("cpu",), batch=2)
    assert done["greatest_logit"] > 0
    model, (expected, _) = stce_jax.load_exported(tmp_path / "out"), applied(workdir, photos)
    pixels = np.stack([model.preprocess(photos / f"{number}.png") for number in range(2)])
    np.testing.assert_allclose(model.logits(pixels), expected[:2], atol=1e-4)
    described = {part: model.description["model"].get(part) for part in PARTS}
    assert all(described[part] in (None, names[part]) for part in PARTS), described


@of_each_kind
def test_benchmark(entry):
    _, workdir = entry
    rows = benchmark([str(workdir)], batch_sizes=[2], rounds=1, seconds=0)
    assert [row["what"] for row in rows] == ["inference", "training"]
    for row in rows:
        assert row["error"] == "" and row["images_per_second"] > 0 and row["parameters"] > row["embedding_parameters"]


@of_each_kind
def test_its_weights_begin_another_run(entry):
    """At another image size, with other classes: all but what depends on the classes is taken over."""
    _, workdir = entry
    run = stce_jax.load_run(workdir)
    config = run.config.copy_and_resolve_references()
    with config.unlocked():
        config.image_size = LARGER
    model = runs.build_model(config, 3)
    expected = abstract_variables(model, LARGER)
    arrays, line = read_weights(str(workdir), expected, model, ["a", "b", "c"])
    trained, shapes = flatten(run.variables), flatten(jax.tree.map(lambda leaf: np.empty(leaf.shape), expected))
    new = shapes.keys() - arrays.keys()
    assert new and all(3 in shapes[path].shape for path in new), f"new are {sorted(new)}"
    assert "new head for 3 classes" in line
    for path, array in arrays.items():
        assert array.shape == shapes[path].shape, path
        if array.shape == trained[path].shape:
            np.testing.assert_array_equal(array, trained[path], err_msg=path)
    begun = flatten(initialize(noise_state(model, LARGER), arrays).variables)
    for path, array in arrays.items():
        np.testing.assert_array_equal(begun[path], array, err_msg=path)
    same, line = read_weights(str(workdir), abstract_variables(run.model, SIZE), run.model, run.class_ids)
    assert same.keys() == trained.keys() and "head of the same 10 classes" in line
