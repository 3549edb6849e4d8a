"""DiT: class-conditional transformers over the latents of a VAE (2212.09748), our digits among them."""

import hashlib
from typing import Any

import numpy as np
import torch

from .. import inputs
from ..denoisers import Model, one_a_sample, predict
from ..errors import bad, unknown
from ..paths import VE
from ..schedules import Levels
from .pictures import pixels_of

# what a diffusers scheduler calls its prediction -> our name
PREDICTION = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


class DiT(Model):
    """A `DiTPipeline` as a model: labels as prompts, the null class where the prompt is None."""

    path = VE

    def __init__(self, pipe: Any, name: str):
        self.name, self.vae, self.network = name, pipe.vae.eval(), pipe.transformer.eval()
        for module in (self.vae, self.network):
            module.requires_grad_(False)
        config, scheduler = self.network.config, pipe.scheduler.config
        self.channels = config.in_channels
        self.shape = (config.in_channels, config.sample_size, config.sample_size)
        self.classes = config.num_embeds_ada_norm  # the label after the last one is the null class
        self.labels = dict(getattr(pipe, "labels", {}))  # text -> class, from the pipeline's id2label
        self.prediction = PREDICTION[scheduler.prediction_type]
        self.levels = Levels.from_betas(
            _betas(pipe.scheduler), zero_snr=bool(scheduler.get("rescale_betas_zero_snr", False))
        )
        self.latent_scale = self.vae.config.scaling_factor
        self.fingerprint = fingerprint(self.network, self.vae)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.device

    def facts(self) -> dict[str, Any]:
        return {
            **super().facts(),
            "classes": self.classes,
            "dtype": str(self.network.dtype).removeprefix("torch."),
        }

    def conditions(self, prompt: Any, samples: int, name: str = "prompt") -> list[int]:
        """Class labels, one a sample; None is the null class, text is looked up in the pipeline's labels."""
        return one_a_sample(prompt, samples, self._label, name)

    def _label(self, prompt: Any, name: str) -> int:
        if prompt is None:
            return self.classes
        if isinstance(prompt, str) and self.labels:
            if prompt not in self.labels:
                raise unknown(name, prompt, self.labels, f'{name}="{{}}"')
            return self.labels[prompt]
        if (
            isinstance(prompt, bool)
            or not isinstance(prompt, (int, np.integer))
            or not 0 <= prompt < self.classes
        ):
            raise bad(name, prompt, f"a class label from 0 to {self.classes - 1}", f"{name}=3")
        return int(prompt)

    def x0(self, x: torch.Tensor, sigma: float, conditions: list[int]) -> torch.Tensor:
        labels = torch.tensor(conditions, device=self.device)
        time = torch.full((len(x),), self.levels.time(sigma), device=self.device)

        def network(seen: torch.Tensor) -> torch.Tensor:
            out = self.network(seen.to(self.network.dtype), timestep=time, class_labels=labels).sample
            return out[:, : self.channels]  # DiT's other half, the learned variance, is no use to an ODE

        return predict(self.prediction, network, x, sigma)

    def encode(self, image: Any) -> torch.Tensor:
        """The posterior's mode of an image, in model space.

        Parameters
        ----------
        image : PIL image, or array (y, x), (y, x, rgb), (sample, y, x) or (sample, y, x, rgb); a list of
        either
            uint8, or floating in 0..1; of the size that the model decodes to.

        Returns
        -------
        Tensor (sample, channel, y, x), float64

        Raises
        ------
        ValueError, TypeError
            For another shape, range or kind of image.
        """
        pixels = pixels_of(image, self.vae.config.in_channels)
        size = self.shape[-1] * 2 ** (len(self.vae.config.block_out_channels) - 1)
        if pixels.shape[-2:] != (size, size):
            shape = tuple(pixels.shape[-2:])
            raise bad(
                "image", shape, f"this model takes {size} x {size} pixels", f"image.resize(({size}, {size}))"
            )
        pixels = torch.from_numpy(2.0 * pixels - 1.0).to(self.vae.device, self.vae.dtype)
        with torch.no_grad():
            return self.vae.encode(pixels).latent_dist.mode().double() * self.latent_scale

    def decode(self, latent: Any) -> np.ndarray:
        """Images of latents in model space: (sample, channel, y, x) to (sample, y, x, rgb), float32 in 0..1.

        Raises ValueError or TypeError for what is not such an array (a DataArray comes without `step`).
        """
        x = inputs.latent(self, latent, "latent", "model.decode(run.latent.isel(step=-1))")
        with torch.no_grad():
            out = self.vae.decode((x / self.latent_scale).to(self.vae.dtype)).sample
        images = (0.5 * out.float() + 0.5).clamp(0.0, 1.0).permute(0, 2, 3, 1).cpu().numpy()
        return np.ascontiguousarray(np.broadcast_to(images, (*images.shape[:3], 3)))


def adapt(pipe: Any, name: str) -> DiT:
    """A `DiTPipeline` as a model."""
    return DiT(pipe, name)


def _betas(scheduler: Any) -> np.ndarray:
    """The scheduler's betas before any rescaling to zero terminal SNR, which `Levels` does itself."""
    config = scheduler.config
    if config.get("rescale_betas_zero_snr", False):
        scheduler = type(scheduler).from_config(config, rescale_betas_zero_snr=False)
    return scheduler.betas.double().numpy()


def fingerprint(*modules: torch.nn.Module) -> str:
    """SHA-256 over the weights, names and dtypes of some networks: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for module in modules:
        for name, weight in sorted(module.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
