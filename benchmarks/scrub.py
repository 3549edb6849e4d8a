"""How fast the scrubber answers in a real JupyterLab, beside a matplotlib slider, and what it weighs.

    python benchmarks/scrub.py [--repeats 3] [--check] [--out benchmarks/scrub.json]

Needs chromium on the PATH. One run measures everything in one browser, on a ladder of 200 rungs of 4x64x64:

- event to pixel: from the dispatch of a pointer event in the page until the pixels of the picture changed,
  read behind all else that the next animation frame does, and in a task after each frame from then on. What
  painting the page and the display add is on top, for all alike.
  60 single events at random times give median and p95, 60 more at 50 Hz, while dragging, how many are shown
  (at the 60 Hz of the frames themselves two events would share a frame now and then, and only one be seen).
- the same of `ipywidgets.interact` with a matplotlib figure of the same rung.
- from running the cell, `toolkit.views` being imported, to pixels on the canvas, and the bytes that came
  through the websocket, for 200 rungs and for 10,000.
- the page of the ladder: its bytes, how long it takes to open, and its first slider.
- the notebook that papermill leaves.

`--check` exits with 1 where a limit is passed, in the median of the repeats.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import nbformat
from playwright.sync_api import Page, sync_playwright

RUNGS, MANY, EVENTS = 200, 10_000, 60
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
LIMITS = {  # name -> (words, most, or least where it begins with "shown")
    "ours_p95_ms": ("scrubber, event to pixel, p95, ms", 17.0),
    "shown_ours": ("scrubber, of 60 events at 50 Hz shown", 57),
    "canvas_many_s": ("10,000 rungs, run to canvas, s", 2.0),
    "page_bytes": ("page of 200 rungs, bytes", 4_000_000),
    "page_open_s": ("page of 200 rungs, opens in, s", 1.0),
    "notebook_bytes": ("notebook that papermill leaves, bytes", 10_000_000),
}
MADE = """import torch, toolkit as tk
import toolkit.views
torch.set_num_threads(1)
model = tk.denoiser(lambda x, sigma: x, levels=tk.Levels.scaled_linear())
image = torch.randn((1, 4, 64, 64), generator=torch.Generator().manual_seed(0))
def ladder(rungs):
    return tk.ladder(model, image, schedule="karras", steps=rungs - 1, progress=False)
"""
PLOT = """%matplotlib inline
import matplotlib.pyplot as plt
from ipywidgets import IntSlider, interact
values = run.latent.values
def draw(rung):
    figure, axes = plt.subplots(1, 4, figsize=(9, 2.5))
    for channel, ax in enumerate(axes):
        ax.imshow(values[rung, 0, channel], cmap="RdBu")
        ax.axis("off")
    plt.show()
