"""The schedules by name, and the door to them: levels that a run would walk, as labelled data. No torch here.

The formulas are in `toolkit.grids`, the tables of levels that they pick from in `toolkit.levels`.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from . import grids
from .dataset import rung_coordinates
from .errors import bad, unknown
from .levels import Levels, number
from .tables import Table

__all__ = ["DISCARD_PENULTIMATE", "SCHEDULES", "Levels", "schedule", "sigmas"]

MOST_STEPS = 1_000_000  # a slip of the keyboard must not take the machine's memory

DISCARD_PENULTIMATE = frozenset({"dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"})

SCHEDULES = Table(
    "Schedules",
    "schedule",
    'tk.schedule(levels, "{}", steps=20)',
    {"name": lambda name, make: name, "what": lambda name, make: (make.__doc__ or "").strip().split("\n")[0]},
)
for _make in (
    # ComfyUI's nine
    grids.normal,
    grids.karras,
    grids.exponential,
    grids.sgm_uniform,
    grids.simple,
    grids.ddim_uniform,
    grids.beta,
    grids.linear_quadratic,
    grids.kl_optimal,
    # other formulas
    grids.beta57,
    grids.polyexponential,
    grids.vp,
    grids.cosine,
    grids.laplace,
    # published tables
    grids.ays_sd1,
    grids.ays_sdxl,
    grids.ays_svd,
    grids.ays_sd1_diffusers,
    grids.ays_sdxl_diffusers,
    # flow models alone
    grids.dynamic_shift,
    grids.bong_tangent,
    grids.oss,
):
    SCHEDULES[_make.__name__] = _make


def _known(make: Callable[..., Any]) -> dict[str, Any]:
    """The options of a schedule and their defaults: its parameters after levels and steps."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = list(inspect.signature(make).parameters.values())[2:]
    return {p.name: p.default for p in parameters if p.kind in named}


def _checked(name: str, options: Mapping[str, Any]) -> None:
    """Raises for an option that the schedule `name`, which exists, does not have."""
    known = _known(SCHEDULES[name])
    for option, value in options.items():
        if not known:
            raise bad(option, value, f"{name} has no options", f'tk.schedule(levels, "{name}")')
        if option not in known:
            raise unknown("option", option, known, f'tk.schedule(levels, "{name}", {{}}=...)')


def _picked(
    levels: Levels, name: str, make: Callable[..., Any], steps: int, solver: str | None, denoise: float
) -> np.ndarray:
    """The levels of a validated request: whole, less the last but one, or the lower end of a longer one."""
    total, drop = steps if denoise == 1.0 else int(steps / denoise), solver in DISCARD_PENULTIMATE
    try:
        with np.errstate(all="ignore"):  # extreme options: what they give is refused below
            result = np.asarray(make(levels, total + drop), np.float32)
    except OverflowError:
        result = np.empty(0)
    falls = result.ndim == 1 and len(result) > 1 and (np.diff(result) <= 0).all()
    if not (falls and np.isfinite(result).all()):
        wanted = f"a function that gives finite, falling levels; it does not for {total + drop} steps"
        raise bad("schedule", name, wanted, f'tk.schedule(levels, "{name}", steps=20)')
    if drop and len(result) > 2:
        result = np.delete(result, -2)
    return result if denoise == 1.0 else result[-(steps + 1) :]


def sigmas(
    levels: Levels, name: str, steps: int, solver: object = None, denoise: float = 1.0, **options: Any
) -> np.ndarray:
    """Falling levels (steps + 1,), float32, of schedule `name`; arguments and errors: see `schedule`."""
    line = 'tk.schedule(tk.Levels.scaled_linear(), "karras", steps=20)'
    if not isinstance(levels, Levels):
        raise bad("levels", levels, "a Levels, or a model that carries one", line, TypeError)
    make = SCHEDULES[name]  # an unknown name raises, with the closest one
    if isinstance(steps, (bool, np.bool_)) or not isinstance(steps, (int, np.integer)):
        raise bad("steps", steps, "a whole number of steps", line, TypeError)
    if steps < 1:
        raise bad("steps", steps, "1 or more", line)
    share = number("denoise", denoise, 0.0, "tk.schedule(levels, denoise=0.5)", high=1.0)
    if steps / share > MOST_STEPS:
        raise bad("steps", steps, f"at most {MOST_STEPS:,} over denoise, which is {share:g}", line)
    if options:
        _checked(name, options)
        make = partial(make, **options)
    return _picked(levels, name, make, int(steps), _solver_name(solver), share)


def _solver_name(solver: object) -> str | None:
    """The name of a solver that is given by name or as itself."""
    name = getattr(solver, "name", solver)
    if name is not None and not isinstance(name, str):
        line = 'tk.schedule(levels, solver="dpm_2")'
        raise bad("solver", solver, "a name from tk.SOLVERS, or None", line, TypeError)
    return name


def _is_list(name: Any) -> bool:
    """Whether levels are given in place of a name: a list or an array, but not of names."""
    if isinstance(name, (list, tuple)):
        return not any(isinstance(value, str) for value in name)
    return hasattr(name, "dtype") and not isinstance(name, np.generic)


