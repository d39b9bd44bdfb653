"""Config files and overrides: what is accepted, and the one line that says why not."""

import json

import pytest

from stce_jax.configs import default
from stce_jax.errors import ConfigError
from stce_jax.training.assemble import build_model, load_config
from stce_jax.workdir import config as configuration
from stce_jax.workdir.config import SHIPPED

PAPERS = ["stce_vit_s", "conv_vit_s", "patch_vit_s"]
MODERN = ["modern", "modern:patch", "modern:conv", "modern_vit_s"]
BODIES = ["cmt_s", "cvt_13", "dat_t", "deit_s", "focal_t", "mobilevit_s", "swin_t"]
STUDIES = ("readings", "reductions", "bodies", "clustering", "recipe", "recipe_test")
TABLES = [f"tables/{table}" for table in ("scales", "table1", "table6", "table7", "table8", *STUDIES)]
NAMES = [
    *("default", "digits", "digits:patch", "digits:conv", "small_folder", "small_folder:patch", "small_folder:conv"),
    *PAPERS,
    *BODIES,
    *MODERN,
    *(f"{table}{scale}" for table in TABLES for scale in ("", ":small", ":smoke")),
    *(f"tables/clustering:{scale}" for scale in ("medium", "medium_128")),
    *(f"tables/{table}:medium" for table in ("recipe", "recipe_test")),
]


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_config_is_complete_locked_and_builds_its_model(name):
    config = load_config(name)
    assert config.is_locked
    assert list(configuration.flatten(config)) == list(configuration.flatten(default.get_config()))
    assert build_model(config, 10).num_classes == 10


def test_every_shipped_config_is_tried_above():
    shipped = {path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.rglob("[!_]*.py")}
    assert shipped == {name.partition(":")[0] for name in NAMES}


def test_default_is_the_papers_recipe():
    config = load_config("default")
    assert (config.model.name, config.image_size, config.batch_size, config.epochs) == ("vit_s_stce", 224, 128, 300)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.clip_norm) == (1e-3, 0.05, 0)
    assert (optimizer.warmup_epochs, optimizer.warmup_learning_rate, optimizer.final_learning_rate) == (5, 1e-6, 1e-5)
    assert (config.augment.mixup, config.augment.cutmix, config.augment.label_smoothing) == (1.0, 0.8, 0.1)
    assert config.model.body.vit.drop_path == 0.1 and optimizer.ema_decay == 0.99996


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_configs_are_its_recipe_on_imagenet100(name):
    config, recipe = (configuration.flatten(load_config(name)) for name in (name, "default"))
    changed = {key: value for key, value in config.items() if value != recipe[key]}
    model = "vit_s_" + name.partition("_")[0]
    assert changed == {"dataset": "imagenet100"} | ({} if model == "vit_s_stce" else {"model.name": model})
    assert config["augment.rand_augment"] == "rand-m9-mstd0.5-inc1"
    assert (config["augment.erase"], config["augment.erase_area"]) == (0.25, (0.02, 1 / 3))
    assert config["augment.repeats"] == 3 and not config["augment.three_augment"]
    assert not config["augment.color_jitter"], "DeiT jitters no colours where RandAugment is at work"
    assert (config["augment.crop_area"], config["augment.crop_ratio"]) == ((0.08, 1.0), (0.75, 4 / 3))


def test_every_key_of_default_has_a_comment():
    lines = (SHIPPED / "default.py").read_text().splitlines()
    keys = [line for line in lines if " = " in line and "ConfigDict()" not in line and "get_config" not in line]
    bare = [line.strip() for line in keys if "#" not in line]
    # Names that say it all.
    assert set(bare) <= {
        "optimizer.warmup_learning_rate = 1e-6",
        "optimizer.beta1 = 0.9",
        "optimizer.beta2 = 0.999",
        "optimizer.epsilon = 1e-8",
    }
    assert len(keys) == len(configuration.flatten(default.get_config()))


