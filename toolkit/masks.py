"""What of a picture is kept: in the denoiser, where the model sees the original noised to this level.

What comes out is a denoiser again, so every solver keeps its history and every inverse applies. Grey is how
much of the model's answer a pixel takes or, in a differential mask (2306.00950), when it begins to.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .denoisers import Denoised, Denoiser

NEVER = -1.0
NEAR = 1e-9  # relative: a stage computes its sigma, and may miss the level by rounding


def joining(mask: torch.Tensor, levels: Sequence[float]) -> torch.Tensor:
    """The level from which each pixel is worked on: of hop round((1 - m) n) of n falling levels.

    So a pixel of value m is sampled as far as img2img of strength m would; NEVER where that leaves no hop.
    """
    hops = len(levels) - 1
    table = torch.tensor([*levels[:-1], NEVER], dtype=mask.dtype, device=mask.device)
    return table[torch.floor((1.0 - mask) * hops + 0.5).long()]


def joined(since: torch.Tensor, sigma: float) -> torch.Tensor:
    """1 where a pixel that joins at the level `since` is worked on at sigma, else 0."""
    return (since >= sigma * (1.0 - NEAR)).to(since.dtype)


def free(mask: torch.Tensor | None, layout: Any, levels: Sequence[float] | None = None) -> Any:
    """What each pixel takes of the run: a mask, or a function of sigma that gives one; None: all of it.

    Parameters
    ----------
    mask : Tensor (sample, 1, y, x), optional
    layout : Layout, optional
        What its regions keep is taken off.
    levels : sequence of float, optional
        Those of the run, falling, where the mask is differential.
    """
    keeps = layout is not None and layout.keeps
    if mask is None and not keeps:
        return None
    if not keeps and levels is None:
        return mask
    since = None if mask is None or levels is None else joining(mask, levels)

    def at(sigma: float) -> torch.Tensor:
        shown = mask if since is None else joined(since, sigma)
        rest = 1.0 - layout.at(sigma).kept if keeps else 1.0
        return rest if shown is None else shown * rest

    return at


class Masked:
    """``D = m D(m x + (1 - m)(alpha L + sigma N)) + (1 - m) L``, with m = 1 where the model works.

    Parameters
    ----------
    inner : Denoiser
    mask : Tensor (sample, 1, y, x), or a function of sigma that gives one
        Weights in 0..1.
    latent : Tensor (sample, channel, y, x)
        L, the original.
    noise : Tensor, optional
        N, unit noise of the shape of `latent`; None is 0, and then the outside stays clean.
    rest : Tensor, optional
        1 - m as somebody else rounds it.
    """

    def __init__(self, inner: Denoiser, mask: torch.Tensor | Callable[[float], torch.Tensor],
                 latent: torch.Tensor, noise: torch.Tensor | None = None,
                 rest: torch.Tensor | None = None):  # fmt: skip
        self.inner, self.model, self.path = inner, inner.model, inner.path
        self.levels, self.channels = inner.levels, inner.channels
        # of regions under the mask: what they say of an answer is said of ours
        self._alias, self.about = getattr(inner, "alias", None), getattr(inner, "about", None)
        self._mask, self._latent, self._noise = mask, latent, noise
        self._fixed = None if callable(mask) else self._parts(mask, rest)

    def _parts(self, mask: torch.Tensor, rest: torch.Tensor | None = None) -> tuple:
        """The mask, and the original and its noise where it leaves them."""
        rest = 1.0 - mask if rest is None else rest
        return mask, rest * self._latent, None if self._noise is None else rest * self._noise

    @property
    def calls(self) -> int:
        """Model calls so far."""
        return self.inner.calls

    @property
    def rows(self) -> int:
        """Network rows so far."""
        return self.inner.rows

    def bind(self, samples: int) -> None:
        """Resolve the conditions of a batch."""
        self.inner.bind(samples)

    def shown(self, x: torch.Tensor, sigma: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the model is shown at a level, the mask there, and the original where that leaves it."""
        mask, pinned, noise = self._fixed or self._parts(self._mask(sigma))
        seen = mask * x + self.path.alpha(sigma) * pinned
        return seen if noise is None else seen + sigma * noise, mask, pinned

    def denoise(self, x: torch.Tensor, sigma: float, uncond: bool = False) -> Denoised:
        """x0 inside the mask by the model, outside the original."""
        seen, mask, pinned = self.shown(x, sigma)
        x0, u = self.inner.denoise(seen, sigma, uncond)
        # the unconditional answer too, else the cfg_pp names move what is masked (in ComfyUI they do)
        answer = mask * x0 + pinned
        if self._alias is not None:
            self._alias(x0, answer)
        return Denoised(answer, None if u is None else mask * u + pinned)

    def __repr__(self) -> str:
        return f"Masked({self.inner!r})"
