"""Spectrum, autocorrelation and correlations: fields with known answers, theory, the original comparator."""

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from test_diagnose_noise import BARE, CASES, LADDER, D, measured, mixed, peers, run, white

import toolkit as tk

__all__ = ["measured"]  # a fixture, shared


def fields(values):
    """Fields (rung, channel, y, x) as states of one sample."""
    return run(np.asarray(values)[:, None], np.linspace(0.5, 2.0, len(values)))


def smooth(shape, rho, seed=0):
    """Periodic AR(1) fields along y and x, of unit expected variance: correlation rho^k at lag k."""
    spectra = []
    for size in shape[-2:]:
        wave = np.exp(-2j * np.pi * np.fft.fftfreq(size))
        spectra.append((1 - rho**2) / np.abs(1 - rho * wave) ** 2)
    gain = np.sqrt(spectra[0][:, None] * spectra[1][None, :])
    return np.fft.ifft2(np.fft.fft2(white(*shape, seed=seed)) * gain).real


# --- power_spectrum ----


@pytest.mark.parametrize("size", [(32, 32), (16, 48), (15, 21), (1, 8), (2, 2)])
def test_unit_white_noise_has_power_1_everywhere(size):
    found = D.power_spectrum(fields(white(4000, 1, *size)), "latent")
    # a ring of m modes has m/2 independent ones (of both parts), or m that are their own twin
    error = np.sqrt(2 / (4000 * found.modes))
    assert (abs(found.power.mean("step")[0, 0] - 1) < 4.5 * error).all()
    assert found.modes.sum() == size[0] * size[1]
    assert found.frequency[0] == 0 and (np.diff(found.frequency) > 0).all() and found.frequency[-1] < 0.7072


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31), st.floats(-5, 5))
def test_parseval(height, width, seed, shift):
    ds = fields(white(2, 3, height, width, seed=seed) + shift)
    found = D.power_spectrum(ds, "latent")
    power = (found.power * found.modes).sum("frequency") / (height * width)
    np.testing.assert_allclose(power, np.square(ds.latent).mean(("y", "x")), rtol=1e-10)
    np.testing.assert_allclose(
        found.power[..., 0], height * width * ds.latent.mean(("y", "x")) ** 2, rtol=1e-8, atol=1e-12
    )


@pytest.mark.parametrize("ky, kx", [(4, 0), (0, 3), (3, 4), (8, 0), (8, 12)])
def test_a_cosine_is_one_ring(ky, kx):
    height, width = 16, 24
    y, x = np.mgrid[:height, :width]
    wave = np.sqrt(2) * np.cos(2 * np.pi * (ky * y / height + kx * x / width))
    found = D.power_spectrum(fields(wave[None, None]), "latent")
    power = found.power[0, 0, 0]
    place, frequency = int(np.argmax(power.values)), np.hypot(ky / height, kx / width)
    assert abs(float(found.frequency[place]) - frequency) <= 0.5 / 24 + 1e-12
    np.testing.assert_allclose(power[place] * found.modes[place] / (height * width), np.square(wave).mean())
    assert power.drop_isel(frequency=place).max() < 1e-20
    assert found.flatness < 1e-6


def test_flatness_of_white_and_of_smooth_noise():
    ds = fields(white(200, 4, 64, 64))
    found = D.power_spectrum(ds, "latent")
    np.testing.assert_allclose(found.flatness.mean(), 0.99, atol=0.002)  # what the docstring says
    scaled = D.power_spectrum(ds.assign(latent=3.0 * ds.latent + 7.0), "latent")  # neither scale nor mean
    np.testing.assert_allclose(scaled.flatness, found.flatness, rtol=1e-9)
    # log-average over average of the separable AR(1) spectrum: (1 - rho^2)^2, Kolmogorov's formula
    rough = D.power_spectrum(fields(smooth((50, 4, 64, 64), 0.5)), "latent").flatness
    assert found.flatness.min() > rough.max()
    whole = fields(smooth((50, 4, 64, 64), 0.5))
    square = np.abs(np.fft.fft2(whole.latent.values)) ** 2
    exact = np.exp(np.log(square.mean((0, 1, 2))).mean()) / square.mean((0, 1, 2)).mean()
    np.testing.assert_allclose(exact, 0.75**2, rtol=0.02)
    # rings mix directions of a spectrum that is not round, and so are a little flatter than its modes
    assert exact < rough.mean() < exact + 0.06


