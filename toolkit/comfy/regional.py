"""Impact Pack's `RegionalSamplerAdvanced`: at every step one call of the base, then one of each region."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import xarray as xr

from .. import inputs
from ..dataset import Save, attributes, label, moments
from ..denoisers import Denoiser, Model, as_model, guide
from ..errors import bad, unknown
from ..record import Recorder, as_numpy, provenance
from .calls import Caller, Recovered, area
from .latents import factors, float32
from .quirks import Facts, regional_quirks, warning
from .regions import (
    LARGEST_SEED,
    KSamplerAdvanced,
    RegionalPrompt,
    base_mask,
    between,
    region_mask,
    start_noise,
)
from .streams import Streams, unit

CALL = (
    "tk.comfy.regional_sampler_advanced(model, latent_image=latent, base_sampler=base, "
    "regional_prompts=prompts"
)
MODES = ("DISABLE", "ratio additional", "ratio between")
# samplers that a recovery sampler follows, with the one that "AUTO" stands for
RECOVERED = {
    "uni_pc": "dpm_fast", "uni_pc_bh2": "dpm_fast", "dpmpp_sde": "dpm_fast", "dpmpp_sde_gpu": "dpm_fast",
    "dpmpp_2m_sde": "dpmpp_2m", "dpmpp_2m_sde_gpu": "dpmpp_2m", "dpmpp_3m_sde": "dpmpp_2m",
    "dpmpp_3m_sde_gpu": "dpmpp_2m",
}  # fmt: skip
RECOVERY = ("AUTO", "euler", "heun", "heunpp2", "dpm_2", "dpm_fast", "dpmpp_2m", "ddpm")
PLACEHOLDER = "NegativePlaceholder"


def regional_sampler_advanced(model: Any, add_noise: bool = True, noise_seed: int = 0, steps: int = 20,
                              start_at_step: int = 0, end_at_step: int = 10_000, overlap_factor: int = 10,
                              restore_latent: bool = True, return_with_leftover_noise: bool = False,
                              latent_image: Any = None, base_sampler: KSamplerAdvanced | None = None,
                              regional_prompts: Sequence[RegionalPrompt] = (),
                              additional_mode: str = "ratio between", additional_sampler: str = "AUTO",
                              additional_sigma_ratio: float = 0.3) -> xr.Dataset:  # fmt: skip
    """Impact Pack's `RegionalSamplerAdvanced`, with its parameters and numbers; the last row is its output.

    Every step is a call of the base sampler where no mask is, then one of each region's sampler in its mask,
    all on the same latent, each cold-started and with the same seed.

    Parameters
    ----------
    model : Model
    add_noise : bool
        Add noise of `noise_seed` in the first call of the base.
    noise_seed : int
        0 to 2^64 - 1. Noise is ComfyUI's: a CPU generator in float32, and torchsde's tree for the SDE names.
    steps, start_at_step, end_at_step : int
        1, 0 and 0 to 10,000; the end is clamped to `steps`.
    overlap_factor : int
        0 to 10,000: how many pixels of its own a mask grows by, about half of them to each side.
    restore_latent : bool
        Put the region's result back by its mask. The last step is then lost: the output is one level short.
    return_with_leftover_noise : bool
        Keep the noise of `end_at_step` in the base area; without effect where the latent is restored.
    latent_image : array (sample, channel, y, x), or dict with "samples" and perhaps "batch_index"
        In the space of the VAE. A "noise_mask" is ignored.
    base_sampler : KSamplerAdvanced
    regional_prompts : sequence of RegionalPrompt
    additional_mode : {"ratio between", "ratio additional", "DISABLE"}
        Whether dpmpp_sde, dpmpp_2m_sde, dpmpp_3m_sde and uni_pc are each followed by a recovery sampler: at
        levels times the ratio, after a call at the levels times 1 - ratio (between) or as they are.
    additional_sampler : str
        The recovery sampler: "AUTO", "euler", "heun", "heunpp2", "dpm_2", "dpm_fast", "dpmpp_2m", "ddpm".
    additional_sigma_ratio : float
        0 (no recovery) to 1.

    Returns
    -------
    Dataset
        dims (step, sample, channel, y, x), in the space of the VAE: row 0 the state that the first call
        starts from, then the latent after each step, at levels of the base's schedule; without
        `restore_latent` one row more, after the last call of the base. `latent` (float64; the last row
        rounded to float32, as the node's output is), `nfe`, `rows`, `mean`, `std`; `base_mask` (y, x) and
        `region_mask` (region, y, x): the masks as rounded, grown and fitted. ``attrs["quirks"]`` names what
        the node does that ``tk.regional`` does not, and a warning says it once.

    Raises
    ------
    ValueError, TypeError
        For bad input, masks of different shapes, and for start_at_step = end_at_step.

    Source: the node's behaviour, ComfyUI-Impact-Pack at 727295b5 under ComfyUI 0.3.64.

    Examples
    --------
    >>> import warnings, torch, toolkit as tk
    >>> mask = torch.zeros(64, 64)
    >>> mask[:, 32:] = 1.0
    >>> base, three = (tk.comfy.KSamplerAdvanced(positive=p, cfg=2.0) for p in (0, 3))
    >>> with warnings.catch_warnings(action="ignore"):
    ...     run = tk.comfy.regional_sampler_advanced(
    ...         tk.load(), steps=5, end_at_step=5, overlap_factor=3, latent_image=torch.zeros(1, 4, 8, 8),
    ...         base_sampler=base, regional_prompts=[tk.comfy.RegionalPrompt(mask, three)])
    >>> run.attrs["quirks"]
    ['stepped_twice', 'last_step_lost', 'leftover_ignored']
    >>> run.sizes["step"], round(float(run.sigma[-1]), 2), run.attrs["model_calls"]
    (5, 0.57, 9)
    """
    asked = {"add_noise": add_noise, "seed": noise_seed, "steps": steps, "start_at_step": start_at_step,
             "end_at_step": end_at_step, "overlap_factor": overlap_factor, "restore_latent": restore_latent,
             "return_with_leftover_noise": return_with_leftover_noise, "additional_mode": additional_mode,
             "additional_sampler": additional_sampler,
             "additional_sigma_ratio": additional_sigma_ratio}  # fmt: skip
    last = _checked(asked)
    prompts = _prompts(base_sampler, regional_prompts, asked)
    x, index, ignored = _latent(as_model(model), latent_image)
    streams = Streams(int(noise_seed), x.shape, x.device, int(steps))
    base, *regions = (
        _caller(model, s, streams, asked) for s in (base_sampler, *[p.sampler for p in prompts])
    )
    masks = [p.mask for p in prompts]
    grown = [region_mask(mask, int(overlap_factor)) for mask in masks]
    areas = [area(mask, x) for mask in (base_mask(masks), *grown)]
    noise = again = None
    gap = False
    if add_noise and last - start_at_step > 1:
        noise, gap = start_noise(int(noise_seed), x.shape, index, prompts)
        noise, again = noise.to(x), unit(int(noise_seed), x.shape, index).to(x)
    quirks = regional_quirks(
        Facts(base, regions, masks, areas, add_noise, steps, start_at_step, end_at_step, last,
              overlap_factor, restore_latent, return_with_leftover_noise, gap)
    )  # fmt: skip
    warnings.warn(warning(quirks), stacklevel=2)
    crew = _Crew([base, *regions])
    attrs = _attributes(crew, asked, base_sampler, prompts, ignored, quirks)
    levels = _rows(base.callers[0].levels, start_at_step, last, restore_latent, return_with_leftover_noise)
    recorder = Recorder(Save(), crew, levels, x.shape, attrs, variables=("latent",), device=x.device)
    with recorder.guard() as record:
        first = min(start_at_step, last - 1)  # start after end: there is the last call alone
        record.state(0, base.start(x, first, noise, again) if len(levels) > 1 else x)
        for i in range(start_at_step, last - 1):
            x = base(x, areas[0], i, noise=noise, renoise=again)
            noise = again = None
            for region, where in zip(regions, areas[1:], strict=True):
                y = region(x, where, i)
                x = where.mix(y, x) if restore_latent else y
            record.state(i - start_at_step + 1, x)
        # where the latent is restored, this call's result goes to waste, as it does in the node
        y = base(x, areas[0], last - 1, return_with_leftover_noise)
        if not restore_latent:
            record.state(len(levels) - 1, y)
        fitted = np.stack([as_numpy(where.mask[0, 0]) for where in areas])
        run = record.finish({"base_mask": fitted[0], "region_mask": fitted[1:]},
                            model_calls=crew.calls, network_rows=crew.rows)  # fmt: skip
    return _out(run)


class _Crew:
    """The denoisers of a run as one, for its record."""

    def __init__(self, members: Sequence[Recovered]):
        self.denoisers = [member.callers[0].denoiser for member in members]  # those of a pair are the same
        first = self.denoisers[0]
        self.model, self.path, self.levels = first.model, first.path, first.levels

    @property
    def calls(self) -> int:
        return sum(denoiser.calls for denoiser in self.denoisers)

    @property
    def rows(self) -> int:
        return sum(denoiser.rows for denoiser in self.denoisers)


def _checked(asked: Mapping[str, Any]) -> int:
    """Refuses what the node does not take; the end, clamped to the steps."""
    for name in ("add_noise", "restore_latent", "return_with_leftover_noise"):
        if not isinstance(asked[name], (bool, np.bool_)):
            raise bad(name, asked[name], "True or False", f"{CALL}, {name}=True)", TypeError)
    inputs.whole("noise_seed", asked["seed"], 0, LARGEST_SEED, f"{CALL}, noise_seed=0)")
    steps = inputs.whole("steps", asked["steps"], 1, 10_000, f"{CALL}, steps=20)")
    start = inputs.whole("start_at_step", asked["start_at_step"], 0, 10_000, f"{CALL}, start_at_step=0)")
    end = inputs.whole("end_at_step", asked["end_at_step"], 0, 10_000, f"{CALL}, end_at_step=10000)")
    inputs.whole("overlap_factor", asked["overlap_factor"], 0, 10_000, f"{CALL}, overlap_factor=10)")
    for name, names in (("additional_mode", MODES), ("additional_sampler", RECOVERY)):
        if asked[name] not in names:
            raise unknown(name, asked[name], names, f'{CALL}, {name}="{{}}")')
    line = f"{CALL}, additional_sigma_ratio=0.3)"
    between("additional_sigma_ratio", asked["additional_sigma_ratio"], 0.0, 1.0, line)
    last = min(steps, end)
    if start == last:
        why = f"where the range ends, with steps={steps} and end_at_step={end}: it is empty"
        raise bad(
            "start_at_step", start, why, f"{CALL}, steps={steps}, start_at_step=0, end_at_step={steps})"
        )
    return last


def _prompts(base: Any, prompts: Any, asked: Mapping[str, Any]) -> list[RegionalPrompt]:
    """The regions, one or more, whose masks have one shape; and a base sampler beside them."""
    if not isinstance(base, KSamplerAdvanced):
        line = f"{CALL.replace('=base', '=tk.comfy.KSamplerAdvanced(positive=0)')})"
        raise bad("base_sampler", base, "a tk.comfy.KSamplerAdvanced", line, TypeError)
    given = [prompts] if isinstance(prompts, RegionalPrompt) else prompts
    line = f"{CALL.replace('=prompts', '=[tk.comfy.RegionalPrompt(mask, base)]')})"
    if not isinstance(given, (list, tuple)) or not all(isinstance(p, RegionalPrompt) for p in given):
        raise bad("regional_prompts", prompts, "a list of tk.comfy.RegionalPrompt", line, TypeError)
    if len(given) == 0:
        raise bad("regional_prompts", prompts, "one region or more", line)
    shapes = {tuple(p.mask.shape) for p in given}
    if len(shapes) > 1:
        raise bad("regional_prompts", sorted(shapes), "masks of one shape", line)
    names = {base.sampler_name, *(p.sampler.sampler_name for p in given)}
    if asked["seed"] == LARGEST_SEED and "ddim" in names:
        why = "ddim draws with the next seed, and there is none"
        raise bad("noise_seed", asked["seed"], why, f"{CALL}, noise_seed=0)")
    return list(given)


def _latent(model: Any, given: Any) -> tuple[torch.Tensor, list[int] | None, list[str]]:
    """The latent in the space of the VAE, float64, its batch_index, and what is ignored of it."""
    line, index, ignored = f"{CALL})", None, []
    if isinstance(given, Mapping):
        if "samples" not in given:
            raise bad("latent_image", list(given), "a dict with the key samples", line)
        index, ignored = given.get("batch_index"), ["noise_mask"] * (given.get("noise_mask") is not None)
        given = given["samples"]
    if given is None:
        raise bad("latent_image", None, "what to sample from", line, TypeError)
    samples, (scale, shift) = inputs.latent(model, given, "latent_image", line, "vae"), factors(model)
    if inputs.is_picture(given):  # encoded, to model space
        samples = samples / scale + shift
    if index is not None:
        index = list(index) if isinstance(index, (list, tuple, range)) else [index]
        if len(index) != len(samples):
            raise bad("batch_index", index, f"a list of {len(samples)}, one a sample", line)
        index = [inputs.whole("batch_index", k, 0, None, line) for k in index]
    return samples, index, ignored


def _caller(model: Any, sampler: KSamplerAdvanced, streams: Streams, asked: Mapping[str, Any]) -> Recovered:
    """What calls a sampler, with its conditions bound, and its recovery sampler where it has one."""
    denoiser = _bound(model, sampler, streams.shape[0])

    def caller(name: str) -> Caller:
        return Caller(denoiser, name, sampler.schedule, streams.steps, float(sampler.sigma_factor), streams)

    name, ratio = sampler.sampler_name, float(asked["additional_sigma_ratio"])
    if asked["additional_mode"] == "DISABLE" or name not in RECOVERED or ratio == 0:
        return Recovered(caller(name), None, (1.0, 0.0))
    first = 1.0 - ratio if asked["additional_mode"] == "ratio between" else 1.0
    other = asked["additional_sampler"]
    other = RECOVERED[name] if other == "AUTO" else other
    return Recovered(caller(name) if first else None, caller(other), (first, ratio))


def _bound(model: Any, sampler: KSamplerAdvanced, samples: int) -> Denoiser:
    """The denoiser of a sampler; bad conditions raise before the first call."""
    negative, cfg = sampler.negative, sampler.cfg
    if isinstance(negative, str) and negative == PLACEHOLDER:  # no negative: one conditional call
        negative, cfg = None, 1.0
    if isinstance(model, Model):
        for name, value in (("positive", sampler.positive), ("negative", negative)):
            model.conditions(value, samples, name)
    denoiser = guide(model, sampler.positive, negative, cfg)
    denoiser.bind(samples)
    return denoiser


def _rows(falling: np.ndarray, start: int, last: int, restore: bool, leftover: bool) -> list[float]:
    """The level of every row: of the base's schedule, on which a step beyond its end stays there."""
    end = len(falling) - 1
    first = max(0, min(start, last - 1))  # start after end: the one call that is made is the last one
    rows = [falling[min(i, end)] for i in (first, *range(start + 1, last))]
    if not restore:
        called = 0 < last <= end
        rows.append((falling[last] if leftover else 0.0) if called else rows[-1])
    return [float(level) for level in rows]


def _attributes(crew: _Crew, asked: Mapping[str, Any], base: KSamplerAdvanced,
                prompts: Sequence[RegionalPrompt], ignored: list[str],
                quirks: list[str]) -> dict[str, Any]:  # fmt: skip
    """What was asked, of which model, and what is to be known of the rows."""
    named = ("variation_seed", "variation_strength", "variation_method")
    regions = [asdict(p.sampler) | {name: getattr(p, name) for name in named} for p in prompts]
    note = "model calls are the node's"
    if asked["restore_latent"]:
        note += ", those of its last step too, whose result it throws away"
    if crew.path.name == "FLOW":
        note += "; rows after the first are what its calls hand on, the state over 1 - sigma"
    attrs = provenance(crew, kind="regional", node="RegionalSamplerAdvanced", solver=base.sampler_name,
                       solver_options={}, schedule=base.scheduler, direction="down", cfg=float(base.cfg),
                       prompt=base.positive, negative=base.negative, sigma_factor=float(base.sigma_factor),
                       regions=regions, normalize="off", normalized="off", inputs_ignored=ignored,
                       pack="ComfyUI-Impact-Pack", note=note, quirks=quirks, **asked)  # fmt: skip
    return attrs | {"latent_space": "vae"}


def _out(run: xr.Dataset) -> xr.Dataset:
    """The last row is the node's output, in float32."""
    latent = run.latent.values
    latent[-1] = float32(latent[-1])
    mean, std = moments(latent)
    regions = ("region", np.arange(run.sizes["region"]), attributes("region"))
    new = label({"latent": latent, "mean": mean, "std": std}, {}, {}).data_vars
    return run.assign(new).assign_coords(region=regions)
