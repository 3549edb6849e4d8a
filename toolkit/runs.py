"""The runs of a solver: unsample and sample. They check the input, walk the loop, return a Dataset."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from . import inputs
from .composites import Regional
from .dataset import NORMALIZE, Save, shift_and_scale
from .denoisers import Denoiser, as_model, guide
from .errors import bad, unknown
from .inverse import LADDERS, choose, climber
from .layouts import GRID, ROWED, Layout
from .masks import Masked, free
from .noise import Keyed
from .passes import NEEDS, PASSES, Run, stored
from .plans import Asked, Plan, fresh, replay
from .record import Recorder, as_numpy, digest, provenance
from .regions import Region
from .solvers import Solver
from .solvers import solver as find_solver
from .walks import Walk

GUIDED = 1.5  # above this cfg the reverse of no solver returns the image: the guided flow contracts upwards
SPREAD = 2.0  # times the std of noise, or one over it: an x_T beyond is far from noise
WHOLE = ("algebraic", "fixed_point", "defect")  # inverses whose start is exact in float64 only


def checked_save(save: Any) -> Save:
    if not isinstance(save, Save):
        raise bad("save", save, "what to keep of the run", 'save=tk.Save(store="run.zarr")', TypeError)
    return save


def checked_mode(normalize: str) -> str:
    if normalize not in NORMALIZE:
        raise unknown("normalize", normalize, NORMALIZE, 'normalize="{}"')
    return normalize


def _options(solver: Solver) -> dict[str, Any]:
    return {"solver": solver.name, "solver_options": dict(solver.options)}


def _denoiser(model: Any, x: torch.Tensor, prompt: Any, negative: Any, cfg: Any,
              layout: Layout | None) -> Denoiser | Regional:  # fmt: skip
    bound = (prompt, negative, cfg)
    made = guide(model, *bound) if layout is None else Regional(model, layout, *bound)
    made.bind(len(x))
    return made


def differs(mask: Any, differential: Any) -> bool:
    """Whether a mask says when; raises where it cannot."""
    if not isinstance(differential, bool):
        raise bad("differential", differential, "True or False", "differential=True", TypeError)
    if differential and mask is None:
        raise bad("differential", True, "it is a way to read `mask`", "mask=grey, differential=True")
    return differential


def _normal(latent: np.ndarray, mode: str) -> dict[str, Any]:
    """shift and scale of one row, (sample, channel, y, x), as variables."""
    shift, scale = shift_and_scale(latent, mode)
    return {"shift": (("sample", "channel"), shift), "scale": (("sample", "channel"), scale)}


def unsample(model: Any, latent: Any, *, solver: str | Solver = "euler", inverse: str = "auto",
             via: str | Solver = "midpoint", coupling: str = "independent", schedule: str = "normal",
             steps: int = 20, end_at_step: int = 0, prompt: Any = None, negative: Any = None,
             cfg: float = 1.0, regions: Sequence[Region] | None = None, normalize: str = "off",
             mask: Any = None, sigmas: Sequence[float] | None = None, sigma_shift: float = 0.0,
             seed: int = 0, save: Save = Save(), progress: bool = True,
             differential: bool = False) -> xr.Dataset:  # fmt: skip
    """An image run backwards to its noise: one row a level, from clean to noise.

    Row 0 is the given latent at sigma 0, row 1 the lowest positive level (``alpha*latent``), then upwards.
    The result replays: ``tk.sample(model, start=run)`` returns the image, exactly where the inverse is exact.

    Parameters
    ----------
    model : Model or Denoiser
        ``tk.load()``, ``tk.GaussianMixture(...)``, ``tk.denoiser(fn)``, or anything with denoise, path,
        levels, channels.
    latent : array (sample, channel, y, x), DataArray or PIL image
        In model space, floating, finite.
    solver : str or Solver
        What the image is to be sampled with again; one of ``tk.SOLVERS``.
    inverse : {"auto", "offsets", "noise", "algebraic", "fixed_point", "defect", "reverse"}
        How: see ``toolkit.inverse.INVERSES``. "auto" picks what is exact for the solver, by
        ``toolkit.inverse.AUTO``; the attributes say which, and at what cost.
    via : str or Solver
        What climbs the ladder for offsets, and starts the implicit inverses.
    coupling : {"independent", "markov", "shared", "ode"}
        What the ladder under extracted noise is made of: noise that is independent from rung to rung, grows
        by increments, or is one draw at all rungs; or the ODE, climbed by `via`.
    schedule, steps : str, int
        One of ``tk.SCHEDULES``, and its number of steps.
    end_at_step : int
        Leave out the top levels: the run ends below them.
    prompt, negative, cfg
        What the model conditions on, and the guidance scale; a list is one a sample.
    regions : list of Region, optional
        Conditions by place, fused in the denoiser; `prompt`, `negative` and `cfg` are those of the rest.
    normalize : {"off", "global", "sample", "channel"}
        Recorded as `shift` and `scale` of the last row; `latent` holds the raw states, ``tk.normalized``
        applies it.
    mask : array (y, x) or (sample, y, x), optional
        1 where the image is unsampled; where it is 0 the image stays as it is.
    sigmas : sequence of float, optional
        A rising grid of your own in place of the schedule; it may start above 0, and row 0 is
        ``alpha*latent`` there.
    sigma_shift : float
        Added to every level, 0 included, which is then no longer 0.
    seed : int
        Of the noise that a stochastic solver draws.
    save : Save
        What to keep, and where.
    progress : bool
        Show a progress bar.
    differential : bool
        Grey of `mask` is when, and not how much: a pixel of value m is unsampled up to hop round((1 - m) n).

    Returns
    -------
    Dataset
        dims (step, sample, channel, y, x): `latent`, `denoised`, `nfe`, `rows`, `mean`, `std`, `shift`,
        `scale`, and what the inverse needs or says: `offset` and `offset_norm`; `noise`, `noise_scale`,
        `noise_std` and `noise_lag`; `aux` and `aux_gap`; `residual` and `iterations`; `sweep_error`; of
        regions `weight`, `region_mask`, `conflict` and `seam_gradient`.

    Raises
    ------
    ValueError, TypeError
        For bad input, before the first model call. FloatingPointError where a state is not finite; what was
        recorded is ``exc.dataset``, or in the store.

    Sources: offsets 2310.01506, noise 2304.06140, O-BELM 2410.07273, fixed point 2309.04907, defect
    correction Stetter 1978, reverse 2010.02502.

    Examples
    --------
    >>> import toolkit as tk
    >>> model = tk.load()
    >>> latent = model.encode(tk.assets.digits()[0][0])
    >>> run = tk.unsample(model, latent, solver="obelm", prompt=0, steps=6, progress=False)
    >>> run.attrs["inverse"], int(run.nfe[-1])
    ('algebraic', 6)
    """
    save, mode, chosen = checked_save(save), checked_mode(normalize), find_solver(solver)
    strategy, ladder = choose(chosen, inverse), climber(via)
    if coupling not in LADDERS:
        raise unknown("coupling", coupling, LADDERS, 'tk.unsample(model, latent, coupling="{}")')
    x = stored(inputs.latent(as_model(model), latent), save.dtype)
    asked, schedule = _rising(model, chosen, schedule, steps, end_at_step, sigmas, sigma_shift)
    seed = inputs.whole("seed", seed, -(2**63), None, "seed=0")
    layout = None if regions is None else Layout.fit(regions, x.shape, x.device, asked[::-1])
    if layout is not None:
        layout.one_solver()
    denoiser = _denoiser(model, x, prompt, negative, cfg, layout)
    if strategy in ("reverse", "fixed_point", "defect") and denoiser.cfg > GUIDED:
        warnings.warn(
            f'inverse="{strategy}" will not return at cfg {denoiser.cfg:g}; try inverse="auto"', stacklevel=2
        )
    m = None if mask is None else inputs.mask(mask, x.shape, x.device)
    extra, told = {}, layout.attributes() if layout else {}
    if differs(mask, differential):
        told |= {"differential": True, GRID: asked[::-1]}
    share = free(m, layout, asked[::-1] if differential else None)
    if share is not None:
        alpha = denoiser.path.alpha(asked[0])
        denoiser = Masked(denoiser, share, stored(alpha * x, save.dtype) / alpha)
    hops = len(asked) - 1
    levels = own_levels(chosen, asked)
    noise = Keyed(seed, x.shape, x.dtype, x.device, rungs=len(levels) if chosen.stochastic else 1)
    attrs = provenance(denoiser, kind="unsample", **_options(chosen), inverse=strategy,
                       via=_via(strategy, chosen, ladder, coupling), schedule=schedule, steps=hops,
                       direction="up", cfg=float(cfg), prompt=prompt, negative=negative, seed=seed,
                       normalize=mode, sigma_shift=float(sigma_shift), bottom="alpha * x",
                       **({"coupling": coupling} if strategy == "noise" else {}), **told,
                       **(chosen.defaults("zeta", "gamma", "p") if chosen.reversible else {}))  # fmt: skip
    growing = chosen.adaptive is not None
    known = {"latent": x, "mask": m, "sigmas": asked, **(layout.inputs(asked) if layout else {})}
    with Recorder(save, denoiser, levels, x.shape, attrs,
                  ["latent", "denoised", *NEEDS[strategy], *(ROWED if layout else ())], growing=growing,
                  inputs=known, device=x.device, **_recorded(layout, m)).guard() as record:  # fmt: skip
        if record.complete:
            return record.opened()
        # where pixels are let go at some level, they are free at the lowest
        share = share(min(s for s in asked if s > 0)) if callable(share) else share
        run = Run(record, denoiser, chosen, ladder, coupling, x, hops, asked[-1], noise, progress, share)
        top = PASSES[strategy](run)
        if strategy == "reverse":
            _warn_of_spread(run, top)
        if strategy in WHOLE and record.dtype != np.float64:
            extra["top"] = as_numpy(top)  # exact only whole
        extra |= run.extra | _normal(as_numpy(stored(top, save.dtype)), mode)
        return record.finish(extra, **run.attrs, model_calls=record.calls, network_rows=record.rows)


def _warn_of_spread(run: Run, top: torch.Tensor) -> None:
    """Says so where x_T is far from noise: then the true ODE's is too, or the climb was lost."""
    alpha, sigma = run.denoiser.path.alpha(run.levels[-1]), run.levels[-1]
    inside = slice(None) if run.mask is None else (run.mask > 0.5).expand_as(top)
    wanted = math.sqrt(sigma * sigma + alpha * alpha * float(run.x[inside].var(correction=0)))
    ratio = float(top[inside].std(correction=0)) / wanted
    if not 1 / SPREAD < ratio < SPREAD:
        warnings.warn(
            f'x_T has {ratio:.2f} times the std of noise at sigma {sigma:.4g}, and inverse="reverse" seldom '
            'returns from there; try inverse="auto"',
            stacklevel=3,
        )


