"""The comparer without a browser: alignment by sigma, payload, traits, errors, repr, picture, page."""

import base64
import io
import json
import re
import warnings

import numpy as np
import pytest
import traitlets
import xarray as xr
from ipywidgets import IntSlider, link
from PIL import Image

import toolkit as tk
from toolkit.diagnostics import difference
from toolkit.diagnostics.pairs import FIGURES, passages
from toolkit.views import payload as payloads
from toolkit.views.comparer import fine, module, pack, shares


def at_levels(sigma, seed=0, kind="sample", shape=(1, 2, 4, 5), **extra) -> xr.Dataset:
    """A run whose state is linear in log sigma, as interpolation has it: x = c + d log(sigma), and c at 0."""
    rng, sigma = np.random.default_rng(seed), np.asarray(sigma, float)
    c, d = rng.standard_normal((2, *shape))
    log = np.log(np.where(sigma > 0, sigma, 1))[:, None, None, None, None]
    dims = ("step", "sample", "channel", "y", "x")
    data = {"latent": (dims, c + d * log), "denoised": (dims, d - c * log)}
    return xr.Dataset(data, {"sigma": ("step", sigma)}, {"kind": kind, **extra})


def tables(view) -> dict[str, np.ndarray]:
    """What the browser reads: each table by name, flat."""
    floats, start, out = np.frombuffer(view._tables, "<f4").astype(float), 0, {}
    for name, size in view._compare["tables"]:
        out[name], start = floats[start : start + size], start + size
    assert start == len(floats)
    return out


# ---- alignment


@pytest.mark.parametrize("ways", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_a_state_that_is_linear_in_log_sigma_is_met_exactly_whatever_the_directions(ways):
    a = at_levels(np.geomspace(0.05, 10, 9)[:: ways[0]])
    b = at_levels(np.geomspace(0.05, 10, 6)[:: ways[1]])
    for at in ("a", "b"):
        found = difference(a, b, at=at)
        assert np.abs(found.latent).max() < 1e-12 and np.abs(found.denoised).max() < 1e-12
        np.testing.assert_allclose(found.latent_cosine, 1, atol=1e-12)


def test_between_two_rungs_the_share_is_that_in_log_sigma():
    a, b = at_levels([1.0, 2.0, 3.0]), at_levels([1.0, 4.0], seed=1)
    found = difference(a, b)
    half = 0.5 * (b.latent[0] + b.latent[1])
    np.testing.assert_allclose(found.latent[1], a.latent[1] - half, atol=1e-12)
    np.testing.assert_allclose(found.latent_row, [0, 0.5, np.log(3) / np.log(4)])
    nearest = difference(a, b, "nearest")
    np.testing.assert_array_equal(nearest.latent_row, [0, 0, 1])
    np.testing.assert_array_equal(nearest.latent[2], a.latent[2] - b.latent[1])


def test_figures_are_those_of_the_difference():
    a, b = at_levels([1.0, 2.0], shape=(2, 3, 4, 5)), at_levels([1.0, 2.0], seed=1, shape=(2, 3, 4, 5))
    for at, sign in (("a", 1), ("b", 1)):
        found, flat = difference(a, b, at=at), (a.latent - b.latent).values.reshape(2, 2, -1)
        x, y = (ds.latent.values.reshape(2, 2, -1) for ds in (a, b))
        np.testing.assert_allclose(found.latent, sign * (a.latent - b.latent))
        np.testing.assert_allclose(found.latent_rms, np.sqrt((flat**2).mean(-1)))
        np.testing.assert_allclose(found.latent_largest, np.abs(flat).max(-1))
        np.testing.assert_allclose(found.latent_quantile, np.quantile(np.abs(flat), 0.995, axis=-1))
        wanted = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
        np.testing.assert_allclose(found.latent_cosine, wanted)
        np.testing.assert_allclose(found.latent_std_a, x.std(-1))
        np.testing.assert_allclose(found.latent_std_b, y.std(-1))


def test_nothing_is_extrapolated_and_zero_meets_zero_alone():
    a, b = at_levels([0.0, 0.01, 1.0, 20.0]), at_levels([10.0, 0.1, 0.0], seed=1)
    rms = difference(a, b).latent_rms.values[:, 0]
    assert np.isfinite(rms).tolist() == [True, False, True, False]
    apart = difference(at_levels([0.1, 0.2]), at_levels([1.0, 2.0]))
    assert np.isnan(apart.latent).all() and np.isnan(apart.latent_row).all()


def test_a_level_that_repeats_meets_the_same_passage():
    sigma = [0.0, 0.5, 0.5, 0.5, 1.0]
    a = at_levels(sigma)
    a["latent"] = a.latent + xr.DataArray(np.arange(5.0), dims="step")  # equal levels, other states
    assert (difference(a, a).latent == 0).all()
    assert (difference(a, a.isel(step=slice(None, None, -1))).latent == 0).all()
    rows, share = passages(np.array([0.7]), np.array(sigma), "interpolated")
    assert rows.tolist() == [[3, 4]] and 0 < share[0] < 1
    there_and_back = np.array([0.1, 1.0, 10.0, 2.0, 0.1])
    rows, _ = passages(np.array([0.5, 5.0, 0.5]), there_and_back, "interpolated")
    assert rows.tolist() == [[0, 1], [1, 2], [3, 4]]


def test_rows_that_hold_nothing_are_no_rungs():
    a, b = at_levels(np.geomspace(0.1, 10, 7)), at_levels(np.geomspace(0.1, 10, 7))
    b["latent"][3] = np.nan
    found = difference(a, b)
    assert np.abs(found.latent).max() < 1e-12 and float(found.latent_row[3]) == pytest.approx(3.0)
    run = tk.testing.unsample_dataset(steps=6)  # its denoised is NaN at both ends
    assert np.isfinite(difference(run, run).denoised_rms.values[:, 0]).tolist() == [False, *[True] * 5, False]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda a: difference(a, a, "linear"), "interpolated, nearest"),
        (lambda a: difference(a, a, at="c"), "a, b"),
        (lambda a: difference(a, a.isel(x=slice(3))), r"\(1, 2, 4, 5\)"),
        (lambda a: difference(a, a.drop_vars("sigma")), "sigma"),
    ],
)
def test_what_has_no_difference_says_so(call, said):
    with pytest.raises(ValueError, match=f"{said}.*Try: tk.diagnostics.difference"):
        call(at_levels([1.0, 2.0]))


