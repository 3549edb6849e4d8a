"""What the table of solvers says of a solver, measured: its order by slope, and the variance it gets wrong.

Both run it on closed-form models, so they hold for a solver of one's own as they do for ours.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from .denoisers import GaussianMixture, guide
from .errors import bad
from .loop import steps as walk
from .paths import FLOW, VE, Path
from .solvers import Solver
from .solvers import solver as find_solver

COUNTS = (80, 160, 320)  # steps of the runs whose errors give the slope
RANGE = (0.05, 0.9)  # levels of those runs, where the smooth model has all its curvature
SELF = 8  # times the most steps: the reference of a method that has a limit of its own


def _smooth(path: Path) -> GaussianMixture:
    """Two overlapping modes, whose flow has no scale below 0.5."""
    means = 0.6 * np.random.default_rng(3).standard_normal((2, 1, 3, 3))
    return GaussianMixture(means, 0.8, path=path)


def _silent(solver: Solver) -> Solver:
    """The solver without its noise, where it has an option for that."""
    for quiet in ({"eta": 0.0}, {"S_churn": 0.0}):
        if solver.stochastic:
            try:
                solver = find_solver(solver, **quiet)
            except ValueError:
                continue
    return solver


def measured_order(solver: str | Solver, path: Path = VE, up: bool = False,
                   counts: Sequence[int] = COUNTS) -> float:  # fmt: skip
    """The order of convergence of a solver's deterministic part, from a cold start.

    The slope of log error over log steps, on levels even in log sigma from 0.9 to 0.05 of a mixture of two
    overlapping Gaussians whose unconditional answer is its conditional one. The error is the distance from
    the true ODE's solution; a stochastic solver without an `eta` gets noise that is 0, follows another ODE
    then, and is measured against itself at 2,560 steps. A solver that chooses its levels takes these.

    Parameters
    ----------
    solver : str or Solver
    path : VE or FLOW
    up : bool
        From 0.05 to 0.9.
    counts : sequence of int
        Steps of the runs.

    Raises
    ------
    ValueError
        For fewer than two counts, or a direction that the solver does not have.

    Examples
    --------
    >>> import toolkit as tk
    >>> round(tk.testing.measured_order("heun"), 1)
    2.0
    """
    if len(counts) < 2 or min(counts) < 1:
        raise bad("counts", counts, "two or more numbers of steps", "counts=(80, 160, 320)")
    solver, model = replace(_silent(find_solver(solver)), adaptive=None), _smooth(path)
    x = torch.randn((2, 1, 3, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, last = RANGE if up else RANGE[::-1]

    def end(count: int) -> torch.Tensor:
        y, grid = x, np.geomspace(first, last, count + 1)
        for step in walk(guide(model), solver, x, grid, noise=lambda s, t: torch.zeros_like(x)):
            y = step.x_next
        return y

    with torch.no_grad():
        if solver.stochastic:
            true = end(SELF * max(counts))
        else:
            true = model.probability_flow(x, [first, last], tolerance=1e-12)[-1]
        errors = [float(torch.linalg.norm(end(count) - true)) for count in counts]
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


def variance_bias(solver: str | Solver, steps: int = 20, path: Path = VE) -> float:
    """By what share a solver with fresh noise misses the variance of the distribution: 0.1 is 10 % too much.

    Exact, with no sampling error: on a Gaussian the denoiser is linear and a step is affine in the state and
    its draws, so one run in which each element has one draw of 1 and no other gives the factor of every draw,
    and the sum of their squares is the variance. Levels even in log sigma, from 10 (FLOW: 0.99) to 0.05, data
    of std 1.

    Parameters
    ----------
    solver : str or Solver
    steps : int
    path : VE or FLOW

    Examples
    --------
    >>> import toolkit as tk
    >>> round(tk.testing.variance_bias("euler_ancestral", 20), 2)
    -0.22
    """
    solver, grid = find_solver(solver), gaussian_grid(steps, path)
    draws = 1 + 4 * steps  # the start, and at most 4 a step
    model = GaussianMixture(np.zeros((1, 1, 1, 1)), 1.0, path=path)
    state = torch.zeros((draws, 1, 1, 1), dtype=torch.float64)
    start = gaussian_variance(grid[0], path)
    state[0] = math.sqrt(start)
    count = 0

    def unit(s: float, t: float) -> torch.Tensor:
        nonlocal count
        count += 1
        out = torch.zeros_like(state)
        out[count] = 1.0
        return out

    with torch.no_grad():
        for step in walk(guide(model), solver, state, grid, noise=unit):
            last = step.x_next
    return float(last.square().sum() / gaussian_variance(grid[-1], path)) - 1.0


def gaussian_grid(steps: int, path: Path) -> np.ndarray:
    """The levels of `variance_bias`."""
    return np.geomspace(0.99 if path == FLOW else 10.0, 0.05, steps + 1)


def gaussian_variance(sigma: float, path: Path) -> float:
    """Of the marginal at sigma, of data of std 1."""
    return float(path.alpha(sigma) ** 2 + sigma * sigma)
