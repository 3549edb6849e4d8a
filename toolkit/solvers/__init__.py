"""The table of solvers: a new one is one function and one row here."""

import inspect
import math
from dataclasses import replace
from typing import Any

from ..errors import bad, unknown
from ..tables import Table
from .ancestral import (
    ddpm,
    dpm_2_ancestral,
    dpmpp_2s_ancestral,
    dpmpp_2s_ancestral_cfg_pp,
    euler_ancestral,
    euler_cfg_pp,
    lcm,
)
from .contract import Eval, Solver, Span, Step
from .dpm import adaptive, dpm_adaptive, dpm_fast, fast_grid
from .logsnr import (
    dpmpp_2m,
    dpmpp_2m_cfg_pp,
    dpmpp_2m_sde,
    dpmpp_3m_sde,
    er_sde,
    res_multistep,
    res_multistep_cfg_pp,
)
from .multistep import (
    deis,
    fireflow,
    gradient_estimation,
    gradient_estimation_cfg_pp,
    ipndm,
    ipndm_v,
    lms,
    uni_inv,
)
from .onestep import dpm_2, euler, heun, heunpp2, midpoint
from .predictor import sa_solver, uni_pc
from .reversible import BOOTSTRAPS, FORMS, INCREMENTS, bdia, edict, obelm, rex
from .sde import dpmpp_sde, seeds_2, seeds_3

__all__ = ["SOLVERS", "Eval", "Solver", "Span", "Step", "solver"]

CHOICES = {  # options that are names
    "bootstrap": tuple(BOOTSTRAPS),
    "form": FORMS,
    "increment": INCREMENTS,
    "solver_type": ("midpoint", "heun"),
    "variant": ("bh1", "bh2"),
}
POSITIVE = {"r", "r1", "r2", "gamma", "p", "zeta"}  # options that a formula divides by

SOLVERS = Table(
    "Solvers", "solver", 'tk.solver("{}")',
    {
        "name": lambda n, e: n,
        "order": lambda n, e: "" if e.order is None else str(e.order),
        "measured VE, FLOW": lambda n, e: ", ".join(f"{m:.1f}" for m in e.measured[:2]),
        "up": lambda n, e: ", ".join(f"{m:.1f}" for m in e.measured[2:]),
        "calls a step": lambda n, e: str(e.calls),
        "memory": lambda n, e: str(e.memory),
        "stochastic": lambda n, e: "yes" if e.stochastic else "",
        "inverse": lambda n, e: "algebraic" if e.reversible else "noise" if e.stochastic else "offsets",
        "source": lambda n, e: e.source,
    },
)  # fmt: skip

