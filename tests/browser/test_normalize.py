"""The normalise comparator in a real browser: its page from a file, without a network or a kernel."""

import io

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from playwright.sync_api import Page

import toolkit as tk
from browser.conftest import colours, press, until
from toolkit.views.normalizer import unit

NAMED = "() => document.querySelector('.tk-pair-left .tk-tile')?.getAttribute('aria-label')"


@pytest.fixture
def normal(opened):
    """A function that opens the page of the view of a run."""

    def open_page(dataset, mode="channel", width=928, scheme="light", motion="reduce", **traits) -> Page:
        view = tk.views.normalize(dataset, mode)
        for name, value in traits.items():
            setattr(view, name, value)
        page = opened(view, width, 1000, color_scheme=scheme, reduced_motion=motion)
        until(page, NAMED)
        return page

    return open_page


def uneven() -> xr.Dataset:
    """A ladder whose last channel is N(0, 1) with a few far values: mean and std 1 squeeze all the others."""
    run, rng = tk.testing.ladder_dataset(), np.random.default_rng(0)
    latent, values = run.latent.copy(deep=True), rng.standard_normal((16, 16))
    values[rng.random((16, 16)) < 0.02] = 20.0
    latent[:, 0, 3] = unit(run.sigma.values)[:, None, None] * values
    return run.assign(latent=latent).drop_vars(["mean", "std"])


def picture(page: Page) -> np.ndarray:
    """The large tile as it is on the screen, (y, x, rgb)."""
    shot = page.locator(".tk-pair-left .tk-tile").first.screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)


def drawn(page: Page) -> str:
    return page.evaluate("document.querySelector('.tk-over').toDataURL()")


def opaque(page: Page, selector: str) -> int:
    """How many pixels of the first such canvas have a colour: those that are not finite have none."""
    data = page.evaluate("s => document.querySelector(s).toDataURL()", selector)
    return int((colours(data)[..., 3] > 0).sum())


def distances(page: Page) -> list[list[float]]:
    """W1 off and on of the channels shown, as the plots say it."""
    said = page.locator(".tk-plots text[text-anchor=end]").all_text_contents()
    return [[float(v) for v in text.split("W\u2081 ")[1].split(" \u2192 ")] for text in said]


def rung_is(page: Page, rung: int) -> None:
    until(
        page,
        "rung => document.querySelector('.tk-rail').getAttribute('aria-valuenow') === String(rung)"
        " && document.querySelector('.tk-pill-text').textContent === String(rung)",
        rung,
    )


def divider_is(page: Page, percent: int) -> None:
    until(
        page,
        "value => document.querySelector('.tk-grip').getAttribute('aria-valuenow') === String(value)"
        " && document.querySelector('.tk-over').style.clipPath.endsWith(` ${value}%)`)",
        percent,
    )