# ---- the payload


@pytest.mark.parametrize("match", ["interpolated", "nearest"])
def test_the_views_numbers_are_those_of_diagnostics(match):
    runs = [tk.testing.unsample_dataset(steps=n, samples=2, seed=s) for n, s in ((12, 0), (7, 1), (5, 0))]
    found = tables(tk.views.compare(*runs))
    for i, j in ((0, 1), (1, 0), (2, 1)):
        for name in ("latent", "denoised"):
            wanted = difference(runs[i], runs[j], match)
            for what in FIGURES:
                table = found[f"{i}-{j}.{name}.{match}.{what}"]
                np.testing.assert_allclose(table, wanted[f"{name}_{what}"].values.ravel(), rtol=1e-6)
        low, high, share = (found[f"{i}-{j}.latent.{what}"] for what in ("low", "high", "share"))
        row = difference(runs[i], runs[j]).latent_row.values  # all rungs are shown: places are rows
        np.testing.assert_allclose(np.where(low < 0, np.nan, low + share * (high - low)), row, rtol=1e-6)


def test_two_bytes_hold_a_value_to_a_65_000th_of_its_range():
    run = tk.testing.unsample_dataset()
    payload = payloads.build(run)
    codes, lo, hi = payloads.quantise(run.latent.values)
    rest = np.frombuffer(fine(run, payload, "latent"), np.uint8).reshape(codes.shape)
    step = ((hi.astype(float) - lo) / 254)[..., None, None]
    values = lo[..., None, None] + (codes + rest / 254 - 0.5) * step
    assert (np.abs(values - run.latent.values) <= step * (1 / 508 + 1e-3)).all()


def test_runs_that_are_the_same_differ_by_nothing():
    view = tk.views.compare(*[tk.testing.unsample_dataset()] * 2)
    assert max(np.nanmax(v) for name, v in tables(view).items() if name.endswith(("rms", "largest"))) == 0
    half = len(view._fine) // 2
    assert view._fine[:half] == view._fine[half:]


def test_the_room_is_shared():
    assert shares([10, 500, 500], 256) == [10, 123, 123]
    assert shares([500, 10], 256) == [246, 10]
    long, short = tk.testing.ladder_dataset(steps=400, size=8), tk.testing.ladder_dataset(steps=9, size=8)
    view = tk.views.compare(long, short)
    shown = [len(run["rungs"]) for run in view._compare["runs"]]
    assert shown == [246, 10] and "246 of 401 rungs" in view._compare["runs"][0]["notice"]
    view.rung = 133
    assert view.rung in view._run["rungs"] and abs(view.rung - 133) <= 1
    with pytest.raises(ValueError, match=r"Try: tk.views.compare\(a.isel\(sample=\[0\]\)"):
        pack([tk.testing.ladder_dataset(steps=3, size=512, samples=3)] * 2)


