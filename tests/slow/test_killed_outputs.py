"""`stce import` and `stce export`, killed before one of their writes after the other, and started again."""

import pytest
from killed_outputs import check, killed

import stce_jax
from stce_jax.convert.sources import open_source

FORMATS = ("jax", "safetensors", "huggingface")  # the others: tests/interop/test_killed_exports.py


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = tmp_path_factory.mktemp("killed")
    return root, killed(root, FORMATS)


@pytest.mark.parametrize("command", ["import", *FORMATS])
def test_a_killed_command_leaves_nothing_that_looks_whole_and_runs_again(done, command):
    made = check(done[0], command, done[1][command])
    if command == "import":
        assert stce_jax.load_run(made).step == 0
    elif command != "jax":
        assert open_source(made).classes == 5
