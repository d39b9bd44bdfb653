"""Every key of configs/default.py, found by walking it, refuses values that no run can want, in one line."""

import dataclasses
import inspect
import math

import numpy as np
import pytest
from ml_collections import config_dict

from stce_jax.configs import default
from stce_jax.errors import ConfigError
from stce_jax.models.factory import NO_OPTIONS, TABLES
from stce_jax.models.reductions import REDUCTIONS, acts_before
from stce_jax.recipe import augment, optimizers
from stce_jax.training.assemble import build_model, load_config
from stce_jax.training.options import check_options
from stce_jax.workdir import config as configuration
from stce_jax.workdir import values
from stce_jax.workdir.values import check_kinds, leaves

KEYS = [key for key, _ in leaves(default.get_config())]
FREE = {"data_dir", "classes", "init_from"}  # any text may name a file or a list
ANY = [{1, 2}, lambda: 1, np.ones(3), np.int64(1), b"1", object(), int, 10**5000, -(10**5000), 1j, [[[]]] * 2]
NUMBERS = [math.inf, -math.inf, math.nan, -1, -1e39, 1e39, -(10**12), 10**40, "1", (1,), True, np.float32(math.nan)]
DEEP = ()
for _ in range(200):
    DEEP = (DEEP,)
HOSTILE = {
    bool: [0, 2, "yes", math.nan, ()],
    int: [*NUMBERS, 0.5, 1.0, 10**12],
    float: [*NUMBERS, 1e308],
    str: [1, "a\0b", "x" * 10**6, ("a",), True],
    tuple: [
        *(5, "a", (math.inf,), (math.nan, 1.0), (-1, 2), (0, 1), ("a", "b"), (10**12, 10**12), (1e39, 1e39)),
        *((True, True), (None, None), (1,) * 100_000, DEEP, ({1}, {2}), ("a\0",)),
    ],
}
# What is hostile to other keys, and has a meaning for these.
MEANT = {f"model.reduction.{name}.blocks": (0, 1) for name, module in REDUCTIONS.items() if not acts_before(module)}
MEANT |= {"model.reduction.tome.r": (0, 1), "model.reduction.tome.inflection": -1}
MEANT |= {"optimizer.freeze": ("a", "b")}  # names of parts, of whatever model


def parent(config, key):
    """(the section of a key, the key's last word)."""
    *sections, last = key.split(".")
    for section in sections:
        config = config[section]
    return config, last


def kind_of(key):
    section, last = parent(default.get_config(), key)
    return section.get_type(last), section[last] is None


def config_for(key):
    """A config whose model has the module of a key."""
    config = default.get_config().unlock()
    words = key.split(".")
    if len(words) == 4:  # model, part, module, option
        config.model[words[1]].name = words[2]
    return config


def refusal(config, key, value):
    """What the checks say about a value under a key; None: they pass."""
    section, last = parent(config, key)
    section._fields[last] = value  # as `ignore_type` does, which walks everything each time
    try:
        check_options(config)
        if key.startswith("model."):
            build_model(config, 10)
    except ConfigError as error:
        return str(error)
    return None


def hostile_values(key):
    kind, optional = kind_of(key)
    values = [*ANY, *HOSTILE[kind], *([] if optional else [None, config_dict.placeholder(kind)])]
    if kind is str and key not in FREE:
        values.append("no such \x1b[31m")
    return values


@pytest.mark.parametrize("key", KEYS)
def test_no_key_takes_a_value_that_no_run_can_want(key):
    """A key that fails here has no range: give it one in the `check_options` or `check` of what uses it."""
    config = config_for(key)  # each value takes the place of the one before
    for value in hostile_values(key):
        if key in MEANT and type(value) is type(MEANT[key]) and value == MEANT[key]:
            continue
        said = refusal(config, key, value)
        shown = f"{key} = {str(value)[:80] if not isinstance(value, int) else '...'}"
        assert said is not None, f"{shown} is taken"
        assert "\n" not in said and len(said) < 500, f"{shown}: no short line"
        assert key.rpartition(".")[2] in said or key.endswith(("name", "rand_augment")), f"{shown} is not named: {said}"


