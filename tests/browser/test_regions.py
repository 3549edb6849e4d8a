"""The region inspector in a real browser: its arithmetic beside Python's, hands, and JupyterLab."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

import toolkit as tk
from browser.conftest import press, settled, text, until
from toolkit import fitting

VIEWS = Path(tk.__file__).parent / "views"
STAGE, OVERLAY, FOOT = ".tk-ground", ".tk-ground .tk-masks", ".tk-value-text"


def grey(size, seed=0) -> np.ndarray:
    """A mask of uint8 greys, 0 and 1."""
    return np.clip(np.random.default_rng(seed).normal(0.5, 0.6, size), 0, 1).__mul__(255).round() / 255


def halves(size=(16, 24), **options) -> list[tk.Region]:
    """Two halves that leave nothing and share nothing."""
    left, right = tk.box(0, 0, 0.5, 1, size=size), tk.box(0.5, 0, 1, 1, size=size)
    return [tk.Region(left, "a barn", name="left", **options), tk.Region(right, name="right")]


def tile(page, n: int) -> np.ndarray:
    """The weights that a tile shows, 0 to 255: how opaque it is."""
    height, width, codes = page.evaluate(
        """n => {
      const c = document.querySelectorAll('.tk-seen canvas')[n];
      const context = new OffscreenCanvas(c.width, c.height).getContext('2d', { willReadFrequently: true });
      context.drawImage(c, 0, 0);
      const { data } = context.getImageData(0, 0, c.width, c.height);
      return [c.height, c.width, data.filter((_, i) => i % 4 === 3).join(' ')];
    }""",
        n,
    )
    return np.array(codes.split(), int).reshape(height, width)


def over(page, y: float, x: float, selector: str = OVERLAY) -> list[int]:
    """r, g, b, a at parts of a canvas' height and width, averaged over what a hatch repeats in."""
    return page.evaluate(
        """([s, y, x]) => {
      const c = document.querySelector(s), n = 12, [w, h] = [Math.min(n, c.width), Math.min(n, c.height)];
      const at = [Math.floor(x * c.width), Math.floor(y * c.height)];
      const context = new OffscreenCanvas(w, h).getContext('2d', { willReadFrequently: true });
      context.drawImage(c, -at[0], -at[1]);
      const { data } = context.getImageData(0, 0, w, h);
      return [0, 1, 2, 3].map(k => data.filter((_, i) => i % 4 === k).reduce((a, b) => a + b, 0) / (w * h));
    }""",
        [selector, y, x],
    )


def point(page, y: float, x: float) -> tuple[float, float]:
    box = page.locator(STAGE).bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def stroke(page, *places) -> None:
    page.mouse.move(*point(page, *places[0]))
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*point(page, *place), steps=4)
    page.mouse.up()
    settled(page)


def slide(page, name: str, value: float) -> None:
    """Puts a slider on a value, as a hand does."""
    page.eval_on_selector(
        f'.tk-dial input[aria-label="{name}"]',
        """(input, value) => {
          const name = input.ariaLabel, low = { feather: 0, grow: -8, strength: 0.05 }[name];
          input.value = Math.round((value - low) / (name === 'strength' ? 0.05 : 0.5));
          input.dispatchEvent(new Event('input'));
        }""",
        value,
    )
    settled(page)


# ---- arithmetic


@pytest.fixture(scope="module")
def arithmetic(browser):
    """A page that knows the arithmetic of masks and nothing else."""
    page = browser.new_page()
    page.add_script_tag(
        content="const clamp = (v, lo, hi) => Math.min(Math.max(v, lo), hi);"
        + (VIEWS / "masks.js").read_text("utf-8")
    )
    yield page
    page.close()


@pytest.mark.parametrize("size", [(64, 64), (53, 80), (7, 5), (128, 96), (1, 9)])
def test_fitting_is_pythons(arithmetic, size):
    for k, out in enumerate([(16, 16), (13, 20), size]):
        mask = grey(size, seed=k)
        resized = fitting.resampled(mask[None], out)
        for grow, feather in [(0, 0), (2, 0), (-1, 0), (0, 1.5), (2.5, 3), (-1.5, 0.5), (8, 16), (1e-3, 0.1)]:
            got = arithmetic.evaluate(
                """([codes, [H, W], [h, w], own]) =>
                  shaped(resizer(H, W, h, w)(Uint8Array.from(codes)), h, w, own).join(' ')""",
                [(mask * 255).round().ravel().tolist(), size, out, {"grow": grow, "feather": feather}],
            )
            want = fitting.shaped(resized, grow, feather)[0]
            got = np.array(got.split(), float).reshape(out)
            np.testing.assert_allclose(got, want, atol=1e-9, err_msg=f"{out} {grow} {feather}")


