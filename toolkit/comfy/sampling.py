"""ComfyUI's own samplers, `KSampler`, `KSampler (Advanced)` and `SamplerCustom`: one denoising call.

Their numbers where ComfyUI runs on a CPU: seeded noise is drawn there, in float32, at once for the batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from .. import inputs
from ..dataset import Save, label, moments
from ..denoisers import Denoiser, Model, as_model, guide
from ..errors import bad, unknown
from ..loop import steps as walk
from ..noise import Keyed
from ..record import Recorder, as_numpy, provenance
from ..solvers import SOLVERS
from .batches import SAMPLERS
from .calls import Pinned, alpha, at_start
from .grids import float32_sigmas
from .latents import cycled, factors, fit, float32, latent_in
from .regions import LARGEST_SEED, TABLES, between
from .streams import HOP, WHOLE, Streams, unit
from .unsampling import SCHEDULERS, UPWARD

KSAMPLER = "tk.comfy.ksampler(model, latent_image=latent"
ADVANCED = "tk.comfy.ksampler_advanced(model, latent_image=latent"
CUSTOM = "tk.comfy.sampler_custom(model, latent_image=latent, sigmas=sigmas"
WHOLE_DENOISE = 0.9999  # above this `denoise` counts as 1, as in the node


def ksampler(model: Any, seed: int = 0, steps: int = 20, cfg: float = 8.0, sampler_name: str = "euler",
             scheduler: str = "simple", positive: Any = None, negative: Any = None,
             latent_image: Any = None, denoise: float = 1.0) -> xr.Dataset:  # fmt: skip
    """ComfyUI's `KSampler`, with its parameters and numbers; the last row is the node's output.

    Parameters
    ----------
    model : Model
    seed : int
        0 to 2^64 - 1, of the start noise and of what a stochastic sampler draws.
    steps : int
        1 to 10,000.
    cfg : float
        0 to 100.
    sampler_name, scheduler : str
        ComfyUI's names.
    positive, negative
        Prompts.
    latent_image : array (sample, channel, y, x), or dict with "samples"
        In the space of the VAE. Of the dict "noise_mask" counts, under which it is sampled, and elsewhere
        stays; and "batch_index", by which the noise of the seed is picked.
    denoise : float
        In (0, 1]: below 1 the run is the last `steps` of int(steps/denoise).

    Returns
    -------
    Dataset
        dims (step, sample, channel, y, x), in the space of the VAE: solver states, row 0 the noised start;
        the last row is rounded to float32, and divided by 1 - sigma on flow models, as the node's output is.

    Raises
    ------
    ValueError, TypeError
        For bad input, and for names and numbers that the node does not have.

    Source: the node's behaviour, ComfyUI 0.3.64.

    Examples
    --------
    >>> import torch, toolkit as tk
    >>> empty = torch.zeros(1, 4, 8, 8)
    >>> run = tk.comfy.ksampler(tk.load(), seed=1, steps=4, cfg=2.0, positive=3, latent_image=empty)
    >>> run.sizes["step"], run.attrs["node"], run.attrs["latent_space"]
    (5, 'KSampler', 'vae')
    """
    steps = inputs.whole("steps", steps, 1, 10_000, f"{KSAMPLER}, steps=20)")
    share = between("denoise", denoise, 0.0, 1.0, f"{KSAMPLER}, denoise=1.0)")
    if share == 0:
        raise bad("denoise", denoise, "above 0: at 0 the node does nothing", f"{KSAMPLER}, denoise=0.5)")
    total = steps if share > WHOLE_DENOISE else int(steps / share)
    levels = _falling(model, scheduler, total, sampler_name, KSAMPLER)[-(steps + 1) :]
    asked = {"schedule": scheduler, "steps": steps, "denoise": share}
    return _call(model, "KSampler", sampler_name, levels, latent_image, seed, True, cfg, positive, negative,
                 KSAMPLER, asked)  # fmt: skip


def ksampler_advanced(model: Any, add_noise: str = "enable", noise_seed: int = 0, steps: int = 20,
                      cfg: float = 8.0, sampler_name: str = "euler", scheduler: str = "simple",
                      positive: Any = None, negative: Any = None, latent_image: Any = None,
                      start_at_step: int = 0, end_at_step: int = 10_000,
                      return_with_leftover_noise: str = "disable") -> xr.Dataset:  # fmt: skip
    """ComfyUI's `KSampler (Advanced)`, with its parameters and numbers; the last row is the node's output.

    Parameters
    ----------
    model, steps, cfg, sampler_name, scheduler, positive, negative, latent_image
        As in `ksampler`.
    add_noise : {"enable", "disable"}
        Disabled, the latent is the state to go on from.
    noise_seed : int
        0 to 2^64 - 1; what a stochastic sampler draws comes from it also where no noise is added.
    start_at_step, end_at_step : int
        0 to 10,000, the part of the schedule to run; the end is clamped to it.
    return_with_leftover_noise : {"disable", "enable"}
        Disabled, the last level of the part becomes 0.

    Returns
    -------
    Dataset
        As `ksampler`.

    Raises
    ------
    ValueError, TypeError
        For bad input, and for a range without a step, which the node hands back as it came.

    Source: the node's behaviour, ComfyUI 0.3.64.

    Examples
    --------
    >>> import toolkit as tk
    >>> model = tk.load()
    >>> image = model.encode(tk.assets.digits()[0][0]) / model.latent_scale
    >>> up = tk.comfy.unsampler(model, steps=6, positive=0, latent_image=image)
    >>> down = tk.comfy.ksampler_advanced(model, add_noise="disable", steps=6, cfg=1.0, positive=0,
    ...                                   latent_image=up.latent[-1].values)
    >>> round(float(down.sigma[0]), 2), float(down.sigma[-1])
    (14.61, 0.0)
    """
    for name, value in (("add_noise", add_noise), ("return_with_leftover_noise", return_with_leftover_noise)):
        if value not in ("enable", "disable"):
            raise unknown(name, value, ("enable", "disable"), f'{ADVANCED}, {name}="{{}}")')
    steps = inputs.whole("steps", steps, 1, 10_000, f"{ADVANCED}, steps=20)")
    start = inputs.whole("start_at_step", start_at_step, 0, 10_000, f"{ADVANCED}, start_at_step=0)")
    end = inputs.whole("end_at_step", end_at_step, 0, 10_000, f"{ADVANCED}, end_at_step=10000)")
    levels = _falling(model, scheduler, steps, sampler_name, ADVANCED)
    last = min(end, len(levels) - 1)
    if start >= last:
        why = f"where the range ends, at {last} of {len(levels) - 1} steps: it is empty"
        raise bad("start_at_step", start, why, f"{ADVANCED}, steps={steps}, start_at_step=0)")
    levels = levels[start : last + 1].copy()
    if return_with_leftover_noise == "disable":
        levels[-1] = 0.0
    asked = {"schedule": scheduler, "steps": steps, "start_at_step": start, "end_at_step": end,
             "return_with_leftover_noise": return_with_leftover_noise}  # fmt: skip
    return _call(model, "KSamplerAdvanced", sampler_name, levels, latent_image, noise_seed,
                 add_noise == "enable", cfg, positive, negative, ADVANCED, asked)  # fmt: skip


def sampler_custom(model: Any, add_noise: bool = True, noise_seed: int = 0, cfg: float = 8.0,
                   positive: Any = None, negative: Any = None, sampler: str = "euler",
                   sigmas: Sequence[float] | None = None,
                   latent_image: Any = None) -> xr.Dataset:  # fmt: skip
    """ComfyUI's `SamplerCustom`, and `SamplerCustomAdvanced`: levels of your own, falling or rising.

    Parameters
    ----------
    model, cfg, positive, negative, latent_image
        As in `ksampler`.
    add_noise : bool
    noise_seed : int
        0 to 2^64 - 1.
    sampler : str
        The name that `KSamplerSelect` has. Levels that rise unsample, with samplers that run upwards.
    sigmas : sequence of float
        Two levels or more; they are rounded to float32.

    Returns
    -------
    Dataset
        As `ksampler`. ``run.denoised`` has the second output of the node in its last row but one.

    Raises
    ------
    ValueError, TypeError
        For bad input, and for samplers whose formula has no step upwards where the levels rise.

    Source: the nodes' behaviour, ComfyUI 0.3.64.

    Examples
    --------
    >>> import torch, toolkit as tk
    >>> model = tk.load()
    >>> levels, empty = tk.schedule(model, "karras", steps=4).sigma, torch.zeros(1, 4, 8, 8)
    >>> run = tk.comfy.sampler_custom(model, cfg=2.0, positive=3, sigmas=levels, latent_image=empty)
    >>> run.sizes["step"]
    5
    """
    if not isinstance(add_noise, (bool, np.bool_)):
        raise bad("add_noise", add_noise, "True or False", f"{CUSTOM}, add_noise=True)", TypeError)
    if sampler not in SAMPLERS:
        raise unknown("sampler", sampler, SAMPLERS, f'{CUSTOM}, sampler="{{}}")')
    if sigmas is None:
        line = 'sigmas=tk.schedule(model, "karras", steps=20).sigma'
        raise bad("sigmas", None, "the levels to walk", line, TypeError)
    given = np.asarray(inputs.host(getattr(sigmas, "values", sigmas)))
    rising = given.ndim == 1 and given.size > 1 and given[0] < given[-1]
    levels = np.array(inputs.grid(given, bool(rising), as_model(model).path), np.float32)
    if rising:
        _upwards(sampler, levels, as_model(model))
    return _call(model, "SamplerCustom", sampler, levels, latent_image, noise_seed, bool(add_noise), cfg,
                 positive, negative, CUSTOM, {"schedule": "given", "steps": len(levels) - 1})  # fmt: skip


def _upwards(sampler: str, levels: np.ndarray, model: Any) -> None:
    """Refuses what gives no finite state where the levels rise."""
    if sampler not in UPWARD:
        raise unknown("sampler", sampler, UPWARD, f'{CUSTOM}, sampler="{{}}")', " that runs upwards")
    if levels[0] == 0:
        why = "no step leads up from 0: FlipSigmas puts 0.0001 in its place"
        raise bad("sigmas", levels[:4].tolist(), why, "sigmas=tk.comfy.nodes.flip_sigmas(sigmas)")
    if model.path.name == "FLOW" and levels[-1] >= 1:
        why = "the node divides by 1 - sigma at the end of a flow model's run, which is 0 here"
        raise bad("sigmas", levels[-4:].tolist(), why, "sigmas=sigmas[:-1]")


def _falling(model: Any, scheduler: Any, steps: int, sampler: Any, call: str) -> np.ndarray:
    """The whole schedule of a sampler's name, float32, falling to 0."""
    if sampler not in SAMPLERS:
        raise unknown("sampler_name", sampler, SAMPLERS, f'{call}, sampler_name="{{}}")')
    if scheduler not in (*SCHEDULERS, *TABLES):
        raise unknown("scheduler", scheduler, (*SCHEDULERS, *TABLES), f'{call}, scheduler="{{}}")')
    return float32_sigmas(as_model(model).levels, TABLES.get(scheduler, scheduler), steps, sampler)


