"""A browser with no network for the pages, and one JupyterLab with one open notebook for the widgets."""

import base64
import io
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

import toolkit as tk

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--force-prefers-reduced-motion"]
MISSING = "no Chromium for the browser tests. Try: apt-get install chromium, or: playwright install chromium"
SETTLED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
WAIT = 30_000  # ms; only how long a failure takes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker("browser")


# Not of the session: while Playwright is there no other test of the process can have an event loop.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One Chromium: the system's, else Playwright's own."""
    with sync_playwright() as playwright:
        names = ("chromium", "chromium-browser", "google-chrome")
        path = next(filter(None, map(shutil.which, names)), playwright.chromium.executable_path)
        if not Path(path).exists():
            pytest.skip(MISSING)
        chromium = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield chromium
        chromium.close()


def listen(page: Page, faults: list[str]) -> None:
    """Collects what the page complains of."""
    page.on("console", lambda m: faults.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: faults.append(str(e)))


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """A function that opens a page from its file, or a view as a page, with the network off.

    ``opened(what, width=940, height=900, **options)``: `options` are those of a context of Playwright
    (`color_scheme`, `device_scale_factor`, `reduced_motion`). The page is drawn when it is given back; a
    warning or an error in its console fails the test at its end.
    """
    contexts, faults = [], []

    def open_page(what: Any, width: int = 940, height: int = 900, **options: Any) -> Page:
        path = what if isinstance(what, Path) else what.to_html(tmp_path / f"page{len(contexts)}.html")
        options = {"color_scheme": "light"} | options
        contexts.append(
            browser.new_context(viewport={"width": width, "height": height}, offline=True, **options)
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT)
        listen(page, faults)
        page.goto(path.as_uri())
        page.wait_for_selector(".tk-foot kbd", state="attached")
        page.evaluate(SETTLED)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


# ---- hands and eyes


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def text(page: Page, selector: str) -> str:
    return page.text_content(selector)


def until(page: Page, condition: str, argument: Any = None) -> None:
    page.wait_for_function(condition, arg=argument)


def settled(page: Page) -> None:
    """Waits for two frames: what was asked for is drawn."""
    page.evaluate(SETTLED)


def colours(url: str) -> np.ndarray:
    """What `canvas.toDataURL()` holds, (y, x, rgba)."""
    with Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) as picture:
        return np.asarray(picture.convert("RGBA")).astype(int)


# ---- JupyterLab


class Lab:
    """A server of JupyterLab: its address, and the folder that it shows."""

    def __init__(self, address: str, token: str, folder: Path):
        self.address, self.token, self.folder = address, token, folder

    def put(self, name: str, sources: Sequence[str]) -> None:
        """Writes a notebook of code cells."""
        code = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
        cells = [code | {"source": source, "id": f"cell{i}"} for i, source in enumerate(sources)]
        spec = {"display_name": "Python 3", "language": "python", "name": "python3"}
        content = {"cells": cells, "metadata": {"kernelspec": spec}, "nbformat": 4, "nbformat_minor": 5}
        (self.folder / name).write_text(json.dumps(content))

    def open(self, context: BrowserContext, name: str) -> "Notebook":
        """A notebook of the folder, its kernel idle; it lives as long as its context."""
        page = context.new_page()
        page.set_default_timeout(3 * WAIT)
        page.goto(f"{self.address}/lab/tree/{name}?token={self.token}&reset")
        page.wait_for_selector("#jupyterlab-splash", state="detached")
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
        notebook = Notebook(page)
        notebook.idle()
        return notebook


