"""One number a run: how well a solver follows its ladder, how exactly an image returns, and what it costs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from ..dataset import LATENT
from ..errors import bad
from .common import Found, checked, labelled

LINE = "tk.diagnostics.run_quality(up, tk.sample(model, start=up))"


class Measure(NamedTuple):
    """Something recorded row by row, of which a run has a worst and a typical value."""

    source: str  # its variable, (step, sample)
    text: str
    worst: Any  # values -> how bad each is; the largest is the worst
    unless: str  # why a run may have none


def _large(values: np.ndarray) -> np.ndarray:
    return np.abs(values)


def _off_one(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.abs(np.log(values))


# name -> what it is read from. The definitions are those of the inverses that record them.
MEASURES: Mapping[str, Measure] = {
    "local_defect": Measure(
        "offset_norm", "local defect, |offset| over |hop|", _large, "only an inverse by offsets has offsets"
    ),
    "aux_gap": Measure(
        "aux_gap", "relative distance of aux from an Euler step, or from the state it goes with", _large,
        "only a reversible solver has a second state",
    ),
    "residual": Measure(
        "residual", "relative distance of the step down from the row below it", _large,
        "only inverse='fixed_point' solves its steps",
    ),
    "noise_std": Measure(
        "noise_std", "standard deviation of the extracted noise", _off_one,
        "only inverse='noise' extracts noise",
    ),
    "noise_lag": Measure(
        "noise_lag", "correlation of the extracted noise with that of the rung above", _large,
        "only inverse='noise' extracts noise",
    ),
}  # fmt: skip

SINGLE = {
    "aux_gap_top": "aux_gap of the row that the replay starts from",
    "sweep_error": "round-trip error of the best sweep of defect correction",
    "top_std_ratio": "standard deviation of the noisiest row over the expected one",
    "round_trip_error": "relative L2 distance of the returned image from the one given",
    "model_calls": "model calls of the run, all passes",
    "network_rows": "network rows evaluated in the run, all passes",
    "calls_back": "model calls of the replay",
    "rows_back": "network rows evaluated in the replay",
}


def run_quality(ds: xr.Dataset, returned: xr.Dataset | None = None) -> xr.Dataset:
    """What a run is worth in a few numbers: the worst and the typical of what was recorded row by row.

    Parameters
    ----------
    ds : Dataset
        A recorded run or ladder: `latent` (step, sample, channel, y, x), the coordinates `sigma` and `alpha`,
        and what its inverse recorded.
    returned : Dataset, optional
        The replay, of ``tk.sample(model, start=ds)``, or the Dataset of ``tk.round_trip``: adds the
        round-trip error, and what the way back cost.

    Returns
    -------
    Dataset
        (sample,), float64, units "1". Of each of these that the run has, the worst (`<name>_worst`), the step
        at which that is (`<name>_step`), and the median (`<name>_median`), over the rows that have one:

        - `local_defect` = |offset_i| / |L_(i+1) - L_i|: what the solver's own step from rung i of its ladder
          misses the next rung by, over the length of that hop, from the recorded `offset_norm`. A median
          below 0.05 says that the solver follows its ladder. Without a model it can not be had otherwise.
        - `aux_gap` = |x_1 - (x_0 + h d_0)| / |x_1|, the distance of a reversible solver's second state from
          an Euler step (of a pair: of its two states from each other): how much hides in the pair;
          `aux_gap_top` is that of the row the replay starts from.
        - `residual` = |S(L_i) - L_(i+1)| / |L_(i+1)| of inverses that solve their steps.
        - `noise_std` of extracted noise, its worst the one farthest from 1 by its logarithm, and `noise_lag`,
          its correlation with that of the rung above, the worst the largest in size.

        And `sweep_error`, the best round-trip error of defect correction; `top_std_ratio`, std of the
        noisiest row over sqrt(alpha^2 std0^2 + sigma^2), both over channel, y and x, with std0 as in
        `moments`; `round_trip_error` = |returned - given| / |given|, from the first row of `ds` and the last
        one of `returned`.

        Without dimension: `model_calls`, `network_rows`, and of the replay `calls_back`, `rows_back`.

        What the run has not is left out, and ``attrs["left_out"]`` says why, by name.

    Raises
    ------
    TypeError, ValueError
        For what is no Dataset, one without `latent`, `sigma` or `alpha`, and a `returned` that is not of the
        same image.

    References
    ----------
    Offsets: arXiv 2310.01506. Extracted noise: arXiv 2304.06140. The second state: arXiv 2410.07273.

    Examples
    --------
    >>> import toolkit as tk
    >>> model = tk.load()
    >>> latent = model.encode(tk.assets.digits()[0][0])
    >>> up = tk.unsample(model, latent, prompt=0, steps=20, progress=False)
    >>> found = tk.diagnostics.run_quality(up, tk.sample(model, start=up, progress=False))
    >>> bool(found.round_trip_error < 1e-9), bool(found.local_defect_median < 0.05)
    (True, True)
    """
    ds = checked(ds, LINE, "latent")
    found: Found = {}
    left_out: dict[str, str] = {}
    for name, measure in MEASURES.items():
        if measure.source in ds and set(ds[measure.source].dims) == {"step", "sample"}:
            found |= _summary(ds, name, measure)
        else:
            left_out[name] = f"no variable `{measure.source}`: {measure.unless}"
    values = {"top_std_ratio": _std_ratio(ds)}
    if "aux_gap" in ds:
        values["aux_gap_top"] = ds["aux_gap"].transpose("step", "sample").values[_rising(ds)[-1]]
    if "sweep_error" in ds:
        values["sweep_error"] = ds["sweep_error"].min("sweep").values
    else:
        left_out["sweep_error"] = "no variable `sweep_error`: only inverse='defect' makes sweeps"
    if returned is None:
        left_out["round_trip_error"] = f"no replay was given: {LINE}"
    else:
        values["round_trip_error"], back = _returned(ds, returned)
        values |= _cost(back, "calls_back", "rows_back")
    values |= _cost(ds, "model_calls", "network_rows")
    found |= {n: (("sample",) if np.ndim(v) else (), v, SINGLE[n], "1") for n, v in values.items()}
    return labelled(found, ds, "quality").assign_attrs(left_out=left_out)


def _rising(ds: xr.Dataset) -> np.ndarray:
    """Row numbers from the clean end to the noisy one."""
    sigma, rows = ds["sigma"].values, np.arange(ds.sizes["step"])
    return rows[::-1] if sigma[0] > sigma[-1] else rows


def _summary(ds: xr.Dataset, name: str, measure: Measure) -> Found:
    """Worst, its step and median of a measure, over the rows that have one."""
    order = _rising(ds)
    values = ds[measure.source].transpose("step", "sample").values.astype(np.float64)[order]
    values = np.where(_has(ds, order, measure.source), values, np.nan)
    steps = (ds["step"].values if "step" in ds.coords else np.arange(len(order)))[order]
    some = np.isfinite(values).any(axis=0)
    # where a sample has none at all, every row is as bad, and its worst is NaN
    badness = np.where(np.isfinite(values), measure.worst(np.where(np.isfinite(values), values, 1.0)), -1.0)
    row = badness.argmax(axis=0)
    worst = values[row, np.arange(len(row))]
    median = np.array([np.median(v[np.isfinite(v)]) if np.isfinite(v).any() else np.nan for v in values.T])
    text, dims = measure.text, ("sample",)
    return {
        f"{name}_worst": (dims, worst, f"{text}: the worst of the run", "1"),
        f"{name}_step": (dims, np.where(some, steps[row], np.nan), f"{text}: step of the worst", "1"),
        f"{name}_median": (dims, median, f"{text}: median of the run", "1"),
    }


def _has(ds: xr.Dataset, order: np.ndarray, source: str) -> np.ndarray:
    """Which rows, rising, have a `source` of their own: a record writes 0 where there is none."""
    sigma = ds["sigma"].values[order]
    left = np.arange(len(order)) > int(np.argmax(sigma > 0))  # a replay's hop to the lowest rung ends there
    noisy = np.zeros((len(order), ds.sizes["sample"]), bool)
    if "noise_std" in ds:
        noisy = ds["noise_std"].transpose("step", "sample").values[order] > 0
    if source == "offset_norm":  # hops are brought to their rung by noise where the solver draws any
        return left[:, None] & ~noisy
    if source == "noise_std":
        return noisy
    if source == "noise_lag":
        return noisy & np.vstack([noisy[1:], np.zeros_like(noisy[:1])])
    return left[:, None] | np.zeros_like(noisy)


def _std_ratio(ds: xr.Dataset) -> np.ndarray:
    """std of the noisiest row over the expected one, (sample,)."""
    latent, sigma, alpha = ds["latent"].transpose(*LATENT), ds["sigma"].values, ds["alpha"].values
    falling = np.argsort(-np.where(np.isfinite(sigma), sigma, -np.inf), kind="stable")
    std, s, a = _first_there(latent, falling, sigma, alpha)
    std0, s0, a0 = _first_there(latent, falling[::-1], sigma, alpha)
    with np.errstate(divide="ignore", invalid="ignore"):  # alpha 0 alone, and a constant clean row: NaN
        clean = np.maximum(std0**2 - s0**2, 0.0) / a0**2
        return std / np.sqrt(a**2 * clean + s**2)


def _first_there(latent: xr.DataArray, rows: np.ndarray, sigma: np.ndarray,
                 alpha: np.ndarray) -> np.ndarray:  # fmt: skip
    """std, sigma and alpha of the first of `rows` that was written, sample by sample: (3, sample)."""
    found = np.full((3, latent.shape[1]), np.nan)
    for row in rows:
        state = latent[int(row)].values.reshape(latent.shape[1], -1).astype(np.float64)
        new = np.isfinite(state).all(axis=1) & np.isnan(found[0])
        found[:, new] = state[new].std(axis=1), np.full(new.sum(), sigma[row]), np.full(new.sum(), alpha[row])
        if not np.isnan(found[0]).any():
            break
    return found


def _returned(ds: xr.Dataset, returned: Any) -> tuple[np.ndarray, xr.Dataset]:
    """Relative distance (sample,) of the last row of a replay from the first row, and the replay."""
    back = returned
    if isinstance(returned, xr.Dataset) and "returned" in returned:
        end, level = returned["returned"], float(ds["sigma"][0])
    else:
        back = checked(returned, LINE, "latent", coords=("sigma",))
        end, level = back["latent"].isel(step=-1), float(back["sigma"][-1])
    given = ds["latent"].isel(step=0)
    if set(end.dims) != set(given.dims) or dict(end.sizes) != dict(given.sizes) or level != ds["sigma"][0]:
        wanted = f"a replay of this run: its last row {dict(given.sizes)} at sigma {float(ds['sigma'][0]):g}"
        raise bad("returned", f"{dict(end.sizes)} at sigma {level:g}", wanted, LINE)
    want, got = (v.transpose(*LATENT[1:]).values.astype(np.float64) for v in (given, end))
    want, got = want.reshape(len(want), -1), got.reshape(len(got), -1)
    # as tk.round_trip measures it
    return np.linalg.norm(got - want, axis=1) / np.maximum(np.linalg.norm(want, axis=1), 1e-300), back


def _cost(ds: xr.Dataset, calls: str, rows: str) -> dict[str, Any]:
    """Model calls and network rows, where they were counted."""
    if "direction" in ds.dims:  # of a round trip
        counted = {calls: ds["calls"][-1:], rows: ds["network_rows"][-1:]}
    else:
        counted = {name: ds[source] for name, source in ((calls, "nfe"), (rows, "rows")) if source in ds}
    found = {name: v.values[np.isfinite(v.values)] for name, v in counted.items()}
    return {name: np.int64(v.max()) for name, v in found.items() if v.size}
