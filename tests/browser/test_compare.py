"""The comparer in a real browser: its page from a file without a network, and the widget in JupyterLab."""

import base64
import io

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from playwright.sync_api import Page

import toolkit as tk
from browser.conftest import press, settled, text, until
from toolkit.diagnostics import difference
from toolkit.views.paper import colours

LARGE = {name: f".tk-column-{name} .tk-picture canvas" for name in ("A", "B", "difference")}
MINUS = "\u2212"
MIDDLE = np.round(colours(np.zeros((1, 1)), 1) * 255).astype(int)[0, 0].tolist()  # of the map


@pytest.fixture
def compared(opened):
    """A function that opens the page of a view of runs, with traits set."""

    def open_page(
        *runs, width=928, scheme="light", motion="reduce", names=None, model=None, **traits
    ) -> Page:
        view = tk.views.compare(*runs, names=names, model=model)
        for name, value in traits.items():
            setattr(view, name, value)
        page = opened(view, width, 1000, color_scheme=scheme, reduced_motion=motion)
        until(page, "() => document.querySelector('.tk-picture').getAttribute('aria-label')")
        return page

    return open_page


def pair(**options) -> tuple[xr.Dataset, xr.Dataset]:
    """Two runs of one picture with other noise and other levels."""
    first = tk.testing.unsample_dataset(steps=12, **options)
    return first, tk.testing.unsample_dataset(steps=7, **options, seed=1).assign_attrs(schedule="normal")


def pixels(page: Page, selector: str) -> np.ndarray:
    """What a canvas holds, (y, x, rgba)."""
    data = page.eval_on_selector(selector, "canvas => canvas.toDataURL().split(',')[1]")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")).astype(int)


def at(page: Page, rung: int, letter: str = "A") -> None:
    """Waits until that is the rung of the focused run, and the figures say so."""
    until(
        page,
        "([rung, column]) => document.querySelector('.tk-rail').ariaValueNow === String(rung)"
        " && document.querySelectorAll('.tk-two tr')[1].children[column].textContent === String(rung)",
        [rung, " AB".index(letter)],
    )
    settled(page)


def said(page: Page) -> dict[str, list[str]]:
    """The figures by their names: of A and B, and of both."""
    rows = page.locator(".tk-two tr").all()[1:]
    two = {row.locator("th").text_content(): row.locator("td").all_text_contents() for row in rows}
    names, values = (page.locator(f".tk-facts {tag}").all_text_contents() for tag in ("dt", "dd"))
    return two | {name: [value] for name, value in zip(names, values, strict=True)}


def error(value: float) -> str:
    return (f"{float(f'{value:.3g}'):g}" if value >= 1e-3 else f"{value:.1e}".replace("e-0", "e-")).replace(
        "-", MINUS
    )


def close(got: np.ndarray, values: np.ndarray, limit: float) -> None:
    """The colours of a canvas are those of `values`, up to one entry of the table."""
    wanted = np.round(colours(values, limit) * 255).astype(int)
    assert np.abs(got - wanted).max() <= 6 and np.ptp(wanted[..., :3]) > 60


# ---- numbers and pixels


@pytest.mark.parametrize("match", ["interpolated", "nearest"])
def test_the_numbers_of_the_page_are_those_of_diagnostics(compared, match):
    a, b = pair(samples=2)
    page = compared(a, b, match=match, sample=1, rung=5)
    page.focus(".tk-rail")
    for letter, own, key, rung in (("A", a, "ArrowUp", 4), ("B", b, "ArrowDown", 3)):
        press(page, key, "Home", *["ArrowRight"] * rung)
        at(page, rung, letter)
        found = difference(a, b, match, letter.lower()).isel(step=rung, sample=1)
        row, shown = float(found.latent_row), said(page)
        other = 1 - "AB".index(letter)
        assert shown["rung"][other] == (f"{row:.1f}" if row % 1 else f"{row:.0f}")
        assert shown["std"] == [f"{float(found[f'latent_std_{x}']):.3f}" for x in "ab"]
        calls = (b, a)["AB".index("B" if other == 0 else "A")].nfe
        assert shown["model calls"][other] == str(int(calls[int(np.ceil(row))]))
        assert shown["model calls"][1 - other] == str(int(own.nfe[rung]))
        assert shown[f"RMS A {MINUS} B"] == [error(float(found.denoised_rms))]
        assert shown["largest"] == [error(float(found.denoised_largest))]
        assert shown["cosine"] == [f"{float(found.denoised_cosine):.4f}"]
        assert text(page, "output") == f"{float(own.sigma[rung]):.3f}"
    note = text(page, ".tk-column-A .tk-caption")
    assert ("between" in note) == (match == "interpolated")
    assert f"RMS {error(float(found.denoised_rms))}" in text(page, ".tk-column-difference .tk-caption")


