"""Levels and schedules: reference values, properties, edges, what the errors say, and fits to runs."""

import itertools
import json
import math
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

import toolkit as tk
from toolkit import gits, inputs
from toolkit.schedules import DISCARD_PENULTIMATE, sigmas

# KSampler(...).sigmas of ComfyUI 0.3.64, named <levels>__<schedule>__<steps>__<variant>, and its tables.
REFERENCE = np.load(Path(__file__).parent / "data" / "sigmas.npz")
LEVELS = {
    "eps": tk.Levels.scaled_linear(),
    "eps_zsnr": tk.Levels.scaled_linear(zero_snr=True),
    "edm_0.002_120": tk.Levels.edm(0.002, 120.0),
    "flow_shift1": tk.Levels.flow(shift=1.0),
    "flow_shift3": tk.Levels.flow(shift=3.0),
    "flux_shift1.15": tk.Levels.flux(shift=1.15),
}
CASES = [key for key in REFERENCE.files if not key.endswith("__table")]
PARITY = 2e-6  # relative L2: the reference computes in float32
NINE = ["normal", "karras", "exponential", "sgm_uniform", "simple", "ddim_uniform", "beta"]
NINE += ["linear_quadratic", "kl_optimal"]
AYS = ["ays_sd1", "ays_sdxl", "ays_svd", "ays_sd1_diffusers", "ays_sdxl_diffusers"]
FOR_VE, FOR_FLOW = ["vp", "cosine", "laplace", *AYS], ["dynamic_shift", "bong_tangent", "oss"]
MORE = ["beta57", "polyexponential", *FOR_VE, *FOR_FLOW]

EPS, FLOW = LEVELS["eps"], LEVELS["flow_shift3"]

kinds = pytest.mark.parametrize("kind", LEVELS)
names = pytest.mark.parametrize("name", NINE)


