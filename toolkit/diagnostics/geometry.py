"""The shape of a trajectory: how far it leaves its chord, how it bends, and how many dimensions it needs."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.linalg
import xarray as xr

from ..dataset import LATENT
from ..errors import bad
from .common import BLOCK, blocks, checked, labelled

MOST_RUNGS = 2048  # of a Gram matrix: 32 MiB a sample in float64, and a second for its eigenvectors
SMALL = 1e-6  # of the largest score: what rounding leaves of rows in float32 is to choose no sign

CHORD = "the straight line through the first and the last row"
ROWS = {
    "chord_deviation": f"distance of the state from {CHORD}, over the length of that chord",
    "chord_rms": f"distance of the state from {CHORD}, root mean square over the latent's elements",
    "chord_position": f"place of the state along {CHORD}: 0 at the first, 1 at the last",
    "step_cosine": "cosine between the step that ends in this row and the step that leaves it",
    "curvature": "Menger curvature of this row and its two neighbours, 1 over the radius of their circle",
}
TURNS = ("step_cosine", "curvature")
WHOLE = {
    "arc_length": "sum of the Euclidean lengths of the steps",
    "chord_length": "Euclidean distance of the last row from the first",
    "straightness": "mean over sigma of |dx/dsigma - chord slope|^2, over |chord slope|^2; 0: straight, even",
}


def trajectory(ds: xr.Dataset) -> xr.Dataset:
    """How far a run leaves its chord, how its steps turn, and how long it is, sample by sample.

    All in the space of the states as they are, `latent` in model space, with the Euclidean norm over channel,
    y and x; nothing is divided by sigma. On VE the states grow with sigma, so that the chord is long (about
    sigma_max times the root of the number of elements) and the low levels all lie near its clean end; on FLOW
    their size stays about the same. Therefore the deviation is given over the length of the chord, which
    compares across both, and as a root mean square in units of the latent.

    Parameters
    ----------
    ds : Dataset
        A recorded run or ladder, rising or falling: `latent` (step, sample, channel, y, x) and the coordinate
        `sigma`.

    Returns
    -------
    Dataset
        In float64; units are "1", those of the latent. With x_i the i-th row that was written, u the unit
        vector along the chord x_N - x_0, and a = x_i - x_(i-1), b = x_(i+1) - x_i:

        (step, sample):

        - `chord_deviation` = |(x_i - x_0) - <x_i - x_0, u> u| / |x_N - x_0|, `chord_rms` the same distance
          over the root of the number of elements in place of the chord, and
          `chord_position` = <x_i - x_0, u> / |x_N - x_0|.
        - `step_cosine` = <a, b> / (|a| |b|): 1 goes straight on, -1 turns back.
        - `curvature` = 2 sin(a, b) / |a + b|, that of the circle through the three states (Menger): 0 on a
          straight line, 1/R on a circle of radius R. NaN at both ends, like the cosine, and where two of the
          three states are the same.

        (sample,):

        - `arc_length` = sum |b|, `chord_length` = |x_N - x_0|; they are the same on a straight line.
        - `straightness`: S of rectified flow, the mean of |(x_N - x_0) - dx/dt|^2 over t, with t = sigma
          scaled to 0..1 and a straight segment between two rows, over |x_N - x_0|^2. 0 where one Euler step
          from end to end is exact. NaN where the levels do not rise or fall all the way.

        Rows that were not written, or hold NaN, are NaN and are passed over: neighbours are the nearest rows
        that are there. A run of one row has no chord (NaN).

    Raises
    ------
    TypeError, ValueError
        For what is no Dataset, and for one without `latent` or without `sigma`.

    References
    ----------
    Deviation from the chord: GITS, arXiv 2405.11326, section 3.1. Straightness: Rectified Flow, arXiv
    2209.03003, section 2.1, S(Z). Curvature: Menger (1930), "Untersuchungen ueber allgemeine Metrik".

    Examples
    --------
    >>> import toolkit as tk
    >>> found = tk.diagnostics.trajectory(tk.testing.ladder_dataset())  # one noise: x0 + sigma n is straight
    >>> bool(found.chord_deviation.max() < 1e-6), bool(found.step_cosine.min() > 0.9999)
    (True, True)
    """
    line = "tk.diagnostics.trajectory(tk.testing.unsample_dataset())"
    ds = checked(ds, line, "latent", coords=("sigma",))
    rows, walks = _walked(ds)
    rows |= _from_chord(ds, walks)
    whole = {name: np.array([getattr(walk, name)() for walk in walks]) for name in WHOLE}
    found: dict[str, Any] = {n: (LATENT[:2], rows[n], text, "1") for n, text in ROWS.items()}
    found |= {n: (("sample",), whole[n], text, "1") for n, text in WHOLE.items()}
    return labelled(found, ds, "trajectory")


def _flat_rows(ds: xr.Dataset) -> Iterator[tuple[int, int, np.ndarray]]:
    """(row, sample, its state as one vector, float64) of all that was written, row after row."""
    for part, block in blocks(ds["latent"]):
        flat = block.reshape(*block.shape[:2], -1)  # (step, sample, element)
        there = np.isfinite(flat).all(axis=2)
        for i, k in np.argwhere(there):
            yield part.start + int(i), int(k), flat[i, k]


@dataclass
class _Walk:
    """One sample's way from row to row: what it is made of so far."""

    first: np.ndarray | None = None
    last: np.ndarray | None = None
    step: np.ndarray | None = None  # the one that ends in `last`
    at: int = -1  # the row of `last`
    sigmas: list[float] = field(default_factory=list)
    arc: float = 0.0
    energy: float = 0.0  # integral of |dx/dsigma|^2 over sigma

    def on(self, row: int, sigma: float, x: np.ndarray) -> tuple[float, float]:
        """Goes on to `x`; the cosine and the curvature at the row that it leaves."""
        turn = (np.nan, np.nan)
        if self.last is None:
            self.first = x.copy()  # a row of a block, which is not to be kept alive
        else:
            step, rise = x - self.last, abs(sigma - self.sigmas[-1])
            length = float(np.linalg.norm(step))
            turn = turning(self.step, step) if self.step is not None else turn
            self.arc += length
            self.energy += length**2 / rise if rise > 0 else np.inf if length else 0.0
            self.step = step
        self.last, self.at = x.copy(), row
        self.sigmas.append(sigma)
        return turn

    @property
    def chord(self) -> np.ndarray | None:
        """From the first state to the last; None where there are not two."""
        return None if self.step is None else self.last - self.first

    def arc_length(self) -> float:
        return np.nan if self.chord is None else self.arc

    def chord_length(self) -> float:
        return np.nan if self.chord is None else float(np.linalg.norm(self.chord))

    def straightness(self) -> float:
        rises = np.sign(np.diff(self.sigmas))
        length, span = self.chord_length(), abs(self.sigmas[-1] - self.sigmas[0]) if self.sigmas else 0.0
        one_way = (rises >= 0).all() or (rises <= 0).all()  # False where a level is NaN
        if not one_way or not length > 0 or span == 0:
            return np.nan
        return max(self.energy * span / length**2 - 1.0, 0.0)  # rounding alone can take it below 0


