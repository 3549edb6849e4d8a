"""Regions with solvers of their own: they step side by side as one solver, and their states are composited.

The memory of each, its own `past`, travels in the aux of the composite's Eval: no region loses its history,
and a run that stops goes on bit for bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .composites import Regional, fuse
from .denoisers import Denoised
from .errors import bad
from .regions import Region
from .solvers import Solver
from .solvers import solver as find_solver
from .solvers.contract import Eval, Span


class Unanswered(Exception):
    """A child asked what its model has not been asked yet."""


class Asking:
    """The model as a child sees it: answers what it knows, in the order of the calls, and notes what not."""

    def __init__(self, model: Regional):
        self.path, self.levels, self.channels = model.path, model.levels, model.channels
        self.answers: list[Denoised] = []
        self.wanted: tuple[torch.Tensor, float, bool] | None = None
        self.calls = 0

    def denoise(self, x: torch.Tensor, sigma: float, uncond: bool = False) -> Denoised:
        if self.calls == len(self.answers):
            self.wanted = (x, sigma, uncond)
            raise Unanswered
        self.calls += 1
        return self.answers[self.calls - 1]

    def again(self) -> "Asking":
        """From the first answer."""
        self.calls = 0
        return self


class Shared:
    """Draws that every child gets, in its own order: a step that is taken again gets the same ones."""

    def __init__(self, noise: Callable[[float, float], torch.Tensor]):
        self._noise, self._made = noise, []

    def again(self) -> Callable[[float, float], torch.Tensor]:
        """From the first draw."""
        count = 0

        def draw(sigma: float, sigma_next: float) -> torch.Tensor:
            nonlocal count
            count += 1
            if count > len(self._made):
                self._made.append(self._noise(sigma, sigma_next))
            return self._made[count - 1]

        return draw


@dataclass(frozen=True)
class Stepwise:
    """One solver a region, base first, as one: x' = sum_r w_r S_r(x).

    A step is a function of what it is handed, so each child's is taken until it asks its model what has no
    answer yet; the questions of all at one level are answered in one batch, and the steps are taken again.

    Parameters
    ----------
    solvers : tuple of Solver
    seed : int
        Of the run; regions with another one draw their own noise, which is unit where masks mix.
    """

    solvers: tuple[Solver, ...]
    seed: int

    adaptive, memory = None, 1

    def grid(self, sigmas: Any) -> tuple[float, ...]:
        """The levels of the run."""
        return tuple(sigmas.tolist() if hasattr(sigmas, "tolist") else map(float, sigmas))

    def step(
        self, model: Regional, x: Any, span: Span, past: tuple[Eval, ...], noise: Any
    ) -> tuple[Any, Eval]:
        """One hop of all that have weight; one that has none, or joins later, begins without a past."""
        calls, weights = model.calls, model.layout.at(span.s)
        pasts = past[0].aux if past else ((),) * len(self.solvers)
        draws = Shared(model.layout.draws(noise, self.seed, span.i, span.s, x))
        asking = {k: Asking(model) for k in weights.present}
        done: dict[int, tuple[Any, Eval]] = {}
        while True:
            for k in asking.keys() - done.keys():
                try:
                    done[k] = self.solvers[k].step(asking[k].again(), x, span, pasts[k], draws.again())
                except Unanswered:
                    continue
            if len(done) == len(asking):
                break
            _answer(model, {k: asking[k] for k in weights.present if k not in done})
        opinions = {k: seen.x0 for k, (_, seen) in done.items()}
        x0 = None
        if all(
            o is not None for o in opinions.values()
        ):  # some solvers do not ask at s, but where they stand
            x0 = fuse(weights, opinions)
            model.remember(x0, weights, opinions)
        kept = tuple(
            (done[k][1], *pasts[k])[: solver.memory] if k in done else ()
            for k, solver in enumerate(self.solvers)
        )
        return fuse(weights, {k: y for k, (y, _) in done.items()}), Eval(
            span.s, x, x0, kept, model.calls - calls
        )


def _answer(model: Regional, asking: dict[int, Asking]) -> None:
    """Answers what the children want, in one batch a level."""
    levels: dict[float, list[int]] = {}
    for k, child in asking.items():
        levels.setdefault(child.wanted[1], []).append(k)
    for sigma, some in levels.items():
        wanted = [(k, asking[k].wanted[0], asking[k].wanted[2]) for k in some]
        for k, answer in zip(some, model.ask(wanted, sigma), strict=True):
            asking[k].answers.append(answer)


def stepwise(base: Any, regions: Sequence[Region], seed: int) -> Stepwise:
    """The solvers of a run in step mode; raises where states may not be moved, or levels are the solver's."""
    chosen = [find_solver(base), *(find_solver(base if r.solver is None else r.solver) for r in regions)]
    for solver in chosen:
        why = None
        if solver.reversible:
            why = f"{solver.name} needs the state that it remembers, and here states are composited"
        elif solver.own_grid is not None or solver.adaptive is not None:
            why = f"{solver.name} makes its own levels, and all regions must meet at those of the run"
        if why is not None:
            line = f'tk.regional(model, regions, mode="denoiser", solver="{solver.name}")'
            raise bad("solver", solver.name, why, line)
    return Stepwise(tuple(chosen), seed)
