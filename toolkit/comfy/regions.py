"""Impact Pack's regions: a sampler with its prompts, the mask it works in, and what is made of masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .. import inputs
from ..errors import bad, unknown
from ..regions import METHODS
from .batches import SAMPLERS
from .latents import fit
from .streams import unit
from .unsampling import SCHEDULERS

LARGEST_SEED = 2**64 - 1
TABLES = {"AYS SDXL": "ays_sdxl", "AYS SD1": "ays_sd1", "AYS SVD": "ays_svd"}  # node's name: ours
GITS = "GITS[coeff=1.2]"
PROVIDER, PROMPT = "tk.comfy.KSamplerAdvanced(positive", "tk.comfy.RegionalPrompt(mask, sampler"


@dataclass(frozen=True)
class KSamplerAdvanced:
    """Impact Pack's `KSamplerAdvancedProvider`: what samples a region, or the base.

    Steps and seed are the regional node's.

    Parameters
    ----------
    positive, negative
        Prompts. A `negative` of "NegativePlaceholder" leaves it out: one conditional call whatever `cfg`,
        which ComfyUI then hands to models that take guidance as an input (none here does).
    cfg : float
        0 to 100.
    sampler_name : str
        One of ComfyUI's 42.
    scheduler : str
        One of ComfyUI's nine, or "AYS SDXL", "AYS SD1", "AYS SVD". The node's "GITS[coeff=1.2]" is not here.
    sigma_factor : float
        Above 0, to 10: what the levels of every call are multiplied by.

    Raises
    ------
    ValueError, TypeError
        For an unknown name (the closest one is offered) and numbers out of range.

    Source: the node's behaviour, ComfyUI-Impact-Pack at 727295b5.

    Examples
    --------
    >>> import toolkit as tk
    >>> tk.comfy.KSamplerAdvanced(positive=3, sampler_name="dpmpp_2m", scheduler="karras").cfg
    8.0
    """

    positive: Any
    negative: Any = None
    cfg: float = 8.0
    sampler_name: str = "euler"
    scheduler: str = "simple"
    sigma_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.sampler_name not in SAMPLERS:
            raise unknown("sampler_name", self.sampler_name, SAMPLERS, f'{PROVIDER}, sampler_name="{{}}")')
        if self.scheduler == GITS:
            why = "this package does not hold that table; tk.fit_schedule makes one for your own model"
            raise bad("scheduler", GITS, why, f'{PROVIDER}, scheduler="karras")')
        if self.scheduler not in (*SCHEDULERS, *TABLES):
            names = (*SCHEDULERS, *TABLES)
            raise unknown("scheduler", self.scheduler, names, f'{PROVIDER}, scheduler="{{}}")')
        between("cfg", self.cfg, 0.0, 100.0, f"{PROVIDER}, cfg=8.0)")
        between("sigma_factor", self.sigma_factor, 0.0, 10.0, f"{PROVIDER}, sigma_factor=1.0)")
        if self.sigma_factor == 0:
            why = "above 0: at level 0 there is no step to take"
            raise bad("sigma_factor", self.sigma_factor, why, f"{PROVIDER}, sigma_factor=1.0)")

    @property
    def schedule(self) -> str:
        """The scheduler by the name of ``tk.SCHEDULES``."""
        return TABLES.get(self.scheduler, self.scheduler)


@dataclass(frozen=True, eq=False)
class RegionalPrompt:
    """Impact Pack's `RegionalPrompt`: a mask, what samples it, and how its start noise varies.

    Parameters
    ----------
    mask : array (y, x), leading axes of length 1 allowed
        Weights in 0..1, at any resolution; all masks of a run have one shape.
    sampler : KSamplerAdvanced
    variation_seed : int
        0 to 2^64 - 1.
    variation_strength : float
        0 to 1: how much of the noise is that of `variation_seed`.
    variation_method : {"linear", "slerp"}

    Raises
    ------
    ValueError, TypeError
        For a mask that is none, names and numbers that the node does not have.

    Source: the node's behaviour, ComfyUI-Impact-Pack at 727295b5.

    Examples
    --------
    >>> import torch, toolkit as tk
    >>> mask = torch.zeros(64, 64)
    >>> mask[:, :32] = 1.0
    >>> tk.comfy.RegionalPrompt(mask, tk.comfy.KSamplerAdvanced(positive=3))
    RegionalPrompt(mask 64 x 64, KSamplerAdvanced(positive=3, ..., sigma_factor=1.0))
    """

    mask: Any
    sampler: KSamplerAdvanced
    variation_seed: int = 0
    variation_strength: float = 0.0
    variation_method: str = "linear"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mask", _plane(self.mask))
        if not isinstance(self.sampler, KSamplerAdvanced):
            line = "tk.comfy.RegionalPrompt(mask, tk.comfy.KSamplerAdvanced(positive=0))"
            raise bad("sampler", self.sampler, "a tk.comfy.KSamplerAdvanced", line, TypeError)
        inputs.whole("variation_seed", self.variation_seed, 0, LARGEST_SEED, f"{PROMPT}, variation_seed=0)")
        line = f"{PROMPT}, variation_strength=0.0)"
        between("variation_strength", self.variation_strength, 0.0, 1.0, line)
        if self.variation_method not in METHODS:
            line = f'{PROMPT}, variation_method="{{}}")'
            raise unknown("variation_method", self.variation_method, METHODS, line)

    def __repr__(self) -> str:
        height, width = self.mask.shape
        varied = f", {self.variation_strength:g} of noise {self.variation_seed} by {self.variation_method}"
        varied = varied if self.variation_strength else ""
        return f"RegionalPrompt(mask {height} x {width}, {self.sampler!r}{varied})"


def between(name: str, given: Any, low: float, high: float, line: str) -> float:
    """A number from low to high."""
    if not low <= inputs.number(name, given, line) <= high:
        raise bad(name, given, f"a number from {low:g} to {high:g}", line)
    return float(given)


def _plane(given: Any) -> torch.Tensor:
    """A mask as a 2-D float32 tensor of its own, on the host."""
    line = "tk.comfy.RegionalPrompt(torch.ones(64, 64), sampler)"
    given = given.values if hasattr(given, "dims") else given
    values = given.detach().cpu() if isinstance(given, torch.Tensor) else given
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        values = torch.from_numpy(values.astype(np.float64))
    if not isinstance(values, torch.Tensor) or values.is_complex():
        wanted = "an array (y, x) of weights in 0..1"
        raise bad("mask", getattr(given, "dtype", type(given)), wanted, line, TypeError)
    if values.ndim < 2 or 0 in values.shape or values.shape[:-2].numel() != 1:
        wanted = "one mask a region, of shape (y, x); leading axes of length 1 are dropped"
        raise bad("mask", tuple(values.shape), wanted, line)
    mask = values.reshape(values.shape[-2:]).to(torch.float32, copy=True)
    if not bool(torch.isfinite(mask).all()) or float(mask.min()) < 0 or float(mask.max()) > 1:
        shown = f"values from {float(mask.min()):.4g} to {float(mask.max()):.4g}"
        raise bad("mask", shown, "weights in 0..1", line)
    return mask


def base_mask(masks: Sequence[torch.Tensor]) -> torch.Tensor:
    """1 where every mask is 0, (y, x) at their resolution: any weight above 0 takes a pixel from the base."""
    return (torch.stack(tuple(masks)).ceil().int() == 0).all(0).float()


def region_mask(mask: torch.Tensor, overlap_factor: int) -> torch.Tensor:
    """A mask as the node samples in it: 0 or 1, resized to its swapped size, grown by about half the factor.

    With k = `overlap_factor` and p = ceil((k - 1)/2), a pixel is 1 if any from i - p to i - p + k - 1 rounds
    to 1 (0.5 to 0): the mask grows p pixels down and right, and k - 1 - p up and left.
    """
    height, width = mask.shape
    swapped = fit(mask, width, height)[0]  # (x, y) of the given one: the same for square masks alone
    hard = torch.round(swapped)
    if overlap_factor > 0:
        hard = _grown(_grown(hard, overlap_factor).T, overlap_factor).T
    return hard.contiguous()


def _grown(hard: torch.Tensor, size: int) -> torch.Tensor:
    """A 0/1 mask grown along its rows, by counts up to each row: a window of any size costs the same."""
    length, before = len(hard), size // 2  # = ceil((size - 1)/2)
    counts = torch.cat([torch.zeros(1, hard.shape[1], dtype=torch.int64), hard.long().cumsum(0)])
    first = torch.arange(length) - before
    return (counts[(first + size).clamp(0, length)] > counts[first.clamp(0, length)]).float()


def start_noise(seed: int, shape: Sequence[int], index: Sequence[int] | None,
                prompts: Sequence[RegionalPrompt]) -> tuple[torch.Tensor, bool]:  # fmt: skip
    """Unit noise of the run, varied region by region, float64; and whether a variation left a gap in it.

    Where a mask, fitted to the latent, is neither 0 nor 1, its region leaves no noise at all.
    """
    noise, gap = unit(seed, shape, index).double(), False
    for prompt in prompts:
        if prompt.variation_strength == 0:
            continue
        other = unit(prompt.variation_seed, shape).double()
        own = fit(prompt.mask, *shape[-2:])[0]  # as given: neither rounded nor grown
        varied = _mixed(noise, other, float(prompt.variation_strength), prompt.variation_method)
        kept = torch.where(own == 0, noise, torch.zeros_like(noise))
        noise = torch.where(own == 1, varied, kept)
        gap |= bool(((own > 0) & (own < 1)).any())
    return noise, gap


def _mixed(noise: torch.Tensor, other: torch.Tensor, v: float, method: str) -> torch.Tensor:
    """A share v of other noise, of unit std: linear over its root sum of squares, or slerp of each sample."""
    if method == "linear":
        return ((1.0 - v) * noise + v * other) / ((1.0 - v) ** 2 + v**2) ** 0.5
    # a sample of no noise at all, after gaps of earlier masks, is orthogonal to any other
    a, b = (n / torch.linalg.vector_norm(n, dim=(1, 2, 3), keepdim=True).clamp_min(1e-30)
            for n in (noise, other))  # fmt: skip
    w = (a * b).sum((1, 2, 3), keepdim=True).clamp(-1.0, 1.0).acos()
    # of equal noises the formula is 0/0, and its limit is that noise
    mixed = (((1.0 - v) * w).sin() * noise + (v * w).sin() * other) / w.sin()
    return torch.where(w.sin() > 1e-6, mixed, noise)
