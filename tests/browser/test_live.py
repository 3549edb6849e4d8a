"""The scrubber with a kernel: a run that is still being written, and zooming that loads more.

The widget's module runs in a page whose model is joined to a Scrubber of this process, message by message, as
JupyterLab joins them; one test at the end does the same in JupyterLab.
"""

import base64
import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

import toolkit as tk
from browser.conftest import SETTLED, press, text
from toolkit.store import UNFINISHED

PAGE = """<!DOCTYPE html><meta name="viewport" content="width=device-width"><style>{style}</style>
<body class="tk tk-page" style="margin: 0"><div id="view"></div><script type="module">{module}
const bytes = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const heard = {{}}, values = {{}}, changed = new Set();
const emit = (event, ...more) => [...(heard[event] ?? [])].forEach((fn) => fn(...more));
const give = (name, value) => {{
  values[name] = value?.bytes != null ? bytes(value.bytes) : value;
  emit(`change:${{name}}`);
}};
window.outbox = [];
const model = {{
  get: (name) => values[name],
  set: (name, value) => {{ changed.add(name), give(name, value); }},
  on: (event, fn) => (heard[event] ??= []).push(fn),
  off: (event, fn) => (heard[event] = (heard[event] ?? []).filter((other) => other !== fn)),
  save_changes: () => {{
    window.outbox.push(Object.fromEntries([...changed].map((name) => [name, values[name]])));
    changed.clear();
  }},
}};
window.put = (state) => {{ for (const name in state) give(name, state[name]); }};
window.message = (content, buffers) => emit("msg:custom", content, buffers.map(bytes));
window.start = () => {{
  theme(document.body), window.end = render({{ model, el: document.getElementById("view") }});
}};
</script>"""


def text64(data) -> str:
    return base64.b64encode(bytes(data)).decode()


def plain(value):
    return {"bytes": text64(value)} if isinstance(value, bytes) else value


class Joined:
    """A Scrubber and its browser; nothing passes between them but in `turn`."""

    def __init__(self, page, view):
        self.page, self.view, self.sent, self.messages = page, view, [], []
        self.view.send = lambda content, buffers=(): self.sent.append((content, list(buffers)))
        self.known = {}
        module = (tk.views.scrubber if isinstance(view, tk.views.Scrubber) else tk.views.normalizer).module()
        page.set_content(PAGE.format(style=tk.views.widget.style(), module=module))
        page.wait_for_function("() => window.start")
        self.push([n for n in view.keys if not n.startswith("_") or n in KEYS])
        page.evaluate("start()")
        page.evaluate(SETTLED)
        self.turn()

    def push(self, names) -> None:
        state = {name: getattr(self.view, name) for name in names}
        state = {n: v for n, v in state.items() if n not in self.known or self.known[n] != v}
        state = {n: v for n, v in state.items() if not isinstance(v, bytes | dict) or n not in self.known
                 or n in ("_exact", "_lut")}  # fmt: skip
        self.known |= state
        if state:
            self.page.evaluate("state => put(state)", {n: plain(v) for n, v in state.items() if n in TOLD})

    def turn(self) -> None:
        """What the browser saved reaches Python, what Python sent reaches the browser."""
        for changes in self.page.evaluate("() => window.outbox.splice(0)"):
            self.known |= changes
            for name, value in changes.items():
                setattr(self.view, name, value)
        for content, buffers in self.sent:
            self.messages.append((content, buffers))
            content = json.loads(json.dumps(content, allow_nan=False))
            self.page.evaluate("([c, b]) => message(c, b)", [content, [text64(b) for b in buffers]])
        self.sent.clear()
        self.push([n for n in ("rung", "sigma", "_version", "_exact") if n in self.view.keys])

    def until(self, condition: str, argument=None) -> None:
        end = time.monotonic() + 6
        while True:
            self.turn()
            self.page.evaluate(SETTLED)
            if self.page.evaluate(condition, argument):
                return
            assert time.monotonic() < end, (condition, argument, self.page.inner_text("#view"))

    def rung_is(self, rung: int) -> None:
        self.until("rung => document.querySelector('.tk-rail').ariaValueNow === String(rung)", rung)
        while self.view.rung != rung:  # the browser tells it a little later
            self.turn()


