"""The region inspector without a browser: fitting, payload, strokes, traits, errors, picture, page."""

import base64
import dataclasses
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import traitlets
from PIL import Image

import toolkit as tk
from toolkit import fitting, inputs
from toolkit.layouts import Layout
from toolkit.regions import fitted


def soft(size, seed=0) -> np.ndarray:
    """A mask of greys, 0 and 1."""
    return np.clip(np.random.default_rng(seed).normal(0.5, 0.6, size), 0, 1)


@pytest.fixture
def pair() -> list[tk.Region]:
    top = tk.Region(
        tk.box(0, 0, 1, 0.5, size=(32, 48)), prompt="sky & <b>clouds</b>", feather=1.5, name="sky"
    )
    return [top, tk.Region(soft((20, 30)), prompt=4, grow=1, strength=0.7, name="sea", weight=0.5)]


@pytest.fixture(scope="module")
def run():
    left = tk.Region(tk.box(0, 0, 0.6, 1, size=(8, 8)), prompt=3, feather=1, name="left")
    right = tk.Region(tk.box(0.5, 0, 1, 1, size=(8, 8)), prompt="5", name="right", weight=lambda sigma: 0.5)
    return tk.regional(tk.load(), [left, right], cfg=2.0, steps=4, progress=False)


def send(view, name, box, values, serial, sample=0):
    """What the browser sends at the end of a stroke."""
    codes = base64.b64encode(np.asarray(values, np.uint8).tobytes()).decode()
    place = {"serial": serial, "region": view._known.index(name), "sample": sample, "box": box}
    view._strokes = [place | {"codes": codes}]


# ---- fitting