def distance(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize("key", CASES)
def test_reference_values(key):
    kind, name, steps, variant = key.split("__")
    solver = "dpm_2" if variant == "discard_penultimate" else None
    denoise = float(variant.removeprefix("denoise")) if variant.startswith("denoise") else 1.0
    got = sigmas(LEVELS[kind], name, int(steps), solver, denoise)
    assert got.dtype == np.float32
    assert distance(got, REFERENCE[key]) < PARITY


def test_the_reference_covers_all():
    covered = [key.split("__") for key in CASES]
    assert {c[0] for c in covered} == set(LEVELS)
    assert {c[1] for c in covered} == set(NINE) == set(list(tk.SCHEDULES)[:9])
    assert {c[2] for c in covered} >= {"1", "2", "5", "20", "50", "200", "1000"}
    assert {c[3] for c in covered} == {"std", "discard_penultimate", "denoise0.3", "denoise0.5"}


@kinds
def test_tables(kind):
    table = LEVELS[kind].table
    assert table.dtype == np.float32 and not table.flags.writeable
    assert distance(table, REFERENCE[f"{kind}__table"]) < PARITY
    assert LEVELS[kind].sigma_min == table[0] and LEVELS[kind].sigma_max == table[-1]


@kinds
@names
@pytest.mark.parametrize("steps", [2, 3, 37])
def test_every_schedule_falls_from_the_highest_level_to_0(kind, name, steps):
    levels = LEVELS[kind]
    got = tk.SCHEDULES[name](levels, steps)
    assert got[-1] == 0 and (np.diff(got) < 0).all()
    # kl_optimal's float32 arctangent, as upstream has it, misses a maximum of 4,519 by 1.3e-4
    rel = 2e-4 if name == "kl_optimal" else 1e-6
    if name != "ddim_uniform":  # which counts from the second level up
        assert got[0] == pytest.approx(levels.sigma_max, rel=rel)


@kinds
@pytest.mark.parametrize("name", [n for n in NINE if n != "kl_optimal"])
def test_one_step(kind, name):
    got = sigmas(LEVELS[kind], name, 1)
    assert got.shape == (2,) and got[0] > 0 and got[1] == 0


@pytest.mark.parametrize("solver", sorted(DISCARD_PENULTIMATE))
def test_discard_penultimate(solver):
    levels = LEVELS["eps"]
    longer = sigmas(levels, "karras", 11)
    want = np.delete(longer, -2)
    np.testing.assert_array_equal(sigmas(levels, "karras", 10, solver), want)
    np.testing.assert_array_equal(sigmas(levels, "karras", 10, SimpleNamespace(name=solver)), want)
    assert len(want) == 11 and want[-2] > longer[-2]


def test_solvers_that_keep_the_penultimate():
    levels = LEVELS["eps"]
    np.testing.assert_array_equal(sigmas(levels, "karras", 10, "euler"), sigmas(levels, "karras", 10))


def test_denoise_is_the_end_of_a_longer_schedule():
    levels = LEVELS["flow_shift3"]
    np.testing.assert_array_equal(sigmas(levels, "simple", 6, denoise=0.3), sigmas(levels, "simple", 20)[-7:])


def test_a_lowest_level_of_almost_0_is_the_last():
    levels = tk.Levels.edm(1e-6, 10.0)
    got = sigmas(levels, "normal", 5)
    assert len(got) == 6 and got[-1] == pytest.approx(1e-6) and got[-2] > 1e-5


@kinds
def test_time_is_finite_and_keeps_shapes(kind):
    levels = LEVELS[kind]
    grid = np.array([[0.0, 1e-9, levels.sigma_min], [0.5, levels.sigma_max, 10 * levels.sigma_max]])
    time = levels.time(grid)
    assert time.dtype == np.float64 and time.shape == grid.shape
    assert np.isfinite(time).all() and (np.diff(time.ravel()) >= 0).all()
    assert type(levels.time(0.5)) is float and levels.time(0.5) == time[1, 0]
    assert type(levels.sigma(time[1, 0])) is float
    back = levels.sigma(time)
    assert back.dtype == np.float64 and back.shape == grid.shape
    assert (grid == [[0.0, 1e-9, levels.sigma_min], [0.5, levels.sigma_max, 10 * levels.sigma_max]]).all()


@pytest.mark.parametrize("kind", ["eps", "eps_zsnr"])
def test_discrete_clock_is_the_nearest_log_sigma(kind):
    levels = LEVELS[kind]
    log_table = np.log(levels.table.astype(np.float64))
    np.testing.assert_array_equal(levels.time(levels.table), np.arange(1000))
    probes = np.exp(np.random.default_rng(0).uniform(log_table[0] - 1, log_table[-1] + 1, 500))
    nearest = np.abs(np.log(probes)[:, None] - log_table).argmin(axis=1)
    np.testing.assert_array_equal(levels.time(probes), nearest)
    np.testing.assert_allclose(levels.sigma(np.arange(1000)), levels.table, rtol=1e-12)
    half_way = np.exp((log_table[10] + log_table[11]) / 2)
    assert levels.sigma(10.5) == pytest.approx(half_way, rel=1e-12)


def test_clocks_in_closed_form():
    edm, flow, flux = LEVELS["edm_0.002_120"], LEVELS["flow_shift3"], LEVELS["flux_shift1.15"]
    assert edm.time(np.exp(2.0)) == pytest.approx(0.5) and edm.sigma(0.5) == pytest.approx(np.exp(2.0))
    assert edm.time(0.0) == edm.time(edm.sigma_min) == pytest.approx(np.log(0.002) / 4)
    assert flow.time(0.25) == 250.0 and flow.sigma(500.0) == 0.75
    assert flux.time(0.25) == 0.25 and flux.sigma(0.5) == pytest.approx(np.exp(1.15) / (np.exp(1.15) + 1))
    assert flux.sigma(0.0) == 0.0 and flux.sigma(1.0) == 1.0
    # upstream's way: clock and inverse meet only where there is no shift
    assert flow.sigma(flow.time(0.5)) == 0.75
    assert LEVELS["flow_shift1"].sigma(LEVELS["flow_shift1"].time(0.5)) == 0.5


def test_percent():
    flow, eps = LEVELS["flow_shift3"], LEVELS["eps"]
    assert np.float32(flow.percent(0.0001)) == np.float32(0.9999666810)
    assert flow.percent(0.2) == pytest.approx(0.92307692, abs=1e-8)
    assert flow.percent(0.8) == pytest.approx(0.42857143, abs=1e-8)
    assert eps.percent(0.2) == pytest.approx(5.09240770, abs=1e-8)
    assert eps.percent(0.8) == pytest.approx(0.57118889, abs=1e-8)
    edm = LEVELS["edm_0.002_120"]
    assert edm.percent(0.5) == pytest.approx(np.sqrt(0.002 * 120), rel=1e-6)
    assert LEVELS["flux_shift1.15"].percent(0.5) == pytest.approx(1 / (1 + np.exp(-1.15)))


@kinds
def test_percent_beyond_both_ends(kind):
    levels = LEVELS[kind]
    bound = 1.0 if levels.path == tk.FLOW else 999999999.9
    assert levels.percent(0) == levels.percent(-1) == bound
    assert levels.percent(1) == levels.percent(2) == 0.0
    shares = [levels.percent(p) for p in np.linspace(0.01, 0.99, 20)]
    assert (np.diff(shares) < 0).all() and shares[-1] > 0 and shares[0] <= levels.sigma_max


def test_levels_from_betas():
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    for zero_snr in (False, True):
        named = tk.Levels.scaled_linear(zero_snr=zero_snr)
        given = tk.Levels.from_betas(betas, zero_snr=zero_snr)
        np.testing.assert_array_equal(given.table, named.table)
    ddpm = tk.Levels.from_betas(list(np.linspace(1e-4, 0.02, 1000)))
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(ddpm.table, np.sqrt((1 - abar) / abar), rtol=1e-7)
    short = tk.Levels.from_betas(betas[:100])
    assert short.time(short.sigma_max) == 99 and short.percent(0.5) == short.sigma(49.5)


@pytest.mark.parametrize("levels", [*LEVELS.values(), tk.Levels.from_betas([0.1, 0.2])], ids=repr)
def test_levels_are_values(levels):
    json.dumps(levels.describe())
    again = pickle.loads(pickle.dumps(levels))
    assert again == levels and hash(again) == hash(levels) and repr(again) == repr(levels)
    np.testing.assert_array_equal(again.table, levels.table)
    assert sum(levels == other for other in LEVELS.values()) == (levels in LEVELS.values())
    with pytest.raises(AttributeError):
        levels.shift = 2.0
    with pytest.raises(ValueError, match="read-only"):
        levels.table[0] = 1.0


@kinds
def test_repr_is_a_line_to_type(kind):
    assert eval(repr(LEVELS[kind]), {"tk": tk}) == LEVELS[kind]


def test_schedule_is_labelled():
    levels = LEVELS["flow_shift3"]
    ds = tk.schedule(levels, "karras", steps=7, solver="euler", denoise=0.5)
    np.testing.assert_array_equal(ds.sigma, sigmas(levels, "karras", 7, "euler", 0.5).astype(np.float64))
    np.testing.assert_array_equal(ds.timestep, levels.time(ds.sigma.values))
    np.testing.assert_array_equal(ds.alpha, 1 - ds.sigma)
    np.testing.assert_array_equal(ds.log_snr, tk.FLOW.log_snr(ds.sigma.values))
    for name, variable in ds.variables.items():
        assert set(variable.attrs) == {"long_name", "units"}, name
    assert "sigma" not in ds.indexes and ds.sizes == {"step": 8}
    want = {"kind": "schedule", "schedule": "karras", "steps": 7, "solver": "euler", "denoise": 0.5}
    want["options"] = {"rho": 7.0}
    assert ds.attrs == want | {"path": "FLOW", "levels": {"kind": "flow", "shift": 3.0}}
    json.dumps(ds.attrs)


def test_step_size_is_the_change_of_lambda():
    ds = tk.schedule(LEVELS["eps"], "exponential", steps=6)
    even = np.log(LEVELS["eps"].sigma_max / LEVELS["eps"].sigma_min) / 5
    np.testing.assert_allclose(ds.step_size[:-2], even, rtol=1e-6)
    assert ds.step_size[-2] == np.inf and np.isnan(ds.step_size[-1])
    assert tk.schedule(LEVELS["flow_shift3"], "normal", steps=6).step_size[0] == np.inf


def test_repeated_levels_are_hops_of_no_length():
    # `simple` repeats levels beyond the length of the table, also sigma 1, where lambda is -inf on FLOW
    ds = tk.schedule(LEVELS["flow_shift1"], "simple", steps=2500)
    assert len(np.unique(ds.sigma)) == 1001
    assert float(ds.step_size[0]) == 0.0 and int(ds.step_size.isnull().sum()) == 1


def test_a_model_brings_its_levels_and_path():
    model = SimpleNamespace(levels=LEVELS["flow_shift3"], path=tk.FLOW)
    assert tk.schedule(model, "beta", 5).identical(tk.schedule(LEVELS["flow_shift3"], "beta", 5))


@pytest.mark.parametrize(
    "name, steps, count", [("beta", 200, 200), ("ddim_uniform", 1000, 1000), ("ddim_uniform", 30, 32)]
)
def test_a_note_where_the_number_of_levels_differs(name, steps, count):
    ds = tk.schedule(LEVELS["eps"], name, steps)
    assert ds.sizes["step"] == count
    assert f"{count} levels" in ds.attrs["note"] and str(steps + 1) in ds.attrs["note"]


def test_table_of_schedules():
    assert list(tk.SCHEDULES) == [*NINE, *MORE]
    for name in tk.SCHEDULES:
        assert name in repr(tk.SCHEDULES) and f"<td>{name}</td>" in tk.SCHEDULES._repr_html_()
        assert tk.SCHEDULES[name].__doc__.split("\n")[0] in repr(tk.SCHEDULES)


def test_a_schedule_of_ones_own_is_checked(monkeypatch):
    entries = dict(tk.SCHEDULES)
    monkeypatch.setattr(tk.SCHEDULES, "_entries", entries)
    tk.SCHEDULES["mine"] = lambda levels, steps: np.linspace(3, 0, steps + 1)
    assert sigmas(LEVELS["eps"], "mine", 3).tolist() == [3, 2, 1, 0]
    for wrong in ([0.0, 1.0], [np.nan, 0.0], [np.inf, 0.0], [1.0], [[1.0, 0.0]]):
        tk.SCHEDULES["mine"] = lambda levels, steps, wrong=wrong: np.array(wrong)
        with pytest.raises(ValueError, match=r"mine.*finite, falling"):
            sigmas(LEVELS["eps"], "mine", 3)


# --- beyond the nine ----

KINDS = {
    "scaled_linear": tk.Levels.scaled_linear(),
    "edm": tk.Levels.edm(0.002, 120.0),
    "edm to 700": tk.Levels.edm(0.002, 700.0),
    "flow": tk.Levels.flow(),
    "flux": tk.Levels.flux(),
}

# Ten steps, from the papers and the programs they are known from, in the digits that were printed there
TEN = {
    ("ays_sd1", "scaled_linear"): "14.6146 6.4746 3.8637 2.6946 1.8842 1.3944 .9643 .6524 .3977 .1515 0",
    ("ays_sdxl", "scaled_linear"): "14.6146 6.3184 3.7682 2.1812 1.3405 .8621 .5551 .3799 .2332 .1114 0",
    ("ays_svd", "edm to 700"): "700 54.5 15.886 7.977 4.248 1.789 .981 .403 .173 .034 0",
    ("laplace", "scaled_linear"): "14.61 2.12 1.50 1.22 1.06 .94 .82 .67 .47 .029 0",
    ("kl_optimal", "scaled_linear"): "14.61 4.23 2.39 1.60 1.13 .815 .573 .372 .195 .029 0",
    # 0.11746 is also known as .118, which is it rounded twice
    ("bong_tangent", "flow"): "1 .978 .948 .904 .836 .720 .5 .257 .117 .043 0",
    ("bong_tangent", "flux"): "1 .978 .948 .904 .836 .720 .5 .257 .117 .043 0",
    ("dynamic_shift", "flow"): "1 .966 .927 .881 .826 .760 .678 .575 .441 .260 0",
    ("linear_quadratic", "flow"): "1 .995 .99 .985 .98 .975 .932 .813 .618 .347 0",
    ("oss", "flux"): ".9968 .9886 .9819 .975 .966 .9471 .9158 .8287 .5512 .2808 0",
}


def half_a_digit(text: str) -> float:
    """Half a unit of the last digit that is printed: 5e-4 for .260. Whole numbers are meant exactly."""
    return 0.5 * 10.0 ** -len(text.split(".")[1]) if "." in text else 1e-6


@pytest.mark.parametrize("name, kind", TEN)
def test_ten_steps(name, kind):
    got, printed = tk.schedule(KINDS[kind], name, 10).sigma.values, TEN[name, kind].split()
    assert len(got) == len(printed)
    for level, text in zip(got, printed, strict=True):
        assert abs(level - float(text)) <= half_a_digit(text) + 1e-7, text


def test_ten_steps_of_beta57():
    """In shares of the clock: the printed digits are the ppf's, and the table has 1,000 entries."""
    ds = tk.schedule(EPS, "beta57", 10)
    printed = ["1", ".919", ".791", ".646", ".500", ".361", ".238", ".137", ".062", ".016"]
    for time, text in zip(ds.timestep.values[:-1] / 999, printed, strict=True):
        assert abs(time - float(text)) <= half_a_digit(text) + 0.5 / 999


@pytest.mark.parametrize("name", tk.SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50])
def test_every_schedule_on_all_levels(name, kind, steps):
    levels = KINDS[kind]
    wrong = name in (FOR_VE if levels.path == tk.FLOW else FOR_FLOW)
    wrong |= name == "ays_svd" and kind != "edm to 700"
    wrong |= name.endswith("diffusers") and kind != "scaled_linear"
    wrong |= steps == 1 and name in ("kl_optimal", "bong_tangent")
    if wrong:
        with pytest.raises(ValueError, match=r"(?s)^(schedule|steps)=.+: .+\. Try: tk.schedule\("):
            tk.schedule(levels, name, steps)
        return
    got = sigmas(levels, name, steps)
    assert got.dtype == np.float32 and np.isfinite(got).all() and got[-1] == 0 and (np.diff(got) < 0).all()
    # the clock of edm in float32, and kl_optimal's arctangents, miss the ends by their last digits
    assert got[0] <= levels.sigma_max * (1 + (2e-4 if name == "kl_optimal" else 1e-6))
    if levels.path == tk.VE:  # a flow model has levels down to 0, wherever its table starts
        assert got[-2] >= levels.sigma_min * (1 - 1e-6)
    few = name in ("cosine", "laplace", "beta", "beta57", "ddim_uniform")
    assert len(got) == steps + 1 or (few and steps == 50)