def test_the_pixels_are_those_of_the_states_and_of_their_difference(compared):
    a, b = pair()
    page = compared(a, b, rung=6, channel=1)
    found = difference(a, b).isel(step=6, sample=0)
    close(pixels(page, LARGE["difference"]), found.denoised[1].values, float(found.denoised_quantile))
    small = ".tk-column-difference .tk-tiles ~ div .tk-tile:nth-child(3) canvas"
    close(pixels(page, small), found.latent[2].values, float(found.latent_quantile))
    place = float(found.denoised_row)
    low, share = int(place), place % 1
    other = (1 - share) * b.denoised[low, 0] + share * b.denoised[low + 1, 0]
    limit = 3 * max(float(a.denoised[6, 0].std()), float(b.denoised[low, 0].std()))
    close(pixels(page, LARGE["A"]), a.denoised[6, 0, 1].values, limit)
    close(pixels(page, LARGE["B"]), other[1].values, limit)


def test_runs_that_are_the_same_differ_by_nothing(compared):
    run = tk.testing.unsample_dataset(steps=6)
    page = compared(run, run, rung=3)
    assert said(page)[f"RMS A {MINUS} B"] == [f"< 1e{MINUS}15"]
    blank = pixels(page, LARGE["difference"])
    assert np.unique(blank.reshape(-1, 4), axis=0).tolist() == [MIDDLE]
    assert page.locator(".tk-rail .tk-ring:not(.tk-gone)").count() == 1
    assert text(page, ".tk-value-text") == ""  # B has a rung here: nothing to say


def test_what_is_finer_than_the_payload_is_not_drawn_and_said(compared):
    run = tk.testing.unsample_dataset(steps=6)
    rng = np.random.default_rng(0)
    other = run.assign({n: run[n] + 1e-7 * rng.standard_normal(run[n].shape) for n in ("latent", "denoised")})
    page = compared(run, other, rung=3)
    assert "finer than 16 bits carry" in text(page, ".tk-column-difference .tk-caption")
    rms = float(difference(run, other).denoised_rms[3, 0])
    assert said(page)[f"RMS A {MINUS} B"] == [error(rms)] and 5e-8 < rms < 2e-7
    spots = pixels(page, LARGE["difference"])[..., :3] != MIDDLE[:3]
    assert spots.any(-1).mean() < 0.02


def test_a_level_that_the_other_run_lacks_is_dashed(compared):
    run = tk.testing.unsample_dataset(steps=10)
    page = compared(run, run.isel(step=slice(4, 8)), rung=2)
    assert (
        page.locator(".tk-column-B .tk-tiles.tk-empty, .tk-column-difference .tk-tiles.tk-empty").count() == 2
    )
    assert "no such level" in text(page, ".tk-column-B .tk-caption")
    assert text(page, ".tk-value-text") == "B has no such level, and nothing is extrapolated"
    assert said(page)["rung"][1] == "\u2013" and page.locator(".tk-ring.tk-gone").count() == 1
    page.focus(".tk-rail")
    press(page, *["ArrowRight"] * 3)
    at(page, 5)
    assert page.locator(".tk-tiles.tk-empty, .tk-blank, .tk-ring.tk-gone").count() == 0


# ---- hands