def test_a_new_key_without_a_range_is_found(monkeypatch):
    """What the test above relies on: of a key that nobody checks only the kind is."""
    plain = default.get_config

    def with_another():
        config = plain().unlock()
        config.another = 1.0
        return config.lock()

    monkeypatch.setattr(default, "get_config", with_another)
    monkeypatch.setattr(values, "_kinds", values._kinds.__wrapped__)
    assert "another" in dict(leaves(default.get_config()))
    assert refusal(config_for("another"), "another", -1) is None, "the test above would not find a key without a range"
    assert refusal(config_for("another"), "another", math.nan) == "config.another is nan; it must be a finite number"


def test_every_option_of_every_table_has_a_key():
    """So that walking the keys meets every module, optimizer and part of the augmentation."""
    config = default.get_config()
    for kind, table in TABLES.items():
        for name, module in table.items():
            options = {field.name for field in dataclasses.fields(module)} - NO_OPTIONS[kind]
            assert set(config.model[kind][name]) == options, f"{kind} {name}"
    assert set(augment.option_names()) <= set(config.augment)
    own = {"name", "learning_rate", "learning_rate_scaling", "clip_norm", "ema_decay"}
    own |= {"warmup_epochs", "warmup_learning_rate", "final_learning_rate", "schedule", "decay_share"}
    own |= {"sam_rho", "layer_decay", "freeze", "ema_share"}
    for function in optimizers.OPTIMIZERS.values():
        given = {"schedule", "matrices"}  # the latter is of the model
        assert set(inspect.signature(function).parameters) - given <= set(config.optimizer) - own


@pytest.mark.parametrize(
    "override",
    [
        *("optimizer.warmup_epochs=inf", "optimizer.beta1=nan", "optimizer.beta2=1.0", "optimizer.epsilon=0"),
        *("optimizer.ema_decay=1.0", "augment.mixup=1e-30", "augment.crop_ratio=1e-320,1e308", "epochs=1e308"),
        *("augment.shift=225", "divergence.loss_spike=0.5", "loader_threads=100000", "loader_workers=1000"),
        *("model.embedding.stce.iterations=100000", "model.body.vit.depth=1000000", "model.body.vit.width=1000000"),
        *("model.embedding.stce.stem_strides=1000,1", "model.embedding.stce.cell=9999,9999", f"seed={10**4299}"),
        *(f"seed={'9' * 5000}", f"model.embedding.stce.cell={'(' * 5000}", "model.embedding.stce.cell={{},{}}"),
        *("augment.crop_area=[[1]]", "model.name=", "model.name=\x1b[2J", "cache_megabytes=999999999999"),
    ],
)
def test_overrides_that_no_run_can_want(override):
    with pytest.raises(ConfigError) as error:
        build_model(load_config("default", [f"--config.{override}"]), 10)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "word", ["--flagfile=/dev/zero", "--undefok=seed", "-flagfile=x", "--config.=1", "--config..=1"]
)
def test_words_that_the_parser_of_flags_would_take_are_no_overrides(word):
    with pytest.raises(ConfigError):
        load_config("default", [word])


BEGIN = "from . import default\ndef get_config():\n    c = default.get_config().unlock()\n"


def setting(line, before=""):
    """A config file that sets a value, whatever its type."""
    return f"{before}{BEGIN}    with c.ignore_type():\n        {line}\n    return c\n"


