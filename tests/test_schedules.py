"""Levels and schedules: reference values, properties, edges, and what the errors say."""

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import toolkit as tk
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
    assert {c[1] for c in covered} == set(NINE) == set(tk.SCHEDULES)
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
    assert list(tk.SCHEDULES) == NINE
    for name in NINE:
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


EPS = LEVELS["eps"]
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