@pytest.mark.parametrize("name", MORE)
def test_denoise_and_the_penultimate_of_the_others(name):
    levels = KINDS["flow" if name in FOR_FLOW else "edm to 700" if name == "ays_svd" else "scaled_linear"]
    whole = sigmas(levels, name, 20)
    np.testing.assert_array_equal(sigmas(levels, name, 6, denoise=0.3), whole[-7:])
    np.testing.assert_array_equal(sigmas(levels, name, 19, "dpm_2"), np.delete(whole, -2))


def test_ays_is_what_diffusers_has():
    from diffusers.schedulers import AysSchedules as theirs

    for name, key in (("sd1", "StableDiffusion"), ("sdxl", "StableDiffusionXL")):
        ours = tk.schedule(EPS, f"ays_{name}_diffusers", 10)
        np.testing.assert_allclose(ours.timestep[:-1], theirs[f"{key}Timesteps"])
        np.testing.assert_array_equal(
            ours.sigma[:-1], EPS.sigma(np.array(theirs[f"{key}Timesteps"])).astype("f4")
        )
        np.testing.assert_allclose(ours.sigma, sigmas(EPS, f"ays_{name}", 10), atol=1e-4)
        # their third table, of sigmas, is the one that differs, in its third digit
        gap = abs(ours.sigma.values / np.maximum(theirs[f"{key}Sigmas"], 1e-9) - 1)[:-1].max()
        assert 1e-3 < gap < 2e-2
    svd = sigmas(KINDS["edm to 700"], "ays_svd", 10)
    np.testing.assert_allclose(svd, theirs["StableDiffusionVideoSigmas"], rtol=1e-6)


