"""A mask in the denoiser: outside it the model sees the original, noised to this level, and answers it.

What comes out is a denoiser again, so every solver keeps its history and every inverse applies.
"""

import torch

from .denoisers import Denoised, Denoiser


class Masked:
    """``D = m D(m x + (1 - m)(alpha L + sigma N)) + (1 - m) L``, with m = 1 where the model works.

    Parameters
    ----------
    inner : Denoiser
    mask : Tensor (sample, 1, y, x)
        Weights in 0..1.
    latent : Tensor (sample, channel, y, x)
        L, the original.
    noise : Tensor, optional
        N, unit noise of the shape of `latent`; None is 0, and then the outside stays clean.
    rest : Tensor, optional
        1 - m as somebody else rounds it.
    """

    def __init__(self, inner: Denoiser, mask: torch.Tensor, latent: torch.Tensor, noise=None, rest=None):
        self.inner, self.mask, self.model, self.path = inner, mask, inner.model, inner.path
        self.levels, self.channels = inner.levels, inner.channels
        # of regions under the mask: what they say of an answer is said of ours
        self._alias, self.about = getattr(inner, "alias", None), getattr(inner, "about", None)
        rest = 1.0 - mask if rest is None else rest
        self._pinned = rest * latent
        self._pinned_noise = None if noise is None else rest * noise

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

    def denoise(self, x: torch.Tensor, sigma: float, uncond: bool = False) -> Denoised:
        """x0 inside the mask by the model, outside the original."""
        outside = self.path.alpha(sigma) * self._pinned
        if self._pinned_noise is not None:
            outside = outside + sigma * self._pinned_noise
        x0, u = self.inner.denoise(self.mask * x + outside, sigma, uncond)
        # the unconditional answer too, else the cfg_pp names move what is masked (in ComfyUI they do)
        shown = self.mask * x0 + self._pinned
        if self._alias is not None:
            self._alias(x0, shown)
        return Denoised(shown, None if u is None else self.mask * u + self._pinned)

    def __repr__(self) -> str:
        return f"Masked({self.inner!r})"
