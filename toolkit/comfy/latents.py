"""ComfyUI's LATENT: a dict with `samples` in the space of the VAE, and perhaps a `noise_mask`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import inputs
from ..errors import bad


class Latent(NamedTuple):
    """What a node was given: model-space samples, float64, and the mask as it came."""

    samples: torch.Tensor  # (sample, channel, y, x)
    mask: torch.Tensor | None  # any shape


def factors(model: Any) -> tuple[float, float]:
    """Scale and shift of the model's latents, also where conditions were bound to it."""
    owner = getattr(model, "model", None) or model
    return float(getattr(owner, "latent_scale", 1.0)), float(getattr(owner, "latent_shift", 0.0))


def inward(samples: torch.Tensor, scale: float, shift: float) -> torch.Tensor:
    """From the space of the VAE to model space; zeros everywhere stay zeros, as in ComfyUI."""
    return (samples - shift) * scale if bool(samples.any()) else samples


def latent_in(model: Any, given: Any) -> Latent:
    """`latent_image` of a node, an array or ComfyUI's dict, in model space: (z - shift) * scale.

    A picture is encoded, and in model space then. Zeros everywhere stay zeros, as in ComfyUI.
    """
    line = 'latent_image={"samples": latent}'
    mask = None
    if isinstance(given, Mapping):
        if "samples" not in given:
            raise bad("latent_image", list(given), "a dict with the key samples", line)
        given, mask = given["samples"], given.get("noise_mask")
    samples, (scale, shift) = inputs.latent(model, given, "latent_image", line, "vae"), factors(model)
    if not inputs.is_picture(given):
        samples = inward(samples, scale, shift)
    if mask is None:
        return Latent(samples, None)
    values = mask.cpu().numpy() if isinstance(mask, torch.Tensor) else mask
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
        raise bad("noise_mask", mask, "an array (..., y, x) of weights in 0..1", line, TypeError)
    mask = torch.as_tensor(mask).to(device=samples.device, dtype=torch.float32)
    if mask.ndim < 2 or 0 in mask.shape or not bool(torch.isfinite(mask).all()):
        raise bad("noise_mask", tuple(mask.shape), "finite, of shape (..., y, x)", line)
    if float(mask.min()) < 0 or float(mask.max()) > 1:
        given = f"values from {float(mask.min()):.4g} to {float(mask.max()):.4g}"
        raise bad("noise_mask", given, "weights in 0..1", line)
    return Latent(samples, mask)


def fit(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A mask of any shape as a list of 2-D ones, (mask, y, x): bilinear, no antialiasing."""
    flat = mask.reshape(-1, 1, *mask.shape[-2:])
    return torch.nn.functional.interpolate(flat, size=(height, width), mode="bilinear")[:, 0]


def cycled(masks: torch.Tensor, count: int) -> torch.Tensor:
    """A list of masks repeated in turn to at least `count`."""
    return masks.repeat(-(-count // len(masks)), 1, 1) if len(masks) < count else masks


def float32(values: np.ndarray) -> np.ndarray:
    """Rounded to float32, as every node's output is, and back."""
    return values.astype(np.float32).astype(np.float64)
