"""The small nodes between the samplers, which `read_workflow` calls: pictures, masks, latents, levels.

Each is named as its node, snake case, with the node's parameters and defaults. A picture is a float32 array
(sample, y, x, rgb) in 0..1, a mask a float32 tensor (sample, y, x), and a LATENT a dict whose "samples",
(sample, channel, y, x), are in the space of the VAE. Source of all: the nodes' behaviour, ComfyUI 0.3.64 and
ComfyUI_Noise at 0c9ec19b.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch.nn.functional import conv2d, interpolate

from .. import inputs
from ..errors import bad, unknown
from ..grids import KARRAS_RHO
from ..schedules import sigmas as schedule_sigmas
from .latents import factors, fit, inward
from .streams import unit

NO_MASK = (1, 64, 64)  # what LoadImage gives for a picture without transparency
FLIPPED_ZERO = 1e-4
CHANNELS = {"red": 0, "green": 1, "blue": 2, "alpha": 3}
MODES = {"nearest-exact": {}, "area": {}, "bilinear": {}, "bicubic": {}}  # of torch; the others are not here


# --- pictures and masks ---------------------------------------------------------------------------


def load_image(image: Any) -> tuple[np.ndarray, torch.Tensor]:
    """LoadImage: a picture, turned upright, and its mask, 1 where it is transparent.

    Parameters
    ----------
    image : path, PIL image, or array as `Model.encode` takes it
        Of arrays the mask is empty.
    """
    if isinstance(image, (str, PathLike)):
        from PIL import Image

        with Image.open(image) as opened:
            opened.load()
            image = opened
    if not inputs.is_picture(image):
        from ..pipelines.pictures import pixels_of

        return np.ascontiguousarray(pixels_of(image, 3).transpose(0, 2, 3, 1)), torch.zeros(NO_MASK)
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    transparent = "A" in image.getbands() or "transparency" in image.info
    mask = torch.zeros(NO_MASK)
    if transparent:
        alpha = np.asarray(image.convert("RGBA"), np.float32)[..., 3] / np.float32(255)
        mask = torch.from_numpy(1.0 - alpha)[None]
    return np.asarray(image.convert("RGB"), np.float32)[None] / np.float32(255), mask


def load_image_mask(image: Any, channel: str = "alpha") -> torch.Tensor:
    """LoadImageMask: one channel of a picture as a mask; "alpha" turned round, empty where there is none."""
    if channel not in CHANNELS:
        raise unknown("channel", channel, CHANNELS, 'tk.comfy.nodes.load_image_mask(image, "{}")')
    pixels, mask = load_image(image)
    return mask if channel == "alpha" else image_to_mask(pixels, channel)


def image_to_mask(image: Any, channel: str = "red") -> torch.Tensor:
    """ImageToMask: one channel of a picture; of "alpha" there is none here."""
    if channel not in ("red", "green", "blue"):
        raise unknown("channel", channel, ("red", "green", "blue"), 'nodes.image_to_mask(image, "{}")')
    return torch.from_numpy(np.array(np.asarray(image)[..., CHANNELS[channel]], np.float32))


def mask_to_image(mask: torch.Tensor) -> np.ndarray:
    """MaskToImage: a grey picture."""
    flat = mask.reshape(-1, *mask.shape[-2:]).float().numpy()
    return np.repeat(flat[..., None], 3, axis=-1)


def solid_mask(value: float = 1.0, width: int = 512, height: int = 512) -> torch.Tensor:
    """SolidMask."""
    return torch.full((1, height, width), float(value))


def invert_mask(mask: torch.Tensor) -> torch.Tensor:
    """InvertMask."""
    return 1.0 - mask


def image_scale(image: Any, upscale_method: str = "nearest-exact", width: int = 512, height: int = 512,
                crop: str = "disabled") -> np.ndarray:  # fmt: skip
    """ImageScale: a side of 0 follows the other one; `crop` "center" keeps the picture's proportions."""
    pixels = torch.from_numpy(np.array(image, np.float32)).movedim(-1, 1)
    scaled = _resized(pixels, upscale_method, width, height, crop)
    return scaled.movedim(1, -1).contiguous().numpy()


def image_scale_by(image: Any, upscale_method: str = "nearest-exact", scale_by: float = 1.0) -> np.ndarray:
    """ImageScaleBy."""
    height, width = np.asarray(image).shape[-3:-1]
    return image_scale(image, upscale_method, round(width * scale_by), round(height * scale_by))


# --- latents --------------------------------------------------------------------------------------