@pytest.mark.parametrize("size", [(53, 80), (64, 64), (7, 5), (512, 384)])
@pytest.mark.parametrize("out", [(53, 80), (8, 8), (13, 64)])
def test_resizing_is_torchs(size, out):
    mask = soft(size)
    want = inputs.mask(mask, (1, 4, *out), "cpu")[0, 0].numpy()
    np.testing.assert_allclose(fitting.resampled(mask[None], out)[0], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("grow", [0, 2, 1.5, -1])
@pytest.mark.parametrize("feather", [0, 0.7, 3])
def test_the_view_fits_as_a_run_does(grow, feather):
    region = tk.Region(soft((40, 60)), grow=grow, feather=feather, name="a")
    view = tk.views.regions([region], size=(20, 33))
    want = fitted(region, (1, 4, 20, 33), 1)[0, 0].numpy()
    np.testing.assert_allclose(view.fits[0, 0], want, atol=1e-7)


@pytest.mark.parametrize("keep", [False, True])
def test_shares_are_those_of_a_layout(keep):
    masks = [soft((9, 11), seed) for seed in range(3)]
    regions = [tk.Region(m, keep=keep and k == 1, name=f"r{k}", weight=0.5 + k) for k, m in enumerate(masks)]
    layout = Layout.fit(regions, (1, 4, 9, 11), "cpu", [10.0, 1.0, 0.0])
    kept = [r.keep for r in regions]
    scaled = np.stack([m * r.weight for m, r in zip(masks, regions, strict=True)])
    np.testing.assert_allclose(fitting.shares(scaled, kept), layout.at(1.0).w[:, 0, 0].numpy(), atol=1e-12)


def test_coverage():
    a, b = np.zeros((4, 5)), np.zeros((4, 5))
    a[:2], b[1:3] = 1, 1
    hole, overlap, most = fitting.coverage(np.stack([a, b, a * 0]), [False] * 3)
    assert (hole, overlap, most) == (0.25, 0.25, (0, 1))
    assert fitting.coverage(np.stack([a, b]), [False, True])[1:] == (0.0, None)  # what is kept goes before
    assert fitting.coverage(np.stack([a, 1 - a]), [False] * 2) == (0.0, 0.0, None)


# ---- payload and what Python takes


def test_what_the_browser_gets(pair):
    image = np.random.default_rng(0).random((64, 96, 3))
    view = tk.views.regions(pair, image)
    assert repr(view) == "RegionInspector(2 regions, latent 8 x 12)"
    assert view._regions["whence"] == "image / 8" and view._regions["grounds"] == ["image"]
    first, second = view._regions["regions"]
    assert first == {"name": "sky", "words": "“sky & <b>clouds</b>”", "kept": False, "factor": 1.0,
                     "size": [1, 32, 48], "offset": 0}  # fmt: skip
    assert second["words"] == "prompt 4 · weight 0.5" and second["offset"] == 32 * 48
    codes = np.frombuffer(view._masks, np.uint8)
    np.testing.assert_array_equal(codes[32 * 48 :], (pair[1].mask * 255).round().ravel())
    [(offset, length, width, height)] = view._regions["image"]
    with Image.open(io.BytesIO(view._image[offset : offset + length])) as shown:
        assert shown.size == (width, height) == (96, 64)
        np.testing.assert_allclose(np.asarray(shown) / 255, image, atol=0.5 / 255 + 1e-9)
    json.dumps([view._regions, view._run, view._answer], allow_nan=False)


def test_regions_come_back_as_they_were_given(pair):
    view = tk.views.regions(pair)
    assert view._size == (32, 48)  # the first mask's own
    for before, after in zip(pair, view.regions, strict=True):
        for field in dataclasses.fields(before):
            np.testing.assert_array_equal(getattr(after, field.name), getattr(before, field.name))
    np.testing.assert_array_equal(view.masks[1], pair[1].mask)


def test_settings_order_and_their_limits(pair):
    view = tk.views.regions(pair)
    before = view.fits
    view.settings = {"sea": {"feather": 2}}
    assert view.settings["sea"] == {"feather": 2.0, "grow": 1.0, "strength": 0.7}
    np.testing.assert_allclose(view.fits[1, 0], fitted(view.regions[1], (1, 1, 32, 48), 1)[0, 0], atol=1e-7)
    assert np.abs(view.fits[1] - before[1]).max() > 0.05
    assert view._answer["settings"] == view.settings
    view.order = ["sea", "sky"]
    assert [r.name for r in view.regions] == ["sea", "sky"] and view.regions[0].feather == 2
    np.testing.assert_array_equal(view.fits[1], before[0])
    for trait, value, why in [
        ("order", ["sky"], "each of sky, sea once"),
        ("settings", {"moon": {}}, "no such settings"),
        ("settings", {"sky": {"blur": 1}}, "feather, grow, strength"),
        ("settings", {"sky": {"feather": -1}}, "0 or more"),
        ("settings", {"sky": {"feather": float("nan")}}, "0 or more"),
        ("settings", {"sky": {"strength": 0}}, "above 0"),
        ("settings", {"sky": {"grow": True}}, "a number"),
        ("shown", ["moon"], "no such shown"),
        ("focused", "moon", "no such focused"),
        ("pixel", [32, 0], "32 x 48"),
        ("brush", 0.0, "above 0"),
        ("sample", 1, "there are 1"),
    ]:
        held = getattr(view, trait)
        with pytest.raises(traitlets.TraitError, match=f"{why}.*Try: view.{trait} = "):
            setattr(view, trait, value)
        assert getattr(view, trait) == held
    view.shown = []
    view.pixel = [31, 47]
    assert view.shown == [] and view.pixel == [31, 47]


def test_traits_link(pair):
    one, other = tk.views.regions(pair), tk.views.regions(pair)
    for name in ("settings", "order", "focused", "brush", "mode"):
        traitlets.link((one, name), (other, name))
    one.settings = {"sky": {"grow": 3}}
    one.order, one.focused, one.brush, one.mode = ["sea", "sky"], "sea", 9.0, "erase"
    assert other.regions[1].grow == 3 and (other.focused, other.brush, other.mode) == ("sea", 9.0, "erase")


# ---- strokes


def test_a_stroke_changes_its_rectangle_and_nothing_else(pair):
    view, before = tk.views.regions(pair), pair[1].mask
    codes = (before[2:5, 3:7] * 255).round().astype(np.uint8)
    codes[1, 1:3] = 255
    sent = len(view._masks)
    send(view, "sea", [2, 3, 5, 7], codes, 1)
    want = before.copy()
    want[3, 4:6] = 1.0
    np.testing.assert_array_equal(view.masks[1], want)  # exact: greys that were not touched are not rounded
    np.testing.assert_array_equal(view.masks[0], pair[0].mask)
    np.testing.assert_allclose(view.fits[1, 0], fitted(view.regions[1], (1, 1, 32, 48), 1)[0, 0], atol=1e-7)
    assert view._answer["heard"] == 1 and len(view._masks) == sent
    shown = np.frombuffer(view._masks, np.uint8)[32 * 48 :].reshape(20, 30)
    np.testing.assert_array_equal(shown, (want * 255).round())  # for a page that connects later
    send(view, "sea", [2, 3, 5, 7], (before[2:5, 3:7] * 255).round(), 2)
    np.testing.assert_array_equal(view.masks[1], before)  # undone, to the last bit
    send(view, "sea", [0, 0, 20, 30], np.full((20, 30), 255), 2)
    np.testing.assert_array_equal(view.masks[1], before)  # heard before: told again until it was


def test_what_is_painted_samples(digits_model):
    view = tk.views.regions(
        [tk.Region(tk.box(0, 0, 0.5, 1, size=(8, 8)), prompt=3, name="a")], model=digits_model
    )
    assert view._regions["whence"] == "of the model"
    send(view, "a", [0, 4, 8, 8], np.full((8, 4), 255), 1)
    run = tk.regional(digits_model, view.regions, cfg=2.0, steps=2, progress=False)
    np.testing.assert_array_equal(run.region_mask[1], np.ones((8, 8)))
    send(view, "a", [0, 0, 8, 8], np.zeros((8, 8)), 2)
    assert not view.fits.any()
    with pytest.raises(ValueError, match="empty"):
        view.regions  # noqa: B018


def test_masks_from_python(pair):
    view, mask = tk.views.regions(pair), soft((20, 30), 7)
    view.paint("sea", mask)
    np.testing.assert_array_equal(view.masks[1], mask)
    np.testing.assert_array_equal(
        np.frombuffer(view._masks, np.uint8)[32 * 48 :], (mask * 255).round().ravel()
    )
    np.testing.assert_allclose(view.fits[1, 0], fitted(view.regions[1], (1, 1, 32, 48), 1)[0, 0], atol=1e-7)
    for name, given, why in [
        ("moon", mask, "no such name"),
        ("sea", mask[:3], "own shape"),
        ("sea", mask + 1, "0..1"),
        ("sea", mask * np.nan, "0..1"),
    ]:
        with pytest.raises(ValueError, match=f"{why}.*Try: view.paint"):
            view.paint(name, given)
    np.testing.assert_array_equal(view.masks[1], mask)


def test_a_mask_a_sample():
    masks = np.stack([tk.box(0, 0, 0.5, 1, size=(8, 8)), tk.box(0.5, 0, 1, 1, size=(8, 8))])
    view = tk.views.regions([tk.Region(masks, name="own"), tk.Region(masks[0], keep=True, name="shared")])
    assert view.fits.shape == (2, 2, 8, 8) and view._run["shape"] == [1, 2, 1, 8, 8]
    np.testing.assert_array_equal(view.fits[0], masks)
    np.testing.assert_array_equal(view.fits[1], masks[[0, 0]])
    assert view._regions["regions"][1]["words"] == "kept as it is"
    send(view, "own", [0, 0, 1, 8], np.full((1, 8), 255), 1, sample=1)
    want = masks.copy()
    want[1, 0] = 1
    np.testing.assert_array_equal(view.regions[0].mask, want)
    view.paint("own", masks[1], sample=0)
    np.testing.assert_array_equal(view.masks[0][0], masks[1])
    with pytest.raises(ValueError, match="there are 2"):
        view.paint("own", masks[1], sample=2)
    with pytest.raises(ValueError, match="2 masks, and there are 3 samples"):
        tk.views.regions([tk.Region(masks, name="a"), tk.Region(masks[[0, 0, 1]], name="b")])


# ---- runs


def test_a_run_shows_its_own_regions(run, digits_model):
    view = tk.views.regions(run, model=digits_model)
    assert repr(view) == "RegionInspector(2 regions, latent 8 x 8)"
    assert view._regions["grounds"] == ["image", "latent", "rung"] and view.rung == 4
    np.testing.assert_allclose(view.fits[:, 0], run.region_mask[1:], atol=1e-7)  # fitted once, not again
    np.testing.assert_array_equal(view.masks[0], run.region_mask[1])
    words = [r["words"] for r in view._regions["regions"]]
    assert words == ["prompt 3", "“5” · its weight is scheduled"]
    curves = view._regions["curves"]
    assert curves["names"] == ["base", "left", "right"]
    got = np.array(curves["conflict"], float)[..., 0]
    np.testing.assert_allclose(got, run.conflict[:, :, 0].T, rtol=1e-4)
    shares = np.array(curves["weight"])[..., 0]
    np.testing.assert_allclose(shares, run.weight.mean(("y", "x")).T, rtol=1e-4)
    assert curves["conflict"][0][-1] == [None]  # the model is not asked at the end
    view.sigma = float(run.sigma[1])
    assert view.rung == 1
    made = view.regions[0]
    assert type(made) is tk.Region and made.prompt == 3 and made.feather == 0 and made.span == (np.inf, 0.0)
    assert view._regions["image"] and tk.views.regions(run)._regions["image"] == []


def test_a_run_needs_no_torch(run, tmp_path):
    plain = run.drop_vars([n for n in run.data_vars if run[n].dtype == object])
    plain.attrs = {"regions": json.dumps(run.attrs["regions"])}
    plain.drop_vars(["channel", "region"]).to_netcdf(tmp_path / "run.nc")
    code = f"""
import sys, json, xarray as xr
from toolkit import views
run = xr.open_dataset({str(tmp_path / "run.nc")!r}).load().assign_coords(region=["base", "left", "right"])
run.attrs["regions"] = json.loads(run.attrs["regions"])
view = views.regions(run)
view.settings = {{"left": {{"feather": 1}}}}
view.to_html({str(tmp_path / "view.html")!r}), view._still()
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_regions_over_a_run_of_others(run, pair):
    view = tk.views.regions(pair, run=run)
    assert view._size == (8, 8) and view._regions["whence"] == "of the run"
    assert view._regions["grounds"] == ["latent", "rung"] and view.ground == "latent"
    ladder = tk.views.regions(pair, run=tk.testing.ladder_dataset(samples=2))
    assert ladder._regions["curves"] == {} and ladder.fits.shape == (2, 2, 16, 16)


# ---- errors

REGION = tk.Region(tk.box(0, 0, 1, 0.5), name="a")
LADDER = tk.testing.ladder_dataset()
WRONG = {
    "none": (lambda: tk.views.regions([]), ValueError, "at least one"),
    "nothing": (lambda: tk.views.regions(None), TypeError, "list of tk.Region"),
    "no region": (lambda: tk.views.regions([np.ones((4, 4))]), TypeError, "list of tk.Region"),
    "one": (lambda: tk.views.regions(REGION), TypeError, "list of tk.Region"),
    "twice": (lambda: tk.views.regions([REGION, REGION]), ValueError, "two are called"),
    "aspect": (lambda: tk.views.regions([REGION], np.zeros((64, 64, 3)), size=(8, 12)), ValueError,
               "8 x 12 .*64 x 64"),
    "size": (lambda: tk.views.regions([REGION], size=(0, 3)), ValueError, "above 0"),
    "size of run": (lambda: tk.views.regions([REGION], run=LADDER, size=(8, 8)), ValueError,
                    "16 x 16"),
    "no regions in it": (lambda: tk.views.regions(tk.testing.ladder_dataset()), ValueError, "region_mask"),
    "two runs": (lambda: tk.views.regions(LADDER, run=LADDER), TypeError,
                 "is a run already"),
    "no run": (lambda: tk.views.regions([REGION], run="run.zarr"), TypeError, "recorded run"),
    "no samples": (lambda: tk.views.regions([REGION], run=tk.testing.ladder_dataset().isel(sample=slice(0))),
                   ValueError, "nothing to draw"),
    "NaN": (lambda: tk.views.regions([REGION], np.full((8, 8, 3), np.nan)), ValueError, "NaN"),
    "range": (lambda: tk.views.regions([REGION], np.full((8, 8, 3), 255.0)), ValueError, "0..1"),
    "shape": (lambda: tk.views.regions([REGION], np.zeros((3, 8, 8, 3))), TypeError, "y, x, rgb"),
    "file": (lambda: tk.views.regions([REGION], "no.png"), FileNotFoundError, "no such file"),
    "no image": (lambda: tk.views.regions([REGION], __file__), ValueError, "no image"),
    "large": (lambda: tk.views.regions([tk.Region(np.ones((4200, 4200)))]), ValueError, "16 MB"),
    "no model": (lambda: tk.views.regions([REGION], run=LADDER, model=3), TypeError, "decode"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_errors_come_before_a_widget(case):
    make, kind, why = WRONG[case]
    with pytest.raises(kind, match=f"{why}(.|\n)*Try: "):
        make()


def test_masks_that_are_not_finite_in_a_run(run):
    broken = run.copy(deep=True)
    broken.region_mask[1, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        tk.views.regions(broken)


# ---- files

HOSTILE = "</script><script>alert(1)</script>&\"'"


def test_mime_bundle_and_still(pair, run):
    view = tk.views.regions(pair[:1], np.full((64, 96, 3), 200, np.uint8))
    view.settings = {"sky": {"feather": 0}}
    data, _ = view._repr_mimebundle_()
    assert data["text/plain"] == "RegionInspector(1 region, latent 8 x 12)"
    assert "application/vnd.jupyter.widget-view+json" in data
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB"), float)
    assert len(base64.b64decode(data["image/png"])) <= 300_000
    above, below = shown[200, 600], shown[700, 600]
    np.testing.assert_allclose(below, 200, atol=2)
    np.testing.assert_allclose(above, 0.7 * 200 + 0.3 * np.array([0x23, 0x50, 0xC8]), atol=3)  # category 0
    for other in (tk.views.regions(run), tk.views.regions([tk.Region(np.ones((1, 1)))])):
        assert other._still().startswith(b"\x89PNG")


def test_a_hostile_name_is_text(tmp_path):
    region = tk.Region(soft((8, 8)), prompt=HOSTILE, name=HOSTILE)
    other = tk.Region(soft((8, 8)), name="__proto__")
    view = tk.views.regions([region, other])
    view.settings = {HOSTILE: {"grow": 1}, "__proto__": {"feather": 1}}
    page = view.to_html(tmp_path / "view.html").read_text()
    assert page.count("<script") == 3 and HOSTILE not in page
    assert view._still() and view.regions[0].name == HOSTILE and view.regions[1].feather == 1


def test_the_page_holds_what_stands(pair, tmp_path):
    view = tk.views.regions(pair)
    view.settings = {"sky": {"feather": 4}}
    view.focused, view.mode = "sea", "brush"
    text = view.to_html(tmp_path / "view.html").read_text()
    held = json.loads(re.search(r'id="state">(.*?)</script>', text)[1])
    assert held["state"]["settings"]["sky"]["feather"] == 4 and held["state"]["focused"] == "sea"
    assert "default-src 'none'" in text
    with pytest.raises(FileNotFoundError, match="mkdir"):
        view.to_html(tmp_path / "no" / "view.html")
