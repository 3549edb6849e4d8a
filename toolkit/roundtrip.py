"""There and back: how exact an inverse is, how accurate, and what it costs. Measured, never assumed."""

from typing import Any

import numpy as np
import torch
import xarray as xr

from .dataset import Save
from .runs import GUIDED, sample, unsample

# the numbers of a round trip: name -> (dims, long_name)
MEASURES = {
    "error": (("sample",), "round-trip error: relative L2 distance of the returned image from the one given"),
    "accuracy": (
        ("sample",),
        "relative L2 distance of x_T from the true ODE's; NaN where the truth is not known",
    ),
    "calls": (("direction",), "model calls"),
    "network_rows": (("direction",), "network rows evaluated"),
    "aux_gap": (
        ("sample",),
        "relative distance of aux from an Euler step; NaN where the inverse has no second state",
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
        Measure `accuracy` where the model is closed form: its ODE is solved to 1e-10, thousands of calls at
        high cfg.
    **unsampling
        Any other argument of ``tk.unsample``: inverse, via, schedule, steps, end_at_step, mask, sigmas,
        sigma_shift.

    Returns
    -------
    Dataset
        (sample): `error`, `accuracy`, `aux_gap`, `std_ratio`; (direction: there, back): `calls`,
        `network_rows`; (sample, channel, y, x): `given`, `top`, `returned`; the attributes are those of the
        unsample.

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
    down = sample(model, start=up, progress=progress, save=Save(what=["latent"]))
    given, top, returned = up.latent[0].values, up.latent[-1].values, down.latent[-1].values
    sigma, alpha = float(up.sigma[-1]), float(up.alpha[0])
    samples = len(given)
    accuracy = np.full(samples, np.nan)
    wanted = cfg <= GUIDED if truth is None else truth
    levels = [float(s) for s in up.sigma.values if s > 0]
    if wanted and hasattr(model, "probability_flow") and "mask" not in up and len(levels) > 1:
        start = torch.from_numpy(given / alpha * model.path.alpha(levels[0])).to(model.device)
        ends, how = [levels[0], levels[-1]], {"tolerance": 1e-8, "progress": progress, **asked}
        accuracy = relative(top, model.probability_flow(start, ends, **how)[-1].cpu().numpy())
    spread = np.sqrt(np.square(top - top.mean((1, 2, 3), keepdims=True)).mean((1, 2, 3)))
    values = {
        "error": relative(returned, given),
        "accuracy": accuracy,
        "calls": np.array([up.attrs["model_calls"], down.attrs["model_calls"]]),
        "network_rows": np.array([up.attrs["network_rows"], down.attrs["network_rows"]]),
        "aux_gap": up.aux_gap[-1].values if "aux_gap" in up else np.full(samples, np.nan),
        "std_ratio": spread / sigma,
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
        data, coords={**coords, "direction": direction}, attrs={**up.attrs, "kind": "round_trip"}
    )
