"""Damaged lines of metrics.jsonl: never taken for measurements, never dropped without a word, never a traceback."""

import json
import os

import pytest
from helpers import TINY, run_cli

from stce_jax.analysis.curves import plot_curves
from stce_jax.errors import ConfigError
from stce_jax.verbs import train
from stce_jax.workdir import metric_lines
from stce_jax.workdir.metric_lines import read_metrics, sort_out
from stce_jax.workdir.metrics import MetricsLog, log_skipped

GOOD = [
    {"step": 1, "epoch": 0.25, "split": "train", "loss": 1.5, "top1": 0.25, "top5": 0.75, "images_per_second": 99.5},
    {"step": 2, "epoch": 0.5, "split": "train", "loss": None, "top1": 0.5, "top5": 1, "images_per_second": 98.0},
    {"step": 2, "epoch": 0.5, "split": "eval", "loss": 1.25, "top1": 0.5, "top5": 1.0},
]
FILE = "".join(json.dumps(line) + "\n" for line in GOOD)
EVAL = json.dumps(GOOD[2])


def damaged_by(**changes):
    """An evaluation's line with other values; without a key where it is ..., which JSON lacks."""
    return json.dumps({key: value for key, value in (GOOD[2] | changes).items() if value is not ...})


DAMAGED = [
    *("{}", "null", "[1]", "1", '"x"', "true", "{", "}", "{}{}", "x", "\x00", "\xae", "[" * 100_000, '{"a":' * 5000),
    *(EVAL[:-1], EVAL[1:], EVAL + EVAL, f"{EVAL},{EVAL}", f"[{EVAL}]", EVAL.replace("2", "2" * 5000, 1)),
    *(damaged_by(step=step) for step in (0, -1, 1.0, True, "1", None, ..., [1])),
    *(damaged_by(epoch=epoch) for epoch in (0, -1.0, "1", None, ..., True, {})),
    *(damaged_by(split=split) for split in ("evam", "", None, ..., 1, ["eval"])),
    *(damaged_by(loss=loss) for loss in ("1", True, [1.0], {}, ..., 10**30)),
    *(damaged_by(top1=...), damaged_by(top5="x"), EVAL.replace("1.25", "1e999")),
]


def test_lines_of_several_labels_an_image_are_whole():
    lines = [{**GOOD[2], "map": 0.5}, GOOD[0]]
    lines = [{key: value for key, value in line.items() if key not in ("top1", "top5")} for line in lines]
    whole, damaged = sort_out("\n".join(map(json.dumps, [*lines, GOOD[0] | {"split": "eval"}])).encode())
    assert [line.values for line in whole[:2]] == lines and not damaged
    without = [{key: value for key, value in line.items() if key not in gone} for line, gone in LACKING]
    assert len(sort_out("\n".join(map(json.dumps, without)).encode())[1]) == len(LACKING)


LACKING = [(GOOD[0], ("top1",)), (GOOD[2], ("top1", "top5")), (GOOD[0], ("loss", "top1", "top5"))]


@pytest.mark.parametrize("text", DAMAGED, ids=lambda text: repr(text[:30]))
@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_damaged_line_is_told_from_the_whole_ones(text, place):
    lines = FILE.splitlines()
    lines.insert(place, text)
    whole, damaged = sort_out("\n".join(lines).encode("latin-1"))
    assert [line.values for line in whole] == GOOD
    assert [(line.number, line.raw) for line in damaged] == [(place + 1, text.encode("latin-1"))]


def test_lines_that_make_one_object_together_are_two_damaged_ones():
    """They are decoded many at a time."""
    for pair in (('{"a":"}', '{","b":2}'), ('{"a":[{"b":1}', '{"c":2}]}'), (EVAL[:20], EVAL[20:])):
        for more in ([], ["{},{}"], [f"{EVAL},{EVAL}"]):
            whole, damaged = sort_out("\n".join([*pair, *more, EVAL]).encode())
            assert len(whole) == 1 and len(damaged) == 2 + len(more), (pair, more)


def test_every_bit_that_is_flipped_leaves_lines_that_can_be_relied_on():
    data = FILE.encode()
    for place in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            whole, damaged = sort_out(bytes(changed))
            count = sum(bool(line.strip()) for line in bytes(changed).split(b"\n"))
            assert len(whole) + len(damaged) == count, f"bit {bit} of byte {place}: a line is lost"
            assert len(whole) >= 1 and all(map(metric_lines.is_whole, (line.values for line in whole)))


