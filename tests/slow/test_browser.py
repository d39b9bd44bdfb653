"""The pages in a real browser: mouse, keyboard, touch, narrow and dark, and nothing that reaches outside.

Needs Chromium on the PATH (`apt-get install chromium`); skipped without it.
"""

import json

import jax
import numpy as np
import pytest
from browser import browser, needed
from helpers import initial
from page_checks import check_page
from PIL import Image

from stce_jax.analysis.drawing import introspection, reductions
from stce_jax.analysis.pages import looking
from stce_jax.models.factory import create_model
from stce_jax.models.reductions import REDUCTIONS
from stce_jax.verbs.visualize import Subject, looker
from stce_jax.verbs.visualize_page import visualize_page
from stce_jax.verbs.watch import watch
from stce_jax.workdir import layout
from stce_jax.workdir.config import load_config

pytestmark = [pytest.mark.slow, needed]
NAMES = ("one.png", "<img src=x onerror=alert(1)>.png")
SIDE, TILE = 32, 320


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture
def wide(tab):
    """The tab with a wide window, in light colours."""
    tab.resize(1200, 900)
    tab.dark(False)
    return tab


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    """(page, what the model makes of its images, by their place on it)."""
    folder = tmp_path_factory.mktemp("page")
    options = {"width": 16, "depth": 3, "heads": 2, "mlp_dim": 16, "stem_widths": (6, 8), "stem_strides": (2, 1)}
    model = create_model("vit_ti_stce", num_classes=0, image_size=SIDE, **options, iterations=2)
    model = model.clone(reduction=REDUCTIONS["evit"]((1, 2), keep_rate=0.6))
    variables = initial(model, np.zeros((1, SIDE, SIDE, 3), np.float32), train=False)
    variables = jax.tree.map(lambda leaf: 3 * leaf, variables)  # so that affinities differ
    subject = Subject(model, variables, SIDE, 1.0, (0.5,) * 3, (0.25,) * 3)
    (folder / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    blurred = [Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for image in noise]
    for name, image in zip(NAMES, blurred, strict=True):
        image.save(folder / "photos" / name)
    paths = [folder / "photos" / name for name in NAMES]
    page = visualize_page(paths, subject, str(folder), about="tiny", tile=TILE)
    look = looker(subject, ["super_tokens", "attention", "reduction"])
    check_page((folder / "index.html").read_text())
    return page.path, [look(np.asarray(image)) for image in blurred]


def opened(tab, path, image=0):
    tab.open(path)
    tab.until("document.body.dataset.ready === '0'")
    if image:
        tab.value(
            f"(e => {{e.value = '{image}'; e.dispatchEvent(new Event('change'))}})(document.querySelector('#image'))"
        )
        tab.until(f"document.body.dataset.ready === '{image}'")


def chosen(tab, name):
    tab.click(f"#views input[value={name}]")


def percent(share):
    return f"{100 * share:.1f}%"


def test_a_pixel_shows_its_super_tokens(wide, looked):
    path, images = looked
    for number, image in enumerate(images):
        opened(wide, path, number)
        for y, x in ((0, 0), (7, 12), (15, 15)):
            wide.point("#canvas", (y + 0.45) / 16, (x + 0.45) / 16)
            assert wide.text("#title") == f"Pixel {y},{x} of the 16 × 16 features"
            label = introspection.super_token_labels(image.affinities[-1], 2)[y, x]
            belongs = f"iteration 2: it belongs to super token {label // 8},{label % 8}; its cell is {y // 2},{x // 2}."
            assert wide.text("#now") == belongs
            shown = wide.value("[...document.querySelectorAll('#nine td')].map(e => e.innerText.split(/\\s+/))")
            for k, (share, place) in enumerate(shown):
                row, column = y // 2 + k // 3 - 1, x // 2 + k % 3 - 1
                inside = 0 <= row < 8 and 0 <= column < 8
                assert place == (f"{row},{column}" if inside else "beyond"), (y, x, k)
                assert (
                    abs(float(share[:-1]) - 100 * image.affinities[-1][y, x, k])
                    <= 0.051 + np.max(image.affinities) / 5.1
                ), (y, x, k)
    assert wide.complaints() == []
    assert wide.requests() == [f"file://{path}"], "the page asks for something"


def test_names_of_files_are_text(wide, looked):
    opened(wide, looked[0])
    assert wide.value("[...document.querySelectorAll('#image option')].map(e => e.text)") == list(NAMES)
    assert wide.value("document.querySelectorAll('img').length") == 0 and wide.complaints() == []


def test_the_keyboard_reaches_and_does_everything(wide, looked):
    opened(wide, looked[0])
    focused = []
    for _ in range(5):
        wide.press("Tab")
        focused.append(wide.value("document.activeElement.id || document.activeElement.name"))
        outline = wide.value("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", f"{focused[-1]} has the focus, and nothing shows it"
    assert focused == ["image", "view", "canvas", "step", "heat"]
    wide.value("document.querySelector('#canvas').focus()")
    start = wide.text("#title")
    assert start == "Pixel 8,8 of the 16 × 16 features"
    for key, expected in {
        "ArrowRight": "8,9", "ArrowDown": "9,9", "ArrowLeft": "9,8", "ArrowUp": "8,8",
        "Home": "8,0", "End": "8,15",
    }.items():  # fmt: skip
        wide.press(key)
        assert wide.text("#title") == f"Pixel {expected} of the 16 × 16 features", key
    wide.press("ArrowRight")
    assert "8,15" in wide.text("#title"), "the cursor leaves the picture"
    for key, expected in (
        ("PageUp", "iteration 1"),
        ("PageUp", "the cells"),
        ("PageUp", "the cells"),
        ("PageDown", "iteration 1"),
    ):
        wide.press(key)
        assert wide.text("#now").startswith(expected) and wide.text("#step-text").startswith(expected)
    wide.value("document.querySelector('input[name=view]').focus()")
    wide.press("ArrowRight")
    assert wide.text("#title").startswith("Token "), "the arrow does not choose another picture"


def test_attention_of_each_block_and_head(wide, looked):
    path, (image, _) = looked
    opened(wide, path)
    chosen(wide, "attention")
    assert wide.value("document.querySelector('#step').max") == "1", "block 2 has reduced tokens"
    assert wide.value("document.querySelector('#head').length") == 3
    wide.point("#canvas", 3.4 / 8, 5.4 / 8)
    for head in range(3):
        wide.value(
            f"(e => {{e.value = '{head}'; e.dispatchEvent(new Event('change'))}})(document.querySelector('#head'))"
        )
        maps = [block[head - 1] if head else block.mean(axis=0) for block in image.attention]
        name = f"head {head - 1}" if head else "mean of the heads"
        text = f"block 1: {name}, the class token gives it "
        found = wide.text("#now")
        assert wide.text("#title") == "Token 3,5 of the 8 × 8" and found.startswith(text)
        assert abs(float(found.removeprefix(text).partition("%")[0]) - 100 * maps[1][3, 5]) <= 0.06
        scale = max(block.max() for block in image.attention) if head else max(each.max() for each in maps)
        assert wide.text("#greatest") == f"{percent(scale)}, one scale for all blocks"


def test_what_became_of_a_token(wide, looked):
    path, (image, _) = looked
    opened(wide, path)
    chosen(wide, "reduction")
    places = reductions.compose(image.stages)
    for token in (0, 21, 63):
        wide.point("#canvas", (token // 8 + 0.4) / 8, (token % 8 + 0.4) / 8)
        expected = []
        for number, where in enumerate(places, 1):
            others = int((where == where[token]).sum()) - 1
            merged = f"merged with {others} other{'s' * (others > 1)}" if others else "kept"
            expected.append(f"block {number}: {'dropped' if where[token] < 0 else merged}")
        assert wide.value("[...document.querySelectorAll('#fate li')].map(e => e.innerText)") == expected
    counts = reductions.counts(places[-1])
    assert wide.text("#step-text") == "block 2: {tokens} tokens, {dropped} dropped, {merged} merged".format(**counts)


def colours(tab):
    """The canvas as uint8 [Y, Y, 3]."""
    text = "document.querySelector('#canvas').getContext('2d').getImageData(0, 0, {0}, {0}).data.join()"
    return np.array(tab.value(text.format(TILE)).split(","), np.uint8).reshape(TILE, TILE, 4)[:, :, :3]


def test_what_is_dropped_is_dark_and_borders_lie_where_regions_meet(wide, tmp_path):
    """Of labels that no model gives: 8x8 tokens of 40 pixels."""
    model = create_model("vit_ti_patch", num_classes=0, image_size=SIDE, patch_size=4)
    image = np.full((TILE, TILE, 3), 200, np.uint8)
    places = np.random.default_rng(0).integers(-1, 30, 64)
    page = looking.of_image("plain.png", image, looking.Looked(stages=[places]), model.embedding, SIDE)
    (tmp_path / "page.html").write_text(
        looking.write("", looking.common(model, SIDE, TILE, ["block 1"], {}), [page], 0)
    )
    opened(wide, tmp_path / "page.html")
    wide.point("#canvas", 0.06, 0.06)
    own = places[0]
    drawn, middles = colours(wide).astype(int), 20 + 40 * np.arange(8)
    middle = drawn[middles[:, None], middles][..., 0].ravel()[1:]  # without that of the cursor
    assert np.abs(middle - np.where(places < 0, 50, 200)[1:]).max() <= 1
    groups = np.where(np.bincount(places[places >= 0], minlength=30)[places] > 1, places + 1, 0)
    groups = np.where(places < 0, -1, groups).reshape(8, 8)
    for row, column in np.argwhere(groups[:, 1:] == groups[:, :-1]):
        pixels = drawn[middles[row], 40 * column + 36 : 40 * column + 44, 0]
        assert set(pixels) <= {199, 200, 201, 49, 50, 51}, f"a line within a region at {row},{column}"
    for row, column in np.argwhere(groups[:, 1:] != groups[:, :-1]):
        pixels = drawn[middles[row], 40 * column + 39 : 40 * column + 41, 0]
        chosen_here = own + 1 in groups[row, column : column + 2]
        assert set(pixels) == {255, 20}, f"no line at {row},{column}: {pixels}"
        wider = drawn[middles[row], 40 * column + 36 : 40 * column + 44, 0]
        assert (wider == 255).sum() == (3 if chosen_here and own >= 0 else 1), f"{row},{column}: {wider}"


def test_a_finger_a_narrow_window_and_the_dark(tab, looked):
    opened(tab, looked[0])
    tab.resize(360, 740, mobile=True)
    tab.dark()
    assert tab.value("document.documentElement.scrollWidth") <= 360, "the page is wider than the window"
    tab.touch("#canvas", 2.45 / 16, 13.45 / 16)
    assert tab.text("#title") == "Pixel 2,13 of the 16 × 16 features"
    dark = tab.value("getComputedStyle(document.body).backgroundColor")
    tab.dark(False)
    light = tab.value("getComputedStyle(document.body).backgroundColor")
    brightness = [sum(map(int, colour[4:-1].split(","))) for colour in (dark, light)]
    assert brightness[0] < 100 < 700 < brightness[1]
    for selector in ("#views label", "#image", "#step"):
        assert tab.value(f"document.querySelector('{selector}').getBoundingClientRect().height") >= 16
    tab.resize(1200, 900)


def test_a_page_can_load_and_run_nothing_else(wide, looked):
    opened(wide, looked[0])
    wide.value("new Image().src = 'http://127.0.0.1:9/x.png'; fetch('http://127.0.0.1:9/').catch(() => 0); 1")
    wide.value(
        "(e => {e.textContent = 'window.ran = 1'; document.body.append(e)})(document.createElement('script')); 1"
    )
    wide.until("true")
    said = [values["entry"]["text"] for values in wide.complaints() if "entry" in values]
    assert wide.value("window.ran") is None and len(said) >= 3, said
    assert all("Content Security Policy" in text for text in said), said


LINE = {"loss": 1.0, "top1": 0.25, "top5": 0.5}


def test_curves_load_themselves_again_and_stop(wide, tmp_path):
    runs = [tmp_path / f"run_seed{seed}" for seed in range(2)]
    for seed, run in enumerate(runs):
        run.mkdir()
        layout.write_config(run, load_config("digits", [f"--config.seed={seed}"]))
    page, turns, shown = tmp_path / "page.html", [], []

    def stopped():
        """In the browser while the page is written: what it shows after each line of the runs."""
        if not page.exists() or len(shown) > 2:
            return len(shown) > 2
        if not turns:
            wide.open(page)
        turns.append(1)
        epoch = len(shown) + 1
        for run in runs:
            with open(run / "metrics.jsonl", "a") as file:
                file.write(json.dumps(LINE | {"step": 22 * epoch, "epoch": float(epoch), "split": "eval"}) + "\n")
        shown.append(wide.text("table"))
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stce_jax.verbs.watch.POLL", 0.8)
        watch(runs, page, every=1, stopped=stopped)
    assert "no evaluation yet" in shown[0]
    wide.until("document.querySelector('table')?.innerText.includes('3.00/25')")  # by itself
    assert wide.value("document.querySelectorAll('polygon.band').length") == 2
    assert wide.value("document.querySelector('#refresh')") is None, "the last page has a reload"
    assert wide.complaints() == [] and set(wide.requests()) == {page.as_uri()}
    wide.resize(360, 740, mobile=True)
    assert wide.value("document.documentElement.scrollWidth") <= 360
    assert wide.value("(e => e.scrollWidth > e.clientWidth)(document.querySelector('.scroll'))"), "the table is cut off"
    wide.resize(1200, 900)
