"""Two runs of the same images at equal noise: where one meets the levels of the other, and what differs."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from ..dataset import LATENT
from ..errors import bad, unknown
from .common import Found, checked, labelled

CALL = "tk.diagnostics.difference(a, b)"
MATCHES = ("interpolated", "nearest")
SAME = 1e-6  # relative difference of sigma up to which two rungs are of the same level
QUANTILE = 0.995  # of |A - B|: a colour scale that a few far pixels do not set

FIGURES = {
    "rms": "root mean square of A - B",
    "largest": "largest |A - B|",
    "cosine": "cosine of the angle between A and B",
    "quantile": "99.5 % quantile of |A - B|",
    "std_a": "standard deviation of A",
    "std_b": "standard deviation of B",
}


def difference(a: xr.Dataset, b: xr.Dataset, match: str = "interpolated", at: str = "a") -> xr.Dataset:
    """A - B at equal sigma, at each rung of one of the runs.

    The other run is interpolated linearly in log sigma between the two rungs that enclose the level, along
    its own path: runs may rise or fall, and where levels repeat, the n-th passage of one meets the n-th of
    the other. Sigma 0 meets sigma 0 alone, and nothing is extrapolated: such rungs are NaN.

    Parameters
    ----------
    a, b : Dataset
        Recorded runs: `latent` and, if both have it, `denoised` (step, sample, channel, y, x), of the same
        samples, channels and pixels, with the coordinate `sigma`. Their levels may differ.
    match : {"interpolated", "nearest"}
        What stands for the other run at a level between two of its rungs: both, or the nearer in log sigma.
    at : {"a", "b"}
        Whose rungs are compared at. The sign is that of A - B in either case.

    Returns
    -------
    Dataset
        float64, at the rungs of `at`: `latent` and `denoised` (step, sample, channel, y, x), A - B; of each
        (step, sample), over channels and pixels, `<name>_rms`, `_largest`, `_cosine`, `_quantile` (99.5 % of
        the size), `_std_a` and `_std_b`; and of (step,) `<name>_row`, where along the other run that is,
        in rows: 3.4 is between rows 3 and 4. ``kind`` is "difference".

    Raises
    ------
    ValueError, TypeError
        For what is no run, runs of different shapes, and an unknown `match` or `at`.

    Examples
    --------
    >>> import toolkit as tk
    >>> fine, coarse = tk.testing.ladder_dataset(steps=20), tk.testing.ladder_dataset(steps=7)
    >>> found = tk.diagnostics.difference(fine, coarse)
    >>> float(found.latent_row[4]), float(found.latent_rms[0, 0])  # of `coarse`, at rung 4 of `fine`
    (1.952..., 0.0)
    """
    if at not in ("a", "b"):
        raise unknown("at", at, ("a", "b"), 'tk.diagnostics.difference(a, b, at="{}")')
    if match not in MATCHES:
        raise unknown("match", match, MATCHES, 'tk.diagnostics.difference(a, b, "{}")')
    a, b = (checked(ds, CALL, "latent", coords=("sigma",), rungs=1) for ds in (a, b))
    shapes = [tuple(ds.latent.sizes[dim] for dim in LATENT[1:]) for ds in (a, b)]
    if shapes[0] != shapes[1]:
        raise bad("b", shapes[1], f"`a` has (sample, channel, y, x) {shapes[0]}", CALL)
    own, other = (a, b) if at == "a" else (b, a)
    found: dict[str, Any] = {}
    for name in ("latent", "denoised"):
        if name in a and name in b:
            found |= _compared(own, other, name, match, 1 if at == "a" else -1)
    return labelled(found, own, "difference")


def _compared(own: xr.Dataset, other: xr.Dataset, name: str, match: str, sign: int) -> Found:
    rows, share = meet(own, other, name, match)
    values = np.full([own[name].sizes[dim] for dim in LATENT], np.nan)
    for row, mine, theirs in pairs(own, other, name, rows, share):
        values[row] = sign * (mine - theirs)
    where = np.where(rows[:, 0] < 0, np.nan, rows[:, 0] + share * (rows[:, 1] - rows[:, 0]))
    long = own[name].attrs.get("long_name", name)
    table = figures(own, other, name, rows, share, sign)
    return {
        name: (LATENT, values, f"A - B of the {long}", "1"),
        f"{name}_row": (("step",), where, "row of the other run", "1"),
        **{f"{name}_{k}": (("step", "sample"), table[k], text, "1") for k, text in FIGURES.items()},
    }


def figures(own: xr.Dataset, other: xr.Dataset, name: str, rows: np.ndarray, share: np.ndarray,
            sign: int = 1) -> dict[str, np.ndarray]:  # fmt: skip
    """Of each (step, sample) of `own`: the numbers of `FIGURES`, NaN where `other` has no such level.

    ``sign`` is 1 where `own` is A, and -1 where it is B.
    """
    shape = (own.sizes["step"], own.sizes["sample"])
    out = {key: np.full(shape, np.nan) for key in FIGURES}
    for row, mine, theirs in pairs(own, other, name, rows, share):
        x, y = (v.reshape(shape[1], -1) for v in (mine, theirs))
        with np.errstate(invalid="ignore", divide="ignore"):  # Inf - Inf, and a state that is 0
            size = np.abs(x - y)
            out["rms"][row] = np.sqrt(np.mean(size**2, axis=1))
            out["largest"][row], out["quantile"][row] = size.max(axis=1), np.quantile(size, QUANTILE, axis=1)
            out["cosine"][row] = (x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
            first, second = (x, y) if sign > 0 else (y, x)
            out["std_a"][row], out["std_b"][row] = first.std(axis=1), second.std(axis=1)
    return out


def pairs(own: xr.Dataset, other: xr.Dataset, name: str, rows: np.ndarray, share: np.ndarray,
          ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:  # fmt: skip
    """Row, state of `own` and state of `other` there (sample, channel, y, x), wherever `other` has one."""
    mine, theirs = (ds[name].transpose(*LATENT) for ds in (own, other))
    for row in np.flatnonzero(rows[:, 0] >= 0):
        low, high = rows[row]
        state = theirs[int(low)].values.astype(np.float64)
        if share[row] > 0:  # one state is itself, to the last bit
            state = (1 - share[row]) * state + share[row] * theirs[int(high)].values.astype(np.float64)
        yield int(row), mine[int(row)].values.astype(np.float64), state


def meet(own: xr.Dataset, other: xr.Dataset, name: str, match: str) -> tuple[np.ndarray, np.ndarray]:
    """Where each rung of `own` lies along `other`: two rows (step, 2), -1 for none, and the second's share.

    Rungs that hold nothing of `name` are met by none, and meet none.
    """
    there = [_there(ds[name]) for ds in (own, other)]
    levels = [
        np.asarray(ds["sigma"].values, np.float64)[kept] for ds, kept in zip((own, other), there, strict=True)
    ]
    found, part = passages(*levels, match)
    rows, share = np.full((own.sizes["step"], 2), -1), np.zeros(own.sizes["step"])
    rows[there[0]] = np.where(found >= 0, there[1][np.maximum(found, 0)] if there[1].size else -1, -1)
    share[there[0]] = part
    return rows, share


def passages(sigma: np.ndarray, others: np.ndarray, match: str) -> tuple[np.ndarray, np.ndarray]:
    """Where the path `others` passes each level of the path `sigma`: rows (n, 2), -1 for none; share (n,).

    The share of the second row is its part of the way in log sigma; 0 where the level is one of `others`.
    Both paths are taken in the direction in which they rise on the whole.
    """
    ways = [np.arange(len(s))[:: -1 if len(s) and s[-1] < s[0] else 1] for s in (sigma, others)]
    rows, share = np.full((len(sigma), 2), -1), np.zeros(len(sigma))
    for place, row in enumerate(ways[0]):
        level = sigma[row]
        mine, found = (_passed(s[way], level) for s, way in zip((sigma, others), ways, strict=True))
        if not len(found):
            continue
        times = int(np.flatnonzero((mine == place).all(axis=1))[0])
        low, high = ways[1][found[min(times, len(found) - 1)]]
        if low != high:
            part = np.log(level / others[low]) / np.log(others[high] / others[low])
            if match == "nearest":
                low = high = low if part <= 0.5 else high
            else:
                share[row] = part
        rows[row] = low, high
    return rows, share


def _passed(path: np.ndarray, level: float) -> np.ndarray:
    """Each time that a path is at a level, as two places (n, 2): one twice, or those on either side."""
    here = np.abs(path - level) <= SAME * level
    first, second = path[:-1], path[1:]
    across = ((first - level) * (second - level) < 0) & ~here[:-1] & ~here[1:]
    across &= np.minimum(first, second) > 0  # 0 has no logarithm
    hits, gaps = np.flatnonzero(here), np.flatnonzero(across)
    found = np.concatenate([np.stack([hits, hits], 1), np.stack([gaps, gaps + 1], 1)])
    return found[np.argsort(found[:, 0], kind="stable")]


def _there(variable: xr.DataArray) -> np.ndarray:
    """The rows that hold something: `Save.every` leaves others NaN, and so is denoised with no call."""
    array = variable.transpose(*LATENT)
    doubtful = np.isnan(array[:, 0, 0, 0, 0].values)  # one pixel tells, save where the run itself met NaN
    return np.array(
        [i for i in range(len(doubtful)) if not (doubtful[i] and np.isnan(array[i].values).all())], int
    )
