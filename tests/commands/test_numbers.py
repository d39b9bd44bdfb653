"""Every number on the command line, found by walking the parser, has a range: outside of it one line and code 2."""

import argparse

import pytest
from helpers import run_cli
from PIL import Image

from stce_jax.cli import make_parser

HUGE = 10**12
# Options with a type whose value is no number.
WORDS = {("benchmark", "--dtypes"), ("benchmark", "--what"), ("export", "--platforms")}


def numbers():
    """(verb, option) of each option that is a number or several."""
    (verbs,) = (action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    found = {
        (verb, option.option_strings[0])
        for verb in verbs.choices
        for option in verbs.choices[verb]._actions
        if option.type is not None and option.option_strings
    }
    return sorted(found - WORDS)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with an image."""
    directory = tmp_path_factory.mktemp("numbers")
    Image.new("RGB", (20, 20)).save(directory / "one.png")
    return directory


@pytest.mark.parametrize("verb, option", numbers(), ids=lambda value: value)
def test_numbers_out_of_range_are_refused(verb, option, place, tiny_run, data_dir, capsys):
    """An option that fails here has no range: give it one in the verb's function."""
    run, image = f"--workdir={tiny_run[0]}", place / "one.png"
    others = {
        "train": ("--config=digits", f"--data_dir={data_dir}", f"--workdir={place}/run"),
        "show-data": ("--config=digits", f"--data_dir={data_dir}", f"--output={place}/out.png"),
        "lr-find": ("--config=digits", f"--data_dir={data_dir}", f"--output={place}/lr"),
        "prepare": ("folder", f"--source={place}", f"--data_dir={place}/data"),
        "predict": (image, run),
        "features": (image, run, f"--output={place}/out.npz"),
        "models": ("vit_ti_patch",),
        "reproduce": ("table6", "--scale=smoke", "--submit=slurm", f"--workdir={place}/sweep"),
        "benchmark": ("vit_ti_patch",),
        "export": (run, f"--output={place}/exported"),
        "watch": (str(tiny_run[0]), f"--output={place}/page.html"),
        "visualize": (image, "--model=vit_ti_stce" if option == "--seed" else run, f"--output={place}/drawn"),
    }
    for value in (-1, HUGE, "9" * 5000, "nan", "inf", "-inf", "", "one", "\x1b[31m", "1e400"):
        text = f"{value},{value}" if option == "--token" else value
        code, out, error = run_cli(capsys, verb, *others[verb], f"{option}={text}")
        assert code == 2 and out == "", f"{option}={str(value)[:20]}: {code} {out} {error}"
        assert error.count("\n") == 1 and len(error) < 2100 and "\x1b" not in error, error
    assert [path.name for path in place.iterdir()] == ["one.png"], "something was written"


@pytest.mark.parametrize("seeds", ["-1", str(HUGE), "9" * 5000, "nan", "", ",".join(map(str, range(2000)))])
def test_seeds_of_a_sweep_out_of_range_are_refused(seeds, tmp_path, capsys):
    words = ("table6", "--scale=smoke", f"--workdir={tmp_path / 'sweep'}", f"--seeds={seeds}")
    code, out, error = run_cli(capsys, "reproduce", *words)
    assert (code, out, error.count("\n")) == (2, "", 1), f"{code} {out} {error}"
    assert not (tmp_path / "sweep").exists()
