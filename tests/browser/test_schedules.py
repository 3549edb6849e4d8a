"""The schedule explorer in a real browser: its curves beside Python's, sliders, keys, Copy, widths."""

import re

import numpy as np
import pytest
from playwright.sync_api import Page

import toolkit as tk
from browser.conftest import colours, press, settled, text


@pytest.fixture
def explorer(opened):
    """A function that opens the page of a view."""

    def open_page(view=None, *args, **options) -> Page:
        page = opened(view or tk.views.schedules(), *args, **options)
        page.wait_for_selector("[data-curve]")
        settled(page)
        return page

    return open_page


def drawn(page: Page, name: str, what: str = "sigma") -> np.ndarray:
    """The numbers behind a curve."""
    return np.array(page.eval_on_selector(f'[data-curve="{what} {name}"]', "path => path.values"), float)


def path_of(page: Page, name: str) -> str:
    return page.get_attribute(f'[data-curve="sigma {name}"]', "d")


def move(page: Page, option: str, place: int) -> None:
    """Puts a slider at one of its places, as a hand does."""
    page.eval_on_selector(
        f'.tk-dial input[aria-label="{option}"]',
        "(input, place) => { input.value = place; input.dispatchEvent(new Event('input')); }",
        place,
    )
    settled(page)


LEVELS = {
    "sd": tk.Levels.scaled_linear(),
    "zero_snr": tk.Levels.scaled_linear(zero_snr=True),
    "betas": tk.Levels.from_betas(np.linspace(1e-4, 0.02, 777)),
    "edm": tk.Levels.edm(0.002, 700.0),
    "flow": tk.Levels.flow(3.0),
    "flux": tk.Levels.flux(1.15),
}


@pytest.mark.parametrize("kind", LEVELS)
def test_every_curve_is_pythons(explorer, kind):
    """All schedules of all levels, at several steps; the numbers are read back from the page."""
    levels = LEVELS[kind]
    names = [entry["name"] for entry in tk.views.schedules(levels)._schedules]
    page = explorer(tk.views.schedules(levels, names))
    for steps in (2, 7, 10, 20, 33, 100):
        move(page, "steps", steps - 2)
        for name in names:
            want = tk.schedule(levels, name, steps)
            np.testing.assert_allclose(drawn(page, name), want.sigma, rtol=1e-6, err_msg=name)
            if steps == 20:
                log_snr, size = drawn(page, name, "snr"), drawn(page, name, "size")
                np.testing.assert_allclose(log_snr, want.log_snr, rtol=1e-6, atol=2e-5, err_msg=name)
                np.testing.assert_allclose(size, 2 * want.step_size[:-1], rtol=1e-6, atol=4e-5, err_msg=name)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("sd", n) for n in ("karras", "exponential", "polyexponential", "beta", "vp", "laplace")]
    + [("flow", "dynamic_shift"), ("flow", "karras"), ("flux", "beta"), ("edm", "vp"), ("edm", "beta")],
)
def test_a_slider_moves_the_curve_and_the_line_makes_it(explorer, kind, name):
    levels = LEVELS[kind]
    page = explorer(tk.views.schedules(levels, [name]))
    options = [slider["name"] for slider in tk.views.schedules(levels, [name])._known[name]["sliders"]]
    for option in [*options, "steps"]:
        for place in (3, 11, 20):
            before = drawn(page, name)
            move(page, option, place)
            line = text(page, ".tk-well code")
            assert not np.array_equal(before, drawn(page, name)), (option, place)
            got = eval(line, {"tk": tk})
            np.testing.assert_allclose(drawn(page, name), got.sigma, rtol=1e-6, err_msg=line)
    for dial in page.locator(".tk-dial input").all():
        dial.dblclick()
    settled(page)
    assert text(page, ".tk-well code").endswith(f'"{name}", steps=20)')  # defaults leave no trace


