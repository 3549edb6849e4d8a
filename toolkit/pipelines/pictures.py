"""What a user calls an image, as pixels."""

from typing import Any

import numpy as np
import torch

from ..errors import bad


def pixels_of(image: Any, channels: int) -> np.ndarray:
    """Images as (sample, channel, y, x) float32 in 0..1."""
    line = 'model.encode(PIL.Image.open("digit.png"))'
    if isinstance(image, (list, tuple)) and image:
        return np.concatenate([pixels_of(one, channels) for one in image])
    if type(image).__module__.startswith("PIL."):
        image = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    elif isinstance(image, torch.Tensor):
        image = image.detach().cpu().numpy()
    if not isinstance(image, np.ndarray):
        given = image if isinstance(image, (list, tuple)) else type(image)
        raise bad("image", given, "a PIL image, an array, or a list of them", line, TypeError)
    if image.dtype == np.uint8:
        image = image.astype(np.float32) / 255.0
    real = image.dtype.kind == "f" and image.size > 0
    if not real or not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
        given = str(image.dtype)
        if image.dtype.kind == "f":
            given = f"values from {image.min():.4g} to {image.max():.4g}" if image.size else "no pixels"
        raise bad("image", given, "uint8, or floats in 0..1", line)
    if image.ndim in (3, 4) and image.shape[-1] in (1, 3):
        image = image[None] if image.ndim == 3 else image
        image = (
            image.mean(-1, keepdims=True)
            if channels == 1
            else np.broadcast_to(image, (*image.shape[:3], channels))
        )
    elif image.ndim in (2, 3):
        image = image[None] if image.ndim == 2 else image
        image = np.repeat(image[..., None], channels, axis=-1)
    else:
        raise bad(
            "image", image.shape, "of shape (y, x), (y, x, rgb), (sample, y, x) or (sample, y, x, rgb)", line
        )
    return np.ascontiguousarray(image.transpose(0, 3, 1, 2), np.float32)
