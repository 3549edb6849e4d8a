"""The schedule explorer in a real browser: its curves beside Python's, sliders, keys, Copy, widths."""

import json
import re
import urllib.request

import numpy as np
import pytest
from playwright.sync_api import Page
from test_browser import WAIT, _open, _run_cell, browser, lab, press, text  # noqa: F401

import toolkit as tk

pytestmark = pytest.mark.browser
SETTLED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


@pytest.fixture
def opened(browser, tmp_path):  # noqa: F811
    """A function that writes a view as a page and opens it from its file, with the network off."""
    contexts, faults = [], []

    def open_page(view=None, width=940, **options) -> Page:
        path = (view or tk.views.schedules()).to_html(tmp_path / "view.html")
        options = {"viewport": {"width": width, "height": 900}, "color_scheme": "light"} | options
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("console", lambda m: faults.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: faults.append(str(e)))
        page.goto(path.as_uri())
        page.wait_for_selector("[data-curve]")
        page.evaluate(SETTLED)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def drawn(page: Page, name: str, what: str = "sigma") -> np.ndarray:
    """The numbers behind a curve."""
    values = page.get_attribute(f'[data-curve="{what} {name}"]', "data-values").split()
    return np.array([float(v.replace("Infinity", "inf")) for v in values])


def path_of(page: Page, name: str) -> str:
    return page.get_attribute(f'[data-curve="sigma {name}"]', "d")


def move(page: Page, option: str, place: int) -> None:
    """Puts a slider at one of its places, as a hand does."""
    page.eval_on_selector(
        f'.tk-dial input[aria-label="{option}"]',
        "(input, place) => { input.value = place; input.dispatchEvent(new Event('input')); }",
        place,
    )
    page.evaluate(SETTLED)


LEVELS = {
    "sd": tk.Levels.scaled_linear(),
    "zero_snr": tk.Levels.scaled_linear(zero_snr=True),
    "betas": tk.Levels.from_betas(np.linspace(1e-4, 0.02, 777)),
    "edm": tk.Levels.edm(0.002, 700.0),
    "flow": tk.Levels.flow(3.0),
    "flux": tk.Levels.flux(1.15),
}


@pytest.mark.parametrize("kind", LEVELS)
def test_every_curve_is_pythons(opened, kind):
    """All schedules of all levels, at several steps; the numbers are read back from the page."""
    levels = LEVELS[kind]
    names = [entry["name"] for entry in tk.views.schedules(levels)._schedules]
    page = opened(tk.views.schedules(levels, names))
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
def test_a_slider_moves_the_curve_and_the_line_makes_it(opened, kind, name):
    levels = LEVELS[kind]
    page = opened(tk.views.schedules(levels, [name]))
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
    page.evaluate(SETTLED)
    assert text(page, ".tk-well code").endswith(f'"{name}", steps=20)')  # defaults leave no trace


def test_the_path_is_drawn_where_the_numbers_are(opened):
    page = opened()
    sigma = tk.schedule(tk.Levels.scaled_linear(), "karras", 20).sigma.values
    place = np.array([[float(v) for v in p.split()] for p in re.split("[ML]", path_of(page, "karras"))[1:]])
    assert len(place) == 20  # the 0 has a slot below, joined by dots
    for across, along in ((np.arange(20), place[:, 0]), (np.log(sigma[:-1]), place[:, 1])):
        fit = np.polynomial.Polynomial.fit(across, along, 1)
        np.testing.assert_allclose(fit(across), along, atol=0.02)
    page.focus(".tk-curves")
    press(page, "l")
    page.wait_for_selector("[aria-label=axis] [aria-checked=true] >> text=/^\u03c3$/")
    page.evaluate(SETTLED)
    place = np.array([[float(v) for v in p.split()] for p in re.split("[ML]", path_of(page, "karras"))[1:]])
    fit = np.polynomial.Polynomial.fit(sigma, place[:, 1], 1)
    np.testing.assert_allclose(fit(sigma), place[:, 1], atol=0.02)


