"""The solver atlas: every solver there and back on known models. How exact, how accurate, at what cost."""

import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from . import inputs
from .dataset import Save
from .denoisers import as_model
from .errors import bad, unknown
from .inverse import INVERSES, choose
from .measured import variance_bias
from .paths import FLOW, VE
from .pipelines import load
from .record import versions
from .roundtrip import FINE, aims_at_ode, lowest_state, relative, std_ratio, true_top
from .runs import sample, unsample
from .schedules import SCHEDULES
from .solvers import SOLVERS
from .spectral import SpectralMixture
from .testing import power_law, sharp_modes

__all__ = ["OURS", "atlas"]

OURS = ("midpoint", "fireflow", "uni_inv", "obelm", "bdia", "edict", "rex")  # no names of ComfyUI
DIMS = ("solver", "inverse", "steps", "cfg", "model")
# name -> (dims, long_name), in units of 1
MEASURES = {
    "error": (DIMS, "round-trip error: relative L2, worst of the samples; inf where the run overflowed"),
    "accuracy": (DIMS, "relative L2 distance of x_T from the true ODE's, worst of the samples; NaN where not "
                       "aimed at"),
    "calls_there": (DIMS, "model calls, image to noise"),
    "calls_back": (DIMS, "model calls, noise to image"),
    "std_ratio": (DIMS, "std of x_T over that of pure noise at its sigma, farthest from 1 of the samples"),
    "aux_gap": (DIMS, "relative distance of the second state from an Euler step, worst of the samples; NaN "
                      "where there is none"),
    "picked": (DIMS[:2], 'the strategy: what "auto" chose; empty where the solver cannot'),
    "variance_bias": (("solver", "path"), "share by which fresh noise misses the variance of a Gaussian, 20 "
                                          "steps; NaN where no noise is drawn"),
}  # fmt: skip
AXES = {
    "solver": "solver",
    "inverse": "inverse asked for",
    "steps": "steps of the schedule",
    "cfg": "guidance scale",
    "model": "model and images",
    "path": "path",
}
BIAS_STEPS = 20  # of `variance_bias`
TOLERANCE = 1e-8  # of the true ODE
HOPS = 20  # of the fine run where the truth is not in closed form, even in log sigma
LINE = 'tk.atlas(solvers=["euler", "heun"], steps=[20], cfgs=[1.0])'

Case = tuple[Any, Any, Any, Any]  # model, latent, prompt, negative


def known_models(names: Sequence[str] | None = None) -> dict[str, Case]:
    """The models of the atlas by label: (model, latent, prompt, negative); all of them for None.

    Model A and B (`tk.testing.sharp_modes`, `power_law`), with images that they would draw and images that
    they would not; the two photographs; two held-out digits. ``negative=None`` is all components, or the
    pipeline's own unconditional.
    """
    made = {
        "sharp modes, in": lambda: _benchmark(sharp_modes, "on"),
        "sharp modes, off": lambda: _benchmark(sharp_modes, "off"),
        "power law, in": lambda: _benchmark(power_law, "in"),
        "power law, off": lambda: _benchmark(power_law, "off"),
        "photographs": _photographs,
        "digits": _digits,
    }
    names = list(made) if names is None else list(names)
    for name in names:
        if name not in made:
            raise unknown("models", name, made, 'toolkit.atlases.known_models(["{}"])')
    return {name: made[name]() for name in names}


def _benchmark(make: Any, which: str) -> Case:
    model, images = make()
    return model, images[which], 3, None


def _photographs() -> Case:
    model = load("photographs")
    images, prompts = model.images()
    return model, model.encode(images), prompts, None


def _digits() -> Case:
    from .assets import digits

    model, (images, labels) = load(), digits()
    return model, model.encode(images[:2]), labels[:2].tolist(), None