def test_tables_are_interpolated_in_log_sigma():
    ten, twenty = sigmas(EPS, "ays_sd1", 10), sigmas(EPS, "ays_sd1", 20)
    np.testing.assert_allclose(twenty[:-1:2], ten[:-1], rtol=1e-6)
    np.testing.assert_allclose(twenty[1:-2:2], np.sqrt(ten[:-2] * ten[1:-1]), rtol=1e-6)
    assert twenty[-2] == pytest.approx(math.sqrt(0.1515 * 0.0292), rel=1e-6)
    np.testing.assert_allclose(sigmas(EPS, "ays_sd1", 5)[:-1], ten[:-1:2], rtol=1e-6)
    assert sigmas(KINDS["flow"], "oss", 1).tolist() == [np.float32(0.9968), 0]


def test_ays_walks_the_clock_of_the_levels_it_is_given():
    zero = tk.Levels.scaled_linear(zero_snr=True)
    ds = tk.schedule(zero, "ays_sd1_diffusers", 10)
    assert ds.timestep.values.tolist()[:3] == [999, 850, 736] and float(ds.sigma[0]) == zero.sigma_max


@pytest.mark.parametrize("steps, mu, terminal", [(10, 1.15, None), (28, 0.63, 0.1), (2, -1.0, 0.3)])
@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_dynamic_shift_is_that_of_diffusers(steps, mu, terminal, kind):
    from diffusers import FlowMatchEulerDiscreteScheduler

    mu = abs(mu) if kind == "linear" else mu
    theirs = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, shift_terminal=terminal, time_shift_type=kind
    )
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    got = sigmas(KINDS["flow"], "dynamic_shift", steps, kind=kind, shift=mu, terminal=terminal)
    np.testing.assert_allclose(got, theirs.sigmas.numpy(), atol=1e-6)


def test_dynamic_shift_grows_with_the_image():
    levels = KINDS["flux"]
    t = np.linspace(1, 0.1, 10)
    for tokens, mu in ((256, 0.5), (1024, 0.63), (4096, 1.15)):
        want = math.exp(mu) / (math.exp(mu) + 1 / t - 1)
        np.testing.assert_allclose(sigmas(levels, "dynamic_shift", 10, tokens=tokens)[:-1], want, rtol=1e-6)
    linear = sigmas(levels, "dynamic_shift", 10, kind="linear")
    np.testing.assert_allclose(linear[:-1], 3 * t / (1 + 2 * t), rtol=1e-6)
    assert sigmas(levels, "dynamic_shift", 10, terminal=0.1)[-2] == pytest.approx(0.1)


def test_rho():
    low, high = EPS.sigma_min, EPS.sigma_max
    x = np.linspace(0, 1, 10)
    for rho in (1, 3.0, 7.0, np.float32(10)):
        r = float(rho)
        want = (high ** (1 / r) + x * (low ** (1 / r) - high ** (1 / r))) ** r
        np.testing.assert_allclose(sigmas(EPS, "karras", 10, rho=rho)[:-1], want, rtol=1e-6)
    np.testing.assert_array_equal(sigmas(EPS, "karras", 10, rho=7.0), sigmas(EPS, "karras", 10))
    want = np.exp((1 - x) ** 2 * math.log(high / low) + math.log(low))
    np.testing.assert_allclose(sigmas(EPS, "polyexponential", 10, rho=2)[:-1], want, rtol=1e-6)
    one, plain = sigmas(EPS, "polyexponential", 10), sigmas(EPS, "exponential", 10)
    np.testing.assert_allclose(one, plain, rtol=1e-6)