def _rising(
    model: Any, solver: Solver, schedule: str, steps: Any, end_at_step: Any, sigmas: Any, shift: Any
) -> tuple[list[float], str]:
    """The levels of an unsample, and the name they go by."""
    call = "tk.unsample(model, latent"
    shift = inputs.number("sigma_shift", shift, "sigma_shift=0.0")
    if sigmas is None:
        steps = inputs.whole("steps", steps, 1, None, f"{call}, steps=20)")
        table, _ = inputs.falling(model.levels, schedule, steps, solver.name, 0, None, call)
        levels = table[::-1]
        dropped = inputs.whole(
            "end_at_step", end_at_step, 0, len(levels) - 2, f"{call}, steps={steps}, end_at_step=0)"
        )
        levels = levels[: len(levels) - dropped]
    else:
        levels, schedule = inputs.grid(sigmas, True, model.path), "given"
    inputs.distinct(solver, levels, "steps" if sigmas is None else "sigmas")
    levels = [s + shift for s in levels]
    if levels[0] < 0:
        raise bad("sigma_shift", shift, "no level may fall below 0", "sigma_shift=0.0")
    if model.path.alpha(min(s for s in levels if s > 0)) <= 0:
        name, given = ("steps", steps) if schedule != "given" else ("sigmas", levels)
        line = f"{call}, steps=20)" if schedule != "given" else f"{call}, sigmas=[0.0, 0.1, 0.5, 1.0])"
        why = "the lowest positive level of this flow model is 1 then, where nothing of an image is left"
        raise bad(name, given, why, line)
    return levels, schedule


