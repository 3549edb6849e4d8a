"""What levels look like: one small picture and one noise, which the browser mixes at every level."""

from typing import Any

import numpy as np

from ..errors import bad

SIDE = 47  # pixels of a picture on the screen
NOISE_CODES = 32  # to one standard deviation: a signed byte holds what is within four of them
LINE = "tk.views.schedules(image=numpy.random.default_rng(0).random((64, 64, 3)))"


def flower() -> np.ndarray:
    """A flower on a dark ground, (y, x, rgb) from 0 to 1: coarse and fine shapes, warm and cold."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    image = np.stack([0.05 + 0.05 * y, 0.20 - 0.08 * y, 0.22 + 0.06 * x], axis=-1)
    rings = ((0.92, 16), (0.76, 15), (0.60, 13), (0.45, 11), (0.31, 9), (0.18, 6))
    for k, (size, petals) in enumerate(rings):
        wave = np.abs(np.cos(petals * angle / 2 + 1.3 * k))
        inside = radius < size * (0.80 + 0.20 * wave)
        light = (0.45 + 0.55 * wave * np.clip(radius / size, 0.3, 1))[..., None]
        colour = np.array([1.0, 0.72 - 0.09 * k, 0.50 - 0.07 * k]) * light
        image = np.where(inside[..., None], colour, image)
    return np.clip(image, 0, 1)


def small(image: Any) -> np.ndarray:
    """The middle square of an image, (SIDE, SIDE, rgb) as bytes; the flower for None.

    Raises
    ------
    ValueError, TypeError
        For anything but an image (y, x, rgb) of bytes, or of numbers from 0 to 1.
    """
    from PIL import Image

    values = flower() if image is None else np.asarray(image)
    if values.dtype.kind not in "uf":
        raise bad("image", image, "an image (y, x, rgb) of bytes, or of numbers from 0 to 1", LINE, TypeError)
    if values.ndim != 3 or values.shape[-1] != 3 or min(values.shape) < 1:
        raise bad("image", values.shape, "an image (y, x, rgb)", LINE)
    if values.dtype.kind == "f":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise bad("image", [values.min(), values.max()], "numbers from 0 to 1", LINE)
        values = np.rint(values * 255)
    picture, side = Image.fromarray(values.astype(np.uint8)), min(values.shape[:2])
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=box))


def look(image: Any) -> bytes:
    """The image and its noise as the browser takes them: unsigned bytes, then signed ones."""
    noise = np.random.default_rng(0).standard_normal((SIDE, SIDE, 3)) * NOISE_CODES
    return small(image).tobytes() + np.clip(np.rint(noise), -127, 127).astype(np.int8).tobytes()
