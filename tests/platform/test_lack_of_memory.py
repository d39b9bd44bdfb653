"""Where memory is refused, a user gets one line and exit code 2, whatever the verb."""

import numpy as np
import pytest

from stce_jax import cli

PETABYTE = 2**50


def fill_the_device(arguments, rest):
    import jax

    jax.block_until_ready(jax.jit(lambda: jax.numpy.ones(PETABYTE // 4))())


def fill_the_host(arguments, rest):
    np.ones(PETABYTE, np.uint8)


def another_error(arguments, rest):
    raise RuntimeError("INTERNAL: 5 bytes")


TRAIN, FEATURES = ["train", "--config=digits", "--workdir=w"], ["features", "x.jpg", "--workdir=w"]


@pytest.mark.parametrize(
    "words, named", [(TRAIN, "config.accumulate"), (FEATURES, "--batch_size"), (["models"], "smaller")]
)
@pytest.mark.parametrize("fill", [fill_the_device, fill_the_host])
def test_lack_of_memory_is_one_line(capsys, monkeypatch, words, named, fill):
    monkeypatch.setattr(cli.VERBS[words[0]], "run", fill)
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith("stce: out of memory") and error.count("\n") == 1 and named in error
    assert fill is fill_the_host or "no 1,125,899.9 GB" in error


def test_with_debug_there_is_a_traceback(capsys, monkeypatch):
    monkeypatch.setattr(cli.VERBS["models"], "run", fill_the_host)
    with pytest.raises(SystemExit):
        cli.main(["models", "--debug"])
    assert "fill_the_host" in capsys.readouterr().err


def test_other_errors_stay(monkeypatch):
    monkeypatch.setattr(cli.VERBS["models"], "run", another_error)
    with pytest.raises(RuntimeError, match="INTERNAL"):
        cli.main(["models"])
