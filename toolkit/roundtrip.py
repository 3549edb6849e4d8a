"""There and back: how exact an inverse is, how accurate, and what it costs. Measured, never assumed."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import xarray as xr

from .composites import Regional
from .dataset import Save
from .denoisers import guide
from .errors import bad
from .layouts import Layout, grid_of
from .loop import steps as walk
from .ode import probability_flow
from .regions import Region
from .runs import GUIDED, sample, unsample
from .solvers import SOLVERS

FINE = 32  # midpoint steps a hop, of the reference run where the truth is not in closed form

# the numbers of a round trip: name -> (dims, long_name)
MEASURES = {
    "error": (("sample",), "round-trip error: relative L2 distance of the returned image from the one given"),
    "accuracy": (
        ("sample",),
        "relative L2 distance of x_T from the true ODE's; NaN where that is not known, or not aimed at",
    ),
    "calls": (("direction",), "model calls"),
    "network_rows": (("direction",), "network rows evaluated"),
    "aux_gap": (
        ("sample",),
        "relative distance of aux from an Euler step; NaN where the inverse has no second state",
    ),
    "error_without_aux": (
        ("sample",),
        "round-trip error where aux is dropped; NaN where the inverse has no second state",
    ),
    "std_ratio": (("sample",), "std of x_T over that of pure noise at its sigma"),
    "given": (("sample", "channel", "y", "x"), "the image"),
    "top": (("sample", "channel", "y", "x"), "x_T, the noise it became"),
    "returned": (("sample", "channel", "y", "x"), "the image that came back"),
}


def relative(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Relative L2 distance of each sample, (sample, ...) to (sample,)."""
    axes = tuple(range(1, got.ndim))
    return np.sqrt(np.square(got - want).sum(axes)) / np.maximum(np.sqrt(np.square(want).sum(axes)), 1e-300)


def round_trip(model: Any, latent: Any, *, solver: Any = "euler", prompt: Any = None, negative: Any = None,
               cfg: float = 1.0, truth: bool | None = None, seed: int = 0, progress: bool = True,
               **unsampling: Any) -> xr.Dataset:  # fmt: skip
    """An unsample and its replay: error, accuracy and cost as variables.

    Parameters
    ----------
    model, latent, solver, prompt, negative, cfg, seed, progress
        As in ``tk.unsample``.
    truth : bool
        Measure `accuracy`. None: where the model is closed form and cfg is at most 1.5. True: at any cfg
        (thousands of calls at a high one), and for any model: where it is not closed form the truth is a run
        of 32 midpoint steps a hop, ``attrs["truth"]`` says which. It stays NaN where x_T is no solution of
        the ODE: for extracted noise, and for the cfg_pp solvers; and under a mask.
    **unsampling
        Any other argument of ``tk.unsample``: inverse, via, schedule, steps, end_at_step, regions, mask,
        sigmas, sigma_shift.

    Returns
    -------
    Dataset
        (sample): `error`, `accuracy`, `aux_gap`, `error_without_aux`, `std_ratio`; (direction: there, back):
        `calls`, `network_rows`; (sample, channel, y, x): `given`, `top`, `returned`; the attributes are those
        of the unsample, with the source of the `truth` and whether the replay was `bitwise` the recording.

    Raises
    ------
    ValueError, TypeError
        As ``tk.unsample``.

    Exactness and accuracy are different things: 2410.07273 discusses the first, 2206.00364 the second.

    Examples
    --------
    >>> import toolkit as tk
    >>> model = tk.load()
    >>> latent = model.encode(tk.assets.digits()[0][0])
    >>> trip = tk.round_trip(model, latent, solver="obelm", prompt=0, steps=8, progress=False)
    >>> bool(trip.error.max() < 1e-9)
    True
    """
    if truth not in (None, True, False):
        raise bad("truth", truth, "True, False or None", "tk.round_trip(model, latent, truth=True)")
    if "save" in unsampling:
        raise TypeError(
            "save: round_trip keeps no run. Try: up = tk.unsample(..., save=save); tk.sample(model, start=up)"
        )
    asked = {"prompt": prompt, "negative": negative, "cfg": cfg}
    up = unsample(
        model,
        latent,
        solver=solver,
        seed=seed,
        progress=progress,
        save=Save(what=["latent"]),
        **asked,
        **unsampling,
    )
    # a weight that is a function is in no record, nor is an encoded prompt: said again, they are no edit
    regions = unsampling.get("regions") or ()
    own = {"regions": regions} if any(map(_unrecorded, regions)) else {}
    again = {"progress": progress, "save": Save(what=["latent"]), **asked, **own}
    down = sample(model, start=up, **again)
    given, top, returned = up.latent[0].values, up.latent[-1].values, down.latent[-1].values
    unknown = np.full(len(given), np.nan)
    without = unknown
    if "aux" in up:
        alone = sample(model, start=up.drop_vars("aux"), **again)
        without = relative(alone.latent[-1].values, given)
    accuracy, source = _accuracy(model, up, truth, progress, asked, own.get("regions"))
    values = {
        "error": relative(returned, given),
        "accuracy": accuracy,
        "calls": np.array([up.attrs["model_calls"], down.attrs["model_calls"]]),
        "network_rows": np.array([up.attrs["network_rows"], down.attrs["network_rows"]]),
        "aux_gap": up.aux_gap[-1].values if "aux_gap" in up else unknown,
        "error_without_aux": without,
        "std_ratio": std_ratio(up),
        "given": given,
        "top": top,
        "returned": returned,
    }
    units = {name: {"long_name": text, "units": "1"} for name, (_, text) in MEASURES.items()}
    data = {name: (MEASURES[name][0], value, units[name]) for name, value in values.items()}
    direction = (
        "direction",
        np.array(["there", "back"], dtype=object),
        {"long_name": "way of the run", "units": "1"},
    )
    coords = {n: up.coords[n] for n in ("sample", "channel", "y", "x")}
    return xr.Dataset(
        data,
        coords={**coords, "direction": direction},
        attrs={**up.attrs, "kind": "round_trip", "truth": source, "bitwise": down.attrs.get("bitwise")},
    )


