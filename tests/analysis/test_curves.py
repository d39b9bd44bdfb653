"""Learning curves: which lines are drawn, in what, and that they can be told apart."""

import itertools
from xml.etree import ElementTree

import matplotlib.colors
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from stce_jax.analysis import curves as module
from stce_jax.analysis.curves import BAND, COLOURS, curves


def line(split, epoch, value):
    """A line of metrics whose loss is `value` and whose top-1 is a tenth of it."""
    return {"step": int(epoch * 10), "epoch": epoch, "split": split, "loss": value, "top1": value and value / 10}


def run_of(*values, train=()):
    evaluations = [line("eval", float(epoch), value) for epoch, value in enumerate(values, 1)]
    return [*evaluations, *(line("train", float(epoch), value) for epoch, value in enumerate(train, 1))]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws groups; returns the figure."""

    def draw(groups):
        figures = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
            curves(groups, tmp_path / "curves.png")
        return figures[0]

    return draw


def points(axes, label):
    (found,) = [curve.get_xydata().tolist() for curve in axes.lines if curve.get_label() == label]
    return found


def band(axes):
    """{epoch: (least, most)} of the one band."""
    (found,) = axes.collections
    corners = {}
    for epoch, value in found.get_paths()[0].vertices:
        corners.setdefault(epoch, []).append(value)
    return {epoch: (min(values), max(values)) for epoch, values in corners.items()}


def test_a_group_is_drawn_as_its_mean_and_from_least_to_most(drawn):
    figure = drawn({"three": [run_of(1.0, 4.0), run_of(2.0, 4.0), run_of(6.0, 7.0)]})
    loss, top1 = figure.axes
    assert points(loss, "three eval") == [[1, 3], [2, 5]]
    assert band(loss) == {1: (1, 6), 2: (4, 7)}
    np.testing.assert_allclose(points(top1, "three eval"), [[1, 30], [2, 50]], err_msg="top-1 in per cent")
    np.testing.assert_allclose(band(top1)[1], (10, 60))


def test_the_mean_is_of_the_same_runs_at_every_epoch(drawn):
    """One run is behind, one has a loss that was not finite, one has nothing yet."""
    figure = drawn({"group": [run_of(1, 2, 3, 4), run_of(3, None, 5), []]})
    assert points(figure.axes[0], "group eval") == [[1, 2], [3, 4]]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[0].strip() == "group (3 runs, 2 of them evaluated)" and BAND in texts


def test_one_run_has_no_band_and_training_is_dashed_and_thin(drawn):
    figure = drawn({"one": [run_of(1, 2, train=(5, 6))]})
    for axes in figure.axes:
        assert not axes.collections, "a band of one run"
        by_label = {curve.get_label(): curve for curve in axes.lines}
        train, evaluation = by_label["one train"], by_label["one eval"]
        assert (train.get_linestyle(), evaluation.get_linestyle()) == ("--", "-")
        assert train.get_linewidth() < evaluation.get_linewidth() and train.get_color() == evaluation.get_color()
    texts = [text.get_text().strip() for text in figure.legends[0].get_texts()]
    assert texts == ["one", "evaluation", "training"]


def test_runs_without_an_evaluation_are_named_so(drawn):
    figure = drawn({"new": [run_of(train=(3,))], "empty": [[]]})
    texts = [text.get_text().strip() for text in figure.legends[0].get_texts()]
    assert texts[:2] == ["new (no evaluation yet)", "empty (no evaluation yet)"]
    assert points(figure.axes[0], "new train") == [[1, 3]]


def test_groups_keep_their_colours_and_differ(drawn):
    groups = {f"run{index}": [run_of(index, train=(index,))] for index in range(20)}
    styles = []
    for axes in drawn(groups).axes:
        evaluations = [curve for curve in axes.lines if curve.get_label().endswith("eval")]
        styles.append([(curve.get_color(), curve.get_marker()) for curve in evaluations])
    assert styles[0] == styles[1], "another colour in the other panel"
    assert len(set(styles[0])) == 20, "two groups look alike"
    fewer = drawn({"run0": groups["run0"], "run1": groups["run1"]}).axes[0].lines
    assert [curve.get_color() for curve in fewer[1::2]] == list(COLOURS[:2]), "a place has another colour"


# How the three kinds of cones respond, and what is seen where one kind is missing: Viénot, Brettel and Mollon, Digital
# video colourmaps for checking the legibility of displays by dichromats, 1999.
CONES = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]])
MISSING = {
    "none": np.eye(3),
    "long": np.array([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]]),
    "middle": np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]]),
}


def seen(colour, missing):
    linear = np.array(matplotlib.colors.to_rgb(colour)) ** 2.2
    red_green_blue = np.linalg.solve(CONES, MISSING[missing] @ CONES @ linear)
    return np.clip(red_green_blue, 0, 1) ** (1 / 2.2)


@pytest.mark.parametrize("missing", MISSING)
def test_colours_can_be_told_apart_by_the_colour_blind(missing):
    for first, second in itertools.combinations(COLOURS, 2):
        distance = np.linalg.norm(seen(first, missing) - seen(second, missing))
        least = 0.1 if COLOURS[-1] == second else 0.2  # the last is used for a seventh group alone
        assert distance > least, f"{first} and {second} look alike where the missing cones are: {missing}"
    for colour in COLOURS:
        assert np.linalg.norm(seen(colour, missing) - 1) > 0.3, f"{colour} is hardly seen on white"


def test_without_the_long_cones_red_is_green():
    """The test above can fail."""
    assert np.linalg.norm(seen("#b04000", "none") - seen("#506000", "none")) > 0.3
    assert np.linalg.norm(seen("#b04000", "long") - seen("#506000", "long")) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["_private", "a$b$c", "runs/with spaces"])
def test_any_name_is_shown_as_it_is(tmp_path, name):
    path = curves({name: [run_of(1, 2)]}, tmp_path / "curves.png")
    plain = curves({"x" * len(name): [run_of(1, 2)]}, tmp_path / "plain.png")
    darkness = [int((np.asarray(Image.open(p).convert("L")) < 128).sum()) for p in (path, plain)]
    assert abs(darkness[0] - darkness[1]) < 150, "the name is not in the legend, or not as text"


@pytest.mark.parametrize("suffix, start", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_suffix_says_the_format(tmp_path, suffix, start):
    path = curves({"one": [run_of(1, 2)]}, tmp_path / f"curves.{suffix}")
    assert path.read_bytes().startswith(start)


def test_an_unknown_format_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="doc"):
        curves({"one": [run_of(1, 2)]}, tmp_path / "curves.doc")
    assert not list(tmp_path.iterdir())


def test_a_curve_of_many_evaluations_has_few_markers():
    assert module._style(0, "eval", 300)["markevery"] == 25
    assert module._style(0, "eval", 1)["markevery"] == 1


@pytest.mark.parametrize("name", ["a\x1b[2J", "a\0b", "\udcff", "a\u202eb", "<b>&]]>", "$x^{$", "x" * 5000, "\\frac$"])
@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_names_of_any_kind_leave_a_picture_that_can_be_read(tmp_path, name, suffix):
    path = curves({name: [run_of(1.0, 0.5)]}, tmp_path / f"curves.{suffix}")
    if suffix == "png":
        Image.open(path).load()
    else:
        ElementTree.parse(path)
        assert all(line.isprintable() for line in path.read_text().replace("\t", "").splitlines())