class Notebook:
    """An open notebook: `page` is Playwright's, the rest asks JupyterLab itself."""

    PANEL = "window.jupyterapp.shell.currentWidget"

    def __init__(self, page: Page):
        self.page = page

    def ask(self, expression: str) -> Any:
        """The value of an expression of the notebook's widget: ``ask("activeCellIndex")``."""
        return self.page.evaluate(f"{self.PANEL}.content.{expression}")

    def command(self, name: str, **options: Any) -> None:
        """A command of JupyterLab, until it is done."""
        self.page.evaluate(f"options => window.jupyterapp.commands.execute('{name}', options)", options)

    def idle(self) -> None:
        kernel = "window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel"
        self.page.wait_for_function(f"() => {kernel}?.status === 'idle'")

    def again(self, index: int) -> str:
        """Runs a cell that is there, and gives what it printed; an error fails the test."""
        self.ask(f"activeCellIndex = {index}")
        self.command("notebook:run-cell")  # resolves when it has run
        cell = f"{self.PANEL}.content.widgets[{index}].model"
        self.page.wait_for_function(f"() => {cell}.executionCount > 0 && {cell}.executionState !== 'running'")
        outputs = self.ask(f"widgets[{index}].model.outputs.toJSON()")
        assert not [o for o in outputs if o["output_type"] == "error"], outputs
        return "".join("".join(o.get("text", "")) for o in outputs)

    def run(self, source: str) -> str:
        """Adds a cell at the end, runs it, and gives what it printed."""
        cell = json.dumps({"cell_type": "code", "source": source, "metadata": {}})
        self.ask(f"model.sharedModel.addCell({cell}) && 0")
        return self.again(self.ask("widgets.length") - 1)

    def prints(self, source: str, wanted: str) -> None:
        """Waits until the line prints that: traits come back on a channel of their own."""
        said = self.run(source).strip()
        for _ in range(50):
            if said == wanted:
                return
            self.page.wait_for_timeout(100)
            said = self.again(self.ask("widgets.length") - 1).strip()
        assert said == wanted

    def clear(self) -> None:
        """Leaves one empty cell, and the light theme."""
        self.theme("light")
        self.ask("model.sharedModel.addCell({cell_type: 'code', source: ''}) && 0")
        last = self.ask("widgets.length") - 1
        self.ask(f"model.sharedModel.deleteCellRange(0, {last})")

    def restart(self) -> None:
        """Restarts the kernel, as its button does after the question."""
        self.page.evaluate(f"{self.PANEL}.sessionContext.restartKernel()")
        self.idle()

    def theme(self, scheme: str) -> None:
        self.command("apputils:change-theme", theme=f"JupyterLab {scheme.capitalize()}")
        chosen = f"body[data-jp-theme-name$={scheme.capitalize()}]"
        self.page.wait_for_selector(chosen, state="attached")


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A server with all its state in a folder that is thrown away; it and its kernels end with the tests."""
    home, token = tmp_path_factory.mktemp("lab"), secrets.token_hex(16)
    names = {"CONFIG_DIR": "cfg", "DATA_DIR": "data", "RUNTIME_DIR": "rt"}
    env = os.environ | {f"JUPYTER_{key}": str(home / value) for key, value in names.items()}
    env |= {"IPYTHONDIR": str(home / "ipy"), "JUPYTERLAB_SETTINGS_DIR": str(home / "st")}
    env |= {"JUPYTERLAB_WORKSPACES_DIR": str(home / "wsp"), "PYTHONPATH": str(Path(tk.__file__).parents[1])}
    settings = home / "st/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)  # else a toast asks about news, and covers the page
    settings.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    (home / "ws").mkdir()
    options = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"]
    options += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={home / 'ws'}"]
    options += ["--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"]
    options += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with open(home / "log", "w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            yield Lab(_address(server, home / "log"), token, home / "ws")
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(20)


def _address(server: subprocess.Popen, log: Path) -> str:
    """Where the server answers, which its log says once it does."""
    end = time.monotonic() + 90
    while time.monotonic() < end:
        if found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            return found.group()
        assert server.poll() is None, log.read_text()[-2000:]
        time.sleep(0.1)
    pytest.fail("JupyterLab did not start: " + log.read_text()[-2000:])


@pytest.fixture(scope="package")
def shared_notebook(browser: Browser, lab: Lab) -> Iterator[Notebook]:
    """One page and one kernel for all tests of the widgets; ask for `notebook`."""
    lab.put("views.ipynb", [""])
    with browser.new_context(viewport={"width": 1300, "height": 1600}) as context:
        notebook = lab.open(context, "views.ipynb")
        notebook.run("import toolkit as tk")
        yield notebook


@pytest.fixture
def notebook(shared_notebook: Notebook) -> Iterator[Notebook]:
    """An open notebook of one empty cell, whose kernel knows `tk`; an error in a view fails the test."""
    faults: list[str] = []

    def collect(fault: Any) -> None:
        if "blob:" in (fault.stack or ""):  # where a widget's module is from; else it is JupyterLab's own
            faults.append(fault.stack)

    shared_notebook.clear()
    shared_notebook.page.on("pageerror", collect)
    yield shared_notebook
    shared_notebook.page.remove_listener("pageerror", collect)
    assert faults == []
