"""The normalise comparator without a browser: payload, traits, errors, repr, and its page."""

import base64
import io
import json
import re

import numpy as np
import pytest
import scipy.special
import scipy.stats
import traitlets
import xarray as xr
from ipywidgets import IntSlider, link
from PIL import Image

import toolkit as tk
from toolkit.dataset import NORMALIZE
from toolkit.views.normalizer import distances, module, pack, unit


def tables(payload):
    floats, out, start = np.frombuffer(payload.floats, "<f4").astype(float), {}, 0
    for name, size in payload.meta["floats"]:
        shape = payload.meta["shape"][: 2 if name.endswith("limit") else 3]
        out[name], start = floats[start : start + size].reshape(shape), start + size
    assert start == len(floats)
    return out


def decoded(payload):
    """What the codes stand for, and the step between two of them: (rung, sample, channel, y, x) both."""
    table, shape = tables(payload), payload.meta["shape"]
    lo, hi = (table[f"latent.{end}"][..., None, None] for end in ("lo", "hi"))
    step = (hi - lo) / payload.meta["top"]
    return lo + np.frombuffer(payload.latent, np.uint8).reshape(shape) * step, step


# ---- payload


@pytest.mark.parametrize("mode", NORMALIZE)
@pytest.mark.parametrize("make", [tk.testing.ladder_dataset, tk.testing.unsample_dataset])
def test_codes_shift_and_scale_give_what_normalized_gives(make, mode):
    run = make(samples=3)
    payload = pack(run)
    table, (values, step) = tables(payload), decoded(payload)
    rows = slice(None) if run.attrs["kind"] == "ladder" else slice(-1, None)
    wanted = tk.normalized(run, mode).latent.values.astype(float)[rows]
    shift, scale = (table[f"{mode}.{name}"][rows, ..., None, None] for name in ("shift", "scale"))
    got = (values[rows] - shift) / scale
    if mode == "off":  # shown over sigma
        wanted = wanted / unit(run.sigma.values[rows])[:, None, None, None, None]
    assert (np.abs(got - wanted) <= 0.5 * step[rows] / scale + 1e-5).all()


def test_every_rung_of_a_run_is_normalised_as_the_last_one_would_be():
    run = tk.testing.unsample_dataset(samples=2)
    table = tables(pack(run))
    for row in (0, 7, 20):
        alone = tk.normalized(run.isel(step=slice(0, row + 1)), "sample")
        np.testing.assert_allclose(table["sample.shift"][row], alone["shift"], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(table["sample.scale"][row], alone["scale"], rtol=1e-6)


@pytest.mark.parametrize("mode", NORMALIZE)
def test_distances_are_those_of_scipy(mode):
    run = tk.testing.ladder_dataset(samples=2)
    table = tables(pack(run))
    quantiles = scipy.special.ndtri((np.arange(256) + 0.5) / 256)
    flat = tk.normalized(run, mode).latent.values.astype(float)
    for row in (0, 5, 20):
        values = flat[row] / (unit(run.sigma.values[row]) if mode == "off" else 1)
        for sample, channel in ((0, 0), (1, 3)):
            wanted = scipy.stats.wasserstein_distance(values[sample, channel].ravel(), quantiles)
            assert table[f"{mode}.w1"][row, sample, channel] == pytest.approx(wanted, rel=1e-5)


def test_perfect_mean_and_std_can_be_farther_from_the_normal():
    rng = np.random.default_rng(0)
    heavy = np.where(rng.random((1, 64, 64)) < 0.02, 20.0, 1.0) * rng.standard_normal((1, 64, 64))
    off = distances(heavy, np.zeros(1), np.ones(1))
    on = distances(heavy, heavy.mean(axis=(-2, -1)), heavy.std(axis=(-2, -1)))
    assert on > off + 0.1


def test_raw_states_are_over_sigma_where_it_is_above_one():
    assert unit(np.array([0.0, 0.5, 1.0, 14.6])).tolist() == [1.0, 1.0, 1.0, 14.6]
    run = tk.testing.unsample_dataset()
    np.testing.assert_allclose(tables(pack(run))["off.scale"][:, 0, 0], np.maximum(run.sigma, 1), rtol=1e-6)


def test_mean_and_std_are_those_of_what_is_drawn():
    part = tk.testing.unsample_dataset().isel(y=slice(0, 5))  # its `mean` and `std` are of the whole
    table = tables(pack(part))
    wanted = part.latent.astype(float)
    np.testing.assert_allclose(table["latent.mean"], wanted.mean(("y", "x")), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(table["latent.std"], wanted.std(("y", "x")), rtol=1e-5)


def test_what_is_not_finite_spoils_what_normalized_would_spoil():
    run = tk.testing.ladder_dataset()
    latent = run.latent.copy(deep=True)
    latent[3, 0, 1, 2, 4:6] = np.nan
    run = run.assign(latent=latent)
    payload = pack(run)
    table = tables(payload)
    for mode in NORMALIZE:
        lost = np.isnan(tk.normalized(run, mode).latent.values[3, 0]).all(axis=(-2, -1))
        assert np.isnan(table[f"{mode}.shift"][3, 0]).tolist() == lost.tolist()
        assert np.isfinite(table[f"{mode}.shift"][4]).all()
    assert payload.meta["faults"] == [[3, 0, 2, 0]]
    assert np.isnan(table["off.w1"][3, 0, 1]) and np.isfinite(table["off.w1"][3, 0, 0])


@pytest.mark.parametrize("kind", ["row", "channel", "wide", "many"])
def test_shapes(kind):
    run = tk.testing.unsample_dataset()
    cuts = {"row": {"step": 5}, "channel": {"channel": 2}, "wide": {"y": slice(0, 6)}, "many": {}}
    part = run.isel(cuts[kind])
    if kind == "many":
        part = xr.concat([part.drop_vars("channel")] * 5, "channel", data_vars="minimal")
        part = part.isel(channel=slice(0, 17))
    view = tk.views.normalize(part)
    assert (
        view._run["shape"][2:]
        == {
            "row": [4, 16, 16],
            "channel": [1, 16, 16],
            "wide": [4, 6, 16],
            "many": [17, 16, 16],
        }[kind]
    )
    assert view.rung == (0 if kind == "row" else 20)


# ---- errors


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda ds: ds.latent, TypeError),
        (lambda ds: ds.drop_vars("latent"), ValueError),
        (lambda ds: ds.drop_vars("sigma"), ValueError),
        (lambda ds: ds.isel(sample=slice(0, 0)), ValueError),
        (lambda ds: ds.assign(latent=ds.latent + 0j), ValueError),
        (lambda ds: tk.normalized(ds, "global"), ValueError),
    ],
)
def test_what_cannot_be_compared_says_so(spoil, kind):
    with pytest.raises(kind, match=r"Try: tk\.views\.normalize\("):
        tk.views.normalize(spoil(tk.testing.ladder_dataset()))


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r'Try: tk\.views\.normalize\(run, "channel"\)'):
        tk.views.normalize(tk.testing.ladder_dataset(), "chanel")