def test_dtypes_spaces_and_kinds_mix():
    run = tk.testing.unsample_dataset()
    half = tk.testing.ladder_dataset().astype("float32")
    half = half.assign_coords(sigma=half.sigma.astype("float64"))
    view = tk.views.compare(run, half)
    assert {name.split(".")[1] for name in tables(view) if "-" in name} == {"latent"}  # one has no denoised
    assert "denoised_rms" not in view.difference and view.difference.latent.dtype == "float64"
    raw = tk.in_space(run, "vae") if run.attrs.get("latent_space") else None
    if raw is not None:
        assert float(tk.views.compare(run, raw).difference.latent_rms.max()) < 1e-6


@pytest.mark.parametrize("cut", [{"step": [5]}, {"y": slice(0, 6)}, {"channel": [2]}])
def test_shapes(cut):
    run = tk.testing.unsample_dataset().isel(cut)
    view = tk.views.compare(run, run)
    assert view._run["shape"] == [*run.latent.shape] and len(view._still()) > 1000


def test_what_is_not_finite():
    a, b = tk.testing.unsample_dataset(steps=6), tk.testing.unsample_dataset(steps=6, seed=1)
    a["latent"][3, 0, 0, 2, 2], a["latent"][4, 0, 1] = np.nan, np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        view = tk.views.compare(a, b)
        view.rung = 3
        assert len(view._still()) > 1000
    rms = tables(view)["0-1.latent.interpolated.rms"]
    assert np.isfinite(rms).tolist() == [True, True, True, False, False, True, True]
    assert [fault[:2] for fault in view._compare["runs"][0]["faults"]] == [[3, 0], [4, 0]]


# ---- errors


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda a: tk.views.compare(), ValueError, "two runs or more"),
        (lambda a: tk.views.compare(a), ValueError, "two runs or more"),
        (lambda a: tk.views.compare(a, a.latent), TypeError, "xarray.Dataset"),
        (lambda a: tk.views.compare(a, a.drop_vars("latent")), ValueError, "latent"),
        (lambda a: tk.views.compare(a, a.isel(sample=slice(0, 0))), ValueError, "nothing to draw"),
        (lambda a: tk.views.compare(a, a.isel(y=slice(3))), ValueError, r"\(1, 4, 3, 16\).*\(1, 4, 16, 16\)"),
        (lambda a: tk.views.compare(a, a.isel(channel=[0])), ValueError, r"\(1, 1, 16, 16\).*isel\(channel"),
        (lambda a: tk.views.compare(a, a, names="ab"), ValueError, "one name for each of 2"),
        (lambda a: tk.views.compare(a, a, names=["a"]), ValueError, "one name for each of 2"),
        (lambda a: tk.views.compare(a, a, model=3), TypeError, "decode"),
    ],
)
def test_what_cannot_be_compared_says_so(call, kind, said):
    with pytest.raises(kind, match=said) as caught:
        call(tk.testing.unsample_dataset(steps=3))
    assert " Try: tk.views.compare(" in str(caught.value)


# ---- the widget


def test_repr_and_mime_bundle():
    a, b = tk.testing.unsample_dataset(), tk.testing.ladder_dataset(steps=12)
    view = tk.views.compare(a, b)
    assert repr(view) == "Comparer(A: unsample euler karras, 21 rungs; B: ladder karras, 13 rungs)"
    assert repr(tk.views.compare(a, b, a, names=["x", "y", "z"])) == (
        "Comparer(A: x, 21 rungs; B: y, 13 rungs; 1 more)"
    )
    data, _ = view._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    assert data["text/plain"] == repr(view)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")).astype(
        int
    )
    assert picture.shape == (1280, 1968, 3)
    places = [picture[200:700, x : x + 500] for x in (130, 730, 1330)]  # A, B and the difference
    assert all((place.max(-1) - place.min(-1) > 40).mean() > 0.2 for place in places)
    same = tk.views.compare(a, a)
    calm = np.asarray(Image.open(io.BytesIO(same._still())).convert("RGB")).astype(int)[200:700, 1330:1830]
    assert (calm.max(-1) - calm.min(-1)).max() < 12  # nothing but the middle of the map