KEYS = ("_run", "_latent", "_denoised", "_floats", "_pictures", "_lut", "_exact", "_kernel", "_version")
TOLD = (
    *KEYS,
    "mode",
    "show",
    "divider",
    "rung",
    "sigma",
    "sample",
    "channel",
    "axis",
    "scale",
    "decode",
    "interpolation",
    "pixel",
    "colormap",
)


@pytest.fixture
def joined(browser):
    """A function that shows a Scrubber in a page, joined to it."""
    contexts, faults = [], []

    def join(view, width=940, page=None, **options):
        if page is not None:
            return Joined(page, view)
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda e: faults.append(str(e)))
        return Joined(page, view)

    yield join
    for context in contexts:
        context.close()
    assert faults == []


class Slow:
    """A run into a store, in a thread, that goes on by as many steps as it is told."""

    def __init__(self, store, steps=12, **options):
        self.allowed, self.store, self.fault = threading.Semaphore(0), store, None
        self.done, self.count = threading.Condition(), 0
        mixture = tk.GaussianMixture(np.zeros((2, 4, 8, 8)), 1.0)
        save = tk.Save(store=store, fn=self._wait)
        self.thread = threading.Thread(target=self._run, args=(mixture, steps, save, options), daemon=True)
        self.thread.start()
        self._reached(1)

    def _run(self, mixture, steps, save, options):
        try:
            tk.sample(mixture, steps=steps, save=save, progress=False, seed=0, shape=(1, 4, 8, 8), **options)
        except RuntimeError as error:
            self.fault = error

    def _wait(self, step):
        with self.done:
            self.count += 1
            self.done.notify_all()
        self.allowed.acquire()
        if self.fault is StopIteration:
            raise RuntimeError("no power")
        return {}

    def _reached(self, count):
        """Step `count` is under way, and the row that it starts from can be read."""
        with self.done:
            assert self.done.wait_for(lambda: self.count >= count, 30)
        end = time.monotonic() + 30
        while tk.open(self.store).sizes["step"] < count - (count == 1):  # the first comes with the second
            assert time.monotonic() < end

    def steps(self, number):
        """So many steps more, and their rows flagged."""
        count = self.count + number
        for _ in range(number):
            self.allowed.release()
        self._reached(count)

    def end(self, break_it=False):
        self.fault = StopIteration if break_it else None
        for _ in range(100):
            self.allowed.release()
        self.thread.join(30)
        assert not self.thread.is_alive()


@pytest.fixture
def slow(tmp_path):
    """A run into a store that goes on step by step, ended at the end."""
    run = Slow(tmp_path / "run.zarr")
    yield run
    run.end()


def schedule(joined):
    """Of the rail: dots, points of the dashed line, halos."""
    return joined.page.evaluate(
        """() => [document.querySelectorAll('.tk-rail .tk-dot').length,
          (document.querySelector('.tk-planned')?.getAttribute('d').match(/[ML]/g) ?? []).length,
          document.querySelectorAll('.tk-halo').length]"""
    )


def shown(joined, column="latent", tile=0):
    """The pixels of a tile, (y, x, rgba)."""
    data = joined.page.evaluate(
        """([name, i]) => { const c = document.querySelectorAll(`.tk-column-${name} canvas`)[i];
          return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; }""",
        [column, tile],
    )
    return np.array(data, np.uint8).reshape(8, 8, 4)


def drawn_as(joined, rung, tile=0):
    """Whether the tile has the order of the values at a rung: a larger value is never bluer."""
    values = joined.view._dataset.latent[rung, 0, tile].values
    limit = 3 * joined.view._dataset.latent[rung, 0].values.std()
    colours = tk.views.unpacked.lut()
    want = colours[np.clip(np.floor((values / limit + 1) / 2 * 255 + 0.5), 0, 255).astype(int)]
    return np.abs(shown(joined, "latent", tile)[..., :3].astype(int) - want).max() <= 12


