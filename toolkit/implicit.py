"""Inverses by iteration, for cfg 1: a step solved for its start, a climb corrected by what its sample misses.

Under guidance the flow contracts upwards, neither converges, and both say so by their residual.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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

    def up(self, model: Any, x: torch.Tensor, i: int) -> tuple[Any, ...]:
        """(y, denoised, residual, iterations, told) of hop i: y the state at levels[i].

        Residual and iterations are (sample,); `told` is what the model knows of its answer, by name, with
        samples on the last axis.
        """
        span = Span(self.levels, i, self.levels)
        y = self.via.step(model, x, Span((span.t, span.s), 0), (), None)[0]
        scale = size(x).clamp_min(1e-300)
        best, opinion, told = y, None, {}
        about = getattr(model, "about", lambda x0: {})
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
            said = about(seen.x0)
            told = {n: torch.where(residual < least, v, told.get(n, v)) for n, v in said.items()}
            needed = torch.where(residual < least, float(k), needed)
            least = torch.minimum(least, residual)
            if float(least.max()) <= ENOUGH:
                break
            guesses, misses = [*guesses, y + miss][-REMEMBERED - 1 :], [*misses, miss][-REMEMBERED - 1 :]
            y = anderson(guesses, misses)
        return best, opinion, least, needed, told


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


@dataclass
class Sweeps:
    """Where defect correction stands: all that the next sweep needs.

    Attributes
    ----------
    aim, y, best : Tensor (sample, channel, y, x)
        The climb from below, the top to go on from, the best one of each sample so far.
    errors : list of Tensor (sample,)
        Relative distance of each sweep's sample from the bottom.
    since : int
        Sweeps without a better one.
    over : bool
        No sweep comes after it.
    """

    aim: torch.Tensor
    y: torch.Tensor
    best: torch.Tensor
    errors: list[torch.Tensor] = field(default_factory=list)
    since: int = 0
    over: bool = False


def defect_correction(
    climb: Callable[[torch.Tensor], torch.Tensor],
    fall: Callable[[torch.Tensor], torch.Tensor],
    low: torch.Tensor,
    begun: Sweeps | None = None,
) -> Iterator[Sweeps]:
    """The sweeps whose tops come ever nearer to `low`, one after the other; at least one is yielded.

    y_0 = G(low), y <- y + G(low) - G(F(y)), with G the climb and F the sample. Stetter 1978. `begun` is what
    an earlier process yielded last.
    """
    if begun is None:
        aim = climb(low)
        begun = Sweeps(aim, aim, aim)
        yield begun
    at, scale = begun, size(low).clamp_min(1e-300)
    while not at.over:
        fallen = fall(at.y)
        error = size(fallen - low) / scale
        least = torch.stack(at.errors).amin(0) if at.errors else torch.full_like(scale, math.inf)
        better = error < least
        best = torch.where(better[:, None, None, None], at.y, at.best)
        since = 0 if bool(better.any()) else at.since + 1
        errors = [*at.errors, error]
        over = (float(torch.minimum(least, error).max()) <= ENOUGH or since == PATIENCE
                or len(errors) == SWEEPS or not bool(torch.isfinite(error).all()))  # fmt: skip
        at = Sweeps(at.aim, at.y if over else at.y + at.aim - climb(fallen), best, errors, since, over)
        yield at
    if at is begun:
        yield at
