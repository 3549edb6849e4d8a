"""Plain parts of an image against textured ones: where an inversion errs, and makes too faint a noise."""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from ..dataset import LATENT
from ..errors import bad
from .common import Found, Rows, checked, labelled, rows

CALL = "tk.diagnostics.texture_error"
TAU = 0.025  # of the paper's code, for images in -1..1
SAME = 1e-6  # relative difference of sigma up to which two rungs are of the same level

AREAS = ("plain", "textured")


def texture_error(ds: xr.Dataset, reference: Any = None, *, x0: Any = None, threshold: float | None = None,
                  quantile: float | None = None) -> xr.Dataset:  # fmt: skip
    """The noise of every rung in plain parts of the image against textured ones.

    DDIM inversion errs most, and makes noise of too little diversity, where the image is plain (a sky, a
    wall); in a good noise both areas look alike, and every ratio is 1.

    Parameters
    ----------
    ds : Dataset
        A recorded run or ladder, read a block at a time: `latent` (step, sample, channel, y, x), with the
        coordinates `sigma` and `alpha`.
    reference : Dataset or array, optional
        What the noise should be: the true noise, (sample, channel, y, x) or (step, sample, channel, y, x); or
        another run of the same image, say an accurate solution of the ODE, whose rungs of the same sigma are
        compared. None compares the stds alone.
    x0 : array (sample, channel, y, x), optional
        The clean image, in the space of `ds`; None takes the row of sigma 0.
    threshold : float, optional
        A pixel is plain where its variation is below it, in every channel; in units of the latent in model
        space. None, without a quantile: 0.025, as in the paper's code, whose images are in -1..1. The
        latents of a VAE vary more than that, even on a plain sky: use a quantile there.
    quantile : float, optional
        Instead: plain are the pixels of each sample whose variation is at most its quantile, 0 to 1. 0.25
        takes the plainest quarter.

    Returns
    -------
    Dataset
        With the variation of a pixel v = (|x0(y + 1, x) - x0(y, x)| + |x0(y, x + 1) - x0(y, x)|)/2, the
        largest of all channels (in the last row and column the neighbour before serves; in the paper's code
        none does, so that the last corner is always plain); units "1":

        - `plain` (sample, y, x): whether the pixel is plain; `plain_fraction` (sample): how many are.
        - `std_plain`, `std_textured` (step, sample): population std of the noise n = (x - alpha x0)/sigma
          over the pixels of the area and all channels, and `std_ratio` = std_plain/std_textured.
        - with a reference, `error_plain`, `error_textured` (step, sample): mean of |n - n_reference| over the
          same, and `error_ratio` = error_plain/error_textured. For a run as reference this is
          |x - x_reference|/sigma. NaN where the reference has no rung of this sigma.

        NaN at sigma 0, in rows that were not written, and for an area without a pixel. ``kind`` is
        "texture_error"; the attributes ``threshold`` and ``quantile`` say what was plain.

    Raises
    ------
    ValueError
        As `residual_noise`; for a threshold and a quantile at once, or ones out of range; for a reference of
        another shape, or without a rung at any sigma of `ds`.
    TypeError
        As `residual_noise`; for a reference that is no array of numbers.

    References
    ----------
    Staniszewski, Kucinski and Deja, "There and Back Again: On the relation between Noise and Image Inversions
    in Diffusion Models", arXiv 2410.23530; plain pixels after its code (github.com/luk-st/taba,
    ``find_plain_areas``).

    Examples
    --------
    >>> import toolkit as tk
    >>> found = tk.diagnostics.texture_error(tk.testing.ladder_dataset(), quantile=0.25)
    >>> float(found.plain_fraction[0]), bool(abs(found.std_ratio[1:] - 1).max() < 0.2)
    (0.25, True)
    """
    _check(threshold, quantile)
    run = rows(ds, f"{CALL}(tk.testing.ladder_dataset())", x0=x0)
    wanted = None if reference is None else _reference(run, reference)
    plain, tau = _plain(run.clean, threshold, quantile)
    steps, samples = run.shape[:2]
    found = {name: np.full((2, steps, samples), np.nan) for name in ("std", "error")}
    for part, noise in run:
        with np.errstate(invalid="ignore"):  # Inf - Inf
            gap = None if wanted is None else np.abs(noise - wanted(part))
            for k, area in enumerate((plain, ~plain)):
                found["std"][k, part] = np.sqrt(_mean(np.square(noise - _mean(noise, area, True)), area))
                if gap is not None:
                    found["error"][k, part] = _mean(gap, area)
    texts = {"std": "standard deviation of the noise over the {} pixels and all channels (population)",
             "error": "mean absolute error of the noise over the {} pixels and all channels"}  # fmt: skip
    named: Found = {
        "plain": (("sample", "y", "x"), plain, "whether the clean image is plain at this pixel", "1"),
        "plain_fraction": (("sample",), plain.mean(axis=(1, 2)), "part of the pixels that are plain", "1"),
    }
    for name in ("std",) if wanted is None else ("std", "error"):
        for k, area in enumerate(AREAS):
            named[f"{name}_{area}"] = (LATENT[:2], found[name][k], texts[name].format(area), "1")
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = found[name][0] / found[name][1]
        named[f"{name}_ratio"] = (LATENT[:2], ratio, f"{name}_plain over {name}_textured", "1")
    return labelled(named, run.ds, "texture_error").assign_attrs(tau)


