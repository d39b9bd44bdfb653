"""Benchmarking: exact figures under a clock that the test turns, counts by hand, tables that agree, failing rows."""

import csv
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import run_cli

from stce_jax.analysis.costs import count_model, count_multiply_adds, count_parameters
from stce_jax.analysis.timing import contenders, train_step
from stce_jax.analysis.timing.model_specs import read_specs
from stce_jax.analysis.timing.turns import Estimate, calls_lasting, in_turn, median_estimate
from stce_jax.commands import benchmark as shown_words
from stce_jax.training import assemble as runs
from stce_jax.training.state import abstract_variables
from stce_jax.verbs import benchmark as verb

SMALL = "width=16,depth=1,heads=2,mlp_dim=24"
PATCH, STCE = f"vit_ti_patch,{SMALL}", f"vit_ti_stce,{SMALL},stem_widths=4,8,stem_strides=2,2"
TOO_LARGE = 10**13  # images: more bytes than any address space has


# --- what is counted


@pytest.mark.slow
@pytest.mark.parametrize("iterations", [1, 3])
def test_multiply_adds_of_a_super_token_model_by_hand(iterations):
    (spec,) = read_specs(f"{STCE},iterations={iterations}", image_size=32, num_classes=5)
    counts = count_model(spec.build(), spec.image_size)
    convolutions = 16 * 16 * 4 * (3 * 3 * 3) + 8 * 8 * 8 * (3 * 3 * 4)
    # Four blocks of 4 x 4 pixels, each against the 4 x 4 super tokens in and around it, 8 channels; affinities, means.
    clustering = iterations * 2 * (4 * 16 * 16 * 8)
    projection = 16 * 8 * 16
    tokens, width, mlp = 17, 16, 24
    # The only block is the last one, of whose tokens the class token alone is read; it is projected once as a query and
    # once among the keys and values.
    block = (tokens + 1) * width * 3 * width + 2 * tokens * width + width * (width + 2 * mlp)
    assert counts["multiply_adds"] == convolutions + clustering + projection + block + width * 5
    model = spec.build()
    images = jnp.zeros((1, 32, 32, 3))
    made = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    assert counts["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(made["params"]))


def test_counts_are_shown_short():
    for count, shown in ((17_997_508, "18M"), (4_071_579_136, "4.07G"), (74_032, "74k"), (12, "12"), (999, "999")):
        assert shown_words._short(count) == shown


def test_peak_memory_of_a_program_by_hand():
    square = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    donating = jax.jit(lambda total, left, right: total + left @ right, donate_argnums=0)
    analysis = donating.lower(square, square, square).compile().memory_analysis()
    least = 3 * 64 * 64 * 4  # the result lies where the first argument was
    peak, kind = contenders.peak_memory(analysis, 0, 0, 0)
    assert kind == "compiled program" and least <= peak <= least + 64 * 64 * 4 + 1024


def test_a_devices_peak_counts_only_if_this_model_raised_it():
    analysis = types.SimpleNamespace(
        argument_size_in_bytes=100, output_size_in_bytes=70, alias_size_in_bytes=60, temp_size_in_bytes=5
    )
    assert contenders.peak_memory(analysis, 1000, 5000, 5400) == (4400, "device peak")
    assert contenders.peak_memory(analysis, 1000, 5400, 5400) == (115, "compiled program")


# --- how it is timed


class Clock:
    """A clock that only device work and compiling turn, and a device that works when it is waited for."""

    def __init__(self, monkeypatch):
        self.now, self.unfinished = 0.0, 0
        clock = types.SimpleNamespace(perf_counter=lambda: self.now)
        monkeypatch.setattr("stce_jax.analysis.timing.contenders.time", clock)
        monkeypatch.setattr("stce_jax.analysis.timing.turns.time", clock)

    def dispatch(self, seconds):
        self.unfinished += 1
        done = False

        def block_until_ready():
            nonlocal done
            if not done:
                self.now, self.unfinished, done = self.now + seconds(), self.unfinished - 1, True

        return types.SimpleNamespace(block_until_ready=block_until_ready)


def fake_inference(clock, seconds, compiling):
    """In place of `_make_inference`: a program that takes `seconds()` a call and `compiling` seconds to compile."""

    def compile_it():
        clock.now += compiling
        analysis = dict.fromkeys(("argument", "output", "alias", "temp"), 7)
        program = lambda state, batch: clock.dispatch(seconds)  # noqa: E731
        program.memory_analysis = lambda: types.SimpleNamespace(
            **{f"{name}_size_in_bytes": value for name, value in analysis.items()}
        )
        return program

    lowered = types.SimpleNamespace(compile=compile_it)
    return types.SimpleNamespace(lower=lambda state, batch: lowered), {}


def test_figures_are_exact_on_a_drifting_machine_and_compiling_is_apart(monkeypatch):
    clock, costs, slower, turns = Clock(monkeypatch), {"patch": 0.25, "stce": 0.5}, [1.0], []

    def make(contender, mesh, accumulate):
        name = contender.row["model"].split(",")[0].split("_")[2]
        return fake_inference(clock, lambda: costs[name] * slower[0], compiling=100.0)

    monkeypatch.setattr(contenders, "_make_inference", make)
    take_turn = contenders.take_turn

    def drifting(contender):
        turns.append(contender.row["model"])
        slower[0] = 1.0 if len(turns) <= 8 else 4.0  # in the last two of six rounds all is four times slower
        take_turn(contender)

    monkeypatch.setattr(contenders, "take_turn", drifting)
    first, second = verb.benchmark([PATCH, STCE], batch_sizes=[8], image_size=32, what=["inference"], rounds=6)
    for row, cost in ((first, 0.25), (second, 0.5)):
        assert row["images_per_second"] == 8 / cost, "warming up or compiling was timed, or a call not waited for"
        assert row["latency_ms"] == 1e3 * cost
        assert cost * 1e3 < row["latency_ms_p95"] <= 4e3 * cost, "the slow round is not in the tail"
        assert row["compile_seconds"] == 100.0
    assert (first["ratio"], first["ratio_margin"]) == (1.0, 0.0)
    assert (second["ratio"], second["ratio_margin"]) == (0.5, 0.0), "the drift is in the ratio"
    assert all(set(turns[place : place + 2]) == {PATCH, STCE} for place in range(0, 12, 2)), f"not in turn: {turns}"
    assert clock.unfinished == 0, "calls that nobody waited for"


def test_quick_calls_are_repeated_and_all_waited_for(monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(contenders, "_make_inference", lambda *_: fake_inference(clock, lambda: 0.125, 1.0))
    (row,) = verb.benchmark([PATCH], batch_sizes=[2], image_size=32, what=["inference"], rounds=6, seconds=1.0)
    assert row["images_per_second"] == 16 and row["latency_ms"] == row["latency_ms_p95"] == 125
    assert clock.now == 1.0 + 0.125 * (1 + 2 + 6 * (8 + 8)) and clock.unfinished == 0, "not eight calls in each part"
    assert row["ratio_margin"] == 0 and row["peak_bytes"] == 14


def test_a_single_round_has_no_interval(monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(contenders, "_make_inference", lambda *_: fake_inference(clock, lambda: 0.5, 1.0))
    (row,) = verb.benchmark([PATCH], batch_sizes=[2], image_size=32, what=["inference"], rounds=1)
    assert (row["ratio"], row["ratio_margin"]) == (1.0, None)


def test_turns_are_complete_mixed_and_the_same_every_time():
    turns = list(in_turn("abc", 40))
    rounds = [tuple(turns[place : place + 3]) for place in range(0, 120, 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) == 6, "not every order was drawn"
    assert turns == list(in_turn("abc", 40))


def test_calls_lasting(monkeypatch):
    clock, called = Clock(monkeypatch), []
    for seconds, expected in ((0.0, 1), (0.25, 1), (0.3, 2), (2.5, 10)):
        assert calls_lasting(lambda: called.append(clock.dispatch(lambda: 0.25)) or called[-1], seconds) == expected
    assert len(called) == 8 and clock.unfinished == 0


@pytest.mark.parametrize("count", [6, 10, 21])
def test_the_interval_of_a_median_holds_it_at_least_95_times_in_100(count):
    rng = np.random.default_rng(1)
    for draw, true_median in ((rng.standard_normal, 0.0), (rng.standard_exponential, np.log(2))):
        estimates = [median_estimate(draw(count)) for _ in range(2000)]
        held = np.mean([abs(value - true_median) <= margin for value, margin in estimates])
        assert 0.95 <= held < 1.0, f"the interval of {count} values held the true median in {held:.1%}"


def test_the_interval_of_a_median_is_the_sign_tests():
    for count in range(2, 60):
        values = list(range(count))
        k = int(scipy.stats.binom.ppf(0.025, count, 0.5))
        expected = (count - 1) / 2 - (k - 1) if k else np.nan
        np.testing.assert_equal(median_estimate(values[::-1]), ((count - 1) / 2, expected), f"{count} values")
    assert median_estimate([1, 2, 3, 4, 5, 96]).margin == 92.5, "not the farther end"
    assert str(Estimate(0.5, 0.004)) == "50.00% ± 0.40%"


# --- real models


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64")  # JAX's of so many images
def test_table_csv_and_json_agree_and_a_failing_row_stops_no_other(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "LARGEST_BATCH", TOO_LARGE)
    files = tmp_path / "a.csv", tmp_path / "a.json"
    code, out, error = run_cli(
        capsys,
        "benchmark",
        PATCH,
        STCE,
        "--image_size=16",
        f"--batch_sizes=2,{TOO_LARGE}",
        "--dtypes=float32,bfloat16",
        "--what=inference",
        "--num_classes=5",
        "--rounds=6",
        "--seconds=0.001",
        f"--csv={files[0]}",
        f"--json={files[1]}",
    )
    assert code == 0, error
    rows = json.loads(files[1].read_text())
    with files[0].open() as file:
        from_csv = list(csv.DictReader(file))
    assert [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows] == from_csv
    found = [(row["model"], row["batch_size"], row["dtype"]) for row in rows]
    sizes, dtypes = (2, TOO_LARGE), ("float32", "bfloat16")
    assert found == [(name, size, dtype) for size in sizes for dtype in dtypes for name in (PATCH, STCE)]
    lines = [line for line in out.splitlines() if line.startswith("vit_")]
    for row, line in zip(rows, lines, strict=True):
        words = line.split()
        assert words[:5] == [row["model"], row["dtype"], str(row["batch_size"]), "16", "inference"]
        if row["batch_size"] == TOO_LARGE:
            assert row["error"].startswith("out of memory") and row["error"] in line
            assert row["images_per_second"] is row["latency_ms"] is row["ratio"] is row["peak_bytes"] is None
            continue
        shown = [f"{row['images_per_second']:,.1f}", f"{row['latency_ms']:,.2f}", f"{row['latency_ms_p95']:,.2f}"]
        assert words[5:8] == shown and words[-2] == f"{row['ratio']:.3f}" and row["error"] == ""
        assert 0 < row["latency_ms"] <= row["latency_ms_p95"] and row["compile_seconds"] > 0
        assert row["peak_bytes"] >= 4 * row["parameters"] + 2 * 16 * 16 * 3 + 2 * 5 * 4
        assert row["memory_kind"] == "compiled program" and row["device"] == "cpu"
    assert len(list(tmp_path.iterdir())) == 2, "something else was left"


@pytest.mark.slow
def test_training_steps_and_accumulation(monkeypatch):
    steps = []
    make = train_step.make_train_step
    monkeypatch.setattr(
        train_step, "make_train_step", lambda *args, **kwargs: steps.append(kwargs) or make(*args, **kwargs)
    )
    (row,) = verb.benchmark(
        [PATCH], batch_sizes=[4], image_size=16, num_classes=5, what=["training"], rounds=2, seconds=0.01, accumulate=2
    )
    assert row["error"] == "" and row["images_per_second"] > 0, row
    # Parameters and AdamW's two moments, donated: their outputs take no room of their own.
    assert 12 * row["parameters"] < row["peak_bytes"] < 24 * row["parameters"] + 2**18
    assert [kwargs["accumulate"] for kwargs in steps] == [2]


def test_nothing_measured_is_an_error_but_the_rows_are_written(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "LARGEST_BATCH", TOO_LARGE)
    words = (PATCH, "--image_size=16", f"--batch_sizes={TOO_LARGE}", "--what=inference", f"--csv={tmp_path / 'a.csv'}")
    code, out, error = run_cli(capsys, "benchmark", *words)
    assert code == 2 and "nothing could be measured" in error and error.count("\n") == 1
    assert "out of memory: no " in out and "out of memory: no " in (tmp_path / "a.csv").read_text()


def test_a_model_that_fails_between_its_turns_takes_no_further_part(monkeypatch):
    clock, calls = Clock(monkeypatch), []

    def failing():
        calls.append(clock.now)
        if len(calls) > 5:
            raise RuntimeError("out of\nmemory")
        return 0.5

    costs = {"patch": failing, "stce": lambda: 0.5}
    monkeypatch.setattr(
        contenders,
        "_make_inference",
        lambda contender, *_: fake_inference(clock, costs[contender.row["model"].split(",")[0].split("_")[2]], 1.0),
    )
    first, second = verb.benchmark([PATCH, STCE], batch_sizes=[1], image_size=32, what=["inference"], rounds=9)
    assert first["error"] == "RuntimeError: out of" and first["images_per_second"] is None and len(calls) == 6
    assert second["images_per_second"] == 2 and second["ratio"] is None, "the other model was not measured by itself"


# --- what is a model


def test_a_workdir_is_a_model(tiny_run):
    workdir, _ = tiny_run
    rows = verb.benchmark([str(workdir), f"{workdir},iterations=1"], what=["inference"], rounds=2, seconds=0.001)
    run = runs.load_run(workdir)
    assert [row["model"] for row in rows] == [str(workdir), f"{workdir},iterations=1"]
    for row in rows:
        assert row["error"] == "" and row["images_per_second"] > 0, row
        assert (row["image_size"], row["batch_size"]) == (16, 32), "not the run's own"
        assert row["parameters"] == count_parameters(run.variables["params"]), "another model, or other classes"
    images = jnp.zeros((1, 16, 16, 3))
    count = count_multiply_adds(lambda v, x: run.model.apply(v, x, train=False), run.variables, images)
    assert rows[1]["multiply_adds"] < rows[0]["multiply_adds"] == count


@pytest.mark.slow
def test_patterns_configs_and_options():
    specs = read_specs(["vit_ti_*,depth=2", "digits:patch", "digits,depth=1"], num_classes=7)
    assert [spec.label for spec in specs[-3:]] == ["vit_ti_max_pool,depth=2", "digits:patch", "digits,depth=1"]
    assert len(specs) == 9 and [spec.build().depth for spec in specs] == [2] * 7 + [3, 1]
    assert [(spec.image_size, spec.batch_sizes) for spec in specs[6:8]] == [(224, (1, 8, 32)), (32, (64,))]
    assert specs[0].build(dtype="bfloat16").dtype == jnp.bfloat16 and specs[7].build(dtype="bfloat16").num_classes == 7
    model = read_specs("vit_ti_stce,depth=1,stem_widths=4,8,stem_strides=(2, 2),pooling=mean", image_size=32)[0].build()
    assert (model.embedding.stem_widths, model.embedding.stem_strides, model.pooling) == ((4, 8), (2, 2), "mean")
    assert abstract_variables(model, 32)["params"]["head"]["bias"].shape == (100,)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words, named",
    [
        ((), "required: MODEL"),
        (("vit_x_*",), "there is no model, workdir of a run, or config 'vit_x_*'"),
        (("digits:ptch",), "has no variant 'ptch'"),
        (("vit_s_patch,iterations=3",), "no option 'iterations'"),
        (("vit_s_stce,iterations=1.5",), "iterations is 1.5; it must be of type int"),
        (("vit_s_stce,depth=0",), "depth is 0; it must be a whole number between 1"),
        (("vit_s_stce,stem_widths=8",), "stem_widths is 8; it must be a list"),
        (("digits,cell=2",), "digits,cell=2 cannot be built"),
        (("digits,iteration=2",), "vit_ti_stce has no option 'iteration'"),
        (("vit_s_patch", "--image_size=100"), "96 or 112 would work"),
        (("vit_s_patch", "--image_size=0"), "image_size is 0"),
        (("vit_s_patch", "--num_classes=0"), "num_classes is 0"),
        (("vit_s_patch", "--batch_sizes=8,0"), "batch size is 0"),
        (("vit_s_patch", "--batch_sizes=8,x"), "'8,x' is no list of whole numbers"),
        (("vit_s_patch", "--dtypes=float16"), "dtype is 'float16'; it must be one of float32, bfloat16"),
        (("vit_s_patch", "--what=train"), "what is 'train'; it must be one of inference, training"),
        (("vit_s_patch", "--rounds=0"), "rounds is 0"),
        (("vit_s_patch", "--seconds=nan"), "seconds is nan"),
        (("vit_s_patch", "--batch_sizes=8", "--accumulate=3"), "accumulate 3 does not divide"),
        (("vit_s_patch", "--csv=/no/where/a.csv"), "there is no directory /no/where"),
    ],
)
def test_refusals(capsys, words, named):
    code, out, error = run_cli(capsys, "benchmark", *words)
    assert code == 2 and out == "", error
    assert named in error and error.startswith("stce: ") and error.count("\n") == 1, error


def test_a_file_that_cannot_be_written(capsys, monkeypatch, tmp_path):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(contenders, "_make_inference", lambda *_: fake_inference(clock, lambda: 0.5, 1.0))
    (tmp_path / "taken").mkdir()
    words = (PATCH, "--image_size=32", "--batch_sizes=1", "--what=inference", f"--json={tmp_path / 'taken'}")
    code, out, error = run_cli(capsys, "benchmark", *words)
    assert code == 2 and "cannot write" in error and error.count("\n") == 1
    assert "vit_ti_patch" in out, "the table is lost with the file"
