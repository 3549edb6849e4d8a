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
POSITIVE = {"r", "r1", "r2", "gamma", "p", "zeta"}  # options that a formula divides by

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
    # Euler family, one-step methods with stages
    Solver("euler", euler, order=1, calls=1, upward=True, source="2206.00364, 2010.02502"),
    Solver("heun", heun, order=2, calls=2, upward=True, source="2206.00364"),
    Solver("midpoint", midpoint, order=2, calls=2, upward=True, source="2411.04746"),
    # ancestral
    Solver("euler_ancestral", euler_ancestral, order=1, calls=1, stochastic=True, source="k-diffusion"),
    # SDE solvers with stages
    # DPM-Solver with grids of its own
    # linear multistep in sigma
    Solver("lms", lms, order=4, calls=1, memory=3, upward=True, source="k-diffusion"),
    # multistep in log-SNR
    Solver("dpmpp_2m", dpmpp_2m, order=2, calls=1, memory=1, upward=True, source="2211.01095"),
    # predictor and corrector
    # reversible
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
        _checked(row.name, option, known[option].default, value)
    if not options:
        return row
    bound = {**row.options, **options}
    return replace(row, options=bound, stochastic=_draws(row, known, bound))


def _checked(name: str, option: str, usual: Any, value: Any) -> None:
    """Raises unless `value` is one that the option, whose default is `usual`, can take."""
    line = f'tk.solver("{name}", {option}={usual!r})'
    if option in CHOICES:
        if value not in CHOICES[option]:
            raise unknown(option, value, CHOICES[option], f'tk.solver("{name}", {option}="{{}}")')
    elif isinstance(usual, bool):
        if not isinstance(value, bool):
            raise bad(option, value, "True or False", line)
    elif usual is None:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise bad(option, value, "a whole number, 1 or more, or None", line)
    else:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and value >= 0 and (math.isfinite(value) or value == usual)):
            raise bad(option, value, "a finite number, 0 or more", line)
        if value == 0 and option in POSITIVE:
            raise bad(option, value, "above 0: the formula divides by it", line)


def _draws(row: Solver, known: Any, options: Any) -> bool:
    """Whether the solver draws noise with these options: eta or s_noise 0 silence it, churn wakes it."""
    if "S_churn" in options:
        return options["S_churn"] > 0
    eta = options.get("eta", known["eta"].default if "eta" in known else 1.0)
    scale = options.get("s_noise", known["s_noise"].default if "s_noise" in known else 1.0)
    noisy = row.stochastic or ("eta" in known and eta > 0)
    return noisy and eta > 0 and scale > 0
