"""The completion scripts: what bash offers at each place of the command line, and that zsh can read its own."""

import pytest
from helpers import run_cli

from stce_jax.cli import VERBS, make_parser
from stce_jax.configs.tables import scales
from stce_jax.data.catalog import DATASETS
from stce_jax.verbs import completion
from stce_jax.workdir import config as configuration

CONFIGS = {"default", "digits", "patch_vit_s", "conv_vit_s", "stce_vit_s", "small_folder", "modern", "modern_vit_s"}
CONFIGS |= {"cmt_s", "cvt_13", "dat_t", "deit_s", "focal_t", "mobilevit_s", "swin_t"}


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The script for bash, as the command prints it."""
    path = tmp_path_factory.mktemp("completion") / "stce"
    path.write_text(completion.completion(make_parser(), "bash"))
    return path


def test_the_words_offered_are_those_that_are_taken():
    words, tables = completion.WORDS, configuration.SHIPPED / "tables"
    assert {path.stem for path in configuration.SHIPPED.glob("[!_]*.py")} == CONFIGS
    assert set(words["dataset"]) < set(DATASETS)
    assert words["scale"] == scales.VARIANTS
    assert set(words["table"]) == {path.stem for path in tables.glob("[!_]*.py")} - {"scales"} | {"all"}
    (verbs,) = (action for action in make_parser()._actions if action.dest == "verb")
    known = {action.dest for verb in verbs.choices.values() for action in verb._actions}
    assert {*words, *completion.DIRECTORIES, *completion.NOTHING, "config"} <= known, "an argument is gone"


def test_the_script_for_zsh_is_made_without_zsh():
    script = completion.completion(make_parser(), "zsh")
    assert script.startswith("#compdef stce\n")
    for verb in VERBS:
        assert f"\n    {verb}:'" in script, f"{verb} is missing"
    assert '"--config=[' in script and '"--workdir=[' in script and '"--ema[' in script, "how values are given"


# --- the command


def test_the_command_prints_the_script(capsys, script):
    code, out, error = run_cli(capsys, "completion", "bash")
    assert (code, out, error) == (0, script.read_text() + "\n", "")
    code, out, error = run_cli(capsys, "completion", "fish")
    assert code == 2 and out == "" and "'fish'" in error and error.count("\n") == 1
