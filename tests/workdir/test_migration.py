"""Configs of version 0.1 (form 1): their flat keys in files of users, in config.json, and on the command line."""

import itertools
import json

import pytest

from stce_jax.configs import default, digits
from stce_jax.configs._flat import FLAT_KEYS
from stce_jax.errors import ConfigError
from stce_jax.models.factory import TABLES, list_models, presets
from stce_jax.workdir import config as configuration
from stce_jax.workdir import migration, parts
from stce_jax.workdir.config import load_config

VALUES = {  # one of each flat key, none of them a default
    **{"width": 24, "depth": 2, "heads": 3, "mlp_dim": 48, "pooling": "mean", "position_embedding": "sincos2d"},
    **{"drop_path": 0.2, "dropout": 0.3, "remat": True, "scan_layers": True, "patch_size": 4},
    **{"stem_widths": (8, 24), "stem_strides": (2, 2), "cell": (2, 2), "iterations": 1, "border": "mask"},
    "differentiable": True,
}
OF_FORM_1 = ("patch", "conv", "conv1x1", "earlyconv", "stce")  # embeddings; later ones had no flat keys


def of_embedding(embedding):
    """The flat keys that a model with that embedding had."""
    places = ("body.vit", f"embedding.{embedding}")
    return {key: value for key, value in VALUES.items() if set(places) & set(FLAT_KEYS[key])}


def expected(model, embedding):
    for key, value in of_embedding(embedding).items():
        section = "body.vit" if "body.vit" in FLAT_KEYS[key] else f"embedding.{embedding}"
        assert model[section][key] == value, f"{key} is not in {section}"


def written(tmp_path, *lines, start="default.get_config()"):
    path = tmp_path / "old.py"
    body = "".join(f"    {line}\n" for line in (f"config = {start}", *lines, "return config"))
    path.write_text(f"from . import default, digits\nfrom ml_collections import ConfigDict\ndef get_config():\n{body}")
    return str(path)


def form_1(**changes):
    """config.json as version 0.1 wrote it."""
    values = default.get_config().to_dict()
    flat = dict.fromkeys(VALUES) | {"drop_path": 0.1, "dropout": 0.0}
    values["model"] = {"name": "vit_s_stce", "dtype": None, **flat, **changes}
    return values


def test_the_table_names_every_option_of_the_modules_of_form_1():
    own = default.get_config().model
    sections = {section for places in FLAT_KEYS.values() for section in places}
    assert sections == {"body.vit", *(f"embedding.{name}" for name in OF_FORM_1)} and set(OF_FORM_1) <= set(
        TABLES["embedding"]
    )
    names = ("norm_epsilon", "registers", "layer_scale", "norm", "qk_norm", "mlp", "patch_dropout")
    later = {("body.vit", name) for name in names}  # than form 1
    options = {(section, key) for section in sections for key in own[section]} - later
    assert options == {(section, key) for key, places in FLAT_KEYS.items() for section in places}
    assert VALUES.keys() == FLAT_KEYS.keys()


def test_default_has_a_section_for_every_module_of_the_tables():
    own = default.get_config().model
    assert parts.TABLES.keys() == TABLES.keys()
    for part, table in TABLES.items():
        assert set(own[part]) - {"name"} == set(table), f"config.model.{part} has other sections than the table"


@pytest.mark.parametrize("embedding", OF_FORM_1)
@pytest.mark.parametrize("order", ["before the name", "after the name", "updated"])
@pytest.mark.parametrize("lock", ["", ".unlock()"], ids=["locked", "unlocked"])
def test_files_of_users_set_flat_keys(tmp_path, embedding, order, lock):
    values = of_embedding(embedding)
    name, keys = f"config.model.name = 'vit_ti_{embedding}'", [f"config.model.{k} = {v!r}" for k, v in values.items()]
    if order == "updated":
        lines = [f"config.update({{'model': {values | {'name': f'vit_ti_{embedding}'}!r}}})"]
    else:
        lines = [*keys, name] if order == "before the name" else [name, *keys]
    config = load_config(written(tmp_path, *lines, start=f"default.get_config(){lock}"))
    expected(config.model, embedding)
    assert set(configuration.flatten(config)) == set(configuration.flatten(default.get_config()))


def test_files_of_users_read_flat_keys_back(tmp_path):
    lines = ("config.model.width = 48", "config.model.heads = config.model.width // 16")
    lines += ("config.model.name = 'vit_ti_conv'", "w = config.model.stem_widths", "config.model.stem_widths = w[:2]")
    lines += ("assert w == (24, 48, 64) and config.model.patch_size == 8 and config.model.cell == (2, 2), w",)
    config = load_config(written(tmp_path, *lines, start="digits.get_config()"))
    assert config.model.body.vit.heads == 3 and config.model.embedding.conv.stem_widths == (24, 48)


def test_none_in_an_old_file_takes_a_value_away(tmp_path):
    config = load_config(written(tmp_path, "config.model.stem_widths = None", start="digits.get_config()"))
    assert config.model.embedding.stce.stem_widths is None


def test_a_file_that_lists_every_key_of_form_1_is_read(tmp_path):
    values = form_1(**of_embedding("conv"), name="vit_ti_conv")
    expected(load_config(written(tmp_path, start=f"ConfigDict({values!r})")).model, "conv")