def own_levels(solver: Solver, rising: list[float]) -> list[float]:
    """The rows of a rising grid: its levels, those that the solver makes, or the first if it chooses."""
    if solver.adaptive is not None:
        return rising[: 2 if rising[0] == 0 else 1]
    if solver.own_grid is None:
        return rising
    own = list(solver.grid(rising[::-1]))[::-1]
    return [0.0, *own] if rising[0] == 0 else own


def _via(strategy: str, chosen: Solver, ladder: Solver, coupling: str) -> str:
    if strategy == "algebraic" and not chosen.pair:
        return str(chosen.options.get("bootstrap", "midpoint")) + " bootstrap"
    if strategy == "noise" and coupling != "ode":
        return f"{coupling} noise"
    return chosen.name if strategy in ("reverse", "algebraic") or chosen.adaptive else ladder.name


def sample(model: Any, start: Any = None, *, solver: str | Solver | None = None, schedule: str | None = None,
           steps: int | None = None, start_at_step: int = 0, end_at_step: int | None = None,
           prompt: Any = None, negative: Any = None, cfg: float | None = None,
           regions: Sequence[Region] | None = None, mask: Any = None,
           sigmas: Sequence[float] | None = None, noise: Any = None, add_noise: bool = True,
           shape: Sequence[int] | None = None, seed: int = 0, save: Save = Save(),
           progress: bool = True, differential: bool = False) -> xr.Dataset:  # fmt: skip
    """From noise to an image, or the replay of an unsample: one row a level, falling.

    Parameters
    ----------
    model : Model or Denoiser
    start : Dataset of an unsample, array (sample, channel, y, x), DataArray or PIL image, optional
        A Dataset is replayed: on its own grid downwards, with its solver, prompt, cfg, regions and mask
        unless told otherwise; the last hop undoes the first. An array is noised to the first level. None
        starts from noise alone.
    solver, schedule, steps, prompt, negative, cfg : optional
        None is what the record says, else euler, normal, 20, no condition, 1.0. Another prompt or cfg on a
        replay is an edit, and allowed; another grid, or another solver with recorded offsets, is an error.
    start_at_step, end_at_step : int
        The part of the schedule to run.
    regions : list of Region, optional
        Conditions by place, fused in the denoiser; `prompt`, `negative` and `cfg` are those of the rest. On a
        replay another list is an edit; an empty one takes off the record's.
    mask : array (y, x) or (sample, y, x), optional
        1 where to sample; elsewhere `start` stays (inpainting): the model sees it noised to each level. On a
        replay it is an edit: elsewhere the states are the record's.
    sigmas : sequence of float, optional
        A falling grid of your own in place of the schedule.
    noise : array (sample, channel, y, x), optional
        Unit start noise in place of the seed's.
    add_noise : bool
        False: `start` is already the state at the first level.
    shape : (sample, channel, y, x), optional
        Where neither `start` nor the model says.
    seed : int
        Of start noise and of the solver's draws, keyed by sample, rung and draw.
    save, progress
        As in ``tk.unsample``.
    differential : bool
        Grey of `mask` is when, and not how much: a pixel of value m is sampled from hop round((1 - m) n) of n
        on, as far as img2img of strength m would (2306.00950).

    Returns
    -------
    Dataset
        dims (step, sample, channel, y, x): `latent`, `denoised`, `nfe`, `rows`, `mean`, `std`; of regions
        `weight`, `region_mask`, `conflict` and `seam_gradient`.

    Raises
    ------
    ValueError, TypeError
        For bad input, before the first model call. FloatingPointError where a state is not finite; what was
        recorded is ``exc.dataset``, or in the store.

    Examples
    --------
    >>> import toolkit as tk
    >>> model = tk.load()
    >>> run = tk.sample(model, prompt=3, cfg=2.0, steps=4, progress=False)
    >>> model.decode(run.latent[-1]).shape
    (1, 32, 32, 3)
    """
    save = checked_save(save)
    seed = inputs.whole("seed", seed, -(2**63), None, "seed=0")
    asked = Asked(solver, schedule, steps, sigmas, start_at_step, end_at_step, prompt, negative, cfg, regions,
                  mask, noise, add_noise, shape, seed, differs(mask, differential))  # fmt: skip
    as_model(model)
    plan = replay(start, model, asked) if isinstance(start, xr.Dataset) else fresh(model, start, asked)
    return walked(model, plan, save, progress)