# ---- the widget


def test_repr_and_mime_bundle():
    view = tk.views.normalize(tk.testing.unsample_dataset())
    assert repr(view) == "Normalizer(unsample, 21 rungs, 1 sample, 4 channels)"
    data, _ = view._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    assert data["text/plain"] == repr(view)
    assert Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).size == (1968, 1088)


def test_traits():
    run = tk.testing.unsample_dataset(samples=2)
    view = tk.views.normalize(run, "global")
    assert (view.rung, view.mode, view.channel, view.sample, view.divider) == (20, "global", 0, 0, 0.5)
    assert view.sigma == float(run.sigma[-1])
    view.sigma = 7
    assert view.rung == int(tk.at(run, sigma=7).step) and view.sigma == float(run.sigma[view.rung])
    view.rung = -21
    assert (view.rung, view.sigma) == (0, 0.0)
    view.mode, view.show, view.channel, view.sample, view.divider = "off", "blink", 3, 1, 0.25
    for name, value in (("sigma", np.inf), ("rung", 21), ("sample", 2), ("channel", 4), ("channel", -1)):
        with pytest.raises(traitlets.TraitError, match=f"Try: view.{name} = "):
            setattr(view, name, value)
    for name, value in (("mode", "chanel"), ("show", "wipe"), ("divider", 1.5), ("divider", -0.1)):
        with pytest.raises(traitlets.TraitError):
            setattr(view, name, value)


def test_traits_link_with_widgets_and_other_views():
    run = tk.testing.unsample_dataset()
    view, slider, other = tk.views.normalize(run), IntSlider(max=20), tk.view(run)
    link((slider, "value"), (view, "rung"))
    traitlets.link((view, "rung"), (other, "rung"))
    slider.value = 9
    assert view.rung == other.rung == 9 and view.sigma == other.sigma
    view.rung = 4
    assert slider.value == 4


# ---- the page


def test_page_holds_the_state_and_is_closed(tmp_path):
    run = tk.testing.unsample_dataset().assign_attrs(kind="</script><script>", schedule="<b>")
    view = tk.views.normalize(run)
    view.rung, view.divider = 3, 0.75
    path = view.to_html(tmp_path / "a.html")
    text = path.read_text("utf-8")
    assert view.to_html(tmp_path / "b.html").read_bytes() == path.read_bytes()
    state = json.loads(re.search('<script type="[^"]+" id="state">(.*?)</script>', text, re.S)[1])["state"]
    assert (state["rung"], state["divider"], state["mode"], state["show"]) == (3, 0.75, "channel", "split")
    assert text.count("<script") == 3 and "<b>" not in text
    assert "default-src 'none'" in text and not re.search(r"\bfetch\(|^\s*import\b", module(), re.M)
    with pytest.raises(FileNotFoundError, match="mkdir"):
        view.to_html(tmp_path / "no" / "a.html")
