"""What a user calls an image, as pixels."""

from typing import Any

import numpy as np
import torch

from .. import inputs
from ..errors import bad

LINE = 'model.encode(PIL.Image.open("digit.png"))'
DEEP = ("I", "F")  # modes of PIL, and how their names begin, of which its `convert` keeps eight bits, clipped


def pixels_of(image: Any, channels: int) -> np.ndarray:
    """Images as (sample, channel, y, x) float32 in 0..1."""
    if isinstance(image, (list, tuple)) and image:
        return _joined([pixels_of(one, channels) for one in image])
    values = _values(image, channels)
    if values.ndim in (3, 4) and values.shape[-1] in (1, 3):
        values = values[None] if values.ndim == 3 else values
        values = (
            values.mean(-1, keepdims=True)
            if channels == 1
            else np.broadcast_to(values, (*values.shape[:3], channels))
        )
    elif values.ndim in (2, 3):
        values = values[None] if values.ndim == 2 else values
        values = np.repeat(values[..., None], channels, axis=-1)
    else:
        wanted = "of shape (y, x), (y, x, rgb), (sample, y, x) or (sample, y, x, rgb)"
        raise bad("image", values.shape, wanted, LINE)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2), np.float32)


def _joined(images: list[np.ndarray]) -> np.ndarray:
    """Images of one size as one array."""
    sizes = sorted({image.shape[-2:] for image in images})
    if len(sizes) > 1:
        height, width = images[0].shape[-2:]
        wanted = "pictures of one size, these are (y, x) in pixels"
        raise bad("image", sizes, wanted, f"[one.resize(({width}, {height})) for one in images]")
    return np.concatenate(images)


def _values(image: Any, channels: int) -> np.ndarray:
    """The numbers of one image, floats in 0..1, in the shape they came in."""
    if inputs.is_picture(image):
        if image.mode.startswith(DEEP):
            line = "np.asarray(image)" + " / 65535" * (image.mode != "F")
            raise bad("image", image.mode, "of a mode with 8 bits a colour, or an array in 0..1", line)
        image = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    _refuse_order(image, channels)
    image = inputs.host(image)
    if not isinstance(image, np.ndarray):
        given = image if isinstance(image, (list, tuple)) else type(image)
        raise bad("image", given, "a PIL image, an array, or a list of them", LINE, TypeError)
    if image.dtype == np.uint8:
        image = image.astype(np.float32) / 255.0
    real = image.dtype.kind == "f" and image.size > 0
    if not real or not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
        given = str(image.dtype)
        if image.dtype.kind == "f":
            given = f"values from {image.min():.4g} to {image.max():.4g}" if image.size else "no pixels"
        raise bad("image", given, "uint8, or floats in 0..1", LINE)
    return image


def _refuse_order(image: Any, channels: int) -> None:
    """Refuses what would be taken for grey pictures: colours that come first, and those with transparency."""
    if not isinstance(image, (np.ndarray, torch.Tensor)) or image.ndim not in (3, 4):
        return
    shape, last = tuple(image.shape), image.shape[-1]
    if isinstance(image, torch.Tensor) and channels == 3 and shape[-3] == 3 and last not in (1, 3):
        order = (1, 2, 0) if image.ndim == 3 else (0, 2, 3, 1)
        wanted = "colours come last here (and three grey pictures as list(image))"
        raise bad("image", shape, wanted, f"image.permute{order}")
    if last in (2, 4):
        wanted = "without transparency, (y, x, rgb) or (sample, y, x, rgb)"
        raise bad("image", shape, wanted, f"image[..., :{last - 1}]")
