"""What `import stce_jax` gives: names, types, laziness, and what is said of mistakes."""

import ast
import contextlib
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import stce_jax
from stce_jax.errors import ConfigError, DataError, StceError
from stce_jax.training import assemble as runs

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "stce_jax"
# What users and checkers rely on; a name may be added, none may go.
PROMISED = [
    "load_config",
    "train",
    "evaluate",
    "predict",
    "features",
    "load_run",
    "create_model",
    "list_models",
    "open_dataset",
    "train_batches",
    "eval_batches",
    "build_augment",
    "cluster_super_tokens",
    "SuperTokenConvEmbed",
    "load_weights",
    "load_exported",
    "Run",
    "Dataset",
    "Tokens",
    "embeddings",
    "reductions",
    "augment",
    "errors",
]


def checked_imports():
    """{name: module} of the imports that type checkers read."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    aliases = [(node.module, alias) for node in checked.body for alias in node.names]
    assert all(alias.name == alias.asname for _, alias in aliases), "a strict checker exports `import X as X` alone"
    return {alias.name: module for module, alias in aliases}


def test_the_names_are_promised_and_listed():
    assert set(PROMISED) == set(stce_jax.__all__) <= set(dir(stce_jax))
    for name in PROMISED:
        assert name in stce_jax.__doc__, f"help(stce_jax) does not list {name}"
        assert f"`{name}`" in (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), f"the page lacks {name}"
    namespace = {}
    exec("from stce_jax import *", namespace)
    assert set(PROMISED) <= set(namespace)


def test_type_checkers_read_the_same_names_from_the_same_modules():
    namespaces = {name: module.rpartition(".")[0] for name, module in stce_jax._NAMESPACES.items()}
    names = {name: module for name, module in stce_jax._NAMESPACES.items() if module.rpartition(".")[2] == name}
    assert set(names) == set(namespaces), "a namespace keeps its module's name"
    assert checked_imports() == stce_jax._HOMES | namespaces


def test_no_name_hides_a_part_of_the_package():
    """`import stce_jax.NAME` would put the module where the function was."""
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not parts & set(stce_jax._HOMES)
    assert {name for name in parts & set(stce_jax._NAMESPACES)} == {"errors"}


@pytest.mark.parametrize("name, table", [("embeddings", "EMBEDDINGS"), ("reductions", "REDUCTIONS")])
def test_namespaces_have_all_that_their_table_has(name, table):
    module = getattr(stce_jax, name)
    classes = {one.__name__ for one in vars(module)[table].values() if one.__module__.startswith("stce_jax.")}
    assert classes | {table} <= set(module.__all__)
    assert all(hasattr(module, exported) for exported in module.__all__)


def test_values_of_a_config_are_set_and_mistakes_are_named():
    config = stce_jax.load_config("small_folder:patch", ["--config.seed=3"])
    config.epochs = 3
    config.augment.mean = (0.5, 0.5, 0.5)
    assert (config.seed, config.epochs, config.model.name) == (3, 3.0, "vit_ti_patch")
    with pytest.raises(AttributeError, match='Did you mean "epochs"'):
        config.epohcs = 3
    with pytest.raises(TypeError, match="float"):
        config.epochs = "three"
    with pytest.raises(ConfigError, match="there is no config 'digit'"):
        stce_jax.train("digit", "runs/none")


def test_what_is_set_is_checked_before_anything_is_made(tmp_path):
    config = stce_jax.load_config("digits", [f"--config.data_dir={tmp_path}"])
    config.batch_size = -1
    with pytest.raises(ConfigError, match="batch_size is -1"):
        stce_jax.train_batches(config, None)
    config.dataset = "folder"
    with pytest.raises(StceError):
        stce_jax.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def pets(tmp_path):
    """(config, dataset) of class folders, each image of one grey."""
    for split, count in (("train", 12), ("val", 5)):
        for number in range(count):
            folder = tmp_path / split / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("L", (20, 20), number).save(folder / f"{number:02}.png")
    words = ("image_size=8", "batch_size=4", "eval_batch_size=8", f"data_dir={tmp_path}", "augment.crop_area=1,1")
    config = stce_jax.load_config("small_folder", [f"--config.{word}" for word in words])
    return config, stce_jax.open_dataset(config)


def test_train_batches_are_those_of_training_from_any_step_on(pets):
    config, dataset = pets
    assert isinstance(dataset, stce_jax.Dataset) and dataset.class_names == ("a", "b")
    with stce_jax.train_batches(config, dataset) as batches:
        first = list(itertools.islice(batches, 5))
    with stce_jax.train_batches(config, dataset, step=2) as batches:
        later = list(itertools.islice(batches, 3))
    with contextlib.closing(runs.train_batches(config, dataset, 2 * 4)) as batches:
        trained = list(itertools.islice(batches, 3))
    for one, other, same in zip(first[2:], later, trained, strict=True):
        for name in ("image", "label"):
            np.testing.assert_array_equal(one[name], other[name])
            np.testing.assert_array_equal(one[name], same[name])
    assert first[0]["image"].shape == (4, 8, 8, 3) and first[0]["image"].dtype == np.uint8
    epoch = np.concatenate([batch["image"][:, 0, 0, 0] for batch in first[:3]])
    assert sorted(epoch) == list(range(12)), "an epoch has each image once"
    for batch in first:
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0] % 2, batch["label"])


def test_eval_batches_have_every_image_once_in_order(pets):
    config, dataset = pets
    with stce_jax.eval_batches(config, dataset) as batches:
        (batch,) = batches
    assert batch["image"].shape == (8, 8, 8, 3)  # as the devices can share
    np.testing.assert_array_equal(batch["weight"], [1] * 5 + [0] * 3)
    np.testing.assert_array_equal(batch["image"][:5, 0, 0, 0], [0, 2, 4, 1, 3])  # by class, then by name
    with stce_jax.eval_batches(config, dataset, "train") as batches:
        assert sum(float(batch["weight"].sum()) for batch in batches) == 12


@pytest.mark.parametrize("split", ["test", "", None, 3])
def test_a_split_that_is_not_there_is_refused(split, pets):
    with pytest.raises(ConfigError, match=r"the dataset has no split .*; the splits are train, val"):
        stce_jax.eval_batches(*pets, split)


@pytest.mark.parametrize("step", [-1, 0.5, "3"])
def test_a_step_that_cannot_be_is_refused(step, pets):
    with pytest.raises(ConfigError, match="step"):
        stce_jax.train_batches(*pets, step=step)


def test_an_image_that_cannot_be_read_is_named(pets, tmp_path):
    config, dataset = pets
    (tmp_path / "val" / "a" / "00.png").write_bytes(b"words")
    with stce_jax.eval_batches(config, dataset) as batches, pytest.raises(DataError, match=r"a/00\.png"):
        list(batches)


@pytest.mark.slow
def test_augmentations_take_arrays_of_numpy():
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    turned = stce_jax.augment.rotate(image, degrees=180.0, fill=(0, 0, 0))
    np.testing.assert_array_equal(turned, image[::-1, ::-1])
