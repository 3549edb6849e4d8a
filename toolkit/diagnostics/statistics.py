"""Statistics of the states of a run, rung by rung."""

import numpy as np
import xarray as xr

from ..dataset import LATENT
from ..dataset import moments as mean_and_std
from ..errors import unknown
from .common import Found, blocks, checked, labelled

LINE = "tk.diagnostics.moments(tk.testing.ladder_dataset())"
PER = {"channel": LATENT[:3], "sample": LATENT[:2]}  # what one number is of -> its dimensions

MOMENTS = {
    "mean": "mean over {}",
    "std": "standard deviation over {} (population)",
    "skewness": "third standardised moment over {} (population)",
    "kurtosis": "excess kurtosis over {} (population); 0 for a normal distribution",
    "expected_std": "standard deviation that the schedule expects, sqrt(alpha^2 std0^2 + sigma^2)",
    "std_ratio": "standard deviation over the expected one",
}
OVER = {"channel": "y and x", "sample": "channel, y and x"}


def moments(ds: xr.Dataset, per: str = "channel") -> xr.Dataset:
    """Mean, std, skewness and kurtosis of every rung, and the std that its noise level leads one to expect.

    Parameters
    ----------
    ds : Dataset
        A recorded run or ladder: raw states in `latent` (step, sample, channel, y, x), with the coordinates
        `sigma` and `alpha`. States in "vae" space are converted: sigma counts in model space. Normalised ones
        are taken as they are.
    per : {"channel", "sample"}
        What one number is of: each channel of a sample, or all channels of a sample together, as in
        Iterative-Mixer's LatentBatchStatisticsPlot.

    Returns
    -------
    Dataset
        Each of (step, sample, channel), or (step, sample) with ``per="sample"``, float64, in units of the
        latent ("1"):

        - `mean`, `std`, `skewness` = m3/m2^(3/2), `kurtosis` = m4/m2^2 - 3, with the central moments m_k, the
          mean of (latent - mean)^k over y and x (and channel): population moments, what
          ``scipy.stats.skew`` and ``scipy.stats.kurtosis`` give with ``bias=True``.
        - `expected_std` = sqrt(alpha^2 std0^2 + sigma^2), the std of alpha x0 + sigma eps for unit noise that
          knows nothing of x0, and `std_ratio` = std/expected_std. std0 is that of the clean row: of sigma 0,
          else of the lowest sigma, whose own noise is taken off: std0^2 = (std^2 - sigma^2)/alpha^2.

        Rows that were not written, or hold NaN, give NaN; a constant channel has no skewness and kurtosis
        (NaN). Coordinates on step, sample and channel and the attributes of `ds` are kept; ``kind`` is
        "moments", and ``moments_of`` names the kind of `ds`.

    Raises
    ------
    ValueError
        For a Dataset without `latent` or the coordinates of a run, and for an unknown ``per``.
    TypeError
        For what is no Dataset.

    References
    ----------
    Joanes and Gill (1998), "Comparing measures of sample skewness and kurtosis": g1 and g2. The variance of a
    mixture of signal and noise: DDPM, arXiv 2006.11239, eq. 4.

    Examples
    --------
    >>> import toolkit as tk
    >>> found = tk.diagnostics.moments(tk.testing.ladder_dataset())
    >>> bool(abs(found.std_ratio[-1] - 1).max() < 0.2)
    True
    """
    if per not in PER:
        raise unknown("per", per, PER, 'tk.diagnostics.moments(run, per="{}")')
    run = checked(ds, LINE, "latent", rungs=0)
    steps, samples, channels = (run.sizes[dim] for dim in LATENT[:3])
    whole = per == "sample"
    values = np.empty((4, steps, samples, 1 if whole else channels))
    for part, latent in blocks(run["latent"]):
        # all channels of a sample as one tall one, so that both kinds are the same sums
        values[:, part] = _shape(
            latent.reshape(*latent.shape[:2], 1, -1, latent.shape[-1]) if whole else latent
        )
    found = dict(zip(MOMENTS, values, strict=False))
    found["expected_std"] = _expected(found["std"], run["sigma"].values, run["alpha"].values)
    with np.errstate(divide="ignore", invalid="ignore"):  # a clean row without any contrast: 0/0
        found["std_ratio"] = found["std"] / found["expected_std"]
    named: Found = {
        name: (PER[per], array[..., 0] if whole else array, MOMENTS[name].format(OVER[per]), "1")
        for name, array in found.items()
    }
    return labelled(named, run, "moments")


def _shape(latent: np.ndarray) -> np.ndarray:
    """Mean, std, skewness and kurtosis of (step, sample, channel, y, x): (4, step, sample, channel)."""
    *lead, height, width = latent.shape
    values = latent.reshape(*lead, height * width).astype(np.float64, copy=False)
    with np.errstate(divide="ignore", invalid="ignore"):  # constant channels, rows of NaN or Inf: NaN below
        mean, std = mean_and_std(latent)
        z = (values - mean[..., None]) / std[..., None]
        cubed = z * z * z
        skewness, kurtosis = cubed.mean(axis=-1), (cubed * z).mean(axis=-1) - 3.0
        # not `std > 0`: the mean of 4,096 times 0.1 is not 0.1
        varies = values.max(axis=-1) > values.min(axis=-1)
    return np.stack([mean, std, np.where(varies, skewness, np.nan), np.where(varies, kurtosis, np.nan)])


def _expected(std: np.ndarray, sigma: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """sqrt(alpha^2 std0^2 + sigma^2) of each row, from the std (step, sample, channel) of the lowest one."""
    written = np.isfinite(std).any(axis=(1, 2)) & np.isfinite(sigma)
    if not written.any():
        return np.full_like(std, np.nan)
    clean = int(np.where(written, sigma, np.inf).argmin())
    with np.errstate(
        divide="ignore", invalid="ignore"
    ):  # alpha 0: a run of nothing but FLOW's sigma 1 has no clean row
        variance = np.maximum(np.square(std[clean]) - sigma[clean] ** 2, 0.0) / alpha[clean] ** 2
        return np.sqrt(np.square(alpha)[:, None, None] * variance + np.square(sigma)[:, None, None])