def _check(threshold: Any, quantile: Any) -> None:
    if threshold is not None and quantile is not None:
        raise bad("quantile", quantile, "a threshold or a quantile, not both", f"{CALL}(run, quantile=0.25)")
    for name, value, top, line in (("threshold", threshold, np.inf, "threshold=0.025"),
                                   ("quantile", quantile, 1.0, "quantile=0.25")):  # fmt: skip
        fine = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        if value is not None and not (fine and 0 <= value <= top):
            wanted = "a number from 0 to 1" if top == 1 else "a number, 0 or more"
            raise bad(name, value, wanted, f"{CALL}(run, {line})")


def _plain(clean: np.ndarray, threshold: float | None, quantile: float | None) -> tuple[np.ndarray, dict]:
    """Plain pixels of (sample, channel, y, x) as (sample, y, x), and what decided."""
    variation = np.zeros_like(clean)
    for axis in (2, 3):
        size = clean.shape[axis]
        if size > 1:
            with np.errstate(invalid="ignore"):  # Inf - Inf
                step = np.abs(np.diff(clean, axis=axis))
            variation += step.take(np.minimum(np.arange(size), size - 2), axis=axis) / 2
    variation = variation.max(axis=1)  # (sample, y, x)
    if quantile is None:
        tau = TAU if threshold is None else float(threshold)
        return variation < tau, {"threshold": tau}
    edge = np.quantile(variation, quantile, axis=(1, 2), method="lower", keepdims=True)
    return variation <= edge, {"quantile": float(quantile)}


def _mean(values: np.ndarray, area: np.ndarray, keep: bool = False) -> np.ndarray:
    """Mean of (step, sample, channel, y, x) over channels and the pixels of (sample, y, x); NaN of none."""
    count = area.sum(axis=(1, 2)) * values.shape[2]  # (sample,)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = values.sum(axis=(2, 3, 4), where=area[None, :, None]) / count
    return mean[..., None, None, None] if keep else mean


def _reference(run: Rows, reference: Any) -> Callable[[slice], np.ndarray]:
    """A function of the rungs asked for: what their noise should be, or NaN."""
    if isinstance(reference, xr.Dataset):
        return _run_noise(run, reference)
    shape, line = run.shape, f"{CALL}(run, reference=noise)"
    wanted = f"a run, or noise {', '.join(LATENT[1:])} of the run's size {shape[1:]}, or with a step before"
    if isinstance(reference, xr.DataArray):
        dims = LATENT if "step" in reference.dims else LATENT[1:]
        if set(reference.dims) != set(dims):
            raise bad("reference", reference.dims, wanted, line)
        reference = reference.transpose(*dims)
    else:
        try:
            reference = np.asarray(reference)
        except (TypeError, ValueError, RuntimeError):  # a tensor on a GPU, or one that wants a gradient, too
            raise bad("reference", type(reference).__name__, wanted, line, TypeError) from None
    if reference.dtype.kind not in "fiu":
        raise bad("reference", str(reference.dtype), wanted, line, TypeError)
    if reference.shape not in (shape, shape[1:]):
        raise bad("reference", reference.shape, wanted, line)
    whole = reference.ndim == len(shape)
    return lambda part: np.asarray(reference[part] if whole else reference, np.float64)


def _run_noise(run: Rows, reference: xr.Dataset) -> Callable[[slice], np.ndarray]:
    """The same of another run: that of its first rung of the same sigma, where it has one."""
    other = checked(reference, f"{CALL}(run, reference=other)", "latent", raw=True)
    latent = other["latent"].transpose(*LATENT)
    if latent.shape[1:] != run.shape[1:]:
        wanted = f"a run of the same size {run.shape[1:]}"
        raise bad("reference", latent.shape[1:], wanted, f"{CALL}(run, reference=other)")
    place = _places(run.ds["sigma"].values, other["sigma"].values)
    if (place < 0).all():
        wanted = f"a run with a rung at one of the levels {run.ds['sigma'].values}"
        raise bad("reference", other["sigma"].values, wanted, f"{CALL}(run, reference=other)")

    def noise(part: slice) -> np.ndarray:
        at, found = place[part], np.full((len(place[part]), *run.shape[1:]), np.nan)
        known = at[at >= 0]
        if known.size:
            # out of a store, rows by their numbers take eight times the memory of a range of them
            ahead = (np.diff(known) == 1).all()
            found[at >= 0] = latent[slice(known[0], known[-1] + 1) if ahead else known].values
        return run.noise(part, found)

    return noise


def _places(sigma: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each level the first place among `others` where it is, or -1: (step,)."""
    order = np.argsort(others, kind="stable")  # not each with each: that is a matrix of 10,000 x 10,000
    above = np.searchsorted(others[order], sigma * (1 - SAME))
    nearest = order[np.minimum(above, len(others) - 1)]
    return np.where(np.abs(others[nearest] - sigma) <= SAME * sigma, nearest, -1)
