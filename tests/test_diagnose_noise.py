"""The noise of a rung: known fields, SciPy on every row, the original plots, plain against textured areas."""

import numpy as np
import pytest
import scipy.stats
import xarray as xr
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st

import toolkit as tk
from toolkit.dataset import LATENT, label, latent_coordinates, rung_coordinates

D = tk.diagnostics
CASES = ("normal__10", "karras__50")


def run(latent, sigma, path=tk.VE, **attrs):
    """A Dataset of the schema with this latent (step, sample, channel, y, x) at these levels."""
    levels = tk.Levels.flow() if path == tk.FLOW else tk.Levels.scaled_linear()
    coordinates = rung_coordinates(sigma, levels, path) | latent_coordinates(latent.shape[1:])
    facts = {"kind": "ladder", "path": path.name, "latent_space": "model"}
    return label({"latent": latent}, coordinates, facts | attrs)


def mixed(noise, clean, sigma, path=tk.VE, **attrs):
    """A ladder of this image and noise, (step, sample, channel, y, x)."""
    rows = [path.mix(clean, n, s) for n, s in zip(noise, sigma, strict=True)]
    return run(np.stack(rows), np.asarray(sigma, float), path, **attrs)


def white(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.fixture(scope="module")
def measured():
    with np.load(DATA / "ladder_statistics.npz") as data:
        return dict(data)


def peers(measured, case):
    """The ladder that the original nodes were asked about, as a Dataset."""
    return run(measured[f"{case}__z_for_stats"][:, None], measured[f"{case}__sigmas"].astype(float))


# --- residual_noise ----


@pytest.mark.parametrize("path", [tk.VE, tk.FLOW])
def test_noise_comes_back(path):
    sigma, clean = [0.0, 0.1, 0.6, 1.0], white(3, 2, 5, 7, seed=1)
    noise = white(4, 3, 2, 5, 7)
    ds = mixed(noise, clean, sigma, path)
    found = D.residual_noise(ds).noise
    assert found.dims == LATENT and found.dtype == np.float64
    assert found[0].isnull().all()
    np.testing.assert_allclose(found[1:], noise[1:], atol=1e-13)
    np.testing.assert_array_equal(D.residual_noise(ds, x0=clean).noise, found)
    labelled = xr.DataArray(clean, dims=LATENT[1:]).transpose("x", "channel", "y", "sample")
    np.testing.assert_array_equal(D.residual_noise(ds.isel(step=[1, 3]), x0=labelled).noise, found[[1, 3]])


def test_float32_stays_float32_and_is_not_written_to():
    ds = mixed(white(3, 1, 2, 8, 8), white(1, 2, 8, 8, seed=1), [0.0, 0.5, 2.0])
    small, before = ds.assign(latent=ds.latent.astype(np.float32)), ds.latent.values.copy()
    found, exact = D.residual_noise(small).noise, D.residual_noise(ds).noise
    assert found.dtype == np.float32 and exact.dtype == np.float64
    np.testing.assert_allclose(found[1:], exact[1:], atol=5e-6)
    np.testing.assert_array_equal(ds.latent, before)


def test_vae_space_is_the_same_noise():
    ds = mixed(white(3, 2, 4, 8, 8), white(2, 4, 8, 8, seed=1), [0.0, 0.5, 2.0])
    ds = ds.assign_attrs(latent_scale=0.18215, latent_shift=0.1)
    vae = tk.in_space(ds, "vae")
    want = D.residual_noise(ds)
    np.testing.assert_allclose(D.residual_noise(vae).noise, want.noise, atol=1e-12)
    # an x0 is in the space of the run it is given with
    given = D.residual_noise(vae.isel(step=[1, 2]), x0=vae.latent[0].values).noise
    np.testing.assert_allclose(given, want.noise[1:], atol=1e-12)
    assert D.residual_noise(vae).attrs["latent_space"] == "model"
    np.testing.assert_allclose(D.normality(vae).shapiro_w, D.normality(ds).shapiro_w, atol=1e-10)


def test_rows_that_were_not_written():
    ds = mixed(white(4, 1, 2, 8, 8), white(1, 2, 8, 8, seed=1), [0.0, 0.5, 1.0, 2.0])
    ds.latent[2] = np.nan
    ds.latent[3, 0, 0, 0, 0] = np.inf
    assert D.residual_noise(ds).noise[2].isnull().all()
    tests = D.normality(ds)
    assert all(
        np.isfinite(tests[name][1]).all() and tests[name][2:].isnull().all() for name in tests.data_vars
    )
    areas = D.texture_error(ds, white(1, 2, 8, 8), quantile=0.5)
    assert np.isfinite(areas.error_plain[1]).all() and areas.error_plain[2].isnull().all()
    ds.latent[0] = np.nan  # the clean row itself
    for found in (D.residual_noise(ds), D.normality(ds), D.texture_error(ds, quantile=0.5)):
        numbers = [v for v in found.data_vars.values() if "step" in v.dims]
        assert numbers and all(v.isnull().all() for v in numbers)


# --- normality, and moments of whole rows ----


@pytest.mark.parametrize("case", CASES)
def test_numbers_of_the_original_plot(measured, case):
    ds = peers(measured, case)
    tests, whole = D.normality(ds, of="latent"), D.moments(ds, per="sample")
    np.testing.assert_allclose(tests.shapiro_p[:, 0], measured[f"{case}__stats_shapiro_p"], rtol=1e-9)
    # theirs are sums in float32
    np.testing.assert_allclose(whole["mean"][:, 0], measured[f"{case}__stats_mean"], atol=2e-7)
    np.testing.assert_allclose(whole["std"][:, 0], measured[f"{case}__stats_std_population"], rtol=2e-7)


@pytest.mark.parametrize("per", ["sample", "channel"])
@pytest.mark.parametrize("draw", ["normal", "uniform", "exponential"])
def test_equal_to_scipy_on_every_row(draw, per):
    ds = run(getattr(np.random.default_rng(2), draw)(size=(3, 2, 3, 9, 11)), [0.5, 1.0, 2.0])
    found = D.normality(ds, of="latent", per=per)
    assert found.shapiro_w.dims == ("step", "sample", "channel")[: 3 if per == "channel" else 2]
    rows = ds.latent.values.reshape(*found.shapiro_w.shape, -1)
    for place in np.ndindex(found.shapiro_w.shape):
        w, p = scipy.stats.shapiro(rows[place])
        assert found.shapiro_w.values[place] == w and found.shapiro_p.values[place] == p
        d, p = scipy.stats.kstest(rows[place], "norm")
        np.testing.assert_allclose(found.ks_d.values[place], d, rtol=1e-12)
        np.testing.assert_allclose(found.ks_p.values[place], p, rtol=1e-9)


def test_whole_rows_equal_scipy():
    ds = tk.testing.unsample_dataset(samples=2)
    found, rows = D.moments(ds, per="sample"), ds.latent.values.reshape(21, 2, -1)
    assert all(v.dims == ("step", "sample") for v in found.data_vars.values())
    np.testing.assert_allclose(found["mean"], rows.mean(-1), rtol=1e-12)
    np.testing.assert_allclose(found["std"], rows.std(-1), rtol=1e-12)
    np.testing.assert_allclose(found["skewness"], scipy.stats.skew(rows, axis=-1), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found["kurtosis"], scipy.stats.kurtosis(rows, axis=-1), rtol=1e-10)
    np.testing.assert_allclose(found["expected_std"], np.hypot(rows[0].std(-1), ds.sigma.values[:, None]))


def test_moments_in_vae_space_count_where_sigma_does():
    ds = tk.testing.ladder_dataset(samples=2).assign_attrs(latent_scale=0.18215, latent_shift=0.1)
    found, want = D.moments(tk.in_space(ds, "vae")), D.moments(ds)
    for name in want.data_vars:
        np.testing.assert_allclose(found[name], want[name], rtol=1e-4, atol=1e-5)  # float32 there and back


def test_normal_noise_passes_and_other_noise_does_not():
    rows, shape = 200, (200, 1, 4, 16, 16)
    clean, sigma = white(1, 4, 16, 16, seed=1), np.linspace(0.1, 5, rows)
    good = D.normality(mixed(white(*shape), clean, sigma), x0=clean)
    for name in ("shapiro_p", "ks_p"):
        # p of a true hypothesis is uniform
        assert scipy.stats.kstest(good[name].values.ravel(), "uniform").pvalue > 0.01, name
    heavy = D.normality(mixed(np.random.default_rng(0).standard_t(4, shape), clean, sigma), x0=clean)
    assert (heavy.shapiro_p < 1e-4).all()
    faint = D.normality(mixed(0.8 * white(*shape), clean, sigma), x0=clean)
    np.testing.assert_allclose(faint.shapiro_w, good.shapiro_w, atol=1e-12)  # the shape is the same
    assert (faint.ks_p < 0.05).mean() > 0.95
    # sup of Phi(x/0.8) - Phi(x)
    x = np.linspace(0, 3, 30_001)
    gap = (scipy.stats.norm.cdf(x / 0.8) - scipy.stats.norm.cdf(x)).max()
    assert abs(faint.ks_d.mean() - gap) < 0.015


def test_sub_sample_is_fixed_and_without_replacement():
    values = np.broadcast_to(np.arange(7000.0), (2, 7000)).reshape(2, 1, 1, 70, 100)
    ds = run(values.copy(), [1.0, 2.0])
    found = D.normality(ds, of="latent")
    assert found.attrs["samples"] == 5000 and found.attrs["of"] == "latent" and found.attrs["seed"] == 0
    assert found.shapiro_w[0] == found.shapiro_w[1]  # the same places in both rows
    places = np.random.default_rng(0).choice(7000, 5000, replace=False)
    want = scipy.stats.shapiro(np.sort(places).astype(float))
    assert float(found.shapiro_p[0, 0]) == want.pvalue and float(found.shapiro_w[0, 0]) == want.statistic
    assert found.identical(D.normality(ds, of="latent", seed=0))
    assert float(D.normality(ds, of="latent", seed=1).shapiro_w[0, 0]) != want.statistic
    d, p = scipy.stats.kstest(np.arange(7000.0), "norm")  # of all values
    np.testing.assert_allclose([found.ks_d[0, 0], found.ks_p[0, 0]], [d, p], rtol=1e-12)


def test_constant_and_tiny_rows():
    flat = run(np.full((2, 1, 2, 4, 4), 0.1), [1.0, 2.0])
    found = D.normality(flat, of="latent")
    assert found.shapiro_w.isnull().all() and (found.ks_p < 1e-6).all()
    np.testing.assert_allclose(found.ks_d, scipy.stats.norm.cdf(0.1), rtol=1e-12)
    pixel = D.normality(run(white(3, 1, 1, 1, 1), [1.0, 2.0, 3.0]), of="latent")
    assert pixel.shapiro_w.isnull().all() and pixel.ks_p.notnull().all()
    hair = run(white(1, 1, 1, 4, 4) * 1e-21, [1.0])  # below what SciPy tells from equal
    assert D.normality(hair, of="latent").shapiro_w.isnull().all()


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 100), st.floats(-50, 50), st.integers(0, 2**31))
def test_shape_knows_neither_mean_nor_scale(scale, shift, seed):
    values = np.random.default_rng(seed).gamma(3.0, size=(1, 1, 2, 6, 6))
    plain, moved = (D.normality(run(v, [1.0]), of="latent") for v in (values, scale * values + shift))
    np.testing.assert_allclose(moved.shapiro_w, plain.shapiro_w, rtol=1e-9)