def atlas(models: Mapping[str, Case] | None = None, solvers: Sequence[str] | None = None,
          inverses: Sequence[str] = ("auto", "reverse"), steps: Sequence[int] = (10, 20, 50),
          cfgs: Sequence[float] = (1.0, 3.0, 7.5), schedule: str = "karras",
          truth: float = math.inf, progress: bool = True) -> xr.Dataset:  # fmt: skip
    """Every solver there and back on models whose true ODE is known: how exact, how accurate, what it costs.

    Exactness (`error`) and accuracy are two things: an inverse may return the image to the last bit from a
    noise that the true equation does not lead to, and miss the image from one that is right to 1e-3.

    Parameters
    ----------
    models : mapping label -> (model, latent, prompt, negative), optional
        latent (sample, channel, y, x). None: the six of `toolkit.atlases.known_models`; all of them, with
        every solver, take about forty minutes on one thread, most of it the photographs and the digits.
    solvers : sequence of str, optional
        Names of ``tk.SOLVERS``; None: all.
    inverses : sequence of str
        "auto", or names of ``toolkit.inverse.INVERSES``. "reverse" of uni_inv comes back down with euler,
        whose inverse it is; that of any other solver with the same solver.
    steps, cfgs : sequence of int, of float
    schedule : str
        One of ``tk.SCHEDULES``.
    truth : float
        The highest cfg at which `accuracy` is measured: under guidance the true ODE is stiff where an image
        is off the model, and takes up to 72,000 calls.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Dataset
        dims (solver, inverse, steps, cfg, model), units 1: `error`, `accuracy`, `calls_there`, `calls_back`,
        `std_ratio`, `aux_gap`; NaN where the solver has no such inverse, inf where the run overflowed.
        `picked` (solver, inverse): the strategy. `variance_bias` (solver, path): what a stochastic solver
        with fresh noise gets wrong. The truth is DOP853 at 1e-8 where the model is closed form, else a fine
        run of 640 midpoint steps; solved once for a model, a cfg and a pair of ends.

    Raises
    ------
    ValueError, TypeError
        For a name that is not there, before the first run. KeyboardInterrupt carries what was measured so
        far as ``exc.dataset``.

    Examples
    --------
    >>> import toolkit as tk
    >>> model, images = tk.testing.sharp_modes()
    >>> table = tk.atlas({"A": (model, images["on"], 3, None)}, ["euler"], steps=[6], cfgs=[1.0],
    ...                  progress=False)
    >>> bool(table.error.sel(inverse="auto") < 1e-12), bool(table.error.sel(inverse="reverse") > 1e-2)
    (True, True)
    """
    sizes = _checked(models, solvers, inverses, steps, cfgs, schedule)
    models = known_models() if models is None else dict(models)
    table = _Table({**sizes, "model": list(models)}, schedule)
    truth = inputs.number("truth", truth, "tk.atlas(truth=1.0)") if truth != math.inf else truth
    todo = [key for key in product(*sizes.values(), models) if table.picked(*key[:2])]
    # model by model, since each keeps tables of its last levels
    todo.sort(key=lambda key: (list(models).index(key[4]), key[3], key[2]))
    truths: dict[tuple, np.ndarray] = {}
    known: dict[tuple, dict[str, float]] = {}
    try:
        for name in sizes["solver"]:
            table.bias(name)
        for key in tqdm(todo, desc="atlas", leave=False, disable=not progress):
            # names that share a function and its options have the same numbers, and so has what "auto" picks
            row = SOLVERS[key[0]]
            same = (row.function, repr(row.options), table.picked(*key[:2]), *key[2:])
            if same not in known:
                known[same] = _measure(key, models[key[4]], schedule, truths, key[3] <= truth)
            table.put(key, known[same])
    except KeyboardInterrupt as stopped:
        stopped.dataset = table.dataset(stopped=f"{table.done} of {len(todo)} round trips")
        stopped.args = (f"{table.done} of {len(todo)} round trips; what was measured is kept: exc.dataset",)
        raise
    return table.dataset()


def _checked(models: Any, solvers: Any, inverses: Any, steps: Any, cfgs: Any, schedule: Any) -> dict:
    """The coordinates as lists, by dimension without model; raises for what is not there."""
    given = {"solvers": SOLVERS if solvers is None else solvers, "inverses": inverses, "steps": steps}
    given["cfgs"] = cfgs
    for name, values in given.items():
        several = isinstance(values, (Sequence, Mapping, np.ndarray)) and not isinstance(values, str)
        if not several or len(values) == 0 or len(set(values)) < len(values):
            raise bad(name, values, "a list of one or more, each once", LINE, TypeError)
    for name in given["solvers"]:
        SOLVERS[name]
    for name in inverses:
        if name != "auto" and name not in INVERSES:
            raise unknown("inverses", name, ["auto", *INVERSES], 'tk.atlas(inverses=["{}"])')
    SCHEDULES[schedule]
    if models is not None:
        if not isinstance(models, Mapping) or not models:
            wanted = "a mapping label -> (model, latent, prompt, negative)"
            raise bad("models", models, wanted, LINE, TypeError)
        for label, case in models.items():
            if not isinstance(case, tuple) or len(case) != 4:
                raise bad(f"models[{label!r}]", case, "(model, latent, prompt, negative)", LINE, TypeError)
            inputs.latent(as_model(case[0]), case[1])
    return {
        "solver": list(given["solvers"]),
        "inverse": list(inverses),
        "steps": [inputs.whole("steps", n, 2, None, "tk.atlas(steps=[20])") for n in steps],
        "cfg": [inputs.number("cfgs", w, "tk.atlas(cfgs=[1.0])") for w in cfgs],
    }