def test_a_run_that_is_being_written(joined, slow):
    slow.steps(1)
    view = tk.view(slow.store)
    assert repr(view).startswith("Scrubber(sample, 2 rungs,") and view._run["live"]
    here = joined(view)
    assert text(here.page, ".tk-live") == "rung 1 of 12" and schedule(here) == [2, 12, 1]
    assert "follows the newest" in text(here.page, ".tk-value-text")
    slow.steps(3)
    here.page.click(".tk-button")
    here.rung_is(4)
    here.until("() => document.querySelector('.tk-live').textContent === 'rung 4 of 12'")
    assert schedule(here) == [5, 9, 1] and drawn_as(here, 4)
    assert view.rung == 4 and view.sigma == float(tk.open(slow.store).sigma[4])
    content, buffers = here.messages[-1]
    each = 4 * 8 * 8
    assert content["index"] == [0, 2, 3, 4, 5] and [len(b) for b in buffers[:2]] == [4 * each] * 2
    slow.steps(2)  # the one before has its denoised now: it comes again with the two
    view.refresh()
    here.rung_is(6)
    content, buffers = here.messages[-1]
    assert content["index"] == [0, 1, 2, 3, 5, 6, 7] and len(buffers[0]) == 3 * each

    press_at = here.page.locator(".tk-rail")
    press_at.focus()
    press(here.page, "ArrowLeft", "2")  # scrubbed away: it stays, with all that was chosen
    here.rung_is(5)
    here.until("() => document.querySelectorAll('.tk-tile.tk-focused').length === 2")
    slow.steps(1)
    view.refresh()
    here.until("() => document.querySelector('.tk-live').textContent === 'rung 7 of 12'")
    here.rung_is(5)
    assert drawn_as(here, 5) and view.channel == 2
    assert here.page.evaluate("document.activeElement.getAttribute('role')") == "slider"
    press(here.page, "End")
    here.rung_is(7)
    slow.steps(1)
    view.refresh()
    here.rung_is(8)
    slow.end()
    view.refresh()
    here.rung_is(12)
    assert schedule(here) == [13, 0, 0] and not here.page.locator(".tk-live").is_visible()
    assert here.page.locator(".tk-button:visible").count() == 0  # it is whole
    whole = tk.view(tk.open(slow.store))
    for name in ("latent", "denoised", "floats"):
        assert getattr(view._payload, name) == getattr(whole._payload, name), name
    assert {n: v for n, v in view._run.items() if n != "version"} == whole._run


def test_pin_and_zoom_survive_and_a_second_browser_catches_up(joined, slow):
    slow.steps(5)
    view = tk.view(tk.open(slow.store))
    here = joined(view)
    tile = here.page.locator(".tk-column-latent .tk-tile").nth(1).bounding_box()
    here.page.mouse.click(tile["x"] + tile["width"] * 3.5 / 8, tile["y"] + tile["height"] * 2.5 / 8)
    box = here.page.locator(".tk-rail").bounding_box()
    here.page.mouse.move(box["x"] + 34 + (box["width"] - 64) * 5 / 12, box["y"] + 60)
    here.page.keyboard.down("Control")
    here.page.mouse.wheel(0, -300)
    here.page.keyboard.up("Control")
    labels = "() => [...document.querySelectorAll('.tk-tick-text')].map((t) => t.textContent).join()"
    here.until(f"() => !({labels})().includes('10')")
    zoomed = here.page.evaluate(labels)
    slow.steps(1)
    view.refresh()
    here.rung_is(6)
    assert here.page.evaluate(labels) == zoomed
    assert text(here.page, ".tk-value-text").startswith("c1 y 2 x 3")
    value = f"{float(view._dataset.latent[6, 0, 1, 2, 3]):+.3f}".replace("-", "\u2212")
    here.until(
        "v => document.querySelector('.tk-value-text').textContent.endsWith(v)", value
    )  # the exact one

    old = {n: here.known[n] for n in KEYS if n in here.known}  # a second view of the same model in one page
    other = joined(view)
    other.page.evaluate("end()")
    other.page.evaluate(
        "state => put(state)", {n: plain(v) for n, v in old.items() if n != "_exact"} | {"_version": 1}
    )
    other.page.evaluate("start()")
    other.until("() => document.querySelectorAll('.tk-rail .tk-dot').length === 7")
    other.rung_is(6)
    assert drawn_as(other, 6)