def walked(model: Any, plan: Plan, save: Save, progress: bool, **told: Any) -> xr.Dataset:
    """The Dataset of a planned run; `told` replaces, or adds to, its attributes."""
    layout = plan.layout
    if layout is not None and told.get("mode") != "step":
        layout.one_solver()
    denoiser = _denoiser(model, plan.x, plan.prompt, plan.negative, plan.cfg, layout)
    if plan.free is not None:
        denoiser = Masked(denoiser, plan.free, plan.pinned, plan.pinned_noise)
    facts = (
        {"inverse": plan.inverse, "start": plan.kind, "edited": plan.edited}
        if plan.inverse
        else {"start": plan.kind}
    )
    attrs = provenance(denoiser, **{"kind": "sample", **told}, **_options(plan.solver), **facts,
                       schedule=plan.schedule, steps=plan.hops, direction="down", cfg=float(plan.cfg),
                       prompt=plan.prompt, negative=plan.negative, seed=plan.seed,
                       **plan.attributes())  # fmt: skip
    with Recorder(save, denoiser, plan.levels, plan.x.shape, attrs,
                  ["latent", "denoised", *(ROWED if layout else ())],
                  growing=plan.stepper.adaptive is not None, inputs=plan.inputs(), device=plan.x.device,
                  **_recorded(layout, plan.mask)).guard() as record:  # fmt: skip
        if record.complete:
            return record.opened()
        _descend(record, denoiser, plan, progress)
        return record.finish(model_calls=record.calls, network_rows=record.rows)


