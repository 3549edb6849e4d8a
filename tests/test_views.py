"""The scrubber without a browser: payload, traits, pictures, and what the page may contain."""

import base64
import gzip
import hashlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import traitlets
import xarray as xr
from PIL import Image

import toolkit as tk
from toolkit.views.page import PAGE_BYTES
from toolkit.views.payload import ATLAS, RUNGS, TOP, build, evenly, quantise
from toolkit.views.words import error, provenance, sigma

VIEWS = Path(tk.__file__).parent / "views"


class Colours:
    """A stand-in for a model with a VAE, which counts its calls."""

    def __init__(self):
        self.calls = []

    def decode(self, latent):
        assert isinstance(latent, xr.DataArray) and "step" not in latent.dims
        self.calls.append(latent.shape)
        rgb = np.moveaxis(np.asarray(latent)[:, :3], 1, -1)
        return np.clip(0.5 + 0.2 * rgb.repeat(20, 1).repeat(20, 2), 0, 1)


def atlas(payload, name="latent"):
    return np.frombuffer(getattr(payload, name), np.uint8).reshape(payload.meta["shape"])


def tables(payload):
    floats, out, start = np.frombuffer(payload.floats, "<f4"), {}, 0
    for name, size in payload.meta["floats"]:
        shape = payload.meta["shape"][: 2 if name.endswith("limit") else 3]
        out[name] = floats[start : start + size].reshape(shape)
        start += size
    assert start == len(floats)
    return out


# ---- payload


@pytest.mark.parametrize("top", [254, 62])
def test_codes_come_back_within_half_a_code(top):
    run = tk.testing.unsample_dataset(samples=2)
    payload = build(run, top=top)
    for name in ("latent", "denoised"):
        lo, hi = (tables(payload)[f"{name}.{end}"][..., None, None].astype(float) for end in ("lo", "hi"))
        codes, values = atlas(payload, name), run[name].values
        assert (codes == top + 1).tolist() == np.isnan(values).tolist()
        gap = np.abs(lo + codes * (hi - lo) / top - values)
        assert np.nanmax(gap / np.where(hi > lo, hi - lo, 1)) < 0.5 / top + 1e-6
    assert payload.meta["called"] == [False] + [True] * 19 + [False]


def test_statistics_and_limits_are_the_datasets():
    run = tk.testing.unsample_dataset(samples=2)
    table = tables(build(run))
    np.testing.assert_allclose(table["latent.mean"], run["mean"], rtol=1e-6)
    np.testing.assert_allclose(table["latent.std"], run["std"], rtol=1e-6)
    np.testing.assert_allclose(table["latent.limit"], 3 * run.latent.std(("channel", "y", "x")), rtol=1e-6)


def test_what_is_not_finite_is_code_255_and_counted():
    run = tk.testing.ladder_dataset()
    latent = run.latent.copy(deep=True)
    latent[3, 0, 1, 2, 4:6], latent[3, 0, 2, 0, 0] = np.nan, np.inf
    payload = build(run.assign(latent=latent))
    assert payload.meta["faults"] == [[3, 0, 2, 1]]
    assert (atlas(payload)[3] == TOP + 1).sum() == 3
    assert np.isfinite(tables(payload)["latent.limit"]).all()
    codes, lo, hi = quantise(np.full((2, 3, 3), np.nan))
    assert (codes == TOP + 1).all() and (lo == 0).all() and (hi == 0).all()


def test_rows_that_were_not_kept_are_left_out():
    run = tk.testing.unsample_dataset()
    keep = np.isin(np.arange(21), [0, 5, 10, 15, 20])
    thin = run.assign(latent=run.latent.where(xr.DataArray(keep, dims="step")))
    payload = build(thin)
    assert payload.meta["rungs"] == [0, 5, 10, 15, 20] and payload.meta["steps"] == 21
    assert payload.meta["notice"] == "5 of 21 rungs were kept"
    view = tk.view(thin)
    view.rung = 12
    assert view.rung == 10 and view.sigma == float(run.sigma[10])