interact(draw, rung=IntSlider(0, 0, len(values) - 1));"""
CELLS = {
    "made": MADE,
    "few": f"run = ladder({RUNGS})",
    "view": "tk.view(run)",
    "plot": PLOT,
    "many": f"many = ladder({MANY})",
    "large": "tk.view(many)",
}
# In the page. `seen` is what the picture shows, which is read at the end of the frame that follows an event,
# and in a task of its own after every frame.
WATCH = """(kind) => {
  const root = document.querySelector(kind === 'ours' ? '.tk-view' : '.widget-interact');
  const seen = () => {
    const i = root.querySelector('img');
    if (kind !== 'ours') return i && i.complete ? i.src.length + i.src.slice(-4000, -3800) : '';
    const c = root.querySelector('.tk-column-latent canvas');
    return c.getContext('2d', { willReadFrequently: true }).getImageData(8, 8, 16, 2).data.join();
  };
  const after = new MessageChannel(), waiting = [], w = { shown: 0, took: [] };
  let last = seen(), on = true;
  const look = () => {
    const now = seen();
    if (now !== last && now !== '') {
      const t = performance.now();
      last = now, w.shown++;
      while (waiting.length) w.took.push(t - waiting.shift());
    }
  };
  after.port1.onmessage = look;
  const frame = () => { after.port2.postMessage(0); if (on) requestAnimationFrame(frame); };
  requestAnimationFrame(frame);
  w.stop = () => { on = false; };
  w.send = (x, y) => {
    const target = kind === 'ours' ? root.querySelector('[role=slider]') : document.documentElement;
    const init = { bubbles: true, cancelable: true, buttons: 1, clientX: x, clientY: y };
    const pointer = { ...init, pointerId: 1, isPrimary: true, pointerType: 'mouse' };
    // ipywidgets' slider listens to the mouse, not to pointers
    const event = kind === 'ours'
      ? new PointerEvent('pointermove', pointer) : new MouseEvent('mousemove', init);
    waiting.push(performance.now());
    target.dispatchEvent(event);
    requestAnimationFrame(look); // behind the frame that the event asked for
  };
  window.watch = w;
}"""
SINGLE = """async ([places, y, pauses, limit]) => {
  const w = window.watch;
  for (let i = 0; i < places.length; i++) {
    const done = w.took.length;
    await new Promise((ok) => setTimeout(ok, pauses[i]));
    w.send(places[i], y);
    const start = performance.now();
    while (w.took.length === done && performance.now() - start < limit)
      await new Promise((ok) => setTimeout(ok, 4));
  }
  return w.took.slice();
}"""
DRAG = """async ([places, y, rest]) => {
  const w = window.watch, start = performance.now();
  w.shown = 0, w.took.length = 0;
  for (let i = 0; i < places.length; i++) {
    const due = start + (i * 1000) / 50;
    for (let left; (left = due - performance.now()) > 0;)
      await new Promise((ok) => setTimeout(ok, Math.max(0, left - 1)));
    w.send(places[i], y);
  }
  await new Promise((ok) => setTimeout(ok, rest));
  return [w.shown, w.took.slice()];
}"""
PAINTED = """() => { const c = document.querySelector('.tk-view .tk-column-latent canvas');
  return !!c && c.getContext('2d').getImageData(0, 0, 8, 8).data.some((v) => v) }"""
UNTIL = """async (index) => {
  const book = window.jupyterapp.shell.currentWidget.content, shown = () => {
    const c = book.widgets[index].node.querySelector('.tk-column-latent canvas');
    return !!c && c.getContext('2d').getImageData(0, 0, 8, 8).data.some((v) => v);
  };
  book.activeCellIndex = index;
  const start = performance.now();
  window.jupyterapp.commands.execute('notebook:run-cell');
  while (!shown()) await new Promise((ok) => requestAnimationFrame(ok));
  return (performance.now() - start) / 1000;
}"""


def notebook(*names: str) -> str:
    cells = [nbformat.v4.new_code_cell(CELLS[name]) for name in names]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.writes(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}))


class Lab:
    """A server with all its state in a folder that is thrown away."""

    def __init__(self, home: Path):
        names = {"JUPYTER_CONFIG_DIR": "cfg", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "rt"}
        names |= {"IPYTHONDIR": "ipy", "JUPYTERLAB_SETTINGS_DIR": "st", "JUPYTERLAB_WORKSPACES_DIR": "wsp"}
        self.env = os.environ | {key: str(home / folder) for key, folder in names.items()}
        self.env |= {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        settings = home / "st/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
        settings.parent.mkdir(parents=True)  # else a toast asks about news
        settings.write_text('{"fetchNews": "false", "checkForUpdates": false}')
        (home / "ws").mkdir()
        (home / "ws/scrub.ipynb").write_text(notebook(*CELLS))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", home / "log"
        self.command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
                        "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
                        "--IdentityProvider.token=tok", f"--ServerApp.root_dir={home / 'ws'}",
                        "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly",
                        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]  # fmt: skip

    def __enter__(self) -> "Lab":
        with open(self.log, "w") as log:
            self.server = subprocess.Popen(
                self.command, env=self.env, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + 90
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{self.url}/api/status?token=tok", timeout=5):
                    return self
            except OSError:
                time.sleep(0.2)
        raise RuntimeError("JupyterLab did not start: " + self.log.read_text()[-2000:])

    def __exit__(self, *_: object) -> None:
        os.killpg(self.server.pid, signal.SIGTERM)
        self.server.wait(20)

    def open(self, browser) -> Page:
        page = browser.new_context(viewport={"width": 1300, "height": 2400}).new_page()
        page.set_default_timeout(120_000)
        page.goto(f"{self.url}/lab/tree/scrub.ipynb?token=tok&reset")
        page.wait_for_selector("#jupyterlab-splash", state="detached")
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
        kernel = "window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel"
        page.wait_for_function(f"() => {kernel}?.status === 'idle'")
        return page


def run_cell(page: Page, name: str) -> None:
    """Runs one cell to its end."""
    book, index = "window.jupyterapp.shell.currentWidget.content", list(CELLS).index(name)
    page.evaluate(
        f"{book}.activeCellIndex = {index}; window.jupyterapp.commands.execute('notebook:run-cell')"
    )
    model = f"{book}.widgets[{index}].model"
    page.wait_for_function(f"() => {model}.executionCount > 0 && {model}.executionState !== 'running'")
    said = page.evaluate(f"{model}.outputs.toJSON()")
    assert not [o for o in said if o["output_type"] == "error"], said


def until_painted(page: Page, name: str, received: list[int]) -> tuple[float, int]:
    """Seconds from running the cell to pixels on the canvas, and the bytes that came meanwhile."""
    received.clear()
    seconds = page.evaluate(UNTIL, list(CELLS).index(name))
    return seconds, sum(received)


def answers(page: Page, kind: str, selector: str, seed: int) -> dict[str, float]:
    """Event to pixel of single events, and how many of a drag are shown, on a rail that `selector` finds."""
    rail, chance = page.locator(selector).first, random.Random(seed)
    rail.scroll_into_view_if_needed()
    box = rail.bounding_box()
    pad = (34, 30) if kind == "ours" else (0, 0)
    left, width = box["x"] + pad[0], box["width"] - sum(pad)
    y = box["y"] + (80 if kind == "ours" else box["height"] / 2)
    handle = 0.0 if kind == "ours" else page.locator(".widget-interact .noUi-handle").bounding_box()["x"] + 4
    page.mouse.move(left + 2 if kind == "ours" else handle, y)
    page.mouse.down()
    page.evaluate(WATCH, kind)
    # another rung each time: there and back over the middle, by a step that no rung is twice in a row
    places = [left + width * (0.1 + 0.8 * ((37 * i) % EVENTS) / EVENTS) for i in range(EVENTS)]
    pauses = [chance.uniform(40, 90) for _ in places]
    single = page.evaluate(SINGLE, [places, y, pauses, 2000])
    page.evaluate("() => new Promise((ok) => setTimeout(ok, 800))")
    ramp = [left + width * (0.15 + 0.7 * i / EVENTS) for i in range(EVENTS)]
    shown, dragged = page.evaluate(DRAG, [ramp, y, 1500])
    page.evaluate("window.watch.stop()")
    page.mouse.up()
    cuts = statistics.quantiles(single, n=20)
    return {
        f"{kind}_median_ms": statistics.median(single),
        f"{kind}_p95_ms": cuts[-1],
        f"{kind}_answered": len(single),
        f"{kind}_drag_median_ms": statistics.median(dragged),
        f"{kind}_drag_p95_ms": statistics.quantiles(dragged, n=20)[-1],
        f"shown_{kind}": shown,
    }


def measure_lab(browser, home: Path, seed: int) -> dict[str, float]:
    with Lab(home) as lab:
        received: list[int] = []
        page = lab.open(browser)
        cdp = page.context.new_cdp_session(page)  # the socket is open already: frames are counted from here
        cdp.send("Network.enable")
        cdp.on("Network.webSocketFrameReceived", lambda e: received.append(_size(e["response"])))
        run_cell(page, "made")
        run_cell(page, "few")
        told: dict[str, float] = {}
        told["canvas_s"], told["canvas_bytes"] = until_painted(page, "view", received)
        told |= answers(page, "ours", ".tk-view .tk-rail", seed)
        run_cell(page, "plot")
        page.wait_for_selector(".widget-interact img")
        told |= answers(page, "matplotlib", ".widget-interact .noUi-target", seed)
        run_cell(page, "many")
        told["canvas_many_s"], told["canvas_many_bytes"] = until_painted(page, "large", received)
        page.context.close()
        return told


def _size(frame: dict) -> int:
    """Bytes of a websocket frame: binary ones are told in base64."""
    data = frame["payloadData"]
    return len(data) * 3 // 4 if frame["opcode"] == 2 else len(data)


def measure_page(browser, folder: Path) -> dict[str, float]:
    """The page of the ladder: bytes, seconds to a painted canvas, whether its first slider is the rung."""
    import toolkit as tk

    made: dict = {}
    exec(MADE, made)
    path = tk.to_html(made["ladder"](RUNGS), folder / "ladder.html")
    context = browser.new_context(viewport={"width": 940, "height": 900}, offline=True)
    page = context.new_page()
    page.goto(path.as_uri(), wait_until="commit")
    page.wait_for_function(PAINTED, polling="raf")
    opened = page.evaluate("performance.now() / 1000")
    slider = page.locator("[role=slider], input[type=range]").first
    slider.focus()
    for key, rung in (("End", RUNGS - 1), ("Home", 0)):
        page.keyboard.press(key)
        there = "r => document.querySelector('[role=slider], input[type=range]').ariaValueNow === String(r)"
        page.wait_for_function(there, arg=rung)
    assert slider.get_attribute("aria-label") == "rung"
    context.close()
    return {"page_bytes": path.stat().st_size, "page_open_s": opened}


def measure_notebook(folder: Path) -> dict[str, float]:
    """What papermill leaves of a notebook that shows the ladder."""
    (folder / "in.ipynb").write_text(notebook("made", "few", "view"))
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [
        sys.executable,
        "-m",
        "papermill",
        "in.ipynb",
        "out.ipynb",
        "-k",
        "python3",
        "--no-progress-bar",
    ]
    subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
    return {"notebook_bytes": (folder / "out.ipynb").stat().st_size}


def passed(name: str, value: float) -> bool:
    """Whether a limit is kept."""
    most = LIMITS[name][1]
    return value >= most if name.startswith("shown") else value <= most


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--repeats", type=int, default=3)
    ask.add_argument("--check", action="store_true")
    ask.add_argument("--out", type=Path, default=None)
    args = ask.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        ask.error("needs chromium on the PATH. Try: apt-get install chromium")
    runs = []
    with sync_playwright() as playwright:
        for repeat in range(args.repeats):
            load = os.getloadavg()[0]
            with tempfile.TemporaryDirectory() as folder:
                browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
                told = measure_lab(browser, Path(folder), repeat) | measure_page(browser, Path(folder))
                version = browser.version
                browser.close()
                told |= measure_notebook(Path(folder))
            runs.append(told | {"load": load})
            print(f"run {repeat + 1}: " + ", ".join(f"{k} {v:.4g}" for k, v in runs[-1].items()), flush=True)
    middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    failed = False
    for name, (words, limit) in LIMITS.items():
        spread = f"{min(r[name] for r in runs):.4g} to {max(r[name] for r in runs):.4g}"
        print(f"{words:44s} {middle[name]:12.4g}  limit {limit:g}   ({spread})")
        failed |= not passed(name, middle[name])
    if args.out:
        told = {"chromium": version, "median": middle, "runs": runs}
        args.out.write_text(json.dumps(told, indent=1) + "\n")
    return int(failed and args.check)


if __name__ == "__main__":
    sys.exit(main())