def _recorded(layout: Layout | None, mask: torch.Tensor | None) -> dict[str, Any]:
    """What regions and mask add to the record of a run."""
    told = {"fixed": {}} if layout is None else layout.recorded()
    if mask is not None:
        told["fixed"]["mask"] = as_numpy(mask[:, 0])
    return told


def _descend(record: Recorder, denoiser: Any, plan: Plan, progress: bool) -> None:
    """Downwards through all rows; in a replay of an exact inverse the last hop undoes the first one."""
    record.state(0, plan.x)
    x, first = plan.x, plan.first
    if first:  # the second state of a reversible solver is the state below: that hop is not computed
        x = plan.aux
        record.state(1, x)
    stop = None if plan.stepper.adaptive is not None else len(plan.levels) - 1 - plan.hop
    down = Walk(record, denoiser, plan.stepper, x, plan.asked, f"sample, {plan.solver.name}", progress,
                noise=plan.noise, past=plan.past, start=first, stop=stop)  # fmt: skip
    for step in down:
        record.hop(step, step.span.i, step.span.i + 1)
    if plan.lands_on is not None and not plan.edited:
        record.attrs["bitwise"] = digest(down.x) == plan.lands_on
    if plan.hop:
        record.state(stop + 1, down.x / denoiser.path.alpha(plan.levels[stop]))
