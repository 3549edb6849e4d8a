"""Stable Diffusion 3: a transformer over latents, trained by flow matching (2403.03206)."""

import torch

from .adapter import Pipeline


class SD3(Pipeline):
    """A `StableDiffusion3Pipeline`: prompts are texts for CLIP and, where it is there, T5; None is ""."""

    component = "transformer"
    takes = ("encoder_hidden_states", "pooled_projections")

    @property
    def multiple(self) -> int:
        """Sides of a latent are cut into patches."""
        return int(self.network.config.patch_size)

    @property
    def largest(self) -> int:
        """It has learnt so many places."""
        return int(self.network.config.pos_embed_max_size) * self.multiple

    def time(self, sigma: float) -> float:
        return sigma * self.unit

    def encoded(self, prompt: str | None, negative: bool) -> dict[str, torch.Tensor]:
        text, _, pooled, _ = self.pipe.encode_prompt(
            prompt=prompt or "", prompt_2=None, prompt_3=None, device=self.device,
            do_classifier_free_guidance=False,
        )  # fmt: skip
        return {"encoder_hidden_states": text, "pooled_projections": pooled}

    def ask(self, x: torch.Tensor, time: torch.Tensor, conditions: list) -> torch.Tensor:
        return self._forward(x, timestep=time, return_dict=False, **self._stacked(conditions, x))[0]
