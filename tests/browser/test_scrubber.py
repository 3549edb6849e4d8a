"""The scrubber in a real browser: its page from a file, without a network or a kernel."""

import numpy as np
import pytest
from playwright.sync_api import Page

import toolkit as tk
from browser.conftest import press, text, until


class Colours:
    """A stand-in for a model with a VAE: three channels as red, green and blue, eight times as large."""

    def decode(self, latent):
        rgb = np.moveaxis(np.asarray(latent)[:, :3], 1, -1)
        return np.clip(0.5 + 0.2 * rgb.repeat(8, 1).repeat(8, 2), 0, 1)


@pytest.fixture
def scrubber(opened, tmp_path):
    """A function that writes a run as a page and opens it."""

    def open_page(dataset, model=None, width=940, **options) -> Page:
        page = opened(tk.to_html(dataset, tmp_path / "run.html", model), width, **options)
        until(page, "() => document.querySelector('output').textContent !== ''")
        return page

    return open_page


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


def test_keys_move_the_rung_its_figures_and_its_pixels(scrubber):
    run = tk.testing.unsample_dataset()
    page = scrubber(run)
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


def test_drag_anywhere_in_the_plots(scrubber):
    page = scrubber(tk.testing.unsample_dataset())
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


def test_wheel_scrubs_only_with_focus_and_play_stops_at_the_end(scrubber):
    page = scrubber(tk.testing.unsample_dataset(), height=400)
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


def test_ctrl_wheel_zooms_the_rail_and_a_double_click_shows_all(scrubber):
    page = scrubber(tk.testing.unsample_dataset(steps=80))
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


def test_axis_scale_channel_interpolation_and_help(scrubber):
    page = scrubber(tk.testing.unsample_dataset())
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


def test_the_value_under_the_pointer_is_the_datasets(scrubber):
    run = tk.testing.unsample_dataset()
    page = scrubber(run)
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


def test_decoded_images_follow(scrubber):
    page = scrubber(tk.testing.unsample_dataset(), Colours())
    page.focus("[role=slider]")
    before = pixels(page, "decoded")
    press(page, "Shift+ArrowRight")
    changed(page, before, "decoded")
    before = pixels(page, "decoded")
    press(page, "d")
    changed(page, before, "decoded")
    assert "latent as an image" in text(page, ".tk-column-decoded .tk-caption")


def test_states(scrubber):
    run = tk.testing.unsample_dataset(samples=2)
    latent = run.latent.copy(deep=True)
    latent[7, 0, 0, :2, :6] = np.nan
    stopped = run.assign(latent=latent).isel(step=slice(0, 12)).assign_attrs(stopped="NaN at step 12, euler")
    page = scrubber(stopped)
    assert text(page, ".tk-value-text") == "NaN at step 12, euler"
    assert page.locator(".tk-fault").count() == 1
    assert page.locator(".tk-unrecorded").count() == 1
    page.focus("[role=slider]")
    press(page, *["ArrowRight"] * 7)
    rung_is(page, 7)
    assert "12 NaN, 0 Inf" in text(page, ".tk-column-latent .tk-caption")
    page.select_option("select", "1")
    page.wait_for_function("() => document.querySelectorAll('.tk-fault').length === 0")
    page = scrubber(tk.at(run, sigma=1))
    assert page.locator("[role=slider]").count() == 0
    assert text(page, "output") == f"{float(tk.at(run, sigma=1).sigma):.3f}"


@pytest.mark.parametrize("width", [940, 640, 420])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out(scrubber, width, scheme):
    page = scrubber(tk.testing.unsample_dataset(), Colours(), width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("document.querySelector('.tk-view').classList.contains('tk-dark')")
    assert dark == (scheme == "dark")
    assert page.locator(".tk-view.tk-small").count() == (width < 560)
    assert page.locator(".tk-view.tk-narrow").count() == (width < 820)