def test_a_part_is_resized_like_the_whole(arithmetic):
    """What a stroke changed between two rows is all that is done again."""
    mask = grey((60, 45))
    got = arithmetic.evaluate(
        """codes => {
          const all = Uint8Array.from(codes), whole = resizer(60, 45, 16, 16), part = resizer(60, 45, 16, 16);
          part(all), stroke(all, 60, 45, 16, 16, [0.4, 0.1], [0.6, 0.8], 1.5, 255);
          const rest = part(all, 10, 50), fresh = whole(all);
          return [rest.every((v, i) => v === fresh[i]), all.filter((v) => v === 255).length];
        }""",
        (mask * 255).round().ravel().tolist(),
    )
    assert got[0] and got[1] > (mask == 1).sum() + 50


def test_shares_and_coverage_are_pythons(arithmetic):
    masks = np.stack([grey((9, 7), seed) for seed in range(3)])
    for kept in ([False] * 3, [False, True, False], [True, True, False]):
        planes = [m.ravel().tolist() for m in masks]
        got = arithmetic.evaluate(
            """([planes, kept]) => [planes[0].map((_, p) => sharesOf(planes.map(m => m[p]), kept).w),
                coverageOf(planes, kept)]""",
            [planes, kept],
        )
        np.testing.assert_allclose(
            np.array(got[0]).T.reshape(4, 9, 7), fitting.shares(masks, kept), atol=1e-12
        )
        hole, overlap, most = fitting.coverage(masks, kept)
        told = got[1]
        assert (told["hole"], told["overlap"]) == pytest.approx((hole, overlap))
        assert told["pair"] == (None if most is None else list(most))


# ---- the page


def test_a_slider_changes_the_tile_as_python_would(opened):
    view = tk.views.regions([tk.Region(grey((64, 96)), name="a"), *halves()], size=(16, 24))
    page = opened(view)
    before = tile(page, 0)
    np.testing.assert_array_equal(before, (view.fits[0, 0] * 255.0).round())
    for name, value in [("grow", 1.5), ("feather", 2), ("grow", -1)]:
        slide(page, name, value)
        view.settings = {"a": {name: value}}
        np.testing.assert_allclose(tile(page, 0), view.fits[0, 0] * 255, atol=1)
        assert np.abs(tile(page, 0) - before).max() > 40
    assert text(page, ".tk-dial:nth-child(2) output") == "−1 px"
    slide(page, "strength", 0.5)
    assert text(page, ".tk-dial:nth-child(3) output") == "0.50"
    for dial in page.locator(".tk-dial input").all():
        dial.dblclick()
    settled(page)
    np.testing.assert_array_equal(tile(page, 0), before)


def test_a_digit_an_eye_and_a_click_hide_and_choose(opened):
    page = opened(tk.views.regions(halves(), np.full((128, 192, 3), 0.5)))
    page.focus(STAGE)
    left, right = over(page, 0.5, 0.2), over(page, 0.5, 0.8)
    assert left[2] > left[0] + 40 and right[0] > right[2] + 40  # blue and orange
    press(page, "0")
    settled(page)
    assert over(page, 0.5, 0.2) == [0, 0, 0, 0] and over(page, 0.5, 0.8) == right
    assert page.locator(".tk-see").first.get_attribute("aria-checked") == "false"
    until(page, "() => document.querySelectorAll('.tk-label').length === 1")
    page.locator(".tk-see").first.click()
    settled(page)
    assert over(page, 0.5, 0.2) == left
    page.locator("[role=option]").nth(1).click()
    settled(page)
    assert page.locator("[role=option][aria-selected=true]").text_content() == "1right"
    press(page, "ArrowUp")
    settled(page)
    assert page.locator("[role=option]:focus").get_attribute("aria-selected") == "true"
    assert page.locator("[role=option]:focus").text_content() == "0left“a barn”"


