"""Statistics of the states of a run, rung by rung."""

import numpy as np
import xarray as xr

from ..dataset import LATENT
from ..dataset import moments as mean_and_std
from ..errors import bad

ROWS = 64  # rungs read and held in float64 at once: a store may be larger than memory

MOMENTS = {
    "mean": "mean over y and x",
    "std": "standard deviation over y and x (population)",
    "skewness": "third standardised moment over y and x (population)",
    "kurtosis": "excess kurtosis over y and x (population); 0 for a normal distribution",
    "expected_std": "standard deviation that the schedule expects, sqrt(alpha^2 std0^2 + sigma^2)",
    "std_ratio": "standard deviation over the expected one",
}


def moments(ds: xr.Dataset) -> xr.Dataset:
    """Mean, std, skewness and kurtosis of every rung, and the std that its noise level leads one to expect.

    Parameters
    ----------
    ds : Dataset
        A recorded run or ladder: raw states in `latent` (step, sample, channel, y, x), with the coordinates
        `sigma` and `alpha`.

    Returns
    -------
    Dataset
        Each of (step, sample, channel), float64, in units of the latent ("1"):

        - `mean`, `std`, `skewness` = m3/m2^(3/2), `kurtosis` = m4/m2^2 - 3, with the central moments m_k, the
          mean of (latent - mean)^k over y and x: population moments, what ``scipy.stats.skew`` and
          ``scipy.stats.kurtosis`` give with ``bias=True``.
        - `expected_std` = sqrt(alpha^2 std0^2 + sigma^2), the std of alpha x0 + sigma eps for unit noise that
          knows nothing of x0, and `std_ratio` = std/expected_std. std0 is that of the clean row: of sigma 0,
          else of the lowest sigma, whose own noise is taken off: std0^2 = (std^2 - sigma^2)/alpha^2.

        Rows that were not written, or hold NaN, give NaN; a constant channel has no skewness and kurtosis
        (NaN). Coordinates on step, sample and channel and the attributes of `ds` are kept; ``kind`` is
        "moments", and ``moments_of`` names the kind of `ds`.

    Raises
    ------
    ValueError
        For a Dataset without `latent`, or without the coordinates of a run.

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
    line = "tk.diagnostics.moments(tk.testing.ladder_dataset())"
    if not isinstance(ds, xr.Dataset):
        raise bad("ds", ds, "a Dataset of a recorded run", line, TypeError)
    if "latent" not in ds or set(ds["latent"].dims) != set(LATENT):
        raise bad("ds", list(ds.data_vars), f"a Dataset with a variable `latent` ({', '.join(LATENT)})", line)
    if not {"sigma", "alpha"} <= set(ds.coords):
        raise bad("ds", list(ds.coords), "a Dataset with the coordinates `sigma` and `alpha` on step", line)
    return _labelled(ds)


def _labelled(ds: xr.Dataset) -> xr.Dataset:
    """The moments of a Dataset that was checked, block by block, with its labels."""
    latent = ds["latent"].transpose(*LATENT)
    blocks = [_shape(latent[i : i + ROWS].values) for i in range(0, max(latent.sizes["step"], 1), ROWS)]
    found = dict(zip(MOMENTS, np.concatenate(blocks, axis=1), strict=False))  # each (step, sample, channel)
    found["expected_std"] = _expected(found["std"], ds["sigma"].values, ds["alpha"].values)
    with np.errstate(divide="ignore", invalid="ignore"):  # a clean row without any contrast: 0/0
        found["std_ratio"] = found["std"] / found["expected_std"]
    labelled = {
        name: (LATENT[:3], values, {"long_name": MOMENTS[name], "units": "1"})
        for name, values in found.items()
    }
    kept = {name: c for name, c in ds.coords.items() if set(c.dims) <= set(LATENT[:3])}
    return xr.Dataset(labelled, kept, ds.attrs | {"kind": "moments", "moments_of": ds.attrs.get("kind", "")})


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