def test_a_run_that_is_killed_and_a_store_that_is_gone(joined, slow):
    slow.steps(3)
    view = tk.view(slow.store)
    here = joined(view)
    slow.end(break_it=True)
    here.page.click(".tk-button")
    here.until("() => document.querySelector('.tk-value-text').textContent.includes('no power')")
    assert here.page.locator(".tk-value-text.tk-error").count() == 1
    assert here.page.locator(".tk-unrecorded").count() == here.page.locator(".tk-stopped").count() == 1
    assert schedule(here)[2] == 0 and schedule(here)[1] > 5 and not here.page.locator(".tk-live").is_visible()
    shutil.rmtree(slow.store)
    here.page.click(".tk-button")
    here.until(
        "() => document.querySelector('.tk-value-text').textContent.includes('there is no such folder')"
    )
    with pytest.raises(FileNotFoundError, match="no such folder"):
        view.refresh()
    tk.sample(tk.GaussianMixture(np.zeros((2, 4, 8, 8)), 1.0), steps=3, seed=1, shape=(1, 4, 8, 8),
              save=tk.Save(store=slow.store), progress=False)  # fmt: skip
    here.page.click(".tk-button")
    here.until(
        "() => document.querySelector('.tk-value-text').textContent.includes('another run is there now')"
    )
    press(here.page, "Home")
    here.rung_is(0)  # what was there can still be scrubbed


def test_nothing_recorded_yet(joined, slow):
    view = tk.view(slow.store)
    assert (view.rung, view._run["steps"], view._run["live"]) == (0, 0, True)
    assert view._repr_mimebundle_()[0]["image/png"]
    here = joined(view)
    assert (
        text(here.page, ".tk-value-text") == "no rung is there yet" and text(here.page, "output") == "\u2013"
    )
    assert here.page.locator(".tk-column-latent .tk-empty").count() == 1
    assert schedule(here) == [0, 13, 0]
    press(here.page, "End", "ArrowLeft", " ")
    here.page.locator(".tk-rail").click()
    here.page.click(".tk-button")
    here.until("() => document.querySelector('.tk-button').ariaDisabled === 'false'")
    assert view.rung == 0 and schedule(here) == [0, 13, 0]
    slow.steps(3)
    here.page.click(".tk-button")
    here.rung_is(3)
    assert drawn_as(here, 3) and schedule(here) == [4, 10, 1]
    slow.end(break_it=True)
    zarr.open_group(slow.store, mode="r+").attrs["stopped"] = UNFINISHED  # as where the process was killed
    view.refresh()
    here.until(
        "() => document.querySelector('.tk-value-text').textContent.startsWith('the process that wrote')"
    )


def long_run(steps=1200):
    run = tk.testing.ladder_dataset(steps=steps, size=8)
    return run.assign(denoised=run.latent * 0.5)


def zoom(joined, part, notches):
    box = joined.page.locator(".tk-rail").bounding_box()
    joined.page.locator(".tk-rail").focus()
    joined.page.mouse.move(box["x"] + 34 + (box["width"] - 64) * part, box["y"] + 60)
    joined.page.keyboard.down("Control")
    joined.page.mouse.wheel(0, -notches)
    joined.page.keyboard.up("Control")
    joined.page.mouse.move(5, 5)