def test_the_brush_paints_and_undo_takes_it_back(opened):
    page = opened(tk.views.regions(halves(), size=(16, 24)))
    page.focus(STAGE)
    before, shown = tile(page, 0), over(page, 0.5, 0.75)
    press(page, "b", "]", "]")
    settled(page)
    assert text(page, FOOT).startswith("painting left at 16 × 24")
    stroke(page, (0.5, 0.7), (0.5, 0.9))
    painted = tile(page, 0)
    assert painted[8, 16:21].tolist() == [255] * 5 and painted[2, 16:].max() == 0  # a disc, not the row
    assert over(page, 0.5, 0.75)[2] > shown[2] + 20
    page.mouse.move(5, 5)
    until(page, "s => document.querySelector(s).textContent.includes('nothing is kept')", FOOT)
    press(page, "z")
    settled(page)
    np.testing.assert_array_equal(tile(page, 0), before)
    press(page, "Shift+Z")
    settled(page)
    np.testing.assert_array_equal(tile(page, 0), painted)
    press(page, "e")
    stroke(page, (0.2, 0.1), (0.2, 0.3))
    assert tile(page, 0)[3, 3] == 0 and painted[3, 3] == 255
    press(page, "z", "z", "z", "z")
    settled(page)
    np.testing.assert_array_equal(tile(page, 0), before)
    press(page, "Escape")  # leaves the brush: the pointer reads again
    page.mouse.move(*point(page, 0.5, 0.25))
    settled(page)
    assert text(page, FOOT) == "y 8 x 6 → 0: 1.00 1: 0.00 rest 0.00"


def test_a_hole_and_an_overlap_are_told(opened):
    page = opened(tk.views.regions(halves(), np.full((128, 192, 3), 0.5)))
    page.focus(STAGE)
    assert text(page, ".tk-warnings") == ""
    assert text(page, ".tk-seen > div:last-child .tk-caption") == "overlapno hole"
    press(page, "b", "]", "]")
    stroke(page, (0.5, 0.8))
    assert "Overlap" in text(page, ".tk-warnings") and "between 0 and 1" in text(page, ".tk-warnings")
    press(page, "z", "e")
    stroke(page, (0.5, 0.2), (0.5, 0.21))
    share = 100 * (tile(page, 0)[:, :12] < 127.5).mean() / 2
    assert text(page, ".tk-warnings") == f"Hole {share:.1f} % of the latent is in no region"
    hole = over(page, 0.49, 0.19)
    assert hole[3] > 150 and abs(hole[0] - hole[2]) < 12  # checks of ink and paper
    press(page, "z")
    settled(page)
    assert text(page, ".tk-warnings") == ""


def test_weights_under_the_pointer_are_pythons(opened):
    regions = [tk.Region(grey((64, 96), k), keep=k == 2, weight=1 + 0.5 * k, name=f"r{k}") for k in range(3)]
    view = tk.views.regions(regions, size=(16, 24))
    page = opened(view)
    factors = np.array([r.weight for r in regions])[:, None, None]
    want = fitting.shares(view.fits[:, 0] * factors, [r.keep for r in regions])
    for y, x in [(0, 0), (7, 11), (15, 23), (3, 20)]:
        page.mouse.move(*point(page, (y + 0.5) / 16, (x + 0.5) / 24))
        settled(page)
        said = [float(v) for v in re.findall(r"\d\.\d\d", text(page, FOOT))]
        assert text(page, FOOT).startswith(f"y {y} x {x} →")
        np.testing.assert_allclose(said, [*want[1:, y, x], want[0, y, x]], atol=0.0051)
        card = page.locator(".tk-weights").text_content()
        assert f"sum {(view.fits[:, 0] * factors)[:, y, x].sum():.2f}" in card
    page.mouse.move(5, 5)
    page.focus(STAGE)
    press(page, "ArrowRight", "ArrowRight", "ArrowUp")  # from the middle, without a pointer
    settled(page)
    assert text(page, FOOT).startswith("y 7 x 14 →")


def test_order_by_key_and_by_hand(opened):
    page = opened(tk.views.regions(halves()))

    def names():
        return page.locator(".tk-seen .tk-caption b").all_text_contents()

    assert names() == ["0 left", "1 right", "overlap"]
    page.locator("[role=option]").first.focus()
    press(page, "Alt+ArrowDown")
    settled(page)
    assert names() == ["0 right", "1 left", "overlap"]
    assert page.locator("[role=option]:focus b").text_content() == "left"
    rows = [row.bounding_box() for row in page.locator("[role=option]").all()]
    page.mouse.move(rows[1]["x"] + 60, rows[1]["y"] + 15)
    page.mouse.down()
    page.mouse.move(rows[0]["x"] + 60, rows[0]["y"] + 2, steps=5)
    page.mouse.up()
    settled(page)
    assert names() == ["0 left", "1 right", "overlap"]


def test_a_finger_paints_both_ways(opened):
    page = opened(tk.views.regions(halves(), size=(16, 24)), has_touch=True)
    page.locator(".tk-segment >> text=brush").tap()
    settled(page)
    assert page.eval_on_selector(STAGE, "node => getComputedStyle(node).touchAction") == "none"
    touch = page.context.new_cdp_session(page)
    for kind, place in [("Start", (0.2, 0.8)), ("Move", (0.5, 0.8)), ("Move", (0.8, 0.8)), ("End", None)]:
        points = [dict(zip("xy", point(page, *place), strict=True))] if place else []
        touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
    settled(page)
    assert tile(page, 0)[4:12, 19].tolist() == [255] * 8


