"""Regions with solvers of their own: step mode equals what it must, and keeps every region's history."""

import numpy as np
import pytest
import torch
import xarray as xr
from test_regions import SIZE, PerPixel, far, hard, last, soft, thirds
from test_resume import goes_on

import toolkit as tk
from toolkit.children import stepwise
from toolkit.composites import Regional
from toolkit.layouts import Layout
from toolkit.noise import Keyed
from toolkit.roundtrip import relative

QUIET = {"progress": False}
STEPPED = [n for n, s in tk.SOLVERS.items() if not (s.reversible or s.own_grid or s.adaptive)]
REFUSED = [n for n in tk.SOLVERS if n not in STEPPED]


def step(model, regions, **asked) -> xr.Dataset:
    return tk.regional(model, regions, mode="step", **{"shape": (1, 4, *SIZE), "steps": 7, **asked}, **QUIET)


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_one_region_that_covers_all_equals_none(mixture, name, cfg):
    asked = {"solver": name, "cfg": cfg, "steps": 7, "seed": 4, "shape": (2, 4, *SIZE)}
    plain = tk.sample(mixture, prompt=[1, 3], negative=4, **asked, **QUIET)
    covered = step(mixture, [tk.Region(np.ones((5, 7)), prompt=[1, 3], negative=4)], **asked)
    assert far(covered, plain) < 1e-12
    np.testing.assert_array_equal(covered.rows, plain.rows)
    np.testing.assert_array_equal(covered.nfe, plain.nfe)
    np.testing.assert_allclose(covered.denoised, plain.denoised, rtol=1e-12, atol=1e-12)
    own = tk.Region(np.ones((5, 7)), prompt=[1, 3], negative=4, cfg=cfg, solver=name)
    grid = {**asked, "sigmas": plain.sigma.values}  # a schedule would be cut by the name of the base's solver
    assert far(step(mixture, [own], **{**grid, "solver": "euler", "cfg": 2.0}), plain) < 1e-12


@pytest.mark.parametrize("name", STEPPED)
def test_equal_regions_equal_one_in_any_order(mixture, name):
    asked = {"solver": name, "cfg": 3.0, "seed": 2}
    plain = tk.sample(mixture, prompt=2, shape=(1, 4, *SIZE), steps=7, **asked, **QUIET)
    split = step(mixture, thirds((2, 2, 2)), **asked)
    assert far(split, plain) < 1e-10  # stages at a level of their own differ in their last bits
    some = [hard(0.1, 0.5, prompt=1, name="a", seed=5, noise_strength=0.6),
            hard(0.4, 0.9, prompt=2, name="b", solver="heun", cfg=1.0),
            hard(0.3, 0.7, prompt=3, negative=1, strength=0.7, name="c")]  # fmt: skip
    a, b = (step(mixture, given, **asked) for given in (some, some[::-1]))
    assert far(a, b) < 1e-10
    assert far(a, tk.regional(mixture, some[:1], shape=(1, 4, *SIZE), steps=7, **asked, **QUIET)) > 1e-3


@pytest.mark.parametrize("path", [tk.VE, tk.FLOW], ids=str)
def test_each_region_is_its_own_run(path):
    """Pixels that belong to one region alone are, bit for bit, those of a run with its solver and seed."""
    model, shape = PerPixel(path=path), (2, 2, *SIZE)
    regions = [hard(0.0, 0.25, prompt=1, cfg=2.0, solver="dpmpp_2m", name="a"),
               hard(0.25, 0.5, prompt=2, solver="dpmpp_sde", seed=7, noise_strength=1.0, name="b"),
               hard(0.5, 0.75, prompt=3, solver="lms", negative=1, cfg=3.0, name="c")]  # fmt: skip
    run = step(model, regions, shape=shape, solver="heun", prompt=0, seed=1, schedule="karras", steps=9)
    alone = [({"prompt": 1, "cfg": 2.0, "solver": "dpmpp_2m", "seed": 1}, slice(0, 4)),
             ({"prompt": 2, "solver": "dpmpp_sde", "seed": 7}, slice(4, 8)),
             ({"prompt": 3, "negative": 1, "cfg": 3.0, "solver": "lms", "seed": 1}, slice(8, 12)),
             ({"prompt": 0, "solver": "heun", "seed": 1}, slice(12, 16))]  # fmt: skip
    for asked, where in alone:
        one = tk.sample(model, shape=shape, schedule="karras", steps=9, **asked, **QUIET)
        np.testing.assert_allclose(run.latent[..., where], one.latent[..., where], rtol=1e-12, atol=1e-12)
    assert [told["solver"] for told in run.attrs["regions"]] == ["dpmpp_2m", "dpmpp_sde", "lms"]
    assert run.attrs["mode"] == "step"


