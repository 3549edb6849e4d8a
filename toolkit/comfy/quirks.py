"""What Impact Pack's regional sampler does and `tk.regional` does not: by name, and when it holds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from ..solvers import SOLVERS
from .calls import DPM_SOLVER, SA_SOLVER, UNI_PC, Area, Recovered
from .streams import HOP, WHOLE

# name: what the node does; what tk.regional does
REGIONAL = {
    "mask_complement_float32": ("rounds 1 - mask to float32", "weighs in float64"),
    "range_clamped": ("clamps end_at_step to steps", "refuses levels that are not there"),
    "soft_holes": ("leaves pixels of a weak mask to nobody, with their noise", "gives the base what is left"),
    "masks_rounded": ("rounds masks to 0 and 1", "takes soft masks as weights"),
    "mask_swapped_grid": ("resamples masks through swapped sides", "resamples them as they are"),
    "growth_asymmetric": ("grows masks one pixel more down and right", "grows them evenly"),
    "stepped_twice": (
        "steps pixels again that are a level down already: in regions at the start, and where masks meet",
        "takes every pixel one step down",
    ),
    "history_dropped": ("restarts multistep samplers at every step, as Euler", "keeps their history"),
    "same_noise_every_call": ("draws the same noise in every call", "draws fresh noise at every step"),
    "ddim_outside_noise": ("shows ddim other noise outside the mask", "has no noise outside a mask"),
    "no_step": ("makes no step with these samplers", "makes it"),
    "last_step_lost": ("throws the last step away", "goes to sigma 0"),
    "leftover_ignored": ("ignores return_with_leftover_noise", "ends where the levels end"),
    "regions_unfinished": ("finishes the base alone, the regions one level short", "finishes all"),
    "noise_never_added": ("adds no noise in so short a range", "adds it to any start"),
    "variation_gap": ("leaves no noise where a varied mask is fractional", "keeps unit noise at seams"),
    "recovery": ("samples each step again, to recover lost noise", "has no need of it"),
    "recovery_noise_again": ("adds the start noise again, without variation", "adds it once"),
    "grids_differ": ("steps regions at other levels than the base", "steps all on one grid"),
    "flow_region_noise_lost": (
        "loses the noise of regions that start at sigma 1",
        "starts all pixels on the path's mix",
    ),
    "tree_replaced": (
        "draws from torchsde's Brownian tree: it is not installed, these draws are the toolkit's own",
        "has keyed noise of its own",
    ),
}


class Facts(NamedTuple):
    """What a run is made of, as far as the quirks ask."""

    base: Recovered
    regions: Sequence[Recovered]
    masks: Sequence[torch.Tensor]  # as given
    areas: Sequence[Area]  # fitted: the base's, then the regions'
    add_noise: bool
    steps: int
    start: int
    end: int  # as given
    last: int  # clamped
    overlap_factor: int
    restore: bool
    leftover: bool
    gap: bool


def regional_quirks(run: Facts) -> list[str]:
    """Names of `REGIONAL` whose condition holds in the run, in its order."""
    loop, base = run.last - run.start > 1, run.base
    # who makes what comes out: with restore, the last call of the base does not
    makers = ([base, *run.regions] if loop else []) + ([] if run.restore else [base])
    noise = run.add_noise and loop and any(c.hop(run.start) is not None for c in base.callers)
    soft = any(_fractional(mask) for mask in run.masks)
    held = {
        "mask_complement_float32": any(_fractional(area.mask) for area in run.areas),
        "range_clamped": run.end > run.steps,
        "soft_holes": soft,
        "masks_rounded": soft,
        "mask_swapped_grid": run.masks[0].shape[0] != run.masks[0].shape[1],
        "growth_asymmetric": run.overlap_factor > 0 and run.overlap_factor % 2 == 0,
        "stepped_twice": loop and (noise or _meet(run.areas)),
        **_of_samplers(run, loop, {c.sampler for maker in makers for c in maker.callers}),
        "last_step_lost": run.restore,
        "leftover_ignored": run.restore,
        "regions_unfinished": not run.restore,
        "noise_never_added": run.add_noise and not noise,
        "variation_gap": run.gap and noise and base.first is not None,
        "recovery": any(maker.again is not None for maker in makers),
        "recovery_noise_again": noise and base.again is not None,
        "grids_differ": loop and _differ([c for maker in makers for c in maker.callers]),
        "flow_region_noise_lost": loop and any(_starts_at_one(r, run.start) for r in run.regions),
    }
    return [name for name in REGIONAL if held[name]]


def warning(quirks: Sequence[str]) -> str:
    """The one warning of a run: its quirks by name, each with what tk.regional does instead."""
    said = "; ".join(f"{name}: it {REGIONAL[name][0]} (tk.regional {REGIONAL[name][1]})" for name in quirks)
    return f"RegionalSamplerAdvanced, with all that the node does: {said}."


def _of_samplers(run: Facts, loop: bool, names: set[str]) -> dict[str, bool]:
    """Quirks of the samplers that make what comes out."""
    # drawn from a generator that each call seeds anew; or from a path over one hop, which is as new each time
    fresh = {n for n in names if SOLVERS[n].stochastic and n not in (*WHOLE, *SA_SOLVER)}
    multistep = {n for n in names if SOLVERS[n].memory and SOLVERS[n].adaptive is None}
    return {
        "history_dropped": loop and bool(multistep),
        "same_noise_every_call": loop and bool(fresh),
        "ddim_outside_noise": "ddim" in names,
        "no_step": bool(names & {*UNI_PC, *SA_SOLVER}) or _stays(run),
        "tree_replaced": bool(names & {*WHOLE, *HOP}) and run.base.callers[0].streams.torchsde is None,
    }


def _stays(run: Facts) -> bool:
    """Whether the last call of the base, to 0, is one of DPM-Solver's, which end above it."""
    if run.restore:
        return False
    caller = run.base.callers[-1]
    hop = caller.hop(run.last - 1, run.leftover)
    to_zero = hop is not None and hop[1] == 0 and caller.sampler in DPM_SOLVER
    return to_zero and (run.leftover or caller.sampler == "dpm_adaptive")  # else x0 comes out


def _fractional(mask: torch.Tensor) -> bool:
    return bool(((mask > 0) & (mask < 1)).any())


def _meet(areas: Sequence[Area]) -> bool:
    """Whether a pixel belongs to two of the masks."""
    return bool((torch.stack([area.mask > 0 for area in areas]).sum(0) > 1).any())


def _differ(callers: Sequence) -> bool:
    """Whether samplers are at different levels after the same step."""
    first, *others = [caller.levels * np.float32(caller.factor) for caller in callers]
    return any(not np.array_equal(first, other) for other in others)


def _starts_at_one(region: Recovered, start: int) -> bool:
    """Whether the first call of a region starts at FLOW's sigma 1, where nothing of its latent counts."""
    caller, ratio = region.callers[0], region.ratios[0 if region.first is not None else 1]
    hop = caller.hop(start, ratio=ratio)
    return caller.flow and hop is not None and np.float32(1.0) - np.float32(hop[0]) == 0
