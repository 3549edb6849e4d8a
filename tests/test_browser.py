"""The scrubber in a real browser: as a page from a file without a network, and as a widget in JupyterLab."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, sync_playwright

import toolkit as tk

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--force-prefers-reduced-motion"]
NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
WITH_A_VIEW = [path.name for path in NOTEBOOKS if "tk.view(" in path.read_text("utf-8")]
WAIT = 30_000  # ms; only how long a failure takes
pytestmark = pytest.mark.browser
CODE_CELL = "import toolkit as tk\nview = tk.view(tk.testing.unsample_dataset())\nview"


class Colours:
    """A stand-in for a model with a VAE: three channels as red, green and blue, eight times as large."""

    def decode(self, latent):
        rgb = np.moveaxis(np.asarray(latent)[:, :3], 1, -1)
        return np.clip(0.5 + 0.2 * rgb.repeat(8, 1).repeat(8, 2), 0, 1)


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium")
    if path is None:
        pytest.fail("the browser tests need chromium on the PATH. Try: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, tmp_path):
    """A function that writes a run as a page and opens it from its file, with the network off."""
    contexts, faults = [], []

    def open_page(dataset, model=None, width=940, **options) -> Page:
        path = tk.to_html(dataset, tmp_path / "run.html", model)
        options = {
            "viewport": {"width": width, "height": 900},
            "offline": True,
            "color_scheme": "light",
        } | options
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("console", lambda m: faults.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: faults.append(str(e)))
        page.goto(path.as_uri())
        page.wait_for_selector(".tk-foot kbd")
        page.wait_for_function("() => document.querySelector('output').textContent !== ''")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def rung_is(page: Page, rung: int) -> None:
    """Waits until the thumb is at `rung`, and figures and slider say so."""
    page.wait_for_function(
        "rung => document.querySelector('[role=slider]').getAttribute('aria-valuenow') === String(rung)"
        " && document.querySelector('.tk-facts dd').textContent.startsWith(rung + ' of ')",
        arg=rung,
    )


def pixels(page: Page, column: str = "latent") -> str:
    """What the first tile of a column shows."""
    return page.evaluate(
        "name => document.querySelector(`.tk-column-${name} canvas`).toDataURL()",
        column,
    )


def changed(page: Page, before: str, column: str = "latent") -> None:
    """Waits until a column shows something else than `before`."""
    page.wait_for_function(
        "([name, before]) => document.querySelector(`.tk-column-${name} canvas`).toDataURL() !== before",
        arg=[column, before],
    )


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def text(page: Page, selector: str) -> str:
    return page.text_content(selector)


def test_keys_move_the_rung_its_figures_and_its_pixels(opened):
    run = tk.testing.unsample_dataset()
    page = opened(run)
    page.focus("[role=slider]")
    rung_is(page, 0)
    assert text(page, "output") == "0"
    before = pixels(page)
    press(page, "Shift+ArrowRight")
    rung_is(page, 10)
    changed(page, before)
    assert text(page, "output") == f"{float(run.sigma[10]):.3f}"
    assert page.get_attribute("[role=slider]", "aria-valuetext").startswith("rung 10 of 20, sigma")
    for key, rung in (
        ("End", 20),
        ("ArrowLeft", 19),
        ("PageUp", 17),
        ("PageDown", 19),
        ("Home", 0),
        ("ArrowRight", 1),
    ):
        press(page, key)
        rung_is(page, rung)
    log_snr = f"{float(run.log_snr[1]):+.3f}"
    assert page.locator(".tk-facts dd").nth(1).text_content() == log_snr
    mean = f"{float(run['mean'][1, 0, 0]):+.3f}".replace("-", "\u2212")
    assert page.locator(".tk-moments td").first.text_content() == mean


def test_drag_anywhere_in_the_plots(opened):
    page = opened(tk.testing.unsample_dataset())
    box = page.locator(".tk-rail").bounding_box()
    left, inner, y = box["x"] + 34, box["width"] - 64, box["y"] + box["height"] * 0.6
    page.mouse.move(left + inner * 0.25, y)
    page.mouse.down()
    rung_is(page, 5)
    page.mouse.move(left + inner * 0.75, y, steps=6)
    rung_is(page, 15)
    page.mouse.up()
    page.mouse.move(left, y)  # no longer held
    page.wait_for_function("() => document.querySelector('.tk-value-text').textContent.startsWith('rung 0')")
    rung_is(page, 15)


def test_wheel_scrubs_only_with_focus_and_play_stops_at_the_end(opened):
    page = opened(tk.testing.unsample_dataset(), viewport={"width": 940, "height": 400})
    page.mouse.move(300, 300)
    page.mouse.wheel(0, 100)
    page.wait_for_function("() => scrollY > 0")  # the page's own
    rung_is(page, 0)
    page.focus("[role=slider]")
    before = page.evaluate("scrollY")
    page.mouse.wheel(0, 100)
    rung_is(page, 1)
    page.mouse.wheel(0, -100)
    rung_is(page, 0)
    assert page.evaluate("scrollY") == before
    press(page, " ")
    page.wait_for_selector(".tk-play[aria-label=pause]")
    rung_is(page, 20)
    page.wait_for_selector(".tk-play[aria-label=play]")


def test_ctrl_wheel_zooms_the_rail_and_a_double_click_shows_all(opened):
    page = opened(tk.testing.unsample_dataset(steps=80))
    ticks = "() => [...document.querySelectorAll('.tk-tick-text')].map(t => t.textContent).join()"
    page.focus("[role=slider]")
    press(page, "Home", *["PageDown"] * 5)
    rung_is(page, 40)
    whole = page.evaluate(ticks)
    box = page.locator(".tk-rail").bounding_box()
    page.mouse.move(box["x"] + 34 + (box["width"] - 64) / 2, box["y"] + 60)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -600)
    page.keyboard.up("Control")
    page.wait_for_function(f"whole => ({ticks})() !== whole", arg=whole)
    page.mouse.dblclick(box["x"] + 34 + (box["width"] - 64) / 2, box["y"] + 60)
    page.wait_for_function(f"whole => ({ticks})() === whole", arg=whole)
    rung_is(page, 40)


def test_axis_scale_channel_interpolation_and_help(opened):
    page = opened(tk.testing.unsample_dataset())
    page.focus("[role=slider]")
    press(page, "Shift+ArrowRight", "l")
    page.wait_for_selector("[aria-label=axis] [aria-checked=true] >> text=log \u03c3")
    before = pixels(page)
    press(page, "f")
    changed(page, before)
    assert "scale of run" in text(page, ".tk-column-latent .tk-caption")
    press(page, "2")
    page.wait_for_function("() => document.querySelectorAll('.tk-tile.tk-focused').length === 2")
    press(page, "n")
    page.wait_for_selector(".tk-view.tk-smooth")
    press(page, "?")
    page.wait_for_function("() => document.querySelectorAll('.tk-keys kbd').length > 12")
    press(page, "Escape", "Escape")
    page.wait_for_function("() => document.querySelectorAll('.tk-tile.tk-focused').length === 0")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "slider"
    press(page, "Escape")
    assert page.evaluate("document.activeElement === document.body")


def test_the_value_under_the_pointer_is_the_datasets(opened):
    run = tk.testing.unsample_dataset()
    page = opened(run)
    page.focus("[role=slider]")
    press(page, "Shift+ArrowRight")
    rung_is(page, 10)
    box = page.locator(".tk-column-denoised .tk-tile").nth(1).bounding_box()
    page.mouse.move(box["x"] + box["width"] * 5.5 / 16, box["y"] + box["height"] * 3.5 / 16)
    page.wait_for_function(
        "() => document.querySelector('.tk-value-text').textContent.startsWith('denoised c1 y 3 x 5')"
    )
    shown = float(text(page, ".tk-value-text").split()[-1].replace("\u2212", "-"))
    plane = run.denoised[10, 0, 1]
    assert abs(shown - float(plane[3, 5])) <= float(plane.max() - plane.min()) / 254 + 0.005
    assert page.locator(".tk-mark:not([hidden])").count() == 8  # the same pixel in all tiles
    page.mouse.down()
    page.mouse.up()
    page.mouse.move(5, 5)
    assert "y 3 x 5" in text(page, ".tk-value-text")  # pinned


def test_decoded_images_follow(opened):
    page = opened(tk.testing.unsample_dataset(), Colours())
    page.focus("[role=slider]")
    before = pixels(page, "decoded")
    press(page, "Shift+ArrowRight")
    changed(page, before, "decoded")
    before = pixels(page, "decoded")
    press(page, "d")
    changed(page, before, "decoded")
    assert "latent as an image" in text(page, ".tk-column-decoded .tk-caption")


def test_states(opened):
    run = tk.testing.unsample_dataset(samples=2)
    latent = run.latent.copy(deep=True)
    latent[7, 0, 0, :2, :6] = np.nan
    stopped = run.assign(latent=latent).isel(step=slice(0, 12)).assign_attrs(stopped="NaN at step 12, euler")
    page = opened(stopped)
    assert text(page, ".tk-value-text") == "NaN at step 12, euler"
    assert page.locator(".tk-fault").count() == 1
    assert page.locator(".tk-unrecorded").count() == 1
    page.focus("[role=slider]")
    press(page, *["ArrowRight"] * 7)
    rung_is(page, 7)
    assert "12 NaN, 0 Inf" in text(page, ".tk-column-latent .tk-caption")
    page.select_option("select", "1")
    page.wait_for_function("() => document.querySelectorAll('.tk-fault').length === 0")
    page = opened(tk.at(run, sigma=1))
    assert page.locator("[role=slider]").count() == 0
    assert text(page, "output") == f"{float(tk.at(run, sigma=1).sigma):.3f}"


@pytest.mark.parametrize("width", [940, 640, 420])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out(opened, width, scheme):
    page = opened(tk.testing.unsample_dataset(), Colours(), width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("document.querySelector('.tk-view').classList.contains('tk-dark')")
    assert dark == (scheme == "dark")
    assert page.locator(".tk-view.tk-small").count() == (width < 560)
    assert page.locator(".tk-view.tk-narrow").count() == (width < 820)


# ---- JupyterLab


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A server with all its state in a folder that is thrown away; gives its address."""
    home = tmp_path_factory.mktemp("lab")
    names = {"CONFIG_DIR": "cfg", "DATA_DIR": "data", "RUNTIME_DIR": "rt"}
    env = os.environ | {f"JUPYTER_{key}": str(home / value) for key, value in names.items()}
    env |= {"IPYTHONDIR": str(home / "ipy"), "JUPYTERLAB_SETTINGS_DIR": str(home / "st")}
    env |= {"JUPYTERLAB_WORKSPACES_DIR": str(home / "wsp"), "PYTHONPATH": str(Path(tk.__file__).parents[1])}
    settings = home / "st/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)  # else a toast asks about news, and covers the page
    settings.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    (home / "ws").mkdir()
    (home / "ws/view.ipynb").write_text(json.dumps(_notebook()))
    for notebook in NOTEBOOKS:
        shutil.copy(notebook, home / "ws")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"]
    options += [
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=tok",
        f"--ServerApp.root_dir={home / 'ws'}",
    ]
    options += ["--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"]
    options += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with open(home / "log", "w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            _answers(f"http://127.0.0.1:{port}/api/status?token=tok", server, home / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(20)


def _notebook() -> dict:
    code = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": "# A heading", "id": "head"},
        code | {"source": CODE_CELL, "id": "view"},
        code | {"source": "print('rung', view.rung, round(view.sigma, 3))", "id": "ask"},
        code | {"source": "view.sigma = 7", "id": "tell"},
    ]
    spec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": spec}, "nbformat": 4, "nbformat_minor": 5}