def test_beta_with_another_shape():
    from scipy.stats import beta

    for a, b in ((0.5, 0.7), (2.0, 0.6), (1, 1.1)):
        index = np.rint(beta.ppf(1 - np.arange(12) / 12, a, b) * 999).astype(int)
        index = np.unique(index)[::-1]
        np.testing.assert_array_equal(sigmas(EPS, "beta", 12, alpha=a, beta=b)[:-1], EPS.table[index])
    np.testing.assert_array_equal(sigmas(EPS, "beta57", 30), sigmas(EPS, "beta", 30, alpha=0.5, beta=0.7))
    np.testing.assert_array_equal(sigmas(EPS, "beta", 30), sigmas(EPS, "beta", 30, alpha=0.6, beta=0.6))


def test_vp():
    """k-diffusion's numbers where the levels reach as far; else uniform in its time, from end to end."""
    t = np.linspace(1.0, 1e-3, 12)
    wide = sigmas(tk.Levels.edm(0.002, 700.0), "vp", 12)
    np.testing.assert_allclose(wide[:-1], np.sqrt(np.exp(19.9 * t**2 / 2 + 0.1 * t) - 1), rtol=1e-6)
    for options in ({}, {"beta_d": 10.0, "beta_min": 0.5}):
        b_d, b_min = options.get("beta_d", 19.9), options.get("beta_min", 0.1)
        narrow = sigmas(EPS, "vp", 12, **options)[:-1].astype(np.float64)
        assert narrow[[0, -1]] == pytest.approx([EPS.sigma_max, EPS.sigma_min], rel=1e-6)
        back = [np.roots([b_d / 2, b_min, -math.log1p(s * s)]).max() for s in narrow]
        np.testing.assert_allclose(np.diff(back), (back[-1] - back[0]) / 11, rtol=1e-3)


def test_cosine_is_clamped_and_has_each_end_once():
    t = np.linspace(1, 0, 50)[1:-1]
    abar = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    inside = np.sqrt(1 / abar - 1)
    inside = inside[(inside > EPS.sigma_min) & (inside < EPS.sigma_max)]
    ds = tk.schedule(EPS, "cosine", 50)
    np.testing.assert_allclose(ds.sigma[1:-2], inside, rtol=1e-6)
    assert ds.sigma.values[[0, -2]].tolist() == [EPS.sigma_max, EPS.sigma_min]
    assert len(inside) == 46 and "49 levels here, not 51" in ds.attrs["note"]
    # abar is 0 at the top: its level is the highest there is, not infinity
    zero = tk.Levels.scaled_linear(zero_snr=True)
    assert sigmas(zero, "cosine", 50)[0] == zero.sigma_max and sigmas(zero, "cosine", 1)[0] == zero.sigma_max


def test_laplace():
    x = np.linspace(0, 1, 21)[1:-1]
    want = np.exp(0.3 - 0.4 * np.sign(0.5 - x) * np.log(1 - 2 * abs(0.5 - x) + 1e-5))
    np.testing.assert_allclose(sigmas(EPS, "laplace", 21, mu=0.3, beta=0.4)[1:-2], want, rtol=1e-6)
    assert [len(sigmas(EPS, "laplace", n)) - n for n in (10, 429, 430)] == [1, 1, 0]


@pytest.mark.parametrize("steps", range(2, 60))
def test_bong_tangent_in_words(steps):
    """From 1 to 0 by way of 1/2, at 0.6 of steps + 2 points; fewest levels where the ramps meet."""
    got = sigmas(KINDS["flow"], "bong_tangent", steps).astype(np.float64)
    middle = math.floor(0.6 * (steps + 2) + 1e-9)
    assert len(got) == steps + 1 and got[0] == 1 and got[middle - 1] == 0.5 and got[-1] == 0
    hops = -np.diff(got)
    assert (np.diff(hops[: middle - 1]) > 0).all() and (np.diff(hops[middle - 1 :]) < 0).all()


def test_options_are_recorded():
    ds = tk.schedule(EPS, "vp", 5, beta_d=np.float64(10))
    assert ds.attrs["options"] == {"beta_d": 10.0, "beta_min": 0.1, "eps_s": 1e-3}
    json.dumps(ds.attrs)
    assert tk.schedule(EPS, "simple", 5).attrs["options"] == {}
    ds = tk.schedule(KINDS["flow"], "dynamic_shift", 5, kind="linear")
    assert ds.attrs["options"] == {"tokens": 4096, "kind": "linear", "shift": None, "terminal": None}
    json.dumps(ds.attrs)


# --- levels of one's own ----


@pytest.mark.parametrize(
    "make", [list, tuple, np.array, torch.tensor, lambda v: xr.DataArray(v, dims="step")]
)
def test_a_list_of_levels_is_labelled(make):
    own = [14.6, 7.0, 1.0, 0.03, 0.0]
    ds = tk.schedule(EPS, make(own), solver="euler")
    np.testing.assert_allclose(ds.sigma, own, rtol=1e-6)
    np.testing.assert_array_equal(ds.timestep, EPS.time(ds.sigma.values))
    want = {"kind": "schedule", "schedule": "given", "steps": 4, "solver": "euler", "denoise": 1.0}
    assert ds.attrs == want | {"options": {}, "path": "VE", "levels": EPS.describe()}
    assert float(ds.step_size[0]) == pytest.approx(math.log(14.6 / 7.0), rel=1e-6)