def test_spectrum_of_the_noise_of_a_ladder():
    noise, clean = white(3, 2, 4, 16, 16), smooth((2, 4, 16, 16), 0.9)
    found = D.power_spectrum(mixed(noise, clean, [0.0, 0.5, 5.0]))
    want = D.power_spectrum(run(noise, [0.0, 0.5, 5.0]), "latent")
    assert found.power[0].isnull().all() and found.flatness[0].isnull().all()
    np.testing.assert_allclose(found.power[1:], want.power[1:], rtol=1e-9)
    np.testing.assert_allclose(found.flatness[1:], want.flatness[1:], rtol=1e-9)
    assert found.attrs["of"] == "noise" and want.attrs["of"] == "latent"


# --- autocorrelation ----


def test_white_noise_is_not_correlated():
    found = D.autocorrelation(fields(white(400, 2, 32, 32)), of="latent", lags=16)
    assert list(found.scale.values) == [1, 2, 4] and list(found.lag.values) == list(range(1, 17))
    for k, side in enumerate([32, 16, 8]):
        known = found.autocorrelation[..., k, :, : side // 2]
        pixels, draws = side**2, 800 * 2
        assert found.autocorrelation[..., k, :, side // 2 :].isnull().all()
        # taking the mean off leaves -1/(pixels - 1)
        assert (abs(known.mean(("step", "sample", "channel", "along")) + 1 / (pixels - 1))
                < 5 / np.sqrt(pixels * draws)).all()  # fmt: skip
        spread = known[..., :-1].std(("step", "sample", "channel", "along"))
        np.testing.assert_allclose(spread, 1 / np.sqrt(pixels), rtol=0.08)
    # a shift by half the side meets each pair twice, and its square is twice as large
    want = sum(2 * 2 / 1024 / s**2 * (1 + 1 / (32 / s / 2)) for s in (1, 2, 4))
    np.testing.assert_allclose(found.l_pair.mean(), want, rtol=0.05)
    np.testing.assert_allclose(
        found.l_kl.mean(), 2 / 2048, rtol=0.2
    )  # var/2n of the variance, 1/n of the mean


def test_ar1_fields_have_their_correlation():
    found = D.autocorrelation(fields(smooth((200, 4, 64, 64), 0.6)), of="latent", lags=5)
    mean = found.autocorrelation[..., 0, :, :].mean(("step", "sample", "channel"))
    np.testing.assert_allclose(mean, np.broadcast_to(0.6 ** np.arange(1, 6), (2, 5)), atol=0.01)
    # and of means of two by two: (1 + rho)^2/2 of the variance of one, sums of four lags over it
    r = 0.6 ** np.arange(0, 4)
    want = (r[1] + 2 * r[2] + r[3]) / (2 * (1 + r[1]))
    pooled = found.autocorrelation[..., 1, :, 0].mean()
    np.testing.assert_allclose(pooled, want, atol=0.01)


def test_along_y_and_x_are_told_apart():
    stripes = np.broadcast_to(np.cos(np.pi * np.arange(12))[:, None], (12, 20))
    found = D.autocorrelation(fields(stripes[None, None]), of="latent").autocorrelation[0, 0, 0, 0]
    np.testing.assert_allclose(found.sel(along="y"), [-1, 1, -1, 1], atol=1e-12)
    np.testing.assert_allclose(found.sel(along="x"), 1.0, atol=1e-12)


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (20, 34), (9, 40)])
def test_sums_as_they_are_written(size):
    """Against a plain loop with roll and torch's pooling, as pix2pix-zero writes its loss."""
    ds = fields(white(2, 3, *size) + 0.3)
    found = D.autocorrelation(ds, of="latent", lags=3)
    level, pair = torch.from_numpy(ds.latent.values[:, 0]), 0.0
    for k in range(found.sizes["scale"]):
        if k:
            level = torch.nn.functional.avg_pool2d(level, 2)
        centred = level - level.mean((-2, -1), keepdim=True)
        for along, axis in (("y", -2), ("x", -1)):
            half = level.shape[axis] // 2
            squares = [(level * level.roll(d, axis)).mean((-2, -1)) ** 2 for d in range(1, half + 1)]
            pair = pair + sum(squares).sum(-1) / half
            for lag in range(1, 4):
                want = (centred * centred.roll(lag, axis)).sum((-2, -1)) / (centred**2).sum((-2, -1))
                got = found.autocorrelation.isel(scale=k, sample=0).sel(along=along, lag=lag)
                np.testing.assert_allclose(got, want if lag <= half else np.nan, atol=1e-12)
    assert min(level.shape[-2:]) <= 8
    np.testing.assert_allclose(found.l_pair[:, 0], pair, rtol=1e-10)
    row = torch.from_numpy(ds.latent.values[:, 0]).flatten(1)
    np.testing.assert_allclose(
        found.l_kl[:, 0], row.var(1) + row.mean(1) ** 2 - 1 - row.var(1).log(), rtol=1e-9
    )


