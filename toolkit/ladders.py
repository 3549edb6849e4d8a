"""Noise ladders: the image at every level of a schedule, in closed form."""

from typing import Any

import torch
import xarray as xr

from . import inputs
from .dataset import Save, shift_and_scale
from .denoisers import as_model
from .errors import bad, unknown
from .noise import COUPLINGS, Keyed, coupled
from .passes import bar
from .record import Recorder, as_numpy, provenance
from .runs import checked_mode, checked_save


class _Uncalled:
    """A model that is not asked anything: its path and levels, and counters that stay at 0."""

    calls = rows = 0

    def __init__(self, model: Any):
        self.model, self.path, self.levels = model, model.path, model.levels


def ladder(model: Any, latent: Any, *, schedule: str = "normal", steps: int = 20, start_at_step: int = 0,
           end_at_step: int | None = None, every: int = 1, coupling: str = "independent", noise: Any = None,
           normalize: str = "off", seed: int = 0, save: Save = Save(),
           progress: bool = True) -> xr.Dataset:  # fmt: skip
    """The image at every level of a schedule, without a model call: alpha*x0 + sigma*n, rising.

    Parameters
    ----------
    model, latent
        As in ``tk.unsample``; of the model only its path and levels are used.
    schedule, steps, start_at_step, end_at_step
        Rungs are levels start..end of the falling schedule, turned round: `start_at_step` leaves out the top
        ones.
    every : int
        Take each k-th rung, counted from the clean end; the top one is always there.
    coupling : {"independent", "shared"}
        A draw of its own at each rung, or one for all. A rung's noise depends on (seed, sample, rung) alone.
    noise : array (step, sample, channel, y, x), optional
        Unit normal, in place of the seed's, of the size of the result.
    normalize : {"off", "global", "sample", "channel"}
        Recorded as `shift` and `scale` of every row; ``tk.normalized`` applies it.
    seed, save, progress
        As in ``tk.unsample``; rows are float32 unless ``Save.dtype`` says otherwise.

    Returns
    -------
    Dataset
        dims (step, sample, channel, y, x): `latent`, `nfe`, `rows` (0), `mean`, `std`, `shift`, `scale`.

    Raises
    ------
    ValueError, TypeError
        For bad input, an empty range among it.

    Source: the marginals of 2011.13456; ``coupling="independent"`` is what ComfyUI's batch unsamplers do.

    Examples
    --------
    >>> import toolkit as tk
    >>> model = tk.load()
    >>> latent = model.encode(tk.assets.digits()[0][0])
    >>> rungs = tk.ladder(model, latent, steps=10, coupling="shared", progress=False)
    >>> rungs.sizes["step"], round(float(tk.at(rungs, sigma=1).sigma), 2)
    (11, 0.93)
    """
    call = "tk.ladder(model, latent"
    save, mode = checked_save(save), checked_mode(normalize)
    if coupling not in COUPLINGS:
        raise unknown("coupling", coupling, COUPLINGS, 'tk.ladder(model, latent, coupling="{}")')
    every = inputs.whole("every", every, 1, None, f"{call}, every=1)")
    seed = inputs.whole("seed", seed, -(2**63), None, "seed=0")
    x = inputs.latent(as_model(model), latent)
    steps = inputs.whole("steps", steps, 1, None, f"{call}, steps=20)")
    # a rung is keyed by its place in the whole schedule, counted from the clean end
    falling, lowest = inputs.falling(model.levels, schedule, steps, "euler", start_at_step, end_at_step, call)
    picked = [*range(0, len(falling) - 1, every), len(falling) - 1]
    levels = [falling[len(falling) - 1 - k] for k in picked]
    given = None if noise is None else inputs.tensor("noise", noise, f"{call}, noise=None)")
    if given is not None and tuple(given.shape) != (len(levels), *x.shape):
        wanted = f"of the size of the result, {(len(levels), *x.shape)}"
        raise bad("noise", tuple(given.shape), wanted, f"{call}, noise=None)")
    if given is not None and not bool(torch.isfinite(given).all()):
        raise bad("noise", "NaN or Inf in it", "finite numbers, unit normal", f"{call}, noise=None)")
    keyed, uncalled = Keyed(seed, x.shape, x.dtype, x.device, rungs=lowest + len(falling)), _Uncalled(model)
    attrs = provenance(uncalled, kind="ladder", coupling=coupling if noise is None else "given",
                       schedule=schedule, steps=steps, direction="up", seed=seed, normalize=mode)  # fmt: skip
    names = ["latent", "shift", "scale"]
    with Recorder(save, uncalled, levels, x.shape, attrs, names, "float32").guard() as record:
        for row, k in enumerate(bar(picked, len(picked), f"ladder, {coupling}", progress)):
            unit = coupled(coupling, keyed, lowest + k) if given is None else given[row].to(x)
            state = model.path.mix(x, unit, levels[row])
            shift, scale = shift_and_scale(as_numpy(state), mode)
            record.put("shift", row, shift)
            record.put("scale", row, scale)
            record.state(row, state)
        return record.finish()