def test_reading_says_once_which_lines_are_left_out(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text(f"null\n{FILE}[1]\n" + "x\n" * 5)
    for _ in range(2):
        assert read_metrics(tmp_path) == GOOD
    said = capsys.readouterr().err
    assert said == f"stce: {tmp_path}/metrics.jsonl: lines 1, 5, 6, 7, 8 and 2 more are damaged and left out\n"
    plot_curves(tmp_path)


def test_training_moves_them_to_a_file_of_their_own(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\xae\xff\n" + FILE.encode() + EVAL[:30].encode())
    with MetricsLog(tmp_path, after_step=2):
        pass
    assert path.read_text() == FILE, "whole lines are not as they were"
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == b"\xae\xff\n" + EVAL[:30].encode() + b"\n"
    assert f"{path}: lines 1, 5 are damaged and moved to metrics.jsonl.damaged" in capsys.readouterr().err
    path.write_text(FILE + "{}\n")
    with MetricsLog(tmp_path, after_step=2) as log:
        log.rewind(1)
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes().endswith(b"\n{}\n"), "the first ones were overwritten"
    assert read_metrics(tmp_path) == GOOD[:1] and capsys.readouterr().err.count("\n") == 1


def test_a_damaged_list_of_skipped_steps_is_added_to(tmp_path):
    path = tmp_path / "skipped.jsonl"
    path.write_bytes(b"{}\n\xff\n")
    for step in (5, 7, 6):
        log_skipped(tmp_path, step=step, rollbacks=0, images=["a"], loss=1.0)
    lines = path.read_bytes().splitlines()
    assert lines[:2] == [b"{}", b"\xff"] and [json.loads(line)["step"] for line in lines[2:]] == [5, 6]


@pytest.mark.parametrize("kind", ["directory", "pipe", "unreadable link"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, kind):
    path = tmp_path / "metrics.jsonl"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/null")
    for read in (read_metrics, lambda workdir: MetricsLog(workdir, after_step=0), plot_curves):
        with pytest.raises(ConfigError, match=r"cannot read .*metrics\.jsonl: it is no file; repair that"):
            read(tmp_path)


def test_many_lines_are_decoded_together(monkeypatch):
    """A third of a million lines, as of a run that logs every step, open in seconds."""
    calls = []
    decode = metric_lines._decoded
    monkeypatch.setattr(metric_lines, "_decoded", lambda text: calls.append(1) or decode(text))
    whole, damaged = sort_out((FILE * 10_000).encode())
    assert (len(whole), len(damaged), len(calls)) == (30_000, 0, 3)


def test_commands_on_a_run_whose_metrics_are_damaged(tiny_run, data_dir, tmp_path, capsys, monkeypatch):
    workdir, _ = tiny_run
    path = workdir / "metrics.jsonl"
    before = path.read_bytes()
    lines = before.splitlines(keepends=True)
    path.write_bytes(b"".join([b"\xae{}\n", *lines[:-1], b"null\n", lines[-1]]))
    words = ("compare", workdir, f"--output={tmp_path / 'curves.png'}")
    code, out, error = run_cli(capsys, *words)
    assert code == 0 and "finished" in out and "are damaged and left out" in error and error.count("\n") == 1, error
    train_words = ("train", *TINY, f"--workdir={workdir}", f"--data_dir={data_dir}")
    code, out, error = run_cli(capsys, *train_words)
    assert code == 0 and "already finished" in out and "Traceback" not in error

    def fails(workdir):
        raise RuntimeError("no font is there")

    monkeypatch.setattr(train, "plot_curves", fails)
    code, out, error = run_cli(capsys, *train_words)
    assert code == 0 and "already finished" in out, error
    path.write_bytes(before)


def test_evaluations_without_a_finite_top1_are_no_hindrance(tiny_run, tmp_path, capsys):
    path = tiny_run[0] / "metrics.jsonl"
    before = path.read_text()
    path.write_text(before + damaged_by(step=89, top1=None, loss=None) + "\n" + damaged_by(step=90, loss=1e308) + "\n")
    code, out, error = run_cli(capsys, "compare", tiny_run[0], f"--output={tmp_path / 'curves.png'}")
    path.write_text(before)
    assert code == 0 and error == "" and "curves in" in out, error
