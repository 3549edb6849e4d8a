"""The table of solvers: a new one is one function and one row here."""

import inspect
import math
from dataclasses import replace
from typing import Any

from ..errors import bad, unknown
from ..tables import Table
from .contract import Eval, Solver, Span, Step
from .logsnr import dpmpp_2m
from .multistep import lms
from .onestep import euler, euler_ancestral, heun, midpoint
from .reversible import BOOTSTRAPS, obelm

__all__ = ["SOLVERS", "Eval", "Solver", "Span", "Step", "solver"]

CHOICES = {"bootstrap": tuple(BOOTSTRAPS)}  # options that are names

SOLVERS = Table(
    "Solvers", "solver", 'tk.solver("{}")',
    {
        "name": lambda n, e: n,
        "order": lambda n, e: str(e.order),
        "calls a step": lambda n, e: str(e.calls),
        "memory": lambda n, e: str(e.memory),
        "stochastic": lambda n, e: "yes" if e.stochastic else "",
        "inverse": lambda n, e: "algebraic" if e.reversible else "" if e.stochastic else "offsets",
        "source": lambda n, e: e.source,
    },
)  # fmt: skip

for _row in (
    Solver("euler", euler, order=1, calls=1, upward=True, source="2206.00364, 2010.02502"),
    Solver("euler_ancestral", euler_ancestral, order=1, calls=1, stochastic=True, source="k-diffusion"),
    Solver("heun", heun, order=2, calls=2, upward=True, source="2206.00364"),
    Solver("lms", lms, order=4, calls=1, memory=3, upward=True, source="k-diffusion"),
    Solver("dpmpp_2m", dpmpp_2m, order=2, calls=1, memory=1, upward=True, source="2211.01095"),
    Solver("midpoint", midpoint, order=2, calls=2, upward=True, source="2411.04746"),
    Solver("obelm", obelm, order=2, calls=1, memory=1, upward=True, reversible=True, source="2410.07273"),
):
    SOLVERS[_row.name] = _row


def solver(name: str | Solver, **options: Any) -> Solver:
    """A solver by name, with its options bound.

    Parameters
    ----------
    name : str or Solver
        One of ``tk.SOLVERS``, by ComfyUI's names; a Solver is returned as it is, or with more options.
    **options
        What the formula leaves open, for instance ``eta`` and ``s_noise`` of the ancestral ones.

    Raises
    ------
    ValueError
        For an unknown name or option; the closest one is offered.

    Examples
    --------
    >>> import toolkit as tk
    >>> tk.solver("euler_ancestral", eta=0.5)
    tk.solver('euler_ancestral', eta=0.5)
    """
    row = name if isinstance(name, Solver) else SOLVERS[name]
    known = dict(list(inspect.signature(row.function).parameters.items())[5:])
    for option, value in options.items():
        if option not in known:
            if not known:
                raise bad(option, value, f"{row.name} has no options", f'tk.solver("{row.name}")')
            raise unknown("option", option, known, f'tk.solver("{row.name}", {{}}=...)')
        usual = known[option].default
        if option in CHOICES and value not in CHOICES[option]:
            raise unknown(option, value, CHOICES[option], f'tk.solver("{row.name}", {option}="{{}}")')
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if isinstance(usual, float) and not (number and value >= 0):
            line = f'tk.solver("{row.name}", {option}={usual})'
            raise bad(option, value, "a finite number, 0 or more", line)
    return replace(row, options={**row.options, **options}) if options else row