def test_a_drag_snaps_to_rungs_and_the_other_run_follows(compared):
    a, b = pair()
    page = compared(a, b, rung=3)
    box = page.locator(".tk-rail").bounding_box()
    before = pixels(page, LARGE["difference"])

    def thumb(kind: str) -> float:
        return float(page.get_attribute(f".tk-rail .tk-{kind}", "cx"))

    start = thumb("thumb")
    page.mouse.move(box["x"] + start, box["y"] + 150)
    page.mouse.down()
    page.mouse.move(box["x"] + start + 180, box["y"] + 40, steps=6)
    page.mouse.up()
    settled(page)
    rung = int(page.get_attribute(".tk-rail", "aria-valuenow"))
    assert rung > 4 and abs(thumb("thumb") - start - 180) < 40
    assert thumb("ring") == pytest.approx(thumb("thumb"), abs=0.1)
    assert (
        text(page, "output") == f"{float(a.sigma[rung]):.3f}"
        and (pixels(page, LARGE["difference"]) != before).any()
    )
    assert text(page, ".tk-value-text").startswith("B has no rung here: interpolated in log \u03c3 between")
    press(page, "ArrowDown")  # to B, at its rung nearest to this level
    near = int(np.abs(b.sigma.values - float(a.sigma[rung])).argmin())
    at(page, near, "B")
    page.mouse.click(box["x"] + 42, box["y"] + 90)  # the left end
    at(page, 0, "B")
    assert text(page, "output") == "0"


def test_swap_match_mode_axis_and_channel_by_keys(compared):
    a, b = pair()
    page = compared(a, b, rung=6)
    page.focus(".tk-rail")
    caption = ".tk-column-A .tk-caption b"
    names, before = (
        [text(page, f".tk-column-{x} .tk-caption b") for x in "AB"],
        pixels(page, LARGE["difference"]),
    )
    figures = said(page)
    press(page, "x")
    until(page, "([at, name]) => document.querySelector(at).textContent === name", [caption, names[1]])
    settled(page)
    at(page, 6, "B")  # the run that one was at, at the rung that one was at
    assert said(page)["std"] == figures["std"][::-1]
    found = difference(b, a, at="b").isel(step=6, sample=0)
    close(pixels(page, LARGE["difference"]), found.denoised[0].values, float(found.denoised_quantile))
    press(page, "x", "n")
    until(page, "() => document.querySelector('.tk-value-text').textContent.includes('its nearest is')")
    nearest = difference(a, b, "nearest").isel(step=6, sample=0)
    settled(page)
    assert said(page)["cosine"] == [f"{float(nearest.denoised_cosine):.4f}"]
    press(page, "n", "3")
    until(
        page, "() => document.querySelector('.tk-column-difference .tk-caption').textContent.includes('c3')"
    )
    settled(page)
    found = difference(a, b).isel(step=6, sample=0)
    close(pixels(page, LARGE["difference"]), found.denoised[3].values, float(found.denoised_quantile))
    assert (pixels(page, LARGE["difference"]) != before).any()
    assert page.locator(".tk-tile.tk-focused").count() == 3
    ring = page.get_attribute(".tk-ring", "cx")
    press(page, "l")
    until(page, "x => document.querySelector('.tk-ring').getAttribute('cx') !== x", ring)
    press(page, "?")
    until(page, "() => document.querySelectorAll('.tk-keys kbd').length > 12")
    assert page.evaluate("document.documentElement.scrollWidth") <= 928
    press(page, "Escape", " ")
    until(page, "() => document.querySelector('.tk-play').getAttribute('aria-label') === 'play'"
                " && document.querySelector('.tk-rail').getAttribute('aria-valuenow') === '12'")  # fmt: skip


