"""The contract: a solver is a function of what it is handed, its only memory is data in the caller's hand.

    step(model, x, span, past, noise) -> (x_next, Eval)

`model` is a Denoiser: ``model.denoise(x, sigma).x0`` is what it sees at noise level sigma, ``model.path`` and
``model.levels`` what it is. `x` is the state at ``span.s``; the step returns the state at ``span.t``, up or
down. `past` is a tuple of the last few Evals, newest first, as many as the solver's table row asks for.
`noise(sigma, sigma_next)` gives unit noise, once a draw, in the order in which the formula needs it.

Why this shape: compositing regions without losing a multistep solver's history, inverting exactly, streaming
every step to disk and resuming after a crash are one demand: the memory is data. Rules for authors:

- Start from the `x` you are handed, never from one you remember: somebody may have moved it. A remembered x0
may be
  trusted. (The reversible solvers need a remembered x: they are refused where states are moved between
  steps.)
- Scalars are Python floats. On VE and FLOW alike the slope is dx/dsigma = (x - D)/sigma, so most formulas
need no path. - At t = 0 return D, unless the formula says otherwise, and draw no noise. - ``span.levels`` is
always the whole grid: weights that look at it stay right after a resume.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..errors import bad


class Eval(NamedTuple):
    """What one step saw: the sigma used, the state handed in, the denoiser's x0 there.

    `aux` is for the solver itself, `calls` counts the model calls of the step, `info` is for the record
    (offsets, weights): no solver reads it.
    """

    sigma: float
    x: Any
    x0: Any = None
    aux: Any = None
    calls: int = 0
    info: Mapping[str, Any] | None = None


class Span(NamedTuple):
    """Where a step stands: hop i of the whole grid `levels`, from s = levels[i] to t = levels[i + 1].

    `asked` is the grid the user gave, where the solver makes its own.
    """

    levels: tuple[float, ...]
    i: int
    asked: Any = None

    @property
    def s(self) -> float:
        return self.levels[self.i]

    @property
    def t(self) -> float:
        return self.levels[self.i + 1]


class Step(NamedTuple):
    """One hop as the loop yields it: `x` at ``span.s``, `x_next` at ``span.t``, the Eval, the new past."""

    span: Span
    x: Any
    x_next: Any
    seen: Eval
    past: tuple[Eval, ...]


@dataclass(frozen=True)
class Solver:
    """A step function with its options, and the facts that its table row states.

    Attributes
    ----------
    order : int
        Nominal order of convergence; multistep solvers reach at most 2 from a cold start.
    calls : int
        Model calls a step. memory : past Evals needed.
    stochastic, upward, reversible : bool
        Draws noise; the formula may be run upwards; a step up after a step down is the identity.
    """

    name: str
    function: Callable
    order: int
    calls: int
    memory: int = 0
    stochastic: bool = False
    upward: bool = False
    reversible: bool = False
    source: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def step(self, model: Any, x: Any, span: Span, past: tuple[Eval, ...], noise: Any) -> tuple[Any, Eval]:
        """One hop, with the model calls it made written into the Eval."""
        before = model.calls
        try:
            x_next, seen = self.function(model, x, span, past, noise, **self.options)
        except ZeroDivisionError:
            if span.s != 0:
                raise
            why = "no slope at sigma 0: the hop to the lowest level is alpha*x, start from there"
            raise bad(
                "sigmas", (span.s, span.t), why, "tk.steps(model, solver, alpha * x, sigmas, start=1)"
            ) from None
        return x_next, Eval(seen[0], seen[1], seen[2], seen[3], model.calls - before, seen[5])

    def grid(self, sigmas: Any) -> tuple[float, ...]:
        """The levels this solver walks on: those asked for, as floats."""
        return tuple(sigmas.tolist() if hasattr(sigmas, "tolist") else map(float, sigmas))

    def __repr__(self) -> str:
        options = "".join(f", {k}={v!r}" for k, v in self.options.items())
        return f"tk.solver({self.name!r}{options})"

    def _repr_html_(self) -> str:
        rows = {"order": self.order, "calls a step": self.calls, "memory": self.memory,
                "stochastic": self.stochastic, "runs upwards": self.upward, "reversible": self.reversible,
                "options": dict(self.options), "source": self.source}  # fmt: skip
        cells = "".join(f"<tr><th>{k}</th><td>{v}</td></tr>" for k, v in rows.items())
        return f"<table><caption>{self.name}</caption>{cells}</table>"