def turning(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """The cosine between two successive steps, and the Menger curvature of the three states they join."""
    a, b = np.linalg.norm(before), np.linalg.norm(after)
    if a == 0 or b == 0:
        return np.nan, np.nan
    unit = before / a
    along = float(unit @ after)
    # the part of the step across the one before it: from the cosine, the sine would lose half of the digits
    across = float(np.linalg.norm(after - along * unit))
    base = float(np.linalg.norm(before + after))
    return float(np.clip(along / b, -1.0, 1.0)), 2.0 * across / (float(b) * base) if base else np.nan


def _walked(ds: xr.Dataset) -> tuple[dict[str, np.ndarray], list[_Walk]]:
    """Cosine and curvature of each row (step, sample), and the walk of each sample."""
    sigma = ds["sigma"].values.astype(np.float64)
    rows = {name: np.full(ds["latent"].transpose(*LATENT).shape[:2], np.nan) for name in TURNS}
    walks = [_Walk() for _ in range(ds.sizes["sample"])]
    for row, k, x in _flat_rows(ds):
        left = walks[k].at
        for name, value in zip(TURNS, walks[k].on(row, sigma[row], x), strict=True):
            rows[name][left, k] = value  # row -1 before the first: NaN, and the last row's is NaN as well
    return rows, walks


def _from_chord(ds: xr.Dataset, walks: list[_Walk]) -> dict[str, np.ndarray]:
    """Distance from the chord in both units, and the place along it, each (step, sample)."""
    shape = ds.sizes["step"], len(walks)
    found = {name: np.full(shape, np.nan) for name in ("chord_deviation", "chord_rms", "chord_position")}
    for row, k, x in _flat_rows(ds):
        length = walks[k].chord_length()
        if not length > 0:  # a constant run has no direction
            continue
        unit, out = walks[k].chord / length, x - walks[k].first
        along = float(unit @ out)
        away = float(np.linalg.norm(out - along * unit))
        found["chord_position"][row, k] = along / length
        found["chord_deviation"][row, k] = away / length
        found["chord_rms"][row, k] = away / np.sqrt(x.size)
    return found


# --- principal components ----


def principal_components(ds: xr.Dataset, components: int = 3, every: int = 1) -> xr.Dataset:
    """The trajectory of each sample in the few dimensions that hold most of it.

    The rows of a sample, less their mean, are taken apart by a principal component analysis of their own: the
    eigenvectors of the Gram matrix of the rows, so that the number of elements does not matter. As in
    `trajectory`, states are taken as they are: on VE the high levels weigh most.

    Parameters
    ----------
    ds : Dataset
        A recorded run or ladder: `latent` (step, sample, channel, y, x) and the coordinate `sigma`.
    components : int
        How many to find.
    every : int
        Find them from each k-th row (and the last one) alone; the scores are those of all rows all the same.
        The Gram matrix is rows x rows, and is refused from 2,049 rows on.

    Returns
    -------
    Dataset
        In float64:

        - `score` (step, sample, component), units of the latent: <x_i - mean, v_k> with the unit axis v_k, in
          the Euclidean norm over channel, y and x; the mean is that of the rows that were used. An axis and
          its opposite are the same component: the score of the noisiest row is positive, and where that is
          next to nothing, the largest in size.
        - `explained` (sample, component): variance of the rows along v_k over their whole variance, falling.

        Components beyond the rank have score and explained variance 0. Rows that were not written, or hold
        NaN, are left out and have NaN. Where the rows do not vary, or there is but one, the score is 0 and
        `explained` NaN. ``attrs["every"]`` says which rows were used.

    Raises
    ------
    TypeError, ValueError
        For what is no Dataset, one without `latent` or without `sigma`, numbers that are not whole and
        positive, and more than 2,048 rows.

    References
    ----------
    Trajectories of the probability flow ODE lie near a space of two or three dimensions: GITS, arXiv
    2405.11326, section 3.2, where the components are taken in the complement of the chord.

    Examples
    --------
    >>> import toolkit as tk
    >>> found = tk.diagnostics.principal_components(tk.testing.ladder_dataset())
    >>> bool(found.explained.sel(component=0) > 0.9999)  # x0 + sigma n lies on a line
    True
    """
    line = "tk.diagnostics.principal_components(run, components=3, every=1)"
    for name, value in (("components", components), ("every", every)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise bad(name, value, "a whole number, 1 or more", line)
    ds = checked(ds, line, "latent", coords=("sigma",))
    count = ds.sizes["step"]
    used = np.unique(np.append(np.arange(0, count, every), count - 1))
    if len(used) > MOST_RUNGS:
        wanted = f"{len(used)} rows have a Gram matrix of {len(used) ** 2 / 2**17:.0f} MiB; use fewer of them"
        raise bad("every", every, wanted, line.replace("every=1", f"every={thinning(count)}"))
    sigma = ds["sigma"].values.astype(np.float64)
    score, explained = _scores(ds["latent"].transpose(*LATENT), sigma, used, int(components))
    found = {
        "score": ((*LATENT[:2], "component"), score, "score of the row in this principal component", "1"),
        "explained": (("sample", "component"), explained, "share of the variance of the rows", "1"),
    }
    place = {"long_name": "principal component, the largest first", "units": "1"}
    coords = {"component": ("component", np.arange(components), place)}
    return labelled(found, ds, "principal_components", coords).assign_attrs(every=int(every))


def thinning(rungs: int) -> int:
    """The smallest `every` with which a run of so many rungs can be taken apart."""
    return max(-(-(rungs - 1) // (MOST_RUNGS - 1)), 1)


def _scores(latent: xr.DataArray, sigma: np.ndarray, used: np.ndarray,
            count: int) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Scores (step, sample, component) and shares (sample, component), from the rows `used`."""
    score = np.full((*latent.shape[:2], count), np.nan)
    explained = np.full((latent.shape[1], count), np.nan)
    for k in range(latent.shape[1]):
        states = latent[:, k]
        mean, there = _mean(states, used)
        if not len(there):
            continue
        gram = _gram(states, there, mean)
        scale = np.trace(gram)
        axes = np.zeros((count, mean.size))
        if scale > 0:
            values, weights = _largest(gram, count, mean.size)
            explained[k] = values / scale
            for rows, x in _rows_of(states, there):
                axes += weights[:, np.searchsorted(there, rows)] @ (x - mean)
        for rows, x in _rows_of(states, np.arange(len(states))):
            score[rows, k] = (x - mean) @ axes.T
        score[:, k] *= _signs(score[:, k], sigma)
    return score, explained


def _signs(score: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """1 or -1 for each component of (step, component), with which the noisiest row's score is positive."""
    there = np.flatnonzero(np.isfinite(score).all(axis=1) & np.isfinite(sigma))
    if not len(there):
        return np.ones(score.shape[1])
    top = score[there[sigma[there].argmax()]]
    peak = score[there[np.abs(score[there]).argmax(axis=0)], np.arange(score.shape[1])]
    return np.where(np.where(np.abs(top) > SMALL * np.abs(peak), top, peak) < 0, -1.0, 1.0)


def _rows_of(states: xr.DataArray, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of (step, channel, y, x) a few at a time: their numbers, and (row, element) in float64."""
    most = max(4 * BLOCK // max(states[0].size, 1), 1)  # the more at once, the fewer pairs of blocks
    for first in range(0, len(rows), most):
        some = rows[first : first + most]
        values = states.isel(step=some).values.astype(np.float64, copy=False)
        yield some, values.reshape(len(some), -1)


def _mean(states: xr.DataArray, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean row, and which of the rows `used` were written."""
    total, there = np.zeros(states[0].size), []
    for rows, x in _rows_of(states, used):
        full = np.isfinite(x).all(axis=1)
        total += x[full].sum(axis=0)
        there.append(rows[full])
    written = np.concatenate(there)
    return total / max(len(written), 1), written


def _gram(states: xr.DataArray, rows: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Inner products of rows less the mean, from two blocks of them at a time."""
    gram = np.empty((len(rows), len(rows)))
    place = {int(row): i for i, row in enumerate(rows)}
    for some, x in _rows_of(states, rows):
        first = place[int(some[0])]
        here = slice(first, first + len(some))
        for others, y in _rows_of(states, rows[first:]):
            start = place[int(others[0])]
            there = slice(start, start + len(others))
            gram[here, there] = (x - mean) @ (y - mean).T
            gram[there, here] = gram[here, there].T
    return gram


def _largest(gram: np.ndarray, count: int, elements: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues, and what to weigh rows by to have their axes; 0 beyond the rank."""
    size = len(gram)
    most = min(count, size)
    found, vectors = scipy.linalg.eigh(gram, subset_by_index=(size - most, size - 1))
    values, weights = np.zeros(count), np.zeros((count, size))
    for k, (value, vector) in enumerate(zip(found[::-1], vectors.T[::-1], strict=True)):
        # below it is the rounding of sums over so many elements, of no direction
        if value > max(size, elements) * np.finfo(float).eps * found[-1]:
            values[k], weights[k] = value, vector / np.sqrt(value)
    return values, weights
