"""The loop, whole. If it grows, the design has gone wrong."""

from collections.abc import Iterator
from typing import Any

from .noise import bound
from .solvers.contract import Eval, Solver, Span, Step


def steps(model: Any, solver: Solver, x: Any, sigmas: Any, *, noise: Any = None, past: tuple[Eval, ...] = (),
          start: int = 0, stop: int | None = None) -> Iterator[Step]:  # fmt: skip
    """A generator of `Step`s: the solver run over a grid, up or down, one hop at a time.

    Parameters
    ----------
    model : Denoiser
        ``tk.guide(model, prompt, negative, cfg)`` or ``tk.denoiser(fn)``.
    solver : Solver
        ``tk.solver(name)``.
    x : Tensor (sample, channel, y, x)
        The state at ``sigmas[start]``, in the dtype it is to be kept in (float64 is exact enough to invert).
    sigmas : 1-D tensor, array or list
        The whole grid, rising or falling.
    noise : callable, optional
        ``noise(sigma, sigma_next) -> unit normal``, asked once a draw, in the order of the formula.
    past : tuple of Eval, optional
        The last evaluations, newest first, to go on from: a run cut anywhere continues bit for bit.
    start, stop : int, optional
        The first hop, and the hop to stop before; every span still sees the whole grid.

    Yields
    ------
    Step
        ``span, x, x_next, seen, past``.

    Raises
    ------
    ValueError
        Where a stochastic solver gets no noise, or a solver is run in a direction it does not have.

    Examples
    --------
    >>> import torch, toolkit as tk
    >>> model = tk.guide(tk.load(), prompt=3)
    >>> sigmas = tk.schedule(model, "karras", steps=5).sigma.values
    >>> x = sigmas[0] * torch.randn(1, 4, 8, 8, dtype=torch.float64)
    >>> for step in tk.steps(model, tk.solver("dpmpp_2m"), x, sigmas):
    ...     x = step.x_next
    >>> step.span.t
    0.0
    """
    if solver.adaptive is not None:  # it chooses its levels as it goes
        yield from solver.adaptive(solver, model, x, sigmas, bound(noise), past, start, stop)
        return
    levels, noise = solver.grid(sigmas), bound(noise)  # most grids are their own
    for i in range(start, len(levels) - 1 if stop is None else stop):
        span = Span(levels, i, sigmas)
        x_next, seen = solver.step(model, x, span, past, noise.at(i))
        past = (seen, *past)[: solver.memory]
        yield Step(span, x, x_next, seen, past)
        x = x_next
