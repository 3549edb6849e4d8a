"""Regions fused in the denoiser: what they must equal, how masks are fitted, what is recorded, bad input."""

import math
import re

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image
from scipy import ndimage
from test_resume import Stop, cut, goes_on, stopped
from torch.utils._python_dispatch import TorchDispatchMode

import toolkit as tk
from toolkit.composites import Regional
from toolkit.denoisers import Model, one_a_sample, usual_levels
from toolkit.layouts import Layout
from toolkit.record import as_numpy
from toolkit.regions import fitted
from toolkit.roundtrip import relative

QUIET = {"progress": False}
SOLVERS = [
    "euler",
    "heun",
    "dpmpp_2m",
    "lms",
    "uni_pc",
    "dpmpp_sde",
    "euler_cfg_pp",
    "dpm_fast",
    "dpm_adaptive",
]
ON_A_GRID = SOLVERS[:-1]  # one that chooses its levels turns rounding into other levels
SIZE = (16, 16)


class PerPixel(Model):
    """Condition k: every pixel is a Gaussian of its own, N(means[k], variances[k])."""

    name = "per pixel"
    asked = 0

    def __init__(self, means=(-1.0, 2.0, 0.5, 3.0), variances=(0.1, 0.3, 0.2, 0.5), path=tk.VE, channels=2):
        self.means, self.variances, self.path = means, variances, path
        self.levels, self.channels = usual_levels(None, path), channels
        self.fingerprint = repr((means, variances, path.name))

    def conditions(self, prompt, samples, name="prompt"):
        def resolve(one, name):
            if one is not None and not (isinstance(one, int) and 0 <= one < len(self.means)):
                raise ValueError(f"{name}={one!r}: no such condition. Try: {name}=0")
            return one or 0

        return one_a_sample(prompt, samples, resolve, name)

    def x0(self, x, sigma, conditions):
        self.asked += 1
        mean, var = (torch.tensor([table[c] for c in conditions], dtype=x.dtype).view(-1, 1, 1, 1)
                     for table in (self.means, self.variances))  # fmt: skip
        alpha = self.path.alpha(sigma)
        return mean + alpha * var / (alpha**2 * var + sigma**2) * (x - alpha * mean)


def soft(size=SIZE, width: float = 2.0) -> list[np.ndarray]:
    """Three soft masks that add up to 1, from left to right."""
    x = np.arange(size[1]) + 0.5
    a, b = (1 / (1 + np.exp(-(x - f * size[1]) / width)) for f in (1 / 3, 2 / 3))
    return [np.tile(w, (size[0], 1)) for w in (1 - a, a - a * b, a * b)]


def thirds(prompts=(1, 2, 3), **options) -> list[tk.Region]:
    return [tk.Region(m, prompt=p, **options) for m, p in zip(soft(), prompts, strict=True)]


def hard(low: float, high: float, **options) -> tk.Region:
    return tk.Region(tk.box(low, 0.0, high, 1.0, size=SIZE), **options)


def last(run: xr.Dataset) -> np.ndarray:
    return run.latent[-1].values


def far(a: xr.Dataset, b: xr.Dataset) -> float:
    """Largest relative distance of a row of two runs."""
    return max(relative(p, q).max() for p, q in zip(a.latent.values, b.latent.values, strict=True))


# --- what it must equal ----


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_one_region_that_covers_all_equals_none(mixture, name, cfg):
    asked = {"solver": name, "cfg": cfg, "steps": 8, "seed": 4, "shape": (2, 4, *SIZE), **QUIET}
    plain = tk.sample(mixture, prompt=[1, 3], negative=4, **asked)
    region = tk.Region(np.ones((5, 7)), prompt=[1, 3])
    covered = tk.regional(mixture, [region], negative=4, **asked)
    assert far(covered, plain) < 1e-12
    np.testing.assert_array_equal(covered.rows, plain.rows)
    own = tk.Region(np.ones((5, 7)), prompt=[1, 3], negative=4, cfg=cfg)
    assert far(tk.sample(mixture, regions=[own], prompt=2, **{**asked, "cfg": 2.0}), plain) < 1e-12


@pytest.mark.parametrize("name", ON_A_GRID)
def test_equal_regions_equal_one(mixture, name):
    asked = {"solver": name, "cfg": 3.0, "steps": 8, "shape": (1, 4, *SIZE), **QUIET}
    plain = tk.sample(mixture, prompt=2, **asked)
    split = tk.regional(mixture, thirds((2, 2, 2)), **asked)
    assert far(split, plain) < 1e-12
    np.testing.assert_array_equal(split.rows, plain.rows)  # conditions that are equal are evaluated once


@pytest.mark.parametrize("name", ON_A_GRID)
def test_the_order_of_regions_does_not_matter(mixture, name):
    asked = {"solver": name, "cfg": 3.0, "steps": 8, "shape": (1, 4, *SIZE), "prompt": 4, **QUIET}
    some = [hard(0.1, 0.5, prompt=1, name="a", seed=5, noise_strength=0.6),
            hard(0.4, 0.9, prompt=2, name="b"),
            hard(0.3, 0.7, prompt=3, negative=1, cfg=1.0, strength=0.7, name="c")]  # fmt: skip
    a, b = tk.regional(mixture, some, **asked), tk.regional(mixture, some[::-1], **asked)
    assert far(a, b) < 1e-12
    assert far(a, tk.regional(mixture, some[:2], **asked)) > 1e-3
    for region in ("base", "a", "b", "c"):
        at = [list(run.region.values).index(region) for run in (a, b)]
        np.testing.assert_allclose(a.weight[:, at[0]], b.weight[:, at[1]], atol=1e-15)
        np.testing.assert_allclose(a.conflict[:, at[0]], b.conflict[:, at[1]], rtol=1e-9, atol=1e-12)


