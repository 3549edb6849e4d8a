"""What the rows of a run have in common: with the image, with each other, with those of another run."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr

from ..dataset import LATENT
from ..errors import bad
from .common import Found, Rows, labelled, rows

SMALLEST = 1e-8  # norm below which Iterative-Mixer's comparator (torch's cosine_similarity) divides by this
LARGEST = 2**24  # entries of a matrix: 128 MiB in float64, 4,096 rungs of one sample
OUTER = 2**22  # values of the rows that are held while all others pass by: 32 MiB
PAIRS = ("step", "step_b", "sample")


def image_correlation(ds: xr.Dataset, x0: Any = None) -> xr.Dataset:
    """Pearson correlation of the noise of every rung with the clean image, channel by channel.

    Noise that was drawn knows nothing of the image: 0, give or take 1/sqrt(pixels). That of an ODE does: the
    flow leaves the coarse pattern of the noise in the image, so that a model's own samples correlate with
    their true noise as well. Compare an inversion with these, not with 0.

    Parameters
    ----------
    ds : Dataset
        A recorded run or ladder, read a block at a time: `latent` (step, sample, channel, y, x), with the
        coordinates `sigma` and `alpha`.
    x0 : array (sample, channel, y, x), optional
        The clean image, in the space of `ds`; None takes the row of sigma 0.

    Returns
    -------
    Dataset
        `image_correlation` (step, sample, channel), float64, units "1", -1 to 1: sum of
        (n - mean n)(x0 - mean x0) over y and x, over the root of both sums of squares, with
        n = (x - alpha x0)/sigma. NaN at sigma 0, in rows that were not written, and where noise or image is
        constant. ``kind`` is "image_correlation".

    Raises
    ------
    ValueError, TypeError
        As `residual_noise`.

    References
    ----------
    Pearson (1895); correlation that inverted latents keep with their image: arXiv 2410.23530.

    Examples
    --------
    >>> import toolkit as tk
    >>> found = tk.diagnostics.image_correlation(tk.testing.ladder_dataset())
    >>> bool(abs(found.image_correlation[1:]).max() < 4 / 16)
    True
    """
    run = rows(ds, "tk.diagnostics.image_correlation(tk.testing.ladder_dataset())", x0=x0)
    found = np.empty(run.shape[:3])
    image = _centred(run.clean.reshape(*run.shape[1:3], -1))  # (sample, channel, pixel)
    for part, noise in run:
        unit = _centred(noise.reshape(*noise.shape[:3], -1))
        found[part] = np.einsum("ijkp,jkp->ijk", unit, image)
    text = "Pearson correlation of the noise with the clean image over y and x"
    return labelled({"image_correlation": (LATENT[:3], found, text, "1")}, run.ds, "image_correlation")


def cosine_matrix(a: xr.Dataset, b: xr.Dataset | None = None, *, every: int = 1) -> xr.Dataset:
    """Cosine similarity of every row of one run with every row of another, sample by sample.

    Iterative-Mixer's LatentBatchComparator, of the states themselves: two rows that hold the same image
    under little noise are alike, rows of independent noise are not.

    Parameters
    ----------
    a, b : Dataset
        Recorded runs or ladders, read a block at a time: `latent` (step, sample, channel, y, x), of the same
        samples, channels and size, with the coordinates `sigma` and `alpha`; any number of rungs. None
        compares `a` with itself.
    every : int
        Take each k-th rung of both, from the first on.

    Returns
    -------
    Dataset
        `cosine` (step, step_b, sample), float64, units "1": <a_i, b_j> / (max(|a_i|, 1e-8) max(|b_j|, 1e-8))
        over all channels and pixels of a sample, in model space. Rows of `a` run along `step`, labelled with
        `sigma`, rows of `b` along `step_b`, labelled with `sigma_b`. NaN for rows that were not written.
        ``kind`` is "cosine_matrix".

    Raises
    ------
    ValueError
        For a Dataset without `latent` or the coordinates of a run, runs whose rows differ in size, and a
        matrix of more than 2^24 entries (128 MiB): take ``every`` then.
    TypeError
        For what is no Dataset.

    References
    ----------
    ComfyUI-Iterative-Mixer (github.com/ttulttul/ComfyUI-Iterative-Mixer), node Latent Batch Comparator, whose
    plot swaps the labels of its axes; the bound of 1e-8 is that of ``torch.nn.functional.cosine_similarity``.

    Examples
    --------
    >>> import toolkit as tk
    >>> found = tk.diagnostics.cosine_matrix(tk.testing.ladder_dataset(steps=5))
    >>> dict(found.sizes), float(found.cosine[2, 2, 0].round(12))
    ({'step': 6, 'step_b': 6, 'sample': 1}, 1.0)
    """
    call = "tk.diagnostics.cosine_matrix"
    first = rows(a, f"{call}(tk.testing.ladder_dataset())", "latent")
    second = None if b is None else rows(b, f"{call}(run, tk.testing.ladder_dataset())", "latent")
    if second is not None and first.shape[1:] != second.shape[1:]:
        wanted = f"rows of the same size as those of a, {first.shape[1:]}"
        raise bad("b", second.shape[1:], wanted, f"{call}(run)")
    first, second = _thinned(first, second, every, call)

    def unit(values: np.ndarray) -> np.ndarray:
        norm = np.sqrt(np.square(values).sum(axis=-1, keepdims=True))
        return values / np.maximum(norm, SMALLEST)

    text = "cosine between a row of the first run and one of the second, over channel, y and x"
    found: Found = {"cosine": (PAIRS, _products(first, second, unit), text, "1")}
    return labelled(found, first.ds, "cosine_matrix", _second_axis(second or first))


def rung_correlation(ds: xr.Dataset, x0: Any = None, *, every: int = 1) -> xr.Dataset:
    """Correlation of the noise of every rung with that of every other, and what the run's coupling expects.

    Parameters
    ----------
    ds : Dataset
        A recorded run or ladder, read a block at a time: `latent` (step, sample, channel, y, x), with the
        coordinates `sigma` and `alpha`.
    x0 : array (sample, channel, y, x), optional
        The clean image, in the space of `ds`; None takes the row of sigma 0.
    every : int
        Take each k-th rung, from the first on.

    Returns
    -------
    Dataset
        float64, units "1":

        - `rung_correlation` (step, step_b, sample): Pearson correlation of the noises
          n = (x - alpha x0)/sigma of two rungs over all channels and pixels of a sample. Independent noise
          gives 0, give or take 1/sqrt(values). NaN at sigma 0, in rows that were not written, and where a
          noise is constant.
        - `expected` (step, step_b), where ``attrs["coupling"]`` is one of three: "independent", 1 for a rung
          with itself, else 0; "shared", 1; "markov", rho_j/rho_k for rho_j <= rho_k, with rho = sigma/alpha:
          the noise of x/alpha grows by independent increments. NaN at sigma 0. In an unsample the rung of the
          lowest level holds no noise, so that rho^2 counts from its own, and its row is NaN.

        `sigma` labels `step`, and `sigma_b` `step_b`. ``kind`` is "rung_correlation".

    Raises
    ------
    ValueError
        As `residual_noise`; and for a matrix of more than 2^24 entries (128 MiB): take ``every`` then.
    TypeError
        As `residual_noise`.

    References
    ----------
    The forward process as a Markov chain: DDPM, arXiv 2006.11239, eq. 2; independent rungs: the edit-friendly
    noise space, arXiv 2304.06140, section 3.2.

    Examples
    --------
    >>> import toolkit as tk
    >>> found = tk.diagnostics.rung_correlation(tk.testing.ladder_dataset(steps=5))
    >>> bool(abs(found.rung_correlation - found.expected).max() < 1e-5)
    True
    """
    call = "tk.diagnostics.rung_correlation"
    run = rows(ds, f"{call}(tk.testing.ladder_dataset())", x0=x0)
    positive = run.ds["sigma"].values[run.ds["sigma"].values > 0]
    thin, _ = _thinned(run, None, every, call)
    text = "Pearson correlation of the noise of two rungs over channel, y and x"
    found: dict[str, Any] = {"rung_correlation": (PAIRS, _products(thin, None, _centred), text, "1")}
    coupling = COUPLINGS.get(str(run.ds.attrs.get("coupling")))
    if coupling is not None:
        sigma, alpha = (thin.ds[name].values.astype(np.float64) for name in ("sigma", "alpha"))
        with np.errstate(divide="ignore", invalid="ignore"):  # alpha 0: FLOW's sigma 1
            square = np.square(sigma / alpha)
            if run.ds.attrs.get("kind") == "unsample" and positive.size:
                lowest = int(np.flatnonzero(run.ds["sigma"].values == positive.min())[0])
                square = square - (positive.min() / float(run.ds["alpha"].values[lowest])) ** 2
            expected = coupling(np.sqrt(np.maximum(square, 0.0)))
        none = ~(square > 0)
        expected[none] = expected[:, none] = np.nan
        found["expected"] = (PAIRS[:2], expected, "correlation that the coupling of the run expects", "1")
    return labelled(found, thin.ds, "rung_correlation", _second_axis(thin))


def _markov(rho: np.ndarray) -> np.ndarray:
    """min/max of each pair: (step, step); 1 of a rung with itself, at infinity too."""
    ratio = np.minimum.outer(rho, rho) / np.maximum.outer(rho, rho)
    np.fill_diagonal(ratio, 1.0)
    return ratio


# coupling -> the correlation it expects, from rho = sigma/alpha of the rungs
COUPLINGS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "independent": lambda rho: np.eye(len(rho)),
    "shared": lambda rho: np.ones((len(rho), len(rho))),
    "markov": _markov,
}


def _centred(values: np.ndarray) -> np.ndarray:
    """Values less their mean and of unit norm along the last axis; NaN where they are all equal."""
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = values - values.mean(axis=-1, keepdims=True)
        # not `norm > 0`: the mean of many times 0.1 is not 0.1
        varies = values.max(axis=-1, keepdims=True) > values.min(axis=-1, keepdims=True)
        norm = np.sqrt(np.square(unit).sum(axis=-1, keepdims=True))
        return unit / np.where(varies, norm, np.nan)


def _thinned(a: Rows, b: Rows | None, every: Any, call: str) -> tuple[Rows, Rows | None]:
    """Each `every`-th rung of both, refused where the matrix of all pairs would be too large."""
    if isinstance(every, bool) or not isinstance(every, (int, np.integer)) or every < 1:
        raise bad("every", every, "a whole number of rungs, 1 or more", f"{call}(run, every=10)")
    a, b = a.take(int(every)), None if b is None else b.take(int(every))
    pairs = a.shape[0] * (b or a).shape[0] * a.shape[1]
    if pairs > LARGEST:
        enough = int(every) * math.ceil(math.sqrt(pairs / LARGEST))
        wanted = f"at most {LARGEST} entries (step, step_b, sample), and these are {pairs}"
        raise bad("every", every, wanted, f"{call}(run, every={enough})")
    return a, b


def _products(a: Rows, b: Rows | None, unit: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Inner products of the rows of both as `unit` scales them: (step, step_b, sample).

    A few rows of the first are held while all of the second pass by; of a run with itself only those from
    the same row on.
    """
    found = np.empty((a.shape[0], (b or a).shape[0], a.shape[1]))
    for part, left in a.read(OUTER):
        with np.errstate(invalid="ignore"):
            left = unit(left.reshape(*left.shape[:2], -1)).swapaxes(0, 1)  # (sample, step, value)
        for other, right in _after(a, part.start) if b is None else b.read():
            with np.errstate(invalid="ignore"):  # Inf / Inf
                right = unit(right.reshape(*right.shape[:2], -1)).transpose(1, 2, 0)  # (sample, value, step)
                found[part, other] = np.moveaxis(left @ right, 0, -1)
            if b is None:
                found[other, part] = found[part, other].swapaxes(0, 1)
    return found


def _after(run: Rows, first: int) -> Iterator[tuple[slice, np.ndarray]]:
    """The rows from one on, as `Rows.read` gives them."""
    for part, values in Rows(run.ds.isel(step=slice(first, None)), run.clean).read():
        yield slice(part.start + first, part.stop + first), values


def _second_axis(b: Rows) -> dict[str, Any]:
    """`step_b` and `sigma_b`: the labels of the second axis of a matrix."""
    step = b.ds["step"].values if "step" in b.ds.coords else np.arange(b.shape[0])
    return {
        "step_b": ("step_b", step, {"long_name": "rung of the second run", "units": "1"}),
        "sigma_b": (
            "step_b",
            b.ds["sigma"].values,
            {"long_name": "noise level of the second run", "units": "1"},
        ),
    }
