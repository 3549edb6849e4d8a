"""What a sample run needs to know before its first step: made fresh, or read from a recorded unsample."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr

from . import inputs
from .dataset import LATENT
from .errors import bad
from .inputs import sides
from .inverse import Keeping, Replaying, frozen
from .later import sent
from .layouts import GRID, Layout, grid_of
from .masks import free
from .noise import Keyed
from .regions import Region
from .solvers import Solver
from .solvers import solver as find_solver
from .solvers.contract import Eval

# of how a network is asked: what moves its last bits, and nothing else
GROUPING = ("max_rows", "batch", "compile")
STORED = {"offsets": "offsets", "noise": "the noise"}  # what a record holds for one solver alone


@dataclass(frozen=True)
class Asked:
    """What the caller of ``tk.sample`` asked for, as given; None is left to the record or the defaults."""

    solver: Any
    schedule: Any
    steps: Any
    sigmas: Any
    start_at_step: Any
    end_at_step: Any
    prompt: Any
    negative: Any
    cfg: Any
    regions: Any
    mask: Any
    noise: Any
    add_noise: bool
    shape: Any
    seed: int
    differential: Any = False


@dataclass
class Plan:
    """A sample run about to start: what to step with, on which levels, from which state."""

    solver: Solver
    levels: list[float]  # falling
    x: torch.Tensor
    prompt: Any
    negative: Any
    cfg: Any  # checked where the denoiser is made
    seed: int
    schedule: str
    kind: str
    asked: list[float] = field(default_factory=list)  # the grid to walk, where the solver makes its own of it
    stepper: Any = None  # the solver, or one that wraps it
    inverse: str = ""
    edited: list[str] = field(default_factory=list)
    hop: bool = False  # the last hop is x/alpha, and no step of the solver
    past: tuple[Eval, ...] = ()
    aux: torch.Tensor | None = None  # the state to go on from at the second row
    lands_on: str | None = None  # digest of the lowest state of the pass that recorded
    mask: torch.Tensor | None = None
    differential: bool = False  # whether it says when
    free: Any = None  # what the model works on, where it is not all: from `masks.free`
    grid: list[float] = field(default_factory=list)  # the levels by which masks say when
    pinned: torch.Tensor | None = None  # the picture, and its noise, elsewhere
    pinned_noise: torch.Tensor | None = None
    image: Any = None  # what the run that is replayed began with
    layout: Layout | None = None  # the regions, fitted

    noise: Keyed = field(init=False)

    def __post_init__(self) -> None:
        self.stepper = self.stepper or self.solver
        self.asked = self.asked or self.levels
        self.grid = self.grid or self.asked
        rungs = len(self.levels) if self.solver.stochastic else 1
        self.noise = Keyed(self.seed, self.x.shape, self.x.dtype, self.x.device, rungs=rungs)

    @property
    def first(self) -> int:
        """The hop to begin with."""
        return 0 if self.aux is None else 1

    @property
    def hops(self) -> int:
        """Of the grid asked for."""
        return len(self.asked) - 1

    def inputs(self) -> dict[str, Any]:
        """The arrays that this run is made of."""
        regions = {} if self.layout is None else self.layout.inputs(self.asked)
        return {"state": self.x, "mask": self.mask, "pinned": self.pinned, "noise": self.pinned_noise,
                "sigmas": self.asked, "image": self.image, **regions}  # fmt: skip

    def attributes(self) -> dict[str, Any]:
        """What regions and mask add to the attributes of the run."""
        told = {} if self.layout is None else self.layout.attributes()
        return {**told, "differential": True, GRID: self.grid} if self.differential else told


def replay(ds: xr.Dataset, model: Any, asked: Asked) -> Plan:
    """The plan that replays `ds`.

    Raises ValueError for a Dataset that cannot be replayed, for what a replay takes from the record, and for
    a grid or solver that the record does not fit.
    """
    _check(ds, model, asked)
    facts = ds.attrs
    # on the record's own levels: a solver that makes or chooses its levels does neither
    recorded = frozen(find_solver(facts["solver"], **facts["solver_options"]), facts["steps"])
    solver = recorded if asked.solver is None else frozen(find_solver(asked.solver), facts["steps"])
    same, inverse = solver == recorded, facts["inverse"]
    if inverse in STORED and not same:
        why = f"the record holds {STORED[inverse]} of {recorded.name}, which fit no other solver"
        raise bad("solver", solver.name, why, f'tk.unsample(model, latent, solver="{solver.name}")')
    own = {name: getattr(asked, name) for name in ("prompt", "negative", "cfg")}
    bound = {name: facts[name] if value is None else value for name, value in own.items()}
    levels, latent = ds.sigma.values[::-1].tolist(), ds.latent.transpose(*LATENT)

    def tensor(values: Any) -> torch.Tensor:
        held = torch.from_numpy(np.array(values, np.float64, order="C"))
        return sent(held, getattr(model, "device", "cpu"))

    top = latent[-1].values
    if "top" in ds and np.array_equal(ds.top.values.astype(top.dtype), top):
        top = ds.top.values  # the same state, in full precision
    plan = Plan(solver, levels, tensor(top), **bound, seed=facts["seed"],
                schedule=facts["schedule"], kind="unsample",
                inverse=inverse if same else "reverse")  # fmt: skip
    plan.image = latent[0].values
    plan.edited = [name for name, value in bound.items() if inputs.plain(value) != facts[name]]
    plan.edited += ["solver"] * (not same)
    owner = getattr(model, "model", None) or model  # of a model with its conditions bound
    plan.edited += ["model"] * (facts["fingerprint"] != getattr(owner, "fingerprint", None))
    # those with levels of their own end at a positive one, and have no step to 0
    plan.hop = levels[-1] == 0 and (plan.inverse != "reverse" or not solver.to_zero)
    plan.asked, plan.lands_on = levels, facts.get("lands_on") if same else None

    def rows(name: str) -> Any:
        if name not in ds:
            return None
        kept = ds[name].transpose(*LATENT)
        return lambda i: tensor(kept[len(levels) - 1 - i].values)

    if plan.inverse in STORED:
        noise = rows("noise") if plan.inverse == "noise" else None
        plan.stepper = Replaying(solver, rows("offset"), noise, facts.get("noise_draws", 1))
    if plan.inverse == "algebraic" and len(levels) - plan.hop > 1:
        if "aux" not in ds:
            plan.edited.append("aux dropped: the first hop is that of a run without a past")
        elif solver.pair:
            plan.past = (Eval(levels[0], plan.x, aux=rows("aux")(0)),)
        else:
            plan.past, plan.aux = (Eval(levels[0], plan.x),), rows("aux")(0)
    _told_where(plan, ds, model, asked, tensor, rows)
    _told_how(plan, facts, owner)
    return plan


def _told_how(plan: Plan, facts: Mapping[str, Any], owner: Any) -> None:
    """How the network is asked now and was asked then: another guidance is an edit, other groups are said."""
    own = getattr(owner, "recorded", dict)()
    plan.edited += ["guidance"] * (facts.get("guidance") != own.get("guidance"))
    regions = 0 if plan.layout is None else len(plan.layout.regions)
    regions = max(regions, len(facts.get("regions", ())))
    # rows of the largest forward, at most: a group that holds these is all of them
    most = 2 * len(plan.x) * (regions + 1) * getattr(owner, "rows_each", 1)
    for name in GROUPING:
        was, now = facts.get(name), own.get(name)
        if _grouped(was, most) != _grouped(now, most):
            text = (
                f"this run was recorded with {name}={was!r} and is replayed with {name}={now!r}: a network "
                "gives the same bits only for the same grouping, so this is exact to its precision alone. "
                f"Try: tk.{'tiled' if name == 'batch' else 'load'}(..., {name}={was!r})"
            )
            warnings.warn(text, stacklevel=4)


def _grouped(asked: Any, most: int) -> Any:
    """How rows are grouped; None where that many are not."""
    return asked if asked and asked < most else None


def _told_where(plan: Plan, ds: xr.Dataset, model: Any, asked: Asked, tensor: Any, rows: Any) -> None:
    """The regions and masks of a replay: what the record kept, and what the caller keeps of the record."""
    facts, plan.grid, recorded = ds.attrs, grid_of(ds), True
    if _empty(asked.regions) and "regions" in facts:  # none of those of the record
        plan.edited.append("regions")
    elif asked.regions is not None:
        plan.layout = Layout.fit(asked.regions, plan.x.shape, plan.x.device, plan.grid)
        recorded = plan.layout.recorded_in(ds)
        plan.edited += ["regions"] * (not recorded)
    elif "regions" in facts:
        plan.layout = Layout.read(ds, plan.x.device)
    if "mask" in ds:
        plan.mask, plan.differential = tensor(ds.mask.values)[:, None], facts.get("differential", False)
    # what the record kept is kept as it was then, in the denoiser: so its replay is exact
    plan.free = free(plan.mask, plan.layout if recorded else None, plan.grid if plan.differential else None)
    if plan.free is not None:
        plan.pinned = tensor(ds.latent[0].transpose(*LATENT[1:]).values) / model.path.alpha(plan.levels[-1])
    mask = None
    if asked.mask is not None:
        mask = plan.mask = inputs.mask(asked.mask, plan.x.shape, plan.x.device)
        plan.differential = asked.differential
        plan.edited.append("mask")
    own = free(mask, None if recorded else plan.layout, plan.grid if asked.differential else None)
    if own is not None:
        plan.stepper = Keeping(plan.stepper, own if callable(own) else lambda sigma: own, _rungs(ds, rows))


def _rungs(ds: xr.Dataset, rows: Any) -> Any:
    """The states of a record, for what is kept of it."""
    first = ds.latent.isel(sample=0, channel=0, y=0, x=0)
    if not np.isfinite(first.values).all():
        missing = int(np.isnan(first.values).sum())
        why = f"what is kept follows the record, and {missing} of its rows were not kept"
        raise bad("start", ds.attrs["kind"], why, "tk.unsample(model, latent, save=tk.Save(every=1))")
    return rows("latent")


def _check(ds: xr.Dataset, model: Any, asked: Asked) -> None:
    kind, line = ds.attrs.get("kind"), "tk.sample(model, start=tk.unsample(model, latent))"
    if kind != "unsample":
        row = "tk.sample(model, start=ds.latent.isel(step=0))"
        raise bad("start", kind, "a Dataset that is replayed is that of an unsample", row)
    if "stopped" in ds.attrs:
        raise bad("start", ds.attrs["stopped"], "this run was not finished, so it cannot be replayed", line)
    if ds.attrs.get("normalized", "off") != "off" or ds.attrs["latent_space"] != "model":
        given = {name: ds.attrs.get(name) for name in ("normalized", "latent_space")}
        raise bad("start", given, "a replay starts from raw states in model space", line)
    if "latent" not in ds or not np.isfinite(ds.latent.isel(step=-1).values).all():
        raise bad("start", list(ds.data_vars), "its last row of `latent` is what a replay starts from", line)
    shape, wanted = tuple(ds.sizes[d] for d in ("channel", "y", "x")), getattr(model, "shape", None)
    if (model.channels is not None and shape[0] != model.channels) or (
        wanted is not None and shape != tuple(wanted)
    ):
        sizes = {d: ds.sizes[d] for d in ("channel", "y", "x")}
        raise bad("start", sizes, f"this model's latents are {wanted or (model.channels, 'y', 'x')}", line)
    if ds.attrs["path"] != model.path.name:
        raise bad(
            "start", ds.attrs["path"], f"this model is on {model.path.name}: another noise altogether", line
        )
    needed = {"offsets": "offset", "noise": "noise"}.get(ds.attrs["inverse"])
    if needed is not None and needed not in ds:
        why = f"its `{needed}` is gone, and nothing else brings the image back"
        raise bad("start", list(ds.data_vars), why, line)
    fixed = {"start_at_step": asked.start_at_step or None, "add_noise": None if asked.add_noise else False}
    if asked.mask is not None and "mask" in ds:
        why = "this record has a mask, and a replay takes it from there"
        raise bad("mask", asked.mask, why, "tk.sample(model, start=run)")
    for name in ("noise", "shape", "end_at_step", "sigmas", "start_at_step", "add_noise"):
        value = fixed.get(name, getattr(asked, name))
        if value is not None:
            raise bad(name, value, "a replay takes it from the record", "tk.sample(model, start=run)")
    for name in ("schedule", "steps"):
        value = getattr(asked, name)
        if value is not None and value != ds.attrs[name]:
            raise bad(name, value, "a replay runs on the record's own grid", "tk.sample(model, start=run)")


def fresh(model: Any, start: Any, asked: Asked) -> Plan:
    """The plan of a run from noise, or from a latent that is noised."""
    call, solver = "tk.sample(model", find_solver(asked.solver or "euler")
    cfg = 1.0 if asked.cfg is None else asked.cfg
    if start is not None:
        if asked.shape is not None:
            raise bad("shape", asked.shape, "`start` has the shape already", f"{call}, start=latent)")
        x0 = inputs.latent(model, start, "start", "tk.sample(model, start=model.encode(image))")
    elif asked.mask is not None:
        raise bad(
            "mask",
            asked.mask,
            "it needs `start`, the picture that stays",
            f"{call}, start=latent, mask=mask)",
        )
    elif not asked.add_noise:
        raise bad(
            "add_noise",
            False,
            "it needs `start`, the state to go on from",
            f"{call}, start=latent, add_noise=False)",
        )
    else:
        shape, device = _shape(model, asked), getattr(model, "device", "cpu")
        x0 = torch.zeros(shape, dtype=torch.float64, device=device)
    levels, schedule = _levels(model, asked, solver, call)
    inputs.distinct(solver, levels, "steps" if asked.sigmas is None else "sigmas")
    if asked.noise is None:
        unit = Keyed(asked.seed, x0.shape, x0.dtype, x0.device).start()
    else:
        unit = inputs.latent(model, asked.noise, "noise", f"{call}, noise=None)")
    if unit.shape != x0.shape:
        raise bad(
            "noise",
            tuple(unit.shape),
            f"of the shape of the state, {tuple(x0.shape)}",
            f"{call}, noise=None)",
        )
    layout, unit = _laid_out(asked, unit, levels)
    if start is None and layout is not None and layout.keeps:
        name = next(r.name for r in layout.regions if r.keep)
        why = f'"{name}" is kept, and there is no picture: this run starts from noise alone'
        raise bad("start", None, why, "tk.regional(model, regions, start=latent)")
    mask = None if asked.mask is None else inputs.mask(asked.mask, x0.shape, x0.device)
    share = free(mask, layout, levels if asked.differential else None)
    x = _noised(model, x0, unit, levels[0], share) if asked.add_noise else x0
    rows = levels[:1] if solver.adaptive else list(solver.grid(levels))
    plan = Plan(solver, rows, x.contiguous(), asked.prompt, asked.negative, cfg, asked.seed,
                schedule, kind="noise" if start is None else "latent", asked=levels,
                layout=layout, mask=mask, differential=asked.differential, free=share)  # fmt: skip
    if share is not None:
        plan.pinned, plan.pinned_noise = x0, unit
    return plan


def _levels(model: Any, asked: Asked, solver: Solver, call: str) -> tuple[list[float], str]:
    """The falling levels of a run from noise, and the name they go by."""
    if asked.sigmas is None:
        schedule, steps = asked.schedule or "normal", 20 if asked.steps is None else asked.steps
        part = (asked.start_at_step, asked.end_at_step)
        return inputs.falling(model.levels, schedule, steps, solver.name, *part, call)[0], schedule
    if asked.start_at_step or asked.end_at_step is not None:
        given = (asked.start_at_step, asked.end_at_step)
        why = "a part of a schedule; cut `sigmas` yourself"
        raise bad("start_at_step", given, why, f"{call}, sigmas=sigmas[2:])")
    return inputs.grid(asked.sigmas, False, model.path), "given"


def _laid_out(asked: Asked, unit: torch.Tensor, levels: list[float]) -> tuple[Layout | None, torch.Tensor]:
    """The regions on the latents, and the start noise with theirs in it."""
    if asked.regions is None:
        return None, unit
    layout = Layout.fit(asked.regions, unit.shape, unit.device, levels)
    return layout, layout.start_noise(unit, asked.seed if asked.noise is None else None)


def _noised(model: Any, x0: torch.Tensor, unit: torch.Tensor, sigma: float, share: Any) -> torch.Tensor:
    """The first state: at the highest level of VE the noise has the variance of the whole marginal.

    Not where the picture is kept: there it is what the model is shown, at this level as at every other.
    """
    kept, high = model.path.mix(x0, unit, sigma), float(model.levels.sigma_max)
    if model.path.name != "VE" or (sigma <= high and not math.isclose(sigma, high, rel_tol=1e-5)):
        return kept
    whole = x0 + unit * math.sqrt(1.0 + sigma * sigma)
    if share is None:
        return whole
    m = share(sigma) if callable(share) else share
    return m * whole + (1.0 - m) * kept


def _shape(model: Any, asked: Asked) -> tuple[int, ...]:
    """(sample, channel, y, x) of a run from noise: as given, or as the model, prompts and masks have it."""
    given, name, own = asked.shape, "shape", getattr(model, "shape", None)
    line = "tk.sample(model, shape=(1, 4, 64, 64))"
    if given is None and hasattr(asked.noise, "shape"):
        given, name, line = asked.noise.shape, "noise", "tk.sample(model, noise=None)"
    usual = own or getattr(model, "usual_shape", None)
    if given is None and usual is not None:
        return (_samples(asked), *usual)
    if given is None:
        raise bad(name, given, "this model takes any size, so say (sample, channel, y, x)", line)
    sizes = tuple(given) if isinstance(given, (list, tuple, torch.Size)) else ()
    if len(sizes) != 4 or not all(isinstance(n, (int, np.integer)) and n > 0 for n in sizes):
        shown = given if name == "shape" else tuple(given)
        raise bad(name, shown, "four whole numbers (sample, channel, y, x), none below 1", line)
    if (model.channels is not None and sizes[1] != model.channels) or (
        own is not None and sizes[1:] != tuple(own)
    ):
        wanted = (
            f"this model's latents are (sample, {', '.join(map(str, own or (model.channels, 'y', 'x')))})"
        )
        raise bad(name, sizes, wanted, line)
    sides(name, sizes, model)
    return sizes


def _samples(asked: Asked) -> int:
    """How many samples the prompts and masks are for."""
    listed = asked.regions if isinstance(asked.regions, (list, tuple)) else ()
    regions = [r for r in listed if isinstance(r, Region)]
    given = [asked.prompt, *(p for r in regions for p in (r.prompt, r.negative))]
    if _empty(asked.prompt):
        raise bad("prompt", asked.prompt, "a list is one a sample, and this one is empty", "prompt=3")
    lengths = [len(one) for one in given if isinstance(one, (list, tuple))]
    return max([1, *lengths, *(len(r.mask) for r in regions if r.mask.ndim == 3)])


def _empty(given: Any) -> bool:
    """A list of nothing; of arrays, which may stand for a prompt, nothing is asked."""
    return isinstance(given, (list, tuple)) and not given