def test_dragging_the_divider_changes_the_pixels_it_passes_and_no_others(normal):
    page = normal(tk.testing.ladder_dataset(), "channel", rung=4)
    before, box = picture(page), page.locator(".tk-over").bounding_box()
    middle, y = box["x"] + box["width"] / 2, box["y"] + 40
    page.mouse.move(middle + 8, y)  # beside the line: its area is wider than what is drawn
    page.mouse.down()
    page.mouse.move(middle + 8 + box["width"] / 4, y, steps=5)
    page.mouse.up()
    divider_is(page, 75)
    page.mouse.move(5, 5)
    page.wait_for_function("() => document.querySelectorAll('.tk-mark:not([hidden])').length === 0")
    after, width = picture(page), before.shape[1]
    moved = (before != after).any(axis=(0, 2))
    line = 22  # pixels of line and grip on either side
    assert not moved[: width // 2 - line].any()
    assert not moved[width * 3 // 4 + line :].any()
    between = moved[width // 2 + line : width * 3 // 4 - line]
    assert between.mean() > 0.9
    assert page.locator(".tk-pair-left .tk-mark:not([hidden])").count() == 0  # a drag pins nothing
    page.locator(".tk-grip").dblclick()
    divider_is(page, 50)


def test_keys_move_the_divider_the_rung_and_the_channel(normal):
    page = normal(tk.testing.ladder_dataset())
    page.focus(".tk-rail")
    press(page, "]", "]")
    divider_is(page, 60)
    press(page, "[", "[", "[")
    divider_is(page, 45)
    rung_is(page, 20)
    before, figures = drawn(page), distances(page)
    press(page, "ArrowLeft", "Shift+ArrowLeft")
    rung_is(page, 9)
    assert drawn(page) != before and distances(page) != figures
    for key, rung in (("Home", 0), ("PageDown", 2), ("End", 20)):
        press(page, key)
        rung_is(page, rung)
    press(page, "2")
    until(page, "() => document.querySelector('.tk-caption b').textContent === 'c2'")
    press(page, "ArrowUp")
    until(page, "() => document.querySelector('.tk-caption b').textContent === 'c1'")
    assert page.locator(".tk-tile.tk-focused").count() == 1
    page.focus(".tk-grip")  # a slider of its own: arrows are the divider's there
    press(page, "ArrowRight")
    divider_is(page, 50)
    rung_is(page, 20)
    press(page, "?")
    until(page, "() => document.querySelectorAll('.tk-keys kbd').length > 12")


@pytest.mark.parametrize("mode", ["off", "global", "sample", "channel"])
def test_the_numbers_of_the_page_are_those_of_normalized(normal, mode):
    run = tk.testing.ladder_dataset(samples=2)
    rung, y, x = 6, 3, 12
    page = normal(run, rung=rung, channel=1, sample=1)
    before = drawn(page)
    page.click(f"[aria-label=normalise] >> text={mode}")
    page.wait_for_selector(f"[aria-label=normalise] [aria-checked=true] >> text={mode}")
    if mode != "channel":
        until(page, "before => document.querySelector('.tk-over').toDataURL() !== before", before)
    box = page.locator(".tk-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] * (x + 0.5) / 16, box["y"] + box["height"] * (y + 0.5) / 16)
    until(page, "() => document.querySelector('.tk-value-text').textContent.startsWith('c1 y 3 x 12')")
    words = page.text_content(".tk-value-text").replace("\u2212", "-").split()
    level, plane = unit(run.sigma.values[rung]), run.latent[rung, 1, 1].values
    wanted = tk.normalized(run, mode).latent[rung, 1, 1].values / (level if mode == "off" else 1)
    for shown, values in ((words[6], plane / level), (words[8], wanted)):
        assert abs(float(shown) - values[y, x]) <= np.ptp(values) / 254 / 2 + 0.005
    two = xr.concat([run.latent[rung, 1] / level, tk.normalized(run, mode).latent[rung, 1]], "side").values
    two[1] = two[1] / (level if mode == "off" else 1)
    said = page.locator(".tk-plot g text[text-anchor=end]").all_text_contents()
    figures = np.array([[float(v.replace("\u2212", "-")) for v in text.split(" \u2192 ")] for text in said])
    flat = two.astype(float).reshape(2, 4, -1)
    np.testing.assert_allclose(figures[0::2], flat.mean(axis=-1).T, atol=0.0051)
    np.testing.assert_allclose(figures[1::2], flat.std(axis=-1).T, atol=0.0051)


def test_densities_are_those_of_a_histogram(normal):
    run = tk.testing.ladder_dataset(size=64)
    page = normal(run, rung=10)
    path = page.locator(".tk-plot .tk-filled").first.get_attribute("d")
    points = np.array([p.split() for p in path.replace("M", "").split("L")], float)[1:-1:2]
    values = tk.normalized(run, "channel").latent[10, 0, 0].values.ravel()
    wanted, _ = np.histogram(values, (np.arange(73) - 36) / 8)
    shares = (points[:, 1].max() - points[:, 1]) / (points[:, 1].max() - points[:, 1]).sum()
    assert len(shares) == 72 and np.abs(shares - wanted / wanted.sum()).max() < 0.006


def test_where_the_distance_rises_the_foot_says_so(normal):
    page = normal(uneven())
    foot = "document.querySelector('.tk-value-text').textContent"
    until(page, f"() => {foot}.includes('c3: mean 0 and std 1, yet farther from N(0, 1)')")
    off, on = distances(page)[3]
    assert on > off and page.locator(".tk-risen").count() >= 1
    page.click("[aria-label=normalise] >> text=off")
    until(page, "() => document.querySelectorAll('.tk-risen').length === 0")


def test_split_blink_and_difference(normal):
    page = normal(tk.testing.ladder_dataset())
    page.focus(".tk-rail")
    clip, split = "document.querySelector('.tk-over').style.clipPath", drawn(page)
    press(page, "v")
    until(page, f"() => {clip} === 'inset(0px 0px 0px 0%)'")
    assert page.locator(".tk-divider.tk-gone").count() == 1
    page.wait_for_timeout(1300)  # motion is not wanted here: nothing turns by itself
    assert page.evaluate(clip) == "inset(0px 0px 0px 0%)"
    press(page, "[")
    until(page, f"() => {clip} === 'inset(0px 0px 0px 100%)'")
    press(page, "v")
    until(page, "split => document.querySelector('.tk-over').toDataURL() !== split", split)
    assert "scale \u00d7" in page.text_content(".tk-pair-left .tk-caption")
    press(page, "v")
    until(page, "split => document.querySelector('.tk-over').toDataURL() === split", split)


def test_blink_turns_by_itself_where_motion_is_wanted(normal):
    page = normal(tk.testing.ladder_dataset(), motion="no-preference", show="blink")
    clip = "document.querySelector('.tk-over').style.clipPath"
    for percent in (0, 100, 0):
        until(page, f"() => {clip} === 'inset(0px 0px 0px {percent}%)'")


def test_frames_without_a_distribution(normal):
    run = tk.testing.ladder_dataset(steps=4)
    latent = run.latent.copy(deep=True)
    latent[1], latent[2, 0, :3], latent[3, 0, 0, 0, 0] = 0.5, np.nan, np.inf
    page = normal(run.assign(latent=latent), rung=0)
    page.focus(".tk-rail")
    for rung in (1, 2, 3, 4):
        press(page, "ArrowRight")
        rung_is(page, rung)
    assert page.locator(".tk-fault").count() == 2


def test_nan_one_rung_many_channels_and_no_square(normal):
    run = tk.testing.unsample_dataset(samples=2)
    latent = run.latent.copy(deep=True)
    latent[20, 0, 0, :2, :6] = np.nan
    broken = run.assign(latent=latent)
    page = normal(broken)
    assert "12 NaN, 0 Inf" in page.text_content(".tk-pair-left .tk-caption")
    assert page.locator(".tk-fault").count() == 1
    assert opaque(page, ".tk-over") == 0  # as in tk.normalized, nothing is left of that channel
    assert opaque(page, ".tk-pair-left canvas") == 256 - 12
    assert opaque(page, ".tk-pair-right canvas") == 0
    page.focus(".tk-rail")
    press(page, "1")
    until(page, "() => document.querySelector('.tk-caption b').textContent === 'c1'")
    assert opaque(page, ".tk-over") == 256
    page.select_option("select", "1")
    until(page, "() => document.querySelectorAll('.tk-fault').length === 0")

    page = normal(tk.at(run, sigma=1))
    assert page.locator(".tk-rail").count() == 0 and "the only rung" in page.text_content(".tk-caption")

    many = xr.concat([run.drop_vars("channel")] * 5, "channel", data_vars="minimal")
    page = normal(many.isel(channel=slice(0, 17)), channel=16)
    assert page.locator(".tk-plots .tk-plot").count() == 1
    page.focus(".tk-rail")
    press(page, "ArrowUp")
    until(page, "() => document.querySelectorAll('.tk-plots .tk-plot').length === 4")
    assert page.locator(".tk-badge").all_text_contents() == ["c12", "c13", "c14", "c15"] * 2

    page = normal(run.isel(y=slice(0, 6)))
    box = page.locator(".tk-over").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(16 / 6, rel=0.02)


@pytest.mark.parametrize("width", [928, 700, 600, 420])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out(normal, width, scheme):
    page = normal(tk.testing.unsample_dataset(samples=2), width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".tk-view.tk-dark").count() == (scheme == "dark")
    inside = "r => [...document.querySelectorAll('.tk-view *:not(.tk-off, .tk-off *)')].filter(n =>"
    inside += " n.getBoundingClientRect().right > r + 1 && !n.closest('.tk-caption')).length"
    assert page.evaluate(inside, width) == 0


def test_it_speaks(normal):
    page = normal(tk.testing.unsample_dataset())
    until(page, "() => document.querySelector('.tk-pair-left .tk-tile').getAttribute('aria-label')")
    assert page.locator("[role=slider]").count() == 2 and page.locator("[role=radiogroup]").count() == 2
    for node in page.locator("[role=slider], [role=radiogroup], [role=img]").all():
        assert node.get_attribute("aria-label")
    unnamed = page.evaluate(
        "[...document.querySelectorAll('.tk-view :is(button, select, [tabindex])')]"
        ".filter(n => n.dataset.lmSuppressShortcuts !== 'true').length"
    )
    assert unnamed == 0
    assert page.get_attribute(".tk-rail", "aria-valuetext").startswith("rung 20 of 20, sigma 14.6")
    page.focus(".tk-rail")
    press(page, "Home")
    rung_is(page, 0)
    foot = "document.querySelector('.tk-value-text').textContent"
    until(page, f"() => {foot} === 'tk.normalized changes the last rung alone' || {foot}.includes('farther')")