@pytest.mark.parametrize(
    "words, key, value",
    [
        (["--config.seed=7"], "seed", 7),
        (["--config.seed", "7"], "seed", 7),
        (["--config.epochs=2"], "epochs", 2.0),
        (["--config.epochs=0.5"], "epochs", 0.5),
        (["--config.optimizer.learning_rate=3e-4"], "optimizer.learning_rate", 3e-4),
        (["--config.model.embedding.stce.stem_widths=8,16"], "model.embedding.stce.stem_widths", (8, 16)),
        (["--config.model.embedding.stce.stem_widths=(8, 16)"], "model.embedding.stce.stem_widths", (8, 16)),
        (["--config.model.body.vit.remat"], "model.body.vit.remat", True),
        (["--noconfig.model.body.vit.remat"], "model.body.vit.remat", False),
        (["--config.model.embedding.stce.cell=None", "--config.seed=1"], "model.embedding.stce.cell", None),
        (["--config.model.body.vit.depth=4", "--config.model.body.vit.depth=5"], "model.body.vit.depth", 5),
    ],
)
def test_overrides(words, key, value):
    found = configuration.flatten(load_config("digits", words))[key]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "name, words, named",
    [
        ("digit", [], "there is no config 'digit'; give a .py file, or one of "),
        ("/no/where.py", [], "there is no config '/no/where.py'"),
        ("digits:pach", [], "no variant 'pach'; it has stce, conv, patch"),
        ("default:x", [], "takes no argument"),
        ("tables/table6:big", [], "no variant 'big'; it has paper, medium_128, medium, small, smoke"),
        ("digits", ["--config.seed=None"], "bad value in '--config.seed=None'"),
        ("digits", ["--config.model.embedding.stce.cel=None"], "did you mean 'model.embedding.stce.cell'?"),
        ("digits", ["--config.model.cel=None"], "did you mean 'model.embedding.stce.cell'?"),
        ("digits", ["--config.model.embedding.conv.stem_width=8"], "did you mean 'model.embedding.conv.stem_widths'?"),
        ("digits", ["--config.optimizer.learning_rat=1"], "did you mean 'optimizer.learning_rate'?"),
        ("digits", ["--config.optimiser.learning_rate=1"], "did you mean 'optimizer.learning_rate'?"),
        ("digits", ["--config.model.dept=3"], "did you mean 'model.body.vit.depth'?"),
        ("digits", ["--config.learning_rate=3"], "did you mean 'optimizer.learning_rate'?"),
        ("digits", ["--config.zzz=3"], "`stce config` lists every key"),
        ("digits", ["--config.epochs=many"], "could not convert string to float: 'many'"),
        ("digits", ["--config.seed=1.5"], "--config.seed=1.5"),
        ("digits", ["--config.model.body.vit.remat=maybe"], "maybe"),
        ("digits", ["--config.model=3"], "--config.model=3"),
        ("digits", ["--confg.seed=3"], "--confg.seed=3"),
        ("digits", ["epochs=3"], "unknown argument 'epochs=3'"),
        ("digits", ["--config.epochs=0"], "config.epochs is 0.0; it must be above 0"),
        ("digits", ["--config.epochs=nan"], "config.epochs is nan"),
        (
            "digits",
            ["--config.batch_size=-4"],
            "config.batch_size is -4; it must be a whole number between 1",
        ),
        ("digits", ["--config.augment.flip=2"], "config.augment.flip is 2.0; it must be between 0 and 1"),
        ("digits", ["--config.optimizer.learning_rate=nan"], "config.optimizer.learning_rate is nan"),
        ("digits", ["--config.dataset=mnist"], "config.dataset is 'mnist'; it must be one of digits, folder"),
        ("digits", ["--config.augment.crop=five"], "must be one of random_resized, center"),
        ("digits", ["--config.augment.crop_area=0.5"], "config.augment.crop_area is (0.5,)"),
        ("digits", ["--config.augment.crop_area=0.9,0.5"], "the smaller first"),
        ("digits", ["--config.augment.crop_ratio=a,b"], "must be two numbers"),
    ],
)
def test_refusals_name_the_cause_in_one_line(name, words, named):
    with pytest.raises(ConfigError) as error:
        load_config(name, words)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