def _answers(url: str, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 90
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert server.poll() is None, log.read_text()[-2000:]
            time.sleep(0.2)
    pytest.fail("JupyterLab did not start: " + log.read_text()[-2000:])


def _run_cell(page: Page, index: int) -> str:
    """Runs one cell and gives what it printed; the command's promise resolves when the cell has run."""
    notebook = "window.jupyterapp.shell.currentWidget.content"
    page.evaluate(
        f"{notebook}.activeCellIndex = {index}; window.jupyterapp.commands.execute('notebook:run-cell')"
    )
    outputs = f"{notebook}.widgets[{index}].model"
    page.wait_for_function(f"() => {outputs}.executionCount > 0 && {outputs}.executionState !== 'running'")
    said = page.evaluate(f"{outputs}.outputs.toJSON()")
    assert not [o for o in said if o["output_type"] == "error"], said
    return "".join("".join(o.get("text", "")) for o in said)


def _open(context, lab: str, notebook: str) -> Page:
    """A notebook in JupyterLab, its kernel idle."""
    page = context.new_page()
    page.set_default_timeout(3 * WAIT)
    page.goto(f"{lab}/lab/tree/{notebook}?token=tok&reset")
    page.wait_for_selector("#jupyterlab-splash", state="detached")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
    kernel = "window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel"
    page.wait_for_function(f"() => {kernel}?.status === 'idle'")
    return page


def test_the_widget_in_jupyterlab(browser, lab):
    context = browser.new_context(viewport={"width": 1300, "height": 1600})
    page = _open(context, lab, "view.ipynb")
    _run_cell(page, 1)
    page.wait_for_selector(".tk-view .tk-rail svg")

    page.locator(".tk-rail").click(position={"x": 200, "y": 200})
    active = "window.jupyterapp.shell.currentWidget.content.activeCellIndex"
    cell = page.evaluate(active)
    press(
        page, "Home", *["ArrowRight"] * 4, "ArrowDown", "ArrowUp", "d", "b", "x"
    )  # letters that act on cells
    rung_is(page, 4)
    assert page.evaluate(active) == cell
    assert page.evaluate("window.jupyterapp.shell.currentWidget.content.widgets.length") == 4
    before = pixels(page)
    press(page, "ArrowRight")
    rung_is(page, 5)
    changed(page, before)

    press(page, "Escape", "Escape", "ArrowDown")  # the keys are the notebook's again
    page.wait_for_function(f"cell => {active} === cell + 1", arg=cell)

    sigma = round(float(tk.testing.unsample_dataset().sigma[5]), 3)
    for _ in range(50):  # the trait comes back on its own channel, which no cell waits for
        said = _run_cell(page, 2).strip()
        if said == f"rung 5 {sigma}":
            break
        page.wait_for_timeout(100)
    assert said == f"rung 5 {sigma}"
    _run_cell(page, 3)
    rung_is(page, 17)

    assert page.locator(".tk-view.tk-dark").count() == 0
    before = pixels(page)
    page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    page.wait_for_selector(".tk-view.tk-dark")
    changed(page, before)
    context.close()


@pytest.mark.parametrize(
    "notebook", [path.name for path in NOTEBOOKS if "tk.view(" in path.read_text("utf-8")]
)
def test_a_notebook_runs_in_jupyterlab_from_top_to_bottom(browser, lab, notebook):
    """Every cell runs, nothing is written to stderr, and the view draws itself. (The others have no view.)"""
    with browser.new_context(viewport={"width": 1300, "height": 1600}) as context:
        page, widget = _open(context, lab, notebook), "window.jupyterapp.shell.currentWidget"
        page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")  # resolves when all ran
        cells = page.evaluate(f"{widget}.content.widgets.filter(c => c.model.type === 'code')"
                              ".map(c => [c.model.executionCount, c.model.outputs.toJSON()])")  # fmt: skip
        assert cells
        for count, outputs in cells:
            assert count, "a cell did not run"
            for output in outputs:
                assert output["output_type"] != "error", output
                assert output.get("name") != "stderr", output
        page.locator(".tk-view").first.scroll_into_view_if_needed()
        page.wait_for_selector(".tk-view .tk-rail svg")
