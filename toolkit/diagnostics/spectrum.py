"""How the noise of a rung is spread over space: its spectrum, and how pixels agree with neighbours."""

from typing import Any

import numpy as np
import scipy.fft
import xarray as xr

from ..dataset import LATENT
from ..errors import bad
from .common import Found, labelled, rows

WHAT = {"noise": "the noise", "latent": "the state"}
COARSEST = 8  # side at which the pyramid ends, as in pix2pix-zero and StyleGAN2


def power_spectrum(ds: xr.Dataset, of: str = "noise", *, x0: Any = None) -> xr.Dataset:
    """Radially averaged power spectrum of every rung, and its flatness: 1 at every frequency for white noise.

    Parameters
    ----------
    ds : Dataset
        A recorded run or ladder, read a block at a time: `latent` (step, sample, channel, y, x), with the
        coordinates `sigma` and `alpha`.
    of : {"noise", "latent"}
        The noise n = (x - alpha x0)/sigma, or the states themselves in model space, without a look at x0.
    x0 : array (sample, channel, y, x), optional
        The clean image, in the space of `ds`; None takes the row of sigma 0.

    Returns
    -------
    Dataset
        float64, units "1":

        - `power` (step, sample, channel, frequency): mean of |F|^2/(h w) over the Fourier modes of a ring, F
          being the plain two-dimensional DFT of the h x w field, whose mean is kept (frequency 0). Unit white
          noise has an expected power of 1 everywhere, as its variance is.
        - `modes` (frequency): Fourier modes of the ring, h w in all. Parseval: the sum of modes * power over
          h w is the mean square of the field.
        - `flatness` (step, sample, channel): Wiener entropy, the geometric mean of the power over the
          arithmetic one, over the rings without frequency 0, each counted as often as it has modes. 1 where
          all are equal, 0 for a single wave; a finite field of white noise falls short of 1 by about its
          rings over its pixels (0.99 for 64 x 64, 0.96 for 16 x 16).

        `frequency` is the mean |f| of the modes of a ring, in cycles per latent pixel, with
        f = (k_y/h, k_x/w) and k from -n/2 to n/2: up to 0.5 along y and x, and 0.71 in the corners. Rings are
        1/max(h, w) wide and centred on its multiples. NaN at sigma 0 (of the noise) and in rows that were not
        written; `flatness` also for constant fields. ``kind`` is "power_spectrum", and ``of`` an attribute.

    Raises
    ------
    ValueError
        As `residual_noise`; and for an unknown ``of``.
    TypeError
        As `residual_noise`.

    References
    ----------
    The spectrum of white noise and Parseval's theorem: Oppenheim and Schafer, "Discrete-Time Signal
    Processing". Flatness: Gray and Markel (1974), "A spectral-flatness measure for studying the
    autocorrelation method of linear prediction". Inverted latents that lack high frequencies: arXiv
    2602.13303.

    Examples
    --------
    >>> import toolkit as tk
    >>> found = tk.diagnostics.power_spectrum(tk.testing.ladder_dataset())
    >>> bool((found.flatness[1:] > 0.8).all()), found.frequency.attrs["units"]
    (True, 'cycles per latent pixel')
    """
    run = rows(ds, "tk.diagnostics.power_spectrum(tk.testing.ladder_dataset())", of, x0)
    frequency, modes, ring, weight = _rings(*run.shape[-2:])
    spread = np.zeros((ring.size, len(modes)))  # from modes to the mean over each ring
    spread[np.arange(ring.size), ring] = weight / modes[ring]
    power, flatness = np.empty((*run.shape[:3], len(modes))), np.empty(run.shape[:3])
    for part, values in run:
        with np.errstate(divide="ignore", invalid="ignore"):  # fields of NaN, Inf or one value
            wave = scipy.fft.rfft2(values)
            square = np.square(wave.real) + np.square(wave.imag)
            power[part] = square.reshape(*values.shape[:3], -1) @ spread / np.prod(run.shape[-2:])
            flatness[part] = _flatness(power[part][..., 1:], modes[1:], values)
    text = f"power of {WHAT[of]}, mean over the Fourier modes of a ring; 1 for unit white noise"
    found: Found = {
        "power": ((*LATENT[:3], "frequency"), power, text, "1"),
        "modes": (("frequency",), modes, "Fourier modes of the ring", "1"),
        "flatness": (
            LATENT[:3],
            flatness,
            "geometric over arithmetic mean of the power above 0; 1: white",
            "1",
        ),
    }
    label = {"long_name": "mean spatial frequency of the ring", "units": "cycles per latent pixel"}
    coords = {"frequency": ("frequency", frequency, label)}
    return labelled(found, run.ds, "power_spectrum", coords).assign_attrs(of=of)