def test_traits_keep_run_rung_and_sigma_together():
    a, b = tk.testing.unsample_dataset(), tk.testing.unsample_dataset(steps=7)
    view = tk.views.compare(a, b)
    assert (view.focused, view.a, view.b, view.rung, view.match, view.mode) == (
        "A", 0, 1, 10, "interpolated", "side",
    )  # fmt: skip
    assert view.sigma == float(a.sigma[10])
    view.focused = "B"
    near = int(np.abs(b.sigma.values - float(a.sigma[10])).argmin())
    assert (view.rung, view.sigma) == (near, float(b.sigma[near]))
    view.rung = -1
    assert (view.rung, view.sigma) == (7, float(b.sigma[7]))
    view.a = 1  # chosen twice: swapped
    assert (view.a, view.b) == (1, 0) and view.sigma == float(a.sigma[view.rung]) == float(a.sigma[-1])
    view.focused = "A"
    view.sigma = 2
    assert view.rung == int(tk.at(b, sigma=2).step)
    for name, value in (("sigma", np.inf), ("rung", 8), ("sample", 1), ("channel", 4), ("a", 2), ("b", -1)):
        with pytest.raises(traitlets.TraitError, match=f"Try: view.{name} = "):
            setattr(view, name, value)
    for name, value in (("mode", "wipe"), ("match", "linear"), ("focused", "C"), ("divider", 1.5)):
        with pytest.raises(traitlets.TraitError):
            setattr(view, name, value)


def test_what_a_browser_sends_at_once_is_taken_at_once():
    a, b = tk.testing.unsample_dataset(), tk.testing.unsample_dataset(steps=30)
    view = tk.views.compare(a, b)
    view.set_state({"focused": "B", "rung": 29, "sigma": float(b.sigma[29])})  # A has no rung 29
    assert (view.focused, view.rung, view.sigma) == ("B", 29, float(b.sigma[29]))
    view.set_state({"a": 1, "b": 0, "focused": "A", "rung": 29, "sigma": float(b.sigma[29])})
    assert (view.a, view.b, view.rung) == (1, 0, 29)


def test_difference_follows_what_is_chosen():
    a, b = tk.testing.unsample_dataset(), tk.testing.unsample_dataset(steps=7)
    view = tk.views.compare(a, b)
    xr.testing.assert_identical(view.difference, difference(a, b))
    view.focused, view.match = "B", "nearest"
    found = view.difference
    xr.testing.assert_identical(found, difference(a, b, "nearest", at="b"))
    assert found.sizes["step"] == 8


def test_traits_link_with_widgets_and_other_views():
    run = tk.testing.unsample_dataset()
    view, slider, other = tk.views.compare(run, run), IntSlider(max=20), tk.view(run)
    link((slider, "value"), (view, "rung"))
    traitlets.link((view, "sigma"), (other, "sigma"))
    slider.value = 9
    assert view.rung == other.rung == 9
    other.rung = 4
    assert slider.value == view.rung == 4


# ---- the page


def test_page_holds_the_state_and_is_closed(tmp_path):
    run = tk.testing.unsample_dataset().assign_attrs(kind="</script><script>", solver="<b>", schedule="<img>")
    view = tk.views.compare(run, run, names=["<script>alert(1)</script>", '"><i>'])
    view.focused, view.rung, view.divider = "B", 3, 0.75
    path = view.to_html(tmp_path / "a.html")
    text = path.read_text("utf-8")
    assert view.to_html(tmp_path / "b.html").read_bytes() == path.read_bytes()
    state = json.loads(re.search('<script type="[^"]+" id="state">(.*?)</script>', text, re.S)[1])["state"]
    assert (state["rung"], state["divider"], state["focused"], state["match"]) == (
        3,
        0.75,
        "B",
        "interpolated",
    )
    assert text.count("<script") == 3 and "<b>" not in text and "<i>" not in text and "<img>" not in text
    assert "default-src 'none'" in text and not re.search(r"\bfetch\(|^\s*import\b", module(), re.M)
    with pytest.raises(FileNotFoundError, match="mkdir"):
        view.to_html(tmp_path / "no" / "a.html")


def test_a_page_that_would_grow_too_large_keeps_fewer_bits(tmp_path, monkeypatch):
    view = tk.views.compare(tk.testing.unsample_dataset(), tk.testing.unsample_dataset(seed=1))
    both = view.to_html(tmp_path / "a.html").stat().st_size
    monkeypatch.setattr("toolkit.views.comparer.FINE_BYTES", 1000)
    one = view.to_html(tmp_path / "b.html").stat().st_size
    monkeypatch.setattr("toolkit.views.comparer.PAGE_BYTES", 1000)
    path = view.to_html(tmp_path / "c.html")
    assert both > one > path.stat().st_size and '"top":62' in path.read_text("utf-8")