def test_constant_fields_and_pixels():
    for values in (np.full((1, 2, 8, 8), 0.1), np.zeros((1, 2, 8, 8))):
        found = D.autocorrelation(fields(values), of="latent")
        assert found.autocorrelation.isnull().all()
        # its products are its square: two channels, two directions
        np.testing.assert_allclose(found.l_pair, 4 * values.flat[0] ** 4, rtol=1e-12)
        assert (found.l_kl == np.inf).all() or found.l_kl.min() > 60  # the mean of many 0.1 is not 0.1
        assert D.power_spectrum(fields(values), "latent").flatness.isnull().all()
    pixel = fields(white(3, 1, 1, 1))
    assert D.autocorrelation(pixel, of="latent").autocorrelation.isnull().all()
    assert (D.autocorrelation(pixel, of="latent").l_pair == 0).all()
    spectrum = D.power_spectrum(pixel, "latent")
    np.testing.assert_allclose(spectrum.power[:, 0, 0, 0], pixel.latent.values.ravel() ** 2)
    assert spectrum.flatness.isnull().all()


# --- correlations ----


def test_image_correlation_is_pearsons():
    noise, clean = white(3, 2, 3, 8, 8), white(2, 3, 8, 8, seed=1) + 4
    noise[1] += 0.3 * clean
    found = D.image_correlation(mixed(noise, clean, [0.0, 0.5, 2.0])).image_correlation
    assert found.dims == ("step", "sample", "channel") and found[0].isnull().all()
    for i, j, k in np.ndindex(2, 2, 3):
        want = np.corrcoef(noise[i + 1, j, k].ravel(), clean[j, k].ravel())[0, 1]
        np.testing.assert_allclose(found[i + 1, j, k], want, atol=1e-12)


def test_image_correlation_of_white_noise():
    clean = smooth((1, 4, 32, 32), 0.9)
    found = D.image_correlation(mixed(white(500, 1, 4, 32, 32, seed=3), clean, np.full(500, 0.7)), x0=clean)
    assert abs(found.image_correlation.mean()) < 4 / np.sqrt(2000 * 1024)
    np.testing.assert_allclose(found.image_correlation.std(), 1 / 32, rtol=0.07)
    flat = clean.copy()
    flat[0, 1] = 0.1
    found = D.image_correlation(mixed(white(2, 1, 4, 32, 32), flat, [1.0, 2.0]), x0=flat).image_correlation
    assert found[:, 0, 1].isnull().all() and found[:, 0, 0].notnull().all()


@pytest.mark.parametrize("case", CASES)
def test_numbers_of_the_original_comparator(measured, case):
    ds = peers(measured, case)
    itself, other = D.cosine_matrix(ds), D.cosine_matrix(ds, ds.isel(step=slice(None, None, -1)))
    np.testing.assert_allclose(
        itself.cosine[..., 0], measured[f"{case}__cosine_matrix_with_itself"], atol=1e-6
    )
    np.testing.assert_allclose(
        other.cosine[..., 0], measured[f"{case}__cosine_matrix_with_reversed"], atol=1e-6
    )
    np.testing.assert_array_equal(other.sigma_b, ds.sigma[::-1])
    np.testing.assert_array_equal(other.sigma, ds.sigma)


def test_equal_opposite_and_orthogonal_rows():
    rows = np.zeros((5, 1, 2, 2, 2))
    rows[0, ..., 0], rows[1, ..., 1] = 1.0, 5.0
    rows[2], rows[3] = -2 * rows[0], 1e-9 * rows[0]
    found = D.cosine_matrix(run(rows, np.ones(5))).cosine[..., 0]
    # a norm of 2e-9 is divided by as if it were 1e-8, and so is nothing
    want = [[1, 0, -1, 0.2, 0], [0, 1, 0, 0, 0], [-1, 0, 1, -0.2, 0], [0.2, 0, -0.2, 0.04, 0], [0] * 5]
    np.testing.assert_allclose(found, want, atol=1e-12)


