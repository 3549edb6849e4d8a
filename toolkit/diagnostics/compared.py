"""The noise of several runs side by side: one number a run and level, the mean of its samples."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ..errors import bad
from .common import Found, labelled
from .correlation import image_correlation
from .noise import LEVEL, normality
from .overview import PLAINEST
from .spectrum import autocorrelation, power_spectrum
from .statistics import moments
from .texture import texture_error

CALL = 'tk.diagnostics.comparison({"noise": tk.testing.ladder_dataset()})'

COMPARED = {
    "std_ratio": "standard deviation of the state over the expected one",
    "kurtosis": "excess kurtosis of the state; 0 for a normal distribution",
    "shapiro_rejected": f"share of the samples whose noise Shapiro-Wilk calls not normal, p < {LEVEL:g}",
    "ks_rejected": f"share of the samples whose noise is not N(0, 1) to Kolmogorov-Smirnov, p < {LEVEL:g}",
    "neighbour_correlation": "correlation of the noise with itself, shifted by one pixel along y and along x",
    "flatness": "flatness of the spectrum of the noise; 1: white",
    "image_correlation": "correlation of the noise with the clean image",
    "texture_ratio": "std of the noise in the plainest quarter of the image over that in the rest",
}


def comparison(runs: Mapping[str, xr.Dataset], x0: Any = None) -> xr.Dataset:
    """The noise of several runs of the same images, level by level: what tells good noise from bad.

    Compare with a ladder of the same images, not with the values of the theory: of a few pixels the flatness
    of perfect noise is below 1, and one rung of it in twenty fails a test of normality.

    Parameters
    ----------
    runs : mapping of str to Dataset
        Recorded runs or ladders, by the names that they are to have: `latent` (step, sample, channel, y, x),
        with the coordinates `sigma` and `alpha`. Their levels may differ.
    x0 : array (sample, channel, y, x), optional
        The clean images of all runs; None takes of each its row of sigma 0.

    Returns
    -------
    Dataset
        (run, step), float64, units "1", over all levels of all runs, rising; NaN where a run has no such
        level. Each is a mean over the samples, and over channels and directions where it has them:

        - `std_ratio`, `kurtosis`: as `moments` of whole samples.
        - `shapiro_rejected`, `ks_rejected`: share of the samples with p < 0.05 in `normality`.
        - `neighbour_correlation`: `autocorrelation` at lag 1 of the finest scale.
        - `flatness`: as `power_spectrum`.
        - `image_correlation`: as its namesake. Noise that was drawn has none. Noise that the exact ODE makes
          of an image has some, and rightly: the ODE maps one to the other.
        - `texture_ratio`: `std_ratio` of `texture_error`, of the plainest quarter of the pixels.

        ``kind`` is "comparison".

    Raises
    ------
    ValueError, TypeError
        As `residual_noise`; and for what is no mapping, or an empty one.

    References
    ----------
    Those of each diagnostic.

    Examples
    --------
    >>> import toolkit as tk
    >>> found = tk.diagnostics.comparison({"noise": tk.testing.ladder_dataset()})
    >>> found.run.values.tolist(), bool(abs(found.std_ratio[0, -1] - 1) < 0.1)
    (['noise'], True)
    """
    if not isinstance(runs, Mapping) or isinstance(runs, xr.Dataset) or not runs:
        raise bad("runs", runs, "a mapping of names to runs, at least one", CALL, TypeError)
    means = [_means(ds, x0) for ds in runs.values()]
    levels = np.unique(np.concatenate([sigma for sigma, _ in means]))
    values = {name: np.full((len(runs), len(levels)), np.nan) for name in COMPARED}
    for k, (sigma, found) in enumerate(means):
        for name, row in found.items():
            values[name][k, np.searchsorted(levels, sigma)] = row
    first = next(iter(runs.values()))
    named: Found = {name: (("run", "step"), values[name], text, "1") for name, text in COMPARED.items()}
    coords = {
        "run": ("run", np.array([str(name) for name in runs], object), {"long_name": "run", "units": "1"}),
        "step": ("step", np.arange(len(levels)), first["step"].attrs if "step" in first.coords else {}),
        "sigma": ("step", levels, first["sigma"].attrs),
    }
    samples = first.sizes["sample"]
    of = f"means of {samples} sample" + "s" * (samples > 1)
    return labelled(named, xr.Dataset(attrs={"kind": of}), "comparison", coords)


def _means(ds: xr.Dataset, x0: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The levels of a run, and of each variable the mean at each level."""
    normal = normality(ds, x0)
    moment = moments(ds, per="sample")
    lags = autocorrelation(ds, x0, lags=1).autocorrelation.isel(scale=0, lag=0)

    def rejected(p: xr.DataArray) -> xr.DataArray:
        return (p < LEVEL).where(p.notnull())

    found = {
        "std_ratio": moment.std_ratio,
        "kurtosis": moment.kurtosis,
        "shapiro_rejected": rejected(normal.shapiro_p),
        "ks_rejected": rejected(normal.ks_p),
        "neighbour_correlation": lags,
        "flatness": power_spectrum(ds, x0=x0).flatness,
        "image_correlation": image_correlation(ds, x0).image_correlation,
        "texture_ratio": texture_error(ds, x0=x0, quantile=PLAINEST).std_ratio,
    }
    rows = {name: v.mean([d for d in v.dims if d != "step"]).values for name, v in found.items()}
    return moment["sigma"].values, rows
