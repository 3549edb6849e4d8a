"""The truth that accuracy is measured against: the probability-flow ODE solved to a stated tolerance."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from .errors import bad


def probability_flow(model: Any, x, sigmas: Sequence[float], tolerance: float = 1e-10,
                     progress: bool = False) -> torch.Tensor:  # fmt: skip
    """The ODE dx/dsigma = (x - D)/sigma by DOP853 in log sigma: the truth that accuracy is measured against.

    Parameters
    ----------
    model : Denoiser
    x : array (sample, channel, y, x)
        The state at ``sigmas[0]``.
    sigmas : sequence of positive float
        Monotone, rising or falling.
    tolerance : float
        Relative and absolute tolerance of the integrator.
    progress : bool
        Show a progress bar, in log sigma.

    Returns
    -------
    Tensor (len(sigmas), sample, channel, y, x), float64
        The state at each level; the first is x.

    Raises
    ------
    ValueError
        For levels that are not positive and monotone.
    RuntimeError
        Where the integrator gives up.

    Source: Dormand and Prince 8(5,3), as in SciPy; the ODE: 2206.00364 eq. 1, and its flow form.
    """
    from scipy.integrate import solve_ivp

    levels = np.asarray([float(s) for s in sigmas])
    hops = np.diff(levels)
    if len(levels) < 2 or levels.min() <= 0 or not (np.all(hops > 0) or np.all(hops < 0)):
        wanted = "two or more positive levels, rising or falling"
        raise bad("sigmas", levels.tolist(), wanted, "sigmas=[0.03, 1.0, 14.6]")
    x, time = torch.as_tensor(x, dtype=torch.float64), np.log(levels)
    bar = tqdm(total=100, desc="true ODE, % of log sigma", leave=False, disable=not progress)

    def slope(log_sigma: float, flat: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(flat).view(x.shape).to(x.device)
        bar.update(max(0, int(100 * (log_sigma - time[0]) / (time[-1] - time[0])) - bar.n))
        return (state - model.denoise(state, math.exp(log_sigma)).x0).flatten().cpu().numpy()

    start = x.flatten().cpu().numpy()
    with bar:
        found = solve_ivp(slope, time[[0, -1]], start, "DOP853", time, rtol=tolerance, atol=tolerance)
    if not found.success:
        raise RuntimeError(f"the reference ODE was not solved to {tolerance:g}: {found.message}")
    return torch.from_numpy(np.ascontiguousarray(found.y.T)).view(len(levels), *x.shape).to(x.device)