@pytest.mark.parametrize(
    "line, named",
    [
        ("config.model.width = 'wide'", "Could not override field 'width'"),
        ("config.model.widht = 3", "widht"),
    ],
)
def test_mistakes_in_old_files_are_refused_in_one_line(tmp_path, line, named):
    with pytest.raises(ConfigError) as error:
        load_config(written(tmp_path, line))
    assert named in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("embedding", OF_FORM_1)
def test_config_json_of_form_1(embedding):
    values = form_1(name=f"vit_ti_{embedding}", dtype="bfloat16", **of_embedding(embedding))
    config = configuration.from_json(json.dumps(values))
    expected(config.model, embedding)
    assert (config.model.dtype, config.model.name) == ("bfloat16", f"vit_ti_{embedding}")
    others = [name for name in TABLES["embedding"] if name != embedding]
    assert all(value is None for name in others for value in config.model.embedding[name].values())
    assert configuration.from_json(configuration.to_json(config)) == config


@pytest.mark.parametrize("name", ["digits", "digits:conv", "digits:patch"])
def test_a_run_of_form_1_has_the_config_that_made_it(name):
    """No key that has only moved is reported."""
    config = load_config(name)
    own = {key: value for key, value in configuration.flatten(config).items() if not key.startswith("model.")}
    values = configuration._tuples(json.loads(json.dumps(config.to_dict())))
    flat = {key: getattr(digits.get_config(*name.split(":")[1:]).model, key) for key in VALUES}
    embedding = config.model.name.rpartition("_")[2]
    flat = {key: value if key in of_embedding(embedding) else None for key, value in flat.items()}
    old = configuration.from_dict(values | {"model": {"name": config.model.name, "dtype": None, **flat}})
    assert configuration.differences(old, config) == [] and own


def test_old_keys_on_a_command_line_are_noted_once(capsys):
    migration._note.cache_clear()
    words = ["--config.model.name=vit_ti_conv", "--config.model.width", "48", "--config.model.stem_widths=8,24,48"]
    config = load_config("digits", [*words, "--noconfig.model.remat", "--config.model.width=64"])
    assert (config.model.body.vit.width, config.model.body.vit.remat) == (64, False)
    assert config.model.embedding.conv.stem_widths == (8, 24, 48)
    assert capsys.readouterr().err.splitlines() == [
        "stce: --config.model.width is now --config.model.body.vit.width",
        "stce: --config.model.stem_widths is now --config.model.embedding.conv.stem_widths",
        "stce: --noconfig.model.remat is now --noconfig.model.body.vit.remat",
    ]
    load_config("digits", ["--config.model.width=48", "--config.model.body.vit.depth=2"])
    assert capsys.readouterr().err == ""


def test_the_chosen_embedding_is_meant():
    words = ["--config.model.embedding.name", "earlyconv", "--config.model.stem_strides=2,2"]
    assert load_config("digits", words).model.embedding.earlyconv.stem_strides == (2, 2)
    words = ["--config.model.cell=None", "--config.model.name=vit_ti_patch", "--config.model.patch_size=4"]
    assert load_config("digits", words).model.embedding.patch.patch_size == 4
    with pytest.raises(ConfigError, match="vit_ti_stce has no option 'patch_size'; its options are depth, "):
        load_config("digits", ["--config.model.patch_size=4"])


@pytest.mark.parametrize("form", [3, "2", 2.5])
def test_a_newer_form_is_refused(form):
    with pytest.raises(ConfigError, match=r"config\.json has form .*; use the version that wrote it"):
        configuration.from_dict({"form": form})


def test_sections_of_modules_that_came_later_may_be_missing_unless_they_are_used():
    values = configuration.to_dict(load_config("digits:patch"))
    del values["model"]["embedding"]["conv"]
    assert configuration.from_dict(values).model.embedding.conv.stem_widths is None
    del values["model"]["embedding"]["patch"]
    with pytest.raises(ConfigError, match=r"config\.json is damaged: it lacks the options of the embedding 'patch'"):
        configuration.from_dict(values)


def test_modules_that_are_not_registered():
    values = configuration.to_dict(load_config("digits"))
    values["model"]["embedding"]["toy"] = {"size": 3}
    assert "toy" not in configuration.from_dict(values).model.embedding, "the run does not use it"
    for change in ({"embedding": {**values["model"]["embedding"], "name": "toy"}}, {"name": "vit_ti_toy"}):
        with pytest.raises(ConfigError, match=r"toy', which is not part of stce_jax; give .*--config=FILE"):
            configuration.from_dict(values | {"model": values["model"] | change})


def test_chosen_modules_are_the_presets_unless_named():
    for name in list_models():
        model = default.get_config().model
        model.name = name
        expected = {"body": presets()[name].body, "embedding": presets()[name].embedding, "reduction": None}
        assert parts.chosen(model) == expected and name.startswith(f"{expected['body']}_")
        model.embedding.name = "patch"
        assert parts.chosen(model)["embedding"] == "patch"


def test_every_option_of_a_config_as_one_dict():
    config = load_config("digits", ["--config.model.embedding.name=patch"])
    found = parts.all_options(config.model)
    assert (found["name"], found["embedding"], found["patch_size"]) == ("vit_ti_stce", "patch", 8)
    assert (found["width"], found["pooling"], found["dtype"]) == (64, "class", "float32") and "cell" not in found


def test_no_key_of_two_modules_of_one_model_is_the_same():
    """`parts.place` and `create_model` take options without their section."""
    own = default.get_config().model
    for body, embedding in itertools.product(TABLES["body"], TABLES["embedding"]):
        assert not set(own.body[body]) & set(own.embedding[embedding])
