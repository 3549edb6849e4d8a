"""Moments: known distributions, NaN and constant rows, labels, and no torch."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import scipy.stats
import xarray as xr

import toolkit as tk
from toolkit.dataset import label, latent_coordinates, rung_coordinates

SAMPLES, CHANNELS, SIDE = 2, 3, 64


def run(latent, sigma, path=tk.VE, levels=None):
    """A Dataset of the schema with this latent (step, sample, channel, y, x) at these levels."""
    levels = levels or tk.Levels.scaled_linear()
    coordinates = rung_coordinates(sigma, levels, path) | latent_coordinates(latent.shape[1:])
    return label({"latent": latent}, coordinates, {"kind": "ladder", "path": path.name, "seed": 3})


def drawn(draw, rows=2):
    shape = (rows, SAMPLES, CHANNELS, SIDE, SIDE)
    return run(draw(np.random.default_rng(0), shape), np.linspace(0, 1, rows))


@pytest.mark.parametrize(
    "draw, mean, std, skewness, kurtosis",
    [
        (lambda rng, shape: rng.normal(2.0, 3.0, shape), 2.0, 3.0, 0.0, 0.0),
        (lambda rng, shape: rng.uniform(-1.0, 1.0, shape), 0.0, 3**-0.5, 0.0, -1.2),
        (lambda rng, shape: rng.exponential(1.0, shape), 1.0, 1.0, 2.0, 6.0),
    ],
    ids=["normal", "uniform", "exponential"],
)
def test_known_distributions(draw, mean, std, skewness, kurtosis):
    found = tk.diagnostics.moments(drawn(draw))
    # four to five standard errors of 4,096 draws; the exponential's kurtosis is the noisiest of them
    assert abs(found["mean"] - mean).max() < 0.08 * std
    assert abs(found["std"] / std - 1).max() < 0.1
    assert abs(found["skewness"] - skewness).max() < (0.16 if skewness == 0 else 0.6)
    assert abs(found["kurtosis"].mean() - kurtosis) < (0.8 if kurtosis > 0 else 0.1)


def test_equal_to_scipy():
    ds = drawn(lambda rng, shape: rng.gamma(2.0, 1.5, shape))
    found, flat = tk.diagnostics.moments(ds), ds.latent.values.reshape(2, SAMPLES, CHANNELS, -1)
    np.testing.assert_allclose(found["skewness"], scipy.stats.skew(flat, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(found["kurtosis"], scipy.stats.kurtosis(flat, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(found["mean"], flat.mean(-1), rtol=1e-12)
    np.testing.assert_allclose(found["std"], flat.std(-1), rtol=1e-12)


@pytest.mark.parametrize("path, levels", [(tk.VE, tk.Levels.edm()), (tk.FLOW, tk.Levels.flow())])
def test_expected_std_of_a_ladder(path, levels):
    rng = np.random.default_rng(1)
    sigma = np.array([0.0, 0.2, 0.6, 1.0])
    clean = rng.standard_normal((SAMPLES, CHANNELS, SIDE, SIDE)) * np.array([0.5, 1.0, 2.0])[:, None, None]
    rows = [path.mix(clean, rng.standard_normal(clean.shape), s) for s in sigma]
    found = tk.diagnostics.moments(run(np.stack(rows), sigma, path, levels))
    std0 = clean.std(axis=(-2, -1))
    want = np.sqrt(path.alpha(sigma)[:, None, None] ** 2 * std0**2 + sigma[:, None, None] ** 2)
    np.testing.assert_allclose(found["expected_std"], want, rtol=1e-12)
    np.testing.assert_allclose(found["std_ratio"][0], 1.0, rtol=1e-12)
    assert abs(found["std_ratio"] - 1).max() < 0.05


def test_clean_row_is_the_lowest_level_whatever_the_order():
    rng = np.random.default_rng(2)
    clean = rng.standard_normal((1, 2, SIDE, SIDE))
    sigma = np.array([4.0, 2.0, 0.5])  # falling, and no row at 0: the lowest row's own noise is taken off
    rows = np.stack([clean + s * rng.standard_normal(clean.shape) for s in sigma])
    found = tk.diagnostics.moments(run(rows, sigma))
    np.testing.assert_allclose(found["std_ratio"][-1], 1.0, rtol=1e-12)
    np.testing.assert_allclose(found["expected_std"][0], np.sqrt(1 + 16), rtol=0.01)


def test_rows_of_nan_and_constant_rows():
    ds = drawn(lambda rng, shape: rng.standard_normal(shape), rows=4)
    ds["latent"][0] = np.nan  # the clean row was not kept: the next one serves
    ds["latent"][2, 0, 1] = 0.1  # the mean of many 0.1 is not 0.1
    ds["latent"][3, 1, 2, 5, 5] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = tk.diagnostics.moments(ds)
    assert found["std"][0].isnull().all() and found["skewness"][0].isnull().all()
    assert found["expected_std"].notnull().all()
    np.testing.assert_allclose(found["std_ratio"][1], 1.0, rtol=1e-12)
    flat = found.isel(step=2, sample=0, channel=1)
    assert np.isnan(flat["skewness"]) and np.isnan(flat["kurtosis"])
    assert flat["mean"] == pytest.approx(0.1) and flat["std"] < 1e-15
    holed = found.isel(step=3, sample=1, channel=2)
    assert all(np.isnan(holed[name]) for name in ("mean", "std", "skewness", "kurtosis", "std_ratio"))
    assert found["kurtosis"].isel(step=3, sample=0).notnull().all()
    ds["latent"][1, 0, 0, 0, 0] = np.inf
    assert np.isnan(tk.diagnostics.moments(ds)["std"][1, 0, 0])


def test_a_run_of_which_nothing_was_written():
    ds = drawn(lambda rng, shape: np.full(shape, np.nan))
    found = tk.diagnostics.moments(ds)
    assert all(found[name].isnull().all() for name in found.data_vars)
    assert tk.diagnostics.moments(ds.isel(step=[])).sizes["step"] == 0


def test_pure_noise_alone_on_flow():
    rows = np.random.default_rng(0).standard_normal((1, 1, 1, 8, 8))
    found = tk.diagnostics.moments(run(rows, [1.0], tk.FLOW, tk.Levels.flow()))
    assert found["std"].notnull().all() and found["std_ratio"].isnull().all()


def test_more_rows_than_one_block():
    ds = tk.testing.ladder_dataset(steps=150, size=8, samples=2)
    whole = tk.diagnostics.moments(ds)
    # the clean row stays the same one, so the rows agree bit for bit
    part = tk.diagnostics.moments(ds.isel(step=[0, 70, 140]))
    xr.testing.assert_identical(whole.isel(step=[0, 70, 140]), part)
    np.testing.assert_allclose(whole["std"], ds["std"], rtol=1e-12)


def test_labels():
    ds = tk.testing.ladder_dataset(samples=2)
    found = tk.diagnostics.moments(ds)
    assert list(found.data_vars) == ["mean", "std", "skewness", "kurtosis", "expected_std", "std_ratio"]
    for name, variable in found.data_vars.items():
        assert variable.dims == ("step", "sample", "channel") and variable.dtype == np.float64, name
    for name, variable in found.variables.items():
        assert variable.attrs["long_name"] and variable.attrs["units"] == "1", name
    assert set(found.coords) == {"step", "sigma", "timestep", "alpha", "log_snr", "sample", "channel"}
    assert found.attrs == ds.attrs | {"kind": "moments", "moments_of": "ladder"}
    assert tk.diagnostics.moments(ds.transpose(..., "step")).identical(found)


@pytest.mark.parametrize(
    "given, kind, text",
    [
        (tk.testing.ladder_dataset().drop_vars("latent"), ValueError, "`latent`"),
        (tk.testing.ladder_dataset().isel(step=0), ValueError, "`latent`"),
        (tk.testing.ladder_dataset().drop_vars("sigma"), ValueError, "`sigma`"),
        (np.zeros((2, 1, 4, 8, 8)), TypeError, "a Dataset"),
    ],
)
def test_errors(given, kind, text):
    with pytest.raises(kind, match=text) as caught:
        tk.diagnostics.moments(given)
    assert "Try: tk.diagnostics.moments(" in str(caught.value)


def test_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import toolkit as tk\n"
        "print(tk.diagnostics.moments(tk.testing.ladder_dataset()).sizes['step'])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "21"