FILES = {
    "good": (
        "from . import default\ndef get_config():\n    c = default.get_config()\n    c.seed = 5\n    return c\n",
        None,
    ),
    "absolute": ("from stce_jax.configs import digits\nget_config = digits.get_config\n", None),
    "syntax": ("def get_config(:\n", "SyntaxError"),
    "no_get_config": ("x = 1\n", "has no attribute 'get_config'"),
    "raises": ("def get_config():\n    return 1 / 0\n", "ZeroDivisionError: division by zero"),
    "wrong_type": (
        "from . import default\ndef get_config():\n    c = default.get_config()\n    c.seed = 'one'\n    return c\n",
        "TypeError",
    ),
    "unknown_key": (
        "from . import default\ndef get_config():\n    c = default.get_config()\n    c.sed = 1\n    return c\n",
        "sed",
    ),
    "unlocked_unknown_key": (
        "from . import default\ndef get_config():\n    c = default.get_config().unlock()\n"
        "    c.sed = 1\n    return c\n",
        "sets an unknown key 'sed'; did you mean 'seed'?",
    ),
    "incomplete": (
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'seed': 1})\n",
        "lacks the key",
    ),
    "no_config": ("def get_config():\n    return {}\n", "returns dict; it must return a ConfigDict"),
}


@pytest.mark.parametrize("case", sorted(FILES))
def test_config_files_of_users(tmp_path, case):
    text, named = FILES[case]
    path = tmp_path / "mine.py"
    path.write_text(text)
    if named is None:
        assert load_config(str(path), ["--config.log_every=3"]).log_every == 3
        return
    with pytest.raises(ConfigError) as error:
        load_config(str(path))
    assert named in str(error.value) and "\n" not in str(error.value)


def test_a_config_from_before_there_were_optimizers_to_choose_from_is_of_adamw():
    values = configuration.to_dict(load_config("digits"))
    del values["optimizer"]["name"]
    assert configuration.from_dict(values).optimizer.name == "adamw"


def test_json_round_trip():
    config = load_config("digits", ["--config.model.body.vit.depth=4"])
    text = configuration.to_json(config)
    assert json.loads(text)["model"]["body"]["vit"]["depth"] == 4 and json.loads(text)["form"] == 2
    assert configuration.differences(config, configuration.from_json(text)) == []
    assert configuration.from_json(text).to_dict() == config.to_dict()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"seed": 1}', '{"sed": 1}', '{"seed": "one"}'])
def test_damaged_json_is_refused(text):
    if text == '{"seed": 1}':
        assert configuration.from_json(text).seed == 1  # what is missing has its default
        return
    with pytest.raises(ConfigError, match=r"config\.json"):
        configuration.from_json(text)


def test_differences_leave_out_where_a_run_computes():
    old = load_config("digits")
    words = ["--config.loader_threads=9", "--config.data_dir=/x", "--config.model.body.vit.depth=4"]
    assert configuration.differences(old, load_config("digits", words)) == ["model.body.vit.depth: 3 -> 4"]


def test_differences_leave_out_what_no_chosen_module_reads():
    old = load_config("digits", ["--config.model.embedding.conv.stem_widths=8,64"])
    assert configuration.differences(old, load_config("digits")) == []
    conv = load_config("digits:conv")
    assert configuration.differences(load_config("digits"), conv) == ["model.name: vit_ti_stce -> vit_ti_conv"]
    assert configuration.differences(old, conv) == [
        "model.embedding.conv.stem_widths: (8, 64) -> (24, 48, 64)",
        "model.name: vit_ti_stce -> vit_ti_conv",
    ]


def test_an_empty_text_is_seen_among_what_differs():
    configs = [
        configuration.load_config("stce_vit_s", [f"--config.augment.rand_augment={text}"]) for text in ("rand-m9", "")
    ]
    assert configuration.differences(*configs) == ["augment.rand_augment: rand-m9 -> ''"]
    assert configuration.differences(*configs[::-1]) == ["augment.rand_augment: '' -> rand-m9"]