def test_two_runs_of_different_lengths(monkeypatch):
    a, b = run(white(7, 3, 2, 4, 4), np.arange(1.0, 8)), run(white(4, 3, 2, 4, 4, seed=1), np.arange(2.0, 6))
    whole = D.cosine_matrix(a, b)
    assert whole.cosine.dims == ("step", "step_b", "sample") and whole.cosine.shape == (7, 4, 3)
    x, y = (ds.latent.values.reshape(*ds.latent.shape[:2], -1) for ds in (a, b))
    for j in range(3):
        want = np.corrcoef(np.vstack([x[:, j], y[:, j]]))  # Pearson, of rows whose means are taken off
        mean = [
            run((v - v.mean(-1, keepdims=True)).reshape(d.latent.shape), d.sigma.values)
            for v, d in ((x, a), (y, b))
        ]
        np.testing.assert_allclose(D.cosine_matrix(*mean).cosine[..., j], want[:7, 7:], atol=1e-12)
    thin = D.cosine_matrix(a, b, every=3)
    np.testing.assert_allclose(thin.cosine, whole.cosine[::3, ::3], atol=1e-14)
    np.testing.assert_array_equal(thin.sigma_b, [2.0, 5.0])
    monkeypatch.setattr("toolkit.diagnostics.common.BLOCK", 2 * 96)  # two rungs
    monkeypatch.setattr("toolkit.diagnostics.correlation.OUTER", 3 * 96)
    np.testing.assert_allclose(D.cosine_matrix(a, b).cosine, whole.cosine, atol=1e-14)
    itself = D.cosine_matrix(a).cosine
    np.testing.assert_allclose(itself, D.cosine_matrix(a, a).cosine, atol=1e-14)
    np.testing.assert_allclose(itself, itself.values.swapaxes(0, 1), atol=1e-14)
    np.testing.assert_allclose(np.diagonal(itself), 1.0, rtol=1e-12)


def coupled(coupling, rho, shape):
    """Unit noise at rising levels rho = sigma/alpha, by the definition of each coupling."""
    fresh = white(len(rho), *shape)
    if coupling == "independent":
        return fresh
    if coupling == "shared":
        return np.broadcast_to(fresh[0], fresh.shape).copy()
    rows = [fresh[0]]
    for k in range(1, len(rho)):
        kept = rho[k - 1] / rho[k] if np.isfinite(rho[k]) else 0.0
        rows.append(kept * rows[-1] + np.sqrt(1 - kept**2) * fresh[k])
    return np.stack(rows)


@pytest.mark.parametrize("path", [tk.VE, tk.FLOW], ids=["VE", "FLOW"])
@pytest.mark.parametrize("coupling", ["independent", "shared", "markov"])
def test_couplings_are_what_theory_says(coupling, path):
    sigma = np.array([0.0, 0.1, 0.3, 0.7, 1.0])
    with np.errstate(divide="ignore"):
        rho = sigma / path.alpha(sigma)
    clean = smooth((2, 4, 32, 32), 0.9)
    noise = np.concatenate([np.zeros((1, *clean.shape)), coupled(coupling, rho[1:], clean.shape)])
    found = D.rung_correlation(mixed(noise, clean, sigma, path, coupling=coupling))
    assert found.rung_correlation.dims == ("step", "step_b", "sample")
    for k in (found.rung_correlation, found.expected):
        assert k[0].isnull().all() and k[:, 0].isnull().all() and k[1:, 1:].notnull().all()
    error = 0 if coupling == "shared" else 4.5 / np.sqrt(4096)
    assert abs(found.rung_correlation - found.expected).max() < error + 1e-9
    want = {"independent": 0.0, "shared": 1.0, "markov": rho[1] / rho[3]}[coupling]
    np.testing.assert_allclose(found.expected[1, 3], want)
    np.testing.assert_allclose(np.diagonal(found.expected)[1:], 1.0)
    np.testing.assert_allclose(
        found.expected[1, 4], {"independent": 0, "shared": 1, "markov": rho[1] / rho[4]}[coupling]
    )
    flat = [noise[k, 0].ravel() for k in range(1, 5)]
    np.testing.assert_allclose(found.rung_correlation[1:, 1:, 0], np.corrcoef(flat), atol=1e-10)


