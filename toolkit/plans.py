"""What a sample run needs to know before its first step: made fresh, or read from a recorded unsample."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr

from . import inputs
from .dataset import LATENT
from .denoisers import guide
from .errors import bad
from .inputs import plain
from .inverse import Replaying
from .noise import Keyed
from .solvers import Solver
from .solvers import solver as find_solver
from .solvers.contract import Eval


@dataclass
class Plan:
    """A sample run about to start: what to step with, on which levels, from which state."""

    solver: Solver
    stepper: Any
    levels: list[float]  # falling
    x: torch.Tensor
    prompt: Any
    negative: Any
    cfg: float
    seed: int
    schedule: str
    kind: str = "unsample"
    inverse: str = ""
    edited: list[str] = field(default_factory=list)
    hop: bool = False  # the last hop is x/alpha, and no step of the solver
    past: tuple[Eval, ...] = ()
    aux: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    pinned: torch.Tensor | None = None
    pinned_noise: torch.Tensor | None = None


def replay(
    ds: xr.Dataset,
    model: Any,
    asked: dict[str, Any],
    ignored: dict[str, Any],
    prompt: Any,
    negative: Any,
    cfg: Any,
) -> Plan:
    """The plan that replays `ds`. `asked`: solver and grid as given; `ignored`: what a replay cannot take.

    Raises ValueError for a Dataset that cannot be replayed, and for a grid or solver that its record does not
    fit.
    """
    _check(ds, model, ignored)
    facts, line = ds.attrs, "tk.sample(model, start=run)"
    recorded = find_solver(facts["solver"], **facts["solver_options"])
    solver = recorded if asked["solver"] is None else find_solver(asked["solver"])
    same, inverse = solver == recorded, facts["inverse"]
    for name in ("schedule", "steps", "sigmas"):
        value = asked[name]
        if value is not None and (name == "sigmas" or value != facts[name]):
            raise bad(name, value, "a replay runs on the record's own grid", line)
    if inverse == "offsets" and not same:
        why = f"the record holds offsets of {recorded.name}, which fit no other solver"
        raise bad("solver", solver.name, why, f'tk.unsample(model, latent, solver="{solver.name}")')
    device = getattr(model, "device", "cpu")

    def tensor(values: Any) -> torch.Tensor:
        return torch.from_numpy(np.array(values, np.float64, order="C")).to(device)

    levels = ds.sigma.values[::-1].tolist()
    latent = ds.latent.transpose(*LATENT)
    plan = Plan( solver, solver, levels, tensor(latent[-1].values),
                prompt=facts["prompt"] if prompt is None else prompt,
                negative=facts["negative"] if negative is None else negative,
                cfg=facts["cfg"] if cfg is None else cfg, seed=facts["seed"], schedule=facts["schedule"],
                inverse=inverse if same else "reverse", )  # fmt: skip
    plan.edited = [n for n in ("prompt", "negative", "cfg") if plain(getattr(plan, n)) != facts[n]]
    plan.edited += [] if facts["fingerprint"] == getattr(model, "fingerprint", None) else ["model"]
    plan.edited += (
        [] if same else ["solver"]
    )
    plan.hop = levels[-1] == 0 and plan.inverse != "reverse"
    if plan.inverse == "offsets":
        offsets = ds.offset.transpose(*LATENT)
        plan.stepper = Replaying(solver, lambda i: tensor(offsets[len(levels) - 1 - i].values))
    if plan.inverse == "algebraic" and len(levels) - plan.hop > 1:
        if "aux" in ds:
            plan.past, plan.aux = (Eval(levels[0], plan.x),), tensor(ds.aux.transpose(*LATENT)[-1].values)
        else:
            plan.edited.append("aux dropped: the first hop is a bootstrap step")
    if "mask" in ds:
        bottom = levels[-1]
        plan.mask = tensor(ds.mask.values)[:, None]
        plan.pinned = tensor(latent[0].values) / model.path.alpha(bottom)
    return plan


def _check(ds: xr.Dataset, model: Any, ignored: dict[str, Any]) -> None:
    line = "tk.sample(model, start=tk.unsample(model, latent))"
    kind = ds.attrs.get("kind")
    if kind != "unsample":
        raise bad(
            "start",
            kind,
            "a Dataset that is replayed is that of an unsample",
            "tk.sample(model, start=ds.latent.isel(step=0))",
        )
    if "stopped" in ds.attrs:
        raise bad("start", ds.attrs["stopped"], "this run was not finished, so it cannot be replayed", line)
    if ds.attrs.get("normalized", "off") != "off":
        raise bad(
            "start",
            ds.attrs["normalized"],
            "a replay starts from the raw states",
            "tk.sample(model, start=run)",
        )
    if "latent" not in ds or not np.isfinite(ds.latent.isel(step=-1).values).all():
        raise bad("start", list(ds.data_vars), "its last row of `latent` is what a replay starts from", line)
    if model.channels is not None and ds.sizes["channel"] != model.channels:
        raise bad("start", dict(ds.sizes), f"this model has {model.channels} channels", line)
    for name, value in ignored.items():
        if value is not None:
            raise bad(name, value, "a replay takes it from the record", "tk.sample(model, start=run)")


def fresh(model: Any, start: Any, solver: Any, schedule: Any, steps: Any, start_at_step: Any,
          end_at_step: Any, prompt: Any, negative: Any, cfg: Any, mask: Any, sigmas: Any, noise: Any,
          add_noise: bool, shape: Any, seed: int) -> Plan:  # fmt: skip
    """The plan of a run from noise, or from a latent that is noised."""
    call, chosen = "tk.sample(model", find_solver(solver or "euler")
    guide(model, prompt, negative, 1.0 if cfg is None else cfg)
    if start is not None:
        x0 = inputs.latent(model, start, "start", "tk.sample(model, start=model.encode(image))")
    elif mask is not None or not add_noise:
        name, why = (
            ("mask", "it needs `start`, the picture that stays")
            if mask is not None
            else ("add_noise", "it needs `start`, the state")
        )
        raise bad(name, mask if mask is not None else add_noise, why, f"{call}, start=latent, ...)")
    else:
        x0 = torch.zeros(
            _shape(model, shape, prompt, noise), dtype=torch.float64, device=getattr(model, "device", "cpu")
        )
    if sigmas is None:
        asked = 20 if steps is None else steps
        schedule = schedule or "normal"
        levels = inputs.falling(model.levels, schedule, asked, chosen.name, start_at_step, end_at_step, call)
    else:
        levels, schedule = inputs.grid(sigmas, rising=False), "given"
    unit = (
        Keyed(seed, x0.shape, x0.dtype, x0.device).start()
        if noise is None
        else inputs.latent(model, noise, "noise", f"{call}, noise=None)")
    )
    if unit.shape != x0.shape:
        raise bad(
            "noise",
            tuple(unit.shape),
            f"of the shape of the state, {tuple(x0.shape)}",
            f"{call}, noise=None)",
        )
    top, high = levels[0], float(model.levels.sigma_max)
    if not add_noise:
        x = x0
    elif model.path.name == "VE" and (top > high or math.isclose(top, high, rel_tol=1e-5)):
        x = x0 + unit * math.sqrt(1.0 + top * top)
    else:
        x = model.path.mix(x0, unit, top)
    plan = Plan(
        chosen,
        chosen,
        levels,
        x.contiguous(),
        prompt,
        negative,
        1.0 if cfg is None else float(cfg),
        seed,
        schedule,
    )
    if mask is not None:
        plan.mask, plan.pinned, plan.pinned_noise = inputs.mask(mask, x.shape, x.device), x0, unit
    plan.kind = "noise" if start is None else "latent"
    return plan


def _shape(model: Any, shape: Any, prompt: Any, noise: Any) -> tuple[int, ...]:
    """(sample, channel, y, x) of a run from noise: as given, or as the model and the prompts have it."""
    if shape is None and noise is not None and hasattr(noise, "shape"):
        shape = noise.shape
    own = getattr(model, "shape", None)
    if shape is None and own is not None:
        return (len(prompt) if isinstance(prompt, (list, tuple)) else 1, *own)
    line = "tk.sample(model, shape=(1, 4, 64, 64))"
    if shape is None:
        raise bad("shape", shape, "this model takes any size, so say (sample, channel, y, x)", line)
    sizes = tuple(shape) if isinstance(shape, (list, tuple, torch.Size)) else ()
    if len(sizes) != 4 or not all(isinstance(n, (int, np.integer)) and n > 0 for n in sizes):
        raise bad("shape", shape, "four whole numbers (sample, channel, y, x), none below 1", line)
    if (model.channels is not None and sizes[1] != model.channels) or (
        own is not None and sizes[1:] != tuple(own)
    ):
        raise bad(
            "shape",
            shape,
            f"this model's latents are (sample, {', '.join(map(str, own or (model.channels, 'y', 'x')))})",
            line,
        )
    return sizes