def test_the_answer_is_the_formula(mixture):
    """sum_r w_r [u_r + g_r (c_r - u_r)] by hand, and the unconditional one."""
    regions = [hard(0.0, 0.5, prompt=1, cfg=4.0), hard(0.25, 0.75, prompt=2, negative=3)]
    layout = Layout.fit(regions, (2, 4, *SIZE), "cpu", [1.0, 0.0])
    x, sigma = torch.randn(2, 4, *SIZE, dtype=torch.float64), 0.7
    got = Regional(mixture, layout, 4, 0, 1.5).denoise(x, sigma, uncond=True)
    a, b = np.zeros(16), np.zeros(16)
    a[:8], b[4:12] = 1.0, 1.0
    total = np.maximum(a + b, 1.0)
    w = [1.0 - np.minimum(a + b, 1.0), a / total, b / total]
    answers = [tk.guide(mixture, *bound).denoise(x, sigma, uncond=True)
               for bound in ((4, 0, 1.5), (1, 0, 4.0), (2, 3, 1.5))]  # fmt: skip
    for part in (0, 1):
        want = sum(torch.from_numpy(k) * answer[part] for k, answer in zip(w, answers, strict=True))
        torch.testing.assert_close(got[part], want, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "regions, asked, rows",
    [
        (thirds(), {"cfg": 1.5}, 4),  # three conditions, one unconditional
        (thirds(), {"cfg": 1.0}, 3),
        (thirds(), {"cfg": 1.0, "solver": "euler_cfg_pp"}, 4),
        (thirds(negative=4), {"cfg": 1.5}, 4),
        ([*thirds()[:2], tk.Region(soft()[2], prompt=3, negative=4)], {"cfg": 1.5}, 5),
        ([tk.Region(m, prompt=k, negative=k + 1) for k, m in enumerate(soft())], {"cfg": 1.5}, 4),
        ([tk.Region(m, prompt=k, negative=4 - k) for k, m in enumerate(soft())], {"cfg": 1.5}, 5),
        (thirds()[:2], {"cfg": 1.5, "prompt": 4}, 4),  # the base has the rest
        (thirds()[:2], {"cfg": 1.0, "prompt": 1}, 2),
        (thirds(cfg=1.0), {"cfg": 1.5}, 3),
        ([*thirds(cfg=1.0)[:2], tk.Region(soft()[2], prompt=3)], {"cfg": 1.5}, 4),
    ],
)
def test_rows_are_counted(mixture, regions, asked, rows):
    run = tk.regional(mixture, regions, steps=3, shape=(2, 4, *SIZE), **asked, **QUIET)
    np.testing.assert_array_equal(run.nfe, np.arange(4))
    np.testing.assert_array_equal(run.rows, 2 * rows * np.arange(4))
    assert run.attrs["network_rows"] == 6 * rows


# --- weights, when they are active ----


def test_weights_sum_to_one_wherever(mixture):
    rng = np.random.default_rng(3)
    regions = [
        tk.Region(rng.random(SIZE) ** 3, prompt=k, strength=1.0 - 0.2 * k, feather=k / 2) for k in range(4)
    ]
    run = tk.regional(mixture, regions, steps=10, shape=(1, 4, *SIZE), **QUIET)
    np.testing.assert_allclose(run.weight.sum("region"), 1.0, atol=1e-14)
    assert (run.weight >= 0).all()
    masks = np.stack([fitted(r, (1, 4, *SIZE), 1)[0, 0].numpy() for r in regions])
    np.testing.assert_array_equal(run.region_mask[1:], masks)
    for row in range(11):
        there = masks * np.array([row >= hop for hop in (0, 2, 4, 6)])[:, None, None]
        want = there / np.maximum(there.sum(0), 1.0)
        np.testing.assert_allclose(run.weight[row, 1:], want, atol=1e-14)
        np.testing.assert_allclose(run.weight[row, 0], 1.0 - want.sum(0), atol=1e-14)


def test_spans_and_schedules_of_weights(mixture):
    ramp = hard(0.0, 1.0, prompt=1, weight=lambda sigma: min(1.0, 1.0 / (1.0 + sigma)))
    span = hard(0.0, 1.0, prompt=2, span=(5.0, 0.5))
    run = tk.regional(
        mixture, [ramp, span, hard(0.0, 0.5, weight=0.25)], steps=12, shape=(1, 4, *SIZE), **QUIET
    )
    for sigma, w in zip(run.sigma.values, run.weight.values[:, :, 3, 3], strict=True):
        parts = np.array([1 / (1 + sigma), float(0.5 <= sigma <= 5.0), 0.25])
        np.testing.assert_allclose(w[1:], parts / max(parts.sum(), 1.0), atol=1e-14)
    assert 0 < (run.weight[:, 2] > 0).any(("y", "x")).sum() < 12


def test_a_region_is_not_there_before_it_joins():
    """Until hop 6 of 10 the run is that of the base; above its span a region is not asked."""
    model = PerPixel()
    asked = {"steps": 10, "shape": (1, 2, *SIZE), "prompt": 3, "seed": 2, **QUIET}
    plain = tk.sample(model, **asked)
    late = tk.regional(model, [hard(0.0, 0.5, prompt=1, strength=0.4)], **asked)
    np.testing.assert_array_equal(late.latent[:7], plain.latent[:7])
    assert (np.abs(late.latent[7] - plain.latent[7]).max("channel")[..., :8] > 0).all()
    np.testing.assert_array_equal(late.latent[..., 8:], plain.latent[..., 8:])  # it has no weight there
    np.testing.assert_array_equal(late.rows, [0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 14])


# --- masks ----


def test_a_mask_comes_in_many_forms(tmp_path):
    values = np.random.default_rng(1).integers(0, 256, (20, 12))
    image = Image.fromarray(values.astype(np.uint8))
    image.save(tmp_path / "mask.png")
    scaled = values / 255.0
    deep = Image.fromarray((values * 257).astype(np.uint16))
    forms = [image, tmp_path / "mask.png", str(tmp_path / "mask.png"), torch.from_numpy(scaled), scaled[None],
             xr.DataArray(scaled.T, dims=("x", "y")), scaled[None, None], deep,
             Image.fromarray(scaled.astype(np.float32))]  # fmt: skip
    want = fitted(tk.Region(scaled), (1, 4, 6, 6), 1)
    assert want.shape == (1, 1, 6, 6)
    for form in forms:
        torch.testing.assert_close(fitted(tk.Region(form), (1, 4, 6, 6), 1), want, rtol=0, atol=1e-7)
    flags = values > 100
    np.testing.assert_array_equal(fitted(tk.Region(flags), (1, 4, 20, 12), 1)[0, 0], flags)