def test_split_and_blink(compared):
    a, b = pair()
    page = compared(a, b, rung=6)
    page.focus(".tk-rail")
    press(page, "v")
    page.wait_for_selector(".tk-divider")
    assert page.locator(".tk-column").count() == 2 and page.locator(".tk-column-A .tk-layer").count() == 2
    layer = ".tk-column-A .tk-layer"
    clip = f"[...document.querySelectorAll('{layer}')].map(n => n.style.clipPath).join()"
    until(page, f"() => {clip} === 'inset(0px 50% 0px 0px),inset(0px 0px 0px 50%)'")
    box = page.locator(".tk-column-A .tk-picture").bounding_box()
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot(clip=box))).convert("RGB")).astype(int)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 40, steps=4)
    page.mouse.up()
    until(page, f"() => {clip} === 'inset(0px 25% 0px 0px),inset(0px 0px 0px 75%)'")
    page.mouse.move(2, 2)
    settled(page)
    moved = np.asarray(Image.open(io.BytesIO(page.screenshot(clip=box))).convert("RGB")).astype(int)
    changed, width = (shot != moved).any(axis=(0, 2)), shot.shape[1]
    assert changed[width // 2 + 22 : width * 3 // 4 - 22].mean() > 0.9
    assert not changed[: width // 2 - 22].any() and not changed[width * 3 // 4 + 22 : -40].any()
    press(page, "v")
    until(page, f"() => {clip} === 'inset(0px 100% 0px 0px),inset(0px 0px 0px 0%)'")
    page.focus(".tk-rail")
    press(page, "[")
    until(page, f"() => {clip} === 'inset(0px 0% 0px 0px),inset(0px 0px 0px 100%)'")
    press(page, "v")
    page.wait_for_selector(".tk-column-B .tk-layer")
    assert page.locator(".tk-column").count() == 3 and page.locator(".tk-divider").count() == 0


def test_the_value_under_the_pointer_and_its_pin(compared):
    a, b = pair()
    page = compared(a, b, rung=6, channel=2)
    box, y, x = page.locator(LARGE["B"]).first.bounding_box(), 3, 12
    page.mouse.move(box["x"] + box["width"] * (x + 0.5) / 16, box["y"] + box["height"] * (y + 0.5) / 16)
    until(
        page, "() => document.querySelector('.tk-value-text').textContent.startsWith('denoised c2 y 3 x 12')"
    )
    words = text(page, ".tk-value-text").replace(MINUS, "-").split()
    gap = float(difference(a, b).denoised[6, 0, 2, y, x])
    assert float(words[7]) == pytest.approx(float(a.denoised[6, 0, 2, y, x]), abs=6e-4)
    assert float(words[-1]) == pytest.approx(gap, abs=6e-4)
    assert float(words[7]) - float(words[9]) == pytest.approx(gap, abs=2e-3)
    assert page.locator(".tk-mark:not([hidden])").count() == 3 + 12
    page.mouse.down()
    page.mouse.up()
    page.mouse.move(2, 2)
    settled(page)
    assert page.locator(".tk-mark:not([hidden])").count() == 15  # pinned


def test_more_than_two_runs_on_a_page(compared):
    runs = [tk.testing.unsample_dataset(steps=n, seed=s) for n, s in ((9, 0), (7, 1), (5, 2))]
    page = compared(*runs, names=["one", "two", "three"], rung=4)
    page.select_option("select[aria-label=B]", "2")
    until(page, "() => document.querySelector('.tk-column-B .tk-caption b').textContent === 'three'")
    at(page, 4)
    found = difference(runs[0], runs[2]).isel(step=4, sample=0)
    assert said(page)["cosine"] == [f"{float(found.denoised_cosine):.4f}"]
    page.select_option("select[aria-label=A]", "2")  # chosen twice: swapped
    until(page, "() => document.querySelector('.tk-column-B .tk-caption b').textContent === 'one'")
    assert text(page, ".tk-column-A .tk-caption b") == "three"


class Colours:
    """A stand-in for a model with a VAE: three channels as red, green and blue."""

    def decode(self, latent):
        return np.clip(0.5 + 0.2 * np.moveaxis(np.asarray(latent)[:, :3], 1, -1), 0, 1)


def test_decoded_images_blend_between_rungs(compared):
    a, b = pair()
    page = compared(a, b, model=Colours(), rung=6)
    wanted = np.round(Colours().decode(a.denoised[6].values)[0] * 255)
    until(
        page,
        "s => document.querySelector(s).getContext('2d').getImageData(0, 0, 1, 1).data[3] === 255",
        LARGE["A"],
    )
    settled(page)
    assert np.abs(pixels(page, LARGE["A"])[..., :3] - wanted).max() <= 1
    over = page.locator(".tk-column-B .tk-picture .tk-over")
    assert float(over.evaluate("n => n.style.opacity")) == pytest.approx(
        float(difference(a, b).denoised_row[6]) % 1, abs=1e-3
    )
    assert "top: denoised, decoded" in text(page, ".tk-under")


# ---- what may come


def test_hostile_names_nan_one_rung_many_channels_and_no_square(compared):
    evil, run = "<img src=x onerror=alert(1)>", tk.testing.unsample_dataset(steps=6)
    broken = run.assign(latent=run.latent.copy(deep=True), denoised=run.denoised.copy(deep=True))
    broken["latent"][3, 0, 0, :2, :6] = np.nan
    broken["denoised"][3, 0, 0, :2, :6] = np.nan
    page = compared(broken, run, names=[evil, '"><script>'], rung=3)
    assert text(page, ".tk-column-A .tk-caption b") == evil and page.locator(".tk-view img").count() == 0
    assert page.locator(".tk-fault").count() == 1 and said(page)[f"RMS A {MINUS} B"] == ["NaN"]
    for column in ("A", "difference"):
        assert (pixels(page, LARGE[column])[..., 3] == 0).sum() == 12  # hatched, no colour of the map

    page = compared(run.isel(step=[3]), run)
    assert page.locator(".tk-rail").is_hidden() and said(page)["rung"] == ["0", "3"]

    many = xr.concat([run.drop_vars("channel")] * 5, "channel", data_vars="minimal").isel(
        channel=slice(0, 17)
    )
    page = compared(many, many, channel=16)
    assert page.locator(".tk-column-A .tk-tiles ~ div .tk-tile").count() == 1
    press(page, "Tab")
    page.focus(".tk-rail")
    press(page, "2")
    until(page, "() => document.querySelectorAll('.tk-column-A .tk-tiles ~ div .tk-tile').length === 16")
    settled(page)  # the words come with the next frame
    assert "channels 0 to 15 of 17" in text(page, ".tk-under")

    page = compared(run.isel(y=slice(0, 6)), run.isel(y=slice(0, 6)))
    box = page.locator(".tk-column-A .tk-picture").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(16 / 6, rel=0.02)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out(compared, scheme):
    runs = [tk.testing.unsample_dataset(steps=n, samples=2) for n in (9, 6, 5)]
    page = compared(*runs, scheme=scheme)
    assert page.locator(".tk-view.tk-dark").count() == (scheme == "dark")
    inside = "r => [...document.querySelectorAll('.tk-view *:not(.tk-off, .tk-off *)')].filter(n =>"
    inside += " n.getBoundingClientRect().right > r + 1 && !n.closest('.tk-caption')).map(n => n.outerHTML)"
    for width in (928, 700, 600, 420):
        page.set_viewport_size({"width": width, "height": 900})
        until(page, "w => document.querySelector('.tk-view').clientWidth <= w", width)
        settled(page)
        assert page.evaluate(inside, width) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_it_speaks(compared):
    page = compared(*pair(), rung=6)
    for node in page.locator("[role=slider], [role=radiogroup], [role=img]").all():
        assert node.get_attribute("aria-label")
    unnamed = "[...document.querySelectorAll('.tk-view :is(button, select, [tabindex])')]"
    assert page.evaluate(f"{unnamed}.filter(n => n.dataset.lmSuppressShortcuts !== 'true').length") == 0
    assert page.get_attribute(".tk-rail", "aria-valuetext").startswith("rung 6 of 12, sigma ")
    assert page.get_attribute(".tk-column-difference .tk-picture", "aria-label").startswith(
        "A minus B, denoised c0"
    )


# ---- JupyterLab


def test_the_widget_in_jupyterlab(notebook):
    page = notebook.page
    notebook.run(
        "a, b = tk.testing.unsample_dataset(steps=12), tk.testing.unsample_dataset(steps=7, seed=1)\n"
        "view = tk.views.compare(a, b)\nview"
    )
    page.wait_for_selector(".tk-view .tk-rail svg")
    page.locator(".tk-rail").click(position={"x": 200, "y": 60})
    cells = notebook.ask("widgets.length")
    press(
        page, "Home", "ArrowRight", "ArrowRight", "2", "x", "n", "v"
    )  # x cuts cells, where it is the notebook's
    at(page, 2, "B")
    assert notebook.ask("widgets.length") == cells
    sigma = round(float(tk.testing.unsample_dataset(steps=12).sigma[2]), 4)
    asked = (
        "view.focused, view.a, view.b, view.rung, round(view.sigma, 4), view.channel, view.match, view.mode"
    )
    notebook.prints(f"print({asked})", f"B 1 0 2 {sigma} 2 nearest split")
    notebook.run("view.mode, view.match, view.focused, view.sigma = 'side', 'interpolated', 'A', 1.0")
    other = tk.testing.unsample_dataset(steps=7, seed=1)
    at(page, int(tk.at(other, sigma=1.0).step), "A")
    page.wait_for_selector(".tk-column-B .tk-layer")
    before = pixels(page, LARGE["difference"])
    notebook.theme("dark")
    page.wait_for_selector(".tk-view.tk-dark")
    settled(page)
    assert (pixels(page, LARGE["difference"]) != before).any()