def test_subsampling_is_even_in_log_sigma_and_keeps_ends_and_extremes():
    run = tk.testing.ladder_dataset(steps=3000, size=4)
    loud = run.assign(std=run["std"].where(run.step != 1234, 100.0))
    payload = build(loud)
    rungs = payload.meta["rungs"]
    assert len(rungs) == RUNGS and rungs == sorted(set(rungs))
    assert {0, 1234, 3000} <= set(rungs)
    assert "256 of 3001 rungs" in payload.meta["notice"]
    hops = np.diff(np.log(run.sigma.values[rungs[1:]]))
    assert hops.max() < 2 * np.log(14.6146 / 0.0292) / RUNGS
    up_and_down = np.r_[0.0, np.geomspace(0.1, 10, 500), np.geomspace(10, 0.1, 500)]
    some = evenly(up_and_down, np.arange(1001), 21)
    assert len(some) == 21 and some[0] == 0 and some[-1] == 1000 and 9 <= (some < 500).sum() <= 12


def test_the_atlas_stays_within_its_bytes():
    wide = tk.testing.ladder_dataset(steps=40, size=256)
    payload = build(wide.isel(channel=slice(0, 2)).astype("float32"))
    assert len(payload.latent) <= ATLAS
    many = xr.concat([wide.isel(step=slice(0, 2))] * 40, "sample", data_vars="minimal")
    with pytest.raises(ValueError, match=r"isel\(sample=slice\(0, \d+\)\)"):
        build(many)


def test_what_was_picked_is_drawn():
    run = tk.testing.unsample_dataset(samples=2)
    assert build(tk.at(run, sigma=3)).meta["shape"] == [1, 2, 4, 16, 16]
    assert build(run.isel(sample=1)).meta["shape"] == [21, 1, 4, 16, 16]
    assert build(run.isel(channel=2, sample=0)).meta["channels"] == ["c2"]
    assert build(run.transpose("x", "y", "channel", "sample", "step")).latent == build(run).latent
    assert build(run.assign(denoised=run.denoised * np.nan)).denoised == b""


@pytest.mark.parametrize(
    ("spoil", "kind", "line"),
    [
        (lambda ds: ds.latent, TypeError, "tk.view("),
        (lambda ds: ds.drop_vars("latent"), ValueError, "tk.view("),
        (lambda ds: ds.drop_vars("sigma"), ValueError, "tk.view("),
        (lambda ds: ds.isel(sample=slice(0, 0)), ValueError, "sample 0, channel 4"),
        (lambda ds: ds.isel(y=0), ValueError, "step, sample, channel, y, x"),
        (lambda ds: ds.expand_dims("region"), ValueError, "no others"),
        (lambda ds: ds.assign(latent=ds.latent + 0j), ValueError, "latent.real"),
    ],
)
def test_what_cannot_be_drawn_says_so_before_a_widget_exists(spoil, kind, line, tmp_path):
    broken = spoil(tk.testing.ladder_dataset())
    for draw in (tk.view, tk.views.contact_sheet, lambda ds: tk.to_html(ds, tmp_path / "no.html")):
        with pytest.raises(kind) as caught:
            draw(broken)
        assert line in str(caught.value) and "Try: tk.view(" in str(caught.value)
    assert not (tmp_path / "no.html").exists()


def test_a_model_that_cannot_decode_is_refused():
    run = tk.testing.ladder_dataset()
    with pytest.raises(TypeError, match=r"Try: tk.view\(ds\)"):
        tk.view(run, object())
    flat = type("Flat", (), {"decode": lambda self, latent: np.zeros((16, 16))})()
    with pytest.raises(ValueError, match=r"\(sample 1, y, x, rgb\)"):
        tk.view(run, flat)


# ---- decoded


def test_decoded_once_for_each_rung_that_has_something():
    run, model = tk.testing.unsample_dataset(samples=2), Colours()
    view = tk.view(run, model)
    assert len(model.calls) == 19 + 21 and set(model.calls) == {(2, 4, 16, 16)}
    view._repr_mimebundle_()
    assert len(model.calls) == 40
    index = view._run["pictures"]
    assert {p[0] for p in index["denoised"]} == set(range(1, 20)) and index["size"] == [320, 320]
    for _, _, offset, length, width, height in index["latent"]:
        picture = Image.open(io.BytesIO(view._pictures[offset : offset + length]))
        assert picture.size == (width, height) == (256, 256)


def test_small_pictures_are_exact():
    run = tk.testing.ladder_dataset(steps=2)
    rgb = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3))
    model = type("Exact", (), {"decode": lambda self, latent: rgb / 255})()
    payload = build(run, model)
    _, _, offset, length, *_ = payload.meta["pictures"]["latent"][0]
    picture = Image.open(io.BytesIO(payload.pictures[offset : offset + length]))
    np.testing.assert_array_equal(np.asarray(picture), rgb[0])