def test_masks_that_differ_by_sample(mixture):
    mask = np.stack([tk.box(0.0, 0.0, 0.5, 1.0, size=SIZE), tk.box(0.5, 0.0, 1.0, 1.0, size=SIZE)])
    asked = {"steps": 5, "prompt": 0, "seed": 1, "cfg": 2.0, **QUIET}
    both = tk.regional(
        mixture, [tk.Region(mask, prompt=1), hard(0.0, 0.3, prompt=2)], shape=(2, 4, *SIZE), **asked
    )
    assert both.weight.dims == ("step", "region", "sample", "y", "x")
    assert both.region_mask.dims == ("region", "sample", "y", "x")
    noise = tk.sample(mixture, shape=(2, 4, *SIZE), **asked).latent[0].values
    for k in range(2):
        alone = tk.regional(mixture, [tk.Region(mask[k], prompt=1), hard(0.0, 0.3, prompt=2)],
                            noise[k : k + 1], add_noise=False, **asked)  # fmt: skip
        np.testing.assert_allclose(alone.latent[:, 0], both.latent[:, k], rtol=1e-11, atol=1e-11)
        np.testing.assert_array_equal(alone.weight, both.weight[:, :, k])
        np.testing.assert_allclose(alone.conflict[..., 0], both.conflict[..., k], rtol=1e-9)
        np.testing.assert_allclose(alone.seam_gradient[..., 0], both.seam_gradient[..., k], rtol=1e-9)


@pytest.mark.parametrize("radius", [1, 2, 2.5, -1, -2])
def test_grow_is_a_disc_on_the_latent(radius):
    rng = np.random.default_rng(8)
    mask = rng.random((9, 11)) if radius > 0 else np.clip(rng.random((9, 11)) + 0.5, 0, 1)
    got = fitted(tk.Region(mask, grow=radius), (1, 1, 9, 11), 1)[0, 0].numpy()
    best = max if radius > 0 else min
    for y in range(9):
        for x in range(11):
            near = [
                mask[j, i] for j in range(9) for i in range(11) if math.hypot(j - y, i - x) <= abs(radius)
            ]
            assert got[y, x] == best(near)


def test_feather_is_a_gaussian_on_the_latent():
    mask = tk.box(0.25, 0.25, 0.75, 1.0, size=SIZE)
    got = fitted(tk.Region(mask, feather=1.5, grow=1), (1, 1, *SIZE), 1)[0, 0].numpy()
    grown = fitted(tk.Region(mask, grow=1), (1, 1, *SIZE), 1)[0, 0].numpy()
    reach = int(4 * 1.5 + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / 1.5) ** 2)
    padded = np.pad(grown, reach, mode="edge")
    for axis in (0, 1):
        padded = ndimage.convolve1d(padded, kernel / kernel.sum(), axis=axis, mode="constant")
    np.testing.assert_allclose(got, padded[reach:-reach, reach:-reach], atol=1e-12)


def test_a_box_has_the_area_it_was_given():
    for size in ((8, 8), (5, 9), (64, 64)):
        mask = tk.box(0.1, 0.2, 0.75, 0.9, size=size)
        assert mask.shape == size
        assert mask.mean() == pytest.approx(0.65 * 0.7)
    np.testing.assert_array_equal(tk.box(0.0, 0.5, 1.0, 1.0, size=(2, 3)), [[0, 0, 0], [1, 1, 1]])


def test_reprs():
    region = tk.Region(np.ones((4, 6)), prompt="a cat", strength=0.5, weight=max, name="left")
    assert (
        repr(region) == "Region('left', prompt='a cat', strength=0.5, weight=max, mask 4 x 6 covering 100 %)"
    )
    assert "<td>a cat</td>" in region._repr_html_()
    assert "<td>&lt;b&gt;</td>" in tk.Region(np.ones((4, 6)), prompt="<b>")._repr_html_()


# --- noise ----


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_start_noise_is_unit_everywhere(method):
    """Of 20,000 draws a pixel, seams, overlaps and holes included."""
    many = (5000, 4, 3, 8)
    strengths = {1: 1.0, 2: 0.5, 3: 0.25, 4: 0.0, 0: 0.9}
    masks = np.random.default_rng(2).random((5, *many[2:]))
    masks[:, 0, :4] = 0.5
    masks[:, 1, :2] = 0.0
    regions = [tk.Region(m, seed=s, noise_strength=v, noise_method=method, name=str(s))
               for m, (s, v) in zip(masks, strengths.items(), strict=True)]  # fmt: skip
    model = PerPixel(channels=4)
    run = tk.regional(
        model, regions, shape=many, sigmas=[1.0, 0.5], seed=0, **QUIET, save=tk.Save(dtype="float32")
    )
    noise = run.latent[0].values.astype(np.float64)
    assert np.abs(noise.std(("sample", "channel") if hasattr(noise, "dims") else (0, 1)) - 1.0).max() < 0.02
    assert np.abs(noise.mean((0, 1))).max() < 0.03