def test_zooming_loads_more(joined):
    view = tk.view(long_run())
    here = joined(view)
    assert len(view._run["rungs"]) == 256
    assert "zooming loads more" in text(here.page, ".tk-value-text")
    row = min(set(range(600, 700)) - set(view._run["rungs"]))
    view.rung = row  # any rung can be set: the browser is sent the one that it lacks
    here.rung_is(row)
    assert view.rung == row and drawn_as(here, row) and len(here.messages[-1][1][0]) <= 2 * 4 * 8 * 8
    zoom(here, row / 1200, 1500)
    here.until("() => document.querySelector('.tk-value-text').textContent.startsWith('all ')")
    rungs = np.array(view._run["rungs"])
    low, high = view._span
    assert low < row < high and set(range(low, high + 1)) <= set(rungs) and {0, 1200} <= set(rungs)
    assert len(rungs) <= 256
    assert text(here.page, ".tk-value-text").startswith(f"all {high - low + 1} rungs of this range")
    here.rung_is(row)
    press(here.page, "ArrowRight")
    here.rung_is(row + 1)
    assert drawn_as(here, row + 1)
    box = here.page.locator(".tk-rail").bounding_box()
    here.page.mouse.dblclick(box["x"] + 40, box["y"] + 60)
    here.page.mouse.move(5, 5)
    here.until("() => document.querySelector('.tk-value-text').textContent.includes('evenly')")
    assert view._span is None and {0, 1200} <= set(view._run["rungs"]) and len(view._run["rungs"]) == 256
    view.sigma = 3.0
    assert view.rung == int(np.abs(view._dataset.sigma.values - 3.0).argmin())
    here.rung_is(view.rung)


def test_without_a_kernel_zooming_says_why_not(opened, tmp_path):
    page = opened(tk.to_html(long_run(300), tmp_path / "run.html"))
    assert (
        "loading more" not in text(page, ".tk-value-text") and page.locator(".tk-button:visible").count() == 0
    )
    box = page.locator(".tk-rail").bounding_box()
    page.locator(".tk-rail").focus()
    page.mouse.move(box["x"] + 300, box["y"] + 60)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -900)
    page.keyboard.up("Control")
    page.mouse.move(5, 5)
    page.wait_for_function(
        "() => document.querySelector('.tk-value-text').textContent.includes('needs a kernel')"
    )


@pytest.mark.parametrize("width", [420, 320])
def test_nothing_is_wider_than_a_phone(joined, slow, width):
    slow.steps(3)
    here = joined(tk.view(slow.store), width)
    assert here.page.locator(".tk-button").is_visible()
    assert here.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for view in (tk.view(long_run(30)), tk.views.normalize(tk.testing.unsample_dataset(samples=2))):
        page = joined(view, width, page=here.page).page
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), type(view)


def test_brackets_that_need_another_key(joined):
    view = tk.views.normalize(tk.testing.unsample_dataset())
    here = joined(view)
    here.page.locator(".tk-rail").focus()
    fire = """([key, more]) => document.activeElement.dispatchEvent(
      new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true, ...more}))"""
    for more, moved in (
        ({"ctrlKey": True, "altKey": True}, True),  # AltGr, on Windows
        ({"modifierAltGraph": True, "altKey": True}, True),
        ({"ctrlKey": True}, False),
        ({"metaKey": True}, False),
    ):
        before = view.divider
        here.page.evaluate(fire, ["]", more])
        if moved:
            here.until("() => true")
            while view.divider == before:
                here.turn()
            assert view.divider == pytest.approx(before + 0.05)
        else:
            here.turn()
            assert view.divider == before
    before = view.divider
    here.page.evaluate(fire, ["ArrowRight", {"ctrlKey": True, "altKey": True}])
    here.turn()
    assert view.rung == 20 and view.divider == before


