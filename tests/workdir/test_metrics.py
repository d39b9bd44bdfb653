"""What a run writes down and says: metrics.jsonl, TensorBoard events, the plot, and the lines on the screen."""

import itertools
import json
import math
import re
import socket
import struct
import subprocess
import sys
import types

import numpy as np
import pytest
import standin_storage
from matplotlib.figure import Figure
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from stce_jax.analysis.curves import plot_curves
from stce_jax.training import progress as progress_module
from stce_jax.training.progress import TrainProgress, show_opening
from stce_jax.workdir.metric_lines import read_metrics
from stce_jax.workdir.metrics import MetricsLog

TRAIN = {"loss": 1.5, "top1": 0.25, "top5": 0.75, "images_per_second": 1234.5, "learning_rate": 1e-3}
EVAL = {"loss": 1.25, "top1": 0.5, "top5": 1.0}


def write_step(log, step):
    log.write(step=step, epoch=step / 4, split="train", **TRAIN | {"loss": 1 / step})
    if step % 2 == 0:
        log.write(step=step, epoch=step / 4, split="eval", **EVAL)


def write_run(workdir, steps, after_step=0):
    """Lines of training every step, of evaluation every second one; the loss of step s is 1 / s."""
    workdir.mkdir(parents=True, exist_ok=True)
    with MetricsLog(workdir, after_step=after_step) as log:
        for step in steps:
            write_step(log, step)


def steps_of(workdir):
    return [(line["step"], line["split"]) for line in read_metrics(workdir)]


def read_events(path):
    """The events of a TensorBoard file, in which each stands between its length and checksums."""
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[12 + length + 4 :]
    return events


@pytest.fixture(autouse=True)
def clock_of_event_files(monkeypatch):
    """tensorboardX names its files by the second; these tests reopen faster than a run can."""
    seconds = itertools.count(1_600_000_000)
    clock = types.SimpleNamespace(time=lambda: float(next(seconds)))
    monkeypatch.setattr("tensorboardX.event_file_writer.time", clock)


# --- metrics.jsonl


def test_lines_hold_the_documented_keys(tmp_path):
    write_run(tmp_path, [1, 2])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 1, "epoch": 0.25, "split": "train", **TRAIN, "loss": 1.0},
        {"step": 2, "epoch": 0.5, "split": "train", **TRAIN, "loss": 0.5},
        {"step": 2, "epoch": 0.5, "split": "eval", **EVAL},
    ]
    assert read_metrics(tmp_path) == lines


def test_each_line_is_on_disk_once_written(tmp_path):
    """A run that is killed loses none."""
    with MetricsLog(tmp_path, after_step=0) as log:
        for step in (1, 2, 3):
            log.write(step=step, epoch=0.1, split="train", **TRAIN)
            assert len(read_metrics(tmp_path)) == step


@pytest.mark.parametrize("after_step", [0, 1, 2, 3, 99])
def test_lines_after_the_step_resumed_from_are_removed(tmp_path, after_step):
    write_run(tmp_path, [1, 2, 3, 4])
    before = read_metrics(tmp_path)
    with MetricsLog(tmp_path, after_step=after_step):
        assert read_metrics(tmp_path) == [line for line in before if line["step"] <= after_step]
    write_run(tmp_path, range(after_step + 1, 5), after_step=after_step)
    assert read_metrics(tmp_path) == before, "gone on with, the lines are not what they were"
    assert {path.name.split(".")[0] for path in tmp_path.iterdir()} == {"metrics", "events"}, "something is left over"