def test_the_path_is_drawn_where_the_numbers_are(explorer):
    page = explorer()
    sigma = tk.schedule(tk.Levels.scaled_linear(), "karras", 20).sigma.values
    place = np.array([[float(v) for v in p.split()] for p in re.split("[ML]", path_of(page, "karras"))[1:]])
    assert len(place) == 20  # the 0 has a slot below, joined by dots
    for across, along in ((np.arange(20), place[:, 0]), (np.log(sigma[:-1]), place[:, 1])):
        fit = np.polynomial.Polynomial.fit(across, along, 1)
        np.testing.assert_allclose(fit(across), along, atol=0.02)
    page.focus(".tk-curves")
    press(page, "l")
    page.wait_for_selector("[aria-label=axis] [aria-checked=true] >> text=/^\u03c3$/")
    settled(page)
    place = np.array([[float(v) for v in p.split()] for p in re.split("[ML]", path_of(page, "karras"))[1:]])
    fit = np.polynomial.Polynomial.fit(sigma, place[:, 1], 1)
    np.testing.assert_allclose(fit(sigma), place[:, 1], atol=0.02)


def test_the_line_of_a_model_names_it(explorer):
    model, _ = tk.testing.sharp_modes()
    page = explorer(tk.views.schedules(model, ["karras"], steps=7))
    move(page, "rho", 3)
    move(page, "sigma_min", 20)
    line = text(page, ".tk-well code")
    assert line.startswith("tk.schedule(model, tk.schedule(tk.Levels.edm(")
    got = eval(line, {"tk": tk, "model": model})
    np.testing.assert_allclose(drawn(page, "karras"), got.sigma, rtol=1e-6)


def test_the_list_scrolls_by_itself_and_a_view_with_focus_scrubs(explorer):
    page = explorer()
    page.focus(".tk-curves")
    box = page.locator(".tk-list").bounding_box()
    page.mouse.move(box["x"] + 80, box["y"] + 200)
    page.mouse.wheel(0, 150)
    page.wait_for_function("() => document.querySelector('.tk-list').scrollTop > 0")
    assert page.get_attribute(".tk-curves", "aria-valuenow") == "0"
    page.mouse.move(box["x"] - 200, box["y"] + 100)
    page.mouse.wheel(0, 100)
    page.wait_for_function("() => document.querySelector('.tk-curves').getAttribute('aria-valuenow') === '1'")


def test_symmetric_shapes_break_their_tie_as_scipy_does(explorer):
    page = explorer(tk.views.schedules(names=["beta"], steps=10))
    for place in range(0, 59, 4):
        move(page, "alpha", place)
        move(page, "beta", place)
        got = eval(text(page, ".tk-well code"), {"tk": tk})
        np.testing.assert_array_equal(drawn(page, "beta"), got.sigma)
    odd = tk.views.schedules(names=["beta"], steps=10)
    odd.options = {"beta": {"alpha": 1.23, "beta": 1.23}}
    np.testing.assert_array_equal(drawn(explorer(odd), "beta"), odd.grid.sigma)


def test_a_drag_is_drawn_in_the_next_frame(explorer):
    page = explorer()
    box = page.locator('.tk-dial input[aria-label="rho"]').bounding_box()
    y, place = box["y"] + box["height"] / 2, box["x"] + 8 + (box["width"] - 16) * (7 - 0.5) / 19.5
    page.mouse.move(place, y)
    page.mouse.down()
    page.evaluate(
        """() => { window.frames_ = []; let since = 0;
        const input = document.querySelector('.tk-dial input[aria-label="rho"]');
        const d = () => document.querySelector('[data-curve="sigma karras"]').getAttribute('d');
        input.addEventListener('input', () => { const was = d();
          requestAnimationFrame(() => requestAnimationFrame(() => frames_.push(d() !== was))); }); }"""
    )
    before = path_of(page, "karras")
    page.mouse.move(place - 30, y, steps=6)
    page.mouse.up()
    settled(page)
    assert path_of(page, "karras") != before
    answered = page.evaluate("frames_")
    assert answered and all(answered)
    assert "rho=" in text(page, ".tk-well code")
    assert page.locator('[aria-label="rho"]').count() == 1


