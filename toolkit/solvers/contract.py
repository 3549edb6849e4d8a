"""The contract: a solver is a function of what it is handed, its only memory is data in the caller's hand.

    step(model, x, span, past, noise) -> (x_next, Eval)

`model` is a Denoiser: ``model.denoise(x, sigma).x0`` is what it sees at noise level sigma, ``model.path`` and
``model.levels`` what it is. `x` is the state at ``span.s``; the step returns the state at ``span.t``, up or
down. `past` is a tuple of the last few Evals, newest first, as many as the solver's table row asks for.
`noise(sigma, sigma_next)` gives unit noise, once a draw, in the order in which the formula needs it.

Why this shape: compositing regions without losing a multistep solver's history, inverting exactly, streaming
every step to disk and resuming after a crash are one demand: the memory is data. Rules for authors:

- Start from the `x` you are handed, never from one you remember: somebody may have moved it. A remembered x0
  may be trusted. (The reversible solvers need a remembered x: they are refused where states are moved.)
- Scalars are Python floats. On VE and FLOW alike the slope is dx/dsigma = (x - D)/sigma, so most formulas
  need no path.
- At t = 0 return D, unless the formula says otherwise, and draw no noise.
- Ask ``denoise(x, sigma, uncond=True)`` only where the formula needs the unconditional answer.
- A step is affine in its last draw, with a scalar factor: the inverse that extracts noise relies on it.
- ``span.levels`` is always the whole grid: weights that look at it stay right after a resume.

Letters in the formulas: s, t sigma from and to; D the denoised at (x, s), U the unconditional one; d = (x -
D)/s; alpha = 1 on VE, 1 - sigma on FLOW; rho = sigma/alpha; lam = -log rho; ell = -log sigma; E(z) = e^z - 1;
phi1 = E(z)/z, phi2 = (phi1 - 1)/z.
"""

import inspect
import struct
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

    @property
    def n(self) -> int:
        """Hops of the whole grid."""
        return len(self.levels) - 1


class Step(NamedTuple):
    """One hop as the loop yields it: `x` at ``span.s``, `x_next` at ``span.t``, the Eval, the new past."""

    span: Span
    x: Any
    x_next: Any
    seen: Eval
    past: tuple[Eval, ...]


def opening(model: Any, span: Span) -> float:
    """The sigma that a formula in log-SNR uses for s: a little less than 1 where FLOW begins at 1.

    There log-SNR is -inf. ComfyUI's offset, percent(0.0001), rounded to float32 as its sigmas are: alpha is
    3.3e-5 there, so it shows. The state is not rescaled.
    """
    at_one = span.s >= 1.0 and span.s == span.levels[0] and model.path.name == "FLOW"
    return struct.unpack("f", struct.pack("f", model.levels.percent(1e-4)))[0] if at_one else span.s


def falling(span: Span, name: str) -> tuple[float, float]:
    """(s, t) of a hop of a solver that has none upwards: raises there."""
    s, t = span.s, span.t
    if t > s:
        why = f"{name} goes down in sigma only: its formula has no value upwards"
        raise bad("sigmas", (s, t), why, 'tk.solver("euler")')
    return s, t


@dataclass(frozen=True)
class Solver:
    """A step function with its options, and the facts that its table row states.

    Attributes
    ----------
    order : int or None
        Nominal order of the deterministic part; multistep solvers reach at most 2 from a cold start, all but
        one. None: the method has none.
    calls : int
        Model calls a step. memory : past Evals needed.
    measured : tuple of float
        The order by slope on a closed-form model, cold-started: downwards on VE and on FLOW, then upwards on
        both where the solver goes up.
    stochastic, upward, reversible : bool
        Draws noise; the formula may be run upwards; a step up after a step down is the identity.
    pair : bool
        The second state of a reversible solver is a partner at the same level, in ``Eval.aux``; else it is
        the state before.
    uncond : bool
        Asks for the unconditional answer at any cfg (the cfg_pp names, which solve no ODE).
    own_grid : callable, optional
        ``own_grid(levels, **options) -> levels``, of a solver that makes its own levels.
    adaptive : callable, optional
        The generator of Steps of a solver that chooses its levels as it goes; its `function` is then the hop
        between two given levels.
    to_zero : bool
        Walks to a final 0; else it ends at the last positive level, and its result still holds that noise.
    """

    name: str
    function: Callable
    order: int | None
    calls: int
    memory: int = 0
    measured: tuple[float, ...] = ()
    stochastic: bool = False
    upward: bool = False
    reversible: bool = False
    pair: bool = False
    uncond: bool = False
    own_grid: Callable | None = None
    adaptive: Callable | None = None
    to_zero: bool = True
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
        """The levels this solver walks on: those asked for, as floats, or its own between them."""
        levels = tuple(sigmas.tolist() if hasattr(sigmas, "tolist") else map(float, sigmas))
        return levels if self.own_grid is None else self.own_grid(levels, **self.options)

    def defaults(self, *names: str) -> dict[str, Any]:
        """The options among `names` that the formula has, as they are bound or by default."""
        known = inspect.signature(self.function).parameters
        return {n: self.options.get(n, known[n].default) for n in names if n in known}

    def __repr__(self) -> str:
        options = "".join(f", {k}={v!r}" for k, v in self.options.items())
        return f"tk.solver({self.name!r}{options})"

    def _repr_html_(self) -> str:
        rows = {"order": self.order, "calls a step": self.calls, "memory": self.memory,
                "stochastic": self.stochastic, "runs upwards": self.upward, "reversible": self.reversible,
                "options": dict(self.options), "source": self.source}  # fmt: skip
        cells = "".join(f"<tr><th>{k}</th><td>{v}</td></tr>" for k, v in rows.items())
        return f"<table><caption>{self.name}</caption>{cells}</table>"