def _rings(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Frequency and modes of each ring; ring and weight of each mode of a half-plane DFT, flat."""
    y, x = scipy.fft.fftfreq(height)[:, None], scipy.fft.rfftfreq(width)[None, :]
    radius = np.hypot(y, x)
    weight = np.full(radius.shape, 2.0)  # a real field: each wave but those has a twin in the other half
    weight[:, 0] = 1.0
    if width % 2 == 0:
        weight[:, -1] = 1.0
    radius, weight = radius.ravel(), weight.ravel()
    _, ring = np.unique(np.rint(radius * max(height, width)), return_inverse=True)
    modes = np.bincount(ring, weight)
    return np.bincount(ring, weight * radius) / modes, modes, ring, weight


def _flatness(power: np.ndarray, modes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Geometric over arithmetic mean of the modes; NaN for a field of one value, or one pixel."""
    if not len(modes):
        return np.full(power.shape[:-1], np.nan)
    part = modes / modes.sum()
    ratio = np.exp((np.log(power) * part).sum(axis=-1)) / (power * part).sum(axis=-1)
    # not `power > 0`: rounding leaves a little in a constant field
    return np.where(values.max(axis=(-2, -1)) > values.min(axis=(-2, -1)), ratio, np.nan)


def autocorrelation(ds: xr.Dataset, x0: Any = None, lags: int = 4, *, of: str = "noise") -> xr.Dataset:
    """Correlation of the noise of every rung with itself, shifted by a few pixels, at several scales.

    White noise gives 0, give or take 1/sqrt(pixels of the scale). `l_pair` and `l_kl` are the two numbers by
    which pix2pix-zero pulls the noise of an inversion towards white noise.

    Parameters
    ----------
    ds : Dataset
        A recorded run or ladder, read a block at a time: `latent` (step, sample, channel, y, x), with the
        coordinates `sigma` and `alpha`.
    x0 : array (sample, channel, y, x), optional
        The clean image, in the space of `ds`; None takes the row of sigma 0.
    lags : int
        The shifts of `autocorrelation`, from 1 to this many pixels of each scale.
    of : {"noise", "latent"}
        The noise n = (x - alpha x0)/sigma, or the states themselves in model space, without a look at x0.

    Returns
    -------
    Dataset
        float64, units "1". Level p of the pyramid, n^p, is the field averaged over squares of `scale` = 2^p
        pixels, from the field itself down to the first whose shorter side is at most 8; a last odd row or
        column is left out. Fields are periodic, S is the side of n^p along the shift:

        - `autocorrelation` (step, sample, channel, scale, along, lag): sum of (n^p - m) roll(n^p - m, lag)
          over y and x, over the sum of (n^p - m)^2, m being the mean of n^p, shifted along "y" or "x". NaN
          for lags above S/2, which repeat smaller ones, and for constant fields.
        - `l_pair` (step, sample): sum over channels, scales and both directions of the mean, over all shifts
          from 1 to S/2, of C^2, with C = mean of n^p roll(n^p, shift) over y and x, of which no mean is taken
          off and which no variance divides. Unit white noise of N pixels expects a little over 2 channels/N
          times the sum of 1/scale^2. pix2pix-zero sums over the shifts, draws one of them at random in its
          code, and counts the shift 0, where every noise has its variance; here each one from 1 on counts
          once.
        - `l_kl` (step, sample): v + m^2 - 1 - log v with mean and unbiased variance over all channels of a
          sample: twice the Kullback-Leibler divergence of N(m, v) from N(0, 1). Infinite where all are equal.

        NaN at sigma 0 (of the noise), and in rows that were not written. ``kind`` is "autocorrelation", and
        ``of`` an attribute.

    Raises
    ------
    ValueError
        As `residual_noise`; for an unknown ``of``, and for lags that are no whole number from 1.
    TypeError
        As `residual_noise`.

    References
    ----------
    Parmar et al., "Zero-shot Image-to-Image Translation" (pix2pix-zero), arXiv 2302.03027, section 3.1,
    L_pair and L_KL, and its code (``auto_corr_loss``, ``kl_divergence``); after the noise regularisation of
    StyleGAN2, arXiv 1912.04958, appendix D.

    Examples
    --------
    >>> import toolkit as tk
    >>> found = tk.diagnostics.autocorrelation(tk.testing.ladder_dataset())
    >>> found.scale.values.tolist(), bool(abs(found.autocorrelation[1:, ..., 0, :, :]).max() < 4 / 16)
    ([1, 2], True)
    """
    if isinstance(lags, bool) or not isinstance(lags, (int, np.integer)) or lags < 1:
        line = "tk.diagnostics.autocorrelation(run, lags=4)"
        raise bad("lags", lags, "a whole number of shifts, 1 or more", line)
    run = rows(ds, "tk.diagnostics.autocorrelation(tk.testing.ladder_dataset())", of, x0)
    scales = _scales(*run.shape[-2:])
    found = np.full((*run.shape[:3], len(scales), 2, int(lags)), np.nan)
    pair, kl = np.zeros(run.shape[:2]), np.empty(run.shape[:2])
    for part, values in run:
        with np.errstate(divide="ignore", invalid="ignore"):  # constant fields, NaN, Inf
            flat = values.reshape(*values.shape[:2], -1)
            v = flat.var(axis=-1, ddof=1) if flat.shape[-1] > 1 else np.full(flat.shape[:2], np.nan)
            kl[part] = v + np.square(flat.mean(axis=-1)) - 1.0 - np.log(v)
            for k in range(len(scales)):
                if k:
                    values = _pooled(values)
                pair[part] += _correlate(values, found[part][..., k, :, :])
    text = f"correlation of {WHAT[of]} with itself, shifted by lag pixels of this scale"
    found_: Found = {
        "autocorrelation": ((*LATENT[:3], "scale", "along", "lag"), found, text, "1"),
        "l_pair": (LATENT[:2], pair, "mean square of the pixel products over all shifts, summed up", "1"),
        "l_kl": (LATENT[:2], kl, "v + m^2 - 1 - log v of mean and variance; 0 for unit noise", "1"),
    }
    coords = {
        "scale": ("scale", scales, {"long_name": "side of the squares averaged", "units": "latent pixel"}),
        "along": (
            "along",
            np.array(["y", "x"], object),
            {"long_name": "direction of the shift", "units": "1"},
        ),
        "lag": ("lag", np.arange(1, int(lags) + 1), {"long_name": "shift", "units": "pixel of the scale"}),
    }
    return labelled(found_, run.ds, "autocorrelation", coords).assign_attrs(of=of)


def _scales(height: int, width: int) -> np.ndarray:
    """1, 2, 4, ... while the shorter side is above 8."""
    count = 1
    while min(height, width) >> (count - 1) > COARSEST:
        count += 1
    return 2 ** np.arange(count)


def _pooled(values: np.ndarray) -> np.ndarray:
    """Means of squares of 2 x 2 pixels, without a last odd row or column."""
    height, width = (size // 2 * 2 for size in values.shape[-2:])
    top, low = values[..., 0:height:2, :width], values[..., 1:height:2, :width]
    both = top + low
    return (both[..., 0::2] + both[..., 1::2]) / 4


def _correlate(values: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Fills `out` (step, sample, channel, along, lag); returns their part of `l_pair`, (step, sample)."""
    mean = values.mean(axis=(-2, -1))
    varies = values.max(axis=(-2, -1)) > values.min(axis=(-2, -1))
    spread, pair = values - mean[..., None, None], 0.0
    for along, axis in enumerate((-2, -1)):
        size = values.shape[axis]
        wave = scipy.fft.rfft(spread, axis=axis)
        square = (np.square(wave.real) + np.square(wave.imag)).mean(axis=-3 - axis)  # over the other of y, x
        product = scipy.fft.irfft(square, n=size, axis=-1)[..., : size // 2 + 1] / size  # at shifts 0 to S/2
        shifts = min(out.shape[-1], size // 2)
        whole = np.where(varies, product[..., 0], np.nan)
        out[..., along, :shifts] = product[..., 1 : shifts + 1] / whole[..., None]
        if size > 1:
            pair = pair + np.square(product[..., 1:] + np.square(mean)[..., None]).mean(axis=-1).sum(axis=-1)
    # a side of one pixel has no shift; a noise that is NaN stays so
    return pair + 0.0 * mean.sum(axis=-1)
