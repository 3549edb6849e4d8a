"""A schedule fitted to a recorded run, by dynamic programming over how far a hop misses. No torch here."""

from typing import Any

import numpy as np
import xarray as xr

from .dataset import LATENT, attributes
from .errors import bad
from .levels import number
from .schedules import labelled

COEFFICIENT = 1.15  # the paper's, for a teacher of 61 points
ON_STEP = ("sigma", "timestep", "alpha", "log_snr")
LINE = 'tk.fit_schedule(tk.sample(model, solver="heun", steps=60), steps=10)'


def fit_schedule(run: xr.Dataset, steps: int = 10, coefficient: float = COEFFICIENT) -> xr.Dataset:
    """The rungs of a fine run that Euler would best step on, as a schedule of `steps` hops.

    With x_i, s_i the rows of the run, falling, and d_i = (x_i - denoised_i)/s_i its recorded slope, a hop
    from row i to row j costs what Euler misses on it, started on the trajectory:
    c_ij = |x_i + (s_j - s_i) d_i - x_j|, the root of the mean square over a latent, averaged over the
    samples. That is the deviation of the recorded trajectory from its chord, seen from the chord's start: 0
    where the trajectory is straight. Of all choices of rows from the first to the last in `steps` hops, the
    one returned has the least sum of coefficient^k c over its hops, k = 0 at the noisy end: the exact
    minimum, by dynamic programming.

    Parameters
    ----------
    run : Dataset
        A ``tk.sample`` or ``tk.unsample`` of a deterministic solver, with more rows than are wanted (the
        paper has 61) and `latent` (step, sample, channel, y, x); best with `denoised`, without which a slope
        is that to the next row. Rows that were not kept are passed over. Several samples make the fit more
        general: the shape of these trajectories hardly depends on the image.
    steps : int
        1 or more, and at most as many as the run has hops.
    coefficient : float
        Above 0. Above 1 misses near the clean end, which no later hop shrinks, weigh more.

    Returns
    -------
    Dataset
        As of ``tk.schedule``, of steps + 1 levels out of the run's: a run takes them as
        ``tk.sample(model, sigmas=fitted.sigma)``. ``attrs["cost"]`` is the sum that was minimised, in units
        of the latent; ``attrs["rows"]`` says which rows of the run, counted from the noisy end.

    Raises
    ------
    ValueError, TypeError
        For anything but a run with enough rows, and numbers out of range.

    Source: GITS, 2405.11326: the idea, the dynamic programme and the coefficient. There one teacher's
    trajectory gives a table for all; here it is the user's own.

    Examples
    --------
    >>> import toolkit as tk
    >>> fine = tk.sample(tk.load(), prompt=3, solver="heun", steps=30, progress=False)
    >>> fitted = tk.fit_schedule(fine, steps=6)
    >>> fitted.sizes["step"], bool(fitted.sigma[0] == fine.sigma[0]), float(fitted.sigma[-1])
    (7, True, 0.0)
    """
    fine = _falling(run)
    coefficient = number("coefficient", coefficient, 0.0, "tk.fit_schedule(run, coefficient=1.15)")
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)):
        raise bad("steps", steps, "a whole number of steps", LINE, TypeError)
    if not 1 <= steps < fine.sizes["step"]:
        hops = fine.sizes["step"] - 1
        raise bad("steps", steps, f"1 or more, and at most the {hops} hops of the run", LINE)
    rows, total = shortest(costs(fine), int(steps), coefficient)
    picked = {name: ("step", fine[name].values[rows], attributes(name)) for name in ON_STEP}
    index = {"step": ("step", np.arange(len(rows)), attributes("step"))}
    attrs = {"schedule": "gits", "steps": len(rows) - 1, "options": {"coefficient": coefficient}}
    attrs |= {"solver": None, "denoise": 1.0, "path": run.attrs["path"], "levels": run.attrs["levels"]}
    return labelled(index | picked, attrs | {"cost": total, "rows": rows})


def _falling(run: Any) -> xr.Dataset:
    """The rows of a run that were kept, from noisy to clean, each level once."""
    if not isinstance(run, xr.Dataset):
        raise bad("run", run, "the Dataset of a run", LINE, TypeError)
    if run.attrs.get("kind") not in ("sample", "unsample") or "latent" not in run:
        given = (run.attrs.get("kind"), list(run.data_vars))
        raise bad("run", given, "the Dataset of a sample or an unsample, with its latents", LINE)
    if run.attrs.get("normalized", "off") != "off":
        raise bad("run", run.attrs["normalized"], "raw states; this run is normalised", LINE)
    kept = np.isfinite(run.latent.transpose(*LATENT).values).all(axis=(1, 2, 3, 4))
    order = np.argsort(-run.sigma.values, kind="stable")
    order = order[kept[order]]
    order = order[np.insert(np.diff(run.sigma.values[order]) != 0, 0, True)] if len(order) else order
    if len(order) < 2:
        raise bad("run", f"{len(order)} rows", "two or more rows that were kept, at different levels", LINE)
    return run.isel(step=order)


def costs(fine: xr.Dataset) -> np.ndarray:
    """c[i, j] of a hop from row i to row j, (row, row), infinite for j <= i; `fine` has falling rows."""
    sigma = np.asarray(fine.sigma.values, np.float64)
    count, samples = len(sigma), fine.sizes["sample"]
    x = fine.latent.transpose(*LATENT).values.astype(np.float64).reshape(count, samples, -1)
    seen = np.full_like(x, np.nan)  # (row, sample, value)
    if "denoised" in fine:
        seen = fine.denoised.transpose(*LATENT).values.astype(np.float64).reshape(count, samples, -1)
    cost = np.full((count, count), np.inf)
    for i in range(count - 1):
        slope = (x[i] - seen[i]) / sigma[i]
        if not np.isfinite(slope).all():  # no answer of the model in this row
            slope = (x[i + 1] - x[i]) / (sigma[i + 1] - sigma[i])
        missed = x[i] + (sigma[i + 1 :] - sigma[i])[:, None, None] * slope - x[i + 1 :]
        cost[i, i + 1 :] = np.sqrt(np.mean(missed**2, axis=2)).mean(axis=1)
    return cost


def shortest(cost: np.ndarray, steps: int, coefficient: float) -> tuple[list[int], float]:
    """Rows of the path of `steps` hops from the first to the last with the least sum coefficient^k c, and it.

    V_1(i) = c(i, last), V_k(i) = min over j of c(i, j) + coefficient V_(k-1)(j).
    """
    value, chosen = cost[:, -1], []
    for _ in range(steps - 1):
        through = cost + coefficient * value[None, :]  # (from, to)
        chosen.append(through.argmin(axis=1))
        value = through.min(axis=1)
    rows = [0]
    for to in reversed(chosen):
        rows.append(int(to[rows[-1]]))
    return [*rows, len(cost) - 1], float(value[0])
