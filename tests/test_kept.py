"""What is kept of a picture: masks, regions that keep, grey that says when, and edits of a recorded run."""

import math

import numpy as np
import pytest
import torch
import xarray as xr
from test_regions import SIZE, PerPixel, far, hard, last, soft
from test_resume import goes_on, stopped

import toolkit as tk
from toolkit.masks import NEVER, joined, joining
from toolkit.noise import Keyed
from toolkit.roundtrip import relative

QUIET = {"progress": False}
SOLVERS = ["euler", "heun", "dpmpp_2m", "uni_pc", "dpmpp_sde", "dpm_fast", "dpm_adaptive", "euler_cfg_pp"]
BOX = tk.box(0.0, 0.0, 0.5, 1.0, size=SIZE)  # the left half
PICTURE = torch.randn(2, 2, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
GREYS = np.repeat(np.arange(16) / 15.0, 16).reshape(16, 16).T  # columns from 0 to 1
EDITED = [("reverse", "euler"), ("algebraic", "obelm"), ("algebraic", "edict"), ("offsets", "dpmpp_2m"),
          ("offsets", "dpm_fast"), ("offsets", "dpm_adaptive"), ("noise", "dpmpp_sde")]  # fmt: skip
LATE = {"differential": True}
EXACT = {"obelm": "algebraic", "dpmpp_2m": "offsets", "dpmpp_sde": "noise", "dpm_fast": "offsets",
         "dpm_adaptive": "offsets"}  # fmt: skip


# --- when a pixel joins ----


def test_grey_is_the_strength_of_img2img():
    levels = [8.0, 4.0, 2.0, 1.0, 0.0]
    mask = torch.tensor([1.0, 0.9, 0.87, 0.5, 0.38, 0.25, 0.13, 0.12, 0.0])
    since = joining(mask, levels)
    assert since.tolist() == [8.0, 8.0, 4.0, 2.0, 2.0, 1.0, 1.0, NEVER, NEVER]
    for sigma in (8.0, 8.0 * (1 + 1e-12), 5.0, 4.0, 1.5, 0.3, 0.0):
        want = [float(s >= sigma * (1 - 1e-9)) for s in since.tolist()]
        assert joined(since, sigma).tolist() == want
    regions = [tk.Region(np.full(SIZE, m), prompt=1, strength=m) for m in mask.tolist() if m > 0.12]
    model, x = PerPixel(), torch.zeros(1, 2, *SIZE)
    for region in regions:  # as a region's own strength
        run = tk.regional(model, [region], x, sigmas=levels, **QUIET)
        high = run.attrs["regions"][0]["active"][0] or math.inf
        assert float(joining(torch.tensor(region.strength), levels)) == min(high, levels[0])


@pytest.mark.parametrize("path", [tk.VE, tk.FLOW], ids=str)
@pytest.mark.parametrize("solver", ["euler", "dpm_2", "ddim"])
def test_a_pixel_of_grey_is_sampled_from_its_level_on(path, solver):
    """Each column is that of a run which begins at its level, and that of grey 0 stays the picture."""
    model, steps = PerPixel(path=path), 10
    asked = {"prompt": 1, "cfg": 2.0, "solver": solver, "seed": 4, **QUIET}
    run = tk.sample(model, PICTURE, mask=GREYS, differential=True, steps=steps, **asked)
    levels = run.sigma.values.tolist()
    np.testing.assert_allclose(last(run)[..., 0], PICTURE[..., 0], atol=1e-12)
    for column in range(1, 16):
        hop = math.floor((1.0 - column / 15.0) * steps + 0.5)
        if hop == steps:
            want = PICTURE.numpy()
        else:
            # the noise of the seed, at that level; from VE's highest level a run has a little more
            want = last(tk.sample(model, PICTURE, sigmas=levels[hop:], **asked))
        np.testing.assert_allclose(last(run)[..., column], want[..., column], rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(run.mask, np.broadcast_to(GREYS, run.mask.shape))
    assert run.attrs["differential"] is True and run.attrs["grid"] == levels


@pytest.mark.parametrize("solver", SOLVERS)
def test_black_and_white_says_both_the_same(mixture, images, solver):
    asked = {"mask": BOX, "solver": solver, "steps": 8, "cfg": 2.0, **QUIET}
    plain = tk.sample(mixture, images["in"], **asked)
    when = tk.sample(mixture, images["in"], differential=True, **asked)
    xr.testing.assert_identical(when.drop_attrs(), plain.drop_attrs())
    assert "differential" in when.attrs and "differential" not in plain.attrs


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_region_that_is_kept_is_what_a_mask_leaves(mixture, images, solver):
    """Soft edges, under guidance; a batch whose masks differ."""
    left = np.stack([soft()[0], soft(width=1.0)[0]])
    asked = {"solver": solver, "steps": 8, "cfg": 2.0, "prompt": 3, "seed": 5, **QUIET}
    masked = tk.sample(mixture, images["in"], mask=1.0 - left, **asked)
    kept = tk.sample(mixture, images["in"], regions=[tk.Region(left, keep=True, name="old")], **asked)
    assert far(kept, masked) < 1e-12
    np.testing.assert_array_equal(kept.rows, masked.rows)  # what is kept is asked nothing
    np.testing.assert_allclose(kept.weight.sel(region="old")[0], left)
    assert np.isnan(kept.conflict.sel(region="old")).all()
    assert kept.attrs["regions"][0]["keep"] is True


@pytest.mark.parametrize("path", [tk.VE, tk.FLOW], ids=str)
def test_what_is_kept_is_the_picture_at_every_level(path):
    """Step mode: noised to each level by one noise; the others step as if it was not there."""
    model = PerPixel(path=path)
    regions = [tk.Region(BOX, keep=True), hard(0.5, 0.75, prompt=1, solver="dpmpp_2m"),
               hard(0.75, 1.0, prompt=2)]  # fmt: skip
    asked = {"steps": 8, "seed": 2, "prompt": 3, "mode": "step", **QUIET}
    run = tk.regional(model, regions, PICTURE, **asked)
    sigma, alpha = (run[name].values[1:, None, None, None, None] for name in ("sigma", "alpha"))
    unit = Keyed(2, PICTURE.shape).start().double().numpy()
    want = alpha * PICTURE.numpy() + sigma * unit
    np.testing.assert_allclose(run.latent[1:, ..., :8], want[..., :8], rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(last(run)[..., :8], PICTURE[..., :8])
    alone = tk.regional(model, regions[1:], PICTURE, **asked)
    np.testing.assert_array_equal(run.latent[..., 8:], alone.latent[..., 8:])
    assert np.abs(last(run)[..., 8:] - PICTURE.numpy()[..., 8:]).max() > 1.0


@pytest.mark.parametrize("mode", ["denoiser", "step"])
def test_grey_of_a_region_is_when(mode):
    """A region of grey m joins as one of strength m; one that is kept is let go after its share."""
    model, asked = PerPixel(), {"steps": 10, "prompt": 2, "cfg": 1.5, **QUIET}
    grey = tk.regional(
        model, [tk.Region(0.6 * BOX, prompt=1, differential=True)], PICTURE, mode=mode, **asked
    )
    late = tk.regional(model, [tk.Region(BOX, prompt=1, strength=0.6)], PICTURE, mode=mode, **asked)
    np.testing.assert_array_equal(grey.latent, late.latent)
    np.testing.assert_array_equal(grey.weight, late.weight)
    region = tk.Region(1.0 - GREYS, keep=True, differential=True)
    kept = tk.regional(model, [region], PICTURE, mode=mode, **asked)
    share = kept.weight.sel(region="region 1")[:-1, 0].values  # (step, x)
    assert set(np.unique(share)) == {0.0, 1.0}
    np.testing.assert_array_equal(share.sum(0), np.floor((1.0 - GREYS[0]) * 10 + 0.5))
    if mode == "denoiser":
        masked = tk.sample(model, PICTURE, mask=GREYS, differential=True, **asked)
        assert far(kept, masked) < 1e-12
    np.testing.assert_allclose(last(kept)[..., 0], PICTURE[..., 0], atol=1e-12)


def test_what_is_kept_may_be_kept_for_a_while():
    """By a span, and by a weight that fades: from there on the pixels are sampled from the noised picture."""
    model = PerPixel()
    levels = tk.schedule(model, "karras", steps=10).sigma.values.tolist()
    asked = {"sigmas": levels, "prompt": 1, "seed": 3, **QUIET}
    late = last(tk.sample(model, PICTURE, **{**asked, "sigmas": levels[4:]}))[..., :8]
    for told in ({"span": (math.inf, levels[3])}, {"weight": lambda sigma: float(sigma > levels[4])}):
        run = tk.regional(model, [tk.Region(BOX, keep=True, **told)], PICTURE, **asked)
        np.testing.assert_allclose(last(run)[..., :8], late, rtol=1e-9, atol=1e-9)


# --- unsampling, and back ----


@pytest.mark.parametrize("solver", EXACT)
@pytest.mark.parametrize(
    "given",
    [
        {"mask": GREYS, "differential": True},
        {"regions": [tk.Region(soft()[0], keep=True), tk.Region(soft()[2], prompt=1)]},
        {"regions": [tk.Region(GREYS, keep=True, **LATE), tk.Region(BOX * 0.5, prompt=1, **LATE)]},
        {"mask": GREYS, "regions": [tk.Region(0.5 * BOX, keep=True, differential=True)]},
    ],
    ids=["grey", "kept", "kept for a while", "both"],
)  # fmt: skip
def test_what_is_kept_comes_back(mixture, images, solver, given, tmp_path):
    asked = {"solver": solver, "cfg": 2.0, "prompt": 3, "steps": 8, **given, **QUIET}
    up = tk.unsample(mixture, images["in"], **asked)
    assert up.attrs["inverse"] == EXACT[solver]
    back = tk.sample(mixture, start=up, **QUIET)
    assert relative(last(back), images["in"].numpy()).max() < 1e-9
    assert back.attrs["edited"] == [] and back.attrs.get("bitwise", True) is True
    again = tk.sample(mixture, start=up, regions=given.get("regions"), **QUIET)
    np.testing.assert_array_equal(again.latent, back.latent)
    trip = tk.round_trip(mixture, images["in"], **asked)
    assert float(trip.error.max()) < 1e-9 and np.isnan(trip.accuracy).all()


def test_grey_pixels_are_unsampled_up_to_their_level():
    """Above it their noise only grows: x = L + sigma n."""
    model = PerPixel()
    up = tk.unsample(model, PICTURE, mask=GREYS, differential=True, steps=10, prompt=1, **QUIET)
    noise = (up.latent.values[1:] - PICTURE.numpy()) / up.sigma.values[1:, None, None, None, None]
    np.testing.assert_allclose(noise[..., 0], 0.0, atol=1e-12)
    for column in range(1, 16):
        hop = math.floor((1.0 - column / 15.0) * 10 + 0.5)  # of the way down
        row = max(10 - hop - 1, 0)  # of `noise`
        grown = noise[row + 1 :, ..., column]  # the hop above its level still begins with its opinion
        np.testing.assert_allclose(grown - noise[-1, ..., column], 0.0, atol=1e-12)
        assert hop > 8 or np.abs(noise[row, ..., column]).max() > 0.1
    back = tk.sample(model, start=up, **QUIET)
    assert relative(last(back), PICTURE.numpy()).max() < 1e-9


# --- edits of a record ----


@pytest.mark.parametrize("inverse, solver", EDITED)
def test_outside_a_mask_an_edit_follows_the_record(mixture, images, inverse, solver):
    up = tk.unsample(mixture, images["in"], solver=solver, inverse=inverse, steps=8, prompt=1, **QUIET)
    edit = tk.sample(mixture, start=up, prompt=4, cfg=2.0, mask=BOX, **QUIET)
    assert edit.attrs["edited"] == ["prompt", "cfg", "mask"]
    np.testing.assert_array_equal(edit.latent.values[1:-1, ..., 8:], up.latent.values[::-1][1:-1, ..., 8:])
    np.testing.assert_allclose(last(edit)[..., 8:], images["in"][..., 8:], rtol=1e-15)
    assert np.abs(last(edit)[..., :8] - images["in"].numpy()[..., :8]).max() > 0.1
    np.testing.assert_array_equal(edit.mask[0], BOX)
    kept = tk.sample(mixture, start=up, prompt=4, cfg=2.0, regions=[tk.Region(1.0 - BOX, keep=True)], **QUIET)
    np.testing.assert_array_equal(kept.latent, edit.latent)
    assert kept.attrs["edited"] == ["prompt", "cfg", "regions"]
    if inverse != "reverse":  # nothing else asked for
        same = tk.sample(mixture, start=up, mask=BOX, **QUIET)
        np.testing.assert_allclose(last(same), images["in"], rtol=1e-9, atol=1e-9)


def test_an_edit_by_grey_begins_where_it_says():
    """With pixels that know nothing of each other: below its level each is that of an edit of the whole."""
    model = PerPixel()
    up = tk.unsample(model, PICTURE, solver="euler", inverse="offsets", steps=10, prompt=1, **QUIET)
    edit = tk.sample(model, start=up, prompt=2, mask=GREYS, differential=True, **QUIET)
    rising = up.latent.values
    for column in range(16):
        hop = math.floor((1.0 - column / 15.0) * 10 + 0.5)
        states = edit.latent.values[: hop + 1, ..., column]
        np.testing.assert_allclose(states, rising[::-1][: hop + 1, ..., column], rtol=1e-14, atol=1e-14)
    moved = np.abs(last(edit) - PICTURE.numpy()).mean((0, 1, 2))
    assert moved[0] < 1e-14 and moved[15] > 1.0
    assert moved[:5].mean() < moved[5:10].mean() < moved[10:].mean()


def test_an_edit_of_what_was_kept_before(mixture, images):
    """The record's own regions are kept as it did; another mask on top follows its states."""
    regions = [tk.Region(tk.box(0.0, 0.0, 1.0, 0.25, size=SIZE), keep=True), tk.Region(soft()[2], prompt=2)]
    up = tk.unsample(mixture, images["in"], regions=regions, solver="obelm", steps=8, prompt=1, **QUIET)
    edit = tk.sample(mixture, start=up, prompt=0, cfg=3.0, mask=BOX, **QUIET)
    np.testing.assert_array_equal(edit.latent.values[1:-1, ..., 8:], up.latent.values[::-1][1:-1, ..., 8:])
    np.testing.assert_allclose(last(edit)[..., :4, :], images["in"][..., :4, :], atol=1e-9)
    assert np.abs(last(edit)[..., 4:, :8] - images["in"].numpy()[..., 4:, :8]).max() > 0.1


# --- the record ----


RUNS = {
    "grey": lambda model, save: tk.sample(
        model, torch.ones(1, 4, *SIZE), mask=GREYS, **LATE, solver="dpmpp_2m", steps=7, save=save, **QUIET
    ),
    "kept": lambda model, save: tk.regional(
        model, [tk.Region(GREYS, keep=True, differential=True), hard(0.2, 0.6, prompt=1, solver="lms")],
        torch.ones(1, 4, *SIZE), mode="step", solver="heun", steps=7, save=save, **QUIET
    ),
    "unsample": lambda model, save: tk.unsample(
        model, torch.ones(1, 4, *SIZE), mask=GREYS, differential=True, steps=7, save=save, **QUIET
    ),
    "edit": lambda model, save: tk.sample(
        model, start=tk.unsample(model, torch.ones(1, 4, *SIZE), solver="obelm", steps=7, **QUIET), prompt=3,
        mask=GREYS, differential=True, save=save, **QUIET
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in RUNS if name != "edit"])
@pytest.mark.parametrize("kept", [{}, {"every": 3, "dtype": "float32"}], ids=["all", "few"])
def test_a_run_that_keeps_goes_on(mixture, name, kept, tmp_path):
    def make(save):
        return RUNS[name](mixture, save)

    make.kept = kept
    goes_on(mixture, make, tmp_path, [1, 3, 6])


def test_an_edit_goes_on(mixture, tmp_path):
    up = tk.unsample(mixture, torch.ones(1, 4, *SIZE), solver="obelm", steps=7, **QUIET)

    def make(save):
        return tk.sample(mixture, start=up, prompt=3, mask=GREYS, differential=True, save=save, **QUIET)

    make.kept = {}
    goes_on(mixture, make, tmp_path, [1, 3, 4])


def test_a_store_knows_what_is_kept(mixture, tmp_path):
    save, x = tk.Save(store=tmp_path / "run.zarr"), torch.ones(1, 4, *SIZE)

    def run(**told):
        asked = {"mask": GREYS, "differential": True, **told}
        return tk.sample(mixture, x, steps=4, save=save, **QUIET, **asked)

    stopped(mixture, 2, run)
    for other, told in (
        ({"mask": BOX}, "inputs mask"),
        ({"differential": False}, "differential"),
        ({"mask": None, "differential": False, "regions": [tk.Region(GREYS, keep=True)]}, "regions"),
    ):
        with pytest.raises(ValueError, match=f"holds another run: .*{told}"):
            run(**other)
    assert "stopped" not in run().attrs


# --- bad input ----

ONES = np.ones(SIZE)
BAD = {
    "grey without a mask": ({"differential": True}, "differential"),
    "grey of text": ({"mask": GREYS, "differential": "yes"}, "differential"),
    "kept with a prompt": (lambda: {"regions": [tk.Region(BOX, keep=True, prompt=1)]}, "prompt"),
    "kept with a cfg": (lambda: {"regions": [tk.Region(BOX, keep=True, cfg=2.0)]}, "cfg"),
    "kept with a solver": (lambda: {"regions": [tk.Region(BOX, keep=True, solver="heun")]}, "solver"),
    "kept of text": (lambda: {"regions": [tk.Region(BOX, keep="yes")]}, "keep"),
    "grey region of text": (lambda: {"regions": [tk.Region(BOX, differential=1)]}, "differential"),
    "all is kept": (lambda: {"regions": [tk.Region(ONES, keep=True)]}, "regions"),
    "all is kept by two": (
        lambda: {"regions": [tk.Region(BOX, keep=True), tk.Region(1 - BOX, keep=True)]}, "regions"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("call", ["sample", "unsample", "replay"])
def test_bad_input(case, call):
    given, argument = BAD[case]
    model = PerPixel()
    up = tk.unsample(model, PICTURE, steps=3, **QUIET)
    model.asked = 0
    runs = {"sample": lambda told: tk.sample(model, PICTURE, steps=3, **told, **QUIET),
            "unsample": lambda told: tk.unsample(model, PICTURE, steps=3, **told, **QUIET),
            "replay": lambda told: tk.sample(model, start=up, **told, **QUIET)}  # fmt: skip
    with pytest.raises((ValueError, TypeError), match=rf"(?s)^{argument}=.*\. Try: \S"):
        runs[call](given() if callable(given) else given)
    assert model.asked == 0


def test_what_is_kept_needs_a_picture():
    model, region = PerPixel(), tk.Region(BOX, keep=True, name="old")
    for mode in ("denoiser", "step"):
        with pytest.raises(
            ValueError, match=r'^start=None: "old" is kept.*Try: tk\.regional\(.*start=latent'
        ):
            tk.regional(model, [region], shape=(1, 2, *SIZE), mode=mode, **QUIET)
    with pytest.raises(ValueError, match=r"^start=None: .old. is kept"):
        tk.sample(model, regions=[region], shape=(1, 2, *SIZE), **QUIET)
    assert model.asked == 0


def test_an_edit_needs_the_rows_of_the_record():
    model = PerPixel()
    few = tk.unsample(model, PICTURE, steps=5, save=tk.Save(every=2), **QUIET)
    masked = tk.unsample(model, PICTURE, steps=5, mask=BOX, **QUIET)
    model.asked = 0
    for given in ({"mask": BOX}, {"regions": [tk.Region(BOX, keep=True)]}):
        with pytest.raises(ValueError, match=r"^start=.*2 of its rows were not kept\. Try: .*every=1"):
            tk.sample(model, start=few, prompt=1, **given, **QUIET)
    with pytest.raises(ValueError, match=r"(?s)^mask=.*this record has a mask.*Try: tk\.sample"):
        tk.sample(model, start=masked, mask=BOX, **QUIET)
    for spoilt in (0.0 * BOX, 2.0 * BOX, np.full(SIZE, np.nan), np.ones((3, *SIZE)), [[1.0]]):
        with pytest.raises((ValueError, TypeError), match=r"^mask="):
            tk.sample(model, start=few, mask=spoilt, **QUIET)
    assert model.asked == 0