def test_many_rungs_are_not_all_decoded():
    run, model = tk.testing.ladder_dataset(steps=150, size=4), Colours()
    index = build(run, model).meta["pictures"]["latent"]
    assert len(model.calls) == len(index) == 64
    assert index[0][0] == 0 and index[-1][0] == 150
    many, model = tk.testing.ladder_dataset(steps=40, size=4, samples=16), Colours()
    assert len(build(many, model).meta["pictures"]["latent"]) == 256 and len(model.calls) == 16


def test_images_that_the_run_saved_need_no_model():
    run = tk.testing.unsample_dataset(steps=3)
    images = xr.DataArray(np.full((4, 1, 8, 8, 3), 0.5), dims=("step", "sample", "v", "u", "rgb"))
    assert len(build(run.assign(image=images)).meta["pictures"]["denoised"]) == 4


# ---- the widget


def test_repr_is_stable():
    view = tk.view(tk.testing.unsample_dataset())
    assert repr(view) == "Scrubber(unsample, 21 rungs, 1 sample, 4 channels)"
    ladder = tk.testing.ladder_dataset(steps=1, samples=3).isel(channel=slice(0, 1))
    assert repr(tk.view(ladder)) == "Scrubber(ladder, 2 rungs, 3 samples, 1 channel)"


def test_mime_bundle_is_widget_picture_and_text():
    data, _ = tk.view(tk.testing.unsample_dataset())._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    assert data["text/plain"] == "Scrubber(unsample, 21 rungs, 1 sample, 4 channels)"
    assert Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).size == (1968, 1088)


def test_rung_and_sigma_follow_each_other():
    run = tk.testing.unsample_dataset()
    view = tk.view(run)
    assert (view.rung, view.sigma) == (0, 0.0)
    view.rung = 4
    assert view.sigma == float(run.sigma[4])
    view.sigma = 7
    assert view.rung == int(tk.at(run, sigma=7).step) and view.sigma == float(run.sigma[view.rung])
    view.rung = -1
    assert view.rung == 20
    for name, value in (("sigma", np.inf), ("rung", 21), ("rung", -22), ("sample", 1), ("channel", 4)):
        with pytest.raises(traitlets.TraitError, match=f"Try: view.{name} = "):
            setattr(view, name, value)
    with pytest.raises(traitlets.TraitError):
        view.axis = "sgima"


def test_repeated_levels_do_not_pull_the_rung_back():
    run = tk.testing.ladder_dataset()
    level = run.sigma.values.copy()
    level[6] = level[5]
    view = tk.view(run.assign_coords(sigma=("step", level)))
    view.rung = 6
    assert view.rung == 6 and view.sigma == level[5]


def test_traits_link():
    one, two = tk.view(tk.testing.unsample_dataset()), tk.view(tk.testing.ladder_dataset())
    traitlets.link((one, "rung"), (two, "rung"))
    one.rung = 9
    assert two.rung == 9 and two.sigma == one.sigma


def test_the_exact_value_and_the_colour_map():
    run = tk.testing.unsample_dataset()
    view = tk.view(run)
    view.pixel = ["latent", 2, 3, 4, 5]
    assert float(view._exact["value"]) == float(run.latent[5, 0, 2, 3, 4])
    view.colormap = "gray"
    assert view._lut[:3] == b"\0\0\0" and len(view._lut) == 768
    view.colormap = "tk"
    assert view._lut == b""
    with pytest.raises(ValueError, match="viridis"):
        view.colormap = "viridsi"


# ---- the page


@pytest.fixture
def page(tmp_path):
    return tk.to_html(tk.testing.unsample_dataset(), tmp_path / "run.html", Colours()).read_text("utf-8")


def part(page, identity):
    return re.search(f'<script type="[^"]+" id="{identity}">(.*?)</script>', page, re.S)[1]


def test_page_gives_its_path_and_wants_a_folder(tmp_path):
    path = tk.to_html(tk.testing.ladder_dataset(), str(tmp_path / "a.html"))
    assert path == tmp_path / "a.html" and path.stat().st_size < 200_000
    again = tk.to_html(tk.testing.ladder_dataset(), tmp_path / "b.html")
    assert again.read_bytes() == path.read_bytes()  # no clock in it
    with pytest.raises(FileNotFoundError, match="mkdir"):
        tk.to_html(tk.testing.ladder_dataset(), tmp_path / "no" / "a.html")