def test_models_are_asked_in_one_batch_where_levels_agree(mixture):
    """heun asks at s and at t, dpmpp_2m and lms at s, where they share a row: their condition is the same."""
    a, b, c = soft()
    regions = [tk.Region(a, prompt=1, solver="heun"), tk.Region(b, prompt=2, solver="dpmpp_2m"),
               tk.Region(c, prompt=2, solver="lms")]  # fmt: skip
    run = step(mixture, regions, steps=5)
    np.testing.assert_array_equal(run.nfe, [0, 2, 4, 6, 8, 9])  # the last hop of heun is Euler's
    np.testing.assert_array_equal(run.rows, [0, 3, 6, 9, 12, 14])
    guided = step(mixture, regions, steps=5, cfg=1.5)
    np.testing.assert_array_equal(guided.nfe, run.nfe)
    np.testing.assert_array_equal(guided.rows, [0, 5, 10, 15, 20, 23])
    covering = step(mixture, thirds(), steps=5, cfg=1.5, solver="heun")
    first, second = 4, 6  # at t each has a state of its own, and an unconditional one there
    np.testing.assert_array_equal(covering.rows, np.cumsum([0, *[first + second] * 4, first]))
    with_seeds = step(mixture, regions, steps=5, cfg=1.5, solver="dpmpp_sde")
    assert (with_seeds.conflict[:-1, 1:] > 0).all()
    np.testing.assert_allclose(with_seeds.weight.sum("region"), 1.0, atol=1e-14)


LEVELS = 10


def karras() -> list[float]:
    ramp, low, high = np.linspace(0, 1, LEVELS), 0.03 ** (1 / 7), 15.0 ** (1 / 7)
    return [*((high + ramp * (low - high)) ** 7).tolist(), 0.0]


@pytest.mark.parametrize("name, most", [("dpmpp_2m", 0.45), ("lms", 0.45), ("ipndm", 0.22)])
def test_history_is_kept(name, most):
    """Two soft regions: error against the truth, over that of a run whose past is dropped at every step."""
    model, shape = PerPixel((-1.0, 2.0), (0.1, 0.3)), (1, 2, 8, 32)
    w = np.tile(1 / (1 + np.exp(-(np.arange(32) - 16.0) / 2)), (8, 1))
    regions = [tk.Region(1 - w, prompt=0), tk.Region(w, prompt=1)]
    fused = Regional(model, Layout.fit(regions, shape, "cpu", karras()))
    ratios = []
    for seed in range(20):
        x = 15.0 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        fine = [*np.geomspace(15.0, 0.03, 400), 0.0]
        *_, truth = tk.steps(fused, tk.solver("heun"), x, fine)
        kept = tk.regional(
            model, regions, x, mode="step", solver=name, sigmas=karras(), add_noise=False, **QUIET
        )
        state, dropping = x, stepwise(name, regions, 0)
        for i in range(LEVELS):  # the past is dropped
            *_, hop = tk.steps(fused, dropping, state, karras(), start=i, stop=i + 1)
            state = hop.x_next
        dropped = (state - truth.x_next).abs().max()
        ratios.append(np.abs(last(kept) - truth.x_next.numpy()).max() / float(dropped))
    assert np.median(ratios) <= most


def test_a_region_that_joins_late_begins_without_a_past():
    """From hop 5 of 10 on it is a run of its solver from the state there; before, all is the base's."""
    model = PerPixel()
    sigmas = tk.schedule(model, "karras", steps=10).sigma.values.tolist()
    asked = {"shape": (1, 2, *SIZE), "sigmas": sigmas, "solver": "lms"}
    run = step(model, [hard(0.0, 0.5, prompt=1, strength=0.5)], prompt=3, **asked)
    plain = tk.sample(model, prompt=3, **asked, **QUIET)
    np.testing.assert_array_equal(run.latent[:6], plain.latent[:6])
    joined = tk.sample(model, run.latent[5].values, prompt=1, sigmas=sigmas[5:], solver="lms",
                       add_noise=False, **QUIET)  # fmt: skip
    np.testing.assert_allclose(run.latent[5:, ..., :8], joined.latent[..., :8], rtol=1e-12)
    np.testing.assert_array_equal(run.latent[..., 8:], plain.latent[..., 8:])
    gap = hard(0.0, 0.5, prompt=1, weight=lambda sigma: float(not sigmas[6] < sigma < sigmas[2]))
    run = step(model, [gap], prompt=3, **asked)
    again = tk.sample(model, run.latent[6].values, prompt=1, sigmas=sigmas[6:], solver="lms",
                      add_noise=False, **QUIET)  # fmt: skip
    np.testing.assert_allclose(run.latent[6:, ..., :8], again.latent[..., :8], rtol=1e-12)
    span = step(model, [hard(0.0, 0.5, prompt=1, span=(sigmas[2], sigmas[6]))], prompt=3, **asked)
    assert (span.weight[:, 1, 0, 0] > 0).values.tolist() == [2 <= i <= 6 for i in range(11)]


