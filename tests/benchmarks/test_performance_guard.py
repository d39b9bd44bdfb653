"""What benchmarks/guard.py makes of ratios: which are regressions, and what it writes. Nothing is timed here."""

import json

import guard
import jax
import pytest
from measure import Estimate

COMMITTED = {"a": [1.00, 0.01], "b": [0.50, 0.02]}


def verdicts(measured, committed=COMMITTED):
    rows, regressions = guard.compare(measured, committed)
    return {row["ratio of times"]: row["verdict"] for row in rows}, regressions


@pytest.mark.parametrize(
    "value, margin, verdict",
    [
        (1.00, 0.01, "as committed"),
        (1.04, 0.011, "as committed"),  # 1.029 is within 2% of 1.01
        (1.05, 0.011, "worse"),  # 1.039 is not
        (1.30, 0.30, "as committed"),  # nothing can be said
        (0.97, 0.01, "as committed"),  # 0.98 is within 2% of 0.99
        (0.95, 0.01, "better"),
    ],
)
def test_only_intervals_that_lie_apart_count(value, margin, verdict):
    found, regressions = verdicts({"a": Estimate(value, margin), "b": Estimate(0.5, 0.02)})
    assert found == {"a": verdict, "b": "as committed"}
    assert len(regressions) == (verdict == "worse")
    assert all(line.startswith("a: ") and "\n" not in line for line in regressions)


def test_every_regression_has_its_line_and_names_both_values():
    found, regressions = verdicts({"a": [1.2, 0.01], "b": [0.6, 0.01]})
    assert found == {"a": "worse", "b": "worse"}
    assert regressions == ["a: 120.0% ± 1.0%, committed is 100.0% ± 1.0%", "b: 60.0% ± 1.0%, committed is 50.0% ± 2.0%"]


def test_a_ratio_without_partner_is_new_or_missing():
    found, regressions = verdicts({"a": [1.0, 0.01], "c": [9.0, 0.1]})
    assert found == {"a": "as committed", "b": "no longer measured", "c": "new"}
    assert len(regressions) == 1 and regressions[0].startswith("b: no longer measured")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the guard's command with given ratios in place of measured ones; returns its exit code."""
    monkeypatch.setattr(guard, "pairs_of_parts", lambda *_: dict.fromkeys(COMMITTED))
    path = tmp_path / "ratios.json"

    def run(ratios, *words):
        monkeypatch.setattr(guard, "measured_ratios", lambda *_: dict(ratios))
        try:
            guard.main(["--no-models", "--ratios", str(path), *words])
        except SystemExit as ended:
            return int(ended.code)
        return 0

    return run, path


def test_command_updates_compares_and_tells_by_its_exit_code(run, capsys):
    run, path = run
    assert run(COMMITTED) == 2, "there is nothing to compare with yet"
    assert "--update writes them" in capsys.readouterr().err
    path.write_text(json.dumps({"another device": {"machine": "elsewhere", "ratios": {"a": [3.0, 0.1]}}}))
    assert run(COMMITTED, "--update") == 0
    kinds = json.loads(path.read_text())
    kind = jax.devices()[0].device_kind
    assert kinds[kind]["ratios"] == COMMITTED
    assert kinds["another device"]["ratios"] == {"a": [3.0, 0.1]}, "the other kind's ratios stay"
    assert run(COMMITTED) == 0
    before = path.read_bytes()
    capsys.readouterr()
    assert run(COMMITTED | {"b": [0.7, 0.02]}) == 1
    assert capsys.readouterr().err.splitlines() == ["regression: b: 70.0% ± 2.0%, committed is 50.0% ± 2.0%"]
    assert path.read_bytes() == before, "comparing writes nothing"


def test_too_few_rounds_are_refused(run, capsys):
    assert run[0](COMMITTED, "--rounds", "5") == 2
    assert "no interval" in capsys.readouterr().err


def test_committed_ratios_can_be_read_and_have_intervals():
    for kind, contents in json.loads(guard.RATIOS.read_text()).items():
        assert contents["machine"] and contents["ratios"], kind
        for name, (value, margin) in contents["ratios"].items():
            assert value > 0 and 0 <= margin < value, f"{kind}: {name}"
