"""The schedule explorer without a browser: payload, traits, errors, picture, page."""

import base64
import gzip
import hashlib
import io
import json
import re

import numpy as np
import pytest
import traitlets
from PIL import Image

import toolkit as tk
from toolkit.views.explorer import SLIDERS
from toolkit.views.widget import FOLDER

ALL_LEVELS = [
    tk.Levels.scaled_linear(),
    tk.Levels.scaled_linear(zero_snr=True),
    tk.Levels.from_betas(np.linspace(1e-4, 0.02, 500)),
    tk.Levels.edm(0.002, 700.0),
    tk.Levels.flow(3.0),
    tk.Levels.flux(1.15),
]


def offered(levels):
    return [entry["name"] for entry in tk.views.schedules(levels)._schedules]


# ---- payload


@pytest.mark.parametrize("levels", ALL_LEVELS, ids=repr)
def test_what_these_levels_have_is_offered_and_no_more(levels):
    possible = []
    for name in tk.SCHEDULES:
        try:
            tk.schedule(levels, name)
        except ValueError:
            continue
        possible.append(name)
    view = tk.views.schedules(levels, ["beta", "karras"])
    names = [entry["name"] for entry in view._schedules]
    assert names[:2] == ["beta", "karras"] and sorted(names) == sorted(possible)
    np.testing.assert_array_equal(np.frombuffer(view._table, "<f4"), levels.table)
    json.dumps([view._levels, view._schedules], allow_nan=False)


def test_every_schedule_has_a_formula_or_a_table_in_the_browser():
    text = (FOLDER / "formulas.js").read_text("utf-8")
    formulas = set(re.findall(r"^  (\w+)(?::|\()", text[text.index("const SCHEDULES") :], re.M))
    tables = {
        entry["name"]
        for levels in ALL_LEVELS
        for entry in tk.views.schedules(levels)._schedules
        if "table" in entry
    }
    assert set(tk.SCHEDULES) <= formulas | tables


@pytest.mark.parametrize("levels", [tk.Levels.scaled_linear(), tk.Levels.flux()], ids=repr)
def test_defaults_of_sliders_are_the_schedules(levels):
    for entry in tk.views.schedules(levels)._schedules:
        plain = tk.schedule(levels, entry["name"]).attrs["options"]
        for slider in entry["sliders"]:
            assert slider["low"] <= slider["value"] <= slider["high"]
            if plain.get(slider["name"]) is not None:
                assert slider["value"] == plain[slider["name"]]
            if slider["hop"]:  # the default is one of its places
                places = (slider["value"] - slider["low"]) / slider["hop"]
                assert abs(places - round(places)) < 1e-9
    assert set(SLIDERS) <= set(tk.SCHEDULES)


def test_the_ends_of_every_slider_are_levels():
    for levels in ALL_LEVELS:
        view = tk.views.schedules(levels)
        for entry in view._schedules:
            for slider in entry["sliders"]:
                for end in ("low", "high"):
                    view.focused, view.options = entry["name"], {entry["name"]: {slider["name"]: slider[end]}}
                    sigma = view.grid.sigma.values
                    assert (np.diff(sigma) <= 0).all() and sigma[-1] == 0


def test_what_stands_for_the_levels_in_the_line():
    said = [tk.views.schedules(levels)._levels["call"] for levels in ALL_LEVELS]
    assert said[2] == "levels"  # a thousand betas are no line
    for call, levels in zip(said, ALL_LEVELS, strict=True):
        if call != "levels":
            np.testing.assert_array_equal(eval(call, {"tk": tk}).table, levels.table)
    model, _ = tk.testing.sharp_modes()
    assert tk.views.schedules(model)._levels["call"] == "model"


# ---- traits


def test_traits_are_readable_settable_and_linked():
    view = tk.views.schedules(names=["karras", "beta"], steps=10)
    assert (view.focused, view.shown, view.steps, view.step, view.options) == (
        "karras",
        ["karras", "beta"],
        10,
        0,
        {},
    )
    view.options = {"karras": {"rho": 3}, "beta": {"alpha": 0.6}}
    assert view.options == {"karras": {"rho": 3.0}}  # a default leaves no trace
    want = tk.schedule(tk.Levels.scaled_linear(), "karras", 10, rho=3.0)
    np.testing.assert_array_equal(view.grid.sigma, want.sigma)
    assert view.grid.attrs["options"] == {"rho": 3.0}
    view.options = {"karras": {"sigma_min": 0.1, "sigma_max": 10.0}}
    ends = view.grid.sigma.values[[0, -2]]
    np.testing.assert_allclose(ends, [10, 0.1], rtol=1e-6)
    view.focused, view.steps, view.shown = "kl_optimal", 12, ["normal", "normal"]
    assert view.grid.sizes["step"] == 13 and view.shown == ["normal"]
    other = tk.views.schedules(tk.Levels.edm())
    traitlets.link((view, "steps"), (other, "steps"))
    view.steps = 30
    assert other.steps == 30


