"""How a solver is run backwards, and what brings the image back: the strategies, and the table behind "auto".

At cfg 1 the ODE is well conditioned and an accurate climb nearly returns; under guidance nothing does but
stored information: the offsets of a solver's own steps against a ladder, or the second state of a reversible
solver.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .errors import bad, unknown
from .solvers import SOLVERS, Solver
from .solvers.contract import Eval, Span
from .tables import Table

INVERSES = Table(
    "Inverses", "inverse", 'tk.unsample(model, latent, inverse="{}")',
    {"name": lambda n, e: n, "what": lambda n, e: e[0], "exact": lambda n, e: e[1], "for": lambda n, e: e[2]},
)  # fmt: skip
INVERSES["reverse"] = ("the formula run upwards", "no", "solvers that run upwards")
INVERSES["algebraic"] = ("the solver's own step, solved for the other end", "yes", "reversible solvers")
INVERSES["offsets"] = ("a ladder, and what the solver's step misses it by", "yes", "any solver")

# what "auto" picks, first line that fits: a predicate on the solver, and the inverse
AUTO: tuple[tuple[str, Callable[[Solver], bool], str], ...] = (
    ("reversible", lambda s: s.reversible, "algebraic"),
    ("deterministic", lambda s: not s.stochastic, "offsets"),
)


def choose(solver: Solver, inverse: str) -> str:
    """The strategy for a solver: `inverse` itself where it can, or what "auto" picks."""
    if inverse == "auto":
        for _, fits, picked in AUTO:
            if fits(solver):
                return picked
        why = (
            "it is stochastic: its exact inverse, extracting the noise it would have needed, is not there yet"
        )
        raise bad("solver", solver.name, why, 'tk.unsample(model, latent, solver="euler")')
    if inverse not in INVERSES:
        raise unknown("inverse", inverse, ["auto", *INVERSES], 'tk.unsample(model, latent, inverse="{}")')
    if inverse == "algebraic" and not solver.reversible:
        names = ", ".join(n for n, s in SOLVERS.items() if s.reversible)
        line = f'tk.unsample(model, latent, solver="{solver.name}", inverse="offsets")'
        raise bad("inverse", inverse, f"{solver.name} is not reversible; {names} is", line)
    if inverse == "reverse" and not solver.upward:
        line = 'tk.unsample(model, latent, solver="euler", inverse="reverse")'
        raise bad("inverse", inverse, f"{solver.name} has no step upwards: it is stochastic", line)
    return inverse


def climber(via: str | Solver) -> Solver:
    """The solver that builds a ladder for offsets: any deterministic one that runs upwards."""
    able = [n for n, s in SOLVERS.items() if s.upward and not s.stochastic]
    name = via.name if isinstance(via, Solver) else via
    if name not in able:
        raise unknown("via", name, able, 'tk.unsample(model, latent, via="{}")', " that climbs")
    return via if isinstance(via, Solver) else SOLVERS[via]


@dataclass(frozen=True)
class Wrapping:
    """A solver around another: the same memory, the same grid, its own step."""

    solver: Solver

    adaptive = None  # a recorded grid is frozen

    @property
    def memory(self) -> int:
        return self.solver.memory

    def grid(self, sigmas: Any) -> tuple[float, ...]:
        return self.solver.grid(sigmas)


@dataclass(frozen=True)
class Recording(Wrapping):
    """A solver that walks down a ladder and records by what it misses each rung (2310.01506).

    It goes on from y + offset, the value that the replay will have, and not from the rung: then the replay
    repeats it bit for bit, and the rounding of y + offset is not carried along, since the next offset aims at
    the next rung again.
    """

    ladder: Callable[[int], torch.Tensor]  # the state at level i of the falling grid

    def step(self, model: Any, x: Any, span: Span, past: tuple[Eval, ...], noise: Any) -> tuple[Any, Eval]:
        y, seen = self.solver.step(model, x, span, past, noise)
        rung = self.ladder(span.i + 1)
        offset = rung - y
        hop = (rung - x).flatten(1).norm(dim=1).clamp_min(1e-300)
        info = {"offset": offset, "offset_norm": offset.flatten(1).norm(dim=1) / hop}
        return y + offset, seen._replace(info=info)


@dataclass(frozen=True)
class Replaying(Wrapping):
    """A solver with recorded offsets: the same step, and the same addition."""

    offset: Callable[[int], torch.Tensor]  # what hop i of the falling grid adds

    def step(self, model: Any, x: Any, span: Span, past: tuple[Eval, ...], noise: Any) -> tuple[Any, Eval]:
        y, seen = self.solver.step(model, x, span, past, noise)
        return y + self.offset(span.i), seen
