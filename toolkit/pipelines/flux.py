"""Flux: a transformer over latents in packs of 2 x 2, trained by flow matching; dev is guidance-distilled."""

from typing import Any

import torch

from .adapter import Pipeline
from .texts import kept

GUIDANCE = 3.5  # what Flux dev is told, where the caller does not say
SIDE = 2  # latent pixels of a pack's side


def pack(x: torch.Tensor) -> torch.Tensor:
    """Latents (row, channel, y, x) as tokens (row, y/2 * x/2, 4 channel): each is a square of 2 x 2."""
    n, channels, height, width = x.shape
    cut = x.reshape(n, channels, height // SIDE, SIDE, width // SIDE, SIDE)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(n, -1, channels * SIDE * SIDE)


def unpack(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """What `pack` made of latents of that size, back."""
    n, _, numbers = tokens.shape
    cut = tokens.reshape(n, height // SIDE, width // SIDE, numbers // SIDE**2, SIDE, SIDE)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(n, numbers // SIDE**2, height, width)


class Flux(Pipeline):
    """A `FluxPipeline`: prompts are texts for CLIP and T5, None is "".

    ``tk.load(..., guidance=3.5)`` is what dev was distilled to be told; `cfg` of a run is guidance besides.
    Its levels are shifted by the size of the image: ``model.sized(height, width)``.
    """

    component, multiple = "transformer", SIDE
    takes = ("encoder_hidden_states", "pooled_projections")

    def latent_channels(self) -> int:
        return int(self.network.config.in_channels) // SIDE**2

    def _clock(self, shape: tuple[int, ...]) -> None:
        super()._clock(shape)
        self.guidance = None
        if self.network.config.guidance_embeds:
            self.guidance = GUIDANCE if self.asked.guidance is None else float(self.asked.guidance)

    def recorded(self) -> dict[str, Any]:
        return {**super().recorded(), **({} if self.guidance is None else {"guidance": self.guidance})}

    def time(self, sigma: float) -> float:
        return sigma

    def encoded(self, prompt: str | None, negative: bool) -> dict[str, torch.Tensor]:
        text, pooled, _ = self.pipe.encode_prompt(prompt=prompt or "", prompt_2=None, device=self.device)
        return {"encoder_hidden_states": text, "pooled_projections": pooled}

    def ask(self, x: torch.Tensor, time: torch.Tensor, conditions: list) -> torch.Tensor:
        height, width = x.shape[-2:]
        told = self._stacked(conditions, x)
        guidance = None if self.guidance is None else torch.full_like(time, self.guidance)
        out = self._forward(
            pack(x), timestep=time, guidance=guidance, return_dict=False, **told,
            txt_ids=self._place(x, told["encoder_hidden_states"].shape[1], 1, False),
            img_ids=self._place(x, height // SIDE, width // SIDE, True),
        )[0]  # fmt: skip
        return unpack(out, height, width)

    def _place(self, x: torch.Tensor, rows: int, columns: int, image: bool) -> torch.Tensor:
        """Where each token is, (token, 3): row and column of the image; zeros for the text."""

        def ids() -> torch.Tensor:
            found = torch.zeros(rows, columns, 3)
            if image:
                found[..., 1], found[..., 2] = torch.arange(rows)[:, None], torch.arange(columns)
            return found.reshape(-1, 3).to(x)

        return kept(self._batches, (rows, columns, image, x.device, x.dtype), ids)