def test_the_line_of_a_model_names_it(opened):
    model, _ = tk.testing.sharp_modes()
    page = opened(tk.views.schedules(model, ["karras"], steps=7))
    move(page, "rho", 3)
    move(page, "sigma_min", 20)
    line = text(page, ".tk-well code")
    assert line.startswith("tk.schedule(model, tk.schedule(tk.Levels.edm(")
    got = eval(line, {"tk": tk, "model": model})
    np.testing.assert_allclose(drawn(page, "karras"), got.sigma, rtol=1e-6)


def test_the_list_scrolls_by_itself_and_a_view_with_focus_scrubs(opened):
    page = opened()
    page.focus(".tk-curves")
    box = page.locator(".tk-list").bounding_box()
    page.mouse.move(box["x"] + 80, box["y"] + 200)
    page.mouse.wheel(0, 150)
    page.wait_for_function("() => document.querySelector('.tk-list').scrollTop > 0")
    assert page.get_attribute(".tk-curves", "aria-valuenow") == "0"
    page.mouse.move(box["x"] - 200, box["y"] + 100)
    page.mouse.wheel(0, 100)
    page.wait_for_function("() => document.querySelector('.tk-curves').getAttribute('aria-valuenow') === '1'")


def test_symmetric_shapes_break_their_tie_as_scipy_does(opened):
    page = opened(tk.views.schedules(names=["beta"], steps=10))
    for place in range(0, 59, 4):
        move(page, "alpha", place)
        move(page, "beta", place)
        got = eval(text(page, ".tk-well code"), {"tk": tk})
        np.testing.assert_array_equal(drawn(page, "beta"), got.sigma)
    odd = tk.views.schedules(names=["beta"], steps=10)
    odd.options = {"beta": {"alpha": 1.23, "beta": 1.23}}
    np.testing.assert_array_equal(drawn(opened(odd), "beta"), odd.grid.sigma)


def test_a_drag_is_drawn_in_the_next_frame(opened):
    page = opened()
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
    page.evaluate(SETTLED)
    assert path_of(page, "karras") != before
    answered = page.evaluate("frames_")
    assert answered and all(answered)
    assert "rho=" in text(page, ".tk-well code")
    assert page.locator('[aria-label="rho"]').count() == 1


def test_copy_gives_the_line(opened):
    page = opened()
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


def test_keys(opened):
    page = opened()
    host = page.locator(".tk-curves")
    page.focus(".tk-curves")

    def step_is(k):
        page.evaluate(SETTLED)
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
    page.evaluate(SETTLED)
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


