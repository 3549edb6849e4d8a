"""Several prompts on one canvas: a run from noise, its regions fused in the denoiser or step by step."""

from collections.abc import Sequence
from typing import Any

import xarray as xr

from . import inputs
from .children import stepwise
from .dataset import Save
from .denoisers import as_model
from .errors import bad, unknown
from .inverse import Keeping
from .plans import Asked, fresh
from .regions import Region
from .runs import checked_save, walked
from .solvers import Solver

MODES = ("denoiser", "step")


def regional(model: Any, regions: Sequence[Region], start: Any = None, *, mode: str = "denoiser",
             prompt: Any = None, negative: Any = None, cfg: float = 1.0, solver: str | Solver = "euler",
             schedule: str = "normal", steps: int = 20, sigmas: Sequence[float] | None = None,
             noise: Any = None, add_noise: bool = True, shape: Sequence[int] | None = None, seed: int = 0,
             save: Save = Save(), progress: bool = True) -> xr.Dataset:  # fmt: skip
    """From noise to one image of several prompts, each under its mask: one row a level, falling.

    Parameters
    ----------
    model : Model
    regions : list of Region
        Their weights are the masks over max(their sum, 1).
    start : array (sample, channel, y, x), DataArray or PIL image, optional
        It is noised to the first level. None starts from noise alone.
    mode : {"denoiser", "step"}
        "denoiser": the opinions of all regions are fused before the solver sees them, so that it keeps its
        history. "step": each region has a solver, a memory and, with a seed, draws of its own, and states are
        composited after each step; not for solvers that are reversible or make their own levels.
    prompt, negative, cfg, solver
        Of the base, which has what the masks leave, and of regions that have none of their own.
    schedule, steps, sigmas, noise, add_noise, shape, seed, save, progress
        As in ``tk.sample``.

    Returns
    -------
    Dataset
        dims (step, sample, channel, y, x): `latent`, `denoised`, `nfe`, `rows`, `mean`, `std`; (step, region,
        y, x): `weight`, "base" first; (region, y, x): `region_mask`; (step, region, sample): `conflict`;
        (step, sample): `seam_gradient`.

    Raises
    ------
    ValueError, TypeError
        For bad input, before the first model call. FloatingPointError where a state is not finite; what was
        recorded is ``exc.dataset``, or in the store.

    Examples
    --------
    >>> import toolkit as tk
    >>> left, right = (tk.box(x, 0.0, x + 0.5, 1.0, size=(8, 8)) for x in (0.0, 0.5))
    >>> regions = [tk.Region(left, prompt=3, feather=1), tk.Region(right, prompt=7, feather=1)]
    >>> run = tk.regional(tk.load(), regions, cfg=2.0, steps=4, progress=False)
    >>> run.sizes["region"], int(run.rows[-1])
    (3, 12)
    """
    save = checked_save(save)
    seed = inputs.whole("seed", seed, -(2**63), None, "seed=0")
    if mode not in MODES:
        raise unknown("mode", mode, MODES, 'tk.regional(model, regions, mode="{}")')
    if isinstance(start, xr.Dataset):
        line = "tk.sample(model, start=run, regions=regions)"
        raise bad("start", start.attrs.get("kind"), "a Dataset is replayed by tk.sample", line)
    if regions is None:
        raise bad("regions", None, "a list of tk.Region", "tk.sample(model)", TypeError)
    asked = Asked(solver, schedule, steps, sigmas, 0, None, prompt, negative, cfg, regions, None, noise,
                  add_noise, shape, seed)  # fmt: skip
    plan = fresh(as_model(model), start, asked)
    if mode == "step":
        plan.stepper = stepwise(plan.solver, plan.layout.regions, seed)
        if plan.free is not None:  # states are composited here, and with what is kept

            def original(i: int) -> Any:
                return model.path.mix(plan.pinned, plan.pinned_noise, plan.levels[i])

            plan.stepper, plan.free = Keeping(plan.stepper, plan.free, original), None
    return walked(model, plan, save, progress, kind="regional", mode=mode)
