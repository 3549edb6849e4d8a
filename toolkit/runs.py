"""The runs of a solver: unsample and sample. They check the input, walk the loop, return a Dataset."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from . import inputs
from .dataset import NORMALIZE, Save, shift_and_scale
from .denoisers import Denoiser, as_model, guide
from .errors import bad, unknown
from .inverse import Recording, choose, climber
from .loop import steps as walk
from .masks import Masked
from .noise import Keyed
from .plans import Asked, Plan, fresh, replay
from .record import Recorder, as_numpy, provenance
from .solvers import Solver
from .solvers import solver as find_solver

GUIDED = 1.5  # above this cfg the reverse of no solver returns the image: the guided flow contracts upwards


def bar(hops: Iterable, total: int, label: str, progress: bool) -> Iterable:
    """`hops` with a progress bar, in notebook and terminal."""
    return tqdm(hops, total=total, desc=label, leave=False, disable=not progress)


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


def _denoiser(model: Any, x: torch.Tensor, prompt: Any, negative: Any, cfg: Any) -> Denoiser:
    made = guide(model, prompt, negative, cfg)
    made.bind(len(x))
    return made


def _normal(latent: np.ndarray, mode: str) -> dict[str, Any]:
    """shift and scale of one row, (sample, channel, y, x), as variables."""
    shift, scale = shift_and_scale(latent, mode)
    return {"shift": (("sample", "channel"), shift), "scale": (("sample", "channel"), scale)}


def unsample(model: Any, latent: Any, *, solver: str | Solver = "euler", inverse: str = "auto",
             via: str | Solver = "midpoint", schedule: str = "normal", steps: int = 20, end_at_step: int = 0,
             prompt: Any = None, negative: Any = None, cfg: float = 1.0, normalize: str = "off",
             mask: Any = None, sigmas: Sequence[float] | None = None, sigma_shift: float = 0.0, seed: int = 0,
             save: Save = Save(), progress: bool = True) -> xr.Dataset:  # fmt: skip
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
    inverse : {"auto", "offsets", "algebraic", "reverse"}
        How: see ``toolkit.inverse.INVERSES``. "auto" picks what is exact for the solver; the attributes say
        which.
    via : str or Solver
        What climbs the ladder for offsets.
    schedule, steps : str, int
        One of ``tk.SCHEDULES``, and its number of steps.
    end_at_step : int
        Leave out the top levels: the run ends below them.
    prompt, negative, cfg
        What the model conditions on, and the guidance scale; a list is one a sample.
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

    Returns
    -------
    Dataset
        dims (step, sample, channel, y, x): `latent`, `denoised`, `nfe`, `rows`, `mean`, `std`, `shift`,
        `scale`, and what the inverse needs: `offset` and `offset_norm`, or `aux` and `aux_gap`.

    Raises
    ------
    ValueError, TypeError
        For bad input, before the first model call. FloatingPointError where a state is not finite; what was
        recorded is ``exc.dataset``, or in the store.

    Sources: offsets 2310.01506, O-BELM 2410.07273, reverse 2010.02502.

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
    x = _stored(inputs.latent(as_model(model), latent), save.dtype)
    levels, schedule = _rising(model, chosen, schedule, steps, end_at_step, sigmas, sigma_shift)
    seed = inputs.whole("seed", seed, -(2**63), None, "seed=0")
    noise = Keyed(seed, x.shape, x.dtype, x.device, rungs=len(levels) if chosen.stochastic else 1)
    denoiser = _denoiser(model, x, prompt, negative, cfg)
    if strategy == "reverse" and denoiser.cfg > GUIDED:
        warnings.warn(
            f'inverse="reverse" will not return at cfg {denoiser.cfg:g}; try inverse="auto"',
            stacklevel=2,
        )
    extra = {}
    if mask is not None:
        m = inputs.mask(mask, x.shape, x.device)
        alpha = denoiser.path.alpha(levels[0])
        denoiser = Masked(denoiser, m, _stored(alpha * x, save.dtype) / alpha)
        extra["mask"] = as_numpy(m[:, 0])
    attrs = provenance(denoiser, kind="unsample", **_options(chosen), inverse=strategy,
                       via=_via(strategy, chosen, ladder), schedule=schedule, steps=len(levels) - 1,
                       direction="up", cfg=float(cfg), prompt=prompt, negative=negative, seed=seed,
                       normalize=mode, sigma_shift=float(sigma_shift), bottom="alpha * x")  # fmt: skip
    climbing = ladder if strategy == "offsets" else chosen
    names = {"offsets": ["offset", "offset_norm"], "algebraic": ["aux", "aux_gap"], "reverse": []}[strategy]
    with Recorder(save, denoiser, levels, x.shape, attrs, ["latent", "denoised", *names]).guard() as record:
        states = _climb(record, denoiser, climbing, x, levels, progress, strategy)
        if strategy == "offsets":
            _offsets(record, denoiser, chosen, states, levels, noise, progress)
        if strategy == "algebraic" and record.dtype != np.float64:
            extra["top"] = as_numpy(states[-1])  # the pair of states is exact only whole
        extra |= _normal(as_numpy(states[-1]), mode)
        return record.finish(extra, model_calls=denoiser.calls, network_rows=denoiser.rows)


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
    return levels, schedule


def _stored(x: torch.Tensor, dtype: Any) -> torch.Tensor:
    """`x` as it will be read back: a replay repeats bit for bit only what it starts from."""
    if dtype is None:
        return x
    return torch.from_numpy(as_numpy(x).astype(np.dtype(dtype)).astype(np.float64)).to(x.device)


def _via(strategy: str, chosen: Solver, ladder: Solver) -> str:
    if strategy == "algebraic":
        return str(chosen.options.get("bootstrap", "midpoint")) + " bootstrap"
    return ladder.name if strategy == "offsets" else chosen.name


def _climb(record: Recorder, denoiser: Any, solver: Solver, x: torch.Tensor, levels: list[float],
           progress: bool, strategy: str) -> list[torch.Tensor]:  # fmt: skip
    """Upwards through all rows; returns the states, of which only the offsets need more than the last."""
    hop = levels[0] == 0
    if hop:
        record.state(0, x)
    states = [x, denoiser.path.alpha(levels[1]) * x] if hop else [denoiser.path.alpha(levels[0]) * x]
    first = len(states) - 1
    record.state(first, states[-1])
    hops = walk(denoiser, solver, states[-1], levels, start=first)
    for step in bar(hops, len(levels) - 1 - first, f"unsample, {solver.name}", progress):
        row = step.span.i + 1
        record.hop(step, row - 1, row)
        if strategy == "algebraic":
            record.put("aux", row, step.x)
            record.put("aux_gap", row, _gap(step))
        if strategy != "offsets":
            states.clear()
        states.append(step.x_next)
    return states


def _gap(step: Any) -> torch.Tensor:
    """Relative distance, (sample,), of `aux` from an Euler step down with the slope at its lower end."""
    s, t = step.span.s, step.span.t
    slope = (step.x - step.seen.x0) / s
    guess = step.x_next + (s - t) * slope
    return (step.x - guess).flatten(1).norm(dim=1) / step.x.flatten(1).norm(dim=1).clamp_min(1e-300)


def _offsets(record: Recorder, denoiser: Any, solver: Solver, states: list[torch.Tensor], levels: list[float],
             noise: Keyed, progress: bool) -> None:  # fmt: skip
    """The recording pass down the ladder; fills `offset`, and the counters and opinions that it adds."""
    top, bottom = len(levels) - 1, 1 if levels[0] == 0 else 0
    record.phase = ", in the pass that records offsets"
    start = _stored(states[-1], record.dtype)
    recording = Recording(solver, lambda i: states[len(states) - 1 - i])
    for name in ("offset", "offset_norm"):
        for row in range(bottom + 1):
            record.put(name, row, 0.0)
    calls, rows = np.zeros(top + 1, np.int64), np.zeros(top + 1, np.int64)
    seen = (denoiser.calls, denoiser.rows)
    hops = walk(denoiser, recording, start, levels[::-1], noise=noise, stop=top - bottom)
    for step in bar(hops, top - bottom, f"offsets, {solver.name}", progress):
        row = top - step.span.i
        record.check(row, step.x_next)
        record.put("offset", row, step.seen.info["offset"])
        record.put("offset_norm", row, step.seen.info["offset_norm"])
        calls[row], rows[row] = denoiser.calls - seen[0], denoiser.rows - seen[1]
        seen = (denoiser.calls, denoiser.rows)
        if row == top:
            record.opinion(top, step.seen.x0)
    record.add_counts(calls.cumsum(), rows.cumsum())


def sample(model: Any, start: Any = None, *, solver: str | Solver | None = None, schedule: str | None = None,
           steps: int | None = None, start_at_step: int = 0, end_at_step: int | None = None,
           prompt: Any = None, negative: Any = None, cfg: float | None = None, mask: Any = None,
           sigmas: Sequence[float] | None = None, noise: Any = None, add_noise: bool = True,
           shape: Sequence[int] | None = None, seed: int = 0, save: Save = Save(),
           progress: bool = True) -> xr.Dataset:  # fmt: skip
    """From noise to an image, or the replay of an unsample: one row a level, falling.

    Parameters
    ----------
    model : Model or Denoiser
    start : Dataset of an unsample, array (sample, channel, y, x), DataArray or PIL image, optional
        A Dataset is replayed: on its own grid downwards, with its solver, prompt, cfg and mask unless told
        otherwise; the last hop undoes the first. An array is noised to the first level. None starts from
        noise alone.
    solver, schedule, steps, prompt, negative, cfg : optional
        None is what the record says, else euler, normal, 20, no condition, 1.0. Another prompt or cfg on a
        replay is an edit, and allowed; another grid, or another solver with recorded offsets, is an error.
    start_at_step, end_at_step : int
        The part of the schedule to run.
    mask : array (y, x) or (sample, y, x), optional
        1 where to sample; elsewhere `start` stays (inpainting).
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

    Returns
    -------
    Dataset
        dims (step, sample, channel, y, x): `latent`, `denoised`, `nfe`, `rows`, `mean`, `std`.

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
    asked = Asked(solver, schedule, steps, sigmas, start_at_step, end_at_step, prompt, negative, cfg, mask,
                  noise, add_noise, shape, seed)  # fmt: skip
    as_model(model)
    plan = replay(start, model, asked) if isinstance(start, xr.Dataset) else fresh(model, start, asked)
    denoiser = _denoiser(model, plan.x, plan.prompt, plan.negative, plan.cfg)
    extra = {}
    if plan.mask is not None:
        denoiser = Masked(denoiser, plan.mask, plan.pinned, plan.pinned_noise)
        extra["mask"] = as_numpy(plan.mask[:, 0])
    facts = (
        {"inverse": plan.inverse, "start": plan.kind, "edited": plan.edited}
        if plan.inverse
        else {"start": plan.kind}
    )
    attrs = provenance(denoiser, kind="sample", **_options(plan.solver), **facts, schedule=plan.schedule,
                       steps=len(plan.levels) - 1, direction="down", cfg=float(plan.cfg), prompt=plan.prompt,
                       negative=plan.negative, seed=plan.seed)  # fmt: skip
    with Recorder(save, denoiser, plan.levels, plan.x.shape, attrs).guard() as record:
        _descend(record, denoiser, plan, progress)
        return record.finish(extra, model_calls=denoiser.calls, network_rows=denoiser.rows)


def _descend(record: Recorder, denoiser: Any, plan: Plan, progress: bool) -> None:
    """Downwards through all rows; in a replay of an exact inverse the last hop undoes the first one."""
    record.state(0, plan.x)
    x, past, first = plan.x, plan.past, 0
    if plan.past:  # the second state of a reversible solver is there: the first hop is not computed
        x, first = plan.aux, 1
        record.state(1, x)
    stop = len(plan.levels) - 1 - plan.hop
    hops = walk(denoiser, plan.stepper, x, plan.levels, noise=plan.noise, past=past, start=first, stop=stop)
    for step in bar(hops, stop - first, f"sample, {plan.solver.name}", progress):
        record.hop(step, step.span.i, step.span.i + 1)
        x = step.x_next
    if plan.hop:
        record.state(stop + 1, x / denoiser.path.alpha(plan.levels[stop]))