def test_all_controls_can_be_reached_and_have_names(opened):
    page = opened()
    page.evaluate(SETTLED)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, [tabindex]')].filter(node =>
        !(node.getAttribute('aria-label') || node.textContent.trim())
        || node.dataset.lmSuppressShortcuts !== 'true').map(node => node.outerHTML)"""
    )
    assert nameless == []
    page.focus('.tk-dial input[aria-label="rho"]')
    before = path_of(page, "karras")
    press(page, "ArrowRight")
    page.evaluate(SETTLED)
    assert path_of(page, "karras") != before
    assert page.get_attribute('.tk-dial input[aria-label="rho"]', "aria-valuetext") == "7.1"
    press(page, "Escape")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "slider"


def test_drag_in_a_plot_moves_the_hairline(opened):
    page = opened()
    box = page.locator(".tk-curves").bounding_box()
    page.mouse.move(box["x"] + 36 + (box["width"] - 48) * 0.5, box["y"] + 150)
    page.mouse.down()
    page.evaluate(SETTLED)
    assert page.get_attribute(".tk-curves", "aria-valuenow") == "10"
    page.mouse.move(box["x"] + 36 + (box["width"] - 48) * 0.25, box["y"] + 400)
    page.evaluate(SETTLED)
    assert page.get_attribute(".tk-curves", "aria-valuenow") == "5"
    page.mouse.up()


def test_what_cannot_be_drawn_is_said(opened):
    page = opened(tk.views.schedules(names=["beta", "karras"], steps=300))
    page.evaluate(SETTLED)
    want = tk.schedule(tk.Levels.scaled_linear(), "beta", 300)
    assert text(page, ".tk-value-text") == f"beta gives {want.sizes['step']} levels here, not 301"
    page.focus(".tk-curves")
    press(page, "0", "1")
    page.wait_for_function("() => document.querySelectorAll('[data-curve]').length === 0")
    assert text(page, ".tk-shelf .tk-caption span").startswith("0 of ")
    press(page, "End", "1")
    page.wait_for_function("() => document.querySelectorAll('[data-curve]').length === 3")
    view = tk.views.schedules(names=list(tk.views.schedules()._known))
    page = opened(view)  # more than there are colours
    page.evaluate(SETTLED)
    assert page.locator(".tk-curves .tk-line.tk-catx").count() > 3 * 6
    assert "more" in text(page, ".tk-readout")


@pytest.mark.parametrize("width", [940, 640, 420])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out(opened, width, scheme):
    page = opened(width=width, color_scheme=scheme)
    page.wait_for_selector("table td", state="attached")  # what is off screen for screen readers, too
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert (page.locator(".tk-view.tk-dark").count() == 1) == (scheme == "dark")
    assert page.locator(".tk-view.tk-small").count() == (width < 560)
    wide = page.evaluate("document.querySelector('.tk-curves > svg').getBoundingClientRect().right")
    assert wide <= width
    page.set_viewport_size({"width": 700, "height": 900})
    page.evaluate(SETTLED)
    assert page.evaluate("document.documentElement.scrollWidth") <= 700


# ---- JupyterLab


def test_the_widget_in_jupyterlab(browser, lab):  # noqa: F811
    """Traits go both ways, keys are not taken by the notebook, and the theme is followed."""
    code = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    sources = [
        "import toolkit as tk\nview = tk.views.schedules(steps=10)\nview",
        "print(view.options, view.step, view.shown)",
        "view.steps = 12; view.options = {'karras': {'rho': 3.0}}; view.shown = ['karras']",
    ]
    cells = [code | {"source": source, "id": f"c{k}"} for k, source in enumerate(sources)]
    spec = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    notebook = {"cells": cells, "metadata": spec, "nbformat": 4, "nbformat_minor": 5}
    body = json.dumps({"type": "notebook", "format": "json", "content": notebook}).encode()
    url, token = f"{lab}/api/contents/schedules.ipynb", {"Authorization": "token tok"}
    urllib.request.urlopen(urllib.request.Request(url, body, token, method="PUT"), timeout=30).close()
    with browser.new_context(viewport={"width": 1300, "height": 1200}) as context:
        page = _open(context, lab, "schedules.ipynb")
        _run_cell(page, 0)
        page.wait_for_selector("[data-curve]")
        page.focus(".tk-curves")
        active = "window.jupyterapp.shell.currentWidget.content.activeCellIndex"
        cell = page.evaluate(active)
        press(page, "Home", "ArrowRight", "ArrowRight", "3")
        page.focus('.tk-dial input[aria-label="rho"]')
        press(page, "ArrowRight")
        page.wait_for_function(
            "() => document.querySelector('.tk-well code').textContent.includes('rho=7.1')"
        )
        assert page.evaluate(active) == cell
        said = ""
        for _ in range(50):  # traits come back on their own channel, which no cell waits for
            said = _run_cell(page, 1).strip()
            if said.startswith("{'karras'"):
                break
            page.wait_for_timeout(100)
        assert said == "{'karras': {'rho': 7.1}} 2 ['karras', 'normal', 'exponential']"
        _run_cell(page, 2)
        page.wait_for_function(
            "() => document.querySelector('.tk-well code').textContent.includes('rho=3.0')"
        )
        want = tk.schedule(tk.Levels.scaled_linear(), "karras", 12, rho=3.0)
        np.testing.assert_allclose(drawn(page, "karras"), want.sigma, rtol=1e-6)
        assert page.locator(".tk-item .tk-eye[aria-checked=true]").count() == 1
        page.evaluate(
            "window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})"
        )
        page.wait_for_selector(".tk-view.tk-dark")