@pytest.mark.parametrize(
    ("trait", "value", "line"),
    [
        ("focused", "karass", 'Try: view.focused = "karras"'),
        ("focused", "oss", "for these levels"),
        ("shown", ["karass"], 'Try: view.shown = ["karras"]'),
        ("steps", 1, "Try: view.steps = 20"),
        ("step", -1, "Try: view.step = 20"),
        ("options", {"karras": {"roh": 3}}, "karras has rho, sigma_min, sigma_max"),
        ("options", {"karras": 3}, "Try: view.options = "),
        ("options", {"karras": {"rho": -1}}, "Try: tk.schedule("),
        ("options", {"karras": {"rho": "7"}}, "Try: tk.schedule("),
        ("options", {"karras": {"sigma_min": 20.0}}, "Try: tk.Levels.edm("),
        ("axis", "sgima", ""),
    ],
)
def test_what_cannot_be_set(trait, value, line):
    view = tk.views.schedules()
    before = getattr(view, trait)
    with pytest.raises(traitlets.TraitError) as caught:
        setattr(view, trait, value)
    assert line in str(caught.value) and getattr(view, trait) == before


@pytest.mark.parametrize(
    ("arguments", "kind", "line"),
    [
        ((3,), TypeError, "Try: tk.views.schedules(tk.Levels"),
        ((None, ["karass"]), ValueError, 'Try: tk.views.schedules(names=["karras"])'),
        ((None, [3]), ValueError, "Try: tk.views.schedules(names="),
        ((None, []), TypeError, "Try: tk.views.schedules("),
        ((None, 3), TypeError, "Try: tk.views.schedules("),
        ((None, ["oss"]), ValueError, "Try: tk.schedule("),
        ((None, ["karras"], 1), ValueError, "steps=20)"),
        ((None, ["karras"], 2.5), ValueError, "steps=20)"),
    ],
)
def test_errors_say_what_to_type(arguments, kind, line):
    with pytest.raises(kind) as caught:
        tk.views.schedules(*arguments)
    assert line in str(caught.value)
    with pytest.raises(ValueError, match=r'Try: view.curve\("karras"\)'):
        tk.views.schedules().curve("karass")


def test_a_symmetric_shape_off_the_hops_has_its_tie():
    from scipy.special import betaincinv

    view = tk.views.schedules()
    view.options = {"beta": {"alpha": 1.23, "beta": 1.23}}
    assert view._levels["medians"]["1.23"] == np.rint(betaincinv(1.23, 1.23, 0.5) * 999)
    assert view._levels["medians"]["1"] in (499, 500)  # as JavaScript writes 1.0


# ---- text, picture, page


def test_repr_and_mime_bundle():
    view = tk.views.schedules(names="karras", steps=8)
    assert repr(view) == "ScheduleExplorer(karras; 8 steps, scaled_linear levels)"
    data, _ = view._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}
    assert data["text/plain"] == repr(view)
    assert Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).size == (1760, 744)
    view.shown = []
    assert repr(view) == "ScheduleExplorer(none shown; 8 steps, scaled_linear levels)"
    view.shown = offered(None)
    assert len(base64.b64decode(view._repr_mimebundle_()[0]["image/png"])) < 200_000


def test_the_page_is_closed_by_its_policy_and_holds_the_table(tmp_path):
    view = tk.views.schedules(tk.Levels.flux(), ["karras"])
    path = view.to_html(tmp_path / "a.html")
    page = path.read_text("utf-8")
    assert path == tmp_path / "a.html" and view.to_html(tmp_path / "b.html").read_bytes() == path.read_bytes()
    policy = re.search('http-equiv="Content-Security-Policy" content="([^"]+)"', page)[1]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    script = re.search('<script type="module">(.*?)</script>', page, re.S)[1]
    css = re.search("<style>(.*?)</style>", page, re.S)[1]
    for text in (script, css):
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert not re.search(r"\bstyle=|\bon\w+=|\bsrc=|\bhref=", page.replace(script, "").replace(css, ""))
    assert not re.search(r"^\s*import\b|\bfetch\(|XMLHttpRequest|WebSocket", script, re.M)
    packed = re.search('<script type="text/plain" id="payload">(.*?)</script>', page, re.S)[1]
    assert gzip.decompress(base64.b64decode(packed)) == view._table + view._look
    with pytest.raises(FileNotFoundError, match="mkdir"):
        view.to_html(tmp_path / "no" / "a.html")


def test_an_image_is_its_middle_square():
    wide = np.zeros((30, 90, 3))
    wide[:, 30:60] = [1.0, 0.5, 0.0]
    for image in (wide, np.rint(wide * 255).astype(np.uint8), Image.fromarray(np.uint8(wide * 255 + 0.5))):
        got = np.frombuffer(tk.views.schedules(image=image)._look[: 47 * 47 * 3], np.uint8)
        np.testing.assert_array_equal(got.reshape(47, 47, 3)[8:-8, 8:-8], [[[255, 128, 0]] * 31] * 31)
    look = tk.views.schedules()._look
    noise = np.frombuffer(look[len(look) // 2 :], np.int8) / 32
    assert abs(noise.mean()) < 0.02 and noise.std() == pytest.approx(1, abs=0.02)
    for wrong in (wide[0], wide * 2, wide * np.nan, np.zeros((4, 4, 4))):
        with pytest.raises(ValueError, match="image"):
            tk.views.schedules(image=wrong)
    with pytest.raises(TypeError, match="image"):
        tk.views.schedules(image="flower.png")