def test_a_run_and_its_rungs(opened):
    model = tk.load()
    run = tk.regional(
        model, [dataclasses.replace(r, prompt=3) for r in halves((8, 8))], cfg=2.0, steps=5, progress=False
    )
    page = opened(tk.views.regions(run, model=model))
    assert page.locator(".tk-rail [class*=tk-line]").count() == 6  # base and two, conflict and share
    page.click(".tk-segment >> text=rung")
    page.focus(".tk-rail")
    settled(page)
    shot = "() => document.querySelector('.tk-ground canvas').toDataURL()"
    last = page.evaluate(shot)
    assert page.locator(".tk-rail").get_attribute("aria-valuenow") == "5"
    press(page, "Home")
    settled(page)
    assert page.locator(".tk-rail").get_attribute("aria-valuenow") == "0" and page.evaluate(shot) != last
    page.click(".tk-segment >> text=latent")
    settled(page)
    assert page.evaluate(shot) == last  # the lowest level, wherever the thumb is


def test_hostile_names_are_text(opened):
    name = "</script><img src=x onerror=\"document.body.id='bad'\">"
    page = opened(
        tk.views.regions(
            [tk.Region(grey((8, 8)), prompt=name, name=name), tk.Region(grey((8, 8)), name="__proto__")]
        )
    )
    slide(page, "grow", 1)
    assert page.locator("[role=option] b").first.text_content() == name
    assert page.locator("img").count() == 0 and page.evaluate("document.body.id") == ""
    page.locator("[role=option]").nth(1).click()
    settled(page)
    slide(page, "feather", 1)
    assert text(page, ".tk-dial:nth-child(1) output") == "1 px"


@pytest.mark.parametrize("width", [904, 640, 420])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_its_cell(opened, scheme, width):
    image = np.full((64, 96, 3), 0.5)
    page = opened(tk.views.regions(halves(feather=1.0), image), width=width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper = page.evaluate("getComputedStyle(document.querySelector('.tk-view')).backgroundColor")
    assert paper == ("rgb(17, 17, 17)" if scheme == "dark" else "rgb(255, 255, 255)")
    left = over(page, 0.5, 0.2)
    assert left[3] > 60 and left[2] > left[0]


# ---- JupyterLab


def test_the_widget(notebook):
    page = notebook.page
    notebook.run(
        "left, right = tk.box(0, 0, 0.5, 1, size=(16, 24)), tk.box(0.5, 0, 1, 1, size=(16, 24))\n"
        "view = tk.views.regions([tk.Region(left, name='left'), tk.Region(right, name='right')])\nview"
    )
    page.wait_for_selector(".tk-ground .tk-label")
    page.locator(STAGE).click(position={"x": 30, "y": 30})
    cells = notebook.ask("widgets.length")
    press(page, "b", "]", "]")
    stroke(page, (0.5, 0.7), (0.5, 0.9))
    painted = tile(page, 0)
    ask = "print(int(255 * view.masks[0].sum()), view.masks[0][8, 18], view.mode, view._answer['heard'])"
    notebook.prints(ask, f"{painted.sum()} 1.0 brush 1")
    stroke(page, (0.2, 0.7), (0.2, 0.9))
    press(page, "z", "x")  # undo; and x is not the notebook's while the view has focus
    notebook.prints(ask, f"{painted.sum()} 1.0 brush 3")
    assert notebook.ask("widgets.length") == cells + 2  # those that print
    np.testing.assert_array_equal(tile(page, 0), painted)
    press(page, "Escape")
    slide(page, "grow", 2)
    notebook.prints("print(view.settings['left']['grow'], view.regions[0].grow)", "2.0 2.0")
    notebook.run("view.settings = {'left': {'grow': 0, 'feather': 2}}\nview.shown = ['left']")
    until(page, "() => document.querySelector('.tk-dial output').textContent === '2 px'")
    want = [
        int(v) for v in notebook.run("print(*(view.fits[0, 0] * 255).round().astype(int).ravel())").split()
    ]
    settled(page)
    np.testing.assert_array_equal(tile(page, 0).ravel(), want)  # Python's answer, to the last code
    notebook.run("import numpy as np\nview.paint('left', np.ones((16, 24)))\nview.order = ['right', 'left']")
    until(page, "() => document.querySelectorAll('.tk-seen .tk-caption span')[1].textContent === '100.0 %'")
    assert page.locator(".tk-seen .tk-caption b").first.text_content() == "0 right"
    notebook.theme("dark")
    page.wait_for_selector(".tk-view.tk-dark")