def std_ratio(up: xr.Dataset) -> np.ndarray:
    """std of x_T over that of pure noise at its sigma, (sample,)."""
    top = up.latent[-1].values
    spread = np.sqrt(np.square(top - top.mean((1, 2, 3), keepdims=True)).mean((1, 2, 3)))
    return spread / float(up.sigma[-1])


def aims_at_ode(up: xr.Dataset) -> bool:
    """Whether x_T is meant to solve the ODE: not where it is x0 plus noise, nor for the cfg_pp solvers."""
    noised = up.attrs["inverse"] == "noise" and up.attrs["coupling"] != "ode"
    return not noised and not SOLVERS[up.attrs["solver"]].uncond


def lowest_state(up: xr.Dataset, model: Any) -> torch.Tensor:
    """The image at the lowest positive level, where the ODE begins."""
    sigma = up.sigma.values
    return torch.from_numpy(up.latent[0].values / float(up.alpha[0]) * model.path.alpha(sigma[sigma > 0][0]))


def _unrecorded(region: Region) -> bool:
    """Whether a record of a region does not say all of it."""
    listed = (p if isinstance(p, (list, tuple)) else [p] for p in (region.prompt, region.negative))
    simple = (str, int, float, np.number, type(None))
    return callable(region.weight) or not all(isinstance(one, simple) for each in listed for one in each)


def _accuracy(model: Any, up: xr.Dataset, truth: bool | None, progress: bool, asked: dict[str, Any],
              own: Sequence[Region] | None) -> tuple[np.ndarray, str | None]:  # fmt: skip
    """Distance of x_T from the true ODE's, (sample,), and where that is from; NaN, None where not wanted.

    `own`: the regions, where the record does not say all of them.
    """
    known = hasattr(model, "probability_flow")
    regions = up.attrs.get("regions", [])
    guided = max([asked["cfg"], *(told["cfg"] for told in regions if told["cfg"] is not None)])
    wanted = known and guided <= GUIDED if truth is None else truth
    levels = [float(s) for s in up.sigma.values if s > 0]
    # a function is in no record, and what is kept is no part of an ODE
    told = not any(isinstance(told["weight"], str) or told.get("keep") for told in regions)
    if not wanted or not told or not aims_at_ode(up) or "mask" in up or len(levels) < 2:
        return np.full(up.sizes["sample"], np.nan), None
    source = "closed form, DOP853" if known else f"{FINE} midpoint steps a hop"
    low, device = lowest_state(up, model), getattr(model, "device", "cpu")
    layout = Layout.read(up, device) if regions else None
    layout = Layout.fit(own, low.shape, device, grid_of(up)) if own else layout
    top = true_top(model, low, levels, progress, asked, layout)
    return relative(up.latent[-1].values, top), source


def true_top(model: Any, start: torch.Tensor, levels: Sequence[float], progress: bool,
           asked: dict[str, Any], layout: Layout | None = None) -> np.ndarray:  # fmt: skip
    """x_T of the ODE from `start` at the lowest level: solved to 1e-8, or by a fine run."""
    x, ends = start.to(getattr(model, "device", start.device)), [levels[0], levels[-1]]
    if hasattr(model, "probability_flow") and layout is None:
        found = model.probability_flow(x, ends, tolerance=1e-8, progress=progress, **asked)
        return found[-1].cpu().numpy()
    denoiser = guide(model, **asked) if layout is None else Regional(model, layout, **asked)
    if hasattr(model, "probability_flow"):
        return probability_flow(denoiser, x, ends, 1e-8, progress)[-1].cpu().numpy()
    # even in log sigma within a hop, and the hops as they are
    fine = [np.geomspace(a, b, FINE + 1)[:-1] for a, b in pairwise(levels) if b > a]
    grid = np.append(np.concatenate(fine), levels[-1])
    with torch.no_grad():
        for step in walk(denoiser, SOLVERS["midpoint"], x, grid):
            x = step.x_next
    return x.cpu().numpy()
