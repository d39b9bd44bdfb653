"""Exports that other libraries read back, killed before one of their writes after the other, and started again."""

import pytest
from killed_outputs import check, killed

pytestmark = pytest.mark.slow
FORMATS = ("timm", "torch", "onnx")  # the others: tests/slow/test_killed_outputs.py
for _name in ("timm", "torch", "onnxruntime", "jax2onnx"):
    pytest.importorskip(_name)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = tmp_path_factory.mktemp("killed")
    return root, killed(root, FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_killed_export_leaves_nothing_that_looks_whole_and_runs_again(done, name):
    check(done[0], name, done[1][name])