def vae_encode(model: Any, pixels: Any) -> dict[str, Any]:
    """VAEEncode: a LATENT of pictures, cropped round their middle to what the autoencoder takes."""
    step = int(getattr(model, "factor", 1)) * int(getattr(model, "multiple", 1))
    pixels = np.asarray(load_image(pixels)[0] if isinstance(pixels, (str, PathLike)) else pixels)
    cut = [(side % step) // 2 for side in pixels.shape[1:3]]
    height, width = ((side // step) * step for side in pixels.shape[1:3])
    pixels = pixels[:, cut[0] : cut[0] + height, cut[1] : cut[1] + width]
    scale, shift = factors(model)
    return {"samples": model.encode(pixels) / scale + shift}


def vae_encode_for_inpaint(model: Any, pixels: Any, mask: torch.Tensor,
                           grow_mask_by: int = 6) -> dict[str, Any]:  # fmt: skip
    """VAEEncodeForInpaint: grey under the mask, and a noise_mask grown by half of `grow_mask_by` pixels."""
    pixels = np.array(pixels, np.float32)
    mask = fit(mask.float(), *pixels.shape[1:3])  # (mask, y, x)
    grown = mask[:, None]
    if grow_mask_by > 0:
        box = torch.ones(1, 1, grow_mask_by, grow_mask_by)
        padding = -(-(grow_mask_by - 1) // 2)
        grown = conv2d(grown.round(), box, padding=padding).clamp(0, 1)
    kept = (1.0 - mask.round())[..., None].numpy()
    latent = vae_encode(model, (pixels - 0.5) * kept + 0.5)
    return {**latent, "noise_mask": grown[:, :, : pixels.shape[1], : pixels.shape[2]].round()}


def vae_decode(model: Any, samples: Any) -> np.ndarray:
    """VAEDecode: pictures of a LATENT, of a latent in the space of the VAE, or of the end of a run."""
    scale, shift = factors(model)
    return model.decode((_samples(samples) - shift) * scale)


def empty_latent_image(
    model: Any, width: int = 512, height: int = 512, batch_size: int = 1
) -> dict[str, Any]:
    """EmptyLatentImage, EmptySD3LatentImage: zeros of the model's channels; sides in pixels."""
    factor = int(getattr(model, "factor", 8))
    return {"samples": torch.zeros(batch_size, model.channels or 4, height // factor, width // factor)}


def output(run: xr.Dataset, latent: Any = None) -> dict[str, Any]:
    """The LATENT that a node hands on: the last row of its run, with the other keys of the one that came in.

    Of the batch unsamplers all rows, as their batch, and no other keys.
    """
    values = run.latent.transpose("step", "sample", "channel", "y", "x").values
    if run.attrs.get("latent_space", "vae") == "model":
        values = values[-1:] / run.attrs["latent_scale"] + run.attrs["latent_shift"]
    if run.attrs.get("kind") == "ladder":
        return {"samples": torch.from_numpy(values.reshape(-1, *values.shape[2:]).astype(np.float32))}
    others = dict(latent) if isinstance(latent, Mapping) else {}
    if run.attrs.get("kind") == "regional":
        others.pop("noise_mask", None)
    return {**others, "samples": torch.from_numpy(values[-1].astype(np.float32))}


def denoised_output(run: xr.Dataset) -> dict[str, Any]:
    """SamplerCustom's second output: the x0 of its last step."""
    values = run.denoised.transpose("step", "sample", "channel", "y", "x").values
    asked = np.flatnonzero(np.isfinite(values[:, 0, 0, 0, 0]))
    return {"samples": torch.from_numpy(values[asked[-1]].astype(np.float32))}


def model_space(model: Any, samples: Any) -> torch.Tensor:
    """A LATENT as ``tk.sample`` and ``tk.regional`` take it: (z - shift) * scale, float64."""
    return inward(_samples(samples).double(), *factors(model))


def seed_noise(samples: Any, seed: int = 0) -> torch.Tensor:
    """RandomNoise: unit noise of a seed for a LATENT, float64, drawn on the CPU as float32."""
    return unit(seed, _samples(samples).shape, _dict(samples).get("batch_index")).double()


def set_latent_noise_mask(samples: Any, mask: torch.Tensor) -> dict[str, Any]:
    """SetLatentNoiseMask: what is sampled is under the mask."""
    return {**_dict(samples), "noise_mask": mask.reshape(-1, 1, *mask.shape[-2:])}


def latent_from_batch(samples: Any, batch_index: int = 0, length: int = 1) -> dict[str, Any]:
    """LatentFromBatch: some samples of a batch, which keep their places in the noise of a seed."""
    given, x = _dict(samples), _samples(samples)
    first = min(len(x) - 1, batch_index)
    last = first + min(len(x) - first, length)
    index = list(given.get("batch_index", range(len(x))))[first:last]
    picked = {**given, "samples": x[first:last].clone(), "batch_index": index}
    mask = given.get("noise_mask")
    if mask is not None and len(mask) > 1:
        picked["noise_mask"] = mask[torch.arange(first, last) % len(mask)]
    return picked


def repeat_latent_batch(samples: Any, amount: int = 1) -> dict[str, Any]:
    """RepeatLatentBatch: copies get places of their own in the noise of a seed."""
    given, x = _dict(samples), _samples(samples)
    out = {**given, "samples": x.repeat(amount, 1, 1, 1)}
    mask = given.get("noise_mask")
    if mask is not None and len(mask) > 1:
        mask = mask[torch.arange(len(x)) % len(mask)]
        out["noise_mask"] = mask.repeat(amount, *[1] * (mask.ndim - 1))
    if "batch_index" in given:
        index = list(given["batch_index"])
        span = max(index) - min(index) + 1
        out["batch_index"] = [k + span * copy for copy in range(amount) for k in index]
    return out


def latent_upscale(samples: Any, upscale_method: str = "nearest-exact", width: int = 512, height: int = 512,
                   crop: str = "disabled", factor: int = 8) -> dict[str, Any]:  # fmt: skip
    """LatentUpscale: sides in pixels, of which a side of 0 follows the other one."""
    sides = (max(0, width // factor), max(0, height // factor))
    return {**_dict(samples), "samples": _resized(_samples(samples), upscale_method, *sides, crop)}


def latent_upscale_by(samples: Any, upscale_method: str = "nearest-exact",
                      scale_by: float = 1.5) -> dict[str, Any]:  # fmt: skip
    """LatentUpscaleBy."""
    x = _samples(samples)
    sides = (round(side * scale_by) for side in (x.shape[3], x.shape[2]))
    return {**_dict(samples), "samples": _resized(x, upscale_method, *sides, "disabled")}


def latent_add(samples1: Any, samples2: Any) -> dict[str, Any]:
    """LatentAdd; the second batch is repeated or cut to the first."""
    a, b = _pair(samples1, samples2)
    return {**_dict(samples1), "samples": a + b}


def latent_subtract(samples1: Any, samples2: Any) -> dict[str, Any]:
    """LatentSubtract; the second batch is repeated or cut to the first."""
    a, b = _pair(samples1, samples2)
    return {**_dict(samples1), "samples": a - b}


def latent_multiply(samples: Any, multiplier: float = 1.0) -> dict[str, Any]:
    """LatentMultiply."""
    return {**_dict(samples), "samples": _samples(samples) * multiplier}


# --- the noise of ComfyUI_Noise -------------------------------------------------------------------


def noisy_latent_image(model: Any, source: str = "CPU", seed: int = 0, width: int = 512, height: int = 512,
                       batch_size: int = 1) -> dict[str, Any]:  # fmt: skip
    """NoisyLatentImage: unit noise of a seed, drawn on the CPU whatever the `source`."""
    factor = int(getattr(model, "factor", 8))
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (batch_size, model.channels or 4, height // factor, width // factor)
    return {"samples": torch.randn(shape, generator=generator, dtype=torch.float32)}


def duplicate_batch_index(latents: Any, batch_index: int = 0, batch_size: int = 1) -> dict[str, Any]:
    """DuplicateBatchIndex: one sample of a batch, so many times."""
    x = _samples(latents)
    one = x[min(len(x) - 1, batch_index)]
    return {**_dict(latents), "samples": one[None].repeat(batch_size, 1, 1, 1)}


def slerp_latent(
    latents1: Any, factor: float = 0.5, latents2: Any = None, mask: Any = None
) -> dict[str, Any]:
    """LatentSlerp: per sample along the arc; the first latent where the second is not of its shape."""
    a = _samples(latents1)
    b = None if latents2 is None else _samples(latents2)
    if b is None or a.shape != b.shape:
        return _dict(latents1)
    unit = [n / torch.linalg.vector_norm(n, dim=(1, 2, 3), keepdim=True).clamp_min(1e-30) for n in (a, b)]
    w = (unit[0] * unit[1]).sum((1, 2, 3), keepdim=True).clamp(-1.0, 1.0).acos()
    mixed = (((1.0 - factor) * w).sin() * a + (factor * w).sin() * b) / w.sin()
    return {**_dict(latents1), "samples": _under(mask, torch.where(w.sin() > 1e-6, mixed, a), a)}


def inject_noise(latents: Any, strength: float = 1.0, noise: Any = None, mask: Any = None) -> dict[str, Any]:
    """InjectNoise: latent + strength * noise, under the mask; unchanged by noise of another shape."""
    x = _samples(latents)
    n = None if noise is None else _samples(noise)
    if n is None or n.shape != x.shape:
        return _dict(latents)
    return {**_dict(latents), "samples": _under(mask, x + strength * n, x)}


def get_sigma(model: Any, sampler_name: str = "euler", scheduler: str = "simple", steps: int = 10_000,
              start_at_step: int = 0, end_at_step: int = 10_000) -> float:  # fmt: skip
    """GetSigma: a difference of two levels over the latent scale, the strength of `inject_noise`."""
    levels = schedule_sigmas(model.levels, scheduler, steps, sampler_name)
    end = min(steps, end_at_step, len(levels) - 1)
    return float(levels[min(start_at_step, end)] - levels[end]) / factors(model)[0]


# --- levels ---------------------------------------------------------------------------------------


def basic_scheduler(
    model: Any, scheduler: str = "simple", steps: int = 20, denoise: float = 1.0
) -> np.ndarray:
    """BasicScheduler: falling levels, float32."""
    return schedule_sigmas(model.levels, scheduler, steps, denoise=denoise)


def karras_scheduler(steps: int = 20, sigma_max: float = 14.614642, sigma_min: float = 0.0291675,
                     rho: float = KARRAS_RHO) -> np.ndarray:  # fmt: skip
    """KarrasScheduler: falling levels between two ends, and 0; float32."""
    ramp = np.linspace(0.0, 1.0, steps)
    low, high = sigma_min ** (1.0 / rho), sigma_max ** (1.0 / rho)
    return np.append((high + ramp * (low - high)) ** rho, 0.0).astype(np.float32)


def split_sigmas(sigmas: Sequence[float], step: int = 0) -> tuple[Any, Any]:
    """SplitSigmas: the levels down to one, and from it on."""
    return sigmas[: step + 1], sigmas[step:]


def flip_sigmas(sigmas: Sequence[float]) -> np.ndarray:
    """FlipSigmas: turned round, to run upwards; a 0 at the start becomes 0.0001."""
    turned = np.array(sigmas, np.float32)[::-1].copy()
    if len(turned) and turned[0] == 0:
        turned[0] = FLIPPED_ZERO
    return turned


# --- what they share ------------------------------------------------------------------------------


def _dict(given: Any) -> dict[str, Any]:
    """A LATENT, also where an array stands for it."""
    return dict(given) if isinstance(given, Mapping) else {"samples": _samples(given)}


def _samples(given: Any) -> torch.Tensor:
    """The latent of a LATENT, an array or a run."""
    if isinstance(given, xr.Dataset):
        given = output(given)
    if isinstance(given, Mapping):
        if "samples" not in given:
            raise bad("latent", list(given), "a dict with the key samples", '{"samples": latent}')
        given = given["samples"]
    given = given.values if hasattr(given, "dims") else given
    return torch.from_numpy(np.array(given)) if isinstance(given, np.ndarray) else torch.as_tensor(given)


def _pair(first: Any, second: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Two latents of one size: the second as the first."""
    a, b = _samples(first), _samples(second)
    if a.shape[1:] != b.shape[1:]:
        b = _resized(b, "bicubic", a.shape[3], a.shape[2], "center")
    return a, b[torch.arange(len(a)) % len(b)]


def _under(mask: Any, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """A latent changed under a mask."""
    if mask is None:
        return new
    fitted = fit(mask.float(), *old.shape[-2:])[:, None]
    fitted = fitted[torch.arange(len(old)) % len(fitted)]
    return fitted * new + (1.0 - fitted) * old


def _resized(x: torch.Tensor, method: str, width: int, height: int, crop: str) -> torch.Tensor:
    """(sample, channel, y, x) at another size."""
    if method not in MODES:
        raise unknown("upscale_method", method, MODES, 'nodes.latent_upscale_by(latent, "{}")')
    rows, columns = x.shape[-2:]
    if width == 0 and height == 0:
        return x
    width = width or max(1, round(columns * height / rows))
    height = height or max(1, round(rows * width / columns))
    if crop == "center":  # to the proportions of the new size
        now, new = columns / rows, width / height
        across = round((columns - columns * (new / now)) / 2) if now > new else 0
        down = round((rows - rows * (now / new)) / 2) if now < new else 0
        x = x[..., down : rows - down, across : columns - across]
    return interpolate(x, size=(height, width), mode=method)