def test_copy_gives_the_line(explorer):
    page = explorer()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click(".tk-copy")
    page.wait_for_function("() => document.querySelector('.tk-copy').textContent === 'Copied'")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert (
        copied == text(page, ".tk-well code") == 'tk.schedule(tk.Levels.scaled_linear(), "karras", steps=20)'
    )
    page.wait_for_function("() => document.querySelector('.tk-copy').textContent === 'Copy'")
    page.focus(".tk-curves")
    press(page, "ArrowDown", "c")
    page.wait_for_function("() => document.querySelector('.tk-copy').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == copied.replace("karras", "normal")


def test_keys(explorer):
    page = explorer()
    host = page.locator(".tk-curves")
    page.focus(".tk-curves")

    def step_is(k):
        settled(page)
        assert host.get_attribute("aria-valuenow") == str(k)
        assert text(page, ".tk-readout b") == f"step {k} of 20"

    keys = [("ArrowRight", 1), ("Shift+ArrowRight", 11), ("PageDown", 13), ("End", 20), ("PageUp", 18)]
    for key, k in [*keys, ("ArrowLeft", 17), ("Home", 0)]:
        press(page, key)
        step_is(k)
    want = tk.schedule(tk.Levels.scaled_linear(), "karras", 20)
    press(page, *["ArrowRight"] * 7)
    step_is(7)
    assert f"sigma {float(want.sigma[7]):.4g}" in host.get_attribute("aria-valuetext")
    press(page, "3", "9")  # beta off, another one on
    settled(page)
    assert page.locator('[data-curve="sigma beta"]').count() == 0
    assert page.locator(".tk-item .tk-eye[aria-checked=true]").count() == 4
    assert text(page, ".tk-shelf .tk-caption span").startswith("4 of ")
    press(page, "ArrowDown")
    page.wait_for_function(
        "() => document.querySelector('.tk-open .tk-pickname').textContent.startsWith('normal')"
    )
    before = path_of(page, "normal")
    press(page, "l")
    page.wait_for_selector("[aria-label=axis] [aria-checked=true] >> text=/^\u03c3$/")
    assert path_of(page, "normal") != before
    press(page, "?")
    page.wait_for_function("() => document.querySelectorAll('.tk-keys kbd').length > 8")
    press(page, "Escape", "Escape")
    assert page.evaluate("document.activeElement === document.body")


def test_all_controls_can_be_reached_and_have_names(explorer):
    page = explorer()
    settled(page)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, [tabindex]')].filter(node =>
        !(node.getAttribute('aria-label') || node.textContent.trim())
        || node.dataset.lmSuppressShortcuts !== 'true').map(node => node.outerHTML)"""
    )
    assert nameless == []
    page.focus('.tk-dial input[aria-label="rho"]')
    before = path_of(page, "karras")
    press(page, "ArrowRight")
    settled(page)
    assert path_of(page, "karras") != before
    assert page.get_attribute('.tk-dial input[aria-label="rho"]', "aria-valuetext") == "7.1"
    press(page, "Escape")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "slider"


def test_drag_in_a_plot_moves_the_hairline(explorer):
    page = explorer()
    box = page.locator(".tk-curves").bounding_box()
    page.mouse.move(box["x"] + 36 + (box["width"] - 48) * 0.5, box["y"] + 150)
    page.mouse.down()
    settled(page)
    assert page.get_attribute(".tk-curves", "aria-valuenow") == "10"
    page.mouse.move(box["x"] + 36 + (box["width"] - 48) * 0.25, box["y"] + 400)
    settled(page)
    assert page.get_attribute(".tk-curves", "aria-valuenow") == "5"
    page.mouse.up()


def test_what_cannot_be_drawn_is_said(explorer):
    page = explorer(tk.views.schedules(names=["beta", "karras"], steps=300))
    settled(page)
    want = tk.schedule(tk.Levels.scaled_linear(), "beta", 300)
    assert text(page, ".tk-value-text") == f"beta gives {want.sizes['step']} levels here, not 301"
    page.focus(".tk-curves")
    press(page, "0", "1")
    page.wait_for_function("() => document.querySelectorAll('[data-curve]').length === 0")
    assert text(page, ".tk-shelf .tk-caption span").startswith("0 of ")
    press(page, "End", "1")
    page.wait_for_function("() => document.querySelectorAll('[data-curve]').length === 3")
    view = tk.views.schedules(names=list(tk.views.schedules()._known))
    page = explorer(view)  # more than there are colours
    settled(page)
    assert page.locator(".tk-curves .tk-line.tk-catx").count() > 3 * 6
    assert "more" in text(page, ".tk-readout")


@pytest.mark.parametrize("width", [940, 640, 420])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out(explorer, width, scheme):
    page = explorer(width=width, color_scheme=scheme)
    page.wait_for_selector("table td", state="attached")  # what is off screen for screen readers, too
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert (page.locator(".tk-view.tk-dark").count() == 1) == (scheme == "dark")
    assert page.locator(".tk-view.tk-small").count() == (width < 560)
    wide = page.evaluate("document.querySelector('.tk-curves > svg').getBoundingClientRect().right")
    assert wide <= width
    page.set_viewport_size({"width": 700, "height": 900})
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 700


def looked(page, row: int, tile: int) -> np.ndarray:
    """The colours of a small picture, (y, x, rgb)."""
    canvas = page.locator(".tk-look").nth(row).locator("canvas").nth(tile)
    return colours(canvas.evaluate("canvas => canvas.toDataURL()"))[..., :3]


@pytest.mark.parametrize("levels", [tk.Levels.scaled_linear(), tk.Levels.flow()], ids=["VE", "FLOW"])
def test_what_the_levels_look_like_is_the_image_with_its_noise(explorer, levels):
    view = tk.views.schedules(levels, ["karras", "beta"])
    clean, noise = np.frombuffer(view._look, np.uint8).reshape(2, 47, 47, 3)
    clean, noise = clean / 127.5 - 1, noise.view(np.int8) / 32
    page = explorer(view)
    tiles = page.locator(".tk-look").first.locator("canvas:visible").count()
    assert tiles == 10

    def is_mixed(row, name, rho=7.0):
        options = {"rho": rho} if name == "karras" else {}
        sigma = tk.schedule(levels, name, 20, **options).sigma.values
        for tile in (0, 4, 9):
            level = sigma[2 * tile]
            alpha = float(levels.path.alpha(level))
            state = alpha * clean + level * noise
            state = state if levels.path is tk.FLOW else state / np.hypot(1, level)
            want = np.clip(np.rint(127.5 * state + 127.5), 0, 255)
            assert np.abs(looked(page, row, tile) - want).max() <= 1

    is_mixed(0, "karras")
    is_mixed(1, "beta")
    move(page, "rho", 3)
    is_mixed(
        0,
        "karras",
        view._known["karras"]["sliders"][0]["low"] + 3 * view._known["karras"]["sliders"][0]["hop"],
    )
    page.locator(".tk-look canvas").nth(4).click()
    settled(page)
    assert page.get_attribute(".tk-curves", "aria-valuenow") == "8"
    assert page.locator(".tk-look canvas.tk-now").count() == 2


def test_what_is_typed_filters_the_list(explorer):
    page = explorer()
    page.focus(".tk-seek")
    press(page, *"bet")  # b, e, t are no keys of the view here
    names = page.locator(".tk-item:visible .tk-pickname").all_text_contents()
    assert [name.split("\u03b1")[0] for name in names] == ["beta", "beta57"]
    page.fill(".tk-seek", "")
    assert page.locator(".tk-item:visible").count() == page.locator(".tk-item").count()
    press(page, "Escape")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "slider"
