"""Inverses by iteration, for cfg 1: a step solved for its start, a climb corrected by what its sample misses.

Under guidance the flow contracts upwards, neither converges, and both say so by their residual.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

from .solvers import Solver
from .solvers.contract import Span

ENOUGH = 1e-14  # relative residual: rounding of the step itself
MOST = 40  # iterations of a step
REMEMBERED = 5  # differences in Anderson's least squares
SWEEPS = 12  # of defect correction
PATIENCE = 3  # sweeps without a better one


def size(x: torch.Tensor) -> torch.Tensor:
    """L2 norm of each sample, (sample,)."""
    return x.flatten(1).norm(dim=1)


class Fixed:
    """One-step solver `solver` upwards on a falling grid: y with S(y) = x, by y <- y + (x - S(y)).

    Anderson acceleration over the last 5 differences, each sample for itself (2309.04907); begins with a step
    of `via`; the best iterate is kept.
    """

    def __init__(self, solver: Solver, via: Solver, levels: Sequence[float]):
        self.solver, self.via, self.levels = solver, via, tuple(levels)

    def up(self, model: Any, x: torch.Tensor, i: int) -> tuple[torch.Tensor, ...]:
        """(y, denoised, residual, iterations) of hop i: y the state at levels[i]; the last two (sample,)."""
        span = Span(self.levels, i, self.levels)
        y = self.via.step(model, x, Span((span.t, span.s), 0), (), None)[0]
        scale = size(x).clamp_min(1e-300)
        best, opinion = y, None
        least = torch.full_like(scale, math.inf)
        needed = torch.zeros_like(scale)
        guesses, misses = [], []
        for k in range(MOST):
            stepped, seen = self.solver.step(model, y, span, (), None)
            miss = x - stepped
            residual = size(miss) / scale
            better = (residual < least)[:, None, None, None]
            best = torch.where(better, y, best)
            opinion = seen.x0 if opinion is None else torch.where(better, seen.x0, opinion)
            needed = torch.where(residual < least, float(k), needed)
            least = torch.minimum(least, residual)
            if float(least.max()) <= ENOUGH:
                break
            guesses, misses = [*guesses, y + miss][-REMEMBERED - 1 :], [*misses, miss][-REMEMBERED - 1 :]
            y = anderson(guesses, misses)
        return best, opinion, least, needed


def anderson(guesses: list[torch.Tensor], misses: list[torch.Tensor]) -> torch.Tensor:
    """The next iterate: the combination of guesses y + f(y) whose misses f cancel best, a sample at a time.

    gamma = argmin |f_k - dF gamma|, y = g_k - dG gamma, with dF, dG the differences of the last ones.
    """
    if len(guesses) == 1:
        return guesses[0]
    dF = torch.stack([(b - a).flatten(1) for a, b in pairwise(misses)], dim=2)
    dG = torch.stack([(b - a).flatten(1) for a, b in pairwise(guesses)], dim=2)
    gamma = torch.linalg.pinv(dF, rtol=1e-12) @ misses[-1].flatten(1)[:, :, None]  # (sample, difference, 1)
    return guesses[-1] - (dG @ gamma).view_as(guesses[-1])


def defect_correction(
    climb: Callable[[torch.Tensor], torch.Tensor],
    fall: Callable[[torch.Tensor], torch.Tensor],
    low: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(top, errors): the top state whose sample comes nearest to `low`, and the error of each sweep.

    y_0 = G(low), y <- y + G(low) - G(F(y)), with G the climb and F the sample. Stetter 1978.

    Returns
    -------
    top : Tensor (sample, channel, y, x)
        The best of all sweeps, a sample at a time.
    errors : Tensor (sweep, sample)
        Relative distance of F(y) from `low`.
    """
    aim, scale = climb(low), size(low).clamp_min(1e-300)
    y = best = aim
    errors: list[torch.Tensor] = []
    least, since = torch.full_like(scale, math.inf), 0
    for _ in range(SWEEPS):
        fallen = fall(y)
        error = size(fallen - low) / scale
        errors.append(error)
        better = error < least
        best = torch.where(better[:, None, None, None], y, best)
        least, since = torch.minimum(least, error), 0 if bool(better.any()) else since + 1
        if float(least.max()) <= ENOUGH or since == PATIENCE or not bool(torch.isfinite(error).all()):
            break
        y = y + aim - climb(fallen)
    return best, torch.stack(errors)