def test_draws_of_regions_are_unit_where_masks_mix():
    """The last noise of an SDE hop of regions of three seeds, from states that differ by the draws alone."""
    many = (3000, 4, 2, 8)
    masks = np.random.default_rng(2).random((3, *many[2:]))
    regions = [tk.Region(m, prompt=1, seed=s) for s, m in zip((5, 6, None), masks, strict=True)]
    layout = Layout.fit(
        [r if r.seed else tk.Region(r.mask, prompt=1) for r in regions], many, "cpu", [1.0, 0.5]
    )
    like = torch.zeros(many, dtype=torch.float64)
    draw = layout.draws(Keyed(0, many).at(3), 0, 3, 1.0, like)
    first, second = draw(1.0, 0.5), draw(1.0, 0.5)
    for drawn in (first, second):
        assert (drawn.std((0, 1)) - 1.0).abs().max() < 0.02
    assert abs(float((first * second).mean())) < 0.01
    w = layout.at(1.0).w[:, 0, 0]
    corr = (first * Keyed(5, many).draw(3, 0)).mean((0, 1))
    want = w[1] / torch.sqrt(w[1] ** 2 + w[2] ** 2 + (w[0] + w[3]) ** 2)
    assert (corr - want).abs().max() < 0.05


@pytest.mark.parametrize(
    "kept", [{}, {"every": 3, "what": ["denoised"], "dtype": "float32"}], ids=["all", "few"]
)
@pytest.mark.parametrize("solver", ["dpmpp_3m_sde", "uni_pc", "deis"])
def test_a_run_in_step_mode_goes_on(mixture, solver, kept, tmp_path):
    def make(save):
        regions = [
            *thirds(),
            hard(0.2, 0.6, solver="lms", seed=3, noise_strength=0.5, strength=0.6, name="late"),
        ]
        return step(mixture, regions, solver=solver, cfg=2.0, save=save)

    make.kept = kept
    goes_on(mixture, make, tmp_path, [1, 3, 5, 6])


@pytest.mark.parametrize("name", REFUSED)
def test_solvers_that_cannot_are_refused(name):
    model = PerPixel()
    for regions, base in (([hard(0, 1, solver=name)], "euler"), ([hard(0, 1)], name)):
        with pytest.raises(ValueError, match=rf"^solver='{name}': .*\. Try: tk\.regional"):
            step(model, regions, solver=base, shape=(1, 2, *SIZE))
    assert model.asked == 0


def test_own_solvers_are_for_step_mode_alone():
    model, regions = PerPixel(), [hard(0, 1, solver="heun")]
    asked = {"shape": (1, 2, *SIZE), **QUIET}
    for call in (lambda: tk.regional(model, regions, **asked),
                 lambda: tk.sample(model, regions=regions, **asked),
                 lambda: tk.unsample(model, torch.ones(1, 2, *SIZE), regions=regions, **QUIET)):  # fmt: skip
        with pytest.raises(
            ValueError, match=r"^solver='heun': .*Try: tk\.regional\(model, regions, mode=\"step\"\)"
        ):
            call()
    with pytest.raises(ValueError, match=r"^solver='hun'"):
        step(model, [hard(0, 1, solver="hun")], shape=(1, 2, *SIZE))
    assert model.asked == 0


def test_both_modes_aim_at_the_same_image():
    """With fine steps of the same solver they solve the same ODE."""
    model = PerPixel()
    regions = [tk.Region(m, prompt=k) for k, m in enumerate(soft())]
    gaps = []
    for steps in (20, 80):
        asked = {"shape": (1, 2, *SIZE), "schedule": "karras", "steps": steps, "solver": "heun"}
        a, b = step(model, regions, **asked), tk.regional(model, regions, **asked, **QUIET)
        gaps.append(relative(last(a), last(b)).max())
    assert gaps[1] < 0.3 * gaps[0] < 0.1