FILES = {
    "exits_0": ("import sys\nsys.exit(0)\n", "calls exit(); it must return a config and nothing else"),
    "exits_in_get_config": ("def get_config():\n    raise SystemExit\n", "calls exit()"),
    "quits": ("quit()\n", "calls exit()"),
    "raises_what_is_no_exception": ("def get_config():\n    raise BaseException('why')\n", "BaseException: why"),
    "is_cancelled": ("import asyncio\nraise asyncio.CancelledError\n", "CancelledError"),
    "recurses": ("def get_config():\n    return get_config()\n", "RecursionError"),
    "recurses_when_imported": ("def f():\n    f()\nf()\n", "RecursionError"),
    "holds_itself": (f"{BEGIN}    c.augment.own = c\n    return c\n", ""),
    "is_deep": (f"{BEGIN}    for _ in range(500): c = type(c)(dict(c=c))\n    return c\n", ""),
    "function": (
        f"{BEGIN}    with c.ignore_type():\n        c.seed = get_config\n    return c\n",
        "config.seed is <function",
    ),
    "set": (setting("c.epochs = {1}"), "config.epochs is {1}"),
    "array": (setting("c.seed = numpy.ones(9)", "import numpy\n"), "config.seed is array("),
    "bytes": (setting("c.dataset = b'x'"), "config.dataset is b'x'"),
    "huge": (f"{BEGIN}    c.seed = 10**5000\n    return c\n", "config.seed is no printable int"),
    "nothing": (setting("c.seed = None"), "config.seed is None"),
    "required": (
        f"from ml_collections import config_dict\n{BEGIN}    del c.seed\n"
        "    c.seed = config_dict.required_placeholder(int)\n    return c\n",
        "fails with RequiredValueError",
    ),
    "computed": (
        f"from ml_collections import config_dict\n{BEGIN}    del c.seed\n"
        "    c.seed = config_dict.FieldReference(0) // config_dict.FieldReference(0)\n    return c\n",
        "ZeroDivisionError",
    ),
    "frozen": (
        f"from ml_collections import config_dict\n{BEGIN}    return config_dict.FrozenConfigDict(c)\n",
        "returns FrozenConfigDict; it must return a ConfigDict",
    ),
    "of_class": ("class get_config:\n    pass\n", "returns get_config; it must return a ConfigDict"),
    "of_two": ("def get_config(a, b):\n    pass\n", "TypeError"),
    "no_function": ("get_config = 3\n", "TypeError"),
    "no_section": (f"{BEGIN}    del c.model\n    c.model = 3\n    return c\n", ""),
    "section_for_a_value": (f"{BEGIN}    del c.seed\n    c.seed = dict(a=1)\n    return c\n", ""),
    "number_for_a_key": (f"{BEGIN}    return type(c)({{1: 2}}, allow_dotted_keys=True)\n", ""),
    "message_of_a_megabyte": ("raise ValueError('x' * 10**6)\n", "ValueError: xxx"),
    "message_that_fails": (
        "class E(Exception):\n    def __str__(self):\n        raise RuntimeError\nraise E\n",
        "fails with E: E",
    ),
    "misspelled_key": (
        f"{BEGIN}    c.lock()\n    c.optimizer.lerning_rate = 1\n    return c\n",
        "optimizer.learning_rate",
    ),
    "key_of_another_tool": (f"{BEGIN}    c.lock()\n    c.optimizer.lr = 1\n    return c\n", "optimizer.learning_rate"),
    "no_text": ("\0\1\2\xff\n", ""),
}


@pytest.mark.parametrize("case", FILES)
def test_config_files_that_exit_recurse_or_hold_odd_values(tmp_path, stce_here, case):
    text, named = FILES[case]
    path = tmp_path / "mine.py"
    path.write_text(text, encoding="latin-1")
    done = stce_here("train", f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2, done.stderr
    assert named in done.stderr and done.stderr.count("\n") == 1 and len(done.stderr) < 2100, done.stderr
    assert [file.name for file in tmp_path.iterdir() if file.suffix != ""] == ["mine.py"], "something was written"


@pytest.mark.parametrize(
    "name", ["~nobody-of-this-name/x.py", "x" * 5000, "x" * 5000 + ".py", "a\0b.py", "", ".py", "/"]
)
def test_names_that_no_config_can_have(name):
    with pytest.raises(ConfigError, match="there is no config"):
        load_config(name)


def test_options_of_registered_modules_are_plain():
    config = default.get_config().unlock()
    config.model.body.own = config_dict.ConfigDict({"rate": 0.5, "names": ("a", "b"), "maybe": None, "on": True})
    check_kinds(config)
    for value in (math.inf, np.ones(2), {1}, 10**30, print):
        with config.model.body.own.ignore_type():
            config.model.body.own.rate = value
        with pytest.raises(ConfigError, match=r"config\.model\.body\.own\.rate"):
            check_kinds(config)


def test_a_lazy_value_follows_what_it_refers_to(tmp_path):
    path = tmp_path / "lazy.py"
    path.write_text(f"{BEGIN}    c.eval_batch_size = c.get_ref('batch_size')\n    return c\n")
    assert configuration.load_config(str(path), ["--config.batch_size=7"]).eval_batch_size == 7