# name, function, order, calls a step, and the facts that are not the usual ones
# fmt: off
for _row in (
    # Euler family, one-step methods with stages
    Solver("euler", euler, 1, 1, measured=(1.0, 1.0, 1.0, 1.0), upward=True,
           source="2206.00364, 2010.02502"),
    Solver("ddim", euler, 1, 1, measured=(1.0, 1.0, 1.0, 1.0), upward=True, source="2010.02502"),
    Solver("heun", heun, 2, 2, measured=(2.0, 2.0, 2.0, 2.0), upward=True, source="2206.00364"),
    Solver("heunpp2", heunpp2, 1, 3, measured=(0.8, 0.9), source="sd-webui-samplers-scheduler"),
    Solver("dpm_2", dpm_2, 2, 2, measured=(2.0, 2.0, 2.0, 2.0), upward=True,
           source="2206.00927, 2206.00364"),
    Solver("midpoint", midpoint, 2, 2, measured=(2.0, 2.0, 2.0, 2.0), upward=True, source="2411.04746"),
    # ancestral
    Solver("euler_ancestral", euler_ancestral, 1, 1, measured=(1.0, 1.0), stochastic=True,
           source="k-diffusion"),
    Solver("euler_cfg_pp", euler_cfg_pp, 1, 1, measured=(1.0, 1.0), uncond=True, source="2406.08070",
           options={"eta": 0.0}),
    Solver("euler_ancestral_cfg_pp", euler_cfg_pp, 1, 1, measured=(1.0, 1.0), stochastic=True, uncond=True,
           source="2406.08070", options={"eta": 1.0}),
    Solver("ddpm", ddpm, 1, 1, measured=(1.1, 1.1), stochastic=True, source="2006.11239"),
    Solver("lcm", lcm, None, 1, stochastic=True, source="2310.04378"),
    Solver("dpm_2_ancestral", dpm_2_ancestral, 2, 2, measured=(2.0, 2.0), stochastic=True,
           source="2206.00927"),
    Solver("dpmpp_2s_ancestral", dpmpp_2s_ancestral, 2, 2, measured=(2.0, 2.0), stochastic=True,
           source="2211.01095"),
    Solver("dpmpp_2s_ancestral_cfg_pp", dpmpp_2s_ancestral_cfg_pp, 0, 2, measured=(0.0, 0.0),
           stochastic=True, uncond=True, source="2211.01095, 2406.08070"),
    # SDE solvers with stages
    Solver("dpmpp_sde", dpmpp_sde, 2, 2, measured=(2.0, 2.0), stochastic=True, source="2211.01095"),
    Solver("dpmpp_sde_gpu", dpmpp_sde, 2, 2, measured=(2.0, 2.0), stochastic=True, source="2211.01095"),
    Solver("seeds_2", seeds_2, 2, 2, measured=(2.0, 2.0), stochastic=True, source="2305.14267"),
    Solver("seeds_3", seeds_3, 3, 3, measured=(3.0, 3.0), stochastic=True, source="2305.14267"),
    # DPM-Solver with grids of its own
    Solver("dpm_fast", dpm_fast, 2, 3, measured=(3.0, 3.0, 3.0, 3.0), upward=True, own_grid=fast_grid,
           to_zero=False, source="2206.00927"),
    Solver("dpm_adaptive", dpm_adaptive, 3, 3, memory=1, measured=(3.0, 3.0, 3.0, 3.0), upward=True,
           adaptive=adaptive, to_zero=False, source="2206.00927"),
    # linear multistep in sigma
    Solver("lms", lms, 4, 1, memory=3, measured=(2.0, 2.0, 2.0, 2.6), upward=True, source="k-diffusion"),
    Solver("ipndm", ipndm, 2, 1, memory=3, measured=(2.0, 2.0, 2.0, 2.0), upward=True,
           source="2202.09778, 2204.13902"),
    Solver("ipndm_v", ipndm_v, 3, 1, memory=3, measured=(2.0, 2.0, 4.2, 3.0), upward=True,
           source="2204.13902"),
    Solver("deis", deis, 3, 1, memory=2, measured=(2.0, 2.0, 2.1, 3.6), upward=True, source="2204.13902"),
    Solver("gradient_estimation", gradient_estimation, 1, 1, memory=1, measured=(1.0, 1.0, 1.0, 1.0),
           upward=True, source="2306.04848"),
    Solver("gradient_estimation_cfg_pp", gradient_estimation_cfg_pp, 1, 1, memory=1, measured=(1.0, 1.0),
           uncond=True, source="2306.04848, 2406.08070"),
    Solver("fireflow", fireflow, 2, 1, memory=1, measured=(2.0, 1.9, 2.0, 2.0), upward=True,
           source="2412.07517"),
    Solver("uni_inv", uni_inv, 1, 1, memory=1, measured=(1.0, 1.0, 1.0, 1.0), upward=True,
           source="2504.13109"),
    # multistep in log-SNR
    Solver("dpmpp_2m", dpmpp_2m, 2, 1, memory=1, measured=(2.0, 2.1, 2.0, 2.0), upward=True,
           source="2211.01095"),
    Solver("dpmpp_2m_cfg_pp", dpmpp_2m_cfg_pp, 2, 1, memory=1, measured=(2.0, 2.1), uncond=True,
           source="2211.01095, 2406.08070"),
    Solver("dpmpp_2m_sde", dpmpp_2m_sde, 2, 1, memory=1, measured=(2.0, 1.9), stochastic=True,
           source="2211.01095"),
    Solver("dpmpp_2m_sde_gpu", dpmpp_2m_sde, 2, 1, memory=1, measured=(2.0, 1.9), stochastic=True,
           source="2211.01095"),
    Solver("dpmpp_2m_sde_heun", dpmpp_2m_sde, 2, 1, memory=1, measured=(2.0, 2.0), stochastic=True,
           source="2211.01095", options={"solver_type": "heun"}),
    Solver("dpmpp_2m_sde_heun_gpu", dpmpp_2m_sde, 2, 1, memory=1, measured=(2.0, 2.0), stochastic=True,
           source="2211.01095", options={"solver_type": "heun"}),
    Solver("dpmpp_3m_sde", dpmpp_3m_sde, 2, 1, memory=2, measured=(2.0, 2.1), stochastic=True,
           source="k-diffusion"),
    Solver("dpmpp_3m_sde_gpu", dpmpp_3m_sde, 2, 1, memory=2, measured=(2.0, 2.1), stochastic=True,
           source="k-diffusion"),
    Solver("res_multistep", res_multistep, 2, 1, memory=1, measured=(2.0, 2.0, 2.0, 2.0), upward=True,
           source="2308.02157", options={"eta": 0.0}),
    Solver("res_multistep_cfg_pp", res_multistep_cfg_pp, 2, 1, memory=1, measured=(2.0, 2.0), uncond=True,
           source="2308.02157, 2406.08070", options={"eta": 0.0}),
    Solver("res_multistep_ancestral", res_multistep, 2, 1, memory=1, measured=(2.0, 2.0), stochastic=True,
           source="2308.02157", options={"eta": 1.0}),
    Solver("res_multistep_ancestral_cfg_pp", res_multistep_cfg_pp, 2, 1, memory=1, measured=(2.0, 2.0),
           stochastic=True, uncond=True, source="2308.02157, 2406.08070", options={"eta": 1.0}),
    Solver("er_sde", er_sde, None, 1, memory=2, stochastic=True, source="2309.06169"),
    # predictor and corrector
    Solver("uni_pc", uni_pc, 3, 1, memory=3, measured=(2.2, 2.6), source="2302.04867",
           options={"variant": "bh1"}),
    Solver("uni_pc_bh2", uni_pc, 3, 1, memory=3, measured=(2.5, 2.6), source="2302.04867",
           options={"variant": "bh2"}),
    Solver("sa_solver", sa_solver, 4, 1, memory=3, measured=(3.0, 2.9), stochastic=True,
           source="2309.05019"),
    Solver("sa_solver_pece", sa_solver, 4, 2, memory=3, measured=(3.0, 2.9), stochastic=True,
           source="2309.05019", options={"pece": True}),
    # reversible
    Solver("obelm", obelm, 2, 1, memory=1, measured=(2.0, 2.0, 2.0, 2.0), upward=True, reversible=True,
           source="2410.07273"),
    Solver("bdia", bdia, 2, 1, memory=1, measured=(2.0, 2.0, 2.0, 2.0), upward=True, reversible=True,
           source="2307.10829"),
    Solver("edict", edict, None, 2, memory=1, upward=True, reversible=True, pair=True, source="2211.12446"),
    Solver("rex", rex, 2, 4, memory=1, measured=(2.0, 2.0, 2.0, 2.0), upward=True, reversible=True,
           pair=True, source="2502.08834, 2410.11648"),
):
    SOLVERS[_row.name] = _row
# fmt: on


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
