"""The noise that is left of a rung without its image, and whether it is normal."""

from typing import Any

import numpy as np
import xarray as xr
from scipy.special import ndtr
from tqdm.auto import tqdm

from ..dataset import LATENT
from ..errors import bad, unknown
from .common import Found, labelled, rows
from .statistics import OVER, PER

MOST = 5000  # SciPy's p of Shapiro-Wilk (Royston, 1995) is approximate above it
FEWEST = 3  # there is no W below
LEVEL = 0.05  # of the test of normality: Iterative-Mixer draws its line there
NARROWEST = 1e-19  # range under which Royston's algorithm takes all values as equal

TESTS = {
    "shapiro_w": "statistic W of Shapiro-Wilk over {}, on at most {} values; 1 for a normal distribution",
    "shapiro_p": "probability of so small a W in normal values, over {}, on at most {} of them",
    "ks_d": "Kolmogorov-Smirnov distance from N(0, 1): largest difference of the distributions, over {}",
    "ks_p": "probability of so large a Kolmogorov-Smirnov distance in values from N(0, 1), over {}",
}


def residual_noise(ds: xr.Dataset, x0: Any = None) -> xr.Dataset:
    """What is left of every rung without its image, in units of its noise level: n = (x - alpha x0)/sigma.

    It is the noise that x = alpha x0 + sigma n was mixed from. Of a ladder it is the noise that was drawn; of
    an unsample the noise that the solver made of the image, which should be unit, white and normal.

    Parameters
    ----------
    ds : Dataset
        A recorded run or ladder: raw states in `latent` (step, sample, channel, y, x), with the coordinates
        `sigma` and `alpha`. It is read a block at a time, but the result is as large as `latent` and is held
        whole: thin a long run before, ``ds.isel(step=slice(None, None, 10))``.
    x0 : array (sample, channel, y, x), optional
        The clean image, in the space of `ds`; None takes the row of sigma 0.

    Returns
    -------
    Dataset
        `noise` (step, sample, channel, y, x), units "1", in the dtype of `latent` and computed in float64.
        NaN at sigma 0, where there is none, and in rows that were not written. In a float32 run n is known to
        about 6e-8 |x|/sigma. Coordinates and attributes of `ds` are kept; ``kind`` is "residual_noise".

    Raises
    ------
    ValueError
        For a Dataset without `latent` or the coordinates of a run, one of normalised states, a run without a
        clean row where no x0 is given, and an x0 of another shape.
    TypeError
        For what is no Dataset, and an x0 that is no array of numbers.

    References
    ----------
    The forward process, x_t = alpha_t x_0 + sigma_t eps: DDPM, arXiv 2006.11239, eq. 4, and arXiv 2011.13456.

    Examples
    --------
    >>> import toolkit as tk
    >>> found = tk.diagnostics.residual_noise(tk.testing.ladder_dataset())
    >>> bool(abs(found.noise[1:].std() - 1) < 0.05)
    True
    """
    run = rows(ds, "tk.diagnostics.residual_noise(tk.testing.ladder_dataset())", x0=x0)
    kind = run.ds["latent"].dtype
    noise = np.empty(run.shape, kind if kind.kind == "f" else np.float64)
    for part, values in run:
        noise[part] = values
    found: Found = {"noise": (LATENT, noise, "noise of this rung, (latent - alpha x0)/sigma", "1")}
    return labelled(found, run.ds, "residual_noise")