def _own(
    name: Any, levels: Levels, path: Any, denoise: float, options: Mapping[str, Any]
) -> tuple[np.ndarray, dict]:
    """A list of levels given in place of a name, and the attributes of it."""
    if denoise != 1.0:
        line = "tk.schedule(levels, sigmas[2:])"
        raise bad("denoise", denoise, "a share of a schedule by name; cut your own levels yourself", line)
    if options:
        option, value = next(iter(options.items()))
        why = "an option of a schedule by name, and levels of your own are taken as they are"
        raise bad(option, value, why, "tk.schedule(levels, sigmas)")
    own = np.array(grids.grid(name, False, path))
    return own, {"schedule": "given", "steps": len(own) - 1, "options": {}}


def labelled(coordinates: Mapping[str, Any], attrs: Mapping[str, Any]) -> xr.Dataset:
    """The Dataset of falling levels, of their `rung_coordinates`, with the variable `step_size`."""
    half, sigma = np.asarray(coordinates["log_snr"][1]) / 2.0, np.asarray(coordinates["sigma"][1])
    with np.errstate(invalid="ignore"):  # inf - inf, between equal levels
        hops = np.where(np.diff(sigma) == 0, 0.0, np.diff(half))
    text = "change of half log-SNR (lambda) of the hop that leaves this row"
    size = ("step", np.append(hops, np.nan), {"long_name": text, "units": "1"})
    return xr.Dataset({"step_size": size}, dict(coordinates), {"kind": "schedule", **attrs})


def schedule(
    model_or_levels: Any,
    name: Any = "normal",
    steps: int = 20,
    solver: object = None,
    denoise: float = 1.0,
    **options: Any,
) -> xr.Dataset:
    """The levels that a run would walk, as labelled data.

    Parameters
    ----------
    model_or_levels : Levels, or a model
        Anything that carries `.levels` (and `.path`) serves as a model.
    name : str, or sequence of float
        One of ``tk.SCHEDULES``; or falling levels of your own, which are kept as they are, float64: `steps`
        is then theirs, and `solver` is noted, no more.
    steps : int
        1 or more.
    solver : str or solver, optional
        dpm_2, dpm_2_ancestral, uni_pc and uni_pc_bh2 take one step more and drop the last level but one.
    denoise : float
        In (0, 1]: below 1, the last `steps` + 1 levels of a schedule of int(steps/denoise) steps.
    **options
        What the formula leaves open, for instance ``rho`` of karras; ``help(tk.SCHEDULES["karras"])`` lists
        them. A run takes the result as it is: ``tk.sample(model, sigmas=grid.sigma)``, and
        ``tk.unsample(model, latent, sigmas=grid.sigma[::-1])``.

    Returns
    -------
    Dataset
        Coordinates on `step`: `sigma` (falling, float32 values), `timestep`, `alpha`, `log_snr`. Variable
        `step_size` (step): the change of half log-SNR (lambda) of the hop that leaves the row; infinite where
        it leaves pure noise or reaches 0, NaN in the last row. All dimensionless. ``attrs["options"]`` are
        all options, the defaults too; ``attrs["note"]`` is there where a schedule gives another number of
        levels than asked. The first nine names and numbers are ComfyUI's; each function of ``tk.SCHEDULES``
        has its formula and source in its docstring.

    Raises
    ------
    ValueError, TypeError
        For an unknown name or option (the closest one is offered), numbers that the schedule has no levels
        for, and levels that it is not made for: of the other path, or that do not reach as far as its table.

    Examples
    --------
    >>> import toolkit as tk
    >>> grid = tk.schedule(tk.Levels.scaled_linear(), "karras", steps=5)
    >>> grid.sigma.values.round(2).tolist()
    [14.61, 4.8, 1.27, 0.25, 0.03, 0.0]
    >>> tk.schedule(tk.Levels.scaled_linear(), "karras", steps=5, rho=3).sigma.values.round(2).tolist()
    [14.61, 6.97, 2.61, 0.6, 0.03, 0.0]
    >>> tk.schedule(tk.Levels.flow(), [1.0, 0.7, 0.2, 0.0]).attrs["schedule"]
    'given'
    """
    levels = (
        model_or_levels if isinstance(model_or_levels, Levels) else getattr(model_or_levels, "levels", None)
    )
    if not isinstance(levels, Levels):
        wanted = "a Levels, or a model that carries `.levels`"
        raise bad(
            "model_or_levels", model_or_levels, wanted, "tk.schedule(tk.Levels.scaled_linear())", TypeError
        )
    path = getattr(model_or_levels, "path", levels.path)
    if _is_list(name):
        picked, attrs = _own(name, levels, path, denoise, options)
    else:
        picked = sigmas(levels, name, steps, solver, denoise, **options)
        bound = _known(SCHEDULES[name]) | options
        plain = {
            key: value.item() if isinstance(value, np.generic) else value for key, value in bound.items()
        }
        attrs = {"schedule": name, "steps": int(steps), "options": plain}
    attrs |= {"solver": _solver_name(solver), "denoise": float(denoise), "path": path.name}
    attrs["levels"] = levels.describe()
    if len(picked) != attrs["steps"] + 1:
        asked = attrs["steps"] + 1
        attrs["note"] = f"{name} gives {len(picked)} levels here, not {asked}: {len(picked) - 1} steps"
    return labelled(rung_coordinates(picked, levels, path), attrs)