def test_page_is_closed_by_its_policy(page):
    policy = re.search('http-equiv="Content-Security-Policy" content="([^"]+)"', page)[1]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    script = re.search('<script type="module">(.*?)</script>', page, re.S)[1]
    style = re.search("<style>(.*?)</style>", page, re.S)[1]
    for text in (script, style):
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    outside = page.replace(script, "").replace(style, "")
    assert not re.search(r"\bstyle=|\bon\w+=|\bsrc=|\bhref=", outside)
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "https://" not in page
    assert not re.search(r"^\s*import\b|\bfetch\(|XMLHttpRequest|WebSocket", script, re.M)


def test_page_holds_the_payload(page):
    payload = build(tk.testing.unsample_dataset(), Colours())
    head = json.loads(part(page, "state"))
    blob, start, found = gzip.decompress(base64.b64decode(part(page, "payload"))), 0, {}
    for name, size in head["sizes"]:
        found[name], start = blob[start : start + size], start + size
    assert found["_pictures"] == payload.pictures and found["_floats"] == payload.floats
    strides = dict(head["differences"])
    for name in ("latent", "denoised"):
        steps = np.frombuffer(found[f"_{name}"], np.uint8).reshape(-1, strides[f"_{name}"])
        assert np.cumsum(steps, axis=0, dtype=np.uint8).tobytes() == getattr(payload, name)


def test_page_escapes_what_it_is_given(tmp_path):
    evil = "</script><script>alert(1)</script>"
    run = tk.testing.ladder_dataset().assign_attrs(kind=evil, schedule="<b>", stopped=evil)
    text = tk.to_html(run, tmp_path / "run.html").read_text("utf-8")
    assert text.count("<script") == 3 and "<b>" not in text and "alert(1)</script>" not in text


def test_large_pages_keep_six_bits(tmp_path):
    noise = tk.testing.ladder_dataset(steps=160, size=64)
    own = np.random.default_rng(0).standard_normal(noise.latent.shape, np.float32)
    path = tk.to_html(noise.assign(latent=(noise.latent.dims, own)), tmp_path / "a.html")
    state = json.loads(part(path.read_text("utf-8"), "state"))["state"]
    assert state["_run"]["top"] == 62 and state["_run"]["notice"] == "values kept in 6 bits"
    assert path.stat().st_size < PAGE_BYTES


# ---- still pictures


@pytest.mark.parametrize("samples", [1, 2])
def test_contact_sheet(samples, tmp_path):
    run = tk.testing.unsample_dataset(steps=40, size=64, samples=samples)
    data = tk.views.contact_sheet(run, Colours(), tmp_path / "sheet.png")
    assert len(data) <= 300_000 and (tmp_path / "sheet.png").read_bytes() == data
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert picture.shape == (1088, 1968, 3) and (picture[:60] == 255).all()  # its own paper
    assert len(np.unique(picture[210:360, 110:1850].reshape(-1, 3), axis=0)) > 50


def test_contact_sheet_of_little():
    run = tk.testing.ladder_dataset(steps=1).isel(channel=slice(0, 1))
    assert Image.open(io.BytesIO(tk.views.contact_sheet(run))).size[0] == 1968
    assert tk.views.contact_sheet(run.isel(step=0))[1:4] == b"PNG"
    assert tk.views.contact_sheet(run.assign(latent=run.latent * np.nan))[1:4] == b"PNG"


def test_strip_shows_the_error_of_the_round_trip(tmp_path):
    up = tk.testing.unsample_dataset()
    down = up.isel(step=slice(None, None, -1))
    data = tk.views.strip(up, down, tmp_path / "strip.png", Colours())
    width, height = Image.open(io.BytesIO(data)).size
    assert width > 3 * height and (tmp_path / "strip.png").read_bytes() == data
    worse = down.assign(latent=down.latent + 0.5)
    assert tk.views.strip(up, worse) != tk.views.strip(up, down)
    for options in ({"levels": 0}, {"levels": 99}, {"between": "decoded"}, {"between": "what"}):
        with pytest.raises(ValueError, match=r"Try: tk.views.strip\(up, down"):
            tk.views.strip(up, down, **options)
    with pytest.raises(ValueError, match=r"tk.sample\(model, up\)"):
        tk.views.strip(up, tk.testing.unsample_dataset(size=8))