def test_a_run_takes_the_levels_of_a_schedule_with_options():
    model = tk.GaussianMixture(np.zeros((1, 1, 1, 2, 2)), 0.5)
    grid = tk.schedule(model, "karras", steps=4, rho=5).sigma
    run = tk.sample(model, sigmas=grid, progress=False)
    np.testing.assert_array_equal(run.sigma, grid)
    up = tk.unsample(model, run.latent[-1], sigmas=grid[::-1], progress=False)
    np.testing.assert_array_equal(up.sigma, grid[::-1])
    by_name = tk.sample(model, schedule="laplace", steps=4, progress=False)
    np.testing.assert_array_equal(by_name.sigma, tk.schedule(model, "laplace", 4).sigma)
    rungs = tk.ladder(model, run.latent[-1], schedule="ays_sd1", steps=4, progress=False)
    np.testing.assert_array_equal(rungs.sigma, tk.schedule(model, "ays_sd1", 4).sigma[::-1])


@pytest.mark.parametrize("kind", ["list", "array", "tensor", "DataArray"])
@pytest.mark.parametrize("rising", [True, False])
def test_the_wrong_direction_says_how_to_turn_it(kind, rising):
    falling = tk.schedule(EPS, "karras", 4).sigma
    wrong = {"DataArray": falling, "array": falling.values, "list": falling.values.tolist()}.get(kind)
    if kind == "tensor":
        wrong = torch.from_numpy(falling.values.copy())
    turn = (lambda s: s.flip(0)) if kind == "tensor" else (lambda s: s[::-1])
    wrong = wrong if rising else turn(wrong)
    word, line = ("rising" if rising else "falling"), "flip(0)" if kind == "tensor" else "[::-1]"
    with pytest.raises(ValueError, match=f"(?s)^sigmas=.+: {word}, with at most one 0") as caught:
        inputs.grid(wrong, rising, tk.VE)
    assert str(caught.value).endswith(f"Try: sigmas=sigmas.{line}".replace(".[", "["))
    right = eval(str(caught.value).split("Try: sigmas=")[1], {"sigmas": wrong})
    want = falling.values.tolist()
    assert inputs.grid(right, rising, tk.VE) == (want[::-1] if rising else want)


