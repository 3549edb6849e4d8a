"""Stable Diffusion 1, 2 and XL: UNets conditioned on text (2112.10752, 2307.01952)."""

from typing import Any

import torch

from ..errors import bad
from .adapter import Pipeline
from .texts import kept

ADDED = (None, "text", "text_time")  # what a network may take beside its text; "text_time" is SDXL's
AESTHETIC = {
    False: 6.0,
    True: 2.5,
}  # SDXL's refiner is told how beautiful the picture is; negative: how little
GUIDANCE = 7.5  # of networks that are told it (LCM), where the caller does not say


class Stable(Pipeline):
    """A pipeline around a `UNet2DConditionModel`: prompts are texts, None is the empty one.

    A negative of None is, where the pipeline says so (SDXL's ``force_zeros_for_empty_prompt``), no text at
    all: zeros. SDXL is told that the picture has the size of the latent, and is not cropped.
    """

    def _describe(self) -> None:
        config = self.network.config
        if config.class_embed_type or config.num_class_embeds or config.addition_embed_type not in ADDED:
            why = "its network takes more than a latent and a text (an upscaler, or image variations)"
            raise bad("source", type(self.pipe).__name__, why, 'tk.load("path/to/the/text-to-image/model")')
        if not hasattr(self.pipe, "encode_prompt"):
            why = "it encodes prompts in a way of its own, which this version does not know"
            raise bad("source", type(self.pipe).__name__, why, 'tk.load("path/to/a/StableDiffusionPipeline")')
        self.xl = config.addition_embed_type == "text_time"
        self.takes = (*self.takes, "text_embeds") if self.xl else self.takes
        super()._describe()
        self.overflows = self.xl and self.vae is not None and bool(self.vae.config.get("force_upcast"))

    def recorded(self) -> dict[str, Any]:
        told = {} if self.network.config.time_cond_proj_dim is None else {"guidance": self._guidance()}
        return {**super().recorded(), **told}

    def encoded(self, prompt: str | None, negative: bool) -> dict[str, torch.Tensor]:
        empty = negative and prompt is None and self.pipe.config.get("force_zeros_for_empty_prompt", False)
        text, *rest = self.pipe.encode_prompt(
            prompt=prompt or "",
            device=self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        made = {"encoder_hidden_states": text}
        if self.xl:
            made["text_embeds"] = rest[1]
            if self.pipe.config.get("requires_aesthetics_score", False):
                made["score"] = torch.full((1, 1), AESTHETIC[negative])
        return {k: torch.zeros_like(v) if empty and k != "score" else v for k, v in made.items()}

    def ask(self, x: torch.Tensor, time: torch.Tensor, conditions: list) -> torch.Tensor:
        told = dict(self._stacked(conditions, x))
        if self.xl:
            score, size = told.pop("score", None), self._size(x)
            ids = size if score is None else torch.cat([size[:, :4], score], 1)
            told["added_cond_kwargs"] = {"text_embeds": told.pop("text_embeds"), "time_ids": ids}
        if self.network.config.time_cond_proj_dim is not None:
            told["timestep_cond"] = self._guided(x)
        # a network of pixels may also say a variance, which is no use to an ODE
        return self._forward(x, time, return_dict=False, **told)[0][:, : self.channels]

    def _size(self, x: torch.Tensor) -> torch.Tensor:
        """SDXL's micro-conditions, (row, 6) in px: size before cropping, where it was cropped, and after."""
        height, width = (side * self.factor for side in x.shape[-2:])
        told = [[height, width, 0, 0, height, width]] * len(x)
        key = ("size", len(x), height, width, x.device, x.dtype)
        return kept(self._batches, key, lambda: torch.tensor(told, device=x.device, dtype=x.dtype))

    def _guidance(self) -> float:
        return GUIDANCE if self.asked.guidance is None else self.asked.guidance

    def _guided(self, x: torch.Tensor) -> torch.Tensor:
        """What a distilled network is told of the guidance scale (2310.04378), (row, number)."""
        scale = torch.full((len(x),), self._guidance() - 1.0)
        embed, width = self.pipe.get_guidance_scale_embedding, self.network.config.time_cond_proj_dim
        key = ("guidance", len(x), x.device, x.dtype)
        return kept(self._batches, key, lambda: embed(scale, embedding_dim=width).to(x))