# ---- words


def test_numbers_as_the_views_write_them():
    minus = "\u2212"
    assert [sigma(v) for v in (0, 14.6146, 1.014, 0.0292, 1.23e-5)] == [
        "0",
        "14.6",
        "1.01",
        "0.0292",
        f"1.2e{minus}5",
    ]
    assert [error(v) for v in (0, 3.4e-14, 0.0362, 1.5)] == [
        f"< 1e{minus}15",
        f"3.4e{minus}14",
        "0.036",
        "1.5",
    ]
    attrs = {"kind": "ladder", "schedule": "karras", "coupling": "shared", "path": "VE", "seed": 0}
    assert " · ".join(provenance(attrs, 41)) == "karras · 40 steps · shared noise · VE · seed 0"
    assert provenance({"cfg": 7.5, "solver": {"name": "euler"}}, 2) == ["euler", "1 step", "cfg 7.5"]


# ---- house rules of the front end


def test_text_reaches_the_dom_as_text_content_only():
    for path in VIEWS.glob("*.js"):
        text = path.read_text("utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|setAttribute\(\"style", text
        ), path
        assert not re.search(r"^\s*import\b", text, re.M), path


def test_colours_are_literal_only_in_the_token_table():
    names = "black|white|red|green|blue|grey|gray|silver|orange|transparent"
    style = (VIEWS / "style.css").read_text("utf-8")
    rules = style[style.index("/* End of tokens. */") :]
    assert not re.findall(rf"#[0-9a-fA-F]{{3,8}}\b|\b(?:rgb|hsl)a?\(|:[^;{{}}]*\b(?:{names[:-12]})\b", rules)
    literal = re.compile(rf"#[0-9a-fA-F]{{6}}\b|\b(?:rgb|hsl)a?\(\d|=\s*[\"'](?:{names})[\"']")
    for path in [*VIEWS.glob("*.js"), *VIEWS.glob("*.py")]:
        assert not literal.findall(path.read_text("utf-8")), path


def test_nothing_outside_the_root_class_is_styled():
    style = re.sub(r"/\*.*?\*/", "", (VIEWS / "style.css").read_text("utf-8"), flags=re.S)
    for selectors in re.findall(r"(?:^|[}\n])\s*([^{}@]+)\{", style):
        for selector in re.split(r",(?![^(]*\))", selectors):
            assert selector.strip().startswith(".tk"), selector


def test_sizes():
    texts = {path.name: path.read_text("utf-8") for path in VIEWS.iterdir() if path.is_file()}
    scripts = {name: text for name, text in texts.items() if name.endswith(".js")}
    assert {name for name, text in scripts.items() if len(text.splitlines()) > 250} == {"draw.js"}
    assert max(len(line) for text in scripts.values() for line in text.splitlines()) <= 120
    assert max(len(text.splitlines()) for name, text in texts.items() if name.endswith(".py")) <= 400
    whole = {name for name, text in scripts.items() if "export default" in text}
    assert whole == {"scrub.js", "explore.js", "normal.js", "regions.js", "compare.js"}


def test_views_do_not_import_torch_nor_pyplot():
    code = """
import sys, toolkit as tk
run, views = tk.testing.regional_dataset(), tk.views
for make in (tk.view, views.normalize, views.regions, lambda run: views.compare(run, run)):
    make(run)._repr_mimebundle_()
views.schedules()._repr_mimebundle_()
print(sorted({"torch", "matplotlib.pyplot", "diffusers", "scipy.stats"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr
    assert done.stderr == ""


def test_examples_of_testing_follow_the_schema():
    for make in (tk.testing.ladder_dataset, tk.testing.unsample_dataset):
        run = make(seed=3, steps=5, size=8, samples=2)
        assert run.identical(make(seed=3, steps=5, size=8, samples=2)) and not run.identical(
            make(seed=4, steps=5, size=8)
        )
        assert dict(run.sizes) == {"step": 6, "sample": 2, "channel": 4, "y": 8, "x": 8}
        assert all({"long_name", "units"} <= set(v.attrs) for v in run.variables.values())
        assert json.loads(json.dumps(run.attrs)) == run.attrs
        assert run.sigma[0] == 0 and float(run.sigma[-1]) == pytest.approx(14.6146)
        with pytest.raises(ValueError, match=r"Try: tk\.testing"):
            make(steps=0)