def normality(ds: xr.Dataset, x0: Any = None, samples: int = MOST, seed: int = 0, *, of: str = "noise",
              per: str = "sample", progress: bool = False) -> xr.Dataset:  # fmt: skip
    """Whether the noise of every rung is normal: Shapiro-Wilk, and Kolmogorov-Smirnov against N(0, 1).

    Shapiro-Wilk asks for the shape alone, whatever mean and std; Kolmogorov-Smirnov for unit noise as well.
    With p below 0.05 one would call a single rung not normal; of many good rungs, one in twenty is below.

    Parameters
    ----------
    ds : Dataset
        A recorded run or ladder, read a block at a time: `latent` (step, sample, channel, y, x), with the
        coordinates `sigma` and `alpha`.
    x0 : array (sample, channel, y, x), optional
        The clean image, in the space of `ds`; None takes the row of sigma 0.
    samples : int
        How many values Shapiro-Wilk takes, 3 to 5,000, since SciPy's p is approximate above. Where a row has
        more, it is a sub-sample without replacement, at the same places in every row. Kolmogorov-Smirnov
        takes all.
    seed : int
        Of the sub-sample.
    of : {"noise", "latent"}
        Test the noise n = (x - alpha x0)/sigma, or the states themselves in model space, as
        Iterative-Mixer's LatentBatchStatisticsPlot does; x0 is not looked at then.
    per : {"sample", "channel"}
        Test all channels of a sample together, or each for itself.
    progress : bool
        Show a bar: 10,000 rungs take some ten seconds.

    Returns
    -------
    Dataset
        Each of (step, sample), or (step, sample, channel) with ``per="channel"``, float64, units "1":

        - `shapiro_w`, `shapiro_p`: what ``scipy.stats.shapiro`` gives.
        - `ks_d`, `ks_p`: what ``scipy.stats.kstest(values, "norm")`` gives, two-sided and exact.

        NaN at sigma 0, where there is no noise, and in rows that were not written or hold NaN; Shapiro-Wilk
        also for fewer than 3 values, and where all are equal. ``kind`` is "normality"; the attributes
        ``of``, ``samples`` and ``seed`` say what was tested.

    Raises
    ------
    ValueError
        As `residual_noise`; and for an unknown ``of`` or ``per``, ``samples`` outside 3 to 5,000, or a seed
        that is no whole number from 0.
    TypeError
        As `residual_noise`.

    References
    ----------
    Shapiro and Wilk (1965), "An analysis of variance test for normality"; Royston (1995), algorithm AS R94.
    Marsaglia, Tsang and Wang (2003), "Evaluating Kolmogorov's distribution".

    Examples
    --------
    >>> import toolkit as tk
    >>> found = tk.diagnostics.normality(tk.testing.ladder_dataset(steps=4))
    >>> bool((found.shapiro_p[1:] > 0.05).all()), bool(found.shapiro_p[0].isnull().all())
    (True, True)
    """
    call = "tk.diagnostics.normality"
    if per not in PER:
        raise unknown("per", per, PER, call + '(run, per="{}")')
    if (
        isinstance(samples, bool)
        or not isinstance(samples, (int, np.integer))
        or not FEWEST <= samples <= MOST
    ):
        raise bad(
            "samples", samples, f"a whole number from {FEWEST} to {MOST}", f"{call}(run, samples={MOST})"
        )
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise bad("seed", seed, "a whole number from 0", f"{call}(run, seed=0)")
    run = rows(ds, f"{call}(tk.testing.ladder_dataset())", of, x0)
    lead = run.shape[: len(PER[per])]
    size = int(np.prod(run.shape)) // max(int(np.prod(lead)), 1)
    places = slice(None)
    if size > samples:
        places = np.sort(np.random.default_rng(seed).choice(size, samples, replace=False))
    values = np.empty((len(TESTS), *lead))
    with tqdm(total=run.shape[0], desc="normality", leave=False, disable=not progress) as bar:
        for part, block in run:
            flat = block.reshape(-1, size)
            tested = np.concatenate([_shapiro(flat[:, places]), _kolmogorov(flat)])  # (4, rows)
            values[:, part] = tested.reshape(len(TESTS), -1, *lead[1:])
            bar.update(block.shape[0])
    found: Found = {
        name: (PER[per], array, text.format(OVER[per], min(size, samples)), "1")
        for (name, text), array in zip(TESTS.items(), values, strict=True)
    }
    attrs = {"of": of, "samples": min(size, int(samples)), "seed": int(seed)}
    return labelled(found, run.ds, "normality").assign_attrs(attrs)


def _shapiro(flat: np.ndarray) -> np.ndarray:
    """W and p of each row: (2, rows); NaN for fewer than 3 values, equal ones and NaN."""
    from scipy import stats  # takes longer to import than all the rest of the diagnostics

    found = np.full((2, len(flat)), np.nan)
    if flat.shape[1] < FEWEST:
        return found
    with np.errstate(invalid="ignore"):  # Inf - Inf
        wide = flat.max(axis=1) - flat.min(axis=1) >= NARROWEST
    for k in np.flatnonzero(wide & np.isfinite(flat).all(axis=1)):
        found[:, k] = stats.shapiro(flat[k])
    return found


def _kolmogorov(flat: np.ndarray) -> np.ndarray:
    """Largest distance from the normal distribution, and its p, of each row: (2, rows); NaN for NaN."""
    from scipy import stats

    count = flat.shape[1]
    below = ndtr(np.sort(flat, axis=1))
    places = np.arange(count + 1) / count
    distance = np.maximum((places[1:] - below).max(axis=1), (below - places[:-1]).max(axis=1))
    distance[~np.isfinite(flat).all(axis=1)] = np.nan
    p = np.full_like(distance, np.nan)
    known = np.isfinite(distance)
    p[known] = np.clip(stats.kstwo.sf(distance[known], count), 0.0, 1.0)
    return np.stack([distance, p])
