"""docs/extending.md: its files, copied from the page, train, and their runs open with --config=FILE alone."""

import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import run_cli

from stce_jax.errors import ConfigError
from stce_jax.models.factory import TABLES, create_model
from stce_jax.models.tokens import Tokens
from stce_jax.training.assemble import load_run
from stce_jax.workdir import config as configuration
from stce_jax.workdir.config import run_config_file

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, flags=re.DOTALL))
MODULES = {"toy_embedding": ("embedding", "mean_color"), "toy_reduction": ("reduction", "every_second")}
MODULES |= {"toy_body": ("body", "mean")}
SMALL = ("--config.epochs=0.1", "--config.image_size=16", "--config.optimizer.warmup_epochs=0")
SMALL_VIT = tuple(f"--config.model.body.vit.{option}" for option in ("width=16", "depth=2", "mlp_dim=16"))
SMALL_STCE = tuple(f"--config.model.embedding.stce.{option}" for option in ("stem_widths=8", "stem_strides=2"))
SMALL_FOR = {  # options of modules that a file does not choose are refused
    "toy_embedding": SMALL + SMALL_VIT,
    "toy_reduction": SMALL + SMALL_VIT + SMALL_STCE,
    "toy_body": SMALL + SMALL_STCE,
}


@pytest.fixture(autouse=True)
def tables_as_before():
    """What a file registers is gone after the test."""
    before = {part: dict(table) for part, table in TABLES.items()}
    yield
    for part, table in TABLES.items():
        table.clear()
        table.update(before[part])


def write(tmp_path, name):
    file = tmp_path / f"{name}.py"
    file.write_text(FILES[name], encoding="utf-8")
    return file


def test_the_page_has_a_file_for_each_part():
    assert set(FILES) == set(MODULES)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_a_file_of_the_page_trains_and_its_run_opens_with_it_alone(name, no_picture, capsys, tmp_path, data_dir):
    (part, module), file, workdir = MODULES[name], write(tmp_path, name), tmp_path / "run"
    data = f"--data_dir={data_dir}"
    code, printed, errors = run_cli(capsys, "train", f"--config={file}", f"--workdir={workdir}", data, *SMALL_FOR[name])
    assert code == 0 and "finished: top-1" in printed, errors
    assert json.loads((workdir / "config.json").read_text())["model"][part]["name"] == module

    del TABLES[part][module]  # as in another process
    words = ("evaluate", f"--workdir={workdir}", data)
    code, _, errors = run_cli(capsys, *words)
    expected = f"stce: the run uses the {part} {module!r}, which is not part of stce_jax; give the config file that "
    assert (code, errors) == (2, f"{expected}registers it: --config=FILE\n")
    if name == "toy_embedding":
        assert errors in PAGE, "the page prints another message"

    code, printed, errors = run_cli(capsys, *words, f"--config={file}")
    assert code == 0 and " 360 images " in printed, errors
    del TABLES[part][module]
    run = load_run(workdir, config=str(file))
    forward = jax.jit(functools.partial(run.model.apply, train=False))
    assert forward(run.variables, np.zeros((1, 16, 16, 3), np.float32)).shape == (1, 10)


@pytest.mark.slow
def test_the_reduction_of_the_page_keeps_every_second_token(tmp_path):
    run_config_file(str(write(tmp_path, "toy_reduction")))
    options = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 16, "patch_size": 8, "reduction": "every_second"}
    model = create_model("vit_ti_patch", num_classes=3, image_size=32, **options)
    images = np.zeros((1, 32, 32, 3), np.float32)

    def made(images):
        variables = model.init(jax.random.key(0), images, train=False)
        return model.apply(variables, images, train=False, method="tokens")

    tokens = jax.eval_shape(made, images)
    assert tokens.shape == (1, 1 + 8, 16) and tokens.grid is None


@pytest.mark.parametrize("verb", ["predict", "features", "visualize", "export", "evaluate"])
def test_verbs_that_open_a_run_take_the_file(verb, capsys, tmp_path):
    """That the file is run is seen by one that fails."""
    file = tmp_path / "fails.py"
    file.write_text("def get_config():\n    raise RuntimeError('it was run')\n")
    (tmp_path / "one.png").write_bytes(b"")
    words = {"export": (f"--output={tmp_path / 'out'}",), "evaluate": ()}.get(verb, (tmp_path / "one.png",))
    words += (f"--output={tmp_path / 'out.npz'}",) if verb == "features" else ()
    code, _, errors = run_cli(capsys, verb, *words, f"--workdir={tmp_path}", f"--config={file}")
    assert code == 2 and "it was run" in errors and errors.count("\n") == 1, errors


@pytest.mark.parametrize("verb", ["benchmark", "compare"])
def test_verbs_that_build_a_runs_model_take_the_file(verb, capsys, tmp_path):
    file = tmp_path / "fails.py"
    file.write_text("def get_config():\n    raise RuntimeError('it was run')\n")
    code, _, errors = run_cli(capsys, verb, tmp_path, f"--config={file}")
    assert code == 2 and "it was run" in errors and errors.count("\n") == 1, errors


def test_the_page_merges_pairs_by_their_sizes():
    (code,) = re.findall(r"```python\n(def merge_pairs.*?)```", PAGE, flags=re.DOTALL)
    names = {"jnp": jnp, "Tokens": Tokens}
    exec(code, names)  # the page's own words
    values = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    merged = names["merge_pairs"](Tokens(jnp.asarray(values), grid=(2, 2), leading=1))
    np.testing.assert_allclose(merged[:, 1], values[:, 1:3].mean(axis=1), rtol=1e-6)
    assert merged.shape == (2, 3, 3) and merged.leading == 1 and merged.grid is None
    again = names["merge_pairs"](merged)
    np.testing.assert_array_equal(again.sizes, [[1, 4], [1, 4]])
    np.testing.assert_allclose(again.pooled_mean(), values[:, 1:].mean(axis=1), rtol=1e-5)


def test_a_config_file_may_import_modules_beside_it(tmp_path):
    write(tmp_path, "toy_reduction")
    (tmp_path / "both.py").write_text("import toy_reduction\nfrom toy_reduction import get_config\n")
    config = configuration.load_config(str(tmp_path / "both.py"))
    assert config.model.reduction.name == "every_second" and "every_second" in TABLES["reduction"]


def test_options_of_a_module_that_is_not_registered_are_refused_with_the_remedy(tmp_path):
    file = tmp_path / "forgotten.py"
    file.write_text(FILES["toy_embedding"].replace('EMBEDDINGS["mean_color"] = MeanColor\n', ""))
    with pytest.raises(ConfigError, match=r"embedding 'mean_color', which is not registered; add it to EMBEDDINGS"):
        configuration.load_config(str(file))