# --- texture_error ----


def halves(samples=1, channels=2, size=16):
    """An image that is flat on the left, and a chessboard on the right; and which pixels are flat."""
    board = np.indices((size, size)).sum(axis=0) % 2 * 1.0
    board[:, : size // 2] = 0.5
    plain = np.zeros((size, size), bool)
    plain[:, : size // 2 - 1] = True  # the last flat column has a rough neighbour to its right
    return np.broadcast_to(board, (samples, channels, size, size)).copy(), plain


def test_plain_and_textured_areas_are_told_apart():
    clean, plain = halves(samples=3)
    clean[1, 1] += white(16, 16)  # one rough channel is enough
    clean[2] = 0.0
    ds = mixed(white(2, *clean.shape), clean, [0.0, 1.0])
    found = D.texture_error(ds)
    np.testing.assert_array_equal(found.plain[0], plain)
    np.testing.assert_allclose(found.plain_fraction, [7 / 16, 0.0, 1.0])
    assert found.attrs["threshold"] == 0.025 and found.plain.dtype == bool
    assert found.std_plain[1, 1].isnull() and found.std_textured[1, 2].isnull()
    assert np.isfinite(found.std_textured[1, 1])
    ramp = run(np.broadcast_to(np.linspace(0, 1.5, 16), (1, 1, 1, 16, 16)).copy(), [0.0])  # 0.1 a pixel
    # the mean of 0 down and 0.1 to the right, in the last column to the left
    assert not D.texture_error(ramp, threshold=0.049).plain.any()
    assert D.texture_error(ramp, threshold=0.051).plain.all()


def test_quantile_takes_the_plainest():
    ds = tk.testing.unsample_dataset(samples=2, size=20)
    found = D.texture_error(ds, quantile=0.25)
    np.testing.assert_allclose(found.plain_fraction, 0.25)
    assert "threshold" not in found.attrs and found.attrs["quantile"] == 0.25
    clean = ds.latent.values[0]
    down, right = np.abs(np.diff(clean, axis=2)), np.abs(np.diff(clean, axis=3))
    change = ((down[..., :-1] + right[:, :, :-1]) / 2).max(axis=1)
    for k in range(2):
        plain = found.plain.values[k, :-1, :-1]
        assert change[k][plain].max() < change[k][~plain].min()


def test_known_errors_and_stds():
    clean, plain = halves()
    noise = white(2, 1, 2, 16, 16)
    bent = noise + np.where(plain, 0.5, -0.125)
    faint = noise * np.where(plain, 0.25, 1.0)
    sigma = [0.0, 3.0]
    found = D.texture_error(mixed(bent, clean, sigma), noise[1])
    np.testing.assert_allclose(found.error_plain[1], 0.5, rtol=1e-12)
    np.testing.assert_allclose(found.error_textured[1], 0.125, rtol=1e-12)
    np.testing.assert_allclose(found.error_ratio[1], 4.0, rtol=1e-12)
    assert found.error_plain[0].isnull().all()
    found = D.texture_error(mixed(faint, clean, sigma))
    assert "error_plain" not in found
    np.testing.assert_allclose(found.std_plain[1, 0], 0.25 * noise[1][:, :, plain].std(), rtol=1e-12)
    np.testing.assert_allclose(found.std_textured[1, 0], noise[1][:, :, ~plain].std(), rtol=1e-12)
    np.testing.assert_allclose(found.std_ratio, found.std_plain / found.std_textured)


def test_references_of_every_form_agree():
    clean, _ = halves(samples=2)
    noise, true = white(4, *clean.shape), white(4, *clean.shape, seed=1)
    sigma = [0.0, 0.5, 1.0, 2.0]
    ds, other = mixed(noise, clean, sigma), mixed(true, clean, sigma)
    want = D.texture_error(ds, other)
    assert want.error_plain[1:].notnull().all() and want.error_plain[0].isnull().all()
    for form in (
        true,
        xr.DataArray(true, dims=LATENT).transpose("x", "step", ...),
        other.isel(step=[3, 1, 0, 2]),
    ):
        np.testing.assert_allclose(D.texture_error(ds, form).error_plain, want.error_plain, rtol=1e-9)
    # a single level, as of an accurate x_T: the others have nothing to be compared with
    top = D.texture_error(ds, other.isel(step=[3])).error_textured
    assert top[:3].isnull().all()
    np.testing.assert_allclose(top[3], want.error_textured[3])
    one = D.texture_error(ds, xr.DataArray(true[3], dims=LATENT[1:])).error_textured
    np.testing.assert_allclose(one[3], want.error_textured[3], rtol=1e-9)
    vae = tk.in_space(other.assign_attrs(latent_scale=0.2, latent_shift=1.0), "vae")
    np.testing.assert_allclose(D.texture_error(ds, vae).error_plain, want.error_plain, rtol=1e-9)


def test_white_noise_is_alike_in_both_areas():
    clean, _ = halves(samples=2, size=64)
    ds = mixed(white(20, *clean.shape), clean, np.linspace(0.1, 3, 20))
    found = D.texture_error(ds, white(*clean.shape, seed=9), x0=clean)
    # std of a std of n values is 1/sqrt(2 n), of which there are 3,968 and 4,224: four of them
    assert abs(found.std_ratio - 1).max() < 4 * np.sqrt(1 / 7936 + 1 / 8448)
    # the difference of two unit noises: sqrt(2) times the mean absolute value sqrt(2/pi)
    np.testing.assert_allclose(found.error_plain, 2 / np.sqrt(np.pi), rtol=0.06)


# --- errors ----

LADDER = tk.testing.ladder_dataset(steps=3, size=8)
BARE = LADDER.isel(step=slice(1, None))


@pytest.mark.parametrize(
    "call, kind, text",
    [
        (lambda: D.residual_noise(BARE), ValueError, "no row at sigma 0"),
        (lambda: D.texture_error(BARE), ValueError, "x0=latent"),
        (lambda: D.residual_noise(BARE, x0=LADDER.latent[0, :, :2]), ValueError, r"\(1, 4, 8, 8\)"),
        (lambda: D.residual_noise(BARE, x0=LADDER.latent[:2]), ValueError, "sample, channel, y, x"),
        (lambda: D.residual_noise(BARE, x0="image.png"), TypeError, "str"),
        (lambda: D.residual_noise(BARE, x0=[[1.0], [1.0, 2.0]]), TypeError, "list"),
        (lambda: D.residual_noise(LADDER.latent), TypeError, "a Dataset"),
        (lambda: D.residual_noise(LADDER.drop_vars("latent")), ValueError, "`latent`"),
        (lambda: D.residual_noise(LADDER.drop_vars("alpha")), ValueError, "`alpha`"),
        (lambda: D.residual_noise(LADDER.isel(step=[])), ValueError, "at least one"),
        (lambda: D.residual_noise(tk.normalized(LADDER, "global")), ValueError, "normalised"),
        (lambda: D.normality(LADDER, of="noises"), ValueError, 'of="noise"'),
        (lambda: D.normality(LADDER, per="rung"), ValueError, "there are channel, sample"),
        (lambda: D.moments(LADDER, per="rung"), ValueError, "there are channel, sample"),
        (lambda: D.normality(LADDER, samples=5001), ValueError, "from 3 to 5000"),
        (lambda: D.normality(LADDER, samples=2), ValueError, "samples=2"),
        (lambda: D.normality(LADDER, samples=True), ValueError, "samples=True"),
        (lambda: D.normality(LADDER, seed=-1), ValueError, "seed=-1"),
        (lambda: D.texture_error(LADDER, threshold=0.1, quantile=0.5), ValueError, "not both"),
        (lambda: D.texture_error(LADDER, threshold=-0.1), ValueError, "0 or more"),
        (lambda: D.texture_error(LADDER, quantile=float("nan")), ValueError, "0 to 1"),
        (lambda: D.texture_error(LADDER, quantile="0.5"), ValueError, "0 to 1"),
        (lambda: D.texture_error(LADDER, LADDER.isel(step=[1]).assign_coords(sigma=("step", [99.0]))),
         ValueError, "one of the levels"),
        (lambda: D.texture_error(LADDER, LADDER.isel(x=slice(4))), ValueError, "same size"),
        (lambda: D.texture_error(LADDER, white(1, 4, 8, 9)), ValueError, r"\(1, 4, 8, 9\)"),
        (lambda: D.texture_error(LADDER, LADDER.sigma), ValueError, r"\('step',\)"),
        (lambda: D.texture_error(LADDER, "noise"), TypeError, "dtype|<U5"),
        (lambda: D.texture_error(LADDER, tk.normalized(LADDER, "global")), ValueError, "normalised"),
    ],
)  # fmt: skip
def test_errors(call, kind, text):
    with pytest.raises(kind, match=text) as caught:
        call()
    assert type(caught.value) is kind and "Try: tk.diagnostics." in str(caught.value)


def test_normalised_rows_can_still_be_tested_as_they_are():
    flat = tk.normalized(tk.testing.ladder_dataset(steps=3), "sample")
    assert (D.normality(flat, of="latent").shapiro_p[2:] > 0.001).all()
    np.testing.assert_allclose(D.moments(flat, per="sample")["mean"], 0.0, atol=1e-6)