def test_start_noise_is_mixed_as_asked():
    model, shape = PerPixel(), (2, 2, *SIZE)
    asked = {"shape": shape, "sigmas": [1.0, 0.5], **QUIET}

    def start(**options):
        left = tk.box(0.0, 0.0, 0.5, 1.0, size=SIZE)
        return tk.regional(model, [tk.Region(left, seed=7, **options)], **asked).latent[0].values

    base, own = (tk.sample(model, **asked, seed=s).latent[0].values for s in (0, 7))
    np.testing.assert_array_equal(start(), base)
    full = start(noise_strength=1.0)
    np.testing.assert_allclose(full[..., :8], own[..., :8], atol=1e-15)
    np.testing.assert_array_equal(full[..., 8:], base[..., 8:])
    v = 0.3
    want = ((1 - v) * base + v * own) / math.hypot(1 - v, v)
    np.testing.assert_allclose(start(noise_strength=v)[..., :8], want[..., :8], atol=1e-14)
    for k in range(2):
        a, b = base[k], own[k]
        angle = math.acos((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
        want = (math.sin((1 - v) * angle) * a + math.sin(v * angle) * b) / math.sin(angle)
        got = start(noise_strength=v, noise_method="slerp")[k]
        np.testing.assert_allclose(got[..., :8], want[..., :8], atol=1e-13)


def test_noise_of_one_direction_is_no_arc():
    """Of one number the two noises point alike, or apart: there is no arc between them."""
    model = PerPixel()
    for seed in range(6):
        region = tk.Region(np.ones((1, 1)), seed=seed + 1, noise_strength=0.5, noise_method="slerp")
        run = tk.regional(model, [region], shape=(1, 2, 1, 1), steps=2, seed=seed, **QUIET)
        assert np.isfinite(run.latent).all()


# --- the inverse ----


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("name", ["obelm", "euler", "dpmpp_2m", "dpmpp_sde", "dpm_fast"])
def test_unsampling_by_region_comes_back(mixture, images, name, cfg):
    regions = thirds()
    regions[1] = tk.Region(soft()[1], prompt=2, negative=4, cfg=2.0, strength=0.8)
    trip = tk.round_trip(mixture, images["off"], solver=name, cfg=cfg, regions=regions, steps=12, **QUIET)
    assert float(trip.error.max()) < 1e-9
    plain = tk.unsample(mixture, images["off"], solver=name, cfg=cfg, prompt=1, steps=12, **QUIET)
    if name != "dpmpp_sde":  # whose x_T is the image with noise
        assert relative(trip.top.values, last(plain)).min() > 1e-3


@pytest.mark.parametrize("weight", [1.0, lambda sigma: 1.0 / (1.0 + sigma)], ids=["number", "function"])
def test_the_noise_is_that_of_the_true_ode_of_all_regions(mixture, images, weight):
    regions = thirds(weight=weight)
    asked = {"regions": regions, "prompt": 4, "solver": "heun", **QUIET}
    trip, fine = (tk.round_trip(mixture, images["in"], steps=n, **asked) for n in (20, 60))
    assert float(trip.error.max()) < 1e-11
    if callable(weight):  # it is in no record
        assert np.isnan(trip.accuracy).all()
        return
    assert float(fine.accuracy.max()) < 0.3 * float(trip.accuracy.max()) < 0.02
    plain = tk.unsample(mixture, images["in"], prompt=4, solver="heun", **QUIET)
    assert relative(trip.top.values, last(plain)).min() > 0.02
    guided = tk.round_trip(mixture, images["in"], steps=5, **{**asked, "regions": thirds(cfg=4.0)})
    assert np.isnan(guided.accuracy).all()


@pytest.mark.parametrize("path", [tk.VE, tk.FLOW], ids=str)
@pytest.mark.parametrize("solver", ["obelm", "dpmpp_2m"])
def test_a_prompt_changed_on_replay_stays_in_its_region(path, solver):
    model = PerPixel(path=path)
    x = torch.randn(2, 2, *SIZE, dtype=torch.float64)
    masks = [tk.box(0.0, 0.0, 0.5, 1.0, size=SIZE), tk.box(0.25, 0.0, 0.75, 1.0, size=SIZE)]
    up = tk.unsample(model, x, regions=[tk.Region(masks[0], prompt=1), tk.Region(masks[1], prompt=2)],
                     prompt=3, cfg=1.5, solver=solver, steps=10, **QUIET)  # fmt: skip
    back = tk.sample(model, start=up, **QUIET)
    assert relative(last(back), x.numpy()).max() < 1e-9
    again = [tk.Region(masks[0], prompt=1), tk.Region(masks[1], prompt=2)]
    same = tk.sample(model, start=up, regions=again, **QUIET)
    assert same.attrs["edited"] == []
    np.testing.assert_array_equal(last(same), last(back))
    again[1] = tk.Region(masks[1], prompt=0)
    moved = tk.sample(model, start=up, regions=again, **QUIET)
    assert moved.attrs["edited"] == ["regions"]
    change = np.abs(last(moved) - last(back)).max((0, 1))
    assert change[:, 4:12].min() > 1e-3
    assert max(change[:, :4].max(), change[:, 12:].max()) == 0.0
    base = tk.sample(model, start=up, prompt=0, **QUIET)
    assert base.attrs["edited"] == ["prompt"]
    change = np.abs(last(base) - last(back)).max((0, 1))
    assert change[:, 12:].min() > 1e-3 and change[:, :12].max() == 0.0
    none = tk.unsample(model, x, prompt=3, cfg=1.5, solver=solver, steps=10, **QUIET)
    assert tk.sample(model, start=none, regions=again, **QUIET).attrs["edited"] == ["regions"]


@pytest.mark.parametrize("solver", ["dpm_fast", "dpm_adaptive", "euler"])
def test_regions_that_join_late_replay_on_any_grid(mixture, images, solver):
    """A solver with levels of its own joins them by those that were asked for, on the way back too."""
    regions = [hard(0.0, 0.5, prompt=1, strength=0.5), hard(0.3, 1.0, prompt=2, strength=0.3)]
    up = tk.unsample(mixture, images["in"], solver=solver, regions=regions, steps=7, **QUIET)
    for again in ({}, {"regions": regions}):
        back = tk.sample(mixture, start=up, **again, **QUIET)
        assert back.attrs["edited"] == []
        assert relative(last(back), images["in"].numpy()).max() < 1e-9
    other = tk.sample(
        mixture, start=up, regions=[hard(0.0, 0.5, prompt=0, strength=0.5), regions[1]], **QUIET
    )
    assert [r["active"] for r in other.attrs["regions"]] == [r["active"] for r in up.attrs["regions"]]


def test_an_edited_schedule_of_weights_is_an_edit():
    """Two functions of one name; and an equal one is none."""
    model, x = PerPixel(), torch.randn(1, 2, *SIZE, dtype=torch.float64)

    def regions(value):
        return [tk.Region(soft()[1], prompt=2, weight=lambda sigma: value)]

    up = tk.unsample(model, x, regions=regions(1.0), steps=4, **QUIET)
    for value, edited in ((1.0, []), (0.5, ["regions"])):
        back = tk.sample(model, start=up, regions=regions(value), **QUIET)
        assert back.attrs["edited"] == edited
        assert (relative(last(back), x.numpy()).max() < 1e-9) == (edited == [])


def test_regions_are_taken_off_on_a_replay(mixture, images):
    up = tk.unsample(mixture, images["in"], regions=thirds(), prompt=3, steps=6, **QUIET)
    none = tk.sample(mixture, start=up, regions=[], **QUIET)
    assert none.attrs["edited"] == ["regions"] and "region" not in none.dims
    plain = tk.unsample(mixture, images["in"], prompt=3, steps=6, **QUIET)
    with pytest.raises(ValueError, match=r"^regions=\[\]"):
        tk.sample(mixture, start=plain, regions=[], **QUIET)


def test_masks_that_differ_by_sample_replay(mixture, images):
    mask = np.stack([tk.box(0.0, 0.0, 0.5, 1.0, size=SIZE), tk.box(0.5, 0.0, 1.0, 1.0, size=SIZE)])
    regions = [tk.Region(mask, prompt=[1, 2], feather=1)]
    up = tk.unsample(mixture, images["in"], regions=regions, prompt=3, cfg=1.5, steps=8, **QUIET)
    for again in ({}, {"regions": regions}):
        back = tk.sample(mixture, start=up, **again, **QUIET)
        assert back.attrs["bitwise"] is True
        assert relative(last(back), images["in"].numpy()).max() < 1e-11
        xr.testing.assert_identical(back.region_mask, up.region_mask)


def test_regions_under_a_mask(mixture, images):
    """Inpainting by region: outside the mask the picture stays, and what is fused is still told."""
    mask = np.zeros(SIZE)
    mask[4:12] = 1.0
    regions = [tk.Region(m, prompt=k) for k, m in enumerate(soft(width=0.5))]
    asked = {"regions": regions, "mask": mask, "steps": 8, **QUIET}
    run = tk.sample(mixture, images["in"], **asked)
    np.testing.assert_allclose(last(run)[..., :4, :], images["in"][..., :4, :], atol=1e-9)
    assert np.isfinite(run.conflict[:-1, 1:]).all()
    assert (run.seam_gradient[:-1] > 0).all()
    trip = tk.round_trip(mixture, images["in"], solver="obelm", **asked)
    assert float(trip.error.max()) < 1e-9


# --- the record ----


def test_conflict_and_seam_are_their_formulas():
    model, size = PerPixel(), (4, 12)
    left, right = tk.box(0.0, 0.0, 0.5, 1.0, size=size), tk.box(0.5, 0.0, 1.0, 1.0, size=size)
    regions = [tk.Region(0.75 * left, prompt=1, name="left"), tk.Region(right, prompt=2, name="right")]
    run = tk.regional(model, regions, prompt=3, shape=(2, 2, *size), steps=4, **QUIET)
    assert list(run.region.values) == ["base", "left", "right"]
    assert [told["name"] for told in run.attrs["regions"]] == ["left", "right"]
    for row in range(4):
        x, sigma = torch.from_numpy(run.latent[row].values), float(run.sigma[row])
        seen = {k: as_numpy(tk.guide(model, k).denoise(x, sigma).x0) for k in (1, 2, 3)}
        fused = (0.25 * seen[3] + 0.75 * seen[1]) * left + seen[2] * right
        np.testing.assert_allclose(run.denoised[row], fused, rtol=1e-12)
        parts = [(seen[3], slice(0, 6)), (seen[1], slice(0, 6)), (seen[2], slice(6, 12))]
        for k, (opinion, where) in enumerate(parts):
            rms = np.sqrt(np.square(opinion - fused)[..., where].mean((1, 2, 3)))
            np.testing.assert_allclose(run.conflict[row, k], rms, rtol=1e-10, atol=1e-12)
        across, down = np.abs(np.diff(fused, axis=3)), np.abs(np.diff(fused, axis=2))
        # no pixel of the left half is wholly of one region, so all differences there are of the seam
        seam = np.concatenate([across[..., :6].reshape(2, -1), down[..., :6].reshape(2, -1)], axis=1)
        rest = np.concatenate([across[..., 6:].reshape(2, -1), down[..., 6:].reshape(2, -1)], axis=1)
        np.testing.assert_allclose(run.seam_gradient[row], seam.mean(1) / rest.mean(1), rtol=1e-10)
    assert np.isnan(run.conflict[4]).all()


class Sends(TorchDispatchMode):
    """Counts what a GPU would wait for: numbers read from a tensor, and indices that are lists."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_regions_do_not_stop_a_run_on_a_device():
    """Weights are made on the host, whatever asks for them anew; a device without values stands for one."""
    regions = [
        hard(0.0, 0.5, prompt=1, span=(5.0, 0.0)),
        hard(0.5, 1.0, weight=lambda sigma: 1.0 / (1.0 + sigma)),
    ]
    grey = tk.Region(np.linspace(0, 1, 256).reshape(SIZE), prompt=2, differential=True)
    shape, levels = (2, 2, *SIZE), [10.0, 4.0, 1.0, 0.0]
    there, here = (Layout.fit([*regions, grey], shape, device, levels) for device in ("meta", "cpu"))
    for sigma in levels:
        far, near = there.at(sigma), here.at(sigma)
        assert far.present == near.present
        for name in ("w", "asked", "areas", "seams"):
            assert getattr(far, name).is_meta and getattr(far, name).shape == getattr(near, name).shape
    assert here.at(10.0).present == (0, 2, 3) != here.at(4.0).present
    bound = Regional(PerPixel(), here, prompt=3)
    x0 = bound.denoise(torch.randn(shape, dtype=torch.float64), 10.0).x0
    with Sends() as sends:
        told = bound.about(x0)
    assert not {"index_put_", "_local_scalar_dense", "lift_fresh"} & set(sends.seen) and sends.seen
    assert told["conflict"].isnan().all(1).tolist() == [False, True, False, False]


INVERSES = [("euler", "fixed_point"), ("heun", "fixed_point"), ("heun", "defect"), ("euler", "reverse"),
            ("obelm", "algebraic"), ("lms", "offsets")]  # fmt: skip


@pytest.mark.parametrize("solver, inverse", INVERSES)
def test_every_inverse_records_what_it_heard(solver, inverse):
    """Conflict and seam gradient, wherever there is an opinion."""
    model, x = PerPixel(), torch.randn(2, 2, *SIZE, dtype=torch.float64)
    regions = [hard(0.0, 0.5, prompt=1), hard(0.4, 1.0, prompt=2)]
    up = tk.unsample(model, x, solver=solver, inverse=inverse, regions=regions, steps=12, **QUIET)
    heard = up.denoised.notnull().all(("channel", "y", "x"))
    assert heard.sum() >= 8
    np.testing.assert_array_equal(up.conflict[:, 1:].notnull().all("region"), heard)
    np.testing.assert_array_equal(up.seam_gradient.notnull(), heard)


def test_a_seam_shows():
    """Two pictures side by side: the gradient is in the seam, and nowhere else."""
    run = tk.regional(PerPixel((0.0, 0.0, 5.0), (1e-4,) * 3), [hard(0.5, 1.0, prompt=2)],
                      shape=(1, 2, *SIZE), steps=4, **QUIET)  # fmt: skip
    assert float(run.seam_gradient[3, 0]) > 50
    same = tk.regional(PerPixel((0.0, 0.0, 0.0)), [hard(0.5, 1.0, prompt=1, cfg=1.0)],
                       shape=(1, 2, *SIZE), steps=4, **QUIET)  # fmt: skip
    assert 0.2 < float(same.seam_gradient[0, 0]) < 5
    alone = tk.regional(PerPixel(), [hard(0.0, 1.0, prompt=2)], shape=(1, 2, *SIZE), steps=4, **QUIET)
    assert np.isnan(alone.seam_gradient).all()


RUNS = {
    "denoiser": lambda model, save, **kw: tk.regional(
        model,
        thirds(),
        shape=(2, 4, *SIZE),
        prompt=0,
        cfg=2.0,
        solver="dpmpp_2m",
        steps=7,
        save=save,
        **QUIET,
        **kw,
    ),
    "unsample": lambda model, save, **kw: tk.unsample(
        model, torch.ones(1, 4, *SIZE), regions=thirds(), cfg=2.0, steps=7, save=save, **QUIET, **kw
    ),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(
    "kept", [{}, {"every": 3, "what": ["denoised"], "dtype": "float32"}], ids=["all", "few"]
)
def test_a_run_with_regions_goes_on(mixture, name, kept, tmp_path):
    def make(save):
        return RUNS[name](mixture, save)

    make.kept = kept
    goes_on(mixture, make, tmp_path, [1, 3, 6])


def test_a_store_replays_and_says_the_same(mixture, images, tmp_path):
    asked = {"regions": thirds(), "steps": 7, "cfg": 2.0, **QUIET}
    up = tk.unsample(mixture, images["in"], **asked)
    kept = tk.unsample(mixture, images["in"], **asked, save=tk.Save(store=tmp_path / "run.zarr"))
    xr.testing.assert_identical(kept.load(), up)
    back = tk.sample(mixture, start=tk.open(tmp_path / "run.zarr"), **QUIET)
    assert relative(last(back), images["in"].numpy()).max() < 1e-11
    assert back.attrs["bitwise"] is True
    xr.testing.assert_identical(back.region_mask, up.region_mask)
    pytest.importorskip("netCDF4")
    assert tk.open(tk.to_netcdf(up, tmp_path / "run.nc")).identical(up)


@pytest.mark.parametrize("solver", ["euler", "dpm_adaptive"])
def test_a_run_that_stops_has_the_weights_of_its_rows(solver, tmp_path):
    """In memory and in a store; also where the solver chooses its levels."""
    model, store = PerPixel(), tmp_path / "run.zarr"

    def run(**save):
        return tk.regional(model, thirds(prompts=(1, 2, 3)), shape=(1, 2, *SIZE), solver=solver, steps=20,
                           save=tk.Save(**save), **QUIET)  # fmt: skip

    whole = run()
    with pytest.raises(Stop) as caught, cut(model, 9):
        run()
    part = caught.value.dataset
    assert 2 < part.sizes["step"] < whole.sizes["step"]
    for name in ("weight", "region_mask", "conflict"):
        same = (
            whole[name].isel(step=slice(part.sizes["step"] - 1))
            if "step" in whole[name].dims
            else whole[name]
        )
        got = part[name].isel(step=slice(-1)) if "step" in part[name].dims else part[name]
        np.testing.assert_array_equal(got, same)
    stopped(model, 9, lambda: run(store=store))
    reading = tk.open(store)
    assert reading.attrs.pop("stopped") == part.attrs.pop("stopped")
    xr.testing.assert_identical(reading.load(), part)
    xr.testing.assert_identical(run(store=store).load(), whole)


def test_a_store_knows_its_regions(mixture, tmp_path):
    save = tk.Save(store=tmp_path / "run.zarr")

    def run(**options):
        region = tk.Region(options.pop("mask", tk.box(0, 0, 0.5, 1, size=SIZE)), **{"prompt": 1, **options})
        return tk.regional(mixture, [region], steps=4, shape=(1, 4, *SIZE), save=save, **QUIET)

    def scheduled(value):
        return lambda sigma: value

    stopped(mixture, 2, lambda: run(weight=scheduled(0.5)))
    with pytest.raises(ValueError, match="holds another run: inputs weights"):  # of the same name
        run(weight=scheduled(0.25))
    assert "stopped" not in run(weight=scheduled(0.5)).attrs
    save = tk.Save(store=tmp_path / "other.zarr")
    stopped(mixture, 2, run)
    masks = {"mask": tk.box(0, 0, 0.6, 1, size=SIZE)}
    for other, told in ((masks, "inputs regions"), ({"prompt": 2}, "regions"), ({"cfg": 2.0}, "regions"),
                        ({"weight": lambda s: 0.5}, "regions")):  # fmt: skip
        with pytest.raises(ValueError, match=f"holds another run: .*{told}"):
            run(**other)
    assert "stopped" not in run().attrs


def test_a_run_without_regions_says_nothing_of_them(mixture):
    run = tk.sample(mixture, steps=3, shape=(1, 4, *SIZE), **QUIET)
    assert "region" not in run.dims and "regions" not in run.attrs
    assert not {"weight", "conflict", "seam_gradient", "region_mask"} & set(run.data_vars)


# --- masks and weights as they come ----


def test_masks_that_add_up_in_float32_leave_no_base():
    w = torch.softmax(torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(0)), dim=0)
    regions = [tk.Region(m, prompt=k) for k, m in enumerate(w, 1)]
    run = tk.regional(PerPixel(), regions, prompt=3, cfg=2.0, shape=(1, 2, *SIZE), steps=3, **QUIET)
    assert int(run.rows[-1]) == 3 * 4
    half = tk.Region(torch.full(SIZE, 0.5, dtype=torch.bfloat16))
    np.testing.assert_array_equal(half.mask, 0.5)


def test_grey_of_sixteen_bits_and_transparency():
    ramp = np.linspace(0, 65535, 256).reshape(SIZE)
    for pixels, most in ((ramp.astype(np.uint16), 65535), (ramp.astype(np.int32), 65535),
                         ((ramp // 257).astype(np.int32), 255)):  # fmt: skip
        np.testing.assert_allclose(tk.Region(Image.fromarray(pixels)).mask, pixels / most)
    white = np.full((*SIZE, 4), 255, np.uint8)
    np.testing.assert_array_equal(tk.Region(Image.fromarray(white)).mask, 1.0)
    white[:, :8, 3] = 0
    with pytest.raises(ValueError, match=r"^mask='RGBA': .*transparent.*Try: tk\.Region\(image\.convert"):
        tk.Region(Image.fromarray(white))


def test_a_region_that_is_never_asked_says_so():
    model, asked = PerPixel(), {"shape": (1, 2, *SIZE), "steps": 10, **QUIET}
    for options in ({"strength": 0.02}, {"span": (1e4, 1e3)}, {"weight": lambda sigma: 0.0}):
        with pytest.warns(UserWarning, match='region "left" is active at no level of this run'):
            tk.regional(model, [hard(0.0, 0.5, prompt=1, name="left", **options)], **asked)
    tk.regional(model, [hard(0.0, 0.5, prompt=1, weight=0)], **asked)  # who asks for that knows


def test_a_batch_is_as_large_as_its_regions_say(mixture):
    masks = np.random.default_rng(0).random((3, *SIZE))
    for regions in ([tk.Region(masks)], [hard(0, 1, prompt=[0, 1, 2])], [hard(0, 1, negative=[0, 1, 2])]):
        assert tk.regional(mixture, regions, steps=2, **QUIET).sizes["sample"] == 3
    with pytest.raises(ValueError, match=r'^mask=\(2, 16, 16\): of "pair", of shape'):
        tk.regional(mixture, [tk.Region(masks[:2], name="pair"), tk.Region(masks)], steps=2, **QUIET)


def test_weights_may_be_numbers_of_any_kind(mixture):
    asked = {"shape": (1, 4, *SIZE), "steps": 3, **QUIET}
    plain = tk.regional(mixture, [hard(0, 0.5, prompt=1, weight=0.5)], **asked)
    for weight in (lambda s: np.float32(0.5), lambda s: torch.tensor(0.5), lambda s: np.array(0.5)):
        run = tk.regional(mixture, [hard(0, 0.5, prompt=1, weight=weight)], **asked)
        np.testing.assert_array_equal(run.latent, plain.latent)


def test_a_region_is_not_changed_behind_its_back():
    given = np.ones(SIZE)
    region = tk.Region(given)
    given[:] = 0.0
    assert region.mask.min() == 1.0
    with pytest.raises(ValueError, match="read-only"):
        region.mask[0, 0] = 0.0


# --- bad input ----

ONES = np.ones(SIZE)


def spoilt(value: float) -> np.ndarray:
    mask = np.ones(SIZE)
    mask[3, 3] = value
    return mask


BAD = {
    "a mask of zeros": (lambda: [tk.Region(0 * ONES)], "mask", "0 everywhere"),
    "NaN": (lambda: [tk.Region(spoilt(math.nan))], "mask", "nan"),
    "above 1": (lambda: [tk.Region(spoilt(1.5))], "mask", "1.5"),
    "below 0": (lambda: [tk.Region(spoilt(-0.5))], "mask", "-0.5"),
    "bytes": (lambda: [tk.Region(np.full(SIZE, 255, np.uint8))], "mask", "255"),
    "wrong batch": (lambda: [tk.Region(np.ones((3, *SIZE)))], "mask", "(3, 16, 16)"),
    "rank 1": (lambda: [tk.Region(np.ones(4))], "mask", "(4,)"),
    "no pixel": (lambda: [tk.Region(np.ones((0, 4)))], "mask", "(0, 4)"),
    "a list for a mask": (lambda: [tk.Region([[1.0]])], "mask", "list"),
    "complex": (lambda: [tk.Region(ONES * 1j)], "mask", "complex"),
    "no file": (lambda: [tk.Region("no.png")], "mask", "no.png"),
    "no image": (lambda: [tk.Region(__file__)], "mask", "test_regions.py"),
    "dims of another kind": (lambda: [tk.Region(xr.DataArray(ONES, dims=("a", "b")))], "mask", "'a'"),
    "shrunk to nothing": (lambda: [hard(0.4, 0.6, grow=-5)], "grow", "-5"),
    "no region": (list, "regions", "[]"),
    "a region alone": (lambda: tk.Region(ONES), "regions", "Region"),
    "a mask among the regions": (lambda: [ONES], "regions", "1."),
    "an array for a list": (lambda: ONES[0], "regions", "1."),
    "two of one name": (lambda: [tk.Region(ONES, name="a"), tk.Region(ONES, name="a")], "regions", "'a'"),
    "a name that comes by itself": (
        lambda: [tk.Region(ONES, name="region 2"), tk.Region(ONES)],
        "regions",
        "region 2",
    ),
    "base": (lambda: [tk.Region(ONES, name="base")], "name", "base"),
    "a prompt that is not known": (lambda: [tk.Region(ONES, prompt=9)], "prompt", "9"),
    "a prompt of text": (lambda: [tk.Region(ONES, prompt="a horse")], "prompt", "a horse"),
    "a negative that is not known": (lambda: [tk.Region(ONES, negative=9)], "negative", "9"),
    "prompts for three": (lambda: [tk.Region(ONES, prompt=[0, 1, 2])], "prompt", "[0, 1, 2]"),
    "cfg": (lambda: [tk.Region(ONES, cfg=math.nan)], "cfg", "nan"),
    "strength 0": (lambda: [tk.Region(ONES, strength=0)], "strength", "0"),
    "strength 2": (lambda: [tk.Region(ONES, strength=2)], "strength", "2"),
    "noise_strength": (lambda: [tk.Region(ONES, seed=1, noise_strength=-0.1)], "noise_strength", "-0.1"),
    "noise without a seed": (lambda: [tk.Region(ONES, noise_strength=0.5)], "seed", "None"),
    "noise_method": (lambda: [tk.Region(ONES, noise_method="slrp")], "noise_method", "slrp"),
    "seed": (lambda: [tk.Region(ONES, seed=1.5)], "seed", "1.5"),
    "feather": (lambda: [tk.Region(ONES, feather=-1)], "feather", "-1"),
    "grow": (lambda: [tk.Region(ONES, grow="1")], "grow", "'1'"),
    "a span upside down": (lambda: [tk.Region(ONES, span=(0.5, 5.0))], "span", "(0.5, 5.0)"),
    "a span of NaN": (lambda: [tk.Region(ONES, span=(math.nan, 0.0))], "span", "nan"),
    "a span of one": (lambda: [tk.Region(ONES, span=(1.0,))], "span", "(1.0,)"),
    "weight": (lambda: [tk.Region(ONES, weight=-1.0)], "weight", "-1"),
    "a weight that becomes NaN": (lambda: [tk.Region(ONES, weight=lambda s: math.nan)], "weight", "nan"),
    "a weight beyond all numbers": (lambda: [tk.Region(ONES, weight=lambda s: 1e200)], "weight", "1e+200"),
    "a weight that fails": (lambda: [tk.Region(ONES, weight=lambda s: 1 / (s - s))], "weight", "division"),
    "a weight of text": (lambda: [tk.Region(ONES, weight=lambda s: "1")], "weight", "'1'"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("call", ["regional", "unsample", "sample", "replay"])
def test_bad_input(case, call, tmp_path):
    make, argument, shown = BAD[case]
    model, x, store = PerPixel(), torch.ones(2, 2, *SIZE), tmp_path / "run.zarr"
    save = tk.Save(store=store)
    runs = {
        "regional": lambda: tk.regional(model, make(), shape=x.shape, steps=3, save=save, **QUIET),
        "sample": lambda: tk.sample(model, regions=make(), shape=x.shape, steps=3, save=save, **QUIET),
        "unsample": lambda: tk.unsample(model, x, regions=make(), steps=3, save=save, **QUIET),
        "replay": lambda: tk.sample(model, start=up, regions=make(), save=save, **QUIET),
    }
    up = tk.unsample(model, x, steps=3, **QUIET)
    model.asked = 0
    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as caught:
        runs[call]()
    found = re.fullmatch(r"(?s)(\w+)=(.+?): (.+)\. Try: (\S.*)", str(caught.value))
    assert found, str(caught.value)
    assert found[1] == argument
    assert shown in str(caught.value).split(". Try: ")[0]
    assert model.asked == 0
    assert not store.exists()


@pytest.mark.parametrize("given, argument", [
    ({"mode": "stp"}, "mode"), ({"seed": 1.5}, "seed"), ({"save": None}, "save"), ({"steps": 0}, "steps"),
    ({"regions": None}, "regions"), ({"cfg": math.inf}, "cfg"), ({"solver": "eulr"}, "solver"),
    ({"prompt": 9}, "prompt"), ({"start": tk.testing.ladder_dataset()}, "start"),
    ({"shape": (1, 2)}, "shape"), ({"shape": None, "noise": torch.zeros(2, 2)}, "noise"),
    ({"model": tk.denoiser(lambda x, sigma: x)}, "model"), ({"model": tk.guide(PerPixel(), 1)}, "model"),
])  # fmt: skip
def test_bad_arguments_of_regional(given, argument):
    model = PerPixel()
    asked = {"model": model, "regions": [tk.Region(ONES)], "shape": (1, 2, *SIZE), **QUIET, **given}
    with pytest.raises((ValueError, TypeError), match=rf"^{argument}=.*\. Try: \S"):
        tk.regional(**asked)
    assert model.asked == 0


@pytest.mark.parametrize("given", [(0.5, 0, 0.5, 1), (0, 0, 1.1, 1), (0, 0.5, 1, 0.2), (0, 0, math.nan, 1)])
def test_a_box_without_area_is_refused(given):
    with pytest.raises(ValueError, match=r"^(left|right)=.*\. Try: tk\.box"):
        tk.box(*given)


def test_a_record_that_lost_its_regions_says_so(mixture, images):
    up = tk.unsample(mixture, images["in"], regions=thirds(), steps=3, **QUIET)
    with pytest.raises(ValueError, match=r"`region_mask` is gone.*Try: tk\.sample"):
        tk.sample(mixture, start=up.drop_vars("region_mask"), **QUIET)
    scheduled = thirds(weight=lambda sigma: 0.5)
    up = tk.unsample(mixture, images["in"], regions=scheduled, steps=3, **QUIET)
    with pytest.raises(ValueError, match=r"was a function.*Try: tk\.sample"):
        tk.sample(mixture, start=up, **QUIET)
    back = tk.sample(mixture, start=up, regions=scheduled, **QUIET)
    assert relative(last(back), images["in"].numpy()).max() < 1e-11
