"""How a solver is run backwards, and what brings the image back: the strategies, and the table behind "auto".

At cfg 1 the ODE is well conditioned and an accurate climb nearly returns; under guidance nothing does but
stored information: the offsets of a solver's own steps against a ladder, the noise that a stochastic solver
would have needed, or the second state of a reversible solver.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
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
INVERSES["noise"] = ("a ladder, and the noise that the step would have needed", "yes", "stochastic solvers")
INVERSES["fixed_point"] = ("each step solved for its start, by Anderson", "at cfg 1", "one-step solvers")
INVERSES["defect"] = ("a climb, corrected by what its sample misses", "at cfg 1", "deterministic solvers")


def _churned(solver: Solver) -> bool:
    return solver.options.get("S_churn", 0.0) > 0


# what "auto" picks, first line that fits: kind of solver -> (predicate, inverse, why)
AUTO = Table(
    'What inverse="auto" picks, first line that fits', "kind of solver", "toolkit.inverse.AUTO",
    {"solver": lambda n, e: n, "inverse": lambda n, e: e[1], "why": lambda n, e: e[2]},
)  # fmt: skip
AUTO["reversible"] = (lambda s: s.reversible, "algebraic", "its own inverse; the second state is stored")
AUTO["churned"] = (_churned, "offsets", "exact; its noise comes before the model's call, and is no formula's")
AUTO["stochastic"] = (lambda s: s.stochastic, "noise", "exact and editable; x_T is x0 plus noise")
AUTO["cfg_pp"] = (lambda s: s.uncond, "offsets", "exact; it solves no ODE, x_T is that of the guided one")
AUTO["choosing its levels"] = (lambda s: s.adaptive is not None, "offsets", "exact, on the levels it chose")
AUTO["any other"] = (lambda s: True, "offsets", "exact at any cfg, and x_T near the true ODE's")

# what the ladder under extracted noise is made of: noise with a coupling, or the ODE by `via`
LADDERS = ("independent", "markov", "shared", "ode")


def choose(solver: Solver, inverse: str) -> str:
    """The strategy for a solver: `inverse` itself where it can, or what "auto" picks."""
    if solver.adaptive is not None and solver.stochastic:
        why = "with eta it chooses its levels by the noise it draws, which no inverse knows beforehand"
        raise bad("solver", solver, why, f'tk.unsample(model, latent, solver="{solver.name}")')
    able = next(picked for fits, picked, _ in AUTO.values() if fits(solver))
    if inverse == "auto":
        return able
    if inverse not in INVERSES:
        raise unknown("inverse", inverse, ["auto", *INVERSES], 'tk.unsample(model, latent, inverse="{}")')
    name = solver.name
    why = {
        "reverse": None if solver.upward else f"{name} has no step upwards",
        "algebraic": None if solver.reversible else f"{name} is not reversible; {_names('reversible')} are",
        "noise": None
        if solver.stochastic and not _churned(solver)
        else f"{name} ends its step with no noise that could be extracted",
        "fixed_point": _not_implicit(solver) or (f"{name} remembers steps" if solver.memory else None),
        "defect": _not_implicit(solver),
    }.get(inverse)
    if why is not None:
        line = f'tk.unsample(model, latent, solver="{name}", inverse="{able}")'
        raise bad("inverse", inverse, f"{why}; {able} brings its image back exactly", line)
    return inverse


def _not_implicit(solver: Solver) -> str | None:
    """Why a step cannot be solved for its start."""
    if solver.stochastic:
        return f"{solver.name} draws noise"
    if solver.adaptive is not None:
        return f"{solver.name} chooses its levels by the state"
    return f"{solver.name} keeps a second state" if solver.reversible else None


def _names(fact: str) -> str:
    return ", ".join(n for n, s in SOLVERS.items() if getattr(s, fact))


def climber(via: str | Solver) -> Solver:
    """The solver that builds a ladder for offsets: any deterministic one that runs upwards on a grid."""
    able = [n for n, s in SOLVERS.items() if s.upward and s.to_zero and not s.stochastic and not s.pair]
    name = via.name if isinstance(via, Solver) else via
    if name not in able or (isinstance(via, Solver) and via.stochastic):
        raise unknown("via", name, able, 'tk.unsample(model, latent, via="{}")', " that climbs")
    return via if isinstance(via, Solver) else SOLVERS[via]


def frozen(solver: Solver, hops: int) -> Solver:
    """The solver on a grid that is fixed: it makes and chooses no level. `hops` of the grid asked for."""
    if solver.adaptive is not None:
        return replace(solver, adaptive=None)
    return replace(solver, options={**solver.options, "steps": hops}) if solver.own_grid else solver


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
        return self.missed(x, span, *self.solver.step(model, x, span, past, noise))

    def missed(self, x: torch.Tensor, span: Span, y: torch.Tensor, seen: Eval) -> tuple[Any, Eval]:
        """y with its offset to the rung, and the offset for the record."""
        rung = self.ladder(span.i + 1)
        offset = rung - y
        hop = (rung - x).flatten(1).norm(dim=1).clamp_min(1e-300)
        info = {"offset": offset, "offset_norm": offset.flatten(1).norm(dim=1) / hop}
        return y + offset, seen._replace(info=info)


@dataclass(frozen=True)
class Extracting(Recording):
    """A stochastic solver that walks down a ladder and records the noise it would have needed (2304.06140).

    A step is affine in its last draw z, S = A + c z with a scalar c: z = (rung - A)/c takes it to the rung,
    and it goes on from S(z), the value that the replay will have. Where c is 0 (the solver is deterministic
    for a while) an offset is recorded. A and c come from the step itself, taken again with the last draw 0
    and 1 and the model's answers remembered: no call more.
    """

    def step(self, model: Any, x: Any, span: Span, past: tuple[Eval, ...], noise: Any) -> tuple[Any, Eval]:
        memo = Memo(model)
        draws = Draws(noise, memo)
        y, seen = self.solver.step(memo, x, span, past, draws)
        if not draws.made:
            return self.missed(x, span, y, seen)
        if memo.calls > draws.calls:
            why = "its step calls the model after the last draw: no formula gives that noise"
            name = self.solver.name
            raise bad(
                "inverse", "noise", why, f'tk.unsample(model, latent, solver="{name}", inverse="offsets")'
            )

        def ending(last: torch.Tensor) -> tuple[Any, Eval]:
            return self.solver.step(memo.again(), x, span, past, Answers([*draws.made[:-1], last]))

        nothing = torch.zeros_like(draws.made[-1])
        base = ending(nothing)[0]
        scale = float(
            (ending(nothing + 1.0)[0] - base).mean()
        )  # the mean: its rounding is smaller than one's
        if abs(scale) <= 1e-12 * span.t:
            y, seen = self.missed(x, span, *ending(nothing))
            z = nothing
        else:
            z = (self.ladder(span.i + 1) - base) / scale
            y, seen = ending(z)
        info = {**(seen.info or {}), "noise": z, "noise_scale": scale, "noise_draws": len(draws.made)}
        return y, seen._replace(info=info)


@dataclass(frozen=True)
class Replaying(Wrapping):
    """A solver with what was recorded: the same step with its last draw, and the same addition."""

    offset: Callable[[int], torch.Tensor] | None = None  # what hop i of the falling grid adds
    noise: Callable[[int], torch.Tensor] | None = None  # the last draw of hop i
    draws: int = 1  # how many draws a step makes

    def step(self, model: Any, x: Any, span: Span, past: tuple[Eval, ...], noise: Any) -> tuple[Any, Eval]:
        if self.noise is not None:
            noise = Ending(noise, self.draws - 1, self.noise(span.i))
        y, seen = self.solver.step(model, x, span, past, noise)
        return y if self.offset is None else y + self.offset(span.i), seen


@dataclass(frozen=True)
class Keeping(Wrapping):
    """A solver whose state is put back, where it is kept, on what it shall be at each level (2206.02779).

    x' = m S(x) + (1 - m) rung. Its memory moves with it: a later step begins from the x that it is handed.
    """

    free: Callable[[float], torch.Tensor]  # m at the level that a hop leaves, (sample, 1, y, x)
    ladder: Callable[[int], torch.Tensor]  # the state at level i of the falling grid

    def step(self, model: Any, x: Any, span: Span, past: tuple[Eval, ...], noise: Any) -> tuple[Any, Eval]:
        y, seen = self.solver.step(model, x, span, past, noise)
        m = self.free(span.s)
        return m * y + (1.0 - m) * self.ladder(span.i + 1), seen


class Memo:
    """A denoiser that answers a second time what it answered the first, in the order of the calls.

    Not by (x, sigma): the inputs of the stages of a step are new tensors each time.
    """

    def __init__(self, model: Any):
        self.model, self.answers, self.calls = model, [], 0
        self.path, self.levels, self.channels = model.path, model.levels, model.channels

    def denoise(self, x: torch.Tensor, sigma: float, uncond: bool = False) -> Any:
        if self.calls == len(self.answers):
            self.answers.append(self.model.denoise(x, sigma, uncond))
        self.calls += 1
        return self.answers[self.calls - 1]

    def again(self) -> "Memo":
        """From the first answer."""
        self.calls = 0
        return self


class Draws:
    """Noise that remembers what it answered, and after how many model calls it did so last."""

    def __init__(self, noise: Any, memo: Memo):
        self.noise, self.memo, self.made, self.calls = noise, memo, [], 0

    def __call__(self, sigma: float, sigma_next: float) -> torch.Tensor:
        self.made.append(self.noise(sigma, sigma_next))
        self.calls = self.memo.calls
        return self.made[-1]


class Answers:
    """Noise that answers from a list."""

    def __init__(self, values: list):
        self.values = iter(values)

    def __call__(self, sigma: float, sigma_next: float) -> torch.Tensor:
        return next(self.values)


class Ending:
    """Noise whose draw number `at` is a given one."""

    def __init__(self, noise: Any, at: int, last: torch.Tensor):
        self.noise, self.at, self.last, self.count = noise, at, last, 0

    def __call__(self, sigma: float, sigma_next: float) -> torch.Tensor:
        drawn = self.noise(sigma, sigma_next) if self.count != self.at else self.last
        self.count += 1
        return drawn