@pytest.mark.parametrize("cut", [1, 2, 20, 60])
def test_a_torn_last_line_is_dropped(tmp_path, cut):
    write_run(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    whole = [(1, "train"), (2, "train"), (2, "eval")][: 3 if cut == 1 else 2]  # cut 1 is the line's end alone
    assert steps_of(tmp_path) == whole
    write_run(tmp_path, [3], after_step=2)
    assert steps_of(tmp_path) == [*whole, (3, "train")]
    for line in path.read_text().splitlines():
        json.loads(line)


def test_a_workdir_without_metrics_has_none(tmp_path):
    assert read_metrics(tmp_path) == []


def test_what_is_not_finite_becomes_null(tmp_path):
    """NaN and Infinity are no JSON, and other readers than Python's refuse the line."""
    with MetricsLog(tmp_path, after_step=0) as log:
        log.write(step=1, epoch=0.5, split="train", loss=math.nan, top1=math.inf)
        log.write(step=2, epoch=1.0, split="train", loss=2.0, top1=0.5)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.splitlines()[0] == '{"step": 1, "epoch": 0.5, "split": "train", "loss": null, "top1": null}'
    assert read_metrics(tmp_path)[0]["loss"] is None
    plot_curves(tmp_path)
    (path,) = tmp_path.glob("events.out.tfevents.*")
    values = [value.simple_value for event in read_events(path) for value in event.summary.value]
    assert math.isnan(values[0]) and values[1] == math.inf, "TensorBoard marks such points"
    (tmp_path / "metrics.jsonl").write_text(text.replace("null", "NaN"))
    write_run(tmp_path, [3], after_step=2)
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize("step", [0, 2, 3, 4])
def test_rewinding_drops_the_later_steps(tmp_path, monkeypatch, step):
    monkeypatch.setattr("tensorboardX.event_file_writer.time", types.SimpleNamespace(time=lambda: 1.6e9))
    write_run(tmp_path / "straight", range(1, 6))
    (tmp_path / "rewound").mkdir()
    with MetricsLog(tmp_path / "rewound", after_step=0) as log:
        for now in (1, 2, 3, 4):
            write_step(log, now)
        log.rewind(step)
        assert {line["step"] for line in read_metrics(tmp_path / "rewound")} == set(range(1, step + 1))
        for now in range(step + 1, 6):
            write_step(log, now)
    assert read_metrics(tmp_path / "rewound") == read_metrics(tmp_path / "straight")
    files = sorted((tmp_path / "rewound").glob("events.out.tfevents.*"))
    assert len(files) == 2, "what was written before is overwritten, or there is no new file"
    assert [event.step for event in read_events(files[-1]) if event.HasField("session_log")] == [step + 1]


def test_a_link_with_the_name_of_an_event_file_is_not_followed(tmp_path, monkeypatch):
    """In a workdir that somebody else prepared: the library opens its file by name, and follows links."""
    monkeypatch.setattr("tensorboardX.event_file_writer.time", types.SimpleNamespace(time=lambda: 1.6e9))
    (tmp_path / "own").write_text("mine")
    for end in ("", ".1"):
        (tmp_path / f"events.out.tfevents.1600000000.{socket.gethostname()}{end}").symlink_to(tmp_path / "own")
    write_run(tmp_path, [1])
    assert (tmp_path / "own").read_text() == "mine", "the event file was written through a link"


def test_nothing_is_written_by_those_who_do_not_write(tmp_path):
    with MetricsLog(tmp_path / "none", after_step=0, writes=False) as log:
        log.write(step=1, epoch=0.1, split="train", **TRAIN)
        log.flush()
        log.rewind(0)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_full_disk_is_one_line(tmp_path):
    program = (
        "import resource, sys; from stce_jax.workdir.metrics import MetricsLog\n"
        "with MetricsLog(sys.argv[1], after_step=0) as log:\n"
        "  resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "  for step in range(9): log.write(step=step, epoch=0.0, split='train', loss=1.0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    expected = f"stce_jax.errors.ConfigError: cannot write metrics in {tmp_path}: No space left on device; repair"
    assert [line for line in done.stderr.splitlines() if line.startswith(expected)], done.stderr


@pytest.mark.parametrize("after_step", [0, 2])
def test_a_remote_workdir_is_written_at_every_flush(tmp_path, monkeypatch, after_step):
    """Whole files each time: nothing is ever appended."""
    standin_storage.install(monkeypatch, tmp_path)
    write_run(tmp_path / "bucket" / "run", range(1, 4))
    before = read_metrics("gs://bucket/run")
    assert before == read_metrics(tmp_path / "bucket" / "run")
    kept = [line for line in before if line["step"] <= after_step]
    with MetricsLog("gs://bucket/run", after_step=after_step) as log:
        write_step(log, after_step + 1)
        assert read_metrics("gs://bucket/run") == before, "each line was uploaded by itself"
        log.flush()
        lines = read_metrics("gs://bucket/run")
        assert lines[: len(kept)] == kept and {line["step"] for line in lines[len(kept) :]} == {after_step + 1}
        newest = max((tmp_path / "bucket" / "run").glob("events.out.tfevents.*"))
        events = read_events(newest)
        assert events[-1].step == after_step + 1 and events[-1].summary.value, "the last event is not there"
        write_step(log, after_step + 2)
        log.rewind(after_step + 1)
        assert read_metrics("gs://bucket/run") == lines
        write_step(log, after_step + 2)
    assert read_metrics("gs://bucket/run")[-1]["step"] == after_step + 2, "what came last was not uploaded"
    assert len(list((tmp_path / "bucket" / "run").glob("events*"))) == 3
    assert str(plot_curves("gs://bucket/run")) == "gs://bucket/run/plots/curves.png"
    assert coloured(tmp_path / "bucket" / "run" / "plots" / "curves.png")[1] > 0


# --- TensorBoard


def test_events_hold_the_values(tmp_path):
    write_run(tmp_path, [1, 2])
    (path,) = tmp_path.glob("events.out.tfevents.*")
    scalars = {
        (value.tag, event.step): value.simple_value for event in read_events(path) for value in event.summary.value
    }
    expected = {(f"train/{name}", step): value for step in (1, 2) for name, value in TRAIN.items()}
    expected |= {("train/loss", 1): 1.0, ("train/loss", 2): 0.5}
    expected |= {(f"eval/{name}", 2): value for name, value in EVAL.items()}
    assert scalars == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("after_step", [0, 2])
def test_reopening_has_tensorboard_forget_the_steps_after(tmp_path, after_step):
    """Also when a run that died before its first checkpoint starts over."""
    write_run(tmp_path, [1, 2, 3])
    write_run(tmp_path, [after_step + 1], after_step=after_step)
    newest = max(tmp_path.glob("events.out.tfevents.*"))
    starts = [event.step for event in read_events(newest) if event.HasField("session_log")]
    assert starts == [after_step + 1], "TensorBoard drops what is at or after the step of a START event; there is none"


# --- the plot


def coloured(path):
    """(size, number of pixels that are neither black, white nor grey)."""
    image = Image.open(path)
    pixels = np.asarray(image.convert("RGB"), int)
    return image.size, int((pixels.max(axis=2) - pixels.min(axis=2) > 60).sum())


def test_curves_are_drawn(tmp_path):
    write_run(tmp_path, range(1, 9))
    path = plot_curves(tmp_path)
    assert path == tmp_path / "plots" / "curves.png" and path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    (width, height), curves = coloured(path)
    assert 600 <= width <= 2400 and 240 <= height <= 1200 and width > height, f"{width} x {height} pixels"
    empty = tmp_path / "empty"
    empty.mkdir()
    _, legend_alone = coloured(plot_curves(empty))
    assert curves > 2 * legend_alone > 0, "there are no curves in the plot"
    assert plot_curves(tmp_path) == path, "a plot cannot be drawn anew"


def test_curves_hold_the_values(tmp_path, monkeypatch):
    write_run(tmp_path / "run", [1, 2, 3, 4])
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    plot_curves(tmp_path / "run")
    curves = [{line.get_label(): line.get_xydata().tolist() for line in axes.lines} for axes in drawn[0].axes]
    assert curves == [
        {"run train": [[step / 4, 1 / step] for step in (1, 2, 3, 4)], "run eval": [[0.5, 1.25], [1.0, 1.25]]},
        {"run train": [[step / 4, 25.0] for step in (1, 2, 3, 4)], "run eval": [[0.5, 50.0], [1.0, 50.0]]},
    ]
    assert [axes.get_title() for axes in drawn[0].axes] == ["loss", "top-1 (%)"]


def test_a_single_evaluation_can_be_seen(tmp_path):
    """A line needs two points; a run of one epoch has one."""
    empty, single = tmp_path / "empty", tmp_path / "single"
    for workdir in (empty, single):
        workdir.mkdir()
    write_run(single, [2])
    assert coloured(plot_curves(single))[1] > coloured(plot_curves(empty))[1] + 20, "nothing but the legend is drawn"


# --- the screen


class Clock:
    """A time that goes on by hand."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr("rich.console.monotonic", lambda: self.now)


def report(clock, total=1000, step=0, windows=3, seconds=1.0):
    with TrainProgress(total, step) as progress:
        for _ in range(windows):
            clock.now += seconds
            step += 50
            progress.train(
                step,
                step / 100,
                {"loss": 2.3456, "top1": 0.125, "top5": 0.5, "images_per_second": 12345.6, "data_wait": 0.03},
            )
        progress.evaluation(step, step / 100, {"loss": 1.2345, "top1": 0.98765, "top5": 1.0})
        progress.print("[bold]a line[/bold] with brackets, " + "long " * 40)


@pytest.fixture
def no_terminal(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_terminal_there_are_plain_lines(no_terminal, monkeypatch, capsys):
    report(Clock(monkeypatch))
    out, err = capsys.readouterr()
    assert err == ""
    assert not re.search(r"[^\x20-\x7e\n]", out), f"escape codes or the like: {out!r}"
    first, second, third, evaluation, said = out.splitlines()
    assert first.startswith("step 50/1000  epoch 0.50  train  loss 2.346  top-1 12.5%  12,346 images/s")
    assert second.startswith("step 100/1000  epoch 1.00  train  loss 2.346  top-1 12.5%  12,346 images/s  ")
    assert second.endswith("0:18 left") and third.endswith("0:17 left"), f"900 and 850 steps at 50 a second: {out}"
    assert evaluation == "step 150/1000  epoch 1.50  eval   loss 1.234  top-1 98.77%  top-5 100.00%"
    assert said == "[bold]a line[/bold] with brackets, " + "long " * 40, "lines are wrapped or taken for markup"


@pytest.mark.parametrize("seconds", [0.5, 20.0, 45.0, 600.0])
def test_the_time_left_is_told_however_slow_the_steps_are(no_terminal, monkeypatch, capsys, seconds):
    report(Clock(monkeypatch), total=450, seconds=seconds)
    line = capsys.readouterr().out.splitlines()[2]
    assert line.endswith(" left"), f"no time left in the third line of a run with a line in {seconds} s: {line}"
    parts = [int(part) for part in line.split()[-2].split(":")]
    told = sum(part * 60**power for power, part in enumerate(reversed(parts)))
    assert told == pytest.approx(6 * seconds, abs=1), f"300 steps at 50 in {seconds} s: {line}"


def test_a_resumed_run_counts_the_steps_it_makes_itself(no_terminal, monkeypatch, capsys):
    report(Clock(monkeypatch), total=1000, step=800, windows=3, seconds=2.0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 850/1000")
    assert lines[1].endswith("0:04 left"), f"100 steps at 25 a second: {lines[1]}"
    assert lines[2].endswith("0:02 left"), f"50 steps at 25 a second: {lines[2]}"


def test_losses_of_any_size_can_be_shown(no_terminal, capsys):
    with TrainProgress(10, 0) as progress:
        for step, loss in enumerate((1e-9, 1e30, math.nan, math.inf), start=1):
            progress.train(
                step, 0.1, {"loss": loss, "top1": 0.0, "top5": 0.0, "images_per_second": 0.01, "data_wait": 0.0}
            )
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_a_terminal_gets_a_live_line(no_terminal, monkeypatch, capsys, variable):
    monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    report(Clock(monkeypatch))
    out = capsys.readouterr().out
    assert "\x1b[" in out, "no live line"
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out)
    assert re.search(r"epoch 1\.5 .*15% +loss 2\.346  top-1 12\.5%  12,346 images/s  waiting 3% +0:00:17", plain), repr(
        plain
    )
    assert "step 150/1000  epoch 1.50  eval   loss 1.234" in plain, "what should stay does not"
    assert "[bold]a line[/bold]" in plain
    assert "train" not in plain, "plain lines beside the live one"


def as_terminal(monkeypatch):
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm-256color"), ("COLUMNS", "100")):
        monkeypatch.setenv(name, value)


def shown(text):
    """A terminal's text without what moves and colours it."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_compiling_is_two_lines_without_a_terminal(no_terminal, capsys):
    with TrainProgress(10, 0) as progress, progress.compiling("the step"):
        assert capsys.readouterr().out == "compiling the step\n"
    assert re.fullmatch(r"compiled the step in 0\.\d s\n", capsys.readouterr().out)


def test_a_clock_runs_on_a_terminal_while_it_compiles(no_terminal, monkeypatch, capsys):
    as_terminal(monkeypatch)
    now = itertools.count(1000, 83)
    monkeypatch.setattr(progress_module, "time", types.SimpleNamespace(monotonic=lambda: float(next(now))))
    with TrainProgress(10, 0) as progress:
        with progress.compiling("the step"):
            progress._bar.refresh()
        progress.first(1, 0.1, {"loss": 2.5, "top1": 0.25})
        progress._bar.refresh()
    out = capsys.readouterr().out
    assert "compiling the step, 83 s" in shown(out) and "compiling the step\n" not in shown(out)
    assert re.search(r"compiled the step in \d+\.0 s", shown(out)) and "loss 2.500  top-1 25.0%" in shown(out)
    assert "\x1b[?25l" not in out, "a signal that ends the process would leave the terminal without a cursor"


def test_an_error_ends_the_clock(no_terminal, monkeypatch, capsys):
    as_terminal(monkeypatch)
    with pytest.raises(MemoryError), TrainProgress(10, 0) as progress, progress.compiling("the step"):
        raise MemoryError
    assert "compiled" not in capsys.readouterr().out
    assert not progress._bar.live.is_started


def test_an_opening_is_a_table_on_a_terminal_and_lines_elsewhere(no_terminal, monkeypatch, capsys):
    rows = {"model": "vit [bold]", "data": "q" * 150 + "\x1b[2J", "start": "new"}
    show_opening(rows)
    assert capsys.readouterr().out.splitlines() == ["model: vit [bold]", f"data: {'q' * 150}\\x1b[2J", "start: new"]
    as_terminal(monkeypatch)
    show_opening(rows)
    out = capsys.readouterr().out
    assert "\x1b[2J" not in out and "vit [bold]" in shown(out), "text of others steers the terminal"
    lines = shown(out).splitlines()
    assert {len(line) for line in lines} == {100} and shown(out).count("q") == 150, "a long value is cut or runs over"


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(no_terminal, monkeypatch, capsys):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "dumb")
    report(Clock(monkeypatch))
    assert "step 100/1000  epoch 1.00  train  loss 2.346" in capsys.readouterr().out, (
        "such a terminal shows no progress"
    )