ERRORS = {
    "misspelt": (lambda: tk.schedule(EPS, "karas"), ValueError, 'Try: tk.schedule.*"karras"'),
    "no name": (lambda: tk.schedule(EPS, None), ValueError, "no such schedule"),
    "list as name": (lambda: tk.schedule(EPS, ["karras"]), ValueError, "no such schedule"),
    "steps float": (lambda: tk.schedule(EPS, steps=3.0), TypeError, "steps=3.0: a whole number"),
    "steps bool": (lambda: tk.schedule(EPS, steps=True), TypeError, "steps=True: a whole number"),
    "steps text": (lambda: tk.schedule(EPS, steps="3"), TypeError, "whole number"),
    "steps 0": (lambda: tk.schedule(EPS, steps=0), ValueError, "steps=0: 1 or more"),
    "steps below": (lambda: tk.schedule(EPS, steps=-5), ValueError, "steps=-5: 1 or more"),
    "steps huge": (lambda: tk.schedule(EPS, steps=10**9), ValueError, "at most 1,000,000"),
    "denoise 0": (lambda: tk.schedule(EPS, denoise=0), ValueError, "denoise=0"),
    "denoise 1.1": (lambda: tk.schedule(EPS, denoise=1.1), ValueError, "denoise=1.1.*1 at most"),
    "denoise nan": (lambda: tk.schedule(EPS, denoise=float("nan")), ValueError, "finite"),
    "denoise tiny": (lambda: tk.schedule(EPS, denoise=1e-9), ValueError, "1e-09"),
    "denoise text": (lambda: tk.schedule(EPS, denoise="all"), TypeError, "denoise='all': a number"),
    "kl_optimal 1": (lambda: tk.schedule(EPS, "kl_optimal", 1), ValueError, "divides by steps - 1.*steps=2"),
    "solver": (lambda: tk.schedule(EPS, solver=3), TypeError, "solver=3"),
    "model": (lambda: tk.schedule(3), TypeError, "model_or_levels=3"),
    "levels": (lambda: tk.schedule(SimpleNamespace(levels=[1, 2])), TypeError, "levels"),
    "no options": (lambda: tk.schedule(EPS, "simple", rho=3), ValueError, "rho=3: simple has no options"),
    "other option": (
        lambda: tk.schedule(EPS, "karras", roh=3),
        ValueError,
        r'no such option.*"karras", rho=',
    ),
    "rho 0": (lambda: tk.schedule(EPS, "karras", rho=0), ValueError, "rho=0: a finite number above 0"),
    "rho text": (lambda: tk.schedule(EPS, "polyexponential", rho="7"), TypeError, "rho='7': a number"),
    "rho tiny": (lambda: tk.schedule(EPS, "karras", rho=1e-9), ValueError, "finite, falling"),
    "rho huge": (lambda: tk.schedule(EPS, "karras", rho=1e300), ValueError, "rho=1e.300: .*1000 at most"),
    "alpha": (lambda: tk.schedule(EPS, "beta", alpha=-1), ValueError, "alpha=-1: a finite"),
    "beta": (lambda: tk.schedule(EPS, "beta", beta=math.nan), ValueError, "beta=nan: a finite"),
    "vp beta": (lambda: tk.schedule(EPS, "vp", beta_d=0), ValueError, "beta_d=0"),
    "vp eps": (lambda: tk.schedule(EPS, "vp", eps_s=1.5), ValueError, "eps_s=1.5.*1 at most"),
    "vp no range": (lambda: tk.schedule(EPS, "vp", eps_s=0.9), ValueError, "eps_s.: 0.9.*no time at which"),
    "laplace": (lambda: tk.schedule(EPS, "laplace", beta=0), ValueError, "beta=0"),
    "laplace mu": (lambda: tk.schedule(EPS, "laplace", mu=None), TypeError, "mu=None: a number"),
    "no flow": (lambda: tk.schedule(EPS, "oss"), ValueError, r'oss.* on VE.*Levels.flow\(\), "oss"'),
    "no VE": (lambda: tk.schedule(FLOW, "ays_sd1"), ValueError, "ays_sd1.* on FLOW.*scaled_linear"),
    "svd": (
        lambda: tk.schedule(EPS, "ays_svd"),
        ValueError,
        r"700 to 0.002.*14.61 to 0.02917.*edm\(0.002, 700.0\)",
    ),
    "svd high": (lambda: tk.schedule(tk.Levels.edm(0.01, 700), "ays_svd"), ValueError, "700 to 0.01"),
    "timesteps": (lambda: tk.schedule(tk.Levels.edm(), "ays_sd1_diffusers"), ValueError, "999 to 0.*1.197"),
    "one step": (lambda: tk.schedule(FLOW, "bong_tangent", 1), ValueError, "steps=1: two or more.*steps=2"),
    "tokens": (lambda: tk.schedule(FLOW, "dynamic_shift", tokens=0), ValueError, "tokens=0: a whole number"),
    "kind": (lambda: tk.schedule(FLOW, "dynamic_shift", kind="linaer"), ValueError, 'kind="linear"'),
    "linear": (lambda: tk.schedule(FLOW, "dynamic_shift", kind="linear", shift=0), ValueError, "shift=0"),
    "mu": (lambda: tk.schedule(FLOW, "dynamic_shift", shift="1"), TypeError, "shift='1': a number"),
    "mu far": (lambda: tk.schedule(FLOW, "dynamic_shift", shift=800), ValueError, "finite, falling"),
    "end": (lambda: tk.schedule(FLOW, "dynamic_shift", terminal=1), ValueError, "terminal=1: below 1"),
    "end 0": (lambda: tk.schedule(FLOW, "dynamic_shift", terminal=0), ValueError, "terminal=0"),
    "end, one": (lambda: tk.schedule(FLOW, "dynamic_shift", 1, terminal=0.1), ValueError, "steps=1.*steps=2"),
    "list rising": (lambda: tk.schedule(EPS, [0, 1, 2]), ValueError, r"falling.*sigmas=sigmas\[::-1\]"),
    "list mixed": (lambda: tk.schedule(EPS, [1, 2, 0]), ValueError, r"falling.*sigmas=\[14.6"),
    "list above": (lambda: tk.schedule(FLOW, [2.0, 1.0, 0.0]), ValueError, "no level above 1"),
    "list short": (lambda: tk.schedule(EPS, [1.0]), ValueError, "two or more"),
    "list empty": (lambda: tk.schedule(EPS, []), ValueError, "two or more"),
    "list of rank 0": (lambda: tk.schedule(EPS, np.array(3.0)), ValueError, "in one dimension"),
    "a number": (lambda: tk.schedule(EPS, np.float64(3.0)), ValueError, "no such schedule"),
    "list of None": (lambda: tk.schedule(EPS, [None, 0.0]), TypeError, "list of numbers"),
    "list denoise": (lambda: tk.schedule(EPS, [1.0, 0.0], denoise=0.5), ValueError, "denoise=0.5.*cut"),
    "list option": (
        lambda: tk.schedule(EPS, [1.0, 0.0], rho=3),
        ValueError,
        "rho=3: an option of a schedule",
    ),
    "shift 0": (lambda: tk.Levels.flow(0), ValueError, r"shift=0: .*above 0.*tk.Levels.flow\(shift=3.0\)"),
    "shift bool": (lambda: tk.Levels.flow(True), TypeError, "shift=True: a number"),
    "shift text": (lambda: tk.Levels.flux("1.15"), TypeError, "shift='1.15': a number"),
    "shift inf": (lambda: tk.Levels.flux(float("inf")), ValueError, "shift=inf: a finite number"),
    "shift far": (lambda: tk.Levels.flux(-800.0), ValueError, "rising in float32"),
    "shift far up": (lambda: tk.Levels.flux(800), ValueError, "rising in float32"),
    "edm 0": (lambda: tk.Levels.edm(0.0, 1.0), ValueError, "sigma_min=0.0"),
    "edm swapped": (lambda: tk.Levels.edm(120.0, 0.002), ValueError, "sigma_max=0.002: .*above 120"),
    "edm tiny": (lambda: tk.Levels.edm(1e-300, 1.0), ValueError, "positive, finite"),
    "betas none": (lambda: tk.Levels.from_betas(None), ValueError, "betas=None"),
    "betas text": (lambda: tk.Levels.from_betas(["a", "b"]), TypeError, "betas="),
    "betas one": (lambda: tk.Levels.from_betas([0.1]), ValueError, "two or more"),
    "betas 2-D": (lambda: tk.Levels.from_betas([[0.1, 0.2]]), ValueError, "one dimension"),
    "betas rescaled": (lambda: tk.Levels.from_betas([0.1, 1.0]), ValueError, "zero_snr=True"),
    "betas nan": (lambda: tk.Levels.from_betas([0.1, float("nan")]), ValueError, "between 0 and 1"),
    "zero_snr": (lambda: tk.Levels.scaled_linear(1), TypeError, "zero_snr=1: True or False"),
    "percent": (lambda: EPS.percent("0.2"), ValueError, r"p='0.2'.*levels.percent\(0.2\)"),
    "percent nan": (lambda: EPS.percent(float("nan")), ValueError, "p=nan"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    call, kind, text = ERRORS[case]
    with pytest.raises(kind, match=text) as caught:
        call()
    assert "Try: " in str(caught.value)


# --- schedules fitted to a run ----


@pytest.fixture(scope="module", params=["VE", "FLOW"])
def fine(request, reference):
    """A mixture on each path, and 60 steps of Heun on it for four prompts."""
    std, weights = float(reference["mix_within_std"]), reference["mix_weights"]
    path = {"VE": tk.VE, "FLOW": tk.FLOW}[request.param]
    model = tk.GaussianMixture(reference["mix_means"], std, weights, path)
    return model, tk.sample(model, prompt=[0, 1, 2, 3], solver="heun", steps=60, progress=False)


def euler_error(model, run, levels) -> float:
    """Relative distance of Euler over `levels`, from the run's start, from the run's end."""
    kw = {"prompt": run.attrs["prompt"], "add_noise": False, "progress": False}
    got = tk.sample(model, run.latent[0], sigmas=levels, **kw)
    return float(np.linalg.norm(got.latent[-1] - run.latent[-1]) / np.linalg.norm(run.latent[-1]))


@pytest.mark.parametrize("steps", [4, 8])
def test_euler_is_nearer_on_the_fitted_levels(fine, steps):
    model, run = fine
    fitted = tk.fit_schedule(run, steps)
    assert fitted.sizes["step"] == steps + 1
    error = euler_error(model, run, fitted.sigma)
    for name in ("karras", "normal"):
        assert error < euler_error(model, run, tk.schedule(model, name, steps).sigma)


def test_the_cost_of_a_hop_is_what_euler_misses(fine):
    model, run = fine
    cost = gits.costs(run)
    for i, j in ((0, 20), (10, 11), (35, 60)):
        hop = tk.sample(model, run.latent[i], sigmas=run.sigma[[i, j]], add_noise=False,
                        prompt=run.attrs["prompt"], progress=False)  # fmt: skip
        missed = hop.latent[-1].values - run.latent[j].values
        assert cost[i, j] == pytest.approx(np.sqrt((missed**2).mean(axis=(1, 2, 3))).mean(), rel=1e-9)
    assert np.isinf(cost[np.tril_indices(len(cost))]).all()


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("coefficient", [0.8, 1.0, 1.3])
def test_the_least_of_all_choices(steps, coefficient):
    cost = np.random.default_rng(3).uniform(size=(9, 9))
    cost[np.tril_indices(9)] = np.inf

    def total(rows):
        return sum(coefficient**k * cost[i, j] for k, (i, j) in enumerate(itertools.pairwise(rows)))

    best = min(([0, *rows, 8] for rows in itertools.combinations(range(1, 8), steps - 1)), key=total)
    rows, least = gits.shortest(cost, steps, coefficient)
    assert rows == best and least == pytest.approx(total(best))


def test_a_fitted_schedule_is_labelled(fine):
    _model, run = fine
    fitted, like = tk.fit_schedule(run, 6, coefficient=1.2), tk.schedule(_model, "karras", 6)
    assert {n: v.dims for n, v in fitted.variables.items()} == {n: v.dims for n, v in like.variables.items()}
    assert all(fitted[name].attrs == like[name].attrs for name in like.variables)
    rows = fitted.attrs["rows"]
    assert rows[0] == 0 and rows[-1] == 60 and len(rows) == 7
    for name in ("sigma", "timestep", "alpha", "log_snr"):
        np.testing.assert_array_equal(fitted[name], run[name][rows])
    assert fitted.step.values.tolist() == list(range(7)) and fitted.attrs["options"] == {"coefficient": 1.2}
    assert set(fitted.attrs) == {*like.attrs, "cost", "rows"} and fitted.attrs["schedule"] == "gits"
    json.dumps(fitted.attrs)
    np.testing.assert_array_equal(tk.fit_schedule(run, 60).sigma, run.sigma)
    assert tk.fit_schedule(run, 1).sigma.values.tolist() == run.sigma.values[[0, -1]].tolist()


def test_a_straight_trajectory_costs_nothing():
    model = tk.denoiser(lambda x, sigma: torch.ones_like(x))
    run = tk.sample(model, shape=(1, 1, 2, 2), steps=12, progress=False)
    assert tk.fit_schedule(run, 3).attrs["cost"] == pytest.approx(0, abs=1e-12)


def test_runs_that_rise_or_are_thinned_or_have_no_opinions():
    model = tk.load()
    latent = model.encode(tk.assets.digits()[0][0])
    up = tk.unsample(model, latent, solver="heun", inverse="reverse", prompt=0, steps=20, progress=False)
    fitted = tk.fit_schedule(up, 5)
    assert (np.diff(fitted.sigma) < 0).all() and set(fitted.sigma.values) <= set(up.sigma.values)
    run = tk.sample(model, prompt=0, steps=20, save=tk.Save(every=3), progress=False)
    kept = {float(s) for s in run.sigma[[0, 3, 6, 9, 12, 15, 18, 20]]}
    assert {float(s) for s in tk.fit_schedule(run, 5).sigma} <= kept
    with pytest.raises(ValueError, match="at most the 7 hops"):
        tk.fit_schedule(run, 8)
    bare = tk.sample(model, prompt=0, steps=20, progress=False).drop_vars("denoised")
    assert tk.fit_schedule(bare, 5).sizes["step"] == 6


GITS_ERRORS = {
    "no run": (lambda run: tk.fit_schedule(3), TypeError, "run=3"),
    "ladder": (lambda run: tk.fit_schedule(tk.testing.ladder_dataset()), ValueError, "sample or an unsample"),
    "no latents": (lambda run: tk.fit_schedule(run.drop_vars("latent")), ValueError, "with its latents"),
    "normalised": (lambda run: tk.fit_schedule(tk.normalized(run, "global")), ValueError, "raw states"),
    "empty": (lambda run: tk.fit_schedule(run.isel(step=[0])), ValueError, "two or more rows"),
    "steps 0": (lambda run: tk.fit_schedule(run, 0), ValueError, "steps=0"),
    "steps many": (lambda run: tk.fit_schedule(run, 21), ValueError, "at most the 20 hops"),
    "steps float": (lambda run: tk.fit_schedule(run, 3.0), TypeError, "whole number"),
    "coefficient": (lambda run: tk.fit_schedule(run, 3, coefficient=0), ValueError, "coefficient=0"),
}


@pytest.mark.parametrize("case", GITS_ERRORS)
def test_errors_of_the_fit(case):
    call, kind, text = GITS_ERRORS[case]
    with pytest.raises(kind, match=text) as caught:
        call(tk.testing.unsample_dataset(steps=20))
    assert "Try: " in str(caught.value)
