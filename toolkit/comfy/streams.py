"""Where ComfyUI's seeded noise comes from: a generator seeded anew by each call, or torchsde's Brownian tree.

Always float32 on the CPU, whatever the state's dtype and device, and never torch's global generator.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..noise import Keyed

# a path over all levels of the sampler's name, so that its calls share it; over one hop alone
WHOLE = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde_gpu", "dpmpp_2m_sde_gpu", "dpmpp_3m_sde_gpu")
HOP = ("dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu")


def unit(seed: int, shape: Sequence[int], index: Sequence[int] | None = None) -> torch.Tensor:
    """Unit noise of a seed, (sample, channel, y, x), float32.

    Drawn at once; with an `index` (a latent's batch_index) sample by sample, and picked by it.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    host = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    if index is None:
        return torch.randn(tuple(shape), **host)
    drawn = {}
    for k in range(max(index) + 1):
        one = torch.randn((1, *shape[1:]), **host)
        if k in index:
            drawn[k] = one
    return torch.cat([drawn[k] for k in index])


class Streams:
    """The noise that the solvers of one run draw: all of it from one seed, `shape` at a time.

    Without torchsde the names that need its tree get keyed draws of ours, independent from step to step.
    """

    def __init__(self, seed: int, shape: Sequence[int], device: Any, steps: int):
        self.seed, self.shape, self.device, self.steps = seed, tuple(shape), device, steps
        self._paths: dict[tuple[float, float], Any] = {}

    @cached_property
    def torchsde(self) -> Any:
        """The package, or None where it is not installed."""
        try:
            import torchsde
        except ImportError:
            return None
        return torchsde

    def of(self, sampler: str, levels: np.ndarray, hop: tuple[float, float], i: int) -> Any:
        """What a call of `sampler` from level i draws from: a function (s, t), or keyed noise."""
        if sampler not in WHOLE + HOP:
            return self._fresh()
        if self.torchsde is None:
            return Keyed(self.seed, self.shape, device=self.device, rungs=self.steps).at(i)
        own = [s for s in (hop if sampler in HOP else levels.tolist()) if s > 0]
        return self._along(min(own), max(own), kept=sampler in WHOLE)

    def _fresh(self) -> Callable[[float, float], torch.Tensor]:
        """Independent draws, the same ones in every call."""
        generator = torch.Generator("cpu").manual_seed(self.seed)

        def draw(s: float, t: float) -> torch.Tensor:
            drawn = torch.randn(self.shape, generator=generator, dtype=torch.float32, device="cpu")
            return drawn.to(self.device, torch.float64)

        return draw

    def _along(self, low: float, high: float, kept: bool) -> Callable[[float, float], torch.Tensor]:
        """Increments of a Brownian path in sigma from `low` to `high`, over the root of their length."""
        host = {"dtype": torch.float32, "device": "cpu"}
        path = self._paths.get((low, high))
        if path is None:
            ends = torch.tensor(low, **host), torch.tensor(high, **host)
            zero = torch.zeros(self.shape, **host)
            path = self.torchsde.BrownianTree(ends[0], zero, ends[1], entropy=self.seed)
            if kept:
                self._paths[low, high] = path

        def draw(s: float, t: float) -> torch.Tensor:
            a, b = torch.tensor(min(s, t), **host), torch.tensor(max(s, t), **host)
            with warnings.catch_warnings():  # a level beyond its ends is taken for the end, as in ComfyUI
                warnings.filterwarnings("ignore", category=UserWarning, module="torchsde")
                moved = path(a.clamp(low, high), b.clamp(low, high))
            return (-moved / (b - a).sqrt()).to(self.device, torch.float64)

        return draw
