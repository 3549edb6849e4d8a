"""The `Unsampler` of ComfyUI_Noise and Easy-Use: the sampler's formula run upwards on a shifted grid."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr

from .. import inputs
from ..dataset import Save, label, moments
from ..denoisers import Model, as_model, guide
from ..errors import bad, unknown
from ..inverse import choose
from ..loop import steps as walk
from ..masks import Masked
from ..record import Recorder, as_numpy, provenance
from ..schedules import sigmas as schedule_sigmas
from ..solvers import SOLVERS
from .latents import Latent, cycled, factors, fit, float32, latent_in

SHIFT = np.float32(1e-4)  # the node adds it to every level, so that none is 0
SCHEDULERS = (
    "simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic",
    "kl_optimal",
)  # fmt: skip
# the names that are finite when the node runs them upwards
UPWARD = (
    "euler", "heun", "dpm_2", "lms", "dpm_fast", "dpm_adaptive", "dpmpp_2m", "ipndm", "ipndm_v", "deis",
    "res_multistep", "gradient_estimation",
)  # fmt: skip


def unsampler(model: Any, steps: int = 20, end_at_step: int = 0, cfg: float = 1.0,
              sampler_name: str = "euler", scheduler: str = "simple", normalize: str = "disable",
              positive: Any = None, negative: Any = None,
              latent_image: Any = None) -> xr.Dataset:  # fmt: skip
    """ComfyUI_Noise's `Unsampler`, with its parameters and numbers; the last row is the node's output.

    Parameters
    ----------
    model : Model
    steps, end_at_step : int
        1 to 10,000; the top `end_at_step` levels are left out (counted from the bottom, and clamped to steps
        - 1).
    cfg : float
        0 to 100.
    sampler_name, scheduler : str
        ComfyUI's names; a sampler must be one that runs upwards.
    normalize : {"disable", "enable"}
        Subtract the mean and divide by the unbiased std of the whole output.
    positive, negative
        Prompts.
    latent_image : array (sample, channel, y, x), or dict with "samples" and perhaps "noise_mask"
        In the space of the VAE.

    Returns
    -------
    Dataset
        dims (step, sample, channel, y, x), in the space of the VAE: solver states, row 0 at sigma 0.0001;
        ``attrs["quirks"]`` names what the node does that ``tk.unsample`` does not: the shift of every level
        (sigma_shift), the division by 1 - sigma on flow models (flow_over_alpha), ...

    Raises
    ------
    ValueError, TypeError
        For bad input, and for samplers whose formula has no step upwards.

    Source: the node's behaviour, ComfyUI_Noise at 0c9ec19b under ComfyUI 0.3.64.

    Examples
    --------
    >>> import toolkit as tk
    >>> model = tk.load()
    >>> image = model.encode(tk.assets.digits()[0][0]) / model.latent_scale
    >>> tk.comfy.unsampler(model, steps=4, positive=0, latent_image={"samples": image}).attrs["quirks"]
    ['sigma_shift']
    """
    levels, quirks = _grid(as_model(model), steps, end_at_step, sampler_name, scheduler)
    if normalize not in ("disable", "enable"):
        raise unknown(
            "normalize", normalize, ("disable", "enable"), 'tk.comfy.unsampler(model, normalize="{}")'
        )
    if not 0 <= inputs.number("cfg", cfg, "cfg=1.0") <= 100:
        raise bad("cfg", cfg, "a number from 0 to 100", "cfg=1.0")
    if latent_image is None:
        raise bad("latent_image", None, "what to unsample", 'latent_image={"samples": latent}', TypeError)
    latent, (scale, shift) = latent_in(model, latent_image), factors(model)
    flow = model.path.name == "FLOW"
    if isinstance(model, Model):
        for name, value in (("positive", positive), ("negative", negative)):
            model.conditions(value, len(latent.samples), name)
    denoiser = guide(model, positive, negative, cfg)
    denoiser.bind(len(latent.samples))
    extra = {}
    if latent.mask is not None:
        denoiser, mask = _masked(denoiser, latent, quirks)
        extra["mask"] = as_numpy(mask[:, 0]).astype(np.float64)
    if flow:
        quirks.append("flow_over_alpha")
    if normalize == "enable":
        quirks += ["normalized_whole"] + ["normalized_vae_space"] * (scale != 1.0)
    attrs = provenance(denoiser, kind="unsample", solver=sampler_name, solver_options={}, inverse="reverse",
                       via=sampler_name, schedule=scheduler, steps=steps, end_at_step=end_at_step,
                       direction="up", cfg=float(cfg), prompt=positive, negative=negative,
                       normalize=normalize, normalized="global" if normalize == "enable" else "off",
                       node="Unsampler", quirks=quirks) | {"latent_space": "vae"}  # fmt: skip
    solver = SOLVERS[sampler_name]
    rows, growing = (levels[:1], True) if solver.adaptive else (solver.grid(levels), False)
    # 1 - sigma is rounded to float32 upstream, at the start and at the end alike
    low, high = (float(np.float32(1.0) - np.float32(s)) if flow else 1.0 for s in (levels[0], levels[-1]))
    recorder = Recorder(Save(), denoiser, rows, latent.samples.shape, attrs, growing=growing,
                        device=latent.samples.device)  # fmt: skip
    with recorder.guard() as record:
        record.state(0, low * latent.samples)
        for step in walk(denoiser, solver, low * latent.samples, levels):
            record.hop(step, step.span.i, step.span.i + 1)
        run = record.finish(extra, model_calls=denoiser.calls, network_rows=denoiser.rows)
    return _out(run, high, scale, shift, normalize == "enable")


def easy_unsampler(pipe: Mapping[str, Any] | None = None, steps: int = 20, end_at_step: int = 0,
                   cfg: float = 1.0, sampler_name: str = "euler", scheduler: str = "simple",
                   normalize: str = "disable", optional_model: Any = None, optional_positive: Any = None,
                   optional_negative: Any = None,
                   optional_latent: Any = None) -> tuple[dict[str, Any], xr.Dataset]:  # fmt: skip
    """Easy-Use's `unSampler`: the numbers of `unsampler`, with its inputs and its output in a pipe.

    Parameters
    ----------
    pipe : dict, optional
        With "model", "positive", "negative" and "samples" (a LATENT), as far as no optional_* is given.
    steps, end_at_step, cfg, sampler_name, scheduler, normalize
        As in `unsampler`.
    optional_model, optional_positive, optional_negative, optional_latent
        Each wins over the pipe's.

    Returns
    -------
    pipe : dict
        A shallow copy of the one given, with "samples": the output LATENT, float32, in the space of the VAE,
        with the other keys of the one that came in. What was given as optional_* does not enter it.
    run : Dataset
        As `unsampler` returns it.

    Raises
    ------
    TypeError
        Where neither the pipe nor an optional_* has the model, a condition, or the latent.
    ValueError
        As `unsampler`.

    Source: the node's behaviour, ComfyUI-Easy-Use at 4de1ab3b.

    Examples
    --------
    >>> import toolkit as tk
    >>> model = tk.load()
    >>> latent = model.encode(tk.assets.digits()[0][0]) / model.latent_scale
    >>> pipe = {"model": model, "positive": 0, "negative": None, "samples": {"samples": latent}}
    >>> pipe, run = tk.comfy.easy_unsampler(pipe, steps=4)
    >>> pipe["samples"]["samples"].shape, run.attrs["node"]
    (torch.Size([1, 4, 8, 8]), 'unSampler')
    """
    if pipe is not None and not isinstance(pipe, Mapping):
        line = 'pipe={"model": model, "positive": 0, "negative": None, "samples": {"samples": latent}}'
        raise bad("pipe", pipe, "a dict", line, TypeError)
    pipe = dict(pipe or {})
    given = {"model": optional_model, "positive": optional_positive, "negative": optional_negative,
             "samples": optional_latent}  # fmt: skip
    for key, value in given.items():
        if value is None and key not in pipe:
            name = "optional_latent" if key == "samples" else f"optional_{key}"
            why = f'neither {name} nor pipe["{key}"] is there'
            raise bad(name, None, why, f"tk.comfy.easy_unsampler(pipe, {name}=...)", TypeError)
        given[key] = pipe[key] if value is None else value
    run = unsampler(given["model"], steps, end_at_step, cfg, sampler_name, scheduler, normalize,
                    given["positive"], given["negative"], given["samples"])  # fmt: skip
    others = dict(given["samples"]) if isinstance(given["samples"], Mapping) else {}
    output = torch.from_numpy(run.latent.values[-1].astype(np.float32))
    return {**pipe, "samples": {**others, "samples": output}}, run.assign_attrs(node="unSampler")


def _grid(
    model: Any, steps: Any, end_at_step: Any, sampler: str, scheduler: str
) -> tuple[list[float], list[str]]:
    """Rising levels from 0.0001, and the quirks of the range."""
    call = "tk.comfy.unsampler(model"
    if sampler in SOLVERS and sampler not in UPWARD:
        how = choose(SOLVERS[sampler], "auto")
        why = f"upwards the node gives noise, NaN or an error with it; here {how} brings its image back"
        raise bad("sampler_name", sampler, why, f'tk.unsample(model, latent, solver="{sampler}")')
    if sampler not in UPWARD:
        why = " that runs upwards"
        raise unknown("sampler_name", sampler, UPWARD, f'{call}, sampler_name="{{}}")', why)
    if scheduler not in SCHEDULERS:
        raise unknown("scheduler", scheduler, SCHEDULERS, f'{call}, scheduler="{{}}")')
    steps = inputs.whole("steps", steps, 1, 10_000, f"{call}, steps=20)")
    end = inputs.whole("end_at_step", end_at_step, 0, 10_000, f"{call}, end_at_step=0)")
    falling = schedule_sigmas(model.levels, scheduler, steps, sampler).astype(np.float32)
    kept = steps - min(end, steps - 1)
    rising = (falling[::-1] + SHIFT)[: kept + 1]
    quirks = (
        ["sigma_shift"]
        + ["end_from_bottom"] * (len(falling) - 1 != steps)
        + ["range_clamped"] * (end > steps - 1)
    )
    return rising.astype(np.float64).tolist(), quirks


def _masked(denoiser: Any, latent: Latent, quirks: list[str]) -> tuple[Masked, torch.Tensor]:
    """Fitted by the node, then again by the call: its channels are then taken for masks of the batch."""
    samples, channels, height, width = latent.samples.shape
    fitted = cycled(fit(latent.mask, height, width), samples)
    picked = fitted[[b // channels for b in range(samples)]][:, None]  # (sample, 1, y, x)
    rest = 1.0 - picked  # in float32, as upstream
    quirks += ["mask_passed_on"] + ["mask_fitted_twice"] * (
        latent.mask.reshape(-1, *latent.mask.shape[-2:]).shape[0] > 1
    )
    quirks += ["mask_complement_float32"] * bool(((picked > 0) & (picked < 1)).any())
    return Masked(denoiser, picked.double(), latent.samples, rest=rest.double()), picked


def _out(run: xr.Dataset, alpha: float, scale: float, shift: float, normalize: bool) -> xr.Dataset:
    """The rows in the space of the VAE; the last one is the node's output."""
    latent = run.latent.values / scale + shift
    output = float32(run.latent.values[-1] / alpha / scale + shift)
    if normalize:
        output = float32((output - output.mean()) / output.std(ddof=1))
    latent[-1] = output
    mean, std = moments(latent)
    new = {"latent": latent, "denoised": run.denoised.values / scale + shift, "mean": mean, "std": std}
    return run.assign(label(new, {}, {}).data_vars)