@pytest.mark.parametrize("coupling", ["independent", "shared", "markov"])
def test_recorded_ladders_have_the_coupling_they_name(coupling, images, mixture):
    ds = tk.ladder(mixture, images["in"], steps=8, coupling=coupling, progress=False)
    found = D.rung_correlation(ds)
    error = 4.5 / np.sqrt(1024) if coupling != "shared" else 1e-4  # recorded in float32
    assert abs(found.rung_correlation - found.expected).max() < error
    assert found.expected[1:, 1:].notnull().all()


@pytest.mark.parametrize("coupling", ["independent", "shared", "markov"])
def test_recorded_unsamples_too(coupling, images, mixture):
    ds = tk.unsample(
        mixture, images["in"], solver="euler_ancestral", coupling=coupling, steps=6, progress=False
    )
    found = D.rung_correlation(ds)
    # the lowest level holds no noise: rho^2 counts from it
    assert found.expected[:2].isnull().all() and found.expected[2:, 2:].notnull().all()
    assert abs(found.rung_correlation - found.expected).max() < 4.5 / np.sqrt(1024)
    assert found.rung_correlation[2:, 2:].notnull().all()


def test_no_expectation_without_a_coupling():
    ds = tk.testing.unsample_dataset(steps=4)
    assert list(D.rung_correlation(ds).data_vars) == ["rung_correlation"]
    assert list(D.rung_correlation(ds.assign_attrs(coupling="given")).data_vars) == ["rung_correlation"]
    thin = D.rung_correlation(ds.assign_attrs(coupling="shared"), every=2)
    np.testing.assert_array_equal(thin.sigma_b, ds.sigma[::2])
    np.testing.assert_allclose(thin.rung_correlation[1:, 1:], 1.0, rtol=1e-9)


# --- errors ----


@pytest.mark.parametrize(
    "call, kind, text",
    [
        (lambda: D.power_spectrum(BARE), ValueError, "no row at sigma 0"),
        (lambda: D.power_spectrum(LADDER, of="noize"), ValueError, 'of="noise"'),
        (lambda: D.power_spectrum(tk.normalized(LADDER, "global")), ValueError, "normalised"),
        (lambda: D.autocorrelation(BARE), ValueError, "x0=latent"),
        (lambda: D.autocorrelation(LADDER, of=3), ValueError, "of=3"),
        (lambda: D.autocorrelation(LADDER, lags=0), ValueError, "lags=0"),
        (lambda: D.autocorrelation(LADDER, lags=2.0), ValueError, "1 or more"),
        (lambda: D.image_correlation(BARE), ValueError, "no row at sigma 0"),
        (lambda: D.image_correlation(LADDER, x0=3.0), ValueError, r"x0=\(\)"),
        (lambda: D.rung_correlation(BARE), ValueError, "x0=latent"),
        (lambda: D.rung_correlation(LADDER, every=0), ValueError, "every=0"),
        (lambda: D.cosine_matrix(LADDER, every=True), ValueError, "every=True"),
        (lambda: D.cosine_matrix(LADDER, LADDER.isel(y=slice(4))), ValueError, r"\(1, 4, 8, 8\)"),
        (lambda: D.cosine_matrix(LADDER, LADDER.latent), TypeError, "a Dataset"),
        (lambda: D.cosine_matrix(None), TypeError, "ds=None"),
    ],
)
def test_errors(call, kind, text):
    with pytest.raises(kind, match=text) as caught:
        call()
    assert type(caught.value) is kind and "Try: tk.diagnostics." in str(caught.value)


def test_a_matrix_that_is_too_large_says_which_rungs_to_take():
    ds = run(np.ones((5000, 1, 1, 1, 1)), np.ones(5000))
    with pytest.raises(ValueError, match=r"25000000.+Try: tk.diagnostics.cosine_matrix\(run, every=2\)"):
        D.cosine_matrix(ds)
    assert D.cosine_matrix(ds, every=2).sizes["step_b"] == 2500
    three = xr.concat([ds, ds, ds], "step", data_vars="minimal")
    with pytest.raises(ValueError, match=r"rung_correlation\(run, every=4\)"):
        D.rung_correlation(three, x0=np.zeros((1, 1, 1, 1)))