class _Table:
    """Arrays that are filled as the results come in."""

    def __init__(self, sizes: dict[str, list], schedule: str):
        self.sizes, self.schedule, self.done = {**sizes, "path": ["VE", "FLOW"]}, schedule, 0
        self.arrays: dict[str, np.ndarray] = {
            name: np.full([len(self.sizes[d]) for d in dims], np.nan) for name, (dims, _) in MEASURES.items()
        }
        self.arrays["picked"] = np.array(
            [[self.picked(s, i) for i in sizes["inverse"]] for s in sizes["solver"]], dtype=object
        )

    @staticmethod
    def picked(solver: str, inverse: str) -> str:
        """The strategy that the solver is run backwards by; "" where it has no such inverse."""
        try:
            return choose(SOLVERS[solver], inverse)
        except ValueError:
            return ""

    def bias(self, name: str) -> None:
        if SOLVERS[name].stochastic:
            row = [variance_bias(name, BIAS_STEPS, path) for path in (VE, FLOW)]
            self.arrays["variance_bias"][self.sizes["solver"].index(name)] = row

    def put(self, key: tuple, found: Mapping[str, float]) -> None:
        place = tuple(self.sizes[dim].index(label) for dim, label in zip(DIMS, key, strict=True))
        for name, value in found.items():
            self.arrays[name][place] = value
        self.done += 1

    def dataset(self, **attrs: Any) -> xr.Dataset:
        def label(name: str) -> dict[str, str]:
            return {"long_name": AXES.get(name) or MEASURES[name][1], "units": "1"}

        kinds = {d: object if isinstance(v[0], str) else None for d, v in self.sizes.items()}
        coords = {d: (d, np.array(v, dtype=kinds[d]), label(d)) for d, v in self.sizes.items()}
        data = {name: (MEASURES[name][0], array.copy(), label(name)) for name, array in self.arrays.items()}
        truth = f"DOP853 at {TOLERANCE:g}; {HOPS * FINE} midpoint steps where not in closed form"
        facts = {"kind": "atlas", "schedule": self.schedule, "truth": truth}
        return xr.Dataset(data, coords, {**facts, "versions": dict(versions()), **attrs})


def _measure(key: tuple, case: Case, schedule: str, truths: dict, known: bool) -> dict[str, float]:
    """The numbers of one round trip; inf where it overflowed."""
    name, inverse, steps, cfg, label = key
    model, latent, prompt, negative = case
    asked = {"prompt": prompt, "negative": negative, "cfg": cfg}
    save, found = Save(what=["latent"]), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # reverse warns under guidance: that is measured here
        try:
            up = unsample(model, latent, solver=name, inverse=inverse, schedule=schedule, steps=steps,
                          save=save, progress=False, **asked)  # fmt: skip
            found |= _top(up, model, asked, label, truths, known)
            # Uni-Inv inverts Euler's step (2504.13109), and not its own
            other = "euler" if (name, up.attrs["inverse"]) == ("uni_inv", "reverse") else None
            down = sample(model, start=up, solver=other, save=save, progress=False)
        except FloatingPointError:
            return {**found, "error": math.inf}
    found["calls_back"] = down.attrs["model_calls"]
    found["error"] = relative(down.latent[-1].values, up.latent[0].values / float(up.alpha[0])).max()
    return found


def _top(up: xr.Dataset, model: Any, asked: dict, label: str, truths: dict, known: bool) -> dict[str, float]:
    """What an unsample says of its x_T."""
    sigma, spread = up.sigma.values, std_ratio(up)
    found = {
        "calls_there": up.attrs["model_calls"],
        "std_ratio": spread[np.abs(np.log(spread)).argmax()],
    }
    if "aux_gap" in up:
        found["aux_gap"] = up.aux_gap[-1].values.max()
    if known and aims_at_ode(up):
        ends = float(sigma[sigma > 0][0]), float(sigma[-1])
        key = (label, asked["cfg"], *ends)
        if key not in truths:
            truths[key] = _solved(model, lowest_state(up, model), ends, asked)
        found["accuracy"] = relative(up.latent[-1].values, truths[key]).max()
    return found


def _solved(model: Any, start: torch.Tensor, ends: tuple[float, float], asked: dict) -> np.ndarray:
    """x_T of the true ODE from `start` at the lower end, (sample, channel, y, x)."""
    if not hasattr(model, "probability_flow"):
        return true_top(model, start, np.geomspace(*ends, HOPS + 1).tolist(), False, asked)
    small, frame = _reduced(model, start)
    x = (start.flatten(1) @ frame)[:, None, None] if frame is not None else start
    found = small.probability_flow(x.to(model.device), list(ends), tolerance=TOLERANCE, **asked)[-1].cpu()
    return (found if frame is None else (found.flatten(1) @ frame.T).view(start.shape)).numpy()


def _reduced(model: Any, start: torch.Tensor) -> tuple[Any, torch.Tensor | None]:
    """The same model in the span of its means and of `start`, and an orthonormal basis of that.

    Exact where all components have one variance, since the flow then never leaves that span; sharp_modes has
    67 dimensions there in place of 1,024. An image off its modes is stiff under guidance (72,000 calls at cfg
    7.5), which took four minutes, and takes seconds so.
    """
    if not isinstance(model, SpectralMixture):
        return model, None
    means, var = model.means.flatten(1), model.variances.flatten()
    if bool((var != var[0]).any()) or len(means) + len(start) >= means.shape[1]:
        return model, None
    frame = torch.linalg.qr(torch.cat([means, start.to(means).flatten(1)]).T)[0]  # (element, dimension)
    coefficients = (means @ frame)[:, None, None]  # (K, 1, 1, dimension)
    small = SpectralMixture(coefficients, var[0], model.weights, model.prompts, "dct",
                            model.path, model.levels)  # fmt: skip
    return small, frame.cpu()