def _call(model: Any, node: str, sampler: str, levels: np.ndarray, latent_image: Any, seed: Any,
          noised: bool, cfg: Any, positive: Any, negative: Any, call: str,
          asked: dict[str, Any]) -> xr.Dataset:  # fmt: skip
    """One denoising call over float32 `levels`: start, mask, solver, end."""
    if latent_image is None:
        raise bad("latent_image", None, "what to sample", 'latent_image={"samples": latent}', TypeError)
    cfg = between("cfg", cfg, 0.0, 100.0, f"{call}, cfg=8.0)")
    name = "seed" if node == "KSampler" else "noise_seed"
    seed = inputs.whole(name, seed, 0, LARGEST_SEED, f"{call}, {name}=0)")
    x, mask = latent_in(model, latent_image)
    if isinstance(model, Model):
        for name, value in (("positive", positive), ("negative", negative)):
            model.conditions(value, len(x), name)
    denoiser, (scale, shift), solver = guide(model, positive, negative, cfg), factors(model), SOLVERS[sampler]
    denoiser.bind(len(x))
    noise = unit(seed, x.shape, _index(latent_image, len(x))).to(x) if noised else None
    extra, masked = {}, denoiser
    if mask is not None:
        masked, fitted = _pinned(denoiser, mask, x, noise, sampler, seed)
        extra["mask"] = as_numpy(fitted[:, 0]).astype(np.float64)
    streams = Streams(seed, x.shape, x.device, len(levels))
    quirks = ["flow_over_alpha"] * (denoiser.path.name == "FLOW" and float(levels[-1]) > 0)
    replaced = sampler in WHOLE + HOP and streams.torchsde is None
    attrs = provenance(masked, kind="sample", start="latent", solver=sampler, solver_options={},
                       direction="down" if levels[0] > levels[-1] else "up", cfg=cfg, prompt=positive,
                       negative=negative, seed=seed, add_noise=noised, normalize="off", normalized="off",
                       node=node, quirks=quirks + ["tree_replaced"] * replaced, **asked)  # fmt: skip
    attrs |= {"latent_space": "vae"}
    grid = levels.astype(np.float64).tolist()
    rows, growing = (grid[:1], True) if solver.adaptive else (solver.grid(grid), False)
    start = at_start(denoiser, x, grid[0], noise)
    recorder = Recorder(Save(), masked, rows, x.shape, attrs, growing=growing, device=x.device)
    with recorder.guard() as record:
        record.state(0, start)
        for step in walk(masked, solver, start, grid, noise=_draws(streams, sampler, levels)):
            record.hop(step, step.span.i, step.span.i + 1)
        run = record.finish(extra, model_calls=masked.calls, network_rows=masked.rows)
    return _out(run, denoiser.path.name == "FLOW", levels[-1], scale, shift)


