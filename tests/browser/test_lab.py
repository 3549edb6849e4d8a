"""The widgets in JupyterLab: traits both ways, keys, theme, a new kernel, and notebooks nobody trusts."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import toolkit as tk
from browser.conftest import press, settled, until

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
FROM_THE_TOP = ["05_views.ipynb", "06_real_models.ipynb"]  # nbval runs them all; here views draw themselves

# a view, what its keys move, and the trait of that
VIEWS = {
    "scrub": ("tk.view(tk.testing.unsample_dataset())", ".tk-rail", "rung"),
    "normalize": ("tk.views.normalize(tk.testing.unsample_dataset())", ".tk-rail", "rung"),
    "schedules": ("tk.views.schedules()", ".tk-curves", "step"),
    "regions": ("tk.views.regions(tk.testing.regional_dataset())", ".tk-rail", "rung"),
    "compare": (
        "tk.views.compare(*[tk.testing.unsample_dataset(seed=k) for k in (0, 1)])",
        ".tk-rail",
        "rung",
    ),
}


def rung_is(page, rung, where=".tk-rail", of=""):
    """Waits until a slider says so, and whatever is drawn at it is drawn."""
    wanted = f"{of} {where}[aria-valuenow='{rung}']".strip()
    page.wait_for_selector(wanted)
    settled(page)


def pixels(page, selector):
    return page.evaluate("s => document.querySelector(s).toDataURL()", selector)


def changed(page, selector, before):
    until(page, "([s, before]) => document.querySelector(s).toDataURL() !== before", [selector, before])


def test_the_scrubber(notebook):
    page, tile = notebook.page, ".tk-column-latent canvas"
    notebook.run("view = tk.view(tk.testing.unsample_dataset())\nview")
    page.wait_for_selector(".tk-view .tk-rail svg")
    page.locator(".tk-rail").click(position={"x": 200, "y": 200})
    cell, cells = notebook.ask("activeCellIndex"), notebook.ask("widgets.length")
    keys = ["ArrowDown", "ArrowUp", "d", "b", "x"]  # letters that act on cells
    press(page, "Home", *["ArrowRight"] * 4, *keys)
    rung_is(page, 4)
    assert [notebook.ask("activeCellIndex"), notebook.ask("widgets.length")] == [cell, cells]
    before = pixels(page, tile)
    press(page, "ArrowRight")
    rung_is(page, 5)
    changed(page, tile, before)
    press(page, "Escape", "Escape", "ArrowUp")  # the keys are the notebook's again
    until(page, f"cell => {notebook.PANEL}.content.activeCellIndex === cell - 1", cell)
    sigma = round(float(tk.testing.unsample_dataset().sigma[5]), 3)
    notebook.prints("print('rung', view.rung, round(view.sigma, 3))", f"rung 5 {sigma}")
    notebook.run("view.sigma = 7")
    rung_is(page, 17)
    before = pixels(page, tile)
    assert page.locator(".tk-view.tk-dark").count() == 0
    notebook.theme("dark")
    page.wait_for_selector(".tk-view.tk-dark")
    changed(page, tile, before)


def test_the_normalise_comparator(notebook):
    page = notebook.page
    notebook.run("view = tk.views.normalize(tk.testing.unsample_dataset())\nview")
    page.wait_for_selector(".tk-view .tk-rail svg")
    page.locator(".tk-rail").click(position={"x": 200, "y": 60})
    press(page, "End", "ArrowLeft", "2", "]")  # none of them is the notebook's while the view has focus
    rung_is(page, 19)
    rung_is(page, 55, ".tk-grip")
    page.click("[aria-label=normalise] >> text=sample")
    sigma = round(float(tk.testing.unsample_dataset().sigma[19]), 3)
    asked = "print(view.rung, view.mode, view.channel, view.divider, round(view.sigma, 3))"
    notebook.prints(asked, f"19 sample 2 0.55 {sigma}")
    notebook.run("view.rung, view.mode, view.divider = 3, 'global', 0.25")
    rung_is(page, 3)
    rung_is(page, 25, ".tk-grip")
    page.wait_for_selector("[aria-label=normalise] [aria-checked=true] >> text=global")
    before = pixels(page, ".tk-over")
    notebook.theme("dark")
    page.wait_for_selector(".tk-view.tk-dark")
    changed(page, ".tk-over", before)


def test_the_schedule_explorer(notebook):
    page = notebook.page
    notebook.run("view = tk.views.schedules(steps=10)\nview")
    page.wait_for_selector("[data-curve]")
    page.focus(".tk-curves")
    cell = notebook.ask("activeCellIndex")
    press(page, "Home", "ArrowRight", "ArrowRight", "3")
    page.focus('.tk-dial input[aria-label="rho"]')
    press(page, "ArrowRight")
    line = "() => document.querySelector('.tk-well code').textContent"
    until(page, f"{line}.includes('rho=7.1')")
    assert notebook.ask("activeCellIndex") == cell
    shown = "['karras', 'normal', 'exponential']"
    notebook.prints("print(view.options, view.step, view.shown)", f"{{'karras': {{'rho': 7.1}}}} 2 {shown}")
    notebook.run("view.steps, view.options, view.shown = 12, {'karras': {'rho': 3.0}}, ['karras']")
    until(page, f"{line}.includes('rho=3.0')")
    got = page.eval_on_selector('[data-curve="sigma karras"]', "path => path.values")
    want = tk.schedule(tk.Levels.scaled_linear(), "karras", 12, rho=3.0)
    np.testing.assert_allclose(got, want.sigma, rtol=1e-6)
    assert page.locator(".tk-item .tk-eye[aria-checked=true]").count() == 1
    notebook.theme("dark")
    page.wait_for_selector(".tk-view.tk-dark")


@pytest.mark.parametrize("name", VIEWS)
def test_linked_traits(notebook, name):
    """A slider in the browser (jslink), a second view through Python (link): each moves the other."""
    made, host, trait = VIEWS[name]
    page = notebook.page
    notebook.run(
        "import ipywidgets, traitlets\n"
        f"view, other = {made}, {made}\n"
        "slider = ipywidgets.IntSlider(max=20)\n"
        f"ipywidgets.jslink((view, '{trait}'), (slider, 'value'))\n"
        f"joined = traitlets.link((view, '{trait}'), (other, '{trait}'))\n"
        "ipywidgets.VBox([slider, view, other])"
    )
    here, there = (page.locator(f".tk-view {host}").nth(i) for i in (0, 1))
    there.wait_for()
    here.focus()
    press(page, "Home", "ArrowRight", "ArrowRight", "ArrowRight")

    def all_are(value):
        until(
            page,
            """([host, value]) => document.querySelector('.widget-readout').textContent === value &&
            [...document.querySelectorAll('.tk-view ' + host)].every(n => n.ariaValueNow === value)""",
            [host, str(value)],
        )

    all_are(3)
    page.focus(".widget-slider .noUi-handle")
    press(page, "ArrowRight")
    all_are(4)
    there.focus()
    press(page, "ArrowLeft", "ArrowLeft")
    all_are(2)
    notebook.prints(f"print(view.{trait}, other.{trait}, slider.value)", "2 2 2")


def test_the_dark_theme(notebook):
    """All views at once: their paper, and every canvas that holds colours of a map."""
    page = notebook.page
    made = ", ".join(made for name, (made, _, _) in VIEWS.items() if name != "schedules")
    notebook.run(f"import ipywidgets\nipywidgets.VBox([{made}])")
    shown = "[...document.querySelectorAll('.tk-view')]"
    until(page, f"() => {shown}.length === {len(VIEWS) - 1} && {shown}.every(v => v.querySelector('canvas'))")
    settled(page)
    first = f"{shown}.map(view => view.querySelector('canvas').toDataURL())"
    before = page.evaluate(first)
    assert page.locator(".tk-view.tk-dark").count() == 0
    notebook.theme("dark")
    until(page, f"before => {shown}.every(v => v.classList.contains('tk-dark')) && "
          f"{first}.every((now, i) => now !== before[i])", before)  # fmt: skip
    papers = page.evaluate(f"{shown}.map(view => getComputedStyle(view).backgroundColor)")
    assert all(max(map(int, paper[4:-1].split(", ")[:3])) < 64 for paper in papers), papers


def test_out_of_the_page_while_the_theme_changes(notebook):
    """There a view has no colours to read: it has them when it is back, and who goes for good needs none."""
    page = notebook.page
    made = ", ".join(made for made, _, _ in VIEWS.values())
    notebook.run(f"import ipywidgets\nipywidgets.VBox([{made}])")
    shown = "[...document.querySelectorAll('.tk-view')]"
    until(page, f"() => {shown}.filter(v => v.querySelector('.tk-foot kbd')).length === {len(VIEWS)}")
    settled(page)
    page.evaluate(f"""() => {{
      window.away = {shown}.map(view => [view.parentNode, view]);
      for (const [, view] of away) view.remove();
    }}""")
    settled(page)
    notebook.theme("dark")
    settled(page)
    page.evaluate("for (const [place, view] of away) place.append(view)")
    until(page, f"() => {shown}.filter(v => v.classList.contains('tk-dark')).length === {len(VIEWS)}")
    notebook.ask("model.sharedModel.addCell({cell_type: 'code', source: ''}) && 0")
    left = page.evaluate(f"""() => new Promise(done => {{ // before a frame in which they would be drawn
      const cells = {notebook.PANEL}.content.model.sharedModel;
      new MutationObserver((_, changes) => {{
        changes.disconnect(), cells.deleteCellRange(0, cells.cells.length - 1);
        requestAnimationFrame(() => requestAnimationFrame(() => done({shown}.length)));
      }}).observe(document.body, {{ attributeFilter: ['data-jp-theme-name'] }});
      window.jupyterapp.commands.execute('apputils:change-theme', {{ theme: 'JupyterLab Light' }});
    }})""")
    assert left == 0


def test_after_the_kernel_is_gone_and_in_a_new_one(notebook):
    """What is in the payload still answers; the cell run again gives a view with a kernel."""
    page = notebook.page
    made = ", ".join(made for made, _, _ in VIEWS.values())
    notebook.run(f"import ipywidgets, toolkit as tk\nviews = [{made}]\nipywidgets.VBox(views)")
    drawn = f"() => document.querySelectorAll('.tk-view .tk-foot').length === {len(VIEWS)}"
    until(page, drawn)
    notebook.restart()
    for again in (False, True):
        if again:
            page.evaluate("document.querySelector('.tk-view').classList.add('old')")
            notebook.again(1)
            until(page, "() => !document.querySelector('.old')")
            until(page, drawn)
        for i, (_, host, trait) in enumerate(VIEWS.values()):
            slider = page.locator(".tk-view").nth(i).locator(host)
            slider.focus()
            press(page, "Home", "ArrowRight", "ArrowRight")
            until(page, "n => n.ariaValueNow === '2'", slider.element_handle())
            if again:
                notebook.prints(f"print(views[{i}].{trait})", "2")


def test_nobody_trusts_a_notebook_of_papermill_and_sees_the_pictures(lab, browser):
    lab.put("made.ipynb", ["import toolkit as tk", *(made for made, _, _ in VIEWS.values())])
    command = [sys.executable, "-m", "papermill", "made.ipynb", "left.ipynb", "-k", "python3"]
    subprocess.run(command, cwd=lab.folder, check=True, capture_output=True)
    with browser.new_context(viewport={"width": 1300, "height": 900 * len(VIEWS)}) as context:
        notebook = lab.open(context, "left.ipynb")
        page = notebook.page
        assert notebook.ask("model.cells.get(1).trusted") is False
        seen = "() => [...document.querySelectorAll('.jp-OutputArea img')].filter(i => i.naturalWidth > 600)"
        until(page, f"{seen}.length === {len(VIEWS)}")
        assert page.locator(".tk-view").count() == 0
        assert "rror" not in page.locator(".jp-Notebook").inner_text()


@pytest.mark.parametrize("name", FROM_THE_TOP)
def test_a_notebook_runs_from_top_to_bottom(lab, browser, name):
    """Every cell runs, nothing is written to stderr, and the view draws itself."""
    shutil.copy(NOTEBOOKS / name, lab.folder)
    with browser.new_context(viewport={"width": 1300, "height": 1600}) as context:
        notebook = lab.open(context, name)
        notebook.command("notebook:run-all-cells")  # resolves when all ran
        cells = notebook.ask(
            "widgets.filter(c => c.model.type === 'code')"
            ".map(c => [c.model.executionCount, c.model.outputs.toJSON()])"
        )
        assert cells
        for count, outputs in cells:
            assert count, "a cell did not run"
            for output in outputs:
                assert output["output_type"] != "error", output
                assert output.get("name") != "stderr", output
        notebook.page.locator(".tk-view").first.scroll_into_view_if_needed()
        notebook.page.wait_for_selector(".tk-view .tk-rail svg")