def test_the_normalise_comparator_zooms_plays_and_has_colours(joined):
    view = tk.views.normalize(tk.testing.unsample_dataset(steps=80))
    here = joined(view)
    assert here.page.locator(".tk-player .tk-play").is_visible()
    labels = "() => [...document.querySelectorAll('.tk-rail .tk-tick-text')].map((t) => t.textContent).join()"
    whole = here.page.evaluate(labels)
    zoom(here, 0.9, 900)
    here.until(f"whole => ({labels})() !== whole", whole)
    here.page.keyboard.press("Home")
    here.rung_is(0)
    here.until(f"whole => ({labels})() === whole", whole)  # the thumb left the range
    pixels = "() => document.querySelector('.tk-pair-left canvas').toDataURL()"
    before = here.page.evaluate(pixels)
    view.colormap = "gray"
    here.push(["_lut"])
    here.until(f"before => ({pixels})() !== before", before)
    tile = here.page.locator(".tk-pair-left .tk-tile").first.bounding_box()
    here.page.mouse.move(tile["x"] + tile["width"] * 1.5 / 16, tile["y"] + tile["height"] * 2.5 / 16)
    value = f"{float(view._dataset.latent[0, 0, 0, 2, 1]):+.3f}".replace("-", "\u2212")
    here.until("v => document.querySelector('.tk-value-text').textContent.includes(`off ${v}`)", value)


def test_the_exact_levels_after_a_part_was_picked():
    run = tk.testing.unsample_dataset()
    part = run.isel(y=slice(0, 5))
    payload = tk.view(part)._payload
    (name, size), *_ = [table for table in payload.meta["floats"] if table[0] == "latent.mean"]
    start = 4 * sum(n for other, n in payload.meta["floats"][: payload.meta["floats"].index([name, size])])
    mean = np.frombuffer(payload.floats[start : start + 4 * size], "<f4").reshape(21, 1, 4)
    np.testing.assert_allclose(mean, part.latent.mean(("y", "x")), rtol=1e-5, atol=1e-6)
    assert np.abs(mean - run["mean"].values).max() > 0.01


def test_in_jupyterlab(notebook):
    """A run goes on in a thread of the kernel; the button of the view, and the rail's zoom, reach Python."""
    notebook.run(
        f"import sys, tempfile; sys.path.insert(0, r'{Path(__file__).parents[1]}')\n"
        "from pathlib import Path; from browser.test_live import Slow, long_run\n"
        "run = Slow(Path(tempfile.mkdtemp()) / 'run.zarr'); run.steps(2)\n"
        "view = tk.view(run.store)\nview"
    )
    page = notebook.page
    page.wait_for_selector(".tk-view .tk-rail[aria-valuenow='2']")
    notebook.run("run.steps(3)")
    page.click(".tk-button")
    page.wait_for_selector(".tk-view .tk-rail[aria-valuenow='5']")
    page.wait_for_function("() => document.querySelector('.tk-live').textContent === 'rung 5 of 12'")
    notebook.prints("print(view, view.rung)", "Scrubber(sample, 6 rungs, 1 sample, 4 channels) 5")
    notebook.run("run.end(); view.refresh()")
    page.wait_for_selector(".tk-view .tk-rail[aria-valuenow='12']")
    assert page.locator(".tk-button:visible").count() == 0
    notebook.clear()
    notebook.run("view = tk.view(long_run())\nview.rung = 600\nview")
    page.wait_for_selector(".tk-view .tk-rail[aria-valuenow='600'] svg")
    box = page.locator(".tk-rail").bounding_box()
    page.locator(".tk-rail").focus()
    page.mouse.move(box["x"] + 34 + (box["width"] - 64) / 2, box["y"] + 60)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -1500)
    page.keyboard.up("Control")
    page.mouse.move(5, 5)
    page.wait_for_function("() => document.querySelector('.tk-value-text').textContent.startsWith('all ')")
    press(page, "ArrowRight")
    page.wait_for_selector(".tk-view .tk-rail[aria-valuenow='601']")
    notebook.prints("print(view.rung, set(range(560, 641)) <= set(view._run['rungs']))", "601 True")