def _index(latent_image: Any, samples: int) -> list[int] | None:
    """The batch_index of a LATENT: by which its noise is picked."""
    index = latent_image.get("batch_index") if isinstance(latent_image, Mapping) else None
    if index is None:
        return None
    index = list(index) if isinstance(index, (list, tuple, range)) else [index]
    line = 'latent_image={"samples": latent, "batch_index": [0]}'
    if len(index) != samples:
        raise bad("batch_index", index, f"a list of {samples}, one a sample", line)
    return [inputs.whole("batch_index", k, 0, None, line) for k in index]


def _pinned(denoiser: Denoiser, mask: torch.Tensor, x: torch.Tensor, noise: torch.Tensor | None, sampler: str,
            seed: int) -> tuple[Pinned, torch.Tensor]:  # fmt: skip
    """The mask in the denoiser; masks in turn, one a sample."""
    fitted = cycled(fit(mask, *x.shape[-2:]), len(x))[: len(x), None]  # (sample, 1, y, x)
    if sampler == "ddim":  # whatever the start noise was
        if seed == LARGEST_SEED:
            why = "ddim draws with the next seed, and there is none"
            raise bad("seed", seed, why, "seed=0")
        noise = unit(seed + 1, x.shape).to(x)
    return Pinned(denoiser, fitted.double(), x, noise, (1.0 - fitted).double()), fitted


def _draws(streams: Streams, sampler: str, levels: np.ndarray) -> Any:
    """What a stochastic sampler draws from in this call."""
    if not SOLVERS[sampler].stochastic:
        return None
    if sampler in WHOLE + HOP and streams.torchsde is None:
        return Keyed(streams.seed, streams.shape, device=streams.device, rungs=len(levels))
    positive = levels[levels > 0]
    return streams.of(sampler, levels, (float(positive.max()), float(positive.min())), 0)


def _out(run: xr.Dataset, flow: bool, last: np.float32, scale: float, shift: float) -> xr.Dataset:
    """The rows in the space of the VAE; the last one is the node's output."""
    kept = alpha(last) if flow else 1.0
    latent = run.latent.values / scale + shift
    latent[-1] = float32(run.latent.values[-1] / kept / scale + shift)
    mean, std = moments(latent)
    new = {"latent": latent, "denoised": run.denoised.values / scale + shift, "mean": mean, "std": std}
    return run.assign(label(new, {}, {}).data_vars)
