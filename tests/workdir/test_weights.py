"""Files of weights: what is written is read to the bit. Damaged files: tests/convert/test_initial.py."""

import numpy as np
import pytest

from stce_jax.errors import CheckpointError, ConfigError
from stce_jax.workdir import weights

VARIABLES = {
    "params": {
        "norm": {"scale": np.arange(3, dtype=np.float32)},
        "kernel": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    },
    "batch_stats": {"norm": {"mean": np.array(0.5, np.float32)}},
}
CLASSES = ["0", "ä b", "n01440764"]


def test_flat_paths_and_back():
    flat = weights.flatten(VARIABLES)
    assert list(flat) == ["params/norm/scale", "params/kernel", "batch_stats/norm/mean"]
    assert flat["params/kernel"].flags.c_contiguous, "other libraries read the bytes as they lie"
    back = weights.unflatten(flat)
    assert back["batch_stats"]["norm"]["mean"] == 0.5 and back["params"]["kernel"].shape == (3, 2)


def test_safetensors_keep_every_bit_and_the_classes(tmp_path):
    path = tmp_path / "a.safetensors"
    weights.save_weights(path, VARIABLES, CLASSES)
    arrays, class_ids = weights.read_file(path)
    assert class_ids == CLASSES
    for name, array in weights.flatten(VARIABLES).items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape), name
        assert arrays[name].tobytes() == array.tobytes(), f"{name} has other bits"


def test_a_npz_names_no_classes(tmp_path):
    flat = {path: array.astype(np.float32) for path, array in weights.flatten(VARIABLES).items()}
    np.savez(tmp_path / "a.npz", **flat)
    arrays, class_ids = weights.read_file(tmp_path / "a.npz")
    assert class_ids is None and arrays.keys() == flat.keys()


def test_refusals(tmp_path):
    with pytest.raises(ConfigError, match="No such file or directory; give another path"):
        weights.save_weights(tmp_path / "missing" / "a.safetensors", VARIABLES, CLASSES)
    with pytest.raises(CheckpointError, match=r"others, such as \.pt, .* can run any code"):
        weights.read_file(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"cannot read .*a\.npz: FileNotFoundError"):
        weights.read_file(tmp_path / "a.npz")
