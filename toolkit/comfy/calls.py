"""One denoising call, which all solver nodes are made of: start, mask, solver, end. Here of one hop.

A call takes and gives a latent in the space of the VAE. It knows nothing of the call before it: no history,
no noise of its own but what a seed says.
"""

from typing import NamedTuple

import numpy as np
import torch

from ..denoisers import Denoised, Denoiser
from ..loop import steps as walk
from ..masks import Masked
from ..solvers import SOLVERS
from ..solvers.predictor import UNIPC_END
from .grids import float32_sigmas
from .latents import factors, fit, inward
from .streams import Streams, unit

UNI_PC, SA_SOLVER = ("uni_pc", "uni_pc_bh2"), ("sa_solver", "sa_solver_pece")
DPM_SOLVER = ("dpm_fast", "dpm_adaptive")  # they end at the last positive level
MAX_DENOISE = 1e-5  # relative: levels as near as that to the model's highest one count as it


class Area(NamedTuple):
    """A mask fitted to the latent, and 1 - mask as float32 rounds it; each (1, 1, y, x), float64."""

    mask: torch.Tensor
    rest: torch.Tensor

    def mix(self, inside: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
        """LatentCompositeMasked: one latent inside the mask, another outside."""
        return self.mask * inside + self.rest * outside


def area(mask: torch.Tensor, latent: torch.Tensor) -> Area:
    """A 2-D float32 mask of any resolution, fitted to a latent (sample, channel, y, x)."""
    fitted = fit(mask, *latent.shape[-2:])[None].to(latent.device)
    return Area(fitted.double(), (1.0 - fitted).double())


class Pinned(Masked):
    """The mask in the denoiser as ComfyUI has it: the unconditional answer is not masked.

    So what the cfg_pp names do with it moves the latent outside the mask too.
    """

    def denoise(self, x: torch.Tensor, sigma: float, uncond: bool = False) -> Denoised:
        """x0 inside the mask by the model, outside the original; the unconditional answer as it comes."""
        seen, mask, pinned = self.shown(x, sigma)
        x0, u = self.inner.denoise(seen, sigma, uncond)
        return Denoised(mask * x0 + pinned, u)


class Caller:
    """One-step calls of one sampler with its own prompts, schedule and cfg.

    Parameters
    ----------
    denoiser : Denoiser
    sampler, scheduler : str
        Of ``tk.SOLVERS`` and ``tk.SCHEDULES``.
    steps : int
        Of the whole schedule, G, of the sampler's name.
    factor : float
        What its levels are multiplied by (sigma_factor).
    streams : Streams
    """

    def __init__(self, denoiser: Denoiser, sampler: str, scheduler: str, steps: int, factor: float,
                 streams: Streams):  # fmt: skip
        self.denoiser, self.sampler, self.factor, self.streams = denoiser, sampler, factor, streams
        self.levels = float32_sigmas(denoiser.levels, scheduler, steps, sampler)
        self.flow = denoiser.path.name == "FLOW"
        self.scale, self.shift = factors(denoiser)

    def hop(self, i: int, leftover: bool = True, ratio: float = 1.0) -> tuple[float, float] | None:
        """Levels of the call i -> i + 1, float32 values; None where the schedule ends before it."""
        if not 0 <= i < len(self.levels) - 1:
            return None
        ends = np.array([self.levels[i], self.levels[i + 1] if leftover else 0.0], np.float32)
        s, t = (ends * np.float32(ratio * self.factor)).tolist()
        return s, t

    def outward(self, x: torch.Tensor) -> torch.Tensor:
        """From model space to the space of the VAE."""
        return x / self.scale + self.shift

    def start(self, x: torch.Tensor, i: int, noise: torch.Tensor | None, ratio: float) -> torch.Tensor:
        """The state that the call i -> i + 1 starts from, in the space of the VAE; x where there is none."""
        hop = self.hop(i, True, ratio)
        return x if hop is None else self.outward(at_start(self.denoiser, self._inward(x), hop[0], noise))

    def __call__(self, x: torch.Tensor, where: Area, i: int, leftover: bool = True,
                 noise: torch.Tensor | None = None, ratio: float = 1.0) -> torch.Tensor:  # fmt: skip
        """The call i -> i + 1 on the latent x: its state with `leftover`, else its x0.

        `noise` is unit noise, or None for 0. x itself comes back where the schedule ends before i.
        """
        hop = self.hop(i, leftover, ratio)
        if hop is None:
            return x
        latent = self._inward(x)
        outside = noise
        if self.sampler == "ddim":  # whatever the start noise was
            outside = unit(self.streams.seed + 1, latent.shape).to(latent)
        model = Pinned(self.denoiser, where.mask, latent, outside, where.rest)
        y, x0, end = self._solved(model, at_start(self.denoiser, latent, hop[0], noise), *hop, i)
        if not leftover and x0 is not None:
            return self.outward(x0)
        return self.outward(y / alpha(end) if self.flow else y)

    def _inward(self, x: torch.Tensor) -> torch.Tensor:
        return inward(x, self.scale, self.shift)

    def _solved(self, model: Pinned, x: torch.Tensor, s: float, t: float,
                i: int) -> tuple[torch.Tensor, torch.Tensor | None, float]:  # fmt: skip
        """State after the hop, x0 that the solver last saw (None: none), and the level it ends at."""
        name = self.sampler
        still = name in SA_SOLVER and t > 0  # a solver whose last step is its corrector, which has no past
        still |= name in DPM_SOLVER and t in (0.0, s)  # no positive level to go to
        if name in UNI_PC or still:
            # asked for nothing but the x0 that comes out; dpm_adaptive does not even ask
            x0 = None if name == "dpm_adaptive" else model.denoise(x, s).x0
            if still:
                return x, x0, t
            t = t or UNIPC_END
            return x * float(np.sqrt((1.0 + t * t) / (1.0 + s * s))), x0, t
        solver, x0 = SOLVERS[name], None
        noise = self.streams.of(name, self.levels, (s, t), i) if solver.stochastic else None
        for step in walk(model, solver, x, (s, t), noise=noise):
            x, x0 = step.x_next, step.seen.x0
        return x, x0, t


class Recovered:
    """A sampler's calls, each followed by one of a recovery sampler on what it leaves inside the mask.

    Parameters
    ----------
    first : Caller, optional
        None where only the recovery sampler runs.
    again : Caller, optional
        The recovery sampler; None where there is none.
    ratios : (float, float)
        What the levels of the two are multiplied by.
    """

    def __init__(self, first: Caller | None, again: Caller | None, ratios: tuple[float, float]):
        self.first, self.again, self.ratios = first, again, ratios
        self.callers = [caller for caller in (first, again) if caller is not None]

    def start(self, x: torch.Tensor, i: int, noise: torch.Tensor | None,
              renoise: torch.Tensor | None) -> torch.Tensor:  # fmt: skip
        """The state that its first call starts from."""
        if self.first is None:
            return self.again.start(x, i, renoise, self.ratios[1])
        return self.first.start(x, i, noise, self.ratios[0])

    def __call__(self, x: torch.Tensor, where: Area, i: int, leftover: bool = True,
                 noise: torch.Tensor | None = None,
                 renoise: torch.Tensor | None = None) -> torch.Tensor:  # fmt: skip
        """The call or the two of i -> i + 1; `renoise` is the noise of the second."""
        y = x if self.first is None else self.first(x, where, i, leftover, noise, self.ratios[0])
        if self.again is None:
            return y
        return self.again(where.mix(y, x), where, i, leftover, renoise, self.ratios[1])


def at_start(denoiser: Denoiser, latent: torch.Tensor, s: float, noise: torch.Tensor | None) -> torch.Tensor:
    """L + N s on VE, N times sqrt(1 + s^2) at the model's highest level; the path's mix on FLOW."""
    flow = denoiser.path.name == "FLOW"
    x = alpha(s) * latent if flow else latent
    if noise is None:
        return x
    top = denoiser.levels.sigma_max
    if not flow and (s > top or abs(s - top) <= MAX_DENOISE * max(s, top)):
        s = float(np.sqrt(np.float32(1.0) + np.float32(s) ** 2))  # in float32, as upstream
    return x + s * noise


def alpha(sigma: float) -> float:
    """1 - sigma, in float32 as upstream."""
    return float(np.float32(1.0) - np.float32(sigma))
